"""What netagent must remember beyond its own death: the way back of the open transaction, and whose addresses are ours.

Routes, rules and (from Linux 5.18) addresses carry our protocol number, so the kernel itself remembers those; the
ledger says the rest. It lies in the runtime directory, which goes at a reboot, exactly when the addresses go.
Written whole, then renamed: a crash leaves the ledger before or the ledger after.
"""

from __future__ import annotations

import os

import msgpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .protocol import Op

    Owned = frozenset[tuple[int, bytes]]


class Ledger:
    """The open transaction's way back, the addresses that are ours, and the head of the audit chain."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.request: str | None = None  # of the open transaction
        self.undo: list[Op] = []  # in the order in which to apply it
        self.owned: Owned = frozenset()
        try:
            with open(path, "rb") as file:
                kept = msgpack.unpackb(file.read(), use_list=True)
        except FileNotFoundError:
            return
        self.request, self.undo = kept["request"], kept["undo"]
        self.owned = frozenset((link, address) for link, address in kept["owned"])

    def open(self, request: str, undo: list[Op]) -> None:
        """Remember how to take `request` back, before the kernel is touched."""
        self._write(request, undo, self.owned)

    def close(self, owned: Owned) -> None:
        """The transaction is over, one way or the other."""
        self._write(None, [], owned)

    def _write(self, request: str | None, undo: list[Op], owned: Owned) -> None:
        kept = {"request": request, "undo": undo, "owned": list(owned)}
        temporary = self._path + ".new"
        with open(temporary, "wb") as file:
            file.write(msgpack.packb(kept))
        os.replace(temporary, self._path)
        self.request, self.undo, self.owned = request, undo, owned
