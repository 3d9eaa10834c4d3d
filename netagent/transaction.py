"""One change of the kernel, applied completely or not at all, and rolled back unless it is confirmed.

The undo operations are computed from the kernel's state and written to the ledger before the kernel is changed. Undoing
an operation that was never carried out does no harm: routes and rules are removed by protocol number, addresses only if
they are still owned (before Linux 5.18: if they are still there). Objects that other programs depend on meanwhile stay,
and are reported. So is what must not be added again: the host or the configuration may have changed since.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

from .addresses import OwnedAddresses
from .kernel import Kernel
from .ledger import MAX_GATEWAYS, Entry, Ledger
from .operations import (
    AddressAdd,
    AddressRemove,
    Change,
    ForwardedReplies,
    IPAddress,
    IPInterface,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from .protocol import HAS_IFA_PROTO, Remaining
from .rollback import Rollback, as_addition, failure, is_done
from .rtnetlink import Address, Link
from .view import View


@dataclass(frozen=True, slots=True)
class Outcome:
    """The errno of every operation (0: done; None: not tried or not known), and the undo operations that failed."""

    errnos: tuple[int | None, ...]
    failed: int | None = None  # position of the first failure; all but `remaining` was rolled back
    remaining: tuple[Remaining, ...] = ()

    @property
    def reason(self) -> str:
        """The error of the operation that failed."""
        errno = self.errnos[self.failed] if self.failed is not None else None
        return os.strerror(errno) if errno else "the kernel could not be asked"


@dataclass(frozen=True, slots=True)
class Plan:
    """The operations of a request, and what their rollback needs.

    `inverses` has the inverse of each, in the same order. `lost_routes` are owned ones that the kernel removes with
    addresses; a rollback adds them again, after the addresses. `links` are the host's: a rollback changes no other link
    that gets the ifindex of one.
    """

    ops: tuple[Operation, ...]
    inverses: tuple[Change, ...]
    lost_routes: tuple[RouteReplace, ...] = ()
    links: tuple[Link, ...] = ()

    def identities(self) -> dict[int, str]:
        """Return the identity of each link that the rollback changes, by ifindex."""
        used = {op.link for op in self.inverses if not isinstance(op, RuleAdd | RuleRemove | ForwardedReplies)}
        used |= {op.link for op in self.lost_routes}
        used |= {mark.link for op in self.inverses if isinstance(op, ForwardedReplies) for mark in op.marks}
        return {link.index: link.identity for link in self.links if link.index in used}


class Transaction:
    """The only transaction that can be open: applied and not confirmed."""

    def __init__(self, kernel: Kernel, ledger: Ledger, read_view: Callable[[], View]) -> None:
        """`read_view` returns the kernel's state, and raises OSError if it cannot be read."""
        self._kernel, self._ledger, self._read_view = kernel, ledger, read_view
        self._is_applied = False  # True if this process has carried out all operations of the open transaction
        self._gateways: tuple[IPAddress, ...] = ()  # of the routes that the open transaction added

    @property
    def open_id(self) -> str | None:
        """Id of the open transaction."""
        return self._ledger.entry.request

    def apply(self, request: str, plan: Plan) -> Outcome:
        """Carry out a plan. If one operation fails, undo all.

        Raises OSError if the ledger cannot be written; then the kernel is not changed.
        """
        ops, inverses, lost_routes = plan.ops, plan.inverses, plan.lost_routes
        entry = self._ledger.entry
        may_have_table = entry.may_have_table or any(isinstance(op, ForwardedReplies) for op in ops)
        back = (*reversed(inverses), *lost_routes)
        links = plan.identities()
        self._ledger.write(replace(entry, request=request, undo=back, may_have_table=may_have_table, links=links))
        routes = (op for op in ops if isinstance(op, RouteReplace))
        self._is_applied, self._gateways = False, tuple(op.gateway for op in routes if op.gateway is not None)
        is_new = (isinstance(each, RouteRemove) for each in inverses)
        sent = tuple(self._kernel.change([as_addition(op) if new else op for op, new in zip(ops, is_new, strict=True)]))
        failed = next((at for at, errno in enumerate(sent) if errno != 0), None)
        if failed is None:
            self._is_applied = True
            return Outcome(sent)
        to_undo = [each for errno, each in zip(sent, inverses[: len(sent)], strict=True) if errno in (0, None)]
        errnos = (*sent, *(None for _ in ops[len(sent) :]))
        return Outcome(errnos, failed, self._undo([*reversed(to_undo), *lost_routes]))

    def roll_back(self) -> tuple[Remaining, ...]:
        """Undo the open transaction. Returns the operations that could not be undone, normally none."""
        return self._undo(self._ledger.entry.undo)

    def commit(self) -> None:
        """Keep the open transaction. Raises OSError if the ledger cannot be written or the kernel cannot be read."""
        entry = self._ledger.entry
        removed = [op.gateway for op in entry.undo if isinstance(op, RouteReplace) and op.gateway is not None]
        gateways = tuple(dict.fromkeys((*entry.gateways, *self._gateways, *removed)))
        remembered = gateways[:MAX_GATEWAYS]  # the earliest: a client cannot displace those from boot
        self._ledger.write(Entry(owned=self._owned(entry), gateways=remembered, may_have_table=entry.may_have_table))

    def _owned(self, entry: Entry) -> OwnedAddresses:
        """Return the addresses that are owned after the commit; none if the kernel has IFA_PROTO.

        An address that the request added and removed again is not owned: another program may add it later. If the
        request removed one prefix length of an address and the link has it with another, it stays owned.
        """
        if HAS_IFA_PROTO:
            return frozenset()
        there = dict[tuple[int, IPInterface], bool]()
        for op in reversed(entry.undo):  # in the order of the request
            if isinstance(op, AddressAdd | AddressRemove):
                there[op.link, op.interface] = isinstance(op, AddressRemove)
        added = {(link, interface.ip) for (link, interface), is_there in there.items() if is_there}
        gone = {place for place, is_there in there.items() if not is_there}
        return without(entry.owned - added, gone, self._kernel.addresses) | added

    def remove_table(self) -> int | None:
        """Remove the nftables table, without an undo. Returns an errno: 0: done, None: not known."""
        [errno] = self._kernel.change([ForwardedReplies(())])
        if errno == 0:
            self._ledger.shorten(replace(self._ledger.entry, may_have_table=False))
        return errno

    def _undo(self, ops: Sequence[Change]) -> tuple[Remaining, ...]:
        rollback = Rollback(self._kernel, self._read_view, self._ledger.entry.links, all_applied=self._is_applied)
        remaining = rollback.undo(ops)
        self._close(remaining)
        return tuple(remaining)

    def _close(self, left: Sequence[Remaining]) -> None:
        """Close the transaction. Addresses that could not be removed stay owned; lost are those not restored."""
        entry = self._ledger.entry
        kept = {(each.op.link, each.op.interface.ip) for each in left if isinstance(each.op, AddressRemove)}
        lost = {(each.op.link, each.op.interface) for each in left if isinstance(each.op, AddressAdd)}
        owned = without(entry.owned, lost, self._present_addresses) | kept
        self._ledger.shorten(replace(entry, request=None, undo=(), links={}, owned=owned))

    def _present_addresses(self) -> list[Address]:
        """Return the kernel's addresses; none if it cannot be read: the kernel has been changed already."""
        with contextlib.suppress(OSError, MemoryError):
            return self._kernel.addresses()
        return []

    def remove(self, ops: Sequence[Operation]) -> tuple[list[int | None], list[Remaining]]:
        """Carry out removals, without an undo. Returns the errnos, and the removals that failed."""
        errnos = self._kernel.change(ops, stop=False)
        tried = list(zip(ops, errnos, strict=True))
        failed = [(op, errno) for op, errno in tried if not is_done(op, errno)]
        gone = {(op.link, op.interface) for op, errno in tried if isinstance(op, AddressRemove) and is_done(op, errno)}
        entry = self._ledger.entry
        owned = without(entry.owned, gone, self._present_addresses)
        if owned != entry.owned:
            self._ledger.shorten(replace(entry, owned=owned))
        return errnos, [failure(op, errno) for op, errno in failed]


def without(
    owned: OwnedAddresses, gone: Set[tuple[int, IPInterface]], read_addresses: Callable[[], Sequence[Address]]
) -> OwnedAddresses:
    """Return `owned` without `gone`. An address that the link has with another prefix length stays owned.

    `read_addresses` returns the present ones. An IPv6 address has one length: then another program has added it again.
    """
    forgotten = owned & {(link, interface.ip) for link, interface in gone}
    if forgotten:
        stay = (each for each in read_addresses() if (each.link, each.interface) not in gone)
        forgotten -= {(each.link, each.ip) for each in stay if each.ip.version == 4}
    return owned - forgotten
