"""Foreign objects that the kernel removes together with an address, or when a link is set down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from . import rtnetlink
from .claims import is_link_local, is_single, single
from .operations import TABLE_LOCAL, IPAddress, IPNetwork
from .rtnetlink import Address, Route

IFAPROT_KERNEL_RA, IFAPROT_KERNEL_LL = 2, 3  # IFA_PROTO of router advertisements, and of automatic link-local addresses
IP6_RT_PRIO_ADDRCONF = 256  # linux/ipv6_route.h

Places = Set[tuple[int, IPAddress, IPNetwork, int]]
"""Link, address, destination and metric of routes that the kernel has derived: see places_of."""


class AddressCounts:
    """Counts the addresses of each link, to find the last one."""

    def __init__(self) -> None:
        self._links, self._ips = Counter[tuple[int, int]](), Counter[tuple[int, IPAddress]]()

    def add(self, address: Address, delta: int = 1) -> None:
        """Add an address to the count, or remove it with -1."""
        self._links[address.link, address.ip.version] += delta
        self._ips[address.link, address.ip] += delta

    def of(self, link: int, version: int) -> int:
        """Return the number of the link's addresses of a family."""
        return self._links[link, version]

    def is_last(self, address: Address) -> bool:
        """Return True if the link has no other address of this family."""
        return self.of(address.link, address.ip.version) == 1

    def has_twice(self, address: Address) -> bool:
        """Return True if the link has the same address also with another prefix length."""
        return self._ips[address.link, address.ip] > 1


@dataclass(frozen=True, slots=True)
class RoutesAtRisk:
    """Foreign routes that the kernel may remove with an address and does not restore. One for each key."""

    by_source: Mapping[IPAddress, Route]  # by preferred source
    by_link: Mapping[int, Route]  # IPv4 routes, by link
    by_prefix: Mapping[tuple[int, IPNetwork], Route]  # IPv6 routes, by link and prefix: see is_prefix_route
    by_unconnected_prefix: Mapping[tuple[int, IPNetwork], Route]  # of any metric, if the prefix has no connected route


def find_routes_at_risk(routes: Iterable[Route], addresses: Iterable[Address]) -> RoutesAtRisk:
    """Return those of the foreign `routes` that the kernel may remove with an address."""
    by_source, by_link = dict[IPAddress, Route](), dict[int, Route]()
    by_prefix, unconnected = dict[tuple[int, IPNetwork], Route](), dict[tuple[int, IPNetwork], Route]()
    connected = set[tuple[int, IPNetwork]]()
    places = places_of(addresses)
    for route in routes:
        on_link = [(hop.link, route.destination) for hop in route.hops if hop.gateway is None]
        if is_prefix_route(route):
            unconnected.update(dict.fromkeys(on_link, route))
            if route.metric <= IP6_RT_PRIO_ADDRCONF:
                by_prefix.update(dict.fromkeys(on_link, route))
        elif route.table != TABLE_LOCAL:
            connected.update(on_link)
        if is_derived(route, places):
            continue
        if route.source is not None:
            by_source[route.source] = route
        if route.destination.version == 4:
            by_link.update({hop.link: route for hop in route.hops})
    unconnected = {place: route for place, route in unconnected.items() if place not in connected}
    return RoutesAtRisk(by_source, by_link, by_prefix, unconnected)


def is_prefix_route(route: Route) -> bool:
    """Return True for a route that the kernel could confuse with the connected route of an owned IPv6 address.

    With the last address of a prefix, it removes the first on-link route to that prefix, of any program: in main, or if
    the link is a member of a VRF, in the VRF's table (addrconf_get_prefix_route). netagent does not read the number of
    that table. Connected routes have the metric IP6_RT_PRIO_ADDRCONF, and come before those with a higher one.
    """
    derived = route.protocol == rtnetlink.RTPROT_KERNEL and not route.expires
    return route.destination.version == 6 and route.table != TABLE_LOCAL and not derived


def foreign_dependents(address: Address, counts: AddressCounts, routes: RoutesAtRisk) -> Route | None:
    """Return a foreign route that the kernel would remove or change with `address`, or None.

    With the last IPv4 address of a link, the kernel removes all IPv4 routes of the link (fib_disable_ip). With any
    address, it removes the IPv4 routes of all links that prefer it as source (fib_sync_down_addr), and the preference
    from IPv6 routes (rt6_remove_prefsrc). Routes that the kernel derived do not matter. `counts` includes the address.
    """
    if counts.has_twice(address):
        return None  # the address stays, with another prefix length
    found = routes.by_source.get(address.ip)
    if found is None and address.ip.version == 4 and counts.is_last(address):
        found = routes.by_link.get(address.link)
    if found is None and address.ip.version == 6 and not address.flags & rtnetlink.IFA_F_NOPREFIXROUTE:
        place = address.link, address.network
        found = routes.by_prefix.get(place) or routes.by_unconnected_prefix.get(place)
    return found


def places_of(addresses: Iterable[Address]) -> Places:
    """Return the places of the routes that the kernel has added for addresses: to the address, and to its subnet.

    With IFA_F_NOPREFIXROUTE, it has not added the latter; another program may have, with the kernel's protocol.
    """
    there = list(addresses)
    connected = (each for each in there if not each.flags & rtnetlink.IFA_F_NOPREFIXROUTE)
    places = {(each.link, each.ip, each.network, each.metric) for each in connected}
    return places | {(each.link, each.ip, single(each.ip), 0) for each in there}


def is_derived(route: Route, places: Places) -> bool:
    """Return True for a route that the kernel or a router made, and for an owned route.

    Other programs, too, use the protocol `kernel`. The kernel's own routes have no gateway. They lead to an address, to
    a broadcast, anycast or multicast address, or to a subnet, with IPv4 from an address in it. Those of router
    advertisements (`ra`) are IPv6 routes without a source.
    """
    link, source, destination = route.hops[0].link, route.source, route.destination
    if route.is_owned:
        return True
    if route.protocol == rtnetlink.RTPROT_RA:
        return destination.version == 6 and source is None
    if route.protocol != rtnetlink.RTPROT_KERNEL or any(hop.gateway is not None for hop in route.hops):
        return False
    if route.kind == rtnetlink.RTN_LOCAL:
        ip = destination.network_address if is_single(destination) else source
        return (link, ip, destination, route.metric) in places
    if source is None:
        return destination.version == 6
    # Of a member of a VRF, all of these are in the VRF's table.
    return route.kind == rtnetlink.RTN_BROADCAST or (link, source, destination, route.metric) in places


def lost_with_link(link: int, addresses: Iterable[Address], routes: Iterable[Route]) -> str | None:
    """Return a text for an IPv6 address, or one of `routes`, that the kernel would remove with the link down, or None.

    `routes` are those that the kernel does not add again: see is_derived. IPv4 addresses stay on a link that is down.
    The kernel adds automatic addresses again. Before Linux 5.18, every link-local address counts as automatic.
    """
    there = list(addresses)
    link_local = (IFAPROT_KERNEL_LL,) if any(each.protocol is not None for each in there) else (None,)
    for address in there:
        automatic = is_link_local(single(address.ip)) and address.protocol in link_local
        returns = address.protocol == IFAPROT_KERNEL_RA or automatic
        if address.link == link and address.ip.version == 6 and not returns:
            return f"{address.ip}/{address.prefix}"
    for route in routes:
        if any(hop.link == link for hop in route.hops):
            return f"the route to {route.destination}"
    return None
