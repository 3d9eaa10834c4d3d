"""The four rtnetlink messages that netagent sends, the four dumps that it reads, and the socket for both.

Packed by hand: pyroute2 would cost 24 MB and 0.3 s of start-up in the privileged process. Names and layouts are of
linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/fib_rules.h; tests hold every message
byte for byte against pyroute2's encoder. What comes out of a dump has the keys of the operations in `protocol`.
"""

from __future__ import annotations

import _socket as socket  # the part of `socket` in C: the rest costs 3 ms of start-up and is not used here
from errno import ENOBUFS
from struct import Struct

from .protocol import PROTOCOL, TABLE_LOCAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .protocol import Op

NLMSGHDR = Struct("=IHHII")  # struct nlmsghdr: len, type, flags, seq, pid
RTATTR = Struct("=HH")  # struct rtattr: len, type
IFINFOMSG = Struct("=BxHiII")  # family, pad, type, index, flags, change
IFADDRMSG = Struct("=BBBBI")  # family, prefixlen, flags, scope, index
RTMSG = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
FIB_RULE_HDR = RTMSG  # the same sizes: family, dst_len, src_len, tos, table, res1, res2, action, flags
U32 = Struct("=I")
_ATTRIBUTE_U32 = Struct("=HHI")

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = (
    1,
    4,
    0x100,
    0x200,
    0x400,
    0x300,
)
NLM_F_DUMP_INTR = 0x10
IFF_UP, IFF_LOOPBACK = 1, 8
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x01, 0x02, 0x200
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 4, 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
FRA_DST, FRA_SRC, FRA_PRIORITY, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_PROTOCOL = 1, 2, 6, 14, 15, 21
RTN_UNICAST, RTN_LOCAL = 1, 2
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
FR_ACT_TO_TBL = 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BATCH = 512  # messages a send: their acknowledgements fit the receive buffer, so that none is lost


def _attribute(kind: int, payload: bytes) -> bytes:
    return RTATTR.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _u32(kind: int, value: int) -> bytes:
    return _ATTRIBUTE_U32.pack(8, kind, value)


def _family(packed: bytes) -> int:
    return 2 if len(packed) == 4 else 10


def link(op: Op) -> tuple[int, int, bytes]:
    """RTM_NEWLINK, struct ifinfomsg: set or clear IFF_UP (`up`), or set IFLA_MTU (`mtu`)."""
    if "mtu" in op:
        return RTM_NEWLINK, 0, IFINFOMSG.pack(0, 0, op["link"], 0, 0) + _u32(IFLA_MTU, op["mtu"])
    return RTM_NEWLINK, 0, IFINFOMSG.pack(0, 0, op["link"], IFF_UP if op["op"] == "link_up" else 0, IFF_UP)


def address(op: Op) -> tuple[int, int, bytes]:
    """RTM_NEWADDR or RTM_DELADDR, struct ifaddrmsg. NODAD: the cloud assigned it, nobody else can have it."""
    packed = op["address"]
    body = IFADDRMSG.pack(_family(packed), op["prefix"], 0, 0, op["link"])
    body += _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
    if op["op"] == "address_remove":
        return RTM_DELADDR, 0, body
    flags = (0 if op["route"] else IFA_F_NOPREFIXROUTE) | (IFA_F_NODAD if len(packed) == 16 else 0)
    body += _u32(IFA_FLAGS, flags) + _attribute(IFA_PROTO, bytes((PROTOCOL,)))
    return RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body


def route(op: Op) -> tuple[int, int, bytes]:
    """RTM_NEWROUTE or RTM_DELROUTE, struct rtmsg. The kernel deletes a route only if its protocol is ours."""
    destination, gateway = op["destination"], op["gateway"]
    kind, scope = RTN_UNICAST, RT_SCOPE_LINK if gateway is None else RT_SCOPE_UNIVERSE
    if op["table"] == TABLE_LOCAL:
        kind, scope = RTN_LOCAL, RT_SCOPE_HOST
    body = RTMSG.pack(_family(destination), op["prefix"], 0, 0, 0, PROTOCOL, scope, kind, 0)
    body += _attribute(RTA_DST, destination) + _u32(RTA_OIF, op["link"])
    if gateway is not None:
        body += _attribute(RTA_GATEWAY, gateway)
    body += _u32(RTA_TABLE, op["table"])
    if op["op"] == "route_remove":
        return RTM_DELROUTE, 0, body
    return RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body


def rule(op: Op) -> tuple[int, int, bytes]:
    """RTM_NEWRULE or RTM_DELRULE, struct fib_rule_hdr. The kernel deletes a rule only if its protocol is ours."""
    selector, to = op["selector"], op["to"]
    prefix = op["prefix"]
    body = FIB_RULE_HDR.pack(op["family"], prefix if to else 0, 0 if to else prefix, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    if selector is not None:
        body += _attribute(FRA_DST if to else FRA_SRC, selector)
    body += _u32(FRA_PRIORITY, op["priority"])
    if op["suppress"]:
        body += _u32(FRA_SUPPRESS_PREFIXLEN, 0)
    body += _u32(FRA_TABLE, op["table"]) + _attribute(FRA_PROTOCOL, bytes((PROTOCOL,)))
    if op["op"] == "rule_remove":
        return RTM_DELRULE, 0, body
    return RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body


# `link_down` is no operation of the wire: only taking a `link_up` back makes one.
MESSAGES: dict[str, Callable[[Op], tuple[int, int, bytes]]] = {
    "link_up": link,
    "link_down": link,
    "link_mtu": link,
    "address_add": address,
    "address_remove": address,
    "route_replace": route,
    "route_remove": route,
    "rule_add": rule,
    "rule_remove": rule,
}


def _attributes(message: memoryview, offset: int) -> dict[int, bytes]:
    found = {}
    end = len(message)
    while offset + 4 <= end:
        length, kind = RTATTR.unpack_from(message, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = bytes(message[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return found


def _number(packed: bytes | None, default: int = 0) -> int:
    return default if packed is None else int.from_bytes(packed, "little")


def parse_link(message: memoryview) -> dict[str, Any]:
    """{link, up, loopback, name, mtu, kind}; kind is None for what has no rtnetlink kind, as a cloud's own has none."""
    _, _, index, flags, _ = IFINFOMSG.unpack_from(message)
    found = _attributes(message, IFINFOMSG.size)
    info = _attributes(memoryview(found.get(IFLA_LINKINFO, b"")), 0)
    kind = info.get(IFLA_INFO_KIND)
    return {
        "link": index,
        "up": bool(flags & IFF_UP),
        "loopback": bool(flags & IFF_LOOPBACK),
        "name": found[IFLA_IFNAME].rstrip(b"\0").decode(errors="replace"),
        "mtu": _number(found.get(IFLA_MTU)),
        "kind": None if kind is None else kind.rstrip(b"\0").decode(errors="replace"),
    }


def parse_address(message: memoryview) -> dict[str, Any]:
    """{link, address, prefix, flags, protocol}; protocol is None where no IFA_PROTO was set or known."""
    _, prefix, flags, _, index = IFADDRMSG.unpack_from(message)
    found = _attributes(message, IFADDRMSG.size)
    return {
        "link": index,
        "address": found.get(IFA_LOCAL) or found[IFA_ADDRESS],
        "prefix": prefix,
        "flags": _number(found.get(IFA_FLAGS), flags),
        "protocol": None if IFA_PROTO not in found else found[IFA_PROTO][0],
    }


def parse_route(message: memoryview) -> dict[str, Any]:
    """{table, link, destination, prefix, gateway, protocol, metric}; link is 0 for what has no single one."""
    family, prefix, _, _, table, protocol, _, _, _ = RTMSG.unpack_from(message)
    found = _attributes(message, RTMSG.size)
    return {
        "table": _number(found.get(RTA_TABLE), table),
        "link": _number(found.get(RTA_OIF)),
        "destination": found.get(RTA_DST) or bytes(4 if family == 2 else 16),
        "prefix": prefix,
        "gateway": found.get(RTA_GATEWAY),
        "protocol": protocol,
        "metric": _number(found.get(RTA_PRIORITY)),
    }


def _parse_default(message: memoryview) -> dict[str, Any]:
    return {"gateway": None} if message[1] else parse_route(message)


def parse_rule(message: memoryview) -> dict[str, Any]:
    """The keys of rule_add, and protocol."""
    family, dst_len, src_len, _, table, _, _, _, _ = FIB_RULE_HDR.unpack_from(message)
    found = _attributes(message, FIB_RULE_HDR.size)
    return {
        "priority": _number(found.get(FRA_PRIORITY)),
        "family": family,
        "selector": found.get(FRA_SRC) or found.get(FRA_DST),
        "prefix": src_len or dst_len,
        "to": FRA_DST in found,
        "table": _number(found.get(FRA_TABLE), table),
        "suppress": found.get(FRA_SUPPRESS_PREFIXLEN) == bytes(4),
        "protocol": _number(found.get(FRA_PROTOCOL)),
    }


class Kernel:
    """One rtnetlink socket: dumps, and batches of changes with an acknowledgement each."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._sequence = 0
        for level, option, value in (
            (SOL_NETLINK, NETLINK_CAP_ACK, 1),
            (SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1),
            (socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 20),
            (socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 21),
        ):
            self._socket.setsockopt(level, option, value)
        self._socket.bind((0, 0))
        self._buffer = bytearray(1 << 16)

    def _receive(self) -> memoryview:
        length, _, _, _ = self._socket.recvmsg_into([self._buffer], 0, socket.MSG_TRUNC)
        if length > len(self._buffer):
            raise OSError(ENOBUFS, "a netlink datagram larger than the buffer")
        return memoryview(self._buffer)[:length]

    def _dump(
        self, request: int, header: bytes, kind: int, parse: Callable[[memoryview], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        self._sequence += 1
        size = NLMSGHDR.size + len(header)
        self._socket.send(NLMSGHDR.pack(size, request, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0) + header)
        while True:
            data, offset = self._receive(), 0
            while offset < len(data):
                length, answer, _, sequence, _ = NLMSGHDR.unpack_from(data, offset)
                if sequence == self._sequence:
                    if answer in (NLMSG_ERROR, NLMSG_DONE):
                        error = -int.from_bytes(data[offset + 16 : offset + 20], "little", signed=True)
                        if error:
                            raise OSError(error, f"rtnetlink dump {request}")
                        return
                    if answer == kind:
                        yield parse(data[offset + NLMSGHDR.size : offset + length])
                offset += (length + 3) & ~3

    def links(self) -> list[dict[str, Any]]:
        """Every link of the namespace."""
        return list(self._dump(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0), RTM_NEWLINK, parse_link))

    def addresses(self) -> list[dict[str, Any]]:
        """Every IPv4 and IPv6 address."""
        found: list[dict[str, Any]] = []
        for family in (2, 10):
            found += self._dump(RTM_GETADDR, IFADDRMSG.pack(family, 0, 0, 0, 0), RTM_NEWADDR, parse_address)
        return found

    def routes(self, table: int) -> list[dict[str, Any]]:
        """The routes of one table; none where the kernel has no such table yet."""
        found: list[dict[str, Any]] = []
        for family in (2, 10):
            header = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + _u32(RTA_TABLE, table)
            try:
                found += self._dump(RTM_GETROUTE, header, RTM_NEWROUTE, parse_route)
            except OSError as error:
                if error.errno != 2:  # ENOENT: no such table
                    raise
        return found

    def our_routes(self, parse: Callable[[memoryview], dict[str, Any]] = parse_route) -> list[dict[str, Any]]:
        """The routes with our protocol number, of all tables."""
        found: list[dict[str, Any]] = []
        for family in (2, 10):
            header = RTMSG.pack(family, 0, 0, 0, 0, PROTOCOL, 0, 0, 0)
            found += self._dump(RTM_GETROUTE, header, RTM_NEWROUTE, parse)
        return found

    def gateways(self) -> set[bytes]:
        """The gateways of our default routes; the other routes of the dump are not even unpacked."""
        return {route["gateway"] for route in self.our_routes(_parse_default)} - {None}

    def rules(self) -> list[dict[str, Any]]:
        """Every IPv4 and IPv6 rule."""
        found: list[dict[str, Any]] = []
        for family in (2, 10):
            header = FIB_RULE_HDR.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            found += self._dump(RTM_GETRULE, header, RTM_NEWRULE, parse_rule)
        return found

    def change(self, ops: list[Op], *, stop: bool = True) -> list[int | None]:
        """Hand `ops` to the kernel in order; an errno each, 0 for done, None for not tried or not known.

        With `stop`, sends no more after the first batch in which one failed. Never raises: what the kernel could
        not be asked counts as None, and the caller takes back everything that is not known to have failed.
        """
        results: list[int | None] = [None] * len(ops)
        for start in range(0, len(ops), _BATCH):
            batch = ops[start : start + _BATCH]
            first = self._sequence + 1
            self._sequence += len(batch)
            messages = []
            for sequence, op in enumerate(batch, first):
                kind, flags, body = MESSAGES[op["op"]](op)
                messages.append(
                    NLMSGHDR.pack(16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, 0) + body
                )
            try:
                self._socket.send(b"".join(messages))
                waiting = len(batch)
                while waiting:
                    data = self._receive()
                    _, answer, _, sequence, _ = NLMSGHDR.unpack_from(data)
                    if answer == NLMSG_ERROR and first <= sequence <= self._sequence:
                        results[start + sequence - first] = -int.from_bytes(data[16:20], "little", signed=True)
                        waiting -= 1
            except OSError:
                break
            if stop and any(results[start : start + len(batch)]):
                break
        return results
