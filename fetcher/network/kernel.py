"""rtnetlink → Actual: one dump each of links, addresses, routes and rules. Reads, never writes.

Most of a kernel is as it was at the last look, and what was made of a message then is what it makes now. `Actual` and
each part of it are the very same objects for as long as the kernel says the same (`kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain, zip_longest
from struct import Struct
from typing import Generic, NamedTuple, TypeVar

from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.fetcher.network import rtnetlink
from cloud_network.fetcher.network.objects import Actual, Address, KernelAddress, Link, Route, Rule
from cloud_network.fetcher.network.rtnetlink import Rtnetlink, attributes, number, text
from cloud_network.netagent.protocol import PROTOCOL

_FAMILIES = (2, 10)  # AF_INET, AF_INET6
_IFF_UP = 1
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 4, 10, 18, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_PROTO = 1, 2, 8, 11
_IFA_F_NOPREFIXROUTE = 0x200
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY = 1, 2, 3, 6
_FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_PROTOCOL = 14, 15, 21
_NDA_DST = 1
_IFLA_EXT_MASK, _SKIP_STATS = 29, 8  # RTEXT_FILTER_SKIP_STATS: counters would make each answer another one
_LEARNED = {9, 16}  # RTPROT_RA, RTPROT_DHCP
_RTPROT_KERNEL = 2
_ON_LINK = {4: _LEARNED, 6: {*_LEARNED, _RTPROT_KERNEL}}  # the kernel itself heard of it (addrconf_prefix_rcv)
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_MAIN, _LOCAL = 254, 255
_NAMED = {0, 253, _MAIN, _LOCAL}  # RT_TABLE_UNSPEC, _DEFAULT, _MAIN, _LOCAL
_NUD_RESOLVED = 0x02 | 0x04 | 0x08 | 0x40 | 0x80  # REACHABLE, STALE, DELAY, NOARP, PERMANENT

_EVERY_LINK = rtnetlink.IFINFOMSG.pack(0, 0, 0, 0, 0) + rtnetlink.attribute(
    _IFLA_EXT_MASK, Struct("=I").pack(_SKIP_STATS)
)

T = TypeVar("T")
Made = TypeVar("Made")


class KernelError(Exception):
    """The kernel could not be read."""


class LinkRead(NamedTuple):
    """A link of any kind, and what hardware it is or is like."""

    link: Link
    hardware: int  # ARPHRD_ETHER …


class RouteRead(NamedTuple):
    """A route of anybody's. Its link is 0 where it has none, or several."""

    route: Route
    protocol: int
    kind: int  # RTN_UNICAST, RTN_LOCAL …

    @property
    def is_plain(self) -> bool:
        """Whether a Route says all of it."""
        return self.kind in (_RTN_UNICAST, _RTN_LOCAL) and self.route.ifindex != 0


class _Kept(Generic[T, Made]):
    """What messages parse to, and what is made of it all; both are kept for as long as the kernel says the same.

    The seconds that are left of a lease say nothing new: what differs in them alone parses to what is equal.
    """

    def __init__(self, parse: Callable[[bytes], T], make: Callable[[Iterable[T]], Made]) -> None:
        self._parse, self._make = parse, make
        self._dumps: list[tuple[list[bytes], dict[bytes, T]]] = []

    def of(self, *dumps: list[bytes]) -> Made:
        """Of whole dumps, always in the same order."""
        known = self._dumps or [([], {}) for _ in dumps]
        self._dumps = [self._parsed(*each) for each in zip(dumps, known, strict=True)]
        before, now = ([[*parsed.values()] for _, parsed in each] for each in (known, self._dumps))
        if not hasattr(self, "_made") or before != now:
            self._made = self._make(chain.from_iterable(now))
        return self._made

    def _parsed(
        self, messages: list[bytes], before: tuple[list[bytes], dict[bytes, T]]
    ) -> tuple[list[bytes], dict[bytes, T]]:
        if messages == before[0]:
            return before
        known = before[1]
        return messages, {each: known[each] if each in known else self._parse(each) for each in messages}


class Reader:
    """Reads the kernel of this network namespace again and again: `Actual` is the same one until something changes."""

    def __init__(self) -> None:
        self._kernel: Rtnetlink | None = None
        self._links = _Kept(parse_link, _for_us)
        self._addresses = _Kept(parse_address, _by_place)
        self._routes = _Kept(parse_route, _sorted)
        self._rules = _Kept(parse_rule, _ours)
        self._parts: tuple[object, ...] = ()

    def read(self) -> Actual:
        """What it holds now."""
        self._kernel = self._kernel or Rtnetlink()
        try:
            self._kernel.begin()
            links = self._kernel.dump(rtnetlink.RTM_GETLINK, _EVERY_LINK)
            addresses = self._kernel.dump(rtnetlink.RTM_GETADDR, rtnetlink.IFADDRMSG.pack(0, 0, 0, 0, 0))
            routes = self._by_family(rtnetlink.RTM_GETROUTE)
            rules = self._by_family(rtnetlink.RTM_GETRULE)
        except OSError as error:
            self._kernel.close()  # an answer may be on its way still
            self._kernel = None
            raise KernelError(f"rtnetlink: {error}") from error
        ours = self._rules.of(*rules)
        parts = self._links.of(links), self._addresses.of(addresses), self._routes.of(*routes), ours
        if any(part is not before for part, before in zip_longest(parts, self._parts)):
            mine, gateways, learned, local, foreign = parts[2]
            self._actual = Actual(parts[0], parts[1], mine, ours, gateways, learned, local, foreign)
            self._parts = parts
        return self._actual

    def _by_family(self, request: int) -> list[list[bytes]]:
        assert self._kernel
        header = rtnetlink.RTMSG.pack(0, *bytes(8))[1:]
        return [self._kernel.dump(request, bytes([one]) + header) for one in _FAMILIES]


def read() -> Actual:
    """What the kernel of this network namespace holds now."""
    return Reader().read()


def links_and_way(address: IPAddress) -> tuple[list[LinkRead], LinkRead | None]:
    """Every link by rising ifindex, and the one by which the host's routing would have `address`."""
    family = _FAMILIES[address.version == 6]
    header = rtnetlink.RTMSG.pack(family, address.max_prefixlen, *bytes(7))
    try:
        with Rtnetlink() as kernel:
            links = {each.link.ifindex: each for each in _links(kernel)}
            answer = kernel.ask(rtnetlink.RTM_GETROUTE, header + rtnetlink.attribute(_RTA_DST, address.packed))
    except OSError as error:
        raise KernelError(f"rtnetlink: {error}") from error
    usual = links.get(parse_route(answer).route.ifindex) if answer else None  # none: unreachable, or prohibited
    return [links[index] for index in sorted(links)], usual


def resolved(neighbours: Iterable[tuple[int, IPAddress]]) -> set[tuple[int, IPAddress]]:
    """Those of (ifindex, address) that the kernel knows how to reach: RTM_GETNEIGH, linux/neighbour.h."""
    found = set()
    try:
        with Rtnetlink() as kernel:
            for ifindex, address in neighbours:
                header = rtnetlink.NDMSG.pack(_FAMILIES[address.version == 6], ifindex, 0, 0, 0)
                answer = kernel.ask(rtnetlink.RTM_GETNEIGH, header + rtnetlink.attribute(_NDA_DST, address.packed))
                if answer and rtnetlink.NDMSG.unpack_from(answer)[2] & _NUD_RESOLVED:
                    found.add((ifindex, address))
    except OSError as error:
        raise KernelError(f"rtnetlink: {error}") from error
    return found


def _links(kernel: Rtnetlink) -> list[LinkRead]:
    return list(map(parse_link, kernel.dump(rtnetlink.RTM_GETLINK, _EVERY_LINK)))


# Messages: struct ifinfomsg, ifaddrmsg, rtmsg, fib_rule_hdr, each with its attributes


def parse_link(message: bytes) -> LinkRead:
    """RTM_NEWLINK."""
    _, hardware, index, flags, _ = rtnetlink.IFINFOMSG.unpack_from(message)
    found = attributes(message, rtnetlink.IFINFOMSG.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""), 0)
    link = Link(
        ifindex=index,
        name=text(found[_IFLA_IFNAME]),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & _IFF_UP),
        mtu=number(found.get(_IFLA_MTU)),
        kind=text(info[_IFLA_INFO_KIND]) if _IFLA_INFO_KIND in info else None,
        master=number(found[_IFLA_MASTER]) if _IFLA_MASTER in found else None,
    )
    return LinkRead(link, hardware)


def parse_address(message: bytes) -> KernelAddress:
    """RTM_NEWADDR. IFA_LOCAL is the address itself where IFA_ADDRESS is that of a tunnel's other end."""
    _, prefix, flags, _, index = rtnetlink.IFADDRMSG.unpack_from(message)
    found = attributes(message, rtnetlink.IFADDRMSG.size)
    flags = number(found.get(_IFA_FLAGS), flags)
    address = _address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
    value = Address(index, address, prefix, connected=not flags & _IFA_F_NOPREFIXROUTE)
    return KernelAddress(value, owned=number(found.get(_IFA_PROTO)) == PROTOCOL)


def parse_route(message: bytes) -> RouteRead:
    """RTM_NEWROUTE."""
    family, length, _, _, table, protocol, _, kind, _ = rtnetlink.RTMSG.unpack_from(message)
    found = attributes(message, rtnetlink.RTMSG.size)
    route = Route(
        table=number(found.get(_RTA_TABLE), table),
        ifindex=number(found.get(_RTA_OIF)),
        destination=_network(family, found.get(_RTA_DST), length),
        gateway=_address(found[_RTA_GATEWAY]) if _RTA_GATEWAY in found else None,
    )
    return RouteRead(route, protocol, kind)


def parse_rule(message: bytes) -> Rule | None:
    """RTM_NEWRULE; None of one that is not ours."""
    family, to, source, _, table, _, _, _, _ = rtnetlink.FIB_RULE_HDR.unpack_from(message)
    found = attributes(message, rtnetlink.FIB_RULE_HDR.size)
    if number(found.get(_FRA_PROTOCOL)) != PROTOCOL:
        return None
    selector = None
    if source or to:
        selector = _network(family, found.get(_FRA_SRC if source else _FRA_DST), source or to)
    return Rule(
        priority=number(found.get(_FRA_PRIORITY)),
        version=4 if family == _FAMILIES[0] else 6,
        selector=selector,
        table=number(found.get(_FRA_TABLE), table),
        suppress=found.get(_FRA_SUPPRESS_PREFIXLEN) == bytes(4),
        to=bool(to and not source),
        local=found.get(_FRA_IIFNAME) == b"lo\0",
    )


def _address(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _network(family: int, packed: bytes | None, length: int) -> IPNetwork:
    """Of what an attribute has; all zeros where it is absent. Somebody's rule may have bits beyond its length."""
    if family == _FAMILIES[0]:
        return IPv4Network((packed or bytes(4), length), strict=False)
    return IPv6Network((packed or bytes(16), length), strict=False)


# Parts of Actual


def _by_place(addresses: Iterable[KernelAddress]) -> dict[tuple[int, IPAddress], KernelAddress]:
    return {(each.address.ifindex, each.address.address): each for each in addresses}


def _for_us(links: Iterable[LinkRead]) -> tuple[Link, ...]:
    return tuple(each.link for each in links if each.hardware != ARPHRD_LOOPBACK)


def _ours(rules: Iterable[Rule | None]) -> frozenset[Rule]:
    return frozenset(rule for rule in rules if rule is not None)


Routes = tuple[
    frozenset[Route],
    dict[int, tuple[IPAddress, ...]],
    dict[int, frozenset[IPNetwork]],
    dict[IPNetwork, int],
    dict[tuple[int, IPNetwork], int],
]


def _sorted(routes: Iterable[RouteRead]) -> Routes:
    """Ours, gateways, learned, local and foreign, as Actual describes them."""
    mine = set()
    gateways: dict[int, tuple[IPAddress, ...]] = {}
    learned: dict[int, frozenset[IPNetwork]] = {}
    local: dict[IPNetwork, int] = {}
    foreign: dict[tuple[int, IPNetwork], int] = {}
    for each in routes:
        route, protocol, kind = each
        destination, index = route.destination, route.ifindex
        if protocol == PROTOCOL:
            if each.is_plain:
                mine.add(route)
        elif route.table == _MAIN and route.gateway is not None:
            if protocol in _LEARNED and destination.prefixlen == 0 and index:
                gateways[index] = (*gateways.get(index, ()), route.gateway)
        elif route.table == _MAIN:
            if protocol in _ON_LINK[destination.version] and destination.prefixlen and each.is_plain:
                learned[index] = learned.get(index, frozenset()) | {destination}
        elif route.table == _LOCAL:
            if kind == _RTN_LOCAL and (protocol != _RTPROT_KERNEL or destination.prefixlen < destination.max_prefixlen):
                local[destination] = index
        elif route.table not in _NAMED:
            foreign[route.table, destination] = protocol
    return frozenset(mine), gateways, learned, local, foreign
