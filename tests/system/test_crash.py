"""kill -9 of any daemon at any moment: the restart converges to the same state, and no connection is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from signal import SIGTERM

import pytest

from tests.lab import HeldConnection, Lab, Spec
from tests.system.service import (
    CONFIG,
    DAEMONS,
    MACS,
    audit,
    cnctl,
    errors,
    kernel,
    kernel_addresses,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
    without_order,
)

META = "/latest/meta-data/"  # requested between apply and confirm


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=5)) as made:
        yield made


@pytest.fixture
def fresh() -> Iterator[Lab]:
    """A lab in which nothing is started; DHCP configured the primary address."""
    with Lab(Spec.aws(interfaces=3, addresses=5)) as made:
        made.write_config(CONFIG)
        yield made


def held(lab: Lab) -> list[HeldConnection]:
    """Hold connections through an address of DHCP, and through an owned address of another interface."""
    return [
        lab.hold_connection(lab.nics[0].addresses[0]),
        lab.hold_connection(lab.nics[1].addresses[2], ("neighbour", 0)),
    ]


def wait_for_open_change(lab: Lab) -> None:
    """Wait until a change is applied and its confirmation waits for the metadata server."""
    lab.wait_for(lambda: any(line["verdict"] == "applied" for line in audit(lab)[-1:]), 10, "a change to be applied")


def start_until_it_runs(lab: Lab, name: str) -> None:
    """Start the daemon repeatedly, as systemd does (Restart=always): a killed gunicorn's worker keeps the port for a
    moment.
    """

    def runs() -> bool:
        if not lab.daemons.running(name):
            lab.start(name)
            time.sleep(0.5)
        return lab.daemons.running(name)

    lab.wait_for(runs, 20, f"{name} to stay")


@pytest.mark.parametrize("name", DAEMONS)
def test_restart_after_kill_at_rest_changes_nothing(lab: Lab, name: str) -> None:
    before, lines, connections = kernel(lab), audit(lab), held(lab)
    lab.kill(name)
    assert kernel(lab) == before
    started = time.time()
    start_until_it_runs(lab, name)
    lab.wait_for(lambda: cnctl(lab, "status").returncode == 0, 10, "all three daemons")
    assert refresh(lab) == "ok"
    if name == "fetcher":
        assert any(record.path == MACS and record.at > started for record in lab.metadata.requests())
    assert kernel(lab) == before
    assert audit(lab) == lines
    assert all(connection.alive() for connection in connections)


@pytest.mark.parametrize("name", ["netagent", "fetcher"])
def test_kill_before_first_confirm_rolls_back_and_retries(fresh: Lab, name: str) -> None:
    untouched = kernel(fresh)
    connection = fresh.hold_connection(fresh.nics[0].addresses[0])
    fresh.metadata.fail("timeout", META)
    for daemon in DAEMONS:
        fresh.start(daemon)
    wait_for_open_change(fresh)
    first = set(fresh.nics[0].addresses)
    assert first <= kernel_addresses(fresh)
    if name == "netagent":  # only the next netagent can roll it back
        fresh.kill("netagent")
        assert first <= kernel_addresses(fresh)
    fresh.kill("fetcher")
    if name == "netagent":
        fresh.start("netagent")
    fresh.wait_for(lambda: without_order(kernel(fresh)) == without_order(untouched), 10, "the rollback")
    fresh.metadata.clear()
    fresh.start("fetcher")
    wait_until_healthy(fresh)
    assert all(fresh.reachability().values())
    assert connection.alive()


@pytest.mark.parametrize("name", ["netagent", "fetcher"])
def test_kill_before_later_confirm_keeps_the_rest(lab: Lab, name: str) -> None:
    before, connections = kernel(lab), held(lab)
    new = "10.0.2.77"
    lab.add_address(lab.nics[1].mac, new)
    lab.metadata.fail("timeout", META)
    lab.daemons.kill("fetcher", 1)  # SIGHUP: read the configuration again
    lab.wait_for(lambda: new in kernel_addresses(lab), 10, "the change to be applied")
    lab.kill(name)
    if name == "netagent":
        lab.start("netagent")
    lab.wait_for(lambda: without_order(kernel(lab)) == without_order(before), 10, "the rollback")
    lab.metadata.clear()
    if name == "fetcher":
        lab.start("fetcher")
    wait_until_healthy(lab)
    assert new in kernel_addresses(lab)
    assert all(connection.alive() for connection in connections)
    assert all(lab.reachability([new]).values())


def test_kills_at_random_moments_end_in_the_same_state(lab: Lab) -> None:
    chance = random.Random(209)
    settled, connections = without_order(kernel(lab)), held(lab)
    for _ in range(8):
        victim = lab.nics[chance.randrange(3)]
        address = victim.addresses[chance.randrange(3, 5)]
        lab.run(["ip", "address", "del", f"{address}/32", "dev", victim.name], check=False)
        time.sleep(chance.uniform(0.0, 0.15))
        for name in chance.sample(["netagent", "fetcher"], chance.randint(1, 2)):
            lab.kill(name)
            lab.start(name)
    wait_until_healthy(lab)
    lab.wait_for(lambda: without_order(kernel(lab)) == settled, 20, "the kernel to be as before")
    assert all(connection.alive() for connection in connections)
    assert all(lab.reachability().values())


def test_daemon_killed_during_its_start_starts_again(fresh: Lab) -> None:
    fresh.start("netagent")
    for moment in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
        fresh.start("fetcher")
        time.sleep(moment)
        fresh.kill("fetcher")
    fresh.start("fetcher")
    wait_until_healthy(fresh)
    assert all(fresh.reachability().values())


def test_fetcher_can_start_before_netagent(fresh: Lab) -> None:
    fresh.start("fetcher")
    fresh.wait_for(fresh.metadata.requests, 10, "the fetcher to read the metadata")
    fresh.wait_for(
        lambda: status(fresh)["netagent"]["listening"] is False, 10, "the absence of netagent to be reported"
    )
    assert status(fresh)["state"] == "error"
    assert "netagent is not running" in status(fresh)["last_error"]["message"]
    fresh.start("netagent")
    wait_until_healthy(fresh)
    assert status(fresh)["last_error"] is None
    assert any("netagent: recovered" in line for line in fresh.log("fetcher").splitlines())


@pytest.mark.parametrize("fault", ["refuse", "timeout"])
def test_metadata_server_can_start_later(fresh: Lab, fault: str) -> None:
    before = kernel(fresh)
    fresh.metadata.fail(fault)
    fresh.start("netagent")
    fresh.start("fetcher")
    fresh.wait_for(lambda: status(fresh).get("state") == "error", 15, "the unreachable metadata server to be reported")
    assert "169.254.169.254" in status(fresh)["last_error"]["message"]
    assert status(fresh)["fetched_at"] is None
    assert kernel(fresh) == before
    fresh.metadata.clear()
    wait_until_healthy(fresh)


def test_restart_in_any_order_keeps_the_network(lab: Lab) -> None:
    before, connections = kernel(lab), held(lab)
    assert [lab.stop(name) for name in DAEMONS] == [0, 0, 0]
    assert kernel(lab) == before
    assert not lab.path("/run/cloud-network/control.sock").exists()
    for name in ("api", "fetcher", "netagent"):
        lab.start(name)
    wait_until_healthy(lab)
    assert kernel(lab) == before
    assert all(connection.alive() for connection in connections)
    assert len(audit(lab)) == 6


def test_sigterm_waits_for_the_running_change(fresh: Lab) -> None:
    fresh.metadata.fail("timeout", META)
    fresh.start("netagent")
    fresh.start("fetcher")
    wait_for_open_change(fresh)
    fresh.daemons.kill("fetcher", SIGTERM)
    fresh.wait_for(lambda: not fresh.daemons.running("fetcher"), 10, "the fetcher to end")
    rolled_back = ["applied", "rolled back"]  # by netagent, if the fetcher had no time
    fresh.wait_for(lambda: [line["verdict"] for line in audit(fresh)] == rolled_back, 5, "the end of the change")
    assert kernel_addresses(fresh) & set(fresh.addresses) == {fresh.nics[0].addresses[0]}


def test_rolled_back_change_is_retried_with_backoff(fresh: Lab) -> None:
    """A change that fails must not cause many attempts: the delay doubles."""
    fresh.metadata.fail("reset", META)
    fresh.start("netagent")
    fresh.start("fetcher")
    fresh.wait_for(lambda: len(audit(fresh)) >= 4, 15, "two attempts")
    fresh.wait_for(lambda: status(fresh)["netagent"]["request"] == audit(fresh)[-1]["id"], 10, "the end of the pass")
    assert [line["verdict"] for line in audit(fresh)[:4]] == ["applied", "rolled back"] * 2
    at = [line["monotonic_us"] / 1e6 for line in audit(fresh) if line["verdict"] == "applied"]
    assert at[1] - at[0] > 0.7
    assert status(fresh)["state"] == "degraded"
    assert "does not answer after the change" in status(fresh)["last_error"]["message"]
    assert kernel_addresses(fresh) & set(fresh.addresses) <= set(fresh.addresses)
    fresh.metadata.clear()
    wait_until_healthy(fresh)


def test_unwritable_state_file_is_logged_and_passes_continue(lab: Lab) -> None:
    """In this test a directory is in place of status.json."""
    target = lab.path("/run/cloud-network/status.json")
    target.unlink()
    target.mkdir()
    (target / "in the way").touch()
    lab.batch([f"address del {lab.nics[1].addresses[3]}/32 dev {lab.nics[1].name}"])
    lab.wait_for(lambda: lab.nics[1].addresses[3] in kernel_addresses(lab), 10, "the repair")
    lab.wait_for(lambda: "cannot be written: Is a directory" in str(errors(lab)), 10, "the error message")
    (target / "in the way").unlink()
    target.rmdir()
    wait_until_healthy(lab)
    assert "Traceback" not in lab.log("fetcher")
