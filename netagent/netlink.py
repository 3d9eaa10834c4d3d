"""netlink messages and attributes, as rtnetlink and nfnetlink both use them.

Names and layouts are those of linux/netlink.h. Numbers are in the host's byte order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from socket import SOL_SOCKET, socket
from struct import Struct

NLMSGHDR = Struct("=IHHII")  # struct nlmsghdr: len, type, flags, seq, pid
NLATTR = Struct("=HH")  # struct nlattr: len, type
U32, S32 = Struct("=I"), Struct("=i")

SOL_NETLINK, NETLINK_CAP_ACK = 270, 10
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
BUFFER_BYTES = 1 << 18  # for 128 acknowledgements, of less than 1 KiB each, and for a table of 64 marks (101 KiB)
MAX_DATAGRAM = 1 << 16  # bytes: the kernel makes dumps of 32 KiB
DUMP_ATTEMPTS = 10  # for a dump that changes while it is read, or that loses a datagram
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x01, 0x04, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x800, 0x300
_NLA_TYPE_MASK = 0x3FFF

Attributes = dict[int, bytes]


def enlarge_buffers(sock: socket) -> None:
    """Set a netlink socket's buffers to BUFFER_BYTES; net.core.rmem_default and wmem_default may be too small."""
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        with contextlib.suppress(OSError):  # EPERM, if CAP_NET_ADMIN is that of a user namespace
            sock.setsockopt(SOL_SOCKET, option, BUFFER_BYTES)


@dataclass(frozen=True, slots=True)
class Packed:
    """A message without its struct nlmsghdr."""

    kind: int  # RTM_*, or the subsystem and message of nfnetlink
    flags: int  # NLM_F_*, in addition to REQUEST
    body: bytes


def message(sequence: int, packed: Packed) -> bytes:
    """Return a whole request."""
    length = NLMSGHDR.size + len(packed.body)
    return NLMSGHDR.pack(length, packed.kind, NLM_F_REQUEST | packed.flags, sequence, 0) + packed.body


@dataclass(frozen=True, slots=True)
class Received:
    """One message of a datagram."""

    kind: int
    flags: int
    sequence: int
    body: bytes

    @property
    def errno(self) -> int:
        """The errno of NLMSG_ERROR (struct nlmsgerr) and of NLMSG_DONE; 0 for success."""
        return -int(S32.unpack_from(self.body)[0]) if len(self.body) >= S32.size else 0


def messages(datagram: bytes) -> Iterator[Received]:
    """Yield the messages of a datagram."""
    offset = 0
    while offset + NLMSGHDR.size <= len(datagram):
        length, kind, flags, sequence, _ = NLMSGHDR.unpack_from(datagram, offset)
        if length < NLMSGHDR.size:
            return
        yield Received(kind, flags, sequence, datagram[offset + NLMSGHDR.size : offset + length])
        offset += (length + 3) & ~3


def pack_attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute with its header and padding."""
    return NLATTR.pack(NLATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of the attributes from `offset` on."""
    while offset + NLATTR.size <= len(data):
        length, kind = NLATTR.unpack_from(data, offset)
        yield kind & _NLA_TYPE_MASK, data[offset + NLATTR.size : offset + length]
        offset += max((length + 3) & ~3, NLATTR.size)


def parse_attributes(data: bytes, offset: int = 0) -> Attributes:
    """Return the attributes from `offset` on, by type."""
    return dict(attributes(data, offset))
