"""Upgrade from wire version 2: the earlier netagent is killed with an open change, which the current one rolls back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cloud_network.netagent import protocol

from tests.lab import Lab, Spec
from tests.system.netagent.conftest import answers, start
from tests.system.netagent.fault_bench import State, comparable, verify_audit_log
from tests.system.netagent.identities import UserWire
from tests.system.netagent.wire import (
    CONFIG,
    Wire,
    address,
    audit_lines,
    ifindex,
    kernel_state,
    main_rule,
    route,
    rule,
)

CHECKOUT = Path(__file__).parents[3]
BEFORE = "7faa7dbc7b115969097a8668540d2176cce63f69"
"""The last commit with wire and ledger version 2."""
PLACE = "/run/before"
LEDGER = "/run/cloud-network-netagent/ledger"
START = "import sys; sys.path[:] = sys.argv.pop(1).split(':'); from cloud_network.netagent.start import main; main()"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.batch(["link set eth0 up"])
        yield lab


def start_before(lab: Lab) -> subprocess.Popen[str]:
    """Start the netagent of that commit, as that commit starts it."""
    argv = ["git", "-C", str(CHECKOUT), "archive", "--format=tar", BEFORE, "netagent"]
    packed = subprocess.run(argv, capture_output=True, check=True).stdout
    package = lab.path(PLACE) / "cloud_network"
    package.mkdir(parents=True)
    subprocess.run(["tar", "--extract", f"--directory={package}"], input=packed, check=True)
    library = sysconfig.get_path("stdlib")
    path = ":".join([PLACE, library, f"{library}/lib-dynload", sysconfig.get_path("platlib")])
    log = lab.path("/run/before.log").open("wb")
    process = lab.instance.popen([sys.executable, "-I", "-S", "-c", START, path], stdout=log, stderr=log)
    lab.wait_for(lambda: answers(lab))
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """Kill netagent; nothing is rolled back."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()  # of nsenter(1)
    subprocess.run(["kill", "-KILL", child], check=True)
    process.wait(10)


def state(lab: Lab) -> State:
    return comparable(kernel_state(lab))


def kept(on: int) -> list[dict[str, Any]]:
    """Return a change that is confirmed."""
    return [
        address(on, "10.0.2.10/24"),
        {**address(on, "10.0.2.11/32"), "route": False},
        route(on, "0.0.0.0/0", "10.0.2.1"),
        main_rule(),
        rule("10.0.2.10", 9999 + on, suppress=True),
        rule("10.0.2.10", 9999 + on, 31020),
        rule("10.0.2.0/24", 9999 + on, 31021, local=True),
    ]


def opened(on: int) -> list[dict[str, Any]]:
    """Return a change that is open when netagent is killed: it adds, replaces and removes."""
    return [
        rule("10.0.2.10", 9999 + on, 31020, op="rule_remove"),
        route(on, "10.9.0.0/16", "10.0.2.1"),
        {**address(on, "10.0.2.12/32"), "route": False},
        rule("10.0.2.12", 9999 + on),
        address(on, "10.0.2.11/32", "address_remove"),
        address(on, "fd00:2::10/128"),
    ]


def earlier(ops: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the operations of wire version 2, in which rules have no marks."""
    return [{key: value for key, value in op.items() if key not in ("mark", "mask")} for op in ops]


def test_an_open_change_of_the_earlier_netagent_is_rolled_back(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    before = start_before(lab)
    clean = state(lab)
    with UserWire(lab) as wire:
        assert wire.apply(*earlier(kept(on)), request="kept")["verdict"] == "applied"
        confirmed = state(lab)
        assert wire.apply(address(on, "8.8.8.8"))["verdict"] == "refused"
        assert wire.apply(*earlier(opened(on)), confirm_within=600, request="open")["verdict"] == "applied"
        kill(before)
    lines = audit_lines(lab)
    assert len(msgpack.unpackb(lab.path(LEDGER).read_bytes())) == 3  # version 2 has no gateways
    assert state(lab) != confirmed

    start(lab)
    assert state(lab) == confirmed
    after = audit_lines(lab)
    assert after[: len(lines)] == lines
    last = after[-1]
    assert (last["request"], last["id"], last["verdict"], last["not_undone"]) == ("rollback", "open", "rolled back", [])
    assert (last["seq"], last["prev"]) == (lines[-1]["seq"] + 1, lines[-1]["hash"])
    assert (
        hashlib.sha256(json.dumps(last, separators=(",", ":")).partition(',"hash"')[0].encode()).hexdigest()
        == last["hash"]
    )
    verify_audit_log(lab)
    with Wire(lab) as wire:
        assert wire.ask(request="flush", id="flush")["done"] == len(kept(on))
    assert state(lab) == clean


def test_a_client_of_the_earlier_wire_learns_the_version(lab: Lab) -> None:
    """The client asks for the version first. Operations without marks keep their meaning; rules without the keys are
    refused.
    """
    on = ifindex(lab, "eth0")
    start(lab)
    with UserWire(lab) as wire:
        assert wire.ask(request="hello", version=2) == {"verdict": "refused", "version": protocol.VERSION}
        assert wire.apply(*kept(on)[:3])["verdict"] == "applied"
        assert wire.ask(request="hello", version=protocol.VERSION)["verdict"] == "ok"
    with UserWire(lab) as wire:
        assert "'mark' is missing" in wire.apply(*earlier(kept(on))[3:])["reason"]
