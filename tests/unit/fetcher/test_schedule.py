"""Backoff after failures, and the log of conditions that start, change and clear."""

from __future__ import annotations

import logging

import pytest
from cloud_network.fetcher.errors import Errors
from cloud_network.fetcher.schedule import Backoff


def about(seconds: float, expected: float) -> bool:
    return 0.75 * expected <= seconds <= 1.25 * expected


def test_delay_doubles_to_the_maximum_and_resets() -> None:
    backoff = Backoff(1.0, 6.0)
    assert all(about(backoff.next_delay(), expected) for expected in (1, 2, 4, 6, 6))
    backoff.reset()
    assert about(backoff.next_delay(), 1)


def test_limit_bounds_the_delay() -> None:
    backoff = Backoff(1.0, 60.0)
    assert all(backoff.next_delay(2.0) <= 2.5 for _ in range(10))


def test_jitter_differs_between_instances() -> None:
    assert len({Backoff(1.0, 60.0).next_delay() for _ in range(20)}) > 10


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "cloud_network")
    return caplog


def test_an_error_is_said_when_it_begins_changes_and_ends(heard: pytest.LogCaptureFixture) -> None:
    errors = Errors()
    errors.end("metadata")
    for message in ("no answer", "no answer", "HTTP 500", "HTTP 500"):
        errors.begin("metadata", message, serious=True)
    errors.end("metadata")
    errors.end("metadata")
    errors.begin("metadata", "HTTP 500", serious=True)
    said = [(record.levelname, record.getMessage()) for record in heard.records]
    assert said == [
        ("ERROR", "metadata: no answer"),
        ("ERROR", "metadata: HTTP 500"),
        ("INFO", "metadata: well again"),
        ("ERROR", "metadata: HTTP 500"),
    ]


def test_what_passes_by_itself_is_a_warning(heard: pytest.LogCaptureFixture) -> None:
    errors = Errors()
    errors.begin("config", "left out: a", serious=False, passes=True)
    errors.begin("config", "left out: a; b", serious=False)
    said = [(record.levelname, record.getMessage()) for record in heard.records]
    assert said == [("WARNING", "config: left out: a"), ("ERROR", "config: left out: a; b")]
    assert errors.last is not None


def test_the_error_seen_last_is_shown() -> None:
    errors = Errors()
    assert errors.last is None
    errors.begin("netagent", "refused", serious=False)
    errors.begin("metadata", "no answer", serious=True)
    first = errors.last
    errors.end("metadata")
    second = errors.last
    assert [(each["kind"], each["message"]) for each in (first, second) if each] == [
        ("metadata", "no answer"),
        ("netagent", "refused"),
    ]


@pytest.mark.parametrize(
    ("serious", "then", "expected"), [(True, True, True), (True, False, False), (False, True, True)]
)
def test_an_error_is_as_serious_as_it_was_seen_last(serious: bool, then: bool, expected: bool) -> None:
    errors = Errors()
    errors.begin("metadata", "a", serious=serious)
    errors.begin("metadata", "b", serious=then)
    errors.begin("netagent", "c", serious=False)
    assert errors.serious == expected
    errors.end("metadata")
    assert Errors().serious == errors.serious
