"""status.json and the other state files: results of passes, changes only, and an earlier fetcher's state."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.link_status import MAX_DRIFT, link_statuses
from cloud_network.fetcher.metadata.model import Instance, MetadataError, Problem
from cloud_network.fetcher.metadata.reading import Reading
from cloud_network.fetcher.network.matching import match_links
from cloud_network.fetcher.network.objects import Actual
from cloud_network.fetcher.reconciler import FLUSHED
from cloud_network.fetcher.reporting import (
    Attempt,
    Comparison,
    Condition,
    Conditions,
    PassReport,
    Reporter,
    Snapshot,
)
from cloud_network.fetcher.state import StateDirectory
from cloud_network.fetcher.status import LinkStatus
from cloud_network.netagent.claims import SECOND_TABLE

from .test_schedule import Clock
from .values import BASE, after_changes, host, instance, interface, kernel_address, link, plan_of, wanted

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/status.schema.json").read_text())
CLOUD = instance(
    interface(1, document={"mac": "a"}), interface(2, document={"mac": "b"}),
    system={"ami-id": "x"}, identity={"document": b"{}", "pkcs7": b"M\nI"},
)  # fmt: skip
BARE = host(link(1), link(2))
SETTLED = after_changes(plan_of(wanted(CLOUD, BARE), BARE), BARE)


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    directory = StateDirectory(tmp_path)
    directory.prepare()
    return directory


@pytest.fixture
def reporter(state: StateDirectory) -> Reporter:
    return Reporter(state, "aws", "0123456789abcdef", Config())


def published(state: StateDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(state.status_path).read_text())
    jsonschema.validate(found, SCHEMA)
    return found


def comparison(cloud: Instance, here: Actual, **config: Any) -> Comparison:
    settings = Config(**config)
    goal = wanted(cloud, here, **config)
    changes = plan_of(goal, here)
    snapshot = Snapshot(cloud, cloud, match_links(cloud, settings, here.links), settings, here)
    return Comparison(snapshot, goal, changes, changes, changes, {})


def refreshed(cloud: Instance = CLOUD, here: Actual = SETTLED, **more: Any) -> PassReport:
    reading = Reading(cloud, None, requests=7, seconds=0.25)
    return PassReport(reading=reading, comparison=comparison(cloud, here), **more)


def failed(kind: str = "timeout") -> PassReport:
    return PassReport(reading=Reading(None, MetadataError(kind, "no answer"), requests=1, seconds=5.0))


@pytest.mark.exhaustive
def test_largest_status_is_within_4_mib(reporter: Reporter, state: StateDirectory) -> None:
    """64 interfaces with 4,096 addresses, 256 subnets and 1,000 public addresses each; nothing is configured yet."""
    interfaces = [
        replace(
            interface(number),
            addresses=tuple(ip_interface((f"2001:db8:{number:x}:ffff:ffff:ffff:ffff:{n:x}", 64)) for n in range(64)),
            subnets=tuple(ip_network(f"2001:db8:{number:x}:{n:x}:ffff:ffff:ffff:0/112") for n in range(256)),
            public=tuple(ip_address(f"2001:db8:ffff:ffff:ffff:ffff:{number:x}:{n:x}") for n in range(1000)),
        )
        for number in range(1, 65)
    ]
    reporter.record(refreshed(instance(*interfaces), host(*(link(number) for number in range(1, 65)))))
    assert len(Path(state.status_path).read_bytes()) <= 4 << 20
    found = published(state)
    assert sum(len(each["addresses"]) for each in found["links"].values()) == 4096
    assert "status.json would have" in found["notices"][0]
    assert state.read_status() is not None, "readers accept this size"


def test_first_status_is_a_start(reporter: Reporter, state: StateDirectory) -> None:
    reporter.renew()
    found = published(state)
    assert (found["state"], found["fetched_at"], found["run"]) == ("starting", None, "0123456789abcdef")


def test_agreement_is_ok(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(refreshed())
    found = published(state)
    assert (found["state"], found["last_error"]) == ("ok", None)
    assert found["fetched_at"]
    assert found["compared_at"]
    assert reporter.summary("x") == "2 interfaces, 2 addresses, in agreement"


def test_missing_objects_are_degraded(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(refreshed(here=BARE, netagent_pending=True))
    assert published(state)["state"] == "degraded"
    assert "changes to make" in reporter.summary("x")


def test_failed_read_is_an_error_until_the_next_succeeds(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(failed())
    assert reporter.summary("192.0.2.1") == (
        "waiting for metadata at 192.0.2.1: no answer; nothing is removed (attempt 1)"
    )
    reporter.record(refreshed())
    reporter.record(failed("status"))
    found = published(state)
    assert (found["state"], found["last_error"]["kind"]) == ("error", "metadata")
    assert "nothing is removed" in found["last_error"]["message"]
    assert found["counters"]["metadata_errors"] == {"timeout": 1, "status": 1}
    assert found["counters"]["metadata_requests"] == 9
    reporter.record(refreshed())
    assert published(state)["state"] == "ok"


def test_problem_of_one_interface_is_degraded(reporter: Reporter, state: StateDirectory) -> None:
    odd = instance(*CLOUD.interfaces, problems=(Problem("02:00:00:00:00:03", "macs/...: no address"),))
    reporter.record(refreshed(odd))
    found = published(state)
    assert found["state"] == "degraded"
    assert found["last_error"]["message"].startswith("macs/...: no address; that part is left out")


def test_failure_of_netagent_is_named_and_counted(reporter: Reporter, state: StateDirectory) -> None:
    attempt = Attempt("unreachable", None, "is it running?", 0)
    problem = Condition("netagent", "is it running?", serious=True)
    reporter.record(refreshed(here=BARE, attempts=(attempt,), netagent=problem))
    found = published(state)
    assert (found["state"], found["netagent"]["verdict"]) == ("error", "unreachable")
    assert found["counters"]["netagent_requests"] == {"unreachable": 1}
    reporter.record(refreshed())
    assert published(state)["state"] == "ok"


def test_netagent_that_does_not_listen_is_an_error(reporter: Reporter, state: StateDirectory) -> None:
    """Also if nothing has to be changed. A comparison does not clear the error; netagent's return does."""
    reporter.record(refreshed())
    reporter.record_netagent(listening=False)
    reporter.record(refreshed())
    found = published(state)
    assert (found["state"], found["last_error"]["kind"], found["netagent"]["listening"]) == ("error", "netagent", False)
    reporter.record(refreshed(here=BARE, attempts=(Attempt("confirmed", "r", None, 3),), netagent_pending=True))
    assert published(state)["netagent"]["listening"] is False
    reporter.record_netagent(listening=True)
    reporter.record(refreshed())
    assert (published(state)["state"], published(state)["last_error"]) == ("ok", None)


def test_kernel_that_cannot_be_read_is_an_error(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(refreshed())
    reporter.record(PassReport(kernel_error="rtnetlink: no"))
    assert (published(state)["state"], published(state)["last_error"]["kind"]) == ("error", "kernel")


def test_generation_rises_with_news_only(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(refreshed())
    first = published(state)["generation"]
    reporter.read_begins()
    reporter.record(refreshed())
    assert published(state)["generation"] == first
    reporter.record(refreshed(here=BARE))
    assert published(state)["generation"] == first + 1


def test_new_fetcher_continues_where_the_old_one_was(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(refreshed(repaired=3))
    new = Reporter(state, "aws", "f" * 16, Config())
    new.renew()
    found = published(state)
    assert found["fetched_at"] == reporter.status["fetched_at"]
    assert found["counters"]["drift_repaired"] == 3
    assert found["generation"] == reporter.status["generation"]
    assert (found["state"], found["run"]) == ("starting", "f" * 16)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 99}', '{"version": 3, "links": 7}'])
def test_unusable_previous_status_is_ignored(state: StateDirectory, content: str) -> None:
    Path(state.status_path).write_text(content)
    Reporter(state, "aws", "0" * 16, Config()).renew()
    assert published(state)["links"] == {}


def test_status_of_another_cloud_is_ignored(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(refreshed())
    assert Reporter(state, "gcp", "0" * 16, Config()).status["fetched_at"] is None


def inodes(state: StateDirectory) -> dict[str, int]:
    files = (path for path in Path(state.path).rglob("*") if path.is_file() and path.name != "status.json")
    return {str(path): path.stat().st_ino for path in files}


def test_documents_are_written_when_they_change(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(refreshed())
    assert state.read_links() == {2: {"mac": "a"}, 3: {"mac": "b"}}
    assert state.read_system() == {"ami-id": "x"}
    assert (state.read_identity("aws", "document"), state.read_identity("aws", "pkcs7")) == (b"{}", b"M\nI")
    before = inodes(state)
    reporter.record(refreshed())
    assert inodes(state) == before


def test_document_of_a_removed_link_is_removed(reporter: Reporter, state: StateDirectory) -> None:
    reporter.record(refreshed())
    reporter.record(refreshed(here=host(link(1))))
    assert state.link_indexes() == [2]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("[]")])
def test_damaged_documents_are_written_again(
    reporter: Reporter, state: StateDirectory, spoil: Callable[[Path], object]
) -> None:
    reporter.record(refreshed())
    before = {path: Path(path).read_bytes() for path in inodes(state)}
    for path in before:
        spoil(Path(path))
    reporter.record(refreshed())
    assert {path: Path(path).read_bytes() for path in before} == before


def test_unknown_interface_is_logged_once_for_each_reason(
    reporter: Reporter, state: StateDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    vlan = link(2, "eth0.7", kind="vlan")
    for here in (host(link(1)), host(link(1)), host(link(1), vlan), host(link(1), vlan)):
        reporter.record(refreshed(here=here))
    messages = [record.getMessage() for record in caplog.records if "metadata: interface" in record.getMessage()]
    assert len(messages) == 2
    assert "no link of this host has that MAC" in messages[0]
    assert 'eth0.7 has that MAC and is of kind vlan, which needs [Netagent] AllowKinds="vlan"' in messages[1]
    assert published(state)["unknown_macs"] == [CLOUD.interfaces[1].mac]


# Conditions


def test_condition_is_logged_when_it_starts_changes_and_clears(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cloud_network")
    clock = Clock()
    conditions = Conditions(clock)
    conditions.clear("metadata")
    for message in ("no answer", "no answer", "HTTP 500", "HTTP 500"):
        conditions.begin(Condition("metadata", message, serious=True))
        clock.now += 10
    conditions.clear("metadata")
    conditions.clear("metadata")
    conditions.begin(Condition("config", "left out: a", transient=True))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "metadata: no answer"),
        ("ERROR", "metadata: HTTP 500"),
        ("INFO", "metadata: recovered after 40 s"),
        ("WARNING", "config: left out: a"),
    ]


def test_last_condition_is_shown_and_seriousness_follows() -> None:
    conditions = Conditions()
    assert (conditions.last, conditions.serious) == (None, False)
    conditions.begin(Condition("netagent", "refused"))
    conditions.begin(Condition("metadata", "no answer", serious=True))
    assert conditions.last is not None
    assert (conditions.last["kind"], conditions.serious) == ("metadata", True)
    conditions.begin(Condition("metadata", "one interface is odd"))
    assert not conditions.serious
    conditions.clear("metadata")
    assert conditions.last["message"] == "refused"


def test_serious_condition_is_shown_before_a_later_one() -> None:
    conditions = Conditions()
    conditions.begin(Condition("metadata", "no answer", serious=True))
    conditions.begin(Condition("config", "left out: a"))
    assert conditions.last is not None
    assert conditions.last["kind"] == "metadata"


def test_flush_is_shown_before_a_later_condition() -> None:
    conditions = Conditions()
    conditions.begin(Condition("netagent", FLUSHED, leading=True))
    conditions.begin(Condition("config", "left out: IPv6 is disabled"))
    assert conditions.last is not None
    assert conditions.last["message"] == FLUSHED


def test_slow_server_is_reported_until_the_next_pass_or_read(state: StateDirectory, reporter: Reporter) -> None:
    settled = PassReport(comparison=comparison(CLOUD, SETTLED))
    reporter.record_slow_server()
    reporter.record(PassReport())
    reporter.record(replace(settled, read_first=True, netagent=Condition("netagent", "other changes are applied")))
    assert "takes seconds to answer" in published(state)["last_error"]["message"], "a read follows"
    reporter.record(settled)
    assert published(state)["last_error"] is None


# Links


def shown(cloud: Instance, here: Actual, **config: object) -> dict[str, LinkStatus]:
    found = comparison(cloud, here, **config)
    snapshot = found.snapshot
    return link_statuses(cloud, snapshot.matches, snapshot.config, here, found.wanted, found.changes)


def test_link_status_lists_present_and_missing_objects() -> None:
    cloud = instance(interface(1, "10.0.1.10", "10.0.1.11", public=interface(9).gateways), interface(2))
    before = host(link(1), link(2), addresses=kernel_address(2, "10.0.1.10/24"))
    first = shown(cloud, before)["2"]
    assert (first["state"], first["desired"], first["actual"]) == ("drift", 2 + 3 + 2, 1)
    rule = "ip rule add pref 31000 from 10.0.1.0/24 iif lo lookup 10001 suppress_prefixlength 0 protocol 209"
    common = "ip rule add pref 31010 from all lookup main suppress_prefixlength 0 protocol 209"
    assert {"ip address add 10.0.1.11/32 dev eth0 noprefixroute", rule, common} <= set(first["drift"])
    assert not any("eth1" in line for line in first["drift"])
    assert [(each["present"], each["owned"], each["public"]) for each in first["addresses"]] == [
        (True, False, ["10.0.9.1"]),
        (False, False, []),
    ]
    assert (first["table"], first["gateways"], first["subnets"]) == (BASE + 2, ["10.0.1.1"], ["10.0.1.0/24"])


def test_excluded_address_is_marked_and_needs_no_change() -> None:
    excluded = (ip_network("10.0.1.11/32"),)
    cloud, before = instance(interface(1, "10.0.1.10", "10.0.1.11"), interface(2)), host(link(1), link(2))
    here = after_changes(plan_of(wanted(cloud, before, exclude_addresses=excluded), before), before)
    first = shown(cloud, here, exclude_addresses=excluded)["2"]
    assert (first["state"], first["drift"]) == ("ok", [])
    assert [(each["present"], each["excluded"]) for each in first["addresses"]] == [(True, False), (False, True)]


def test_address_is_shown_with_the_table_of_its_replies() -> None:
    public = interface(1, "10.0.1.10", "10.17.0.5", subnets=["10.0.1.0/24", "10.17.0.0/16"])
    anchor = (ip_network("10.17.0.0/16"), ip_address("10.17.0.1"))
    droplet = instance(replace(public, gateways=public.gateways[:1], anchor=anchor), interface(2))
    found = shown(droplet, host(link(1), link(2)))
    assert [each["table"] for each in found["2"]["addresses"]] == [BASE + 2, BASE + 2 + SECOND_TABLE]
    assert (found["2"]["table"], found["2"]["gateways"]) == (BASE + 2, ["10.0.1.1", "10.17.0.1"])
    alone = shown(instance(interface(1)), host(link(1)))
    assert [each["table"] for each in alone["2"]["addresses"]] == [None]


def test_settled_link_has_everything() -> None:
    settled = shown(CLOUD, SETTLED)
    assert {each["state"] for each in settled.values()} == {"ok"}
    assert all(each["desired"] == each["actual"] and each["drift"] == [] for each in settled.values())


def test_excluded_link_is_shown_as_such() -> None:
    found = shown(instance(interface(1), interface(2)), BARE, exclude=("eth1",))["3"]
    assert (found["state"], found["table"], found["desired"]) == ("excluded", None, 0)


def test_long_drift_is_cut() -> None:
    addresses = [f"10.0.{8 + n // 250}.{n % 250 + 2}" for n in range(400)]
    many = instance(interface(1, *addresses, subnets=["10.0.8.0/22"]))
    drift = shown(many, host(link(1)))["2"]["drift"]
    assert len(drift) == MAX_DRIFT + 1
    assert drift[-1] == f"and {400 - MAX_DRIFT} more"


def test_report_without_a_retry_waits_for_events() -> None:
    assert PassReport().retry_at == math.inf
