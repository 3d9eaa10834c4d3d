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
    from .shapes import Op, Owned


class Ledger:
    """The request of the open transaction, its way back in the order in which to apply it, and what is ours."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.request: str | None = None
        self.undo: list[Op] = []
        self.owned: Owned = frozenset()
        if os.path.exists(path):
            with open(path, "rb") as file:
                self.request, self.undo, owned = msgpack.unpackb(file.read())
            self.owned = frozenset(map(tuple, owned))

    def write(self, request: str | None, undo: list[Op], owned: Owned) -> None:
        """Remember this instead; OSError when it cannot be written, and then nothing has changed."""
        with open(f"{self._path}.new", "wb") as file:
            file.write(msgpack.packb((request, undo, list(owned))))
        os.replace(f"{self._path}.new", self._path)
        self.request, self.undo, self.owned = request, undo, owned
