"""Duration of refusals: until the metadata, the configuration or the kernel change, or a backoff ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.network.objects import Cause, HeldLink, LinkSettings, Rejection, Route
from cloud_network.fetcher.rejections import LinkHolds, PlanRetry, RejectionTable
from cloud_network.netagent.operations import LinkMtu, LinkUp

from .test_schedule import Clock
from .values import BASE, host, instance, interface, link

CLOUD, HERE, CONFIG = instance(interface(1)), host(link(1)), Config()
OBJECT = LinkSettings(2, None)
OTHER = LinkSettings(3, None)
ETH0 = interface(1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> RejectionTable:
    made = RejectionTable(clock)
    made.update(CLOUD, CONFIG, HERE, kernel_changed=True)
    return made


def test_policy_refusal_holds_without_a_change(table: RejectionTable, clock: Clock) -> None:
    table.add({OBJECT: Rejection("no")})
    clock.now += 1e6
    assert set(table.update(CLOUD, CONFIG, HERE, kernel_changed=False)) == {OBJECT}
    assert table.due == math.inf


@pytest.mark.parametrize("what", ["metadata", "configuration", "kernel"])
def test_policy_refusal_ends_with_a_change(table: RejectionTable, what: str) -> None:
    table.add({OBJECT: Rejection("no")})
    cloud = instance(interface(1), interface(2)) if what == "metadata" else CLOUD
    config = replace(CONFIG, rule_priority=7) if what == "configuration" else CONFIG
    here = host(link(1), link(2)) if what == "kernel" else HERE
    assert table.update(cloud, config, here, kernel_changed=False) == {}


@pytest.mark.parametrize(("cause", "longest"), [(Cause.GATEWAY, 300.0), (Cause.ROLLED_BACK, 6 * 3600.0)])
def test_silent_gateway_is_tried_with_backoff(
    table: RejectionTable, clock: Clock, cause: Cause, longest: float
) -> None:
    delays = []
    for _ in range(20):
        table.add({OBJECT: Rejection("it is silent", cause)})
        [rejection] = table.current.values()
        assert ("; next try at 2" in rejection.reason) == (cause is Cause.ROLLED_BACK)
        delays.append(table.due - clock.now)
        clock.now = table.due
        assert table.update(CLOUD, CONFIG, HERE, kernel_changed=True) == {}
    assert delays[0] == pytest.approx(1.0, rel=0.25)
    assert delays[-1] == pytest.approx(longest, rel=0.25)


def test_policy_refusal_is_checked_again_once_after_a_reload(table: RejectionTable, clock: Clock) -> None:
    """netagent may read the same file a moment later."""
    table.reconfigured()
    table.add({OBJECT: Rejection("no")})
    assert table.update(CLOUD, CONFIG, HERE, kernel_changed=False)
    clock.now = table.due
    assert table.update(CLOUD, CONFIG, HERE, kernel_changed=False) == {}
    table.add({OBJECT: Rejection("no")})
    assert table.due == math.inf


def test_own_changes_do_not_end_a_rejection(table: RejectionTable) -> None:
    table.add({OBJECT: Rejection("no")})
    after = host(link(1), routes=frozenset({Route(BASE + 2, 2, CLOUD.interfaces[0].subnets[0], None)}))
    table.rebase(after)
    assert set(table.update(CLOUD, CONFIG, after, kernel_changed=False)) == {OBJECT}


def test_unseen_kernel_change_is_checked_with_backoff(table: RejectionTable, clock: Clock) -> None:
    waits = []
    for _ in range(4):
        table.add({OBJECT: Rejection("no")})
        assert table.update(CLOUD, CONFIG, HERE, kernel_changed=True)
        waits.append(table.due - clock.now)
        clock.now = table.due
        assert table.update(CLOUD, CONFIG, HERE, kernel_changed=False) == {}
    assert waits == sorted(waits)
    assert waits[-1] > 4


def test_kernel_refusals_of_one_batch_are_retried_together(table: RejectionTable, clock: Clock) -> None:
    refused = Rejection("the kernel refuses it", Cause.KERNEL)
    table.add({OBJECT: refused, OTHER: refused})
    assert set(table.current) == {OBJECT, OTHER}
    first = table.due - clock.now
    clock.now = table.due + 0.001
    assert table.update(CLOUD, CONFIG, HERE, kernel_changed=False) == {}
    table.add({OBJECT: refused})
    assert table.due - clock.now > first


def test_earlier_of_two_retries_is_due(table: RejectionTable, clock: Clock) -> None:
    table.add({OBJECT: Rejection("no")})
    table.update(CLOUD, CONFIG, HERE, kernel_changed=True)
    due = table.due
    for _ in range(6):
        table.add({OTHER: Rejection("refused", Cause.KERNEL)})
    assert table.due == due < clock.now + 5


def test_hold_lasts_while_the_same_change_is_needed(clock: Clock) -> None:
    holds, op, more = LinkHolds(clock), LinkUp(2), LinkUp(3)
    holds.hold(2, (op,), ETH0, "it broke something")
    left, held = holds.split((op, more), {2: ETH0}, BASE)
    assert left == (more,)
    assert held == {2: HeldLink("it broke something", 300)}
    clock.now += 300
    assert holds.split((op, more), {2: ETH0}, BASE) == ((op, more), {})


def test_hold_grows_to_six_hours(clock: Clock) -> None:
    holds, waits = LinkHolds(clock), []
    for _ in range(10):
        holds.hold(2, (LinkUp(2),), ETH0, "again")
        waits.append(holds.due - clock.now)
        clock.now = holds.due
    assert waits == [300, 600, 1200, 2400, 4800, 9600, 19200, 21600, 21600, 21600]


def test_repair_beside_a_hold_is_made_alone(clock: Clock) -> None:
    """Another program's change of the link is no reason to repeat the change that broke something."""
    holds, up, mtu = LinkHolds(clock), LinkUp(2), LinkMtu(2, 9001)
    holds.hold(2, (up,), ETH0, "it broke something")
    assert holds.split((mtu, up), {2: ETH0}, BASE)[0] == (mtu,)
    holds.confirmed(2, (mtu,))
    assert holds.split((mtu, up), {2: ETH0}, BASE)[0] == (mtu,)


def test_other_metadata_or_less_to_change_is_news(clock: Clock) -> None:
    holds, up, mtu = LinkHolds(clock), LinkUp(2), LinkMtu(2, 9001)
    holds.hold(2, (up, mtu), ETH0, "it broke something")
    assert holds.split((up, mtu), {2: interface(1, "10.0.1.77")}, BASE)[0] == (up, mtu)
    assert holds.split((up,), {2: ETH0}, BASE)[0] == (up,)


def test_confirmed_or_requested_ends_the_hold(clock: Clock) -> None:
    holds, up = LinkHolds(clock), LinkUp(2)
    ends: tuple[Callable[[], None], ...] = (lambda: holds.confirmed(2, (up,)), holds.clear)
    for end in ends:
        holds.hold(2, (up,), ETH0, "it broke something")
        end()
        assert holds.split((up,), {2: ETH0}, BASE)[0] == (up,)


def test_failed_plan_waits_and_another_does_not(clock: Clock) -> None:
    retry = PlanRetry(clock)
    retry.failed((LinkUp(2),))
    assert not retry.may_try((LinkUp(2),))
    assert retry.may_try((LinkUp(3),))
    clock.now = retry.due
    assert retry.may_try((LinkUp(2),))


def test_refused_plan_waits_for_a_change_in_the_kernel(clock: Clock) -> None:
    retry = PlanRetry(clock)
    retry.failed((LinkUp(2),), refused=True)
    clock.now += 1e6
    assert retry.is_refused((LinkUp(2),))
    assert not retry.may_try((LinkUp(2),))
    assert retry.may_try((LinkUp(3),))
    retry.kernel_changed()
    assert retry.may_try((LinkUp(2),))
