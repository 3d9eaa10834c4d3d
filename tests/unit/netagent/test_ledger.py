"""The ledger on a file system that is full."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
from cloud_network.netagent.kernel import Kernel
from cloud_network.netagent.ledger import Entry, Ledger
from cloud_network.netagent.operations import Undo
from cloud_network.netagent.transaction import Transaction


class DoingKernel(Kernel):
    """Does whatever it is asked to."""

    def __init__(self) -> None:
        """Open no socket."""

    def change(self, ops: Sequence[Undo], *, stop: bool = True) -> list[int | None]:
        return [0] * len(ops)


def test_netagent_starts_although_the_ledger_cannot_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ForwardedReplies="off" the table of before is removed at the start, whatever the fetcher wrote to /run."""
    ledger = Ledger(tmp_path / "ledger")
    ledger.write(Entry(table=True))

    def full(_: Ledger, __: Entry) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ledger, "write", full)
    assert Transaction(DoingKernel(), ledger).remove_table() == 0
    assert not ledger.entry.table
    assert not Ledger(tmp_path / "ledger").entry.table
