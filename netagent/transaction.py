"""One request to the kernel, whole or not at all, and taken back unless it is confirmed.

The way back is computed from what the kernel said before the change, written to the ledger, and only then is the
kernel touched. Taking back is harmless for what was never done: routes and rules are deleted by protocol number,
addresses only if they are still ours.
"""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH

from .protocol import OPS, PROTOCOL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .ledger import Ledger
    from .policy import View
    from .protocol import Op
    from .rtnetlink import Kernel

_ALREADY_SO = (0, ENOENT, ESRCH, EADDRNOTAVAIL, EEXIST, ENODEV)


class Outcome:
    """What became of a batch: an errno an operation (None: not tried), and of those taken back what stayed."""

    def __init__(self, results: list[int | None]) -> None:
        self.results = results
        self.failed = next((at for at, errno in enumerate(results) if errno != 0), None)
        self.not_undone: list[tuple[Op, int | None]] = []


class Transaction:
    """The one transaction that may be open: applied, and not yet confirmed."""

    def __init__(self, kernel: Kernel, ledger: Ledger) -> None:
        self._kernel, self._ledger = kernel, ledger

    def apply(self, request: str, ops: list[Op], undo: list[Op]) -> Outcome:
        """Do `ops`, each taken back by the one at its place in `undo`; all is undone if one fails."""
        self._ledger.open(request, undo[::-1])
        outcome = Outcome(self._kernel.change(ops))
        if outcome.failed is not None:
            done = [way_back for errno, way_back in zip(outcome.results, undo, strict=True) if errno in (0, None)]
            self._ledger.undo = done[::-1]
            outcome.not_undone = self.undo()
        return outcome

    def undo(self) -> list[tuple[Op, int | None]]:
        """Take back what the ledger says is open; what could not be, with its errno (normally nothing)."""
        addresses = self._kernel.addresses()
        tagged = any(address["protocol"] is not None for address in addresses)  # the kernel knows IFA_PROTO
        ours = {(each["link"], each["address"]) for each in addresses if not tagged or each["protocol"] == PROTOCOL}
        ops = [op for op in self._ledger.undo if op["op"] != "address_remove" or (op["link"], op["address"]) in ours]
        results = self._kernel.change(ops, stop=False)
        self._ledger.close(self._ledger.owned)
        return [(op, errno) for op, errno in zip(ops, results, strict=True) if errno not in _ALREADY_SO]

    def commit(self, ops: list[Op]) -> None:
        """It stays: nothing to take back any more."""
        owned = set(self._ledger.owned)
        for op in ops:
            if op["op"] == "address_add":
                owned.add((op["link"], op["address"]))
            elif op["op"] == "address_remove":
                owned.discard((op["link"], op["address"]))
        self._ledger.close(frozenset(owned))


def owned_ops(kernel: Kernel, view: View) -> list[Op]:
    """Everything of ours, as the operations that remove it: rules, then routes, then addresses."""
    rules = [("rule_remove", rule) for rule in kernel.rules() if rule["protocol"] == PROTOCOL]
    routes = [("route_remove", route) for route in kernel.routes(None)]
    owned = [("address_remove", address) for address in view.addresses.values() if view.owns(address)]
    return [{"op": op, **{key: found[key] for key in OPS[op]}} for op, found in rules + routes + owned]
