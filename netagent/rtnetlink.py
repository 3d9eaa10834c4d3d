"""The four rtnetlink messages that netagent sends, the four dumps that it reads, and the socket for both.

Packed by hand: pyroute2 would cost 24 MB and 0.3 s of start-up in the privileged process. Names and layouts are of
linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/fib_rules.h; tests hold every message
byte for byte against pyroute2's encoder. What comes out of a dump has the keys of the operations in `protocol`.
"""

from __future__ import annotations

import _socket as socket  # the part of `socket` in C: the rest costs 3 ms of start-up and is not used here
import select
from errno import ENODEV, ENOENT
from struct import Struct

from .old_protocol import PROTOCOL, TABLE_LOCAL, TYPE_CHECKING, raise_if

if TYPE_CHECKING:
    from .shapes import Any, Callable, Found, Iterator, Op, Packed, Parts

NLMSGHDR = Struct("=IHHII")  # struct nlmsghdr: len, type, flags, seq, pid
RTATTR, _U32 = Struct("=HH"), Struct("=HHI")  # struct rtattr: len, type; and a whole attribute of 32 bits
IFINFOMSG = Struct("=BxHiII")  # family, pad, type, index, flags, change
IFADDRMSG, _INDEX = Struct("=BBBBI"), Struct("=I")  # family, prefixlen, flags, scope, index; and that alone
RTMSG = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
FIB_RULE_HDR = RTMSG  # the same sizes: family, dst_len, src_len, tos, table, res1, res2, action, flags

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE = 16, 20, 24, 32
_DEL, _GET = 1, 2  # how much more than the RTM_NEW… of its kind an RTM_DEL… or RTM_GET… is, for every kind
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 1, 4, 0x100, 0x200, 0x400, 0x300
IFF_UP, IFF_LOOPBACK = 1, 8
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x01, 0x02, 0x200
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 4, 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 15, 18
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_PROTOCOL = 1, 2, 3, 6, 14, 15, 21
RTN_UNICAST, RTN_LOCAL, FR_ACT_TO_TBL = 1, 2, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
SOL_NETLINK, NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK = 270, 5, 10, 12
_LARGEST = 1 << 16  # bytes of a datagram: the kernel makes dumps of 32 KiB
_BATCH = 128  # messages a send: their acknowledgements fit the default receive buffer (net.core.rmem_default)
_FAMILY = {4: socket.AF_INET, 16: socket.AF_INET6}  # by the length of an address
_ANY = {family: bytes(length) for length, family in _FAMILY.items()}


# Of each kind of operation the header and the attributes, in the order in which they are sent.


def link(op: Op) -> Parts:
    """struct ifinfomsg: set or clear IFF_UP, or set IFLA_MTU."""
    change = 0 if "mtu" in op else IFF_UP
    return IFINFOMSG.pack(0, 0, op["link"], change if op["op"] == "link_up" else 0, change), {IFLA_MTU: op.get("mtu")}


def address(op: Op) -> Parts:
    """struct ifaddrmsg. NODAD: the cloud assigned it, nobody else can have it."""
    packed = op["address"]
    header = IFADDRMSG.pack(_FAMILY[len(packed)], op["prefix"], 0, 0, op["link"])
    if op["op"] == "address_remove":
        return header, {IFA_LOCAL: packed, IFA_ADDRESS: packed}
    flags = (0 if op["route"] else IFA_F_NOPREFIXROUTE) | (IFA_F_NODAD if len(packed) == 16 else 0)
    return header, {IFA_LOCAL: packed, IFA_ADDRESS: packed, IFA_FLAGS: flags, IFA_PROTO: bytes([PROTOCOL])}


def route(op: Op) -> Parts:
    """struct rtmsg. The kernel deletes a route only if its protocol is ours."""
    packed, gateway, local = op["address"], op["gateway"], op["table"] == TABLE_LOCAL
    scope = RT_SCOPE_HOST if local else RT_SCOPE_LINK if gateway is None else RT_SCOPE_UNIVERSE
    kind = RTN_LOCAL if local else RTN_UNICAST
    header = RTMSG.pack(_FAMILY[len(packed)], op["prefix"], 0, 0, 0, PROTOCOL, scope, kind, 0)
    return header, {RTA_DST: packed, RTA_OIF: op["link"], RTA_GATEWAY: gateway, RTA_TABLE: op["table"]}


def rule(op: Op) -> Parts:
    """struct fib_rule_hdr. The kernel deletes a rule only if its protocol is ours."""
    packed, prefix, to = op["address"], op["prefix"], op["to"]
    lengths = (prefix, 0) if to else (0, prefix)
    return FIB_RULE_HDR.pack(_FAMILY[len(packed)], *lengths, 0, 0, 0, 0, FR_ACT_TO_TBL, 0), {
        FRA_DST if to else FRA_SRC: packed if prefix else None,
        FRA_IIFNAME: b"lo\0" if op.get("local") else None,  # a way back that a version before this wrote has no `local`
        FRA_PRIORITY: op["priority"],
        FRA_SUPPRESS_PREFIXLEN: 0 if op["suppress"] else None,
        FRA_TABLE: op["table"],
        FRA_PROTOCOL: bytes([PROTOCOL]),
    }


def pack(op: Op) -> Packed:
    """The message that does an operation; what is None has no attribute, and numbers are of 32 bits."""
    parts, kind, flags, _, _ = MESSAGES[op["op"].partition("_")[0]]
    body, attributes = parts(op)
    for number, value in attributes.items():
        if isinstance(value, int):
            body += _U32.pack(8, number, value)
        elif value is not None:
            body += RTATTR.pack(4 + len(value), number) + value + bytes(-len(value) % 4)
    return (kind + _DEL, 0, body) if op["op"].endswith("_remove") else (kind, flags, body)


def _unpack(header: Struct, message: bytes) -> tuple[Any, dict[int, bytes]]:
    """The fields of the header, and {type: value} of the attributes behind it."""
    found, offset = {}, header.size
    while offset + RTATTR.size <= len(message):
        length, kind = RTATTR.unpack_from(message, offset)
        found[kind & 0x3FFF] = message[offset + RTATTR.size : offset + length]
        offset += max((length + 3) & ~3, RTATTR.size)
    return header.unpack_from(message), found


def _message(number: int, kind: int, flags: int, body: bytes) -> bytes:
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, NLM_F_REQUEST | flags, number, 0) + body


def _messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, what follows struct nlmsghdr) of each."""
    offset = 0
    while offset + NLMSGHDR.size <= len(datagram):
        length, kind, _, sequence, _ = NLMSGHDR.unpack_from(datagram, offset)
        yield kind, sequence, datagram[offset + NLMSGHDR.size : offset + length]
        offset += (length + 3) & ~3


def _parsed(datagram: bytes, kind: int, parse: Callable[[bytes], Found]) -> tuple[list[Found], int | None]:
    """What a dump's datagram holds, and an errno if it is the last one. Dumps have the number 0, changes others."""
    answers = [(answer, body) for answer, number, body in _messages(datagram) if not number]
    ends = (_errno(body) for answer, body in answers if answer != kind)
    return [parse(body) for answer, body in answers if answer == kind], next(ends, None)


def _number(found: dict[int, bytes], kind: int, default: int = 0) -> int:
    return int.from_bytes(found[kind], "little") if kind in found else default


def _errno(body: bytes) -> int:
    return -int.from_bytes(body[:4], "little", signed=True)  # struct nlmsgerr, and what NLMSG_DONE says


def _name(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode(errors="replace")


def parse_link(message: bytes) -> Found:
    """{link, name, mtu, kind, up, loopback}; kind is None for what has no rtnetlink kind, as a cloud's own has none."""
    (_, _, index, flags, _), found = _unpack(IFINFOMSG, message)
    kind = _unpack(Struct(""), found.get(IFLA_LINKINFO, b""))[1].get(IFLA_INFO_KIND)
    named = {"link": index, "name": _name(found[IFLA_IFNAME]), "kind": None if kind is None else _name(kind)}
    return {**named, "mtu": _number(found, IFLA_MTU), "up": flags & IFF_UP > 0, "loopback": flags & IFF_LOOPBACK > 0}


def parse_address(message: bytes) -> Found:
    """{link, address, prefix, flags, protocol}; protocol is None where no IFA_PROTO was set or known."""
    (_, prefix, flags, _, index), found = _unpack(IFADDRMSG, message)
    packed, protocol = found.get(IFA_LOCAL) or found[IFA_ADDRESS], found.get(IFA_PROTO, (None,))[0]
    shown = {"address": packed, "prefix": prefix, "protocol": protocol}
    return {"link": index, "flags": _number(found, IFA_FLAGS, flags), **shown}


def parse_route(message: bytes) -> Found:
    """{address, prefix, table, link, gateway, protocol, metric}; link is 0 for what has no single one, or a gateway of
    the other family (RTA_VIA)."""
    (family, prefix, _, _, table, protocol, _, _, _), found = _unpack(RTMSG, message)
    link, gateway = 0 if RTA_VIA in found else _number(found, RTA_OIF), found.get(RTA_GATEWAY)
    where = {"address": found.get(RTA_DST, _ANY[family]), "prefix": prefix, "table": _number(found, RTA_TABLE, table)}
    return {**where, "link": link, "gateway": gateway, "protocol": protocol, "metric": _number(found, RTA_PRIORITY)}


def parse_rule(message: bytes) -> Found:
    """The keys of rule_add, and protocol."""
    (family, to, source, _, table, _, _, _, _), found = _unpack(FIB_RULE_HDR, message)
    packed = found.get(FRA_SRC) or found.get(FRA_DST) or _ANY.get(family, b"")
    where = {"priority": _number(found, FRA_PRIORITY), "table": _number(found, FRA_TABLE, table), "to": to > 0}
    flags = {"suppress": found.get(FRA_SUPPRESS_PREFIXLEN) == bytes(4), "local": found.get(FRA_IIFNAME) == b"lo\0"}
    return {"address": packed, "prefix": source or to, **where, **flags, "protocol": _number(found, FRA_PROTOCOL)}


# Of each kind how it is packed, the type and flags with which it is added, the header, and how it is parsed. `link`:
# link_up, link_mtu, and link_down, which no request can ask for: only taking link_up back does.
MESSAGES: dict[str, tuple[Callable[[Op], Parts], int, int, Struct, Callable[[bytes], Found]]] = {
    "link": (link, RTM_NEWLINK, 0, IFINFOMSG, parse_link),
    "address": (address, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, IFADDRMSG, parse_address),
    "route": (route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, RTMSG, parse_route),
    "rule": (rule, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, FIB_RULE_HDR, parse_rule),
}


class Kernel:
    """The rtnetlink socket that netagent was started with: dumps, and batches of changes with an acknowledgement each.

    It is all that netagent has of the host's network namespace, and no other family of netlink is in its reach.
    """

    def __init__(self, passed: int) -> None:
        self._sequence, self._socket = 0, socket.socket(fileno=passed)
        self._known: dict[Any, tuple[list[Found], int | None]] = {}  # by parser and datagram: the last look …
        self._seen: dict[Any, tuple[list[Found], int | None]] = {}  # … and this one
        # rtnetlink has answered when send() returns: what is not there to be read then was lost and never comes, and
        # ENOBUFS has nothing to add
        self._socket.setblocking(False)
        for option in (NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def _drain(self) -> None:
        """Read to its end what was asked before: by this process, or by another one that was killed over it."""
        while select.select([self._socket], [], [], 0)[0]:
            self._receive()

    def _receive(self) -> bytes:
        datagram, _, flags, _ = self._socket.recvmsg(_LARGEST)
        raise_if(flags & socket.MSG_TRUNC, OSError, "a netlink datagram of more than {} bytes", _LARGEST)
        return datagram

    def _found(self, kind: int, header: bytes, parse: Callable[[bytes], Found]) -> Iterator[Found]:
        """What a dump consists of. A datagram that was in the last look as well is not parsed again."""
        self._drain()
        self._socket.send(_message(0, kind + _GET, NLM_F_DUMP, header))
        done: int | None = None
        while done is None:
            key = (parse, self._receive())
            self._seen[key] = found, done = self._known.get(key) or _parsed(key[1], kind, parse)
            yield from found
        # No error: the table has never been used, or the link is there no more.
        raise_if(done not in (0, ENOENT, ENODEV), OSError, "rtnetlink dump {}: errno {}", kind + _GET, done)

    def _dump(self, kind: int, header: bytes, parse: Callable[[bytes], Found]) -> list[Found]:
        # links have no family, and addresses are asked for link by link: of all at once
        requests = [bytes([each]) + header[1:] for each in (_ANY if kind > RTM_NEWADDR else (socket.AF_UNSPEC,))]
        try:
            return [found for each in requests for found in self._found(kind, each, parse)]
        except OSError:  # an answer was lost: once more
            return [found for each in requests for found in self._found(kind, each, parse)]

    def all(self, kind: str, index: int = 0) -> list[Found]:
        """Every "link", "address" (or those of one link) or "rule" of the namespace. With the links a look at the
        kernel begins."""
        if kind == "link":
            self._known, self._seen = self._seen, {}
        _, number, _, header, parse = MESSAGES[kind]
        return self._dump(number, bytes(header.size - _INDEX.size) + _INDEX.pack(index), parse)

    def routes(self, table: int | None) -> list[Found]:
        """The routes of one table, or with None those of all tables that carry our protocol number."""
        if table is None:
            return self._dump(RTM_NEWROUTE, RTMSG.pack(0, 0, 0, 0, 0, PROTOCOL, 0, 0, 0), parse_route)
        return self._dump(RTM_NEWROUTE, bytes(RTMSG.size) + _U32.pack(8, RTA_TABLE, table), parse_route)

    def change(self, ops: list[Op], *, stop: bool = True) -> list[int | None]:
        """Hand `ops` to the kernel in order; an errno each, 0 for done, None for not tried or not known.

        With `stop`, sends no more after the first batch in which one failed. Never raises: what the kernel could
        not be asked counts as None, and the caller takes back everything that is not known to have failed.
        """
        results: list[int | None] = [None] * len(ops)
        for start in range(0, len(ops), _BATCH):
            batch, first = [pack(op) for op in ops[start : start + _BATCH]], self._sequence + 1
            self._sequence += len(batch)
            sent = [_message(at, kind, NLM_F_ACK | flags, body) for at, (kind, flags, body) in enumerate(batch, first)]
            try:
                self._socket.send(b"".join(sent))
                while results[start + len(batch) - 1] is None:  # they are answered in order
                    for _, number, body in _messages(self._receive()):
                        if first <= number <= self._sequence:
                            results[start + number - first] = _errno(body)
            except OSError:  # what was not answered stays None
                pass
            if stop and any(errno != 0 for errno in results[start : start + _BATCH]):
                break
        return results
