"""ForwardedReplies="mark": published ports answer on every address, and nothing of other programs changes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.lab import Lab
from tests.lab.rooms import Room
from tests.system.forwarding import SPEC, SYSCTL, Container, answered
from tests.system.job import ask, audit, cnctl, errors, ip, ours, refresh, running, status

MARK = '[Network]\nForwardedReplies = "mark"\n'
OFF = "[Netagent]\nAllowKinds = \"veth\"\n"
TABLE = ["nft", "-s", "list", "table", "inet", "cloud_network"]


@pytest.fixture(scope="module")
def marked() -> Iterator[tuple[Lab, Container]]:
    with running(replace(SPEC, sysctl=SYSCTL), MARK) as lab:
        container = Container(lab)
        lab.wait_for(lambda: refresh(lab) == "ok")
        yield lab, container
        container.close()


@pytest.fixture
def lab(marked: tuple[Lab, Container]) -> Lab:
    return marked[0]


@pytest.fixture
def container(marked: tuple[Lab, Container]) -> Container:
    return marked[1]


def table(lab: Lab) -> str:
    return lab.run(TABLE, check=False).stdout


def ruleset(lab: Lab) -> str:
    """The nftables of all other programs."""
    text = lab.run(["nft", "-s", "list", "ruleset"]).stdout
    return re.sub(r"table inet cloud_network \{\n.*?\n\}\n", "", text, flags=re.DOTALL)


def mark_rules(lab: Lab) -> list[dict[str, Any]]:
    return [rule for version in (4, 6) for rule in ours(lab, f"rule-{version}") if "fwmark" in rule]


def count(found: dict[tuple[str, str], bool]) -> str:
    return f"{sum(found.values())} of {len(found)}"


def test_without_marks_a_third_of_the_pairs_answers() -> None:
    with running(replace(SPEC, sysctl=SYSCTL)) as lab:
        container = Container(lab)
        assert refresh(lab) == "ok"
        assert table(lab) == ""
        assert count(answered(lab, "tcp", lab.addresses)) == "8 of 25"
        assert count(answered(lab, "udp", lab.addresses)) == "8 of 25"
        container.close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_pair_answers(lab: Lab, protocol: str) -> None:
    lab.fabric.forget_lost()
    assert count(answered(lab, protocol, lab.addresses)) == "25 of 25"
    found = answered(lab, protocol, lab.addresses6)
    assert all(found.values()), found
    assert lab.dropped() == 0
    assert all(lab.reachability().values()), "and the host's own addresses do, too"
