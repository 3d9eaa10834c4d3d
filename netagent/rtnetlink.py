"""The four rtnetlink messages that netagent sends, the four dumps that it reads, and the socket for both.

Packed by hand: pyroute2 would cost 24 MB and 0.3 s of start-up in the privileged process. Names and layouts are of
linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/fib_rules.h; tests hold every message
byte for byte against pyroute2's encoder. What comes out of a dump has the keys of the operations in `protocol`.
"""

from __future__ import annotations

import _socket as socket  # the part of `socket` in C: the rest costs 3 ms of start-up and is not used here
from errno import ENOBUFS, ENOENT
from struct import Struct

from .protocol import PROTOCOL, TABLE_LOCAL, TYPE_CHECKING

if TYPE_CHECKING:
    from .shapes import Callable, Found, Iterator, Op, Packed

NLMSGHDR = Struct("=IHHII")  # struct nlmsghdr: len, type, flags, seq, pid
RTATTR = Struct("=HH")  # struct rtattr: len, type
IFINFOMSG = Struct("=BxHiII")  # family, pad, type, index, flags, change
IFADDRMSG = Struct("=BBBBI")  # family, prefixlen, flags, scope, index
RTMSG = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
FIB_RULE_HDR = RTMSG  # the same sizes: family, dst_len, src_len, tos, table, res1, res2, action, flags
_ACK = Struct("=IHHIIi")  # struct nlmsghdr, and the errno that struct nlmsgerr begins with
_U8, _U32, _IPV4, _IPV6 = Struct("=HHB3x"), Struct("=HHI"), Struct("=HH4s"), Struct("=HH16s")  # whole attributes

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 1, 4, 0x100, 0x200, 0x400, 0x300
IFF_UP, IFF_LOOPBACK = 1, 8
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x01, 0x02, 0x200
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 4, 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_PROTOCOL = 1, 2, 3, 6, 14, 15, 21
RTN_UNICAST, RTN_LOCAL, FR_ACT_TO_TBL = 1, 2, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 12
_BATCH = 128  # messages a send: their acknowledgements fit the default receive buffer (net.core.rmem_default)
FAMILIES = (2, 10)  # AF_INET, AF_INET6
_ANY = {2: bytes(4), 10: bytes(16)}


def _packed(kind: int, address: bytes) -> bytes:
    return _IPV4.pack(8, kind, address) if len(address) == 4 else _IPV6.pack(20, kind, address)


def _family(address: bytes) -> int:
    return FAMILIES[len(address) == 16]


def link(op: Op) -> Packed:
    """RTM_NEWLINK, struct ifinfomsg: set or clear IFF_UP, or set IFLA_MTU."""
    if "mtu" in op:
        return RTM_NEWLINK, 0, IFINFOMSG.pack(0, 0, op["link"], 0, 0) + _U32.pack(8, IFLA_MTU, op["mtu"])
    return RTM_NEWLINK, 0, IFINFOMSG.pack(0, 0, op["link"], IFF_UP if op["op"] == "link_up" else 0, IFF_UP)


def address(op: Op) -> Packed:
    """RTM_NEWADDR or RTM_DELADDR, struct ifaddrmsg. NODAD: the cloud assigned it, nobody else can have it."""
    packed = op["address"]
    body = IFADDRMSG.pack(_family(packed), op["prefix"], 0, 0, op["link"])
    body += _packed(IFA_LOCAL, packed) + _packed(IFA_ADDRESS, packed)
    if op["op"] == "address_remove":
        return RTM_DELADDR, 0, body
    flags = (0 if op["route"] else IFA_F_NOPREFIXROUTE) | (IFA_F_NODAD if len(packed) == 16 else 0)
    body += _U32.pack(8, IFA_FLAGS, flags) + _U8.pack(5, IFA_PROTO, PROTOCOL)
    return RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body


def route(op: Op) -> Packed:
    """RTM_NEWROUTE or RTM_DELROUTE, struct rtmsg. The kernel deletes a route only if its protocol is ours."""
    packed, gateway, table = op["address"], op["gateway"], op["table"]
    scope = RT_SCOPE_HOST if table == TABLE_LOCAL else RT_SCOPE_LINK if gateway is None else RT_SCOPE_UNIVERSE
    kind = RTN_LOCAL if table == TABLE_LOCAL else RTN_UNICAST
    body = RTMSG.pack(_family(packed), op["prefix"], 0, 0, 0, PROTOCOL, scope, kind, 0) + _packed(RTA_DST, packed)
    body += _U32.pack(8, RTA_OIF, op["link"]) + (b"" if gateway is None else _packed(RTA_GATEWAY, gateway))
    body += _U32.pack(8, RTA_TABLE, table)
    remove = op["op"] == "route_remove"
    return (RTM_DELROUTE, 0, body) if remove else (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def rule(op: Op) -> Packed:
    """RTM_NEWRULE or RTM_DELRULE, struct fib_rule_hdr. The kernel deletes a rule only if its protocol is ours."""
    packed, prefix, to = op["address"], op["prefix"], op["to"]
    body = FIB_RULE_HDR.pack(_family(packed), *((prefix, 0) if to else (0, prefix)), 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    body += _packed(FRA_DST if to else FRA_SRC, packed) if prefix else b""
    # A way back that was in the ledger before this version came has no `local`; the last zero is padding.
    body += RTATTR.pack(7, FRA_IIFNAME) + b"lo\0\0" if op.get("local") else b""
    body += _U32.pack(8, FRA_PRIORITY, op["priority"])
    body += _U32.pack(8, FRA_SUPPRESS_PREFIXLEN, 0) if op["suppress"] else b""
    body += _U32.pack(8, FRA_TABLE, op["table"]) + _U8.pack(5, FRA_PROTOCOL, PROTOCOL)
    return (RTM_DELRULE, 0, body) if op["op"] == "rule_remove" else (RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body)


# link: link_up, link_mtu, and link_down, which no request can ask for: only taking link_up back does.
MESSAGES: dict[str, Callable[[Op], Packed]] = {"link": link, "address": address, "route": route, "rule": rule}


def _attributes(message: bytes, offset: int) -> dict[int, bytes]:
    found = {}
    while offset + 4 <= len(message):
        length, kind = RTATTR.unpack_from(message, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = message[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _number(packed: bytes | None, default: int = 0) -> int:
    return default if packed is None else int.from_bytes(packed, "little")


def _name(packed: bytes | None) -> str | None:
    return packed and packed.rstrip(b"\0").decode(errors="replace")  # type: ignore[return-value]  # None or a name


def parse_link(message: bytes) -> Found:
    """{link, up, loopback, name, mtu, kind}; kind is None for what has no rtnetlink kind, as a cloud's own has none."""
    _, _, index, flags, _ = IFINFOMSG.unpack_from(message)
    found = _attributes(message, IFINFOMSG.size)
    return {
        "link": index,
        "up": bool(flags & IFF_UP),
        "loopback": bool(flags & IFF_LOOPBACK),
        "name": _name(found[IFLA_IFNAME]),
        "mtu": _number(found.get(IFLA_MTU)),
        "kind": _name(_attributes(found.get(IFLA_LINKINFO, b""), 0).get(IFLA_INFO_KIND)),
    }


def parse_address(message: bytes) -> Found:
    """{link, address, prefix, flags, protocol}; protocol is None where no IFA_PROTO was set or known."""
    _, prefix, flags, _, index = IFADDRMSG.unpack_from(message)
    found = _attributes(message, IFADDRMSG.size)
    return {
        "link": index,
        "address": found.get(IFA_LOCAL) or found[IFA_ADDRESS],
        "prefix": prefix,
        "flags": _number(found.get(IFA_FLAGS), flags),
        "protocol": found.get(IFA_PROTO, (None,))[0],
    }


def parse_route(message: bytes) -> Found:
    """{table, link, address, prefix, gateway, protocol, metric}; link is 0 for what has no single one."""
    family, prefix, _, _, table, protocol, _, _, _ = RTMSG.unpack_from(message)
    found = _attributes(message, RTMSG.size)
    return {
        "table": _number(found.get(RTA_TABLE), table),
        "link": _number(found.get(RTA_OIF)),
        "address": found.get(RTA_DST, _ANY[family]),
        "prefix": prefix,
        "gateway": found.get(RTA_GATEWAY),
        "protocol": protocol,
        "metric": _number(found.get(RTA_PRIORITY)),
    }


def parse_default(message: bytes) -> Found:
    """Of a default route; other routes are not even unpacked, and have no gateway here."""
    return {"gateway": None, "link": 0} if message[1] else parse_route(message)


def parse_rule(message: bytes) -> Found:
    """The keys of rule_add, and protocol."""
    family, to, source, _, table, _, _, _, _ = FIB_RULE_HDR.unpack_from(message)
    found = _attributes(message, FIB_RULE_HDR.size)
    return {
        "priority": _number(found.get(FRA_PRIORITY)),
        "address": found.get(FRA_SRC) or found.get(FRA_DST) or _ANY.get(family, b""),
        "prefix": source or to,
        "to": to > 0,
        "table": _number(found.get(FRA_TABLE), table),
        "suppress": found.get(FRA_SUPPRESS_PREFIXLEN) == bytes(4),
        "local": found.get(FRA_IIFNAME) == b"lo\0",
        "protocol": _number(found.get(FRA_PROTOCOL)),
    }


class Kernel:
    """One rtnetlink socket: dumps, and batches of changes with an acknowledgement each."""

    def __init__(self) -> None:
        self._sequence = 0
        self._buffer = bytearray(1 << 16)
        self._connect()

    def _connect(self) -> None:
        # rtnetlink has answered when send() returns: what is not there to be read then was lost and never comes
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, 0)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.bind((0, 0))

    def _receive(self) -> int:
        length = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        if length > len(self._buffer):
            raise OSError(ENOBUFS, "a netlink datagram larger than the buffer")
        return length

    def _dump(self, request: int, header: bytes, parse: Callable[[bytes], Found]) -> list[Found]:
        try:
            return list(self._answers(request, header, parse))
        except OSError:  # an answer was lost, perhaps one before this: once more with nothing left over
            self._connect()
            return list(self._answers(request, header, parse))

    def _answers(self, request: int, header: bytes, parse: Callable[[bytes], Found]) -> Iterator[Found]:
        self._sequence += 1
        size = NLMSGHDR.size + len(header)
        self._socket.send(NLMSGHDR.pack(size, request, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0) + header)
        while True:
            end, offset = self._receive(), 0
            while offset < end:
                length, answer, _, sequence, _ = NLMSGHDR.unpack_from(self._buffer, offset)
                if sequence == self._sequence and answer in (NLMSG_ERROR, NLMSG_DONE):
                    error = -int.from_bytes(self._buffer[offset + 16 : offset + 20], "little", signed=True)
                    if error not in (0, ENOENT):  # ENOENT: the table has never been used
                        raise OSError(error, f"rtnetlink dump {request}")
                    return
                if sequence == self._sequence and answer == request - 2:  # RTM_GETx answers RTM_NEWx
                    yield parse(bytes(self._buffer[offset + NLMSGHDR.size : offset + length]))
                offset += (length + 3) & ~3

    def links(self) -> list[Found]:
        """Every link of the namespace."""
        return self._dump(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0), parse_link)

    def addresses(self) -> list[Found]:
        """Every IPv4 and IPv6 address."""
        header = IFADDRMSG.pack(0, 0, 0, 0, 0)[1:]
        return [each for one in FAMILIES for each in self._dump(RTM_GETADDR, bytes([one]) + header, parse_address)]

    def rules(self) -> list[Found]:
        """Every IPv4 and IPv6 rule."""
        header = FIB_RULE_HDR.pack(0, *bytes(8))[1:]
        return [each for one in FAMILIES for each in self._dump(RTM_GETRULE, bytes([one]) + header, parse_rule)]

    def routes(self, table: int | None, parse: Callable[[bytes], Found] = parse_route) -> list[Found]:
        """The routes of one table, or with None those of all tables that carry our protocol number."""
        protocol, attribute = (PROTOCOL, b"") if table is None else (0, _U32.pack(8, RTA_TABLE, table))
        header = RTMSG.pack(0, 0, 0, 0, 0, protocol, 0, 0, 0)[1:] + attribute
        return [each for one in FAMILIES for each in self._dump(RTM_GETROUTE, bytes([one]) + header, parse)]

    def change(self, ops: list[Op], *, stop: bool = True) -> list[int | None]:
        """Hand `ops` to the kernel in order; an errno each, 0 for done, None for not tried or not known.

        With `stop`, sends no more after the first batch in which one failed. Never raises: what the kernel could
        not be asked counts as None, and the caller takes back everything that is not known to have failed.
        """
        results: list[int | None] = [None] * len(ops)
        for start in range(0, len(ops), _BATCH):
            first, batch = self._sequence + 1, b""
            for self._sequence, op in enumerate(ops[start : start + _BATCH], first):
                kind, flags, body = MESSAGES[op["op"].partition("_")[0]](op)
                header = NLMSGHDR.pack(16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, self._sequence, 0)
                batch += header + body
            try:
                self._socket.send(batch)
                waiting = self._sequence - first + 1
                while waiting:
                    self._receive()
                    _, answer, _, sequence, _, error = _ACK.unpack_from(self._buffer)
                    if answer == NLMSG_ERROR and first <= sequence <= self._sequence:
                        results[start + sequence - first] = -error
                        waiting -= 1
            except OSError:
                if stop:
                    break
            if stop and any(results[start : start + _BATCH]):
                break
        return results
