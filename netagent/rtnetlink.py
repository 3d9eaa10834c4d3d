"""rtnetlink messages: encoded from operations, and decoded from dumps.

netagent does not use pyroute2, which would add asyncio and 60,000 lines to the privileged process; tests compare every
message with pyroute2's, byte for byte. Names and layouts are those of linux/rtnetlink.h, linux/if_link.h,
linux/if_addr.h, linux/neighbour.h and linux/fib_rules.h. Numbers are in the host's byte order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from socket import AF_INET, AF_INET6, AF_UNSPEC
from struct import Struct
from typing import Any

from .netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    U32,
    Attributes,
    Packed,
    pack_attribute,
    parse_attributes,
)
from .operations import (
    PROTOCOL,
    TABLE_LOCAL,
    AddressAdd,
    AddressRemove,
    Change,
    IPAddress,
    IPInterface,
    IPNetwork,
    LinkDown,
    LinkMtu,
    LinkUp,
    RouteAdd,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)

IFINFOMSG = Struct("=BxHiII")  # struct ifinfomsg: family, pad, type, index, flags, change
IFADDRMSG = Struct("=BBBBI")  # struct ifaddrmsg: family, prefixlen, flags, scope, index
RTMSG = Struct("=BBBBBBBBI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
FIB_RULE_HDR = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, res1, res2, action, flags
NDMSG = Struct("=BxxxiHBB")  # struct ndmsg: family, pads, ifindex, state, flags, type
NHMSG = Struct("=BBBxI")  # struct nhmsg: family, scope, protocol, resvd, flags
NEXTHOP_GRP = Struct("=IBBH")  # struct nexthop_grp: id, weight, weight_high, resvd2
RTNEXTHOP = Struct("=HBBi")  # struct rtnexthop: len, flags, hops, ifindex
RTA_CACHEINFO_FORMAT = Struct("=IIiIIIII")  # struct rta_cacheinfo: clntref, lastuse, expires, ...

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_GETNEIGH = 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_GETNEXTHOP = 106
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_OPTIMISTIC, IFA_F_DADFAILED = 0x01, 0x02, 0x04, 0x08
IFA_F_TENTATIVE, IFA_F_PERMANENT, IFA_F_NOPREFIXROUTE = 0x40, 0x80, 0x200
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO, IFLA_LINK_NETNSID = 1, 3, 4, 5, 18, 37
IFLA_INFO_KIND = 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_RT_PRIORITY, IFA_PROTO = 1, 2, 8, 9, 11
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_ENCAP_TYPE, RTA_NH_ID = 9, 12, 15, 18, 21, 30
NHA_ID, NHA_GROUP, NHA_OIF, NHA_GATEWAY, NHA_ENCAP_TYPE = 1, 2, 5, 6, 7
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_FWMARK, FRA_FLOW = 1, 2, 3, 4, 6, 10, 11
FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 14, 15, 16, 21
NDA_DST, NDA_FLAGS_EXT = 1, 15
NTF_PROXY, NTF_EXT_LEARNED, NTF_ROUTER, NUD_NOARP, NUD_PERMANENT = 0x08, 0x10, 0x80, 0x40, 0x80
RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST = 1, 2, 3, 4
RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW = 6, 7, 8, 9
RTPROT_KERNEL, RTPROT_DHCP, RTPROT_RA = 2, 16, 9
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
FR_ACT_TO_TBL, FR_ACT_GOTO, FIB_RULE_INVERT = 1, 2, 2
SHARING_KINDS = ("macvlan", "ipvlan")
"""Kinds of links that send and receive on the wire of another link, and so are in its subnets."""
_FRA_UNDERSTOOD = {
    *(FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_FWMARK, FRA_FLOW),  # FRA_FLOW selects nothing
    *(FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL),
}
"""Any other attribute counts as a selector: interface, uid, port, DSCP, and those of later kernels."""
_FRA_SUPPRESS_NONE = b"\xff" * 4
_FAMILY = {4: AF_INET, 6: AF_INET6}
_ANYWHERE: Mapping[int, IPNetwork] = {AF_INET: IPv4Network("0.0.0.0/0"), AF_INET6: IPv6Network("::/0")}


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of the kernel."""

    index: int
    name: str
    mtu: int
    kind: str | None  # IFLA_INFO_KIND, such as "bridge"; the interfaces of clouds have none
    up: bool
    loopback: bool
    mac: str = ""
    parent: int = 0  # ifindex of the link whose packets a macvlan or ipvlan shares; 0: none in this namespace

    @property
    def identity(self) -> str:
        """Kind and MAC: they differ if another link has got the ifindex."""
        return f"{self.kind or 'no kind'} {self.mac}"


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link."""

    link: int
    ip: IPAddress
    prefix: int
    flags: int  # IFA_F_*
    protocol: int | None  # IFA_PROTO; None if it has none, or before Linux 5.18
    peer: IPAddress | None = None  # of a point-to-point address
    metric: int = 0  # of the connected route; IFA_RT_PRIORITY

    @property
    def has_passed_dad(self) -> bool:
        """False for an IPv6 address that another host has, or may have (duplicate address detection, RFC 4862)."""
        waiting = self.flags & IFA_F_TENTATIVE and not self.flags & IFA_F_OPTIMISTIC
        return not waiting and not self.flags & IFA_F_DADFAILED

    @property
    def interface(self) -> IPInterface:
        """The address with its prefix length."""
        if isinstance(self.ip, IPv4Address):
            return IPv4Interface((self.ip, self.prefix))
        return IPv6Interface((self.ip, self.prefix))

    @property
    def network(self) -> IPNetwork:
        """The network of the address as the kernel derives it: with IPv4 from the peer, if there is one."""
        if isinstance(self.peer, IPv4Address):
            return IPv4Network((self.peer, self.prefix), strict=False)
        return self.interface.network

    @property
    def connected_networks(self) -> tuple[IPNetwork, ...]:
        """The networks to which the kernel adds a connected route while the link is up.

        To the peer of an IPv6 address it adds one even with noprefixroute.
        """
        found: list[IPNetwork] = []
        has_network = self.prefix < self.ip.max_prefixlen or isinstance(self.peer, IPv4Address)
        if has_network and not self.flags & IFA_F_NOPREFIXROUTE:
            found.append(self.network)
        if isinstance(self.peer, IPv6Address):
            found.append(IPv6Network(self.peer))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class NextHop:
    """A next hop of a route."""

    link: int  # 0: none
    gateway: IPAddress | None
    encapsulates: bool = False  # a tunnel without a link of its own (ip-route(8), encap)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of any table."""

    table: int
    destination: IPNetwork
    hops: tuple[NextHop, ...]  # several for a multipath route
    kind: int  # RTN_*
    protocol: int
    metric: int
    source: IPAddress | None  # RTA_PREFSRC
    expires: bool  # IPv6: of a router advertisement with a limited lifetime
    nexthop: int = 0  # id of a nexthop object; its hops are missing with net.ipv4.nexthop_compat_mode=0
    for_some_packets: bool = False  # only for packets with a TOS, or from a source

    @property
    def is_owned(self) -> bool:
        """True if only cloud-network made it. To an owned IPv6 route, another program may add its own next hops."""
        return self.protocol == PROTOCOL and len(self.hops) == 1

    @property
    def is_shared(self) -> bool:
        """True for an IPv6 route that cloud-network made, and to which other programs have added next hops."""
        return self.protocol == PROTOCOL and len(self.hops) > 1 and self.destination.version == 6


@dataclass(frozen=True, slots=True)
class NextHopObject:
    """A nexthop object: one next hop, or a group of other nexthop objects."""

    id: int
    hop: NextHop
    members: tuple[int, ...]  # ids


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule."""

    priority: int
    selector: IPNetwork
    to: bool
    table: int
    suppress: bool
    iif_lo: bool
    protocol: int
    mark: int = 0
    mask: int = 0
    is_inexpressible: bool = False  # as an operation: by interface, uid, port ...; a goto
    goto: int | None = None  # priority of the rule that is tried next (FR_ACT_GOTO)
    is_inverted: bool = False  # `not`; then it is also inexpressible

    @property
    def is_for_all(self) -> bool:
        """True if it selects every packet and uses every route of its table."""
        return not (self.selector.prefixlen or self.mask or self.iif_lo or self.suppress or self.is_inexpressible)


# Encoding. An attribute whose value is None is left out; an integer is a u32.


def _attributes(values: Mapping[int, int | bytes | None]) -> bytes:
    given = ((kind, U32.pack(value) if isinstance(value, int) else value) for kind, value in values.items())
    return b"".join(pack_attribute(kind, value) for kind, value in given if value is not None)


def _link_flags(link: int, flags: int) -> Packed:
    return Packed(RTM_NEWLINK, 0, IFINFOMSG.pack(AF_UNSPEC, 0, link, flags, IFF_UP))


def _link_up(op: LinkUp) -> Packed:
    return _link_flags(op.link, IFF_UP)


def _link_down(op: LinkDown) -> Packed:
    return _link_flags(op.link, 0)


def _link_mtu(op: LinkMtu) -> Packed:
    return Packed(RTM_NEWLINK, 0, IFINFOMSG.pack(AF_UNSPEC, 0, op.link, 0, 0) + _attributes({IFLA_MTU: op.mtu}))


def _ifaddrmsg(op: AddressAdd | AddressRemove) -> bytes:
    return IFADDRMSG.pack(_FAMILY[op.interface.version], op.interface.network.prefixlen, 0, 0, op.link)


def _address_add(op: AddressAdd) -> Packed:
    packed = op.interface.packed
    flags = 0 if op.connected_route else IFA_F_NOPREFIXROUTE
    if op.interface.version == 6:
        flags |= IFA_F_NODAD  # the cloud assigned it, so no other host has it
    values: dict[int, int | bytes | None] = {
        IFA_LOCAL: packed,
        IFA_ADDRESS: packed,
        IFA_FLAGS: flags,
        IFA_PROTO: bytes([PROTOCOL]),
    }
    return Packed(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, _ifaddrmsg(op) + _attributes(values))


def _address_remove(op: AddressRemove) -> Packed:
    packed = op.interface.packed
    return Packed(RTM_DELADDR, 0, _ifaddrmsg(op) + _attributes({IFA_LOCAL: packed, IFA_ADDRESS: packed}))


def _route_body(op: RouteReplace | RouteRemove) -> bytes:
    scope = RT_SCOPE_UNIVERSE if op.gateway is not None else RT_SCOPE_LINK
    kind = RTN_UNICAST
    if op.table == TABLE_LOCAL:
        scope, kind = RT_SCOPE_HOST, RTN_LOCAL
    family, length = _FAMILY[op.destination.version], op.destination.prefixlen
    values: dict[int, int | bytes | None] = {
        RTA_DST: op.destination.network_address.packed,
        RTA_OIF: op.link,
        RTA_GATEWAY: None if op.gateway is None else op.gateway.packed,
        RTA_TABLE: op.table,
    }
    return RTMSG.pack(family, length, 0, 0, 0, PROTOCOL, scope, kind, 0) + _attributes(values)


def _route_replace(op: RouteReplace) -> Packed:
    return Packed(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _route_body(op))


def _route_add(op: RouteAdd) -> Packed:
    return Packed(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, _route_body(op))


def _route_remove(op: RouteRemove) -> Packed:
    return Packed(RTM_DELROUTE, 0, _route_body(op))  # the kernel compares the protocol, too


def _rule_body(op: RuleAdd | RuleRemove) -> bytes:
    family, length = _FAMILY[op.selector.version], op.selector.prefixlen
    to_length, from_length = (length, 0) if op.to else (0, length)
    values: dict[int, int | bytes | None] = {
        FRA_DST if op.to else FRA_SRC: op.selector.network_address.packed if length else None,
        FRA_IIFNAME: b"lo\0" if op.iif_lo else None,
        FRA_PRIORITY: op.priority,
        FRA_FWMARK: op.mark or None,
        FRA_SUPPRESS_PREFIXLEN: 0 if op.suppress else None,
        FRA_TABLE: op.table,
        FRA_FWMASK: op.mask or None,
        FRA_PROTOCOL: bytes([PROTOCOL]),
    }
    header = FIB_RULE_HDR.pack(family, to_length, from_length, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    return header + _attributes(values)


def _rule_add(op: RuleAdd) -> Packed:
    return Packed(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _rule_body(op))


def _rule_remove(op: RuleRemove) -> Packed:
    return Packed(RTM_DELRULE, 0, _rule_body(op))  # the kernel compares the protocol, too


ENCODERS: Mapping[type[Change], Callable[[Any], Packed]] = {
    LinkUp: _link_up,
    LinkDown: _link_down,
    LinkMtu: _link_mtu,
    AddressAdd: _address_add,
    AddressRemove: _address_remove,
    RouteReplace: _route_replace,
    RouteAdd: _route_add,
    RouteRemove: _route_remove,
    RuleAdd: _rule_add,
    RuleRemove: _rule_remove,
}


def encode(op: Change) -> Packed:
    """Return the message that carries out an operation."""
    return ENCODERS[type(op)](op)


# Decoding.


def _unpack(header: Struct, body: bytes) -> tuple[tuple[Any, ...], Attributes]:
    """Return the fields of the header and the attributes after it, by type."""
    return header.unpack_from(body), parse_attributes(body, header.size)


def _u32(found: Attributes, kind: int, default: int = 0) -> int:
    return int(U32.unpack(found[kind])[0]) if kind in found else default


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _address(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _network(family: int, packed: bytes | None, length: int) -> IPNetwork:
    if packed is None or not length:
        return _ANYWHERE[family]
    number = int.from_bytes(packed)  # an address is in network order
    if len(packed) == 4:
        return IPv4Network((number, length), strict=False)
    return IPv6Network((number, length), strict=False)


def decode_link(body: bytes) -> Link:
    """Return the link of an RTM_NEWLINK message."""
    (_, _, index, flags, _), found = _unpack(IFINFOMSG, body)
    packed_kind = parse_attributes(found.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND)
    kind = None if packed_kind is None else _text(packed_kind)
    has_parent = kind in SHARING_KINDS and IFLA_LINK_NETNSID not in found
    return Link(
        index=index,
        name=_text(found[IFLA_IFNAME]),
        mtu=_u32(found, IFLA_MTU),
        kind=kind,
        up=bool(flags & IFF_UP),
        loopback=bool(flags & IFF_LOOPBACK),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        parent=_u32(found, IFLA_LINK) if has_parent else 0,
    )


def decode_address(body: bytes) -> Address | None:
    """Return the address of an RTM_NEWADDR message; None for a family that is not IP (MCTP, Phonet)."""
    (family, prefix, flags, _, index), found = _unpack(IFADDRMSG, body)
    if family not in _ANYWHERE:
        return None
    other = _address(found.get(IFA_ADDRESS, bytes(4)))  # the kernel leaves out 0.0.0.0
    ip = _address(found[IFA_LOCAL]) if IFA_LOCAL in found else other
    protocol = found[IFA_PROTO][0] if IFA_PROTO in found else None
    peer, metric = other if other != ip else None, _u32(found, IFA_RT_PRIORITY)
    return Address(index, ip, prefix, _u32(found, IFA_FLAGS, flags), protocol, peer, metric)


def decode_route(body: bytes) -> Route | None:
    """Return the route of an RTM_NEWROUTE message, or None if it has expired.

    The kernel no longer uses an expired IPv6 route, but lists it until it collects it (net.ipv6.route.gc_interval).
    """
    (family, length, source_length, tos, table, protocol, _, kind, _), found = _unpack(RTMSG, body)
    hops = tuple(_multipath(found[RTA_MULTIPATH])) if RTA_MULTIPATH in found else (_hop(_u32(found, RTA_OIF), found),)
    cache = found.get(RTA_CACHEINFO, b"")
    expires = RTA_CACHEINFO_FORMAT.unpack_from(cache)[2] if len(cache) >= RTA_CACHEINFO_FORMAT.size else 0
    if expires < 0:
        return None
    return Route(
        table=_u32(found, RTA_TABLE, table),
        destination=_network(family, found.get(RTA_DST), length),
        hops=hops,
        kind=kind,
        protocol=protocol,
        metric=_u32(found, RTA_PRIORITY),
        source=_address(found[RTA_PREFSRC]) if RTA_PREFSRC in found else None,
        expires=expires > 0,
        nexthop=_u32(found, RTA_NH_ID),
        for_some_packets=bool(source_length or tos),
    )


def decode_nexthop(body: bytes) -> NextHopObject:
    """Return the object of an RTM_NEWNEXTHOP message."""
    _, found = _unpack(NHMSG, body)
    gateway = _address(found[NHA_GATEWAY]) if NHA_GATEWAY in found else None
    members = tuple(int(each[0]) for each in NEXTHOP_GRP.iter_unpack(found.get(NHA_GROUP, b"")))
    hop = NextHop(_u32(found, NHA_OIF), gateway, NHA_ENCAP_TYPE in found)
    return NextHopObject(_u32(found, NHA_ID), hop, members)


def _hop(link: int, found: Attributes) -> NextHop:
    gateway = found.get(RTA_GATEWAY)
    if gateway is None and RTA_VIA in found:
        gateway = found[RTA_VIA][2:]  # struct rtvia: family, address
    return NextHop(link, None if gateway is None else _address(gateway), RTA_ENCAP_TYPE in found)


def _multipath(data: bytes) -> Iterator[NextHop]:
    offset = 0
    while offset + RTNEXTHOP.size <= len(data):
        length, _, _, link = RTNEXTHOP.unpack_from(data, offset)
        yield _hop(link, parse_attributes(data[offset : offset + length], RTNEXTHOP.size))
        offset += max((length + 3) & ~3, RTNEXTHOP.size)


def decode_rule(body: bytes) -> Rule | None:
    """Return the rule of an RTM_NEWRULE message; None for a family that is not IP (multicast routing)."""
    (family, to, source, tos, table, _, _, action, flags), found = _unpack(FIB_RULE_HDR, body)
    if family not in _ANYWHERE:
        return None
    iif, suppressed = found.get(FRA_IIFNAME), found.get(FRA_SUPPRESS_PREFIXLEN, _FRA_SUPPRESS_NONE)
    unknown = found.keys() - _FRA_UNDERSTOOD or iif not in (None, b"lo\0")
    narrowed = tos or (source and to) or flags & FIB_RULE_INVERT or unknown
    return Rule(
        priority=_u32(found, FRA_PRIORITY),
        selector=_network(family, found.get(FRA_SRC) or found.get(FRA_DST), source or to),
        to=to > 0,
        table=_u32(found, FRA_TABLE, table),
        suppress=suppressed == bytes(4),
        iif_lo=iif == b"lo\0",
        protocol=found.get(FRA_PROTOCOL, b"\0")[0],
        mark=_u32(found, FRA_FWMARK),
        mask=_u32(found, FRA_FWMASK),
        is_inexpressible=bool(narrowed or action != FR_ACT_TO_TBL or suppressed not in (bytes(4), _FRA_SUPPRESS_NONE)),
        goto=_u32(found, FRA_GOTO) if action == FR_ACT_GOTO else None,
        is_inverted=bool(flags & FIB_RULE_INVERT),
    )


def decode_router(body: bytes) -> tuple[int, IPAddress] | None:
    """Return link and address of a neighbour that the kernel flags as a router (NTF_ROUTER), or None."""
    (_, index, _, flags, _), found = _unpack(NDMSG, body)
    if not flags & NTF_ROUTER or NDA_DST not in found:
        return None
    return index, _address(found[NDA_DST])


def decode_static_neighbour(body: bytes) -> tuple[int, int] | None:
    """Return the link and IP version of a neighbour entry that another program made, or None.

    The kernel itself makes NUD_NOARP entries for multicast and broadcast. Only other programs set extended flags, such
    as NTF_EXT_MANAGED (ip-neighbour(8), managed).
    """
    (family, index, state, flags, kind), found = _unpack(NDMSG, body)
    by_hand = state & NUD_PERMANENT or (state & NUD_NOARP and kind == RTN_UNICAST)
    if not by_hand and not flags & (NTF_PROXY | NTF_EXT_LEARNED) and not _u32(found, NDA_FLAGS_EXT):
        return None
    return int(index), 4 if family == AF_INET else 6
