"""What the fetcher asks of rtnetlink: whole dumps and single questions, none of which needs or uses privilege.

Read by hand: pyroute2 costs 20 MB and 0.1 s of start-up, and 3 s for the 3,000 addresses and 6,000 rules of a large
instance, which take 0.1 s here. Tests hold what is read against pyroute2's reading of the same kernel. Names and
layouts are of linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/fib_rules.h and
linux/neighbour.h.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Self

NLMSGHDR = Struct("=IHHII")  # struct nlmsghdr: len, type, flags, seq, pid
NLMSGERR = Struct("=i")  # what struct nlmsgerr and the end of a dump begin with: 0, or minus an errno
RTATTR = Struct("=HH")  # struct rtattr: len, type
IFINFOMSG = Struct("=BxHiII")  # family, pad, type, index, flags, change
IFADDRMSG = Struct("=BBBBI")  # family, prefixlen, flags, scope, index
RTMSG = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
FIB_RULE_HDR = RTMSG  # the same sizes: family, dst_len, src_len, tos, table, res1, res2, action, flags
NDMSG = Struct("=B3xiHBB")  # family, pad, ifindex, state, flags, type
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETRULE = 18, 22, 26, 30, 34

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 1, 0x300, 0x10
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_NLA_TYPE_MASK = 0x3FFF
_LARGEST = 1 << 16  # bytes of a datagram: the kernel makes dumps of 32 KiB
_DUMP_TRIES = 5


class Part(NamedTuple):
    """A datagram of a dump, and what it says."""

    datagram: bytes
    bodies: list[bytes]
    interrupted: bool
    end: int | None  # 0, or minus an errno; None if more is to come


class Rtnetlink:
    """A socket for questions. Errors are OSError: with the kernel's errno, or EINTR, or what was lost on the way.

    One that is kept for `begin` after `begin` asks the same questions with the same numbers. What the kernel answers in
    the very same bytes is not taken apart again. After an error it is of no more use.
    """

    def __init__(self) -> None:
        # rtnetlink has answered when send() returns: what is not there to be read then was lost and never comes
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, 0)
        self._sequence = 0
        self._known: dict[int, list[Part]] = {}  # by sequence number
        # the kernel looks at all of a question, and answers no other: RTM_GETROUTE without what is only cached
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def begin(self) -> None:
        """Ask the first question again; all that was asked has been answered."""
        self._sequence = 0

    def close(self) -> None:
        """Of no more use."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def dump(self, request: int, header: bytes) -> list[bytes]:
        """The bodies of all messages. A dump that the kernel says was interrupted by a change is taken again."""
        for _ in range(_DUMP_TRIES):
            self._send(request, _NLM_F_DUMP, header)
            found, whole = self._dumped(request - 2)  # RTM_GETx answers RTM_NEWx
            if whole:
                return found
        raise InterruptedError(errno.EINTR, f"dump {request} interrupted by changes {_DUMP_TRIES} times")

    def _dumped(self, answer: int) -> tuple[list[bytes], bool]:
        """What a dump consists of, and whether nothing changed meanwhile."""
        known, parts = self._known.get(self._sequence, []), list[Part]()
        while not parts or parts[-1].end is None:
            before = known[len(parts)] if len(parts) < len(known) else None
            datagram, truncated = self._receive()
            parts.append(before if before and before.datagram == datagram else self._part(datagram, truncated, answer))
        if error := parts[-1].end:
            raise OSError(-error, os.strerror(-error))
        self._known[self._sequence] = parts
        return [body for part in parts for body in part.bodies], not any(part.interrupted for part in parts)

    def _part(self, datagram: bytes, truncated: bool, answer: int) -> Part:
        bodies, interrupted, end = list[bytes](), 0, None
        for kind, flags, body in self._messages(datagram, truncated):
            interrupted |= flags & _NLM_F_DUMP_INTR
            if kind == answer:
                bodies.append(body)
            elif kind in (_NLMSG_ERROR, _NLMSG_DONE):
                (end,) = NLMSGERR.unpack_from(body)
        return Part(datagram, bodies, bool(interrupted), end)

    def ask(self, request: int, body: bytes) -> bytes | None:
        """The body of the one message that answers; None when it is an error: there is no such entry, route or link."""
        self._send(request, 0, body)
        while True:
            for kind, _, answer in self._messages(*self._receive()):
                if kind in (request - 2, _NLMSG_ERROR):
                    return None if kind == _NLMSG_ERROR else answer

    def _send(self, request: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        size = NLMSGHDR.size + len(body)
        self._socket.send(NLMSGHDR.pack(size, request, _NLM_F_REQUEST | flags, self._sequence, 0) + body)

    def _receive(self) -> tuple[bytes, bool]:
        """The next datagram, and whether it was longer."""
        datagram, _, state, _ = self._socket.recvmsg(_LARGEST)
        return datagram, bool(state & socket.MSG_TRUNC)

    def _messages(self, datagram: bytes, truncated: bool) -> list[tuple[int, int, bytes]]:
        """(type, flags, body) of each of its messages that belongs to the last question."""
        found = []
        offset, end = 0, 0 if truncated else len(datagram)
        while offset + 16 <= end:
            length, kind, flags, sequence, _ = NLMSGHDR.unpack_from(datagram, offset)
            if not 16 <= length <= end - offset:
                break
            if sequence == self._sequence:
                found.append((kind, flags, datagram[offset + 16 : offset + length]))
            offset += (length + 3) & ~3
        if offset < len(datagram):
            raise OSError(errno.EMSGSIZE, "a netlink datagram that is not whole")
        return found


def attributes(message: bytes, offset: int) -> dict[int, bytes]:
    """{type: content} of those from `offset` on."""
    found = {}
    end = len(message) - 3
    while offset < end:
        length, kind = RTATTR.unpack_from(message, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = message[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def number(packed: bytes | None, default: int = 0) -> int:
    """An attribute of one number, in the host's byte order; `default` where it is absent."""
    return default if packed is None else int.from_bytes(packed, sys.byteorder)


def text(packed: bytes) -> str:
    """An attribute of text."""
    return packed.rstrip(b"\0").decode(errors="replace")


def attribute(kind: int, content: bytes) -> bytes:
    """One to send; its content has a multiple of four bytes."""
    return RTATTR.pack(4 + len(content), kind) + content
