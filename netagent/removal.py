"""Objects of other programs that the kernel removes together with an address, or when a link is set down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from . import rtnetlink
from .claims import is_link_local, single
from .operations import PROTOCOL, TABLE_LOCAL, IPAddress, IPNetwork
from .rtnetlink import Address, Route

IFAPROT_KERNEL_RA = 2  # IFA_PROTO of addresses from router advertisements
IP6_RT_PRIO_ADDRCONF = 256  # linux/ipv6_route.h
_BY_ITSELF = (rtnetlink.RTPROT_KERNEL, rtnetlink.RTPROT_RA, PROTOCOL)


class AddressCounts:
    """Counts addresses, to tell the last one of a link."""

    def __init__(self, addresses: Iterable[Address] = ()) -> None:
        self._links, self._ips = Counter[tuple[int, int]](), Counter[tuple[int, IPAddress]]()
        for address in addresses:
            self.add(address)

    def add(self, address: Address, change: int = 1) -> None:
        """Count an address, or with -1 forget it."""
        self._links[address.link, address.ip.version] += change
        self._ips[address.link, address.ip] += change

    def is_last(self, address: Address) -> bool:
        """Return True if the link has no other address of this family."""
        return self._links[address.link, address.ip.version] == 1

    def has_twice(self, address: Address) -> bool:
        """Return True if the link has the same address with another prefix length, too."""
        return self._ips[address.link, address.ip] > 1


@dataclass(frozen=True, slots=True)
class LosableRoutes:
    """Routes of other programs that an address could take along: those that nobody makes again. One for each key."""

    by_source: Mapping[IPAddress, Route]  # by the source that they prefer
    by_link: Mapping[int, Route]  # of IPv4, by their links
    by_prefix: Mapping[tuple[int, IPNetwork], Route]  # by link and prefix, of IPv6: see is_prefix_route


def losable(routes: Iterable[Route]) -> LosableRoutes:
    """Return what could go with an address. `routes` are those of other programs."""
    by_source, by_link = dict[IPAddress, Route](), dict[int, Route]()
    by_prefix = dict[tuple[int, IPNetwork], Route]()
    for route in routes:
        if is_prefix_route(route):
            by_prefix.update({(hop.link, route.destination): route for hop in route.hops if hop.gateway is None})
        if is_derived(route):
            continue
        if route.source is not None:
            by_source[route.source] = route
        if route.destination.version == 4:
            by_link.update({hop.link: route for hop in route.hops})
    return LosableRoutes(by_source, by_link, by_prefix)


def is_prefix_route(route: Route) -> bool:
    """Return True for a route that the kernel could take for the connected route of an IPv6 address of ours.

    With the last address of a prefix it removes the first route to that prefix which is on link, of any program: in
    main, or if the link is a member of a VRF, in the VRF's table (addrconf_get_prefix_route). netagent does not read
    which table that is. Connected routes have the metric IP6_RT_PRIO_ADDRCONF.
    """
    derived = route.protocol == rtnetlink.RTPROT_KERNEL and not route.expires
    first = route.table != TABLE_LOCAL and route.metric <= IP6_RT_PRIO_ADDRCONF
    return route.destination.version == 6 and first and not derived


def foreign_dependents(address: Address, counts: AddressCounts, routes: LosableRoutes) -> Route | None:
    """Return a route of another program that the kernel would remove or change with `address`, or None.

    With the last IPv4 address of a link all of the link's IPv4 routes go (fib_disable_ip). With any address the IPv4
    routes of any link that prefer it as source go (fib_sync_down_addr), and IPv6 routes lose that preference
    (rt6_remove_prefsrc). Routes that the kernel derived are no loss. `counts` still has the address.
    """
    if counts.has_twice(address):
        return None  # the address stays, with another prefix length
    found = routes.by_source.get(address.ip)
    if found is None and address.ip.version == 4 and counts.is_last(address):
        found = routes.by_link.get(address.link)
    if found is None and address.ip.version == 6 and not address.flags & rtnetlink.IFA_F_NOPREFIXROUTE:
        found = routes.by_prefix.get((address.link, address.network))
    return found


def is_derived(route: Route) -> bool:
    """Return True for a route that the kernel or a router made, or that is ours."""
    return route.protocol in _BY_ITSELF or (route.table == TABLE_LOCAL and route.protocol == rtnetlink.RTPROT_KERNEL)


def lost_with_link(link: int, addresses: Iterable[Address], routes: Iterable[Route]) -> str | None:
    """Return an IPv6 address, or a route of another program, that setting the link down would remove, or None.

    IPv4 addresses stay on a link that is down. Routers advertise theirs again.
    """
    for address in addresses:
        stays = address.protocol == IFAPROT_KERNEL_RA or is_link_local(single(address.ip))
        if address.link == link and address.ip.version == 6 and not stays:
            return f"{address.ip}/{address.prefix}"
    for route in routes:
        if not is_derived(route) and any(hop.link == link for hop in route.hops):
            return f"the route to {route.destination}"
    return None
