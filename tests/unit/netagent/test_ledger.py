"""The ledger: on a full file system, and as the list of owned addresses before Linux 5.18."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, ip_interface
from pathlib import Path

import pytest
from cloud_network.netagent import transaction, view
from cloud_network.netagent.kernel import JoinedAddresses, Kernel
from cloud_network.netagent.ledger import Entry, Ledger
from cloud_network.netagent.operations import AddressAdd, AddressRemove, Change, undo_from_wire
from cloud_network.netagent.rtnetlink import Address, Link, NextHop, Route
from cloud_network.netagent.settings import Settings
from cloud_network.netagent.transaction import Plan, Transaction
from cloud_network.netagent.view import OutsideState, Snapshot, View

IP = IPv4Address("10.0.2.50")
HOST, SUBNET = IPv4Interface("10.0.2.50/32"), IPv4Interface("10.0.2.50/24")


@pytest.fixture(autouse=True)
def linux_before_5_18(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ledger list the owned addresses, as with a kernel that does not mark them."""
    monkeypatch.setattr(transaction, "HAS_IFA_PROTO", False)


class DoingKernel(Kernel):
    """A kernel in which every change succeeds, with these addresses and routes."""

    def __init__(self, addresses: Sequence[Address] = (), routes: Sequence[Route] = ()) -> None:
        """Open no socket."""
        self._addresses, self._routes = list(addresses), list(routes)

    def addresses(self) -> list[Address]:
        return self._addresses

    def routes(self) -> list[Route]:
        return self._routes

    def view(self) -> View:
        """Return the state with the links eth0 and eth1."""
        links = tuple(Link(index, f"eth{index - 2}", 1500, None, True, False) for index in (2, 3))
        snapshot = Snapshot(links, tuple(self._addresses), tuple(self._routes), (), frozenset())
        return View(snapshot, Settings(), OutsideState())

    def change(
        self, ops: Sequence[Change], *, stop: bool = True, joined: JoinedAddresses | None = None
    ) -> list[int | None]:
        return [0] * len(ops)


@pytest.mark.parametrize("name", ["rule_add", "rule_remove"])
def test_rules_of_the_first_ledgers_have_no_iif_and_no_mark(name: str) -> None:
    packed = {"address": IP.packed, "prefix": 32, "to": False, "table": 10001, "suppress": True}
    rule = undo_from_wire({"op": name, "priority": 31000, **packed})
    assert rule.to_wire() == {"op": name, "priority": 31000, **packed, "local": False, "mark": 0, "mask": 0}


def test_netagent_starts_although_the_ledger_cannot_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ForwardedReplies="off" the earlier table is removed at the start, even if the fetcher has filled /run."""
    ledger = Ledger(tmp_path / "ledger")
    ledger.write(Entry(may_have_table=True))

    def full(_: Ledger, __: Entry) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ledger, "write", full)
    kernel = DoingKernel()
    assert Transaction(kernel, ledger, kernel.view).remove_table() == 0
    assert not ledger.entry.may_have_table
    assert not Ledger(tmp_path / "ledger").entry.may_have_table


def apply(ledger: Ledger, kernel: DoingKernel, *ops: AddressAdd | AddressRemove) -> Transaction:
    """Apply a transaction and leave it open."""
    transaction = Transaction(kernel, ledger, kernel.view)
    undo = [op.inverse() if isinstance(op, AddressAdd) else op.inverse(connected_route=True) for op in ops]
    assert transaction.apply("test", Plan(ops, tuple(undo))).failed is None
    return transaction


@pytest.mark.parametrize("left", [[Address(2, IP, 24, 0, None)], []])
def test_a_flush_forgets_no_address_of_another_length(tmp_path: Path, left: list[Address]) -> None:
    """An address that has lost its owner could not be removed any more."""
    ledger = Ledger(tmp_path / "ledger")
    ledger.write(Entry(owned=frozenset({(2, IP)})))
    kernel = DoingKernel(left)
    Transaction(kernel, ledger, kernel.view).remove([AddressRemove(2, HOST)])
    assert ledger.entry.owned == {(each.link, each.ip) for each in left}


def test_address_added_and_removed_is_no_longer_owned(tmp_path: Path) -> None:
    """Otherwise a fetcher could remove the same address when DHCP adds it later."""
    ledger = Ledger(tmp_path / "ledger")
    apply(ledger, DoingKernel(), AddressAdd(2, HOST, True), AddressRemove(2, HOST)).commit()
    assert ledger.entry.owned == frozenset()


@pytest.mark.parametrize(
    ("own", "foreign"),
    [
        ("10.0.2.50/32", "10.0.2.50/32"),
        ("fd00:2::50/128", "fd00:2::50/128"),
        ("fd00:2::50/128", "fd00:2::50/64"),
    ],
)
def test_address_added_by_others_before_a_rollback_is_foreign(tmp_path: Path, own: str, foreign: str) -> None:
    """Otherwise a fetcher could remove it later."""
    address, other = ip_interface(own), ip_interface(foreign)
    ledger = Ledger(tmp_path / "ledger")
    kernel = DoingKernel([Address(2, other.ip, other.network.prefixlen, 0, None)])
    apply(ledger, kernel, AddressAdd(2, address, True)).commit()
    (left,) = apply(ledger, kernel, AddressRemove(2, address)).roll_back()
    assert left.reason == "another program has added the address"
    assert ledger.entry.owned == frozenset()


def test_address_not_removed_before_a_crash_stays_owned(tmp_path: Path) -> None:
    ledger, kernel = Ledger(tmp_path / "ledger"), DoingKernel([Address(2, IP, 32, 0, None)])
    apply(ledger, kernel, AddressAdd(2, HOST, True)).commit()
    apply(ledger, kernel, AddressRemove(2, HOST))
    assert Transaction(kernel, Ledger(tmp_path / "ledger"), kernel.view).roll_back() == ()
    assert Ledger(tmp_path / "ledger").entry.owned == {(2, IP)}


def test_address_with_another_length_stays_owned(tmp_path: Path) -> None:
    """Otherwise its network would count as learned, and the first host in it as a gateway."""
    ledger = Ledger(tmp_path / "ledger")
    kernel = DoingKernel([Address(2, IP, 24, 0, None)])
    apply(ledger, kernel, AddressAdd(2, HOST, True), AddressAdd(2, SUBNET, True)).commit()
    apply(ledger, kernel, AddressRemove(2, HOST)).commit()
    assert ledger.entry.owned == {(2, IP)}
    apply(ledger, DoingKernel(), AddressRemove(2, SUBNET)).commit()
    assert ledger.entry.owned == frozenset()


def test_address_that_a_rollback_leaves_stays_owned(tmp_path: Path) -> None:
    needs_it = Route(254, SUBNET.network, (NextHop(3, None),), 1, 4, 0, IP, False)
    kernel = DoingKernel([Address(2, IP, 32, 0, None)], [needs_it])
    ledger = Ledger(tmp_path / "ledger")
    assert len(apply(ledger, kernel, AddressAdd(2, HOST, True)).roll_back()) == 1
    assert ledger.entry.owned == {(2, IP)}


def test_address_that_a_flush_cannot_remove_stays_owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, kernel = Ledger(tmp_path / "ledger"), DoingKernel([Address(2, IP, 32, 0, None)])
    apply(ledger, kernel, AddressAdd(2, HOST, True)).commit()
    monkeypatch.setattr(kernel, "change", lambda ops, stop: [errno.ENOMEM])
    _, (left,) = Transaction(kernel, ledger, kernel.view).remove([AddressRemove(2, HOST)])
    assert left.errno == errno.ENOMEM
    assert ledger.entry.owned == {(2, IP)}


def test_a_rollback_without_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the address, and says so. It once ended netagent, and the next start met the same transaction."""

    def find_routes_at_risk(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(view, "find_routes_at_risk", find_routes_at_risk)
    ledger, kernel = Ledger(tmp_path / "ledger"), DoingKernel([Address(2, IP, 32, 0, None)])
    (left,) = apply(ledger, kernel, AddressAdd(2, HOST, True)).roll_back()
    assert left.reason == "the kernel could not be asked"
    assert ledger.entry.request is None
