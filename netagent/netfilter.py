"""The nfnetlink socket: replaces the table of ForwardedReplies="mark" in one transaction, and reads it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from errno import EINVAL, ENOENT

from . import netlink, nftables
from .claims import mark_bits
from .netlink import Packed, Received
from .operations import LinkMark


class NetfilterError(OSError):
    """The table could not be read."""


class Netfilter:
    """The nfnetlink socket that netagent was started with. It sends the messages of `nftables` and no others."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._sequence = sock, 0
        self._socket.setblocking(False)  # the kernel has answered when send() returns
        netlink.enlarge_buffers(self._socket)
        self._socket.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_CAP_ACK, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def replace(self, marks: Sequence[LinkMark], mask: int) -> int | None:
        """Replace the table, or remove it if there are no marks. Returns an errno: 0: done, None: not known.

        Never raises OSError: the caller rolls back unless the operation is known to have failed.
        """
        if any(not each.mark & mark_bits(mask) or each.mark & ~mark_bits(mask) for each in marks):
            return EINVAL  # the transaction was made with another MarkMask=
        try:
            found = self._exchange(nftables.replacement(marks, mask))
        except OSError:
            return None
        errnos = [each.errno for each in found if each.kind == netlink.NLMSG_ERROR]
        return next((errno for errno in errnos if errno), 0) if errnos else None

    def marks(self, mask: int) -> tuple[LinkMark, ...]:
        """Return the marks of the table; none if it is missing, incomplete or dormant. Raises NetfilterError."""
        answers = self._exchange(nftables.GET_TABLE_AND_BASE_CHAINS)
        for each in answers:
            if each.kind == netlink.NLMSG_ERROR and each.errno not in (0, ENOENT):
                raise NetfilterError(each.errno, "nftables: read the table cloud_network")
        if not nftables.is_active([each.body for each in answers if each.kind != netlink.NLMSG_ERROR]):
            return ()
        found = (nftables.decode_rule(body) for body in self._dump(nftables.DUMP_RULES))
        return nftables.marks_of([rule for rule in found if rule is not None], mask)

    def _dump(self, request: Packed) -> list[bytes]:
        """Return the bodies of a complete dump. Repeat a dump that was interrupted."""
        for _ in range(netlink.DUMP_ATTEMPTS):
            found = self._exchange([Packed(request.kind, netlink.NLM_F_DUMP, request.body)])
            interrupted = any(each.flags & netlink.NLM_F_DUMP_INTR for each in found)
            if not interrupted and found and found[-1].kind == netlink.NLMSG_DONE:
                if found[-1].errno:
                    raise NetfilterError(found[-1].errno, "nftables: read the rules of the table cloud_network")
                return [each.body for each in found[:-1]]
        raise NetfilterError(f"nftables: the rules changed {netlink.DUMP_ATTEMPTS} times while they were read")

    def _exchange(self, messages: Sequence[Packed]) -> list[Received]:
        """Send messages as one datagram, and return the answers. Raises OSError."""
        self._receive(first=0)  # discard answers to an earlier netagent
        first = self._sequence + 1
        self._sequence += len(messages)
        packed = (netlink.message(first + at, each) for at, each in enumerate(messages))
        self._socket.send(b"".join(packed))
        return self._receive(first)

    def _receive(self, first: int) -> list[Received]:
        """Return all messages that can be read now and have a sequence number from `first` on."""
        found = list[Received]()
        while True:
            try:
                datagram = self._socket.recv(netlink.MAX_DATAGRAM)
            except BlockingIOError:
                return [each for each in found if each.sequence >= first]
            found += netlink.messages(datagram)
