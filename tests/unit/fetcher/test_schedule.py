"""The times of the next read and the next comparison, with a clock that the test moves."""

from __future__ import annotations

import math

import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.daemon import read_result
from cloud_network.fetcher.metadata.reading import Reading
from cloud_network.fetcher.network.objects import Link
from cloud_network.fetcher.reporting import PassReport
from cloud_network.fetcher.schedule import Backoff, InterfaceMismatch, ReadResult, Schedule

from .values import host, instance, interface, link

KNOWN = instance(interface(1))
BOTH = host(link(1), link(2))
DONE = ReadResult(complete=True)


class Clock:
    """A clock that the test moves, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def schedule(clock: Clock) -> Schedule:
    return Schedule(Config(), clock)


def read(schedule: Schedule, result: ReadResult = DONE) -> None:
    schedule.read_begins()
    schedule.read_ended(result)


def about(seconds: float, expected: float) -> bool:
    return 0.75 * expected <= seconds <= 1.25 * expected


def test_backoff_doubles_to_its_limit_and_resets() -> None:
    backoff = Backoff(1.0, 6.0)
    assert all(about(backoff.next_delay(), expected) for expected in (1, 2, 4, 6, 6))
    backoff.reset()
    assert about(backoff.next_delay(), 1)


def test_backoff_never_exceeds_a_short_refresh_timer() -> None:
    backoff = Backoff(1.0, 60.0)
    assert all(backoff.next_delay(2.0) <= 2.5 for _ in range(10))


def test_backoff_differs_between_instances() -> None:
    assert len({Backoff(1.0, 60.0).next_delay() for _ in range(20)}) > 10


def test_first_read_is_due_at_once(schedule: Schedule, clock: Clock) -> None:
    assert schedule.refresh_due <= clock.now
    assert schedule.compare_due == math.inf
    assert schedule.is_first_read


def test_success_waits_for_the_refresh_timer(schedule: Schedule, clock: Clock) -> None:
    read(schedule)
    assert schedule.refresh_due == clock.now + 300
    read(schedule, ReadResult(complete=True, unread_facts=True))
    assert schedule.refresh_due == clock.now + 1


def test_failures_wait_longer_and_success_resets(schedule: Schedule, clock: Clock) -> None:
    for expected in (1, 2, 4, 8):
        read(schedule, ReadResult(failed=True))
        assert about(schedule.refresh_due - clock.now, expected)
    read(schedule)
    read(schedule, ReadResult(failed=True))
    assert about(schedule.refresh_due - clock.now, 1)


def test_failed_read_that_took_long_is_followed_by_a_pause(schedule: Schedule, clock: Clock) -> None:
    schedule.read_begins()
    clock.now += 120
    schedule.read_ended(ReadResult(failed=True))
    assert about(schedule.refresh_due - clock.now, 1)


def test_request_of_root_resets_the_backoff(schedule: Schedule, clock: Clock) -> None:
    for _ in range(5):
        read(schedule, ReadResult(failed=True))
    schedule.on_request()
    read(schedule, ReadResult(failed=True))
    assert about(schedule.refresh_due - clock.now, 1)


@pytest.mark.parametrize(("asked", "waits"), [(20.0, 20.0), (7200.0, 300.0)])
def test_retry_after_is_obeyed_within_reason(schedule: Schedule, clock: Clock, asked: float, waits: float) -> None:
    read(schedule, ReadResult(failed=True, retry_after=asked))
    assert schedule.refresh_due == clock.now + waits
    schedule.on_metadata_change()
    assert schedule.refresh_due == clock.now + waits


def test_removal_is_confirmed_soon(schedule: Schedule, clock: Clock) -> None:
    read(schedule, ReadResult(complete=True, needs_second_read=True))
    assert schedule.refresh_due == pytest.approx(clock.now + 0.4)


def test_events_are_debounced_but_not_postponed(schedule: Schedule, clock: Clock) -> None:
    schedule.on_kernel_event()
    due = schedule.compare_due
    assert clock.now < due <= clock.now + 0.05
    clock.now += 0.03
    schedule.on_kernel_event()
    assert schedule.compare_due == due


def test_event_storm_is_paced(schedule: Schedule, clock: Clock) -> None:
    schedule.compare_begins(on_event=True)
    schedule.compare_ended(math.inf)
    schedule.on_kernel_event()
    assert schedule.compare_due == clock.now + 0.5


@pytest.mark.parametrize("unanswered", [True, False])
def test_event_after_an_unanswered_read_is_a_reason_to_read(schedule: Schedule, clock: Clock, unanswered: bool) -> None:
    """The network may just have come up."""
    for _ in range(8):
        read(schedule, ReadResult(failed=True, unanswered=unanswered))
    before = schedule.refresh_due
    schedule.on_kernel_event()
    assert (schedule.refresh_due == clock.now + 5.0) is unanswered
    assert (schedule.refresh_due == before) is not unanswered


def test_change_of_the_metadata_is_read_at_once(schedule: Schedule, clock: Clock) -> None:
    read(schedule)
    clock.now += 10
    schedule.on_metadata_change()
    assert schedule.refresh_due == clock.now
    read(schedule)
    schedule.on_metadata_change()
    assert schedule.refresh_due == clock.now + 0.5


def test_pass_that_does_not_end_is_due_again(schedule: Schedule, clock: Clock) -> None:
    schedule.read_begins()
    assert clock.now < schedule.refresh_due < clock.now + 2
    schedule.compare_begins(on_event=False)
    assert schedule.compare_due == clock.now + 5


def test_new_configuration_applies_at_once(schedule: Schedule, clock: Clock) -> None:
    read(schedule)
    schedule.on_configuration(Config(refresh_timer=7.0))
    assert schedule.refresh_due == clock.now
    read(schedule)
    assert schedule.refresh_due == clock.now + 7


def test_unconfirmable_change_causes_a_read(schedule: Schedule, clock: Clock) -> None:
    read(schedule)
    schedule.read_before_change()
    assert schedule.refresh_due == clock.now
    read(schedule, ReadResult(failed=True))
    due = schedule.refresh_due
    schedule.read_before_change()
    assert schedule.refresh_due == due, "no request during the backoff"


def test_new_link_causes_reads_with_backoff() -> None:
    mismatch = InterfaceMismatch()
    assert mismatch.read_due(KNOWN, Config(), host(link(1)), 10.0) == math.inf
    now, reads = 100.0, []
    while now < math.inf:
        reads.append(now - 100.0)
        now = mismatch.read_due(KNOWN, Config(), BOTH, now)
    assert reads[:5] == [0.0, 0.0, 1.0, 2.0, 3.0]
    assert reads == sorted(reads)
    assert 30.0 <= reads[-1] < 60.0


def test_link_removed_first_causes_reads() -> None:
    mismatch, both = InterfaceMismatch(), instance(interface(1), interface(2))
    assert mismatch.read_due(both, Config(), BOTH, 0.0) == math.inf
    assert mismatch.read_due(both, Config(), host(link(1)), 10.0) == 10.0
    assert mismatch.read_due(both, Config(), host(link(1)), 10.0) == 11.0
    assert mismatch.read_due(KNOWN, Config(), host(link(1)), 11.0) == math.inf


def test_another_new_link_restarts_the_backoff() -> None:
    mismatch = InterfaceMismatch()
    mismatch.read_due(KNOWN, Config(), BOTH, 0.0)
    assert mismatch.read_due(KNOWN, Config(), BOTH, 50.0) == math.inf
    assert mismatch.read_due(KNOWN, Config(), host(link(1), link(2), link(3)), 60.0) == 60.0


@pytest.mark.parametrize(
    ("odd", "config", "counts"),
    [
        (link(2), Config(), True),
        (link(2), Config(exclude=("eth1",)), False),
        (link(2, kind="veth"), Config(), False),
        (link(2, kind="veth"), Config(allow_kinds=("veth",)), True),
        (link(2, mac=""), Config(), False),
        (link(2, hardware=772), Config(), False),
    ],
)
def test_only_possible_interfaces_cause_reads(odd: Link, config: Config, counts: bool) -> None:
    assert (InterfaceMismatch().read_due(KNOWN, config, host(link(1), odd), 5.0) == 5.0) is counts


def test_event_during_a_pass_is_for_the_next_one(schedule: Schedule, clock: Clock) -> None:
    schedule.compare_begins(on_event=True)
    schedule.on_kernel_event()
    schedule.compare_ended(math.inf)
    assert schedule.compare_due == clock.now + 0.5


def test_metadata_change_during_a_read_is_for_the_next_one(schedule: Schedule, clock: Clock) -> None:
    schedule.read_begins()
    schedule.on_metadata_change()
    schedule.read_ended(DONE)
    assert schedule.refresh_due == clock.now + 0.5


def test_metadata_unused_after_failed_kernel_reads_is_read_again(schedule: Schedule, clock: Clock) -> None:
    reading = Reading(KNOWN, None, 1, 0.1)
    for report, most in (
        (PassReport(kernel_error="rtnetlink: interrupted 10 times by changes"), 2.0),
        (PassReport(), 300),
    ):
        schedule.read_begins()
        schedule.read_ended(read_result(reading, report))
        assert schedule.refresh_due <= clock.now + most
    assert schedule.refresh_due == clock.now + 300
