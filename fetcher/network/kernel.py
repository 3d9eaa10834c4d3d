"""Reads the kernel's links, addresses, routes, rules and neighbours with pyroute2. Changes nothing.

The kernel filters route dumps (NETLINK_GET_STRICT_CHK), so thousands of other programs' routes cost nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, TypeVar

from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.fetcher.network.objects import (
    Actual,
    Address,
    GatewayUse,
    IPv6Settings,
    KernelAddress,
    Link,
    Route,
    Rule,
)
from cloud_network.netagent.claims import MarkSelector
from cloud_network.netagent.protocol import PROTOCOL, TABLE_LOCAL, TABLE_MAIN
from pyroute2 import AsyncIPRoute, NetlinkError
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted
from pyroute2.netlink.rtnl import (
    RTM_GETROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV4_RULE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_IPV6_RULE,
    RTMGRP_LINK,
)
from pyroute2.netlink.rtnl.rtmsg import rtmsg

RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC, RTPROT_RA, RTPROT_DHCP = 2, 3, 4, 9, 16
"""Protocol numbers of routes: linux/rtnetlink.h."""
_EVENTS = (
    RTMGRP_LINK
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV6_RULE
)
_EVENT_BUFFER_BYTES = 1 << 20
_FAMILIES: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFF_UP = 1
_IFA_F_SECONDARY = 0x01
_IFA_F_NOPREFIXROUTE = 0x200
_RTN_LOCAL = 2
_FIB_RULE_INVERT = 2  # linux/fib_rules.h
_ROUTE_TYPES = (1, _RTN_LOCAL, 6, 7, 8)  # unicast, local, blackhole, unreachable, prohibit: linux/rtnetlink.h
_NTF_ROUTER = 0x80
_NUD_RESOLVED = 0x02 | 0x04 | 0x08 | 0x40 | 0x80  # REACHABLE, STALE, DELAY, NOARP, PERMANENT: linux/neighbour.h
_RTEXT_FILTER_SKIP_STATS = 8
_DUMP_ATTEMPTS = 5

logging.getLogger("pyroute2").setLevel(logging.CRITICAL)  # pyroute2 also raises the errors that it logs

Message = Any
"""A message of pyroute2: fields by name, attributes with get_attr()."""
Result = TypeVar("Result")


class KernelError(Exception):
    """The kernel could not be read."""


def read() -> Actual:
    """Return what the kernel of this network namespace holds now. Raises KernelError."""
    return _run(_read)


def links_and_egress(address: IPAddress) -> tuple[list[Link], Link | None]:
    """Return every link by ifindex, and the link of the host's route to `address`. Raises KernelError."""
    return _run(lambda kernel: _links_and_egress(kernel, address))


def is_prohibited(address: IPAddress) -> bool:
    """Return True if a route or rule of type prohibit decides for `address`. Raises KernelError."""
    return _run(lambda kernel: _is_prohibited(kernel, address))


def links_up() -> set[int]:
    """Return the ifindexes of the links that are up (IFF_UP). Raises KernelError."""
    return {link.ifindex for link in _run(_links) if link.up}


def resolved(gateways: Iterable[GatewayUse]) -> set[GatewayUse]:
    """Return the gateways that have a resolved neighbour entry: RTM_GETNEIGH. Raises KernelError."""
    asked = tuple(gateways)
    return _run(lambda kernel: _resolved(kernel, asked))


async def events() -> AsyncIterator[None]:
    """Yield once for every message about a changed link, address, route or rule. Raises OSError if some were lost.

    Yields once when subscribed, too: earlier changes were not seen.
    """
    async with AsyncIPRoute() as kernel:
        await kernel.bind(_EVENTS)
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_BUFFER_BYTES)
        yield
        while True:
            async for _ in kernel.get():
                yield


def _run(question: Callable[[AsyncIPRoute], Awaitable[Result]]) -> Result:
    """Run a query on a new socket. A dump interrupted by changes (NLM_F_DUMP_INTR) is repeated."""

    async def ask() -> Result:
        async with AsyncIPRoute(strict_check=True) as kernel:
            return await question(kernel)

    for _ in range(_DUMP_ATTEMPTS):
        try:
            return asyncio.run(ask())
        except NetlinkDumpInterrupted:
            continue
        except (OSError, NetlinkError) as error:
            raise KernelError(f"rtnetlink: {error}") from error
    raise KernelError(f"rtnetlink: interrupted {_DUMP_ATTEMPTS} times by changes")


async def _read(kernel: AsyncIPRoute) -> Actual:
    links = await _links(kernel)
    addresses = [address_from(each) async for each in await kernel.addr("dump")]
    routes: list[Route] = []
    rules: list[Rule] = []
    marks_of_others = set[MarkSelector]()
    gateways: dict[int, tuple[IPAddress, ...]] = {}
    local: dict[IPNetwork, int] = {}
    leased = defaultdict[int, dict[IPNetwork, IPAddress]](dict)
    for family in _FAMILIES.values():
        routes += [route for route, _ in await _routes(kernel, family, proto=PROTOCOL) if route.ifindex]
        async for each in await kernel.rule("dump", family=family):
            if each.get_attr("FRA_PROTOCOL") == PROTOCOL:
                rules.append(rule_from(each))
            elif each.get_attr("FRA_FWMASK"):
                is_inverted = bool(each["flags"] & _FIB_RULE_INVERT)
                mark, mask = each.get_attr("FRA_FWMARK") or 0, each.get_attr("FRA_FWMASK")
                marks_of_others.add(MarkSelector(mark, mask, is_inverted))
        for protocol in (RTPROT_RA, RTPROT_DHCP):
            for route, _ in await _routes(kernel, family, table=TABLE_MAIN, proto=protocol):
                if route.gateway is None or not route.ifindex:
                    continue
                if route.destination.prefixlen:
                    leased[route.ifindex].setdefault(route.destination, route.gateway)
                else:
                    gateways[route.ifindex] = (*gateways.get(route.ifindex, ()), route.gateway)
        for route, protocol in await _routes(kernel, family, table=TABLE_LOCAL, type=_RTN_LOCAL):
            derived = route.destination.prefixlen == route.destination.max_prefixlen
            if protocol != PROTOCOL and not (protocol == RTPROT_KERNEL and derived):
                local[route.destination] = route.ifindex
    static = await _static(kernel) if leased else frozenset()
    places, further = by_place(addresses)
    routers = await _routers(kernel)
    return Actual(
        links=tuple(links),
        addresses=places,
        routes=frozenset(routes),
        rules=frozenset(rules),
        marks_of_others=frozenset(marks_of_others),
        gateways=gateways,
        local=local,
        routers=routers,
        leased=leased,
        static=static,
        further=further,
    )


def by_place(
    addresses: Iterable[KernelAddress],
) -> tuple[dict[tuple[int, IPAddress], KernelAddress], tuple[KernelAddress, ...]]:
    """Return each address by its place, and the duplicates with another prefix length on the same link."""
    found, further = dict[tuple[int, IPAddress], KernelAddress](), list[KernelAddress]()
    for each in sorted(addresses, key=lambda each: each.owned):
        if found.setdefault(each.place, each) is not each:
            further.append(each)
    return found, tuple(further)


async def _routes(kernel: AsyncIPRoute, family: int, **fields: int) -> list[tuple[Route, int]]:
    """Return the routes with these fields of struct rtmsg, each with its protocol. The kernel filters."""
    question = rtmsg()
    question["family"] = family
    for name, value in fields.items():
        question[name] = value
    answer = await kernel.nlm_request(question, RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP)
    found = [each async for each in answer]
    return [(route_from(each), each["proto"]) for each in found if each["type"] in _ROUTE_TYPES]


async def _static(kernel: AsyncIPRoute) -> frozenset[IPNetwork]:
    """Return the destinations of static routes in main, including routes that discard packets."""
    found = set[IPNetwork]()
    for family in _FAMILIES.values():
        for protocol in (RTPROT_BOOT, RTPROT_STATIC):
            routes = await _routes(kernel, family, table=TABLE_MAIN, proto=protocol)
            found |= {route.destination for route, _ in routes if route.destination.prefixlen}
    return frozenset(found)


async def _routers(kernel: AsyncIPRoute) -> dict[int, tuple[IPAddress, ...]]:
    found = defaultdict[int, list[IPAddress]](list)
    async for each in await kernel.neigh("dump", family=socket.AF_INET6):
        if each["flags"] & _NTF_ROUTER and each["state"] & _NUD_RESOLVED:
            found[each["ifindex"]].append(ip_address(each.get_attr("NDA_DST")))
    return {ifindex: tuple(sorted(addresses)) for ifindex, addresses in found.items()}


async def _links(kernel: AsyncIPRoute) -> list[Link]:
    return [link_from(each) async for each in await kernel.link("dump", ext_mask=_RTEXT_FILTER_SKIP_STATS)]


async def _links_and_egress(kernel: AsyncIPRoute, address: IPAddress) -> tuple[list[Link], Link | None]:
    links = await _links(kernel)
    try:
        [answer, *_] = await kernel.route("get", dst=str(address), family=_FAMILIES[address.version])
    except NetlinkError:  # unreachable or prohibited
        return sorted(links, key=lambda link: link.ifindex), None
    index = answer.get_attr("RTA_OIF")
    return sorted(links, key=lambda link: link.ifindex), next((each for each in links if each.ifindex == index), None)


async def _is_prohibited(kernel: AsyncIPRoute, address: IPAddress) -> bool:
    try:
        await kernel.route("get", dst=str(address), family=_FAMILIES[address.version])
    except NetlinkError as error:
        return bool(error.code == errno.EACCES)  # fib_props[RTN_PROHIBIT] of net/ipv4/fib_semantics.c; IPv6 likewise
    return False


async def _resolved(kernel: AsyncIPRoute, gateways: tuple[GatewayUse, ...]) -> set[GatewayUse]:
    found = set()
    for gateway in gateways:
        try:
            answers = await kernel.neigh("get", ifindex=gateway.ifindex, dst=str(gateway.address))
        except NetlinkError:  # no such entry, or no such link
            continue
        if any(each["state"] & _NUD_RESOLVED for each in answers):
            found.add(gateway)
    return found


# Messages


def link_from(message: Message) -> Link:
    """Read RTM_NEWLINK: struct ifinfomsg, linux/if_link.h."""
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        up=bool(message["flags"] & _IFF_UP),
        mtu=message.get_attr("IFLA_MTU") or 0,
        kind=info.get_attr("IFLA_INFO_KIND") if info is not None else None,
        master=message.get_attr("IFLA_MASTER"),
        hardware=message["ifi_type"],
        ipv6=_ipv6_settings(message),
    )


def _ipv6_settings(message: Message) -> IPv6Settings:
    families = message.get_attr("IFLA_AF_SPEC")
    family = families.get_attr("AF_INET6") if families is not None else None
    values = family.get_attr("IFLA_INET6_CONF") if family is not None else None
    if values is None:
        return IPv6Settings(disabled=True, absent=True)
    return IPv6Settings(
        disabled=bool(values["disable_ipv6"]), forwarding=bool(values["forwarding"]), accept_ra=values["accept_ra"]
    )


def address_from(message: Message) -> KernelAddress:
    """Read RTM_NEWADDR: struct ifaddrmsg. IFA_LOCAL is the address if IFA_ADDRESS is a tunnel's peer."""
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    ip, length = ip_address(text), message["prefixlen"]
    connected = length < ip.max_prefixlen and not flags & _IFA_F_NOPREFIXROUTE
    address = Address(message["index"], ip, length, connected)
    owned = message.get_attr("IFA_PROTO") == PROTOCOL
    return KernelAddress(address, owned, secondary=ip.version == 4 and bool(flags & _IFA_F_SECONDARY))


def route_from(message: Message) -> Route:
    """Read RTM_NEWROUTE: struct rtmsg. The ifindex is 0 for a route without a link, or with several."""
    gateway = message.get_attr("RTA_GATEWAY")
    return Route(
        table=message.get_attr("RTA_TABLE") or message["table"],
        ifindex=message.get_attr("RTA_OIF") or 0,
        destination=_network(message["family"], message.get_attr("RTA_DST"), message["dst_len"]),
        gateway=ip_address(gateway) if gateway is not None else None,
    )


def rule_from(message: Message) -> Rule:
    """Read RTM_NEWRULE: struct fib_rule_hdr."""
    source, to = message["src_len"], message["dst_len"]
    selector = None
    if source or to:
        text = message.get_attr("FRA_SRC" if source else "FRA_DST")
        selector = _network(message["family"], text, source or to)
    return Rule(
        priority=message.get_attr("FRA_PRIORITY") or 0,
        version=4 if message["family"] == socket.AF_INET else 6,
        selector=selector,
        table=message.get_attr("FRA_TABLE") or message["table"],
        suppress=message.get_attr("FRA_SUPPRESS_PREFIXLEN") == 0,
        to=bool(to and not source),
        iif_lo=message.get_attr("FRA_IIFNAME") == "lo",
        mark=message.get_attr("FRA_FWMARK") or 0,
        mask=message.get_attr("FRA_FWMASK") or 0,
    )


def _network(family: int, text: str | None, length: int) -> IPNetwork:
    """Return a network; the whole address space if `text` is None. Rules of other programs may have host bits."""
    if family == socket.AF_INET:
        return IPv4Network((text or "0.0.0.0", length), strict=False)  # noqa: S104
    return IPv6Network((text or "::", length), strict=False)
