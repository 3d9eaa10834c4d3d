"""Daemons that stop and start in every order, and a configuration that cannot be read, while the metadata changes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import permutations

import pytest

from tests.lab import Lab, Spec
from tests.system.service import (
    CONFIG,
    DAEMONS,
    cnctl,
    errors,
    kernel_addresses,
    running_lab,
    status,
    wait_until_healthy,
)
from tests.system.test_crash import start_until_it_runs

TIMER = '[System]\nRefreshTimer = "1s"\n'
FILE = "/etc/cloud-network/cloud-network.toml"
EXTRA = "10.0.2.77"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=2, addresses=4), TIMER) as made:
        yield made


def change(lab: Lab) -> None:
    """Add an address to the second interface, or remove it again."""
    mac = lab.nics[1].mac
    (lab.remove_address if EXTRA in lab.addresses else lab.add_address)(mac, EXTRA)


@pytest.mark.parametrize("order", list(permutations(DAEMONS)), ids="-".join)
def test_daemons_restart_in_any_order_while_metadata_changes(lab: Lab, order: tuple[str, ...]) -> None:
    connections = [lab.hold_connection(lab.nics[0].addresses[0]), lab.hold_connection(lab.nics[1].addresses[1])]
    for action in (lab.stop, lambda name: start_until_it_runs(lab, name)):
        for name in order:
            action(name)
            change(lab)
            assert all(connection.alive() for connection in connections)
    wait_until_healthy(lab)
    lab.wait_for(lambda: cnctl(lab, "status").returncode == 0, 20, "all three daemons")
    assert {each for each in kernel_addresses(lab) if ":" not in each} == set(lab.addresses)
    assert all(connection.alive() for connection in connections)


@pytest.mark.parametrize("how", ["unreadable", "broken", "missing key"])
def test_configuration_that_cannot_be_read_keeps_the_old_one(lab: Lab, how: str) -> None:
    """On reload, in both processes: the file is reported, the daemons keep working, and the next valid file is used."""
    nic, file = lab.nics[1], lab.path(FILE)
    good = file.read_text()
    if how == "unreadable":
        file.chmod(0)
    else:
        file.write_text("[Network\n" if how == "broken" else good + "Nonsense = 1\n")
    for name in ("netagent", "fetcher"):
        lab.kill(name, signal.SIGHUP)
    lab.wait_for(
        lambda: "continuing with the configuration in use" in lab.log("fetcher"), 20, "the fetcher's error message"
    )
    lab.wait_for(
        lambda: "continuing with the log and the settings in use" in lab.log("netagent"), 20, "netagent's error message"
    )
    assert any(FILE in line for line in errors(lab))
    lab.add_address(nic.mac, EXTRA)  # AllowKinds= is still in force: without it netagent would refuse
    lab.wait_for(lambda: EXTRA in kernel_addresses(lab), 20, "the address")
    assert cnctl(lab, "status").returncode == 1
    error = status(lab)["last_error"]
    assert (error["kind"], FILE in error["message"]) == ("config", True), error
    file.chmod(0o644)
    file.write_text(f'[Network]\nExcludeAddresses = "{EXTRA}"\n{TIMER}{CONFIG}')
    for name in ("netagent", "fetcher"):
        lab.kill(name, signal.SIGHUP)
    lab.wait_for(lambda: EXTRA not in kernel_addresses(lab), 20, "the new configuration")
    lab.wait_for(lambda: cnctl(lab, "status").returncode == 0, 20, "the end of the report")
    reason = "ExcludeAddresses= leaves it to another program"
    lab.wait_for(lambda: reason in " ".join(cnctl(lab, "doctor", EXTRA).stdout.split()), 10, "the reason in doctor")


def test_status_names_the_error_that_stops_netagent(lab: Lab) -> None:
    """The file became invalid without a reload: netagent ends with 78 when it is started again."""
    file = lab.path(FILE)
    good = file.read_text()
    file.write_text(good + "Nonsense = 1\n")
    lab.stop("netagent")
    lab.wait_for(lambda: "netagent cannot start" in cnctl(lab, "status").stdout, 20, "the report")
    line = good.count("\n") + 1
    assert f"{FILE}:{line}: [System] Nonsense = 1: " in status(lab)["last_error"]["message"]
    named = f"netagent cannot start: {FILE}:{line}: [System] Nonsense = 1: "
    assert named in " ".join(cnctl(lab, "doctor").stdout.split())
    file.write_text(good)
    start_until_it_runs(lab, "netagent")
    lab.wait_for(lambda: cnctl(lab, "status").returncode == 0, 20, "the end of the report")


def test_failed_start_of_the_fetcher_keeps_what_is_last_known(lab: Lab) -> None:
    """It ends with 78. Its reason comes first, and metadata that were read earlier are not reported as never read."""
    before = status(lab)
    file = lab.path(FILE)
    good = file.read_text()
    file.write_text(good + "Nonsense = 1\n")
    lab.stop("fetcher")
    lab.start("fetcher")
    lab.wait_for(lambda: not lab.daemons.running("fetcher"), 20, "the exit")
    shown, doctor = cnctl(lab, "status"), cnctl(lab, "doctor")
    first, error = shown.stdout.splitlines()[0], shown.stdout.partition("Fetcher: ")[0]
    assert (shown.returncode, first.startswith("fetcher not running: last known: 2 links, ")) == (3, True), shown
    assert ("Error: config, " in error, "Nonsense = 1: unknown key" in error) == (True, True), shown
    assert "[System] Nonsense = 1: " in " ".join(doctor.stdout.partition("metadata")[0].split()), doctor
    after = status(lab)
    kept = ("provider", "fetched_at", "compared_at", "generation", "counters", "links")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    file.write_text(good)
    start_until_it_runs(lab, "fetcher")
    lab.wait_for(lambda: cnctl(lab, "status").returncode == 0, 20, "the end of the report")
    assert status(lab)["counters"]["metadata_requests"] > before["counters"]["metadata_requests"]


def test_fetcher_uses_the_file_with_which_netagent_starts_again(lab: Lab) -> None:
    """After a restart of netagent alone, both have the same configuration."""
    lab.add_address(lab.nics[1].mac, EXTRA)
    lab.wait_for(lambda: EXTRA in kernel_addresses(lab), 20, "the address")
    file = lab.path(FILE)
    lab.stop("netagent")
    lab.wait_for(lambda: status(lab)["netagent"]["listening"] is False, 20, "the report")
    file.write_text(f'[Network]\nExcludeAddresses = "{EXTRA}"\n{TIMER}{CONFIG}')
    start_until_it_runs(lab, "netagent")
    lab.wait_for(lambda: EXTRA not in kernel_addresses(lab), 20, "the new configuration")
