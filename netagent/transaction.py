"""One request to the kernel, whole or not at all, and taken back unless it is confirmed.

The way back is computed from what the kernel said before the change, written to the ledger, and only then is the
kernel touched. Taking back is harmless for what was never done: routes and rules are deleted by protocol number,
addresses only if they are still ours.
"""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH

from .protocol import OPS, PROTOCOL, TYPE_CHECKING

if TYPE_CHECKING:
    from .ledger import Ledger
    from .policy import View
    from .rtnetlink import Kernel
    from .shapes import Op

    Errnos = list[int | None]  # 0 for done, None for not tried or not known
    Stayed = list[Op]  # with their errno

_ALREADY_SO = (0, ENOENT, ESRCH, EADDRNOTAVAIL, EEXIST, ENODEV)


class Transaction:
    """The one transaction that may be open: applied, and not yet confirmed."""

    def __init__(self, kernel: Kernel, ledger: Ledger) -> None:
        self._kernel, self._ledger = kernel, ledger
        self._ops: list[Op] = []

    def apply(self, request: str, ops: list[Op], undo: list[Op]) -> tuple[Errnos, int | None, Stayed]:
        """Do `ops`, each taken back by the one at its place in `undo`. An errno each; and if one failed, so that all
        was taken back, which, and what stayed (normally nothing). OSError: no ledger, and the kernel not touched."""
        self._ledger.write(request, undo[::-1], self._ledger.owned)
        self._ops, errnos = ops, self._kernel.change(ops)
        failed = next((at for at, errno in enumerate(errnos) if errno != 0), None)
        if failed is None:
            return errnos, None, []
        self._ledger.undo = [back for errno, back in zip(errnos, undo, strict=True) if errno in (0, None)][::-1]
        return errnos, failed, self.undo()

    def undo(self) -> Stayed:
        """Take back what the ledger says is open; what could not be, with its errno (normally nothing)."""
        addresses = self._kernel.addresses()
        tagged = any(address["protocol"] is not None for address in addresses)  # the kernel knows IFA_PROTO
        ours = {(each["link"], each["address"]) for each in addresses if not tagged or each["protocol"] == PROTOCOL}
        ops = [op for op in self._ledger.undo if op["op"] != "address_remove" or (op["link"], op["address"]) in ours]
        for _ in range(3):  # what is not known to be taken back is tried again; twice does no harm
            errnos = self._kernel.change(ops, stop=False)
            ops = [{**op, "errno": errno} for op, errno in zip(ops, errnos, strict=True) if errno not in _ALREADY_SO]
        try:
            self._ledger.write(None, [], self._ledger.owned)
        except OSError:  # to take back once more, at the next start, does no harm
            self._ledger.request = None
        return ops

    def commit(self) -> None:
        """It stays: nothing to take back any more."""
        added = {(op["link"], op["address"]) for op in self._ops if op["op"] == "address_add"}
        removed = {(op["link"], op["address"]) for op in self._ops if op["op"] == "address_remove"}
        self._ledger.write(None, [], (self._ledger.owned - removed) | added)


def owned_ops(view: View) -> list[Op]:
    """Everything of ours where we may act, as the operations that remove it: what was added last goes first."""
    found = [("rule_remove", rule) for rule in view.kernel.rules() if rule["protocol"] == PROTOCOL]
    found += [("route_remove", route) for route in view.kernel.routes(None)]
    found += [("address_remove", each) for each in reversed(view.addresses.values()) if view.owns(each)]
    ours = [(op, each) for op, each in found if "link" not in each or not view.refusal(each["link"])]
    return [{"op": op, **{key: each[key] for key in OPS[op]}} for op, each in ours]
