"""The oracle of fetcher/kernel.py: pyroute2's reading of the same kernel and of the same messages."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any

from cloud_network.fetcher.metadata.model import IPAddress
from cloud_network.fetcher.network.kernel import LinkRead, RouteRead
from cloud_network.fetcher.network.objects import Actual, Address, KernelAddress, Link, Route, Rule
from pyroute2 import IPRoute

OURS = 209
ANYWHERE = {2: "0.0.0.0", 10: "::"}
LEARNED = {9, 16}
KERNEL = 2
UNICAST, LOCAL = 1, 2


def read() -> Actual:
    with IPRoute(strict_check=True) as ipr:
        links = list(map(link, ipr.get_links()))
        addresses = list(map(address, ipr.get_addr()))
        routes = [route(message) for family in (2, 10) for message in ipr.get_routes(family=family)]
        rules = [rule(message) for family in (2, 10) for message in ipr.get_rules(family=family)]
    main = [each for each in routes if each.route.table == 254]
    others = [each for each in routes if each.protocol != OURS]
    learned: dict[int, set[Any]] = {}
    for each in main:
        trusted = LEARNED | ({KERNEL} if each.route.destination.version == 6 else set())
        if each.route.destination.prefixlen and each.route.gateway is None and plain(each) and each.protocol in trusted:
            learned.setdefault(each.route.ifindex, set()).add(each.route.destination)
    return Actual(
        links=tuple(each.link for each in links if each.link.name != "lo"),
        addresses={(each.address.ifindex, each.address.address): each for each in addresses},
        routes=frozenset(each.route for each in routes if each.protocol == OURS and plain(each)),
        rules=frozenset(each for each in rules if each),
        gateways=gateways(main),
        learned={index: frozenset(networks) for index, networks in learned.items()},
        local={
            each.route.destination: each.route.ifindex
            for each in others
            if each.kind == LOCAL
            and each.route.table == 255
            and (each.protocol != KERNEL or each.route.destination.num_addresses > 1)
        },
        foreign={
            (each.route.table, each.route.destination): each.protocol
            for each in others
            if each.route.table not in (0, 253, 254, 255)
        },
    )


def plain(each: RouteRead) -> bool:
    return each.kind in (UNICAST, LOCAL) and each.route.ifindex != 0


def gateways(main: Iterable[RouteRead]) -> dict[int, tuple[IPAddress, ...]]:
    found: dict[int, tuple[IPAddress, ...]] = {}
    for route, protocol, _ in main:
        if route.destination.prefixlen == 0 and protocol in LEARNED and route.gateway and route.ifindex:
            found[route.ifindex] = (*found.get(route.ifindex, ()), route.gateway)
    return found


def link(message: Any) -> LinkRead:
    info = message.get("IFLA_LINKINFO")
    value = Link(
        ifindex=message["index"],
        name=message.get("IFLA_IFNAME"),
        mac=(message.get("IFLA_ADDRESS") or "").lower(),
        up=bool(message["flags"] & 1),
        mtu=message.get("IFLA_MTU"),
        kind=info.get("IFLA_INFO_KIND") if info else None,
        master=message.get("IFLA_MASTER"),
    )
    return LinkRead(value, message["ifi_type"])


def address(message: Any) -> KernelAddress:
    text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
    flags = message.get("IFA_FLAGS") or message["flags"]
    one = ip_address(text.partition("%")[0])
    value = Address(message["index"], one, message["prefixlen"], connected=not flags & 0x200)
    return KernelAddress(value, owned=message.get("IFA_PROTO") == OURS)


def route(message: Any) -> RouteRead:
    gateway = message.get("RTA_GATEWAY")
    destination = f"{message.get('RTA_DST') or ANYWHERE[message['family']]}/{message['dst_len']}"
    value = Route(
        table=message.get("RTA_TABLE") or message["table"],
        ifindex=message.get("RTA_OIF") or 0,
        destination=ip_network(destination),
        gateway=ip_address(gateway) if gateway else None,
    )
    return RouteRead(value, message["proto"], message["type"])


def rule(message: Any) -> Rule | None:
    if message.get("FRA_PROTOCOL") != OURS:
        return None
    source, destination = message.get("FRA_SRC"), message.get("FRA_DST")
    selector = None
    if source or destination:
        length = message["src_len"] if source else message["dst_len"]
        selector = ip_network(f"{source or destination}/{length}", strict=False)
    return Rule(
        priority=message.get("FRA_PRIORITY") or 0,
        version=4 if message["family"] == 2 else 6,
        selector=selector,
        table=message.get("FRA_TABLE") or message["table"],
        suppress=message.get("FRA_SUPPRESS_PREFIXLEN") == 0,
        to=bool(destination and not source),
    )
