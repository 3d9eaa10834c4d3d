"""What is written for others to read: only what changed, never half, and what a fetcher before us knew is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.publish import Publisher
from cloud_network.fetcher.report import link_statuses
from cloud_network.fetcher.state import StateDirectory

from tests.unit.fetcher.values import BASE, carried_out, has, host, instance, interface, link, plan_of, wanted

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/status.schema.json").read_text())


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    directory = StateDirectory(tmp_path)
    directory.prepare()
    return directory


def published(state: StateDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(state.status_path).read_text())
    jsonschema.validate(found, SCHEMA)
    return found


def test_the_first_status_is_a_start_and_fits_its_schema(state: StateDirectory) -> None:
    Publisher(state, "aws").publish()
    assert (published(state)["state"], published(state)["fetched_at"]) == ("starting", None)


def test_the_generation_grows_with_anything_but_a_time(state: StateDirectory) -> None:
    publisher = Publisher(state, "aws")
    publisher.publish()
    first = published(state)["generation"]
    publisher.status["attempted_at"] = publisher.status["fetched_at"] = "2026-01-02T03:04:05Z"
    publisher.publish()
    assert published(state)["generation"] == first
    publisher.status["metadata_requests"] = 7
    publisher.publish()
    publisher.publish()
    assert published(state)["generation"] == first + 1


def test_the_generation_does_not_grow_with_a_counter(state: StateDirectory) -> None:
    publisher = Publisher(state, "aws")
    publisher.publish()
    first = published(state)
    publisher.status["counters"]["metadata_requests"] += 1
    publisher.status["metadata_seconds"] = 0.25
    publisher.publish()
    second = published(state)
    assert second["counters"]["metadata_requests"] == 1
    assert second["generation"] == first["generation"]


def test_a_new_fetcher_goes_on_where_the_old_one_was(state: StateDirectory) -> None:
    old = Publisher(state, "aws")
    old.status["fetched_at"] = "2026-01-02T03:04:05Z"
    old.status["unknown_macs"] = ["02:00:00:00:00:07"]
    old.status["metadata_requests"] = 7
    old.status["counters"]["drift_repaired"] = 3
    old.publish()
    new = Publisher(state, "aws")
    new.publish()
    found = published(state)
    assert (found["fetched_at"], found["unknown_macs"]) == ("2026-01-02T03:04:05Z", ["02:00:00:00:00:07"])
    assert found["metadata_requests"] == 0
    assert found["counters"]["drift_repaired"] == 3
    assert found["generation"] == old.status["generation"] + 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 99}', '{"version": 1, "links": 7}'])
def test_a_status_that_cannot_be_used_is_as_none(state: StateDirectory, content: str) -> None:
    Path(state.status_path).write_text(content)
    Publisher(state, "aws").publish()
    assert published(state)["links"] == {}


def test_another_clouds_status_is_not_ours(state: StateDirectory) -> None:
    other = Publisher(state, "gcp")
    other.status["fetched_at"] = "2026-01-02T03:04:05Z"
    other.publish()
    assert Publisher(state, "aws").status["fetched_at"] is None


def inodes(state: StateDirectory) -> dict[str, int]:
    return {str(path): path.stat().st_ino for path in Path(state.path).rglob("*") if path.is_file()}


CLOUD = instance(
    interface(1, document={"mac": "a"}), interface(2, document={"mac": "b"}),
    system={"ami-id": "x"}, identity={"document": b"{}", "pkcs7": b"M\nI"},
)  # fmt: skip


def test_documents_are_in_the_metadatas_words_and_written_when_they_change(state: StateDirectory) -> None:
    publisher, here = Publisher(state, "aws"), host(link(1), link(2))
    publisher.documents(CLOUD, wanted(CLOUD, here))
    assert state.read_links() == {2: {"mac": "a"}, 3: {"mac": "b"}}
    assert state.read_system() == {"ami-id": "x"}
    assert (state.read_identity("aws", "document"), state.read_identity("aws", "pkcs7")) == (b"{}", b"M\nI")
    before = inodes(state)
    publisher.documents(CLOUD, wanted(CLOUD, here))
    assert inodes(state) == before


def test_a_link_that_is_gone_takes_its_document_along(state: StateDirectory) -> None:
    publisher = Publisher(state, "aws")
    publisher.documents(CLOUD, wanted(CLOUD, host(link(1), link(2))))
    publisher.documents(CLOUD, wanted(CLOUD, host(link(1))))
    assert state.link_indexes() == [2]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("[]")])
def test_what_somebody_spoilt_is_written_again(state: StateDirectory, spoil: Callable[[Path], object]) -> None:
    publisher, here = Publisher(state, "aws"), host(link(1), link(2))
    publisher.documents(CLOUD, wanted(CLOUD, here))
    before = {path: path.read_bytes() for path in Path(state.path).rglob("*") if path.is_file()}
    for path in before:
        spoil(path)
    publisher.documents(CLOUD, wanted(CLOUD, here))
    assert {path: path.read_bytes() for path in before} == before


def test_a_link_is_told_with_what_is_there_and_what_is_still_to_do() -> None:
    cloud = instance(interface(1, "10.0.1.10", "10.0.1.11", public=interface(9).gateways), interface(2))
    before = host(link(1), link(2), addresses=has(2, "10.0.1.10/24"))
    config, goal = Config(), wanted(cloud, before)
    told = link_statuses(goal, config, before, plan_of(goal, before))
    assert set(told) == {"2", "3"}
    first = told["2"]
    assert (first["state"], first["desired"], first["actual"]) == ("drift", 2 + 3 + 2, 1)
    assert "ip address add 10.0.1.11/32 dev eth0 noprefixroute" in first["drift"]
    assert (
        "ip rule add pref 31000 from 10.0.1.0/24 iif lo lookup 10001 suppress_prefixlength 0 protocol 209"
        in first["drift"]
    )
    assert "ip rule add pref 31010 from all lookup main suppress_prefixlength 0 protocol 209" in first["drift"]
    assert not any("eth1" in line for line in first["drift"])
    assert [(each["present"], each["owned"], each["public"]) for each in first["addresses"]] == [
        (True, False, ["10.0.9.1"]),
        (False, False, []),
    ]
    assert (first["table"], first["gateways"], first["subnets"]) == (BASE + 2, ["10.0.1.1"], ["10.0.1.0/24"])
    after = carried_out(plan_of(goal, before), before)
    settled = link_statuses(wanted(cloud, after), config, after, ())
    assert {each["state"] for each in settled.values()} == {"ok"}
    assert all(each["desired"] == each["actual"] and each["drift"] == [] for each in settled.values())
    assert settled["2"]["addresses"][1]["owned"]


def test_an_excluded_link_is_told_as_such() -> None:
    cloud, here = instance(interface(1), interface(2)), host(link(1), link(2))
    told = link_statuses(wanted(cloud, here, exclude=("eth1",)), Config(exclude=("eth1",)), here, ())
    assert (told["3"]["state"], told["3"]["table"], told["3"]["desired"]) == ("excluded", None, 0)
