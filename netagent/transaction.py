"""One request to the kernel, whole or not at all, and taken back unless it is confirmed.

The way back is computed from what the kernel said before the change, written to the ledger, and only then is the
kernel touched. Taking back is harmless for what was never done: routes and rules are deleted by protocol number,
addresses only if they are still ours.

The ledger is what netagent must remember beyond its own death: the way back of the open transaction, and whose
addresses are ours. Routes, rules and (from Linux 5.18) addresses carry our protocol number, so the kernel itself
remembers those. The ledger lies in the runtime directory, which goes at a reboot, exactly when the addresses go.
"""

from __future__ import annotations

import os
from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH

import msgpack

from .old_protocol import OPS, PROTOCOL, TYPE_CHECKING

if TYPE_CHECKING:
    from .policy import View
    from .rtnetlink import Kernel
    from .shapes import Message, Op, Owned

_ALREADY_SO = (0, ENOENT, ESRCH, EADDRNOTAVAIL, EEXIST, ENODEV)


class Transaction:
    """The one transaction that may be open: applied, and not yet confirmed; and the ledger at `path`."""

    request: str | None = None  # whose it is; None if there is none
    owned: Owned = frozenset()

    def __init__(self, kernel: Kernel, path: str) -> None:
        self._kernel, self._path = kernel, path
        self._way_back: list[Op] = []  # in the order in which to go it
        if os.path.exists(path):
            with open(path, "rb") as file:
                self.request, self._way_back, owned = msgpack.unpackb(file.read())
            self.owned = frozenset(map(tuple, owned))

    def _note(self, request: str | None, way_back: list[Op], owned: Owned) -> None:
        """Remember this instead; OSError when it cannot be written, and then nothing has changed. Written whole, then
        renamed: a crash leaves the ledger before or the ledger after."""
        with open(f"{self._path}.new", "wb") as file:
            file.write(msgpack.packb((request, way_back, list(owned))))
        os.replace(f"{self._path}.new", self._path)
        self.request, self._way_back, self.owned = request, way_back, owned

    def apply(self, request: str, ops: list[Op], undo: list[Op]) -> tuple[list[int | None], Message]:
        """Do `ops`, each taken back by the one at its place in `undo`. An errno each (0 for done, None for not tried or
        not known), and the answer: if one failed, which, and what stayed when all was taken back (normally nothing).
        OSError: no ledger, and the kernel not touched."""
        self._note(request, undo[::-1], self.owned)
        errnos = self._kernel.change(ops)
        failed = next((at for at, errno in enumerate(errnos) if errno != 0), None)
        if failed is None:
            return errnos, {"verdict": "applied", "done": len(ops)}
        self._way_back = [back for errno, back in zip(errnos, undo, strict=True) if errno in (0, None)][::-1]
        errno = errnos[failed]
        reason = os.strerror(errno) if errno else "the kernel could not be asked"
        why = {"position": failed, "errno": errno, "reason": reason}
        return errnos, {"verdict": "rolled back", "done": 0, **why, "not_undone": self.undo()}

    def undo(self) -> list[Op]:
        """Take back what the ledger says is open; what could not be, with its errno (normally nothing)."""
        addresses = self._kernel.all("address")
        tagged = any(address["protocol"] is not None for address in addresses)  # the kernel knows IFA_PROTO
        ours = {(each["link"], each["address"]) for each in addresses if not tagged or each["protocol"] == PROTOCOL}
        ops = [op for op in self._way_back if op["op"] != "address_remove" or (op["link"], op["address"]) in ours]
        for _ in range(3):  # what is not known to be taken back is tried again; twice does no harm
            errnos = self._kernel.change(ops, stop=False)
            ops = [{**op, "errno": errno} for op, errno in zip(ops, errnos, strict=True) if errno not in _ALREADY_SO]
        try:
            self._note(None, [], self.owned)
        except OSError:  # to take back once more, at the next start, does no harm
            self.request = None
        return ops

    def commit(self) -> None:
        """It stays: nothing to take back any more."""
        added = {(op["link"], op["address"]) for op in self._way_back if op["op"] == "address_remove"}
        removed = {(op["link"], op["address"]) for op in self._way_back if op["op"] == "address_add"}
        self._note(None, [], (self.owned - removed) | added)


def owned_ops(view: View) -> list[Op]:
    """Everything of ours where we may act, as the operations that remove it: what was added last goes first."""
    found = [("rule_remove", rule) for rule in view.kernel.all("rule") if rule["protocol"] == PROTOCOL]
    found += [("route_remove", route) for route in view.kernel.routes(None)]
    found += [("address_remove", each) for each in reversed(view.addresses.values()) if view.owns(each)]
    ours = [(op, each) for op, each in found if "link" not in each or not view.refusal(each["link"])]
    return [{"op": op, **{key: each[key] for key in OPS[op]}} for op, each in ours]
