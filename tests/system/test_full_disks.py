"""A full file system that has room again: nothing is lost, the cause is reported, and no action is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, Spec
from tests.lab.processes import USERS
from tests.system.service import CONFIG, DAEMONS, audit, cnctl, is_healthy, kernel_addresses, status, wait_until_healthy

STATE, LEDGER, LOG = "/run/cloud-network", "/run/cloud-network-netagent", "/var/log/cloud-network"
OWNERS = {STATE: "cloud-network", LEDGER: "cloud-network-netagent", LOG: "cloud-network-netagent"}
TIMER = '[System]\nRefreshTimer = "1s"\n'
FULL = "No space left on device"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Each directory is a separate small file system."""
    with Lab(Spec.aws(interfaces=2, addresses=3)) as made:
        for directory, user in OWNERS.items():
            made.path(directory).mkdir(parents=True, exist_ok=True)
            options = f"size=256k,mode=755,uid={USERS[user]},gid={USERS[user]}"
            made.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory])
        made.write_config(TIMER + CONFIG)
        for name in DAEMONS:
            made.start(name)
        wait_until_healthy(made)
        yield made


def fill(lab: Lab, directory: str) -> Path:
    """Fill a directory's file system; return the file."""
    filler = f"{directory}/filler"
    lab.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False)
    return lab.path(filler)


def test_full_run_costs_no_address_and_recovers(lab: Lab) -> None:
    """The network stays configured; only the state is old, and every reader reports that."""
    nic = lab.nics[1]
    held = lab.hold_connection(nic.addresses[1])
    fillers = [fill(lab, STATE), fill(lab, LEDGER)]
    lab.wait_for(lambda: FULL in lab.log("fetcher"), 20, "the fetcher's error message")
    lab.wait_for(lambda: cnctl(lab, "status").returncode != 0, 30, "cnctl to report the old state")
    lab.add_address(nic.mac, "10.0.2.77")
    lab.remove_address(nic.mac, nic.addresses[2])
    for filler in fillers:
        filler.unlink()
    lab.wait_for(lambda: is_healthy(lab), 30, "the state to be written")
    lab.wait_for(lambda: cnctl(lab, "status").returncode == 0, 30, "cnctl status to succeed")
    assert kernel_addresses(lab) >= set(lab.addresses)
    assert held.alive()
    log = lab.log("fetcher")
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if FULL in line]
    assert all(STATE in line for line in lines)
    assert len(lines) == 1, "logged once"
    assert "state files: recovered" in log


def test_full_log_withholds_changes_until_there_is_room(lab: Lab) -> None:
    nic = lab.nics[1]
    held = lab.hold_connection(nic.addresses[1])
    before = len(audit(lab))
    filler = fill(lab, LOG)
    lab.add_address(nic.mac, "10.0.2.77")
    lab.wait_for(lambda: FULL in str(status(lab)["last_error"]), 20, "the cause in the status")
    assert "10.0.2.77" not in kernel_addresses(lab), "a change that cannot be logged is not made"
    assert 'AuditFailure="continue"' in str(status(lab)["last_error"])
    filler.unlink()
    wait_until_healthy(lab)
    assert kernel_addresses(lab) >= set(lab.addresses)
    assert held.alive()
    assert len(audit(lab)) > before
    assert cnctl(lab, "audit", "--verify").returncode == 0
