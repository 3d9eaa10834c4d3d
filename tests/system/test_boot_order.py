"""Boot: parts that come late, and the messages to systemd meanwhile (sd_notify(3))."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from signal import SIGHUP, SIGTERM

import pytest

from tests.lab import Lab, Spec
from tests.lab.processes import SCRIPTS
from tests.system.service import CONFIG, audit, kernel, kernel_addresses, status, wait_until_healthy

PATH = "/run/notify.sock"


class Manager:
    """A reader of NOTIFY_SOCKET, in place of systemd."""

    def __init__(self, lab: Lab) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(lab.path(PATH)))
        lab.path(PATH).chmod(0o666)
        self.received: list[str] = []

    def listen(self) -> list[str]:
        """Return every line that has arrived so far."""
        while select.select([self._socket], [], [], 0)[0]:
            self.received += self._socket.recv(4096).decode().splitlines()
        return self.received

    def statuses(self) -> list[str]:
        return [line.removeprefix("STATUS=") for line in self.listen() if line.startswith("STATUS=")]

    def is_ready(self) -> bool:
        return "READY=1" in self.listen()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab in which nothing is started yet."""
    with Lab(Spec.aws(interfaces=2, addresses=3)) as made:
        made.write_config(CONFIG)
        yield made


def start_fetcher(lab: Lab, **env: str) -> Manager:
    manager = Manager(lab)
    lab.start("fetcher", env={"NOTIFY_SOCKET": PATH, **env})
    return manager


def wait(lab: Lab, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `cnctl wait` as an ordinary user, as cloud-network-wait-online.service does."""
    return lab.run([str(SCRIPTS / "cnctl"), "wait", *options], user="cloud-network-api", check=False)


def test_ready_means_that_the_daemon_runs(lab: Lab) -> None:
    """Starting the unit blocks nothing; `cnctl wait` waits for the network."""
    lab.metadata.fail("refuse")
    lab.start("netagent")
    manager = start_fetcher(lab)
    lab.wait_for(manager.is_ready, 20, "READY=1")
    lab.wait_for(lambda: any("(attempt 2)" in each for each in manager.statuses()), 15, "a second attempt")
    assert any(each.startswith("waiting for metadata at 169.254.169.254: ") for each in manager.statuses())
    late = wait(lab, "--timeout", "0.5")
    assert late.returncode == 1
    assert late.stderr.startswith("cnctl: the network is not configured after 0.5 s: ")
    lab.metadata.clear()
    done = wait(lab, "--timeout", "30")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set(lab.addresses) <= kernel_addresses(lab)
    wait_until_healthy(lab)
    lab.wait_for(lambda: manager.statuses()[-1] == "2 interfaces, 6 addresses, in agreement", 5, "the last status")
    lab.daemons.kill("fetcher", SIGTERM)
    lab.wait_for(lambda: manager.listen()[-1] == "STOPPING=1", 5, "STOPPING=1")


def test_wait_includes_ipv6_but_not_impossible_changes() -> None:
    """After its link comes up, an IPv6 address that is not private waits for the router's advertisement."""
    with Lab(Spec.cloud("aws", interfaces=2, addresses=2, ipv6=1)) as lab:
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        assert wait(lab, "--timeout", "30").returncode == 0
        assert {*lab.addresses, *(each for nic in lab.nics for each in nic.ipv6)} <= kernel_addresses(lab)
        lab.run(["sysctl", "-qw", f"net.ipv6.conf.{lab.nics[1].name}.disable_ipv6=1"])
        lab.wait_for(lambda: status(lab)["state"] == "degraded", 20, "the missing IPv6 address")
        assert wait(lab, "--timeout", "1").returncode == 0


def test_missing_netagent_is_reported_as_the_reason(lab: Lab) -> None:
    manager = start_fetcher(lab)
    lab.wait_for(
        lambda: any("systemctl status cloud-network-netagent.socket" in each for each in manager.statuses()),
        15,
        "the reason",
    )
    late = wait(lab, "--timeout", "0")
    assert (late.returncode, "systemctl status cloud-network-netagent.socket" in late.stderr) == (1, True)
    lab.start("netagent")
    assert wait(lab, "--timeout", "30").returncode == 0


def test_waiting_ends_with_the_timeout_of_the_configuration(lab: Lab) -> None:
    lab.metadata.fail("refuse")
    lab.write_config('[System]\nReadyTimeout = "3s"\n' + CONFIG)
    start_fetcher(lab)
    late = wait(lab)
    assert late.returncode == 1
    assert late.stderr.startswith("cnctl: the network is not configured after 3 s: ")
    assert status(lab)["fetched_at"] is None


def test_wait_reports_a_stopped_fetcher(lab: Lab) -> None:
    late = wait(lab, "--timeout", "0")
    assert (late.returncode, "the fetcher is not running" in late.stderr) == (1, True)


def test_unknown_cloud_is_not_a_service_failure(lab: Lab) -> None:
    """Exit status 69 after READY=1: systemd shows the service as inactive, not as failed."""
    lab.write_config("")
    lab.metadata.fail("refuse")
    lab.run(["sh", "-c", "rm /sys/class/dmi/id/*"])
    manager = start_fetcher(lab)
    lab.wait_for(lambda: not lab.daemons.running("fetcher"), 20, "the fetcher to exit")
    assert "fetcher (ended with 69)" in lab.daemons.report("fetcher")
    assert manager.is_ready()
    assert manager.statuses()[-1].startswith("no supported cloud detected by ")
    assert "Set [Network] Provider= to override" in manager.statuses()[-1]
    ended = wait(lab)
    assert (ended.returncode, ended.stderr.startswith("cnctl: no supported cloud detected")) == (3, True)
    assert status(lab)["last_error"]["kind"] == "no-cloud"
    shown = lab.run([str(SCRIPTS / "cnctl"), "status"], check=False)
    assert (shown.returncode, "no supported cloud detected" in shown.stdout) == (3, True)
    doctor = json.loads(lab.run([str(SCRIPTS / "cnctl"), "doctor", "--json"], check=False).stdout)
    fetcher = next(step for step in doctor["steps"] if step["step"] == "fetcher")
    assert "set [Network] Provider= in /etc/cloud-network/cloud-network.toml; then: " in fetcher["do"]


def test_reload_ends_after_the_new_configuration_applies(lab: Lab) -> None:
    """Type=notify-reload of systemd.service(5)."""
    lab.start("netagent")
    manager = start_fetcher(lab)
    lab.wait_for(manager.is_ready, 20, "READY=1")
    manager.received.clear()
    before = time.monotonic_ns() // 1000
    lab.write_config('[System]\nRefreshTimer = "77s"\n' + CONFIG)
    lab.daemons.kill("fetcher", SIGHUP)
    lab.wait_for(manager.is_ready, 10, "READY=1 again")
    kept = [line for line in manager.listen() if not line.startswith("STATUS=")]
    assert [line.partition("=")[0] for line in kept] == ["RELOADING", "MONOTONIC_USEC", "READY"]
    assert int(kept[1].partition("=")[2]) >= before
    assert status(lab)["refresh_timer"] == 77.0
    lab.write_config("nonsense")
    manager.received.clear()
    lab.daemons.kill("fetcher", SIGHUP)
    lab.wait_for(manager.is_ready, 10, "the end of a reload that was refused")
    assert status(lab)["refresh_timer"] == 77.0


def test_watchdog_is_notified_while_idle(lab: Lab) -> None:
    lab.start("netagent")
    manager = start_fetcher(lab, WATCHDOG_USEC="400000")
    lab.wait_for(manager.is_ready, 20, "READY=1")
    wait_until_healthy(lab)
    manager.received.clear()
    lab.wait_for(lambda: manager.listen().count("WATCHDOG=1") >= 5, 10, "watchdog pings")


def test_started_before_the_network_is_up(lab: Lab) -> None:
    """The primary link is down and DHCP has not configured it: the fetcher converges after both."""
    primary = lab.nics[0]
    lab.batch([f"address flush dev {primary.name}", f"link set {primary.name} down"])
    lab.start("netagent")
    manager = start_fetcher(lab)
    lab.wait_for(lambda: manager.statuses()[-1:] and "waiting for metadata" in manager.statuses()[-1], 15, "a failure")
    lab.batch(
        [
            f"link set {primary.name} up",
            f"address add {primary.addresses[0]}/24 dev {primary.name} valid_lft 3600 preferred_lft 3600",
            f"route add default via {primary.gateway} dev {primary.name} proto dhcp",
        ]
    )
    lab.wait_for(manager.is_ready, 20, "READY=1")
    wait_until_healthy(lab)
    assert all(lab.reachability().values())


def test_a_slow_metadata_server_is_waited_for(lab: Lab) -> None:
    """One byte every 4 ms: seconds for a document."""
    lab.metadata.fail("drip", interval=0.004)
    lab.start("netagent")
    start_fetcher(lab)
    assert wait(lab).returncode == 0
    assert set(lab.addresses) <= kernel_addresses(lab)
    assert [line["verdict"] for line in audit(lab)[:2]] == ["applied", "confirmed"]


def test_outage_at_boot_touches_nothing(lab: Lab) -> None:
    """The fetcher backs off, and then everything is configured."""
    before = kernel(lab)
    lab.metadata.fail("refuse")
    lab.start("netagent")
    manager = start_fetcher(lab)
    lab.wait_for(lambda: any("(attempt 2)" in each for each in manager.statuses()), 10, "the second attempt")
    lab.wait_for(lambda: any("(attempt 4)" in each for each in manager.statuses()), 30, "the fourth attempt")
    assert manager.is_ready()
    assert kernel(lab) == before
    lab.metadata.clear()
    lab.kill("fetcher", SIGHUP)  # the next attempt can be a minute away, as a second passes per second again
    wait_until_healthy(lab)
    assert all(lab.reachability().values())
