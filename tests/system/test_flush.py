"""`cnctl flush`, `cloud-network-fetcher --flush` and Purge=: owned objects are removed, and nothing else changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, Spec
from tests.system.service import Kernel, audit, cnctl, kernel, kernel_addresses, own_objects, status, wait_until_healthy

SCRIPTS = Path(sys.executable).parent
SPEC = Spec.aws(interfaces=3, addresses=3)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab with an operator's address, route and rule in addition to the owned objects."""
    with Lab(SPEC) as made:
        made.write_config('[Netagent]\nAllowKinds = "veth"\n')
        dev = made.nics[0].name
        made.batch(
            [
                f"address add 10.0.1.77/32 dev {dev}",
                f"route add 203.0.113.0/24 via {made.nics[0].gateway} dev {dev} proto static",
                "rule add pref 400 from 10.0.1.77 lookup main",
                f"route add default via {made.nics[0].gateway} dev {dev} table 77",
            ]
        )
        yield made


def foreign(lab: Lab) -> Kernel:
    """Return all foreign objects. Links stay up after a flush: their state and its consequences are left out."""
    found = kernel(lab)
    names = {lab.nics[0].name, "lo"}
    addresses = [link for link in found.pop("address") if link["ifname"] in names]
    return found | {"address": addresses}


def start(lab: Lab) -> Kernel:
    """Return the kernel's state before, then let the daemons configure the network."""
    before = foreign(lab)
    for name in ("netagent", "fetcher"):
        lab.start(name)
    wait_until_healthy(lab)
    assert len(own_objects(lab, "rule-4")) == 7
    return before


def as_root(lab: Lab, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.run([str(SCRIPTS / script), *arguments], check=False)


def nothing_is_owned(lab: Lab) -> bool:
    return not any(own_objects(lab, what) for what in ("route-4", "route-6", "rule-4", "rule-6")) and not (
        kernel_addresses(lab) & set(lab.addresses) - {lab.nics[0].addresses[0]}
    )


def test_flush_removes_owned_objects_until_a_refresh(lab: Lab) -> None:
    before = start(lab)
    ended = as_root(lab, "cnctl", "flush", "--json")
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert nothing_is_owned(lab)
    assert foreign(lab) == before
    [started, line] = [line for line in audit(lab) if line["request"] == "flush"]
    assert (started["verdict"], started["removals"]) == ("started", answer["removed"])
    assert (line["id"], line["verdict"], len(line["ops"])) == (answer["request"], "applied", answer["removed"])

    # neither an event nor the metadata restores it
    lab.metadata.reset()
    lab.add_address(lab.nics[1].mac, "10.0.2.99")
    lab.kill("fetcher", 1)  # SIGHUP: read the configuration and the metadata again
    lab.wait_for(lambda: any("local-ipv4s" in path for path in lab.metadata.paths()), 10, "a read of the metadata")
    lab.wait_for(lambda: any(link["drift"] for link in status(lab)["links"].values()), 10, "the drift to be reported")
    assert nothing_is_owned(lab)
    assert status(lab)["state"] == "degraded"
    assert "flushed on request" in status(lab)["last_error"]["message"]
    plan = as_root(lab, "cnctl", "plan")
    assert plan.returncode == 1
    assert "the network was flushed; run `sudo cnctl refresh` to configure it again" in plan.stderr

    assert as_root(lab, "cnctl", "refresh").returncode == 0
    wait_until_healthy(lab)
    assert set(lab.addresses) <= kernel_addresses(lab)
    assert all(lab.reachability().values())


def test_a_second_flush_finds_nothing(lab: Lab) -> None:
    start(lab)
    assert as_root(lab, "cnctl", "flush").returncode == 0
    again = as_root(lab, "cnctl", "flush")
    assert (again.returncode, again.stdout.splitlines()[0].split(" (")[0]) == (
        0,
        "removed 0 addresses, routes and rules",
    ), again.stderr


def test_flush_names_what_it_cannot_remove(lab: Lab) -> None:
    """The kernel would remove an operator's route together with the address that it prefers."""
    start(lab)
    nic = lab.nics[1]
    needed = nic.addresses[1]
    lab.batch([f"route add 198.51.100.0/24 dev {nic.name} src {needed}"])
    ended = as_root(lab, "cnctl", "flush")
    named = f"not removed: address_remove {needed}/32 on {nic.name}: the route to 198.51.100.0/24"
    assert (ended.returncode, named in ended.stderr) == (1, True), ended.stderr
    assert {address for address in kernel_addresses(lab) if address in lab.addresses[3:]} == {needed}
    assert len(json.loads(as_root(lab, "cnctl", "flush", "--json").stdout)["not_removed"]) == 1
    lab.stop("fetcher")
    directly = as_root(lab, "cloud-network-fetcher", "--flush")
    assert (directly.returncode, f"address_remove {needed}/32 on {nic.name}" in directly.stderr) == (1, True)
    lab.batch([f"route delete 198.51.100.0/24 dev {nic.name} src {needed}"])
    assert as_root(lab, "cloud-network-fetcher", "--flush").returncode == 0


def test_flush_without_a_fetcher_names_the_other_command(lab: Lab) -> None:
    before = start(lab)
    refused = as_root(lab, "cloud-network-fetcher", "--flush")
    assert refused.returncode == 1
    assert "a fetcher is running and would repair it" in refused.stderr
    lab.stop("fetcher")
    ended = as_root(lab, "cnctl", "flush")
    assert ended.returncode == 3
    assert "sudo cloud-network-fetcher --flush" in ended.stderr
    other_user = lab.run([str(SCRIPTS / "cloud-network-fetcher"), "--flush"], user="daemon", check=False)
    assert (other_user.returncode, "only root may flush" in other_user.stderr) == (1, True)
    flushed = as_root(lab, "cloud-network-fetcher", "--flush")
    assert flushed.returncode == 0, flushed.stderr
    assert nothing_is_owned(lab)
    assert foreign(lab) == before
    lab.stop("netagent")
    assert "systemctl status cloud-network-netagent.socket" in as_root(lab, "cloud-network-fetcher", "--flush").stderr


def test_purge_on_stop(lab: Lab) -> None:
    lab.write_config('[Network]\nPurge = "on-stop"\n[Netagent]\nAllowKinds = "veth"\n')
    before = start(lab)
    assert lab.stop("fetcher") == 0
    assert nothing_is_owned(lab)
    assert foreign(lab) == before
    assert "Purge: removed" in lab.log("fetcher")
    assert not lab.path("/run/cloud-network/control.sock").exists()


def test_purge_does_not_wait_for_a_read(lab: Lab) -> None:
    config = '[System]\nRefreshTimer = "1s"\n[Network]\nPurge = "on-stop"\n[Netagent]\nAllowKinds = "veth"\n'
    lab.write_config(config)
    start(lab)
    lab.metadata.reset()
    lab.metadata.fail("late", interval=3)
    lab.wait_for(lambda: lab.metadata.requests(), 10, "a read of the metadata")
    assert lab.stop("fetcher") == 0
    assert nothing_is_owned(lab)


def test_without_purge_nothing_is_removed(lab: Lab) -> None:
    start(lab)
    there = kernel(lab)
    assert lab.stop("fetcher") == 0
    assert kernel(lab) == there


def test_purge_without_netagent_ends(lab: Lab) -> None:
    lab.write_config('[Network]\nPurge = "on-stop"\n[Netagent]\nAllowKinds = "veth"\n')
    start(lab)
    lab.stop("netagent")
    assert lab.stop("fetcher") == 0
    assert not nothing_is_owned(lab)


def test_only_root_may_flush(lab: Lab) -> None:
    start(lab)
    ended = cnctl(lab, "flush")
    assert (ended.returncode, ended.stderr) == (
        1,
        "cnctl: only root may do this: a flush changes the network. Use: sudo cnctl flush\n",
    )
    assert not nothing_is_owned(lab)
