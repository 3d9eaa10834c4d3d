"""rtnetlink → Actual: one dump each of links, addresses, routes and rules. Reads, never writes.

Source: linux/rtnetlink.h, linux/if_addr.h, linux/fib_rules.h, by way of pyroute2.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

from cloud_network.fetcher.model import IPAddress, IPNetwork
from cloud_network.fetcher.objects import Actual, Address, KernelAddress, Link, Route, Rule
from cloud_network.netagent.protocol import PROTOCOL
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

_IFF_UP, _IFF_LOOPBACK = 1, 8
_IFA_F_NOPREFIXROUTE = 0x200
_LEARNED = {9, 16}  # RTPROT_RA, RTPROT_DHCP
_KERNEL = 2  # RTPROT_KERNEL: of IPv6 a prefix that the kernel itself heard from a router (addrconf_prefix_rcv)
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_ANYWHERE = {2: "0.0.0.0", 10: "::"}  # noqa: S104  # destinations: nothing is bound
_DUMP_TRIES = 5
_NUD_RESOLVED = 0x02 | 0x04 | 0x08 | 0x40 | 0x80  # REACHABLE, STALE, DELAY, NOARP, PERMANENT
_OTHERS = {0, 253, 254, 255}  # RT_TABLE_UNSPEC, _DEFAULT, _MAIN, _LOCAL


class KernelError(Exception):
    """The kernel could not be read."""


def read() -> Actual:
    """What the kernel of this network namespace holds now."""
    try:
        with IPRoute(strict_check=True) as ipr:
            links = _dump(ipr.get_links)
            addresses = _dump(ipr.get_addr)
            routes = _dump(ipr.get_routes, 2) + _dump(ipr.get_routes, 10)
            rules = _dump(ipr.get_rules, 2) + _dump(ipr.get_rules, 10)
    except (NetlinkError, OSError) as error:
        raise KernelError(f"rtnetlink: {error}") from error
    return Actual(
        links=tuple(_link(message) for message in links if not message["flags"] & _IFF_LOOPBACK),
        addresses=dict(map(_address, addresses)),
        routes=frozenset(_route(message) for message in routes if message["proto"] == PROTOCOL and _plain(message)),
        rules=frozenset(_rule(message) for message in rules if message.get("FRA_PROTOCOL") == PROTOCOL),
        gateways=_gateways(routes),
        learned=_learned(routes),
        local={
            route.destination: route.ifindex
            for message in routes
            if message["proto"] != PROTOCOL and message["type"] == _RTN_LOCAL and message["table"] == 255
            for route in [_route(message)]
        },
        foreign=_foreign(routes),
    )


def resolved(neighbours: Iterable[tuple[int, IPAddress]]) -> set[tuple[int, IPAddress]]:
    """Those of (ifindex, address) that the kernel knows how to reach: RTM_GETNEIGH, linux/neighbour.h."""
    found = set()
    try:
        with IPRoute(strict_check=True) as ipr:
            for ifindex, address in neighbours:
                with suppress(NetlinkError):  # ENOENT: there is no entry
                    (message,) = ipr.neigh("get", dst=str(address), ifindex=ifindex)
                    if message["state"] & _NUD_RESOLVED:
                        found.add((ifindex, address))
    except OSError as error:
        raise KernelError(f"rtnetlink: {error}") from error
    return found


def _dump(dump: Callable[..., Iterable[Any]], family: int | None = None) -> list[Any]:
    """A whole dump: one that the kernel says was interrupted by a change is taken again."""
    for attempt in range(_DUMP_TRIES):
        try:
            return list(dump() if family is None else dump(family=family))
        except NetlinkDumpInterrupted:
            if attempt == _DUMP_TRIES - 1:
                raise
        except NetlinkError as error:
            if error.code != errno.EINTR or attempt == _DUMP_TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _link(message: Any) -> Link:
    info = message.get("IFLA_LINKINFO")
    return Link(
        ifindex=message["index"],
        name=message.get("IFLA_IFNAME"),
        mac=(message.get("IFLA_ADDRESS") or "").lower(),
        up=bool(message["flags"] & _IFF_UP),
        mtu=message.get("IFLA_MTU"),
        kind=info.get("IFLA_INFO_KIND") if info else None,
        master=message.get("IFLA_MASTER"),
    )


def _address(message: Any) -> tuple[tuple[int, IPAddress], KernelAddress]:
    text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
    address = ip_address(text.partition("%")[0])
    flags = message.get("IFA_FLAGS") or message["flags"]
    value = Address(message["index"], address, message["prefixlen"], connected=not flags & _IFA_F_NOPREFIXROUTE)
    return (message["index"], address), KernelAddress(value, owned=message.get("IFA_PROTO") == PROTOCOL)


def _plain(message: Any) -> bool:
    return message["type"] in (_RTN_UNICAST, _RTN_LOCAL) and message.get("RTA_OIF") is not None


def _route(message: Any) -> Route:
    gateway = message.get("RTA_GATEWAY")
    return Route(
        table=message.get("RTA_TABLE") or message["table"],
        ifindex=message.get("RTA_OIF"),
        destination=ip_network(f"{message.get('RTA_DST') or _ANYWHERE[message['family']]}/{message['dst_len']}"),
        gateway=ip_address(gateway) if gateway else None,
    )


def _rule(message: Any) -> Rule:
    source, destination = message.get("FRA_SRC"), message.get("FRA_DST")
    selector = None
    if source or destination:
        selector = ip_network(f"{source or destination}/{message['src_len'] if source else message['dst_len']}")
    return Rule(
        priority=message.get("FRA_PRIORITY") or 0,
        version=4 if message["family"] == 2 else 6,
        selector=selector,
        table=message.get("FRA_TABLE") or message["table"],
        suppress=message.get("FRA_SUPPRESS_PREFIXLEN") == 0,
        to=bool(destination and not source),
        local=message.get("FRA_IIFNAME") == "lo",
    )


def _gateways(routes: Iterable[Any]) -> dict[int, tuple[IPAddress, ...]]:
    """The gateways of main's default routes that DHCP or a router set, by the link they leave by."""
    found: dict[int, tuple[IPAddress, ...]] = {}
    for message in routes:
        gateway, ifindex = message.get("RTA_GATEWAY"), message.get("RTA_OIF")
        if message["dst_len"] == 0 and message["table"] == 254 and message["proto"] in _LEARNED and gateway and ifindex:
            found[ifindex] = (*found.get(ifindex, ()), ip_address(gateway))
    return found


def _foreign(routes: Iterable[Any]) -> dict[tuple[int, IPNetwork], int]:
    """{(table, destination): protocol} of what others have in tables that have no name."""
    return {
        (route.table, route.destination): message["proto"]
        for message in routes
        if message["proto"] != PROTOCOL and (message.get("RTA_TABLE") or message["table"]) not in _OTHERS
        for route in [_route(message)]
    }


def _learned(routes: Iterable[Any]) -> dict[int, frozenset[IPNetwork]]:
    """The networks that DHCP or a router says are on link, by the link: an address of theirs is the link's to have."""
    found: dict[int, frozenset[IPNetwork]] = {}
    for message in routes:
        on_link = message["table"] == 254 and message["dst_len"] and not message.get("RTA_GATEWAY") and _plain(message)
        if on_link and (message["proto"] in _LEARNED or (message["proto"] == _KERNEL and message["family"] == 10)):
            route = _route(message)
            found[route.ifindex] = found.get(route.ifindex, frozenset()) | {route.destination}
    return found
