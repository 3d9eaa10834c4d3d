"""When the next pass is due. What a pass does is tried in the lab."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers.aws import Aws
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.objects import Actual
from cloud_network.fetcher.reconcile import Reconciler
from cloud_network.fetcher.state import StateDirectory

from tests.unit.fetcher.conftest import Cloud


@pytest.fixture
def reconciler(client: Client, tmp_path: Path) -> Reconciler:
    state = StateDirectory(tmp_path)
    state.prepare()
    return Reconciler(Config(), Aws(client), state)


def soon(due: float) -> float:
    return due - time.monotonic()


def test_it_begins_with_a_read_at_once_and_nothing_to_compare(reconciler: Reconciler) -> None:
    assert reconciler.refresh_due <= time.monotonic()
    assert reconciler.compare_due == math.inf


def test_kernel_events_are_waited_out_but_not_for_ever(reconciler: Reconciler) -> None:
    """A burst is given a moment to end; events that go on and on do not put the look off."""
    reconciler.noticed()
    due = reconciler.compare_due
    assert 0.0 < soon(due) <= 0.05
    reconciler.noticed()
    assert reconciler.compare_due == due


def test_events_after_a_look_wait_for_the_pace(reconciler: Reconciler) -> None:
    reconciler.converge()
    assert reconciler.compare_due == math.inf  # nothing is known yet
    reconciler.noticed()
    assert 0.3 < soon(reconciler.compare_due) <= 0.5


def test_failures_to_read_wait_longer_each_time_and_a_success_forgets_them(
    cloud: Cloud, reconciler: Reconciler
) -> None:
    cloud.fail("status", "*", status=500)
    waits = []
    for _ in range(4):
        reconciler.refresh()
        waits.append(soon(reconciler.refresh_due))
    assert all(0.7 * expected < wait < 1.3 * expected for wait, expected in zip(waits, (1, 2, 4, 8), strict=True))
    status = reconciler.refresh_now()
    assert (status["state"], status["metadata_requests"]) == ("error", 1)
    assert soon(reconciler.refresh_due) < 1.3  # somebody asked: it begins anew


def test_failed_reads_are_counted_by_kind_and_their_time_is_told(cloud: Cloud, reconciler: Reconciler) -> None:
    cloud.fail("status", "*", status=500)
    reconciler.refresh()
    status = reconciler.refresh_now()
    assert status["counters"]["metadata_errors"] == {"status": 2}
    assert status["counters"]["metadata_requests"] == 2
    assert 0.0 < status["metadata_seconds"] < 60.0


@pytest.mark.parametrize(("asked", "least", "most"), [(20, 20, 21), (7200, 300, 301), (0, 0.7, 1.3)])
def test_a_server_that_asks_for_peace_is_left_in_peace_within_reason(
    cloud: Cloud, reconciler: Reconciler, asked: int, least: float, most: float
) -> None:
    cloud.fail("status", "*", status=429, retry_after=asked)
    reconciler.refresh()
    assert least - 0.1 < soon(reconciler.refresh_due) < most
    due = reconciler.refresh_due
    reconciler.changed()
    assert reconciler.refresh_due == due if asked else soon(reconciler.refresh_due) <= 0.5


@pytest.mark.parametrize(
    ("kind", "reason"), [("unreachable", True), ("timeout", True), ("status", False), ("truncated", False)]
)
def test_kernel_event_repeats_an_unanswered_read(
    cloud: Cloud, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch, kind: str, reason: bool
) -> None:
    """The network may be up now. A storm of events does not cause a storm of reads."""

    def fail() -> None:
        raise MetadataError(kind, "")

    def is_a_reason() -> bool:
        later = reconciler.refresh_due = time.monotonic() + 50
        reconciler.noticed()
        return reconciler.refresh_due != later

    with monkeypatch.context() as broken:
        broken.setattr(reconciler.provider, "fetch", fail)
        reconciler.refresh()
        assert is_a_reason() is reason
        if reason:
            assert 4.0 < soon(reconciler.refresh_due) <= 5.0
            broken.setattr(reconciler, "_unanswered_at", time.monotonic() - 100)
            assert is_a_reason()
            assert 0.0 < soon(reconciler.refresh_due) <= 0.05
    reconciler.refresh()
    assert not is_a_reason()


def test_a_change_of_the_metadata_is_read_at_once_but_not_all_the_time(reconciler: Reconciler) -> None:
    reconciler.refresh_due = math.inf
    reconciler.changed()
    assert soon(reconciler.refresh_due) <= 0
    reconciler.refresh()
    reconciler.changed()
    assert 0.2 < soon(reconciler.refresh_due) <= 0.5


def test_a_step_that_fails_unexpectedly_is_due_again_later_and_not_at_once(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError

    monkeypatch.setattr(reconciler.provider, "fetch", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            reconciler.refresh()
    assert soon(reconciler.refresh_due) > 1.0


def test_a_new_configuration_is_taken_up_at_once(reconciler: Reconciler) -> None:
    reconciler.refresh_due = math.inf
    reconciler.reconfigure(Config(refresh_timer=7.0))
    assert reconciler.refresh_due <= time.monotonic()


def test_the_kernel_is_read_in_every_refresh_and_otherwise_when_it_has_said_something(
    client: Client, tmp_path: Path
) -> None:
    state, said = StateDirectory(tmp_path), list[bool]()
    state.prepare()

    class Counting(kernel.Reader):
        looks = 0

        def read(self) -> Actual:
            self.looks += 1
            return super().read()

    reconciler = Reconciler(Config(), Aws(client), state, news=lambda: bool(said and said.pop()))
    reader = reconciler._kernel = Counting()

    def looks(step: Callable[[], object]) -> int:
        before = reader.looks
        step()
        return reader.looks - before

    fetch = reconciler.provider.fetch

    def meanwhile() -> Instance:
        said.append(True)
        return fetch()

    assert looks(reconciler.refresh) == 1
    assert looks(reconciler.refresh) == 1, "it may have said something that nobody heard"
    assert looks(reconciler.converge) == 0
    said.append(True)
    assert looks(reconciler.converge) == 1
    reconciler.noticed()
    assert looks(reconciler.converge) == 1
    reconciler.provider.fetch = meanwhile  # type: ignore[method-assign]
    assert looks(reconciler.refresh) == 2, "before the metadata are read, and after them"
