"""The checks in a container, which is much faster than a virtual machine. `make boot` runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec

from .checks import Checks, LastChecks, all_reachable
from .conftest import Packages, require
from .container import CONFIG, Container
from .guest import SERVICES, Guest
from .image import debian


@pytest.fixture(scope="class")
def guest(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Each class has its own container: the checks purge the package at the end."""
    require({"systemd-nspawn": "systemd-container"})
    work = tmp_path_factory.mktemp("container")
    with (
        Lab(Spec.cloud("aws", interfaces=3, addresses=5, ipv6=2)) as lab,
        Container(lab, debian("bookworm"), packages.package, work, packages.newer) as it,
    ):
        yield it


class TestContainer(LastChecks, Checks):
    pass


class TestMemory:
    """The memory of the daemons, measured without an emulator: a process has the same pages as on an instance."""

    def test_each_daemon_uses_less_than_half_of_its_memory_limit(self, guest: Guest) -> None:
        guest.wait_for(lambda: guest.get("/api/v1/health")[0] == 200, message="health")
        guest.run("cnctl", "refresh")
        for service in SERVICES:
            assert guest.main_pid(service)
            assert guest.memory([service]) < int(guest.show(f"cloud-network-{service}.service", "MemoryMax")) / 2

    def test_netagent_exits_when_idle(self, guest: Guest) -> None:
        guest.wait_for(lambda: guest.main_pid("netagent") == 0, 120, "netagent's exit")
        assert guest.show("cloud-network-netagent.service", "Result") == "success"
        assert guest.show("cloud-network-netagent.socket", "ActiveState") == "active"
        guest.run("cnctl", "refresh")
        assert all_reachable(guest)


class TestNoCloud:
    """On a host of an unknown cloud the package can be installed, and nothing is degraded."""

    def test_no_unit_fails_and_cnctl_reports_ok(self, guest: Guest) -> None:
        fetcher = "cloud-network-fetcher.service"
        guest.run("sed", "-i", "s/^Provider/# Provider/", "/etc/cloud-network/cloud-network.toml")
        guest.run("systemctl", "restart", fetcher)
        guest.wait_for(lambda: guest.show(fetcher, "ActiveState") == "inactive", 30, "the fetcher's exit")
        assert guest.show(fetcher, "Result") == "success"
        assert guest.show(fetcher, "StatusText").startswith("no supported cloud detected")
        assert guest.run("systemctl", "--failed", "--plain", "--no-legend", "list-units", "cloud-network*") == ""
        output = guest.run("sh", "-c", "cnctl status; echo $?")
        assert "no supported cloud detected" in output
        assert output.splitlines()[-1] == "3"
        guest.run("systemctl", "start", "cloud-network-wait-online.service")

    def test_waiting_for_the_network_ends_when_it_is_configured(self, guest: Guest) -> None:
        guest.run("systemctl", "stop", "cloud-network-wait-online.service")
        guest.run("sed", "-i", "s/^# Provider/Provider/", "/etc/cloud-network/cloud-network.toml")
        guest.run("systemctl", "restart", "cloud-network-fetcher.service")
        guest.run("systemctl", "start", "cloud-network-wait-online.service")
        assert all_reachable(guest)
        assert (
            guest.run("systemctl", "is-enabled", "cloud-network-wait-online.service", check=False).strip() == "disabled"
        )


class TestReversePath:
    """ProcSubset=pid hides /proc/sys; the unit gives the fetcher access to the sysctls of the reverse path filter."""

    def test_the_strict_filter_is_seen_and_named(self, guest: Guest) -> None:
        guest.wait_for(lambda: all_reachable(guest), message="all addresses")
        name = guest.lab.nics[1].name
        guest.lab.run(["sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=1"])
        with guest.configured(CONFIG.replace("[Netagent]", 'ForwardedReplies = "mark"\n[Netagent]')):
            named = f"{name}: rp_filter=1 drops packets that this host forwards"
            guest.wait_for(lambda: named in guest.run("cnctl", "--json", "status", check=False), message=named)
            guest.lab.run(["sysctl", "-qw", "net.ipv4.conf.all.src_valid_mark=1"])
            guest.run("cnctl", "refresh")
            assert named not in guest.run("cnctl", "--json", "status")


class TestInvalidConfiguration:
    """Each daemon ends with 78. cnctl names the file's mistake first, and what systemd says of each service."""

    def test_the_reason_is_shown_first(self, guest: Guest) -> None:
        guest.wait_for(lambda: guest.get("/api/v1/health")[0] == 200, message="health")
        with guest.configured(CONFIG + "Nonsense = 1\n"):
            for service in SERVICES:
                guest.run("systemctl", "restart", f"cloud-network-{service}.service", check=False)
                unit = f"cloud-network-{service}.service"
                guest.wait_for(lambda unit=unit: guest.show(unit, "ExecMainStatus") == "78", message=f"78 of {unit}")  # type: ignore[misc]
            shown, doctor = (guest.run("cnctl", command, check=False) for command in ("status", "doctor"))
            words = " ".join(shown.split())
            for service in ("fetcher", "api"):
                assert re.search(rf"cloud-network-{service}: \w+, result exit-code, exit status 78", words)
            assert "Error: config, " in shown.partition("Fetcher: ")[0]
            assert "Nonsense = 1: unknown key" in words
            assert "Nonsense = 1: unknown key" in " ".join(doctor.partition("metadata")[0].split())
        for service in SERVICES:
            guest.run("systemctl", "reset-failed", f"cloud-network-{service}.service", check=False)
        guest.run("systemctl", "restart", "cloud-network-netagent.socket", "cloud-network-fetcher.service")
        guest.wait_for(lambda: all_reachable(guest), message="all addresses")
