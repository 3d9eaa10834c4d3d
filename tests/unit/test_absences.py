"""The soak's watch: the duration of an absence, and the causes in status.json."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab import Nic
from tests.system.absences import Absences, is_reported

NIC = Nic(1, "eth1", "02:00:00:00:00:01", "10.0.1.0/24", ("10.0.1.1", "10.0.1.10"), {})
MISSING = [("10.0.1.1", "eth1")]


def test_absence_above_the_limit_is_reported_once() -> None:
    absences = Absences(5.0)
    assert absences.observe(100.0, MISSING, "") == []
    assert absences.observe(105.0, MISSING, "") == []
    assert [each.seconds for each in absences.observe(105.5, MISSING, "status")] == [5.5]
    assert absences.observe(107.0, MISSING, "") == []
    assert absences.longest == 7.0


def test_absence_starts_again_after_the_address_was_there() -> None:
    absences = Absences(5.0)
    absences.observe(100.0, MISSING, "")
    absences.observe(104.0, [], "")
    assert absences.observe(108.0, MISSING, "") == []
    assert len(absences.observe(113.5, MISSING, "")) == 1


def status_of(**what: Any) -> dict[str, Any]:
    """Return a status.json with one link."""
    link = {"mac": NIC.mac, "state": "ok", "drift": what.pop("drift", [])} | what.pop("link", {})
    return {"last_error": None, "links": {"7": link}, "unknown_macs": [], "notices": [], "conflicts": [], **what}


def error(kind: str, message: str) -> dict[str, Any]:
    return {"last_error": {"at": "", "kind": kind, "message": message}}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (status_of(), False),
        (status_of(drift=["ip address add 10.0.1.10/32 dev eth1"]), False),
        (status_of(drift=["ip address add 10.0.1.1/32 dev eth1"]), True),
        (status_of(link={"state": "excluded"}), True),
        (status_of(**error("metadata", "HTTP 500")), True),
        (status_of(**error("config", "left out: eth10 has 10.0.1.10; x")), False),
        (status_of(**error("config", "left out: a; 10.0.1.1 of eth1: br0 has 10.0.1.1")), True),
        (status_of(**error("config", "left out: eth1: IPv6 is disabled on this link")), False),
        (status_of(notices=["02:00:00:00:00:01: eth1 has that MAC and is a port of br1"]), True),
    ],
)
def test_cause_names_the_address_or_its_link(status: dict[str, Any], expected: bool) -> None:
    assert is_reported(status, NIC, "10.0.1.1") is expected


def test_disabled_ipv6_is_a_cause_for_ipv6() -> None:
    assert is_reported(status_of(**error("config", "left out: eth1: IPv6 is disabled on this link")), NIC, "fd00::1")
