"""A real process that keeps reverting cloud-network's changes: it deletes an object whenever it appears."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import Interface, Lab, Spec
from tests.system.service import (
    CONFIG,
    audit,
    cnctl,
    errors,
    ip,
    kernel_addresses,
    own_objects,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
)

ADVERSARY = """
import select, subprocess, sys
show, delete = sys.argv[1].split(), sys.argv[2].split()
while not select.select([sys.stdin], [], [], 0.01)[0]:
    if subprocess.run(["ip", *show], capture_output=True).stdout.strip():
        subprocess.run(["ip", *delete], capture_output=True)
"""
"""Run a process that ends with its standard input."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=2, addresses=3)) as made:
        yield made


@contextmanager
def adversary(lab: Lab, show: str, delete: str) -> Iterator[None]:
    """Run `ip DELETE` while `ip SHOW` prints something."""
    argv = [sys.executable, "-I", "-S", "-c", ADVERSARY, show, delete]
    process = lab.instance.popen(argv, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.communicate(timeout=10)


CASES = {
    "address": ("-4 address show dev eth0 to 10.0.2.11", "address del 10.0.2.11/32 dev eth0"),
    "rule": ("rule show pref 31000 from 10.0.2.0/24", "rule del pref 31000 from 10.0.2.0/24"),
    "route": ("route show default table {table}", "route del default table {table}"),
}


@pytest.mark.parametrize("kind", CASES)
def test_conflict_backs_off_and_is_reported(lab: Lab, kind: str) -> None:
    nic = lab.nics[1]
    assert nic.addresses[1] == "10.0.2.11"
    [index] = [link["ifindex"] for link in ip(lab, "link") if link["ifname"] == nic.name]
    show, delete = (text.replace("eth0", nic.name).format(table=9999 + index) for text in CASES[kind])
    with adversary(lab, show, delete):
        lab.wait_for(lambda: status(lab).get("conflicts"), 20, "the conflict to be reported")
        lab.wait_for(lambda: status(lab)["conflicts"][0]["next_at"], 10, "a pause")
        [fight] = status(lab)["conflicts"]
        assert delete.split()[2] in fight["object"]
        assert f"ip {kind}" in fight["object"]
        assert fight["times"] >= 5
        lab.add_address(nic.mac, "10.0.2.77")  # other changes continue meanwhile
        refresh(lab)
        assert "10.0.2.77" in kernel_addresses(lab)
        lab.wait_for(lambda: status(lab)["conflicts"][0]["times"] >= fight["times"] + 2, 30, "two more tries")
        op, address = {"address": ("address_add", nic.addresses[1]), "rule": ("rule_add", "10.0.2.0")}.get(
            kind, ("route_replace", "0.0.0.0")
        )
        tries = [
            line["monotonic_us"] / 1e6
            for line in audit(lab)
            if any((each["op"], each.get("address")) == (op, address) for each in line.get("ops") or ())
        ]
        assert tries[-1] - tries[-2] > 1.4, "the delays grow"
        assert status(lab)["state"] == "degraded"
        assert "another program reverted it" in " ".join(cnctl(lab, "status").stdout.split())
        assert "reverted by another program" in str(errors(lab))
    wait_for_repair(lab)
    assert own_objects(lab, "rule-4")


def wait_for_repair(lab: Lab) -> None:
    """Check that it is repaired after its delay."""
    lab.wait_for(lambda: not [link for link in status(lab)["links"].values() if link["drift"]], 40, "the last repair")


def test_few_reverts_are_not_a_conflict(lab: Lab) -> None:
    nic = lab.nics[1]
    for _ in range(3):
        lab.batch([f"address del {nic.addresses[1]}/32 dev {nic.name}"])
        lab.wait_for(lambda: nic.addresses[1] in kernel_addresses(lab), 10, "the repair")
        wait_until_healthy(lab)
    assert status(lab)["conflicts"] == []
    assert errors(lab) == []


def test_foreign_route_with_same_key_blocks_nothing_else(lab: Lab) -> None:
    """netagent refuses to change it, and a refusal is of the whole request: the fetcher does not request it."""
    nic = lab.nics[1]
    [index] = [link["ifindex"] for link in ip(lab, "link") if link["ifname"] == nic.name]
    table = 9999 + index
    lab.batch([f"route replace default via 10.0.2.5 dev {nic.name} table {table} proto static"])
    lab.wait_for(lambda: "cloud-network did not add" in str(status(lab)["last_error"]), 10, "the error")
    assert f"cloud-network did not add the route to 0.0.0.0/0 in table {table}" in status(lab)["last_error"]["message"]
    lines = len(audit(lab))
    assert refresh(lab) == "degraded"
    assert len(audit(lab)) == lines
    lab.add_address(nic.mac, "10.0.2.77")
    refresh(lab)
    assert "10.0.2.77" in kernel_addresses(lab)
    assert status(lab)["netagent"]["verdict"] == "confirmed"
    [route] = ip(lab, "route", "show", "default", "table", str(table))
    assert (route["gateway"], route["protocol"]) == ("10.0.2.5", "static")
    lab.batch([f"route del default table {table}"])
    wait_until_healthy(lab)
    assert status(lab)["conflicts"] == []
    assert all(lab.reachability().values())


def test_foreign_rule_at_an_owned_priority_applies(lab: Lab) -> None:
    """The rule is between cloud-network's first step and its last. It applies to this one source only."""
    before = own_objects(lab, "rule-4")
    nic = lab.nics[1]
    foreign_rule = f"rule add pref 31000 from {nic.addresses[1]} lookup main"
    lab.batch([foreign_rule])
    refresh(lab)
    wait_until_healthy(lab)
    assert own_objects(lab, "rule-4") == before
    assert [rule["table"] for rule in ip(lab, "rule") if rule["src"] == nic.addresses[1]] == ["main"]
    assert {pair for pair, answered in lab.reachability().items() if not answered} == {("beyond0", nic.addresses[1])}
    lab.batch([foreign_rule.replace("add", "del") + " protocol 0"])
    assert all(lab.reachability().values())
    assert own_objects(lab, "rule-4") == before


def test_address_moved_to_another_link_is_not_duplicated(lab: Lab) -> None:
    """netagent would refuse a duplicate, so the address stays on the other link and is reported."""
    nic, other = lab.nics[1], lab.nics[0]
    lab.batch(
        [f"address del {nic.addresses[2]}/32 dev {nic.name}", f"address add {nic.addresses[2]}/32 dev {other.name}"]
    )
    lab.wait_for(
        lambda: [line for line in audit(lab) if line["verdict"] == "refused"] or kernel_addresses(lab),
        10,
        "a refusal, or the addresses",
    )
    lab.add_address(other.mac, "10.0.1.77")
    refresh(lab)
    lab.wait_for(lambda: "10.0.1.77" in kernel_addresses(lab), 20, "the new address of the other link")


def test_refusal_blocks_nothing_else(lab: Lab) -> None:
    """A refusal is of the whole request: the next one leaves out what was refused.

    Here: only the fetcher has the key that allows a public subnet.
    """
    lab.write_config(CONFIG + 'AllowAddresses = "198.51.100.0/24"\n')
    lab.daemons.kill("fetcher", 1)
    nic = lab.attach_interface(Interface("198.51.100.0/24", ("198.51.100.7",)))
    lab.add_address(lab.nics[0].mac, "10.0.1.77")
    refresh(lab)
    assert "refused" not in {line["verdict"] for line in audit(lab)}, "netagent refused it before"
    assert "198.51.100.7" not in kernel_addresses(lab)
    assert "10.0.1.77" in kernel_addresses(lab)
    assert status(lab)["netagent"]["verdict"] == "confirmed"
    assert status(lab)["state"] == "degraded"
    reason = status(lab)["last_error"]["message"]
    assert reason.startswith(f"left out: 198.51.100.7 of {nic.name}: ")
    assert 'AllowAddresses="198.51.100.7/32"' in reason
    lab.daemons.kill("netagent", 1)
    lab.daemons.kill("fetcher", 1)
    lab.wait_for(lambda: "198.51.100.7" in kernel_addresses(lab), 20, "the next attempt")
    wait_until_healthy(lab)


def test_shared_subnet_route_survives_its_first_address(lab: Lab) -> None:
    """Two links in one subnet; the first address of one, with the subnet's length, is removed with its routes."""
    nic = lab.nics[1]
    lab.attach_interface(Interface(nic.subnet, ("10.0.2.50",)))
    wait_until_healthy(lab)
    lab.remove_address(nic.mac, nic.addresses[0])
    refresh(lab)
    wait_until_healthy(lab)
    lab.batch([f"route flush table all proto 209 dev {nic.name}"])
    assert refresh(lab) == "ok"
