"""What else the kernel removes when an address goes or a link is set down, as far as it belongs to others."""

from __future__ import annotations

from collections.abc import Iterable

from . import rtnetlink
from .claims import is_link_local, single
from .operations import PROTOCOL, TABLE_LOCAL
from .rtnetlink import Address, Route

IFAPROT_KERNEL_RA = 2  # IFA_PROTO of addresses from router advertisements
_BY_ITSELF = (rtnetlink.RTPROT_KERNEL, rtnetlink.RTPROT_RA, PROTOCOL)


def foreign_dependents(address: Address, left: Iterable[Address], routes: Iterable[Route]) -> Route | None:
    """Return a route of another program that the kernel would remove with `address`, or None.

    With the last IPv4 address of a link all of the link's IPv4 routes go (fib_disable_ip), and with any address the
    routes that prefer it as source. Routes that the kernel derived are no loss.
    """
    if address.ip.version == 6:
        return None  # the kernel removes only the connected route
    there = [each for each in left if each.link == address.link and each.ip.version == 4]
    if any(each.ip == address.ip for each in there):
        return None  # the address stays, with another prefix length
    last = not there
    for route in routes:
        if is_derived(route) or route.destination.version == 6:
            continue
        on_link = any(hop.link == address.link for hop in route.hops)
        if on_link and (last or route.source == address.ip):
            return route
    return None


def is_derived(route: Route) -> bool:
    """Return True for a route that the kernel or a router made, or that is ours."""
    return route.protocol in _BY_ITSELF or (route.table == TABLE_LOCAL and route.protocol == rtnetlink.RTPROT_KERNEL)


def foreign_state(link: int, addresses: Iterable[Address], routes: Iterable[Route]) -> str | None:
    """Return an address or route of another program that setting the link down would remove, or None.

    IPv4 addresses stay on a link that is down.
    """
    for address in addresses:
        theirs = address.protocol not in (PROTOCOL, IFAPROT_KERNEL_RA) and not is_link_local(single(address.ip))
        if address.link == link and address.ip.version == 6 and theirs:
            return f"{address.ip}/{address.prefix}"
    for route in routes:
        if not is_derived(route) and any(hop.link == link for hop in route.hops):
            return f"the route to {route.destination}"
    return None
