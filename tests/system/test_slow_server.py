"""A metadata server that takes seconds for each answer, and a pass that does not end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import Lab, Spec
from tests.system.service import CONFIG, audit, cnctl, kernel_addresses, send_command, status, wait_until_healthy
from tests.system.test_boot_order import Manager, start_fetcher

LATE = 4.5  # seconds, below the time that one answer may take
WITH_SHORT_DEADLINE = """
from cloud_network.fetcher import __main__, schedule
schedule.PASS_DEADLINE_S = 1.0
__main__.main()
"""
"""The fetcher's program, for which a pass of more than a second has hung."""
WITH_SHORT_COMMANDS = """
from cloud_network.fetcher import __main__, schedule
schedule.COMMAND_READ_S = 1.0
__main__.main()
"""
"""The fetcher's program, in which the read of a command ends after a second."""
WITHOUT_TIME_FOR_CHANGES = """
from cloud_network.fetcher import __main__, schedule
schedule.CHANGE_DEADLINE_S = 0.0
__main__.main()
"""
"""The fetcher's program, in which each pass ends after its first change."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab in which nothing is started yet."""
    with Lab(Spec.aws(interfaces=1, addresses=2)) as made:
        made.write_config(CONFIG)
        yield made


def pings(manager: Manager) -> int:
    return manager.listen().count("WATCHDOG=1")


def test_slow_answers_delay_nothing_else(lab: Lab) -> None:
    """The watchdog, status.json and the control socket continue during a read of the metadata; commands wait."""
    lab.metadata.fail("late", interval=LATE)
    lab.start("netagent")
    manager = start_fetcher(lab, WATCHDOG_USEC="400000")
    lab.wait_for(lambda: len(lab.metadata.requests()) >= 2, 20, "the read to start")
    with ThreadPoolExecutor() as pool:
        refresh = pool.submit(send_command, lab, "refresh")
        before, requests = pings(manager), len(lab.metadata.requests())
        lab.wait_for(lambda: pings(manager) > before + 20, 30, "the watchdog to be fed")
        assert "is not a command" in send_command(lab, "nonsense")["error"]
        assert status(lab)["state"] == "starting"
        assert len(lab.metadata.requests()) < requests + 10, "during the slow answers"
        assert not refresh.done()
        lab.metadata.clear()
        assert refresh.result(60)["ok"]
    wait_until_healthy(lab)


def test_a_server_with_slow_answers_configures_the_network() -> None:
    """It also has to answer before and after each change."""
    with Lab(Spec.cloud("gcp", interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.metadata.fail("late", interval=LATE)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: all(lab.reachability().values()), 60, "all addresses")
        assert "rolled back" not in lab.log("fetcher")


def test_slow_server_is_reported_during_the_read(lab: Lab) -> None:
    lab.start("netagent")
    lab.start("fetcher")
    wait_until_healthy(lab)
    read = status(lab)["fetched_at"]
    lab.metadata.fail("late", interval=LATE)
    with ThreadPoolExecutor() as pool:
        refresh = pool.submit(send_command, lab, "refresh")
        lab.wait_for(lambda: status(lab)["state"] == "degraded", 10, "the report")
        error = status(lab)["last_error"]
        assert error["kind"] == "metadata"
        assert error["message"].startswith("the metadata server takes seconds to answer; ")
        assert (status(lab)["fetched_at"], status(lab)["counters"]["metadata_errors"]) == (read, {})
        lab.metadata.clear()
        assert refresh.result(60)["result"] == {"state": "ok"}
    assert status(lab)["last_error"] is None


def test_a_flush_does_not_wait_for_a_slow_read(lab: Lab) -> None:
    lab.start("netagent")
    lab.start("fetcher")
    wait_until_healthy(lab)
    lab.metadata.fail("late", interval=LATE)
    with ThreadPoolExecutor() as pool:
        refresh = pool.submit(send_command, lab, "refresh")
        lab.wait_for(lambda: status(lab)["state"] == "degraded", 10, "the report of the slow read")
        assert send_command(lab, "flush")["ok"]
        assert not refresh.done()
        lab.metadata.clear()
        refresh.result(60)
    assert "flushed on request" in status(lab)["last_error"]["message"]


def test_plan_and_credentials_do_not_wait_for_a_slow_read(lab: Lab) -> None:
    """Each has a read of its own with a time limit. The plan then covers the metadata of the last refresh."""
    lab.start("netagent")
    fetcher = lab.instance.popen([sys.executable, "-c", WITH_SHORT_COMMANDS], stderr=subprocess.DEVNULL)
    with ThreadPoolExecutor() as pool, ExitStack() as cleanup:
        cleanup.enter_context(fetcher)
        cleanup.callback(fetcher.terminate)
        wait_until_healthy(lab)
        [nic] = lab.nics
        lab.metadata.fail("late", interval=LATE)
        refresh = pool.submit(send_command, lab, "refresh")
        lab.wait_for(lambda: status(lab)["state"] == "degraded", 10, "the report of the slow read")
        lab.run(["ip", "address", "delete", f"{nic.addresses[1]}/32", "dev", nic.name])
        plan, credentials = send_command(lab, "plan")["result"], send_command(lab, "credentials")
        assert not refresh.done()
        assert plan["changes"] == [f"ip address add {nic.addresses[1]}/32 dev {nic.name} noprefixroute"]
        assert plan["metadata_error"].endswith("no answer in time")
        assert (credentials["ok"], credentials["error"].endswith("no answer in time")) == (False, True)
        lab.metadata.clear()
        assert refresh.result(60)["ok"]
        assert send_command(lab, "credentials")["ok"]


def test_slow_server_is_reported_before_a_repair(lab: Lab) -> None:
    """Before a change, the fetcher asks whether the server answers, and that takes seconds, too."""
    lab.start("netagent")
    lab.start("fetcher")
    wait_until_healthy(lab)
    [nic] = lab.nics
    read = status(lab)["attempted_at"]
    lab.metadata.fail("late", interval=LATE)
    lab.run(["ip", "address", "delete", f"{nic.addresses[1]}/32", "dev", nic.name])
    lab.wait_for(lambda: "takes seconds to answer" in str(status(lab)["last_error"]), 10, "the report")
    assert status(lab)["attempted_at"] == read, "no read has begun"
    lab.metadata.clear()
    wait_until_healthy(lab)
    assert nic.addresses[1] in kernel_addresses(lab)


def test_drift_during_a_slow_read_is_reported_then_repaired(lab: Lab) -> None:
    lab.start("netagent")
    lab.start("fetcher")
    wait_until_healthy(lab)
    [nic] = lab.nics
    lab.metadata.fail("late", interval=LATE)
    requests = len(lab.metadata.requests())
    with ThreadPoolExecutor() as pool:
        refresh = pool.submit(send_command, lab, "refresh")
        lab.wait_for(lambda: len(lab.metadata.requests()) > requests, 20, "the read to start")
        lab.run(["ip", "address", "delete", f"{nic.addresses[1]}/32", "dev", nic.name])
        lab.wait_for(
            lambda: nic.addresses[1] in str([each["drift"] for each in status(lab)["links"].values()]),
            15,
            "the missing address in the drift",
        )
        assert status(lab)["state"] == "degraded"
        assert not refresh.done()
        lab.metadata.clear()
        assert refresh.result(60)["ok"]
    wait_until_healthy(lab)
    assert nic.addresses[1] in kernel_addresses(lab)


def test_passes_out_of_time_configure_the_network_link_by_link(tmp_path: Path) -> None:
    with Lab(Spec.aws(interfaces=4, addresses=2)) as lab, (tmp_path / "log").open("wb") as log, ExitStack() as cleanup:
        lab.write_config(CONFIG)
        lab.start("netagent")
        fetcher = lab.instance.popen([sys.executable, "-c", WITHOUT_TIME_FOR_CHANGES], stderr=log)
        cleanup.enter_context(fetcher)
        cleanup.callback(fetcher.terminate)
        wait_until_healthy(lab)
        assert all(lab.reachability().values())
        assert len([line for line in audit(lab) if line["verdict"] == "confirmed"]) >= 4
        assert (tmp_path / "log").read_text().count("has passed; the next pass continues with") >= 3


def test_pass_that_hangs_ends_the_daemon(lab: Lab) -> None:
    """With a clock that runs 1,000 times as fast; systemd starts the fetcher again."""
    lab.start("netagent")
    lab.metadata.fail("timeout")
    fetcher = lab.instance.popen([sys.executable, "-c", WITH_SHORT_DEADLINE], stderr=subprocess.STDOUT)
    output, _ = fetcher.communicate(timeout=60)
    assert "a pass did not end within 1 s; systemd starts it again" in output
    assert fetcher.returncode == 1
    assert "a pass did not end within 1 s" in cnctl(lab, "status").stdout
    lab.metadata.clear()
    lab.start("fetcher")
    wait_until_healthy(lab)
