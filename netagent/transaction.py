"""One change of the kernel, applied completely or not at all, and rolled back unless it is confirmed.

The undo operations are computed from the kernel's state and written to the ledger before the kernel is changed. Undoing
an operation that was never carried out does no harm: routes and rules are removed by protocol number, addresses only if
they are still owned (before Linux 5.18: if they are still there). Objects that other programs depend on meanwhile stay,
and are reported. So is what must not be added again: the host or the configuration may have changed since.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH

from .addresses import OwnedAddresses
from .kernel import Kernel
from .ledger import MAX_GATEWAYS, Entry, Ledger
from .operations import (
    AddressAdd,
    AddressRemove,
    ForwardedReplies,
    IPAddress,
    IPInterface,
    LinkDown,
    LinkMtu,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
    Undo,
)
from .policy import Refusal, check_flush, check_one
from .protocol import MARKS_ADDRESSES, Remaining
from .rollback import RollbackState, as_addition, parts, without_detours
from .rtnetlink import Link
from .rules import asks_main, rule_key
from .view import View

ALREADY_UNDONE = (0, ENOENT, ESRCH, EADDRNOTAVAIL, EEXIST, ENODEV)
"""The object was removed already (or its link), or added already."""
UNDO_ATTEMPTS = 3
_GUARDED = (AddressAdd, AddressRemove, ForwardedReplies, LinkDown, LinkMtu, RouteReplace)
"""Operations that are undone only after a check for objects that other programs have added since."""


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
class Change:
    """The operations of a request, and what their rollback needs.

    `undo` has the inverse of each, in the same order. `lost_routes` are owned ones that the kernel removes with
    addresses; a rollback adds them again, after the addresses. `links` are the host's: a rollback changes no other link
    that gets the ifindex of one.
    """

    ops: tuple[Operation, ...]
    undo: tuple[Undo, ...]
    lost_routes: tuple[RouteReplace, ...] = ()
    links: tuple[Link, ...] = ()

    def identities(self) -> dict[int, str]:
        """Return the identity of each link that the rollback changes, by ifindex."""
        used = {op.link for op in self.undo if not isinstance(op, RuleAdd | RuleRemove | ForwardedReplies)}
        used |= {op.link for op in self.lost_routes}
        used |= {mark.link for op in self.undo if isinstance(op, ForwardedReplies) for mark in op.marks}
        return {link.index: link.identity for link in self.links if link.index in used}


class Transaction:
    """The only transaction that can be open: applied and not confirmed."""

    def __init__(self, kernel: Kernel, ledger: Ledger, look: Callable[[], View]) -> None:
        """`look` returns the kernel's state, and raises OSError if it cannot be read."""
        self._kernel, self._ledger, self._look = kernel, ledger, look
        self._is_applied = False  # True if this process has carried out all operations of the open transaction
        self._gateways: tuple[IPAddress, ...] = ()  # of the routes that the open transaction added

    @property
    def request(self) -> str | None:
        """Id of the open transaction."""
        return self._ledger.entry.request

    def apply(self, request: str, change: Change) -> Outcome:
        """Carry out a change. If one operation fails, undo all.

        Raises OSError if the ledger cannot be written; then the kernel is not changed.
        """
        ops, undo, lost_routes = change.ops, change.undo, change.lost_routes
        entry = self._ledger.entry
        table = entry.table or any(isinstance(op, ForwardedReplies) for op in ops)
        back = (*reversed(undo), *lost_routes)
        self._ledger.write(replace(entry, request=request, undo=back, table=table, links=change.identities()))
        routes = (op for op in ops if isinstance(op, RouteReplace))
        self._is_applied, self._gateways = False, tuple(op.gateway for op in routes if op.gateway is not None)
        is_new = (isinstance(each, RouteRemove) for each in undo)
        sent = tuple(self._kernel.change([as_addition(op) if new else op for op, new in zip(ops, is_new, strict=True)]))
        failed = next((at for at, errno in enumerate(sent) if errno != 0), None)
        if failed is None:
            self._is_applied = True
            return Outcome(sent)
        done = [each for errno, each in zip(sent, undo[: len(sent)], strict=True) if errno in (0, None)]
        errnos = (*sent, *(None for _ in ops[len(sent) :]))
        return Outcome(errnos, failed, self._undo((*reversed(done), *lost_routes)))

    def roll_back(self) -> tuple[Remaining, ...]:
        """Undo the open transaction. Returns the operations that could not be undone, normally none."""
        return self._undo(self._ledger.entry.undo)

    def commit(self) -> None:
        """Keep the open transaction. Raises OSError if the ledger cannot be written or the kernel cannot be read."""
        entry = self._ledger.entry
        removed = [op.gateway for op in entry.undo if isinstance(op, RouteReplace) and op.gateway is not None]
        gateways = tuple(dict.fromkeys((*entry.gateways, *self._gateways, *removed)))
        remembered = gateways[:MAX_GATEWAYS]  # the earliest: a client cannot displace those from boot
        self._ledger.write(Entry(owned=self._owned(entry), gateways=remembered, table=entry.table))

    def _owned(self, entry: Entry) -> OwnedAddresses:
        """Return the addresses that are owned after the commit; none if the kernel marks them itself.

        An address that the request added and removed again is not owned: another program may add it later. If the
        request removed one prefix length of an address and the link has it with another, it stays owned.
        """
        if MARKS_ADDRESSES:
            return frozenset()
        there = dict[tuple[int, IPInterface], bool]()
        for op in reversed(entry.undo):  # in the order of the request
            if isinstance(op, AddressAdd | AddressRemove):
                there[op.link, op.interface] = isinstance(op, AddressRemove)
        added = {(link, interface.ip) for (link, interface), is_there in there.items() if is_there}
        removed = {(link, interface.ip) for link, interface in there} - added
        if removed:
            left = (each for each in self._kernel.addresses() if (each.link, each.interface) not in there)
            removed -= {(each.link, each.ip) for each in left}
        return (entry.owned - removed) | added

    def remove_table(self) -> int | None:
        """Remove the nftables table, without an undo. Returns an errno: 0: done, None: not known."""
        [errno] = self._kernel.change([ForwardedReplies(())])
        if errno == 0:
            self._ledger.shorten(replace(self._ledger.entry, table=False))
        return errno

    def _undo(self, ops: tuple[Undo, ...]) -> tuple[Remaining, ...]:
        """Carry out `ops`, except those that must not be. Rules are added last, when their addresses are back."""
        rules = sorted((op for op in ops if isinstance(op, RuleAdd)), key=asks_main, reverse=True)  # others need it
        remaining = self._undo_parts([op for op in ops if not isinstance(op, RuleAdd)])
        if rules:
            pending, refused = self._acceptable(rules)
            remaining += [*refused, *self._carry_out(pending)]
        self._close(remaining)
        return tuple(remaining)

    def _carry_out(self, ops: Sequence[Undo]) -> list[Remaining]:
        """Carry out `ops`, and retry those that fail. Returns those that still do."""
        failed: list[tuple[Undo, int | None]] = [(op, None) for op in ops]
        for _ in range(UNDO_ATTEMPTS):
            errnos = self._kernel.change([op for op, _ in failed], stop=False)
            tried = [(op, errno) for (op, _), errno in zip(failed, errnos, strict=True)]
            failed = [(op, errno) for op, errno in tried if errno not in ALREADY_UNDONE]
        return [_failure(op, errno) for op, errno in failed]

    def _acceptable(self, rules: Sequence[RuleAdd]) -> tuple[list[Undo], list[Remaining]]:
        """Return the rules that a request could add now, and the others with the reasons."""
        with contextlib.suppress(MemoryError):
            view = self._read()
            if view is not None:
                missing = [op for op in dict.fromkeys(rules) if rule_key(op) not in view.rules.own]
                pending, refused = _split_by_policy(missing, check_one, view)
                return [*pending], refused
        return [], [_failure(op, None) for op in rules]

    def _close(self, left: Sequence[Remaining]) -> None:
        """Close the transaction. Addresses that could not be removed stay owned."""
        entry = self._ledger.entry
        kept = {(each.op.link, each.op.interface.ip) for each in left if isinstance(each.op, AddressRemove)}
        lost = {(each.op.link, each.op.interface.ip) for each in left if isinstance(each.op, AddressAdd)}
        self._ledger.shorten(replace(entry, request=None, undo=(), links={}, owned=(entry.owned - lost) | kept))

    def _undo_parts(self, ops: Sequence[Undo]) -> list[Remaining]:
        """Carry out `ops` in parts, except those that objects of other programs now prevent. Returns the others."""
        if not any(isinstance(op, _GUARDED) for op in ops):
            return self._carry_out(ops)
        state = self._rollback_state(ops)
        if state is None:  # without the kernel's answer their dependents are unknown
            guarded = [op for op in ops if isinstance(op, _GUARDED)]
            left = self._carry_out([op for op in ops if not isinstance(op, _GUARDED)])
            return [*(_failure(op, None) for op in guarded), *left]
        remaining = list[Remaining]()
        for part in parts(without_detours(ops)):
            pending = list[Undo]()
            for op in part:
                if isinstance(op, AddressRemove) and not state.is_still_owned(op):
                    continue
                if obstacle := state.obstacle(op):
                    remaining.append(Remaining(op, obstacle))
                    continue
                pending.append(state.exact(op))
                state.record(op)
            failed = self._carry_out(pending)
            for each in failed:
                if isinstance(each.op, AddressAdd):
                    state.forget(each.op)  # later removals must not count on this address
            remaining += failed
        return remaining

    def _rollback_state(self, ops: Sequence[Undo]) -> RollbackState | None:
        """Return the kernel's state for a rollback; None if it cannot be read, or does not fit into memory."""
        removed = {(op.table, op.destination) for op in ops if isinstance(op, RouteRemove)}
        with contextlib.suppress(MemoryError):
            view = self._read()
            if view is not None:
                return RollbackState(view, self._is_applied, self._ledger.entry.links, removed)
        return None

    def _read(self) -> View | None:
        """Return the kernel's state; None if it cannot be read."""
        for _ in range(UNDO_ATTEMPTS):
            with contextlib.suppress(OSError, MemoryError):
                return self._look()
        return None

    def remove(self, ops: Sequence[Operation]) -> tuple[list[int | None], list[Remaining]]:
        """Carry out removals, without an undo. Returns the errnos, and the removals that failed."""
        errnos = self._kernel.change(ops, stop=False)
        tried = list(zip(ops, errnos, strict=True))
        failed = [(op, errno) for op, errno in tried if errno not in ALREADY_UNDONE]
        gone = {
            (op.link, op.interface.ip)
            for op, errno in tried
            if isinstance(op, AddressRemove) and errno in ALREADY_UNDONE
        }
        entry = self._ledger.entry
        if entry.owned & gone:
            self._ledger.shorten(replace(entry, owned=entry.owned - gone))
        return errnos, [_failure(op, errno) for op, errno in failed]


def _failure(op: Undo, errno: int | None) -> Remaining:
    return Remaining(op, os.strerror(errno) if errno else "the kernel could not be asked", errno)


def _split_by_policy(
    ops: Iterable[Operation], check: Callable[[Operation, View], object], view: View
) -> tuple[list[Operation], list[Remaining]]:
    """Return the operations that `check` accepts, and the refused ones with the reasons."""
    accepted, refused = list[Operation](), list[Remaining]()
    for op in ops:
        try:
            check(op, view)
        except Refusal as refusal:
            refused.append(Remaining(op, refusal.reason))
        else:
            accepted.append(op)
    return accepted, refused


def removals(view: View) -> tuple[list[Operation], list[Remaining]]:
    """Return the removals of all owned objects, the last added address first, and the refused removals.

    Of an IPv6 route with next hops of other programs, too, the removal of every next hop is tried: the kernel compares
    the protocol of each.
    """
    ops, remaining = _split_by_policy(_owned(view), check_flush, view)
    shared = [route for route in view.snapshot.routes if route.is_shared]
    ops += [RouteRemove(each.table, hop.link, each.destination, hop.gateway) for each in shared for hop in each.hops]
    return ops, remaining


def _owned(view: View) -> list[Operation]:
    found: list[Operation] = list(view.rules.removals())
    found += [
        RouteRemove(table, route.link, destination, route.gateway)
        for (table, destination), route in view.own_routes.items()
    ]
    addresses = view.addresses.owned()
    found += [AddressRemove(address.link, address.interface) for address in reversed(addresses)]
    if view.settings.sets_marks and view.marks is not None:
        found.append(ForwardedReplies(()))
    return found
