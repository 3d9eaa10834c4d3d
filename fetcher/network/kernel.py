"""The kernel of this network namespace as pyroute2 reads it: links, addresses, routes, rules, neighbours and events.

Reads only; netagent makes the changes. A `KernelError` says that the kernel could not be read.
"""

from __future__ import annotations

import logging
import select
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.fetcher.network.objects import Actual, Address, KernelAddress, Link, Route, Rule
from cloud_network.netagent.operations import PROTOCOL, TABLE_LOCAL, TABLE_MAIN
from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

FAMILIES = (socket.AF_INET, socket.AF_INET6)
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h
_IFF_UP = 1  # linux/if.h
_IFA_F_NOPREFIXROUTE = 0x200  # linux/if_addr.h
_RTM_F_CLONED = 0x200  # linux/rtnetlink.h: a cached exception, such as a path MTU
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_RTPROT_KERNEL, _RTPROT_RA, _RTPROT_DHCP = 2, 9, 16
_LEARNED = {_RTPROT_RA, _RTPROT_DHCP}
_ON_LINK = {4: _LEARNED, 6: {*_LEARNED, _RTPROT_KERNEL}}  # the kernel itself receives router advertisements
_NAMED_TABLES = {0, 253, TABLE_MAIN, TABLE_LOCAL}  # RT_TABLE_UNSPEC, RT_TABLE_DEFAULT, ...
_NUD_RESOLVED = 0x02 | 0x04 | 0x08 | 0x40 | 0x80  # linux/neighbour.h: REACHABLE, STALE, DELAY, NOARP, PERMANENT
_DUMP_TRIES = 5
_EVENT_GROUPS = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV4_RULE
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV6_ROUTE
    | rtnl.RTMGRP_IPV6_RULE
)
_EVENT_BUFFER = 1 << 20  # bytes

logging.getLogger("pyroute2").setLevel(logging.CRITICAL)  # it also raises what it logs


class KernelError(Exception):
    """The kernel could not be read."""


@dataclass(frozen=True, slots=True)
class LinkRead:
    """A link of any kind with its hardware type (ARPHRD_ETHER ...)."""

    link: Link
    hardware: int


class Reader:
    """Reads the kernel again and again over one socket."""

    def __init__(self) -> None:
        self._kernel: IPRoute | None = None

    def read(self) -> Actual:
        """Return the links, addresses, routes and rules. Raises KernelError.

        A dump that a change interrupted is taken again: it may lack what was there throughout.
        """
        for _ in range(_DUMP_TRIES):
            self._kernel = self._kernel or IPRoute(strict_check=True)
            try:
                return _read(self._kernel)
            except NetlinkDumpInterrupted:
                continue
            except (NetlinkError, OSError) as error:
                self._kernel.close()  # an answer may still be on its way
                self._kernel = None
                raise KernelError(f"rtnetlink: {error}") from error
        raise KernelError(f"rtnetlink: changes interrupted the dump {_DUMP_TRIES} times")


def read() -> Actual:
    """Return what the kernel of this network namespace holds now. Raises KernelError."""
    with _open() as kernel:
        return _read(kernel)


def links_and_way(address: IPAddress) -> tuple[list[LinkRead], LinkRead | None]:
    """Return every link by ascending ifindex, and the link by which the host's routing sends to `address`."""
    with _open() as kernel:
        links = {message["index"]: link_of(message) for message in kernel.get_links()}
        try:
            answers = list(kernel.route("get", dst=str(address)))
        except NetlinkError:  # unreachable or prohibited
            answers = []
    usual = links.get(answers[0].get_attr("RTA_OIF")) if answers else None
    return [links[index] for index in sorted(links)], usual


def resolved(neighbours: Iterable[tuple[int, IPAddress]]) -> set[tuple[int, IPAddress]]:
    """Return those of (ifindex, address) whose link-layer address the kernel knows."""
    wanted = set(neighbours)
    with _open() as kernel:
        found = [message for family in FAMILIES for message in kernel.get_neighbours(family=family)]
    known = {
        (message["ifindex"], ip_address(message.get_attr("NDA_DST")))
        for message in found
        if message["state"] & _NUD_RESOLVED and message.get_attr("NDA_DST")
    }
    return wanted & known


class KernelEvents:
    """A socket that is readable when a link, an address, a route or a rule has changed."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._kernel = IPRoute(rcvbuf=_EVENT_BUFFER)
        self._kernel.bind(groups=_EVENT_GROUPS)
        self._descriptor = int(self._kernel.fileno())

    def fileno(self) -> int:
        """Return the file descriptor for a selector. It is another one after events were lost."""
        return self._descriptor

    def drain(self) -> bool:
        """Read everything that has arrived. Return True if anything has; lost events count, as something changed."""
        seen = False
        while select.select([self._descriptor], [], [], 0)[0]:
            seen = True
            try:
                list(self._kernel.get())
            except OSError:  # ENOBUFS: the buffer overflowed, and pyroute2 does not use the socket again
                lost = self._kernel
                self._open()  # before the old one is closed, so that the descriptor is another one
                with suppress(OSError):
                    lost.close()
        return seen


@contextmanager
def _open() -> Iterator[IPRoute]:
    """Open a socket for a few questions; what fails there is a KernelError."""
    try:
        with IPRoute(strict_check=True) as kernel:
            yield kernel
    except (NetlinkError, NetlinkDumpInterrupted, OSError) as error:
        raise KernelError(f"rtnetlink: {error}") from error


def _read(kernel: IPRoute) -> Actual:
    links = [link_of(message) for message in kernel.get_links()]
    addresses = [address_of(message) for message in kernel.get_addr()]
    routes = Routes()
    rules = set()
    for family in FAMILIES:
        for message in kernel.get_routes(family=family):
            routes.add(message)
        rules |= {rule_of(message) for message in kernel.get_rules(family=family) if is_ours(message)}
    return Actual(
        links=tuple(each.link for each in links if each.hardware != ARPHRD_LOOPBACK),
        addresses={(each.address.ifindex, each.address.address): each for each in addresses},
        routes=frozenset(routes.ours),
        rules=frozenset(rules),
        gateways={ifindex: tuple(found) for ifindex, found in routes.gateways.items()},
        learned={ifindex: frozenset(found) for ifindex, found in routes.learned.items()},
        local=routes.local,
        foreign=routes.foreign,
    )


def link_of(message: Any) -> LinkRead:
    """Return an RTM_NEWLINK message (struct ifinfomsg) as a link."""
    info = message.get_attr("IFLA_LINKINFO")
    link = Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=(message.get_attr("IFLA_ADDRESS") or "").lower(),
        up=bool(message["flags"] & _IFF_UP),
        mtu=message.get_attr("IFLA_MTU") or 0,
        kind=info.get_attr("IFLA_INFO_KIND") if info else None,
        master=message.get_attr("IFLA_MASTER"),
    )
    return LinkRead(link, message["ifi_type"])


def address_of(message: Any) -> KernelAddress:
    """Return an RTM_NEWADDR message (struct ifaddrmsg). IFA_ADDRESS is the other end's where there is an IFA_LOCAL."""
    flags = message.get_attr("IFA_FLAGS")
    flags = message["flags"] if flags is None else flags
    address = ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
    connected = not flags & _IFA_F_NOPREFIXROUTE
    value = Address(message["index"], address, message["prefixlen"], connected)
    return KernelAddress(value, owned=message.get_attr("IFA_PROTO") == PROTOCOL)


def is_ours(rule: Any) -> bool:
    """Return True for an RTM_NEWRULE message with our protocol number."""
    return bool(rule.get_attr("FRA_PROTOCOL") == PROTOCOL)


def rule_of(message: Any) -> Rule:
    """Return an RTM_NEWRULE message (struct fib_rule_hdr) as a rule."""
    source, to = message["src_len"], message["dst_len"]
    selector = None
    if source or to:
        text = message.get_attr("FRA_SRC" if source else "FRA_DST")
        selector = network(message["family"], text, source or to)
    return Rule(
        priority=message.get_attr("FRA_PRIORITY") or 0,
        version=4 if message["family"] == socket.AF_INET else 6,
        selector=selector,
        table=message.get_attr("FRA_TABLE") or message["table"],
        suppress=message.get_attr("FRA_SUPPRESS_PREFIXLEN") == 0,
        to=bool(to and not source),
        local=message.get_attr("FRA_IIFNAME") == "lo",
    )


def network(family: int, text: str | None, length: int) -> IPNetwork:
    """Return a destination or selector, all zeros if it is absent. A foreign rule may have bits beyond its length."""
    if family == socket.AF_INET:
        return IPv4Network((IPv4Address(text or 0), length), strict=False)
    return IPv6Network((IPv6Address(text or 0), length), strict=False)


@dataclass(slots=True)
class Routes:
    """Sorts RTM_NEWROUTE messages (struct rtmsg) into what `Actual` has of routes."""

    ours: set[Route] = field(default_factory=set)
    gateways: defaultdict[int, list[IPAddress]] = field(default_factory=lambda: defaultdict(list))
    learned: defaultdict[int, set[IPNetwork]] = field(default_factory=lambda: defaultdict(set))
    local: dict[IPNetwork, int] = field(default_factory=dict)
    foreign: dict[tuple[int, IPNetwork], int] = field(default_factory=dict)

    def add(self, message: Any) -> None:
        """Add one route. A multipath route has no link of its own: its ifindex is 0."""
        if message["flags"] & _RTM_F_CLONED:
            return
        destination = network(message["family"], message.get_attr("RTA_DST"), message["dst_len"])
        gateway = message.get_attr("RTA_GATEWAY")
        route = Route(
            table=message.get_attr("RTA_TABLE") or message["table"],
            ifindex=message.get_attr("RTA_OIF") or 0,
            destination=destination,
            gateway=None if gateway is None else ip_address(gateway),
        )
        plain = message["type"] in (_RTN_UNICAST, _RTN_LOCAL) and route.ifindex != 0
        if message["proto"] == PROTOCOL:
            if plain:
                self.ours.add(route)
        elif route.table == TABLE_MAIN:
            self._add_main(route, message["proto"], plain)
        elif route.table == TABLE_LOCAL:
            derived = message["proto"] == _RTPROT_KERNEL and destination.prefixlen == destination.max_prefixlen
            if message["type"] == _RTN_LOCAL and not derived:
                self.local[destination] = route.ifindex
        elif route.table not in _NAMED_TABLES:
            self.foreign[route.table, destination] = message["proto"]

    def _add_main(self, route: Route, protocol: int, plain: bool) -> None:
        is_default = route.destination.prefixlen == 0
        if route.gateway is not None:
            if is_default and protocol in _LEARNED and route.ifindex:
                self.gateways[route.ifindex].append(route.gateway)
        elif not is_default and plain and protocol in _ON_LINK[route.destination.version]:
            self.learned[route.ifindex].add(route.destination)
