"""Another program adds an address for which cloud-network has, had or is about to have a range in table local."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Lab
from tests.system.netagent.strace import Trace
from tests.system.netagent.test_faults import resume
from tests.system.netagent.wire import Wire, address, ifindex, route

FAMILIES = pytest.mark.parametrize(("text", "length"), [("10.77.0.5/32", 24), ("fd00:77::5/128", 64)])


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """The lab, with an owned address on eth0."""
    with Wire(lab) as wire:
        assert wire.apply(address(ifindex(lab, "eth0"), "10.0.2.10/24"))["verdict"] == "applied"
    return lab


def add(lab: Lab, text: str, length: int) -> None:
    """Add the address of a range to the other interface, as DHCP would."""
    nodad = " nodad" if ":" in text else ""
    lab.batch([f"address add {text.partition('/')[0]}/{length} dev eth1{nodad}"])


def local_routes(lab: Lab, text: str) -> list[str]:
    """Return the interfaces of the routes to the address in table local."""
    version = "-6" if ":" in text else "-4"
    lines = lab.run(["ip", version, "route", "show", "table", "local", text]).stdout.splitlines()
    return [line.partition(" dev ")[2].split()[0] for line in lines]


@FAMILIES
def test_a_rollback_restores_no_range_for_it(lab: Lab, text: str, length: int) -> None:
    """It would replace the kernel's route: the host would then send packets for its own address out."""
    ranged = route(ifindex(lab, "eth0"), text, table=255)
    with Wire(lab) as wire:
        assert wire.apply(ranged)["verdict"] == "applied"
        assert wire.apply({**ranged, "op": "route_remove"}, confirm_within=60, request="o")["verdict"] == "applied"
        add(lab, text, length)
        (left,) = wire.ask(request="rollback", id="o")["not_undone"]
    assert (left["op"], left["reason"]) == ("route_replace", "a link has this address now")
    assert local_routes(lab, text) == ["eth1"]


def test_a_rollback_restores_no_range_for_its_broadcast_address(lab: Lab) -> None:
    ranged = route(ifindex(lab, "eth0"), "10.77.0.255/32", table=255)
    with Wire(lab) as wire:
        assert wire.apply(ranged)["verdict"] == "applied"
        assert wire.apply({**ranged, "op": "route_remove"}, confirm_within=60, request="o")["verdict"] == "applied"
        add(lab, "10.77.0.5/32", 24)
        assert wire.ask(request="rollback", id="o")["verdict"] == "rolled back"
    assert local_routes(lab, "10.77.0.255/32") == ["eth1"]


@FAMILIES
@pytest.mark.parametrize("how", ["removal", "flush"])
def test_the_range_goes_and_the_address_stays(lab: Lab, text: str, length: int, how: str) -> None:
    ranged = route(ifindex(lab, "eth0"), text, table=255)
    with Wire(lab, user="root") as wire:
        assert wire.apply(ranged)["verdict"] == "applied"
        add(lab, text, length)
        lab.wait_for(lambda: sorted(local_routes(lab, text)) == ["eth0", "eth1"])  # IPv6: the kernel adds it later
        gone = {**ranged, "op": "route_remove"}
        answer = wire.apply(gone) if how == "removal" else wire.ask(request="flush", id="flush")
    assert (answer["verdict"], answer.get("not_undone", [])) == ("applied", [])
    assert local_routes(lab, text) == ["eth1"]


@FAMILIES
def test_a_range_replaces_no_address_that_came_later(lab: Lab, text: str, length: int, tmp_path: Path) -> None:
    """netagent is stopped between its check and the change, when it has written the ledger."""
    ranged = route(ifindex(lab, "eth0"), text, table=255)
    stop = "inject=rename:signal=STOP:when=1"
    with Wire(lab) as wire, Trace(lab.daemons.pid("netagent"), tmp_path / "strace", stop) as trace:
        wire.send(request="apply", id="race", ops=[ranged], confirm_within=0)
        lab.wait_for(lambda: "stopped by SIGSTOP" in trace.so_far())
        add(lab, text, length)
        resume(lab)
        wire.answer()
        wire.ask(request="flush", id="flush")
    assert local_routes(lab, text) == ["eth1"]
