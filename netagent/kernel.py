"""The rtnetlink socket: dumps of the kernel's state, and batches of changes with one acknowledgement each."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from errno import EAFNOSUPPORT, EOPNOTSUPP
from itertools import groupby
from time import monotonic, sleep
from typing import TypeVar

from . import netlink, rtnetlink
from .claims import is_single
from .netfilter import Netfilter
from .netlink import (
    DUMP_ATTEMPTS,
    MAX_DATAGRAM,
    NETLINK_CAP_ACK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    Packed,
    Received,
)
from .operations import (
    TABLE_LOCAL,
    AddressAdd,
    AddressRemove,
    Change,
    ForwardedReplies,
    IPAddress,
    LinkDown,
    LinkMark,
    LinkUp,
    RouteRemove,
    RouteReplace,
)
from .rtnetlink import Address, Link, NextHop, NextHopObject, Route, Rule

NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP, NETLINK_NO_ENOBUFS, NETLINK_GET_STRICT_CHK = 1, 2, 5, 12
RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE = 7, 11
_BATCH = 128  # messages per send(), so that their acknowledgements fit into the buffer
JOIN_SECONDS = 1.0
"""Limit of the wait for the kernel's work on new IPv6 addresses, before they are removed."""
_ROUTE_DUMPS = 4  # of a family, if routes change during each: see Kernel._route_bodies
ROUTE_GROUPS = {socket.AF_INET: RTNLGRP_IPV4_ROUTE, socket.AF_INET6: RTNLGRP_IPV6_ROUTE}
"""Multicast group of the routes of each family."""
FAMILIES = tuple(ROUTE_GROUPS)

Object = TypeVar("Object")
JoinedAddresses = set[tuple[int, IPAddress]]
"""Link and IP of IPv6 addresses whose multicast groups the kernel has joined: see Kernel.change."""


class DumpError(OSError):
    """The kernel's state could not be read consistently."""


class Kernel:
    """The sockets that netagent was started with: its only access to the host's network namespace.

    `netfilter` is None unless ForwardedReplies="mark" is set; `mark_mask` is the operator's MarkMask=.
    """

    def __init__(self, sock: socket.socket, netfilter: Netfilter | None = None) -> None:
        self._socket, self._sequence = sock, 0
        self._group, self._is_changed = 0, False  # the netlink multicast group, and True after its first notification
        self.netfilter, self.mark_mask = netfilter, 0
        # The kernel has answered when send() returns. An answer that cannot be read then was lost, so a read never
        # has to wait, and ENOBUFS gives no further information.
        self._socket.setblocking(False)
        netlink.enlarge_buffers(self._socket)
        for option in (NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        # A netagent that was killed may have joined these, and left answers with the same sequence numbers.
        for group in ROUTE_GROUPS.values():
            self._socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, group)
        self._drain()

    def links(self) -> list[Link]:
        """Return every link of the namespace."""
        header = rtnetlink.IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return self._dump(rtnetlink.RTM_GETLINK, header, rtnetlink.decode_link)

    def addresses(self) -> list[Address]:
        """Return every address of the namespace."""
        header = rtnetlink.IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        found = self._dump(rtnetlink.RTM_GETADDR, header, rtnetlink.decode_address)
        return [each for each in found if each is not None]

    def routes(self) -> list[Route]:
        """Return the routes of all tables."""
        found = []
        for family, group in ROUTE_GROUPS.items():
            header = rtnetlink.RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            decoded = map(rtnetlink.decode_route, self._route_bodies(header, group))
            found += [route for route in decoded if route is not None]
        if all(route.hops[0].link or not route.nexthop for route in found):
            return found
        objects = self.hops_by_nexthop_id()
        return [replace(each, hops=objects.get(each.nexthop, each.hops)) for each in found]

    def hops_of_nexthop_objects(self) -> list[NextHop]:
        """Return the next hop of every nexthop object, also of those that no route uses.

        The kernel removes a nexthop object when its link is set down.
        """
        return [each.hop for each in self._nexthop_objects()]

    def _nexthop_objects(self) -> list[NextHopObject]:
        header = rtnetlink.NHMSG.pack(socket.AF_UNSPEC, 0, 0, 0)
        try:
            return self._dump(rtnetlink.RTM_GETNEXTHOP, header, rtnetlink.decode_nexthop)
        except OSError as error:
            if error.errno == EOPNOTSUPP:  # before Linux 5.3
                return []
            raise

    def hops_by_nexthop_id(self) -> dict[int, tuple[NextHop, ...]]:
        """Return the next hops of each nexthop object, by its id."""
        objects = self._nexthop_objects()
        single = {each.id: (each.hop,) for each in objects if not each.members}
        found = dict[int, tuple[NextHop, ...]](single)
        for each in objects:
            if hops := [hop for member in each.members for hop in single.get(member, ())]:
                found[each.id] = tuple(hops)
        return found

    def rules(self) -> list[Rule]:
        """Return the rules of IPv4 and IPv6."""
        found = []
        for family in FAMILIES:
            header = rtnetlink.FIB_RULE_HDR.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            found += self._dump(rtnetlink.RTM_GETRULE, header, rtnetlink.decode_rule)
        return [rule for rule in found if rule is not None]

    def routers(self) -> frozenset[tuple[int, IPAddress]]:
        """Return the link and address of each IPv6 neighbour that the kernel flags as a router."""
        header = rtnetlink.NDMSG.pack(socket.AF_INET6, 0, 0, 0, 0)
        found = self._dump(rtnetlink.RTM_GETNEIGH, header, rtnetlink.decode_router)
        return frozenset(each for each in found if each is not None)

    def static_neighbours(self) -> frozenset[tuple[int, int]]:
        """Return the links and IP versions that have neighbour entries of another program, also proxy entries."""
        found = []
        for family in FAMILIES:
            for flags in (0, rtnetlink.NTF_PROXY):
                header = rtnetlink.NDMSG.pack(family, 0, 0, flags, 0)
                found += self._dump(rtnetlink.RTM_GETNEIGH, header, rtnetlink.decode_static_neighbour)
        return frozenset(each for each in found if each is not None)

    def marks(self) -> tuple[LinkMark, ...] | None:
        """Return the marks of the table `cloud_network`: none if it is incomplete, None without the socket."""
        return None if self.netfilter is None else self.netfilter.marks(self.mark_mask)

    def _route_bodies(self, header: bytes, group: int) -> list[bytes]:
        """Return the bodies of a dump of routes. If routes change meanwhile, repeat it and return those of all dumps.

        A dump of routes can miss one that existed all the time, without NLM_F_DUMP_INTR: after an addition, the kernel
        starts again and skips as many routes as it has sent, although some of these were removed (fib6_dump_table;
        with IPv4 only among routes to the same first address, fn_trie_dump_leaf).
        """
        found = list[bytes]()
        for _ in range(_ROUTE_DUMPS):
            self._subscribe(group)
            try:
                bodies = self._bodies(rtnetlink.RTM_GETROUTE, header)
            finally:
                self._unsubscribe()
            found = list(dict.fromkeys(found + bodies)) if found else bodies
            if not self._is_changed:
                break
        self._drain()
        return found

    def _subscribe(self, group: int) -> None:
        """Join a netlink multicast group, to notice changes."""
        self._drain()
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._group, self._is_changed = group, False

    def _unsubscribe(self) -> None:
        """Leave the netlink multicast group, unless the first notification did that."""
        if self._group:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, self._group)
            self._group = 0

    def _dump(self, kind: int, header: bytes, decode: Callable[[bytes], Object]) -> list[Object]:
        """Return a complete dump."""
        return [decode(body) for body in self._bodies(kind, header)]

    def _bodies(self, kind: int, header: bytes) -> list[bytes]:
        """Return the bodies of a dump. Repeat a dump that was interrupted (NLM_F_DUMP_INTR) or is incomplete.

        With the boot option ipv6.disable=1, the kernel answers a dump for IPv6 with objects of other families, or with
        EAFNOSUPPORT.
        """
        family = header[0]  # the first byte of every header here and of its answers
        for _ in range(DUMP_ATTEMPTS):
            bodies = self._read_dump(kind, header)
            if bodies is not None:
                return [body for body in bodies if family in (socket.AF_UNSPEC, body[0])]
        raise DumpError(f"rtnetlink dump {kind}: interrupted {DUMP_ATTEMPTS} times by changes")

    def _read_dump(self, kind: int, header: bytes) -> list[bytes] | None:
        """Return the bodies of one dump, or None if it is inconsistent. Raises OSError if the kernel refuses it."""
        self._drain()
        self._sequence += 1
        self._socket.send(netlink.message(self._sequence, Packed(kind, NLM_F_DUMP, header)))
        bodies, consistent = list[bytes](), True
        try:
            for each in self._answers(self._sequence):
                consistent = consistent and not each.flags & NLM_F_DUMP_INTR
                if each.kind in (NLMSG_DONE, NLMSG_ERROR):
                    if each.errno not in (0, EAFNOSUPPORT):
                        raise DumpError(each.errno, f"rtnetlink dump {kind}")
                    return bodies if consistent else None
                bodies.append(each.body)
        except BlockingIOError:
            return None  # a datagram was lost
        return None

    def _answers(self, sequence: int) -> Iterator[Received]:
        """Yield the messages that answer a request. Raises BlockingIOError after the last."""
        while True:
            for each in netlink.messages(self._receive()):
                if each.sequence == sequence:
                    yield each

    def _drain(self) -> None:
        """Discard answers to earlier requests, and notifications."""
        while select.select([self._socket], [], [], 0)[0]:
            self._receive()

    def _receive(self) -> bytes:
        datagram, _, flags, (_, groups) = self._socket.recvmsg(MAX_DATAGRAM)
        if groups:  # a notification: further ones would only fill the buffer
            self._unsubscribe()
            self._is_changed = True
            return b""
        if flags & socket.MSG_TRUNC:
            raise DumpError(f"a netlink datagram of more than {MAX_DATAGRAM} bytes")
        return datagram

    def change(
        self, ops: Sequence[Change], *, stop: bool = True, joined: JoinedAddresses | None = None
    ) -> list[int | None]:
        """Carry out `ops` in order. Returns an errno for each operation that was sent: 0: done, None: not known.

        With `stop`, sends nothing after the first batch in which an operation failed. Raises no OSError: the caller
        rolls back every operation that was sent and is not known to have failed. A caller with many small changes
        passes the same `joined` each time, so that it need not be read again.
        """
        results: list[int | None] = [None] * len(ops)
        may_wait = True  # after a timeout, no more waits: each part would take JOIN_SECONDS
        joined = JoinedAddresses() if joined is None else joined
        for start, part in _batches(ops):
            may_wait = may_wait and self._wait_for_groups(part, joined)
            with contextlib.suppress(OSError):  # the errno of an unacknowledged operation stays None
                self._change_batch(part, start, results)
            joined.difference_update((op.link, op.interface.ip) for op in part if isinstance(op, AddressAdd))
            if any(isinstance(op, LinkUp | LinkDown) for op in part):
                joined.clear()
            end = start + len(part)
            if stop and any(errno != 0 for errno in results[start:end]):
                return results[:end]
        return results

    def _wait_for_groups(self, part: Sequence[Change], joined: JoinedAddresses) -> bool:
        """Wait until the kernel has joined the multicast groups of the IPv6 addresses that `part` removes.

        It joins the group of a new address a moment later (addrconf_dad_work), and adds the address's route of type
        local then. If the address is removed before, it leaves the group all the same: an address of another program
        with the same last 24 bits would lose the group, and neighbours would no longer find that address (RFC 4291,
        section 2.7.1). Does not wait for a link that is down, which leaves the groups of the addresses that it keeps.
        Returns False if some have no route after JOIN_SECONDS.
        """
        removals = [op for op in part if isinstance(op, AddressRemove) and op.interface.version == 6]
        waiting, end = {(op.link, op.interface.ip) for op in removals} - joined, monotonic() + JOIN_SECONDS
        while waiting and monotonic() < end:
            with contextlib.suppress(OSError, MemoryError):
                joined.update(self._joined_addresses())
                waiting -= joined
                links_up = {link.index for link in self.links() if link.up} if waiting else set()
                waiting = {(link, ip) for link, ip in waiting if link in links_up}
            if waiting:
                sleep(0.001)
        return not waiting

    def _joined_addresses(self) -> JoinedAddresses:
        """Return the link and the address of the kernel's IPv6 routes of type local, from table local or of a VRF."""
        kind, protocol = rtnetlink.RTN_LOCAL, rtnetlink.RTPROT_KERNEL
        header = rtnetlink.RTMSG.pack(socket.AF_INET6, 0, 0, 0, 0, protocol, 0, kind, 0)
        dump = self._dump(rtnetlink.RTM_GETROUTE, header, rtnetlink.decode_route)
        routes = [route for route in dump if route is not None and is_single(route.destination)]
        return {(route.hops[0].link, route.destination.network_address) for route in routes}

    def _change_batch(self, part: Sequence[Change], start: int, results: list[int | None]) -> None:
        """Send one batch and put the errnos into `results`."""
        if isinstance(part[0], ForwardedReplies):
            netfilter = self.netfilter
            done = EOPNOTSUPP if netfilter is None else netfilter.replace(part[0].marks, self.mark_mask)
            results[start] = done
            return
        first = self._sequence + 1
        self._sequence += len(part)
        batch = []
        for sequence, op in enumerate(part, first):
            packed = rtnetlink.encode(op)
            batch.append(netlink.message(sequence, Packed(packed.kind, packed.flags | NLM_F_ACK, packed.body)))
        self._socket.send(b"".join(batch))
        while results[start + len(part) - 1] is None:  # the kernel acknowledges in order
            for each in netlink.messages(self._receive()):
                if first <= each.sequence <= self._sequence and each.kind == NLMSG_ERROR:
                    results[start + each.sequence - first] = each.errno


def split_before_removals(ops: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Yield parts of `ops`, in which no address or local range is removed or replaced after one was added.

    With one that could not be added, the removal of another could remove routes of other programs, or leave a rule
    without its address. So the answer to the addition must be known before. Nor is an address removed after a link was
    set up: see Kernel._wait_for_groups.
    """
    start, has_addition = 0, False
    for at, op in enumerate(ops):
        is_range = isinstance(op, RouteReplace | RouteRemove) and op.table == TABLE_LOCAL
        if has_addition and (is_range or isinstance(op, AddressRemove)):
            yield ops[start:at]
            start, has_addition = at, False
        is_addition = isinstance(op, AddressAdd | LinkUp) or (is_range and isinstance(op, RouteReplace))
        has_addition = has_addition or is_addition
    yield ops[start:]


def _batches(ops: Sequence[Change]) -> Iterator[tuple[int, Sequence[Change]]]:
    """Yield batches of `ops` with their positions: at most _BATCH for rtnetlink, or one for nfnetlink.

    The kernel carries out a whole batch, even if an operation fails: see split_before_removals.
    """
    start = 0
    for part in split_before_removals(ops):
        for is_table, group in groupby(part, lambda op: isinstance(op, ForwardedReplies)):
            run, size = list(group), 1 if is_table else _BATCH
            for at in range(0, len(run), size):
                yield start + at, run[at : at + size]
            start += len(run)
