"""Changes that another program reverts: their delays, the objects that wait with them, and the end of a conflict."""

from __future__ import annotations

import math
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.config import RulesMode
from cloud_network.fetcher.conflicts import TOLERATED_REPAIRS, ConflictTracker
from cloud_network.fetcher.network.plan import Plan, added_object, is_removal
from cloud_network.netagent.operations import AddressAdd, AddressRemove, LinkMtu, RouteReplace, RuleAdd

from .test_schedule import Clock
from .values import after_changes, host, instance, interface, kernel_address, link, plan_of, wanted

HERE = host(link(1), link(2))
CLOUD = instance(interface(1), interface(2, "10.0.2.10", "10.0.2.11"))


def address_of(plan: Plan, text: str) -> AddressAdd:
    [found] = [op for op in plan if isinstance(op, AddressAdd) and str(op.interface.ip) == text]
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> ConflictTracker:
    return ConflictTracker(clock)


PLAN = plan_of(wanted(CLOUD, HERE), HERE)
ADDRESS = address_of(PLAN, "10.0.2.11")


def test_few_repairs_are_no_conflict(tracker: ConflictTracker) -> None:
    for _ in range(TOLERATED_REPAIRS - 1):
        tracker.count_confirmed((ADDRESS,))
    assert (tracker.rejections, tracker.due) == ({}, math.inf)
    assert tracker.statuses((ADDRESS,), HERE) == ([], [])


def test_repairs_of_a_conflict_back_off(tracker: ConflictTracker, clock: Clock) -> None:
    waits = []
    for _ in range(TOLERATED_REPAIRS + 2):
        tracker.count_confirmed((ADDRESS,))
        if tracker.due < math.inf:
            waits.append(tracker.due - clock.now)
            clock.now = tracker.due + 0.001
    assert [round(wait, 2) for wait in waits] == sorted(round(wait, 2) for wait in waits)
    assert len(waits) == 3
    assert tracker.rejections == {}, "after the delay"


def test_waiting_object_is_rejected_and_reported(tracker: ConflictTracker) -> None:
    for _ in range(TOLERATED_REPAIRS):
        tracker.count_confirmed((ADDRESS,))
    assert set(tracker.rejections) == {added_object(ADDRESS)}
    [status], [text] = tracker.statuses((ADDRESS,), HERE)
    assert status["times"] == TOLERATED_REPAIRS
    assert status["next_at"]
    assert "ip address add 10.0.2.11/32" in text
    assert "next repair at" in text


def test_waiting_removal_is_left_out_of_the_plan(tracker: ConflictTracker) -> None:
    removal = AddressRemove(3, ADDRESS.interface)
    for _ in range(TOLERATED_REPAIRS):
        tracker.count_confirmed((removal,))
    assert tracker.without_waiting((removal, ADDRESS)) == (ADDRESS,)


def test_own_removal_is_no_conflict(tracker: ConflictTracker) -> None:
    for _ in range(3 * TOLERATED_REPAIRS):
        tracker.count_confirmed((ADDRESS,))
        tracker.count_confirmed((AddressRemove(3, ADDRESS.interface),))
    assert tracker.due == math.inf


def test_lasting_repair_is_forgotten(tracker: ConflictTracker, clock: Clock) -> None:
    for _ in range(TOLERATED_REPAIRS):
        tracker.count_confirmed((ADDRESS,))
    clock.now += 121
    tracker.observe((ADDRESS,), HERE)
    assert tracker.statuses((), HERE)[0], "missing again"
    tracker.observe((), HERE)
    assert tracker.statuses((), HERE) == ([], [])


def test_holder_of_an_address_is_named(tracker: ConflictTracker) -> None:
    elsewhere = host(link(1), link(2), addresses=kernel_address(2, "10.0.2.11/32"))
    for _ in range(TOLERATED_REPAIRS):
        tracker.count_confirmed((ADDRESS,))
    tracker.observe((ADDRESS,), elsewhere)
    assert tracker.statuses((ADDRESS,), elsewhere)[0][0]["by"] == "eth0 has it"


@pytest.mark.parametrize("form", [RulesMode.AGGREGATE, RulesMode.ADDRESS])
@pytest.mark.parametrize("siblings", [0, 1])
def test_rules_of_a_waiting_address_wait_with_it(form: RulesMode, siblings: int, tracker: ConflictTracker) -> None:
    own = ["10.0.2.10", "10.0.2.11"][: 1 + siblings]
    cloud = instance(interface(1), interface(2, *own))
    address = address_of(plan_of(wanted(cloud, HERE, rules=form), HERE), "10.0.2.10")
    for _ in range(TOLERATED_REPAIRS):
        tracker.count_confirmed((address,))
    left = plan_of(wanted(cloud, HERE, tracker.rejections, rules=form), HERE)
    rules = {str(op.selector) for op in left if isinstance(op, RuleAdd) and op.table == 9999 + 3}
    assert address not in left
    expected = {RulesMode.AGGREGATE: {"10.0.2.0/24"}, RulesMode.ADDRESS: {"10.0.2.11/32"}}
    assert rules == (expected[form] if siblings else set())


def test_present_object_stays_while_it_waits(tracker: ConflictTracker) -> None:
    settled = after_changes(PLAN, HERE)
    for op in PLAN:
        for _ in range(TOLERATED_REPAIRS):
            tracker.count_confirmed((op,))
    left = plan_of(wanted(CLOUD, settled, tracker.rejections), settled)
    assert not any(map(is_removal, left))


def test_own_change_of_an_object_is_no_conflict(tracker: ConflictTracker) -> None:
    """The metadata alternate between two gateways, or two MTUs."""
    for _ in range(3 * TOLERATED_REPAIRS):
        for gateway in ("10.0.2.1", "10.0.2.254"):
            tracker.count_confirmed((RouteReplace(10002, 2, ip_network("0.0.0.0/0"), ip_address(gateway)),))
        tracker.count_confirmed((LinkMtu(2, 1500),))
        tracker.count_confirmed((LinkMtu(2, 9001),))
    assert tracker.due == math.inf
