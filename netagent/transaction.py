"""One request to the kernel, applied as a whole or not at all, and rolled back unless it is confirmed.

How to undo it is computed from the kernel's state before the change and written to the ledger before the kernel is
touched. Undoing what was never done does no harm: routes and rules are removed by protocol number, addresses only if
they are still ours. What another program came to depend on stays, and is reported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH

from .kernel import Kernel
from .ledger import MAX_GATEWAYS, Entry, Ledger
from .operations import (
    PROTOCOL,
    AddressAdd,
    AddressRemove,
    ForwardedReplies,
    LinkDown,
    Operation,
    RouteRemove,
    RouteReplace,
    Undo,
)
from .policy import Refusal, check_one
from .protocol import Remaining
from .removal import AddressCounts, foreign_dependents, foreign_state, losable
from .rtnetlink import Address, Route
from .view import View, uses_ifa_proto

ALREADY_UNDONE = (0, ENOENT, ESRCH, EADDRNOTAVAIL, EEXIST, ENODEV)
UNDO_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The errno of every operation (0: done; None: not tried or not known), and what a failure left behind."""

    errnos: tuple[int | None, ...]
    failed: int | None = None  # position of the first that failed; then everything was rolled back, except
    remaining: tuple[Remaining, ...] = ()

    @property
    def reason(self) -> str:
        """The error of the operation that failed."""
        errno = self.errnos[self.failed] if self.failed is not None else None
        return os.strerror(errno) if errno else "the kernel could not be asked"


class Transaction:
    """The one transaction that may be open: applied and not confirmed."""

    def __init__(self, kernel: Kernel, ledger: Ledger) -> None:
        self._kernel, self._ledger = kernel, ledger

    @property
    def request(self) -> str | None:
        """Id of the open transaction."""
        return self._ledger.entry.request

    def apply(self, request: str, ops: Sequence[Operation], undo: Sequence[Undo]) -> Outcome:
        """Apply `ops`, each undone by the one at its place in `undo`. If one fails, undo all.

        Raises OSError if the ledger cannot be written; then the kernel is not touched.
        """
        entry = self._ledger.entry
        table = entry.table or any(isinstance(op, ForwardedReplies) for op in ops)
        self._ledger.write(replace(entry, request=request, undo=tuple(reversed(undo)), table=table))
        errnos = tuple(self._kernel.change(ops))
        failed = next((at for at, errno in enumerate(errnos) if errno != 0), None)
        if failed is None:
            return Outcome(errnos)
        done = [back for errno, back in zip(errnos, undo, strict=True) if errno in (0, None)]
        return Outcome(errnos, failed, self._undo(tuple(reversed(done))))

    def roll_back(self) -> tuple[Remaining, ...]:
        """Undo the open transaction. Returns what could not be undone; normally nothing."""
        return self._undo(self._ledger.entry.undo)

    def commit(self) -> None:
        """Keep the open transaction. Raises OSError if the ledger cannot be written."""
        entry = self._ledger.entry
        added = {(op.link, op.interface.ip) for op in entry.undo if isinstance(op, AddressRemove)}
        removed = {(op.link, op.interface.ip) for op in entry.undo if isinstance(op, AddressAdd)}
        used = [op.gateway for op in entry.undo if isinstance(op, RouteRemove | RouteReplace)]
        gateways = tuple(dict.fromkeys((*entry.gateways, *(gateway for gateway in used if gateway is not None))))
        remembered = gateways[:MAX_GATEWAYS]  # the earliest: no client can push out those of the boot
        owned = (entry.owned - removed) | added
        self._ledger.write(Entry(owned=owned, gateways=remembered, table=entry.table))

    def remove_table(self) -> int | None:
        """Remove the nftables table for good. Returns an errno: 0 for done, None for not known."""
        [errno] = self._kernel.change([ForwardedReplies(())])
        if errno == 0:
            self._ledger.write(replace(self._ledger.entry, table=False))
        return errno

    def _undo(self, ops: tuple[Undo, ...]) -> tuple[Remaining, ...]:
        """Carry out `ops`, except what would take state of others along. What fails is tried again."""
        pending, remaining = self._split(ops)
        failed: list[tuple[Undo, int | None]] = [(op, None) for op in pending]
        for _ in range(UNDO_ATTEMPTS):
            errnos = self._kernel.change([op for op, _ in failed], stop=False)
            tried = [(op, errno) for (op, _), errno in zip(failed, errnos, strict=True)]
            failed = [(op, errno) for op, errno in tried if errno not in ALREADY_UNDONE]
        self._close()
        return (*remaining, *(_failure(op, errno) for op, errno in failed))

    def _close(self) -> None:
        """Close the transaction. If the ledger cannot be written, the next start undoes it once more: no harm."""
        closed = replace(self._ledger.entry, request=None, undo=())
        try:
            self._ledger.write(closed)
        except OSError:
            self._ledger.entry = closed

    def _split(self, ops: tuple[Undo, ...]) -> tuple[list[Undo], list[Remaining]]:
        """Return what to do, and what must not be done because others depend on it now."""
        if not any(isinstance(op, AddressRemove | LinkDown) for op in ops):
            return list(ops), []
        state = self._read()
        if state is None:  # without the kernel's answer nobody knows what depends on them
            guarded = [op for op in ops if isinstance(op, AddressRemove | LinkDown)]
            return [op for op in ops if op not in guarded], [_failure(op, None) for op in guarded]
        addresses, foreign = state
        pending, remaining, counts = list[Undo](), list[Remaining](), AddressCounts(addresses)
        left, routes = {(each.link, each.interface): each for each in addresses}, losable(foreign)
        tagged = uses_ifa_proto(addresses)
        for op in ops:
            obstacle = None
            if isinstance(op, AddressRemove):
                address = left.pop((op.link, op.interface), None)
                if address is None or (tagged and address.protocol != PROTOCOL):
                    continue  # it is gone, or another program's now
                obstacle = _dependent(address, counts, routes)
                counts.add(address, -1)
            elif isinstance(op, LinkDown):
                obstacle = foreign_state(op.link, left.values(), foreign)
            if obstacle is None:
                pending.append(op)
            else:
                remaining.append(Remaining(op, f"{obstacle} depends on it and is not ours"))
        return pending, remaining

    def _read(self) -> tuple[list[Address], list[Route]] | None:
        """Return all addresses and the routes of others; None if the kernel does not answer."""
        for _ in range(UNDO_ATTEMPTS):
            with contextlib.suppress(OSError):
                routes = self._kernel.routes()
                return self._kernel.addresses(), [route for route in routes if route.protocol != PROTOCOL]
        return None

    def remove(self, ops: Sequence[Operation]) -> tuple[list[int | None], list[Remaining]]:
        """Remove something of ours for good. Returns the errnos, and what could not be removed."""
        errnos = self._kernel.change(ops, stop=False)
        gone = {(op.link, op.interface.ip) for op in ops if isinstance(op, AddressRemove)}
        entry = self._ledger.entry
        if entry.owned & gone:
            self._ledger.write(replace(entry, owned=entry.owned - gone))
        failed = [(op, errno) for op, errno in zip(ops, errnos, strict=True) if errno not in ALREADY_UNDONE]
        return errnos, [_failure(op, errno) for op, errno in failed]


def _dependent(address: Address, counts: AddressCounts, routes: Sequence[Route]) -> str | None:
    route = foreign_dependents(address, counts, routes)
    return None if route is None else f"the route to {route.destination} in table {route.table}"


def _failure(op: Undo, errno: int | None) -> Remaining:
    return Remaining(op, os.strerror(errno) if errno else "the kernel could not be asked", errno)


def removals(view: View) -> tuple[list[Operation], list[Remaining]]:
    """Return the operations that remove everything of ours, the last added first, and what may not be removed."""
    ops, remaining = list[Operation](), list[Remaining]()
    for op in _owned(view):
        try:
            check_one(op, view)
        except Refusal as refusal:
            remaining.append(Remaining(op, refusal.reason))
        else:
            ops.append(op)
    return ops, remaining


def _owned(view: View) -> list[Operation]:
    found: list[Operation] = list(view.own_rules())
    found += [
        RouteRemove(table, route.link, destination, route.gateway)
        for (table, destination), route in view.own_routes.items()
    ]
    addresses = [address for address in view.addresses.values() if view.owns(address)]
    found += [AddressRemove(address.link, address.interface) for address in reversed(addresses)]
    if view.settings.forwarded_replies and view.marks is not None:
        found.append(ForwardedReplies(()))
    return found
