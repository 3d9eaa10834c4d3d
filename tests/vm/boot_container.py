"""The same in a container, in a fraction of the time: for the developer at work. `make boot` runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec

from .checks import Checks, Endings, reachable
from .conftest import Packages, require
from .container import Container
from .guest import SERVICES, Guest
from .image import debian


@pytest.fixture(scope="class")
def guest(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Purged at the end of its checks: each class has its own."""
    require({"systemd-nspawn": "systemd-container"})
    work = tmp_path_factory.mktemp("container")
    with (
        Lab(Spec.cloud("aws", interfaces=3, addresses=5, ipv6=2)) as lab,
        Container(lab, debian("bookworm"), packages.package, work, packages.newer) as it,
    ):
        yield it


class TestContainer(Endings, Checks):
    pass


class TestMemory:
    """Of what runs: measured where a process has the same pages as on an instance, without waiting for an emulator."""

    def test_of_all(self, guest: Guest) -> None:
        guest.wait_for(lambda: guest.get("/api/v1/health")[0] == 200, message="health")
        guest.run("cnctl", "refresh")
        assert all(guest.main_pid(service) for service in SERVICES)
        assert guest.memory() <= 60e6

    def test_netagent_leaves_when_idle_and_what_is_left_is_small(self, guest: Guest) -> None:
        guest.wait_for(lambda: guest.main_pid("netagent") == 0, 120, "netagent to leave")
        assert guest.show("cloud-network-netagent.service", "Result") == "success"
        assert guest.show("cloud-network-netagent.socket", "ActiveState") == "active"
        assert guest.memory(["fetcher"]) <= 45e6
        guest.run("cnctl", "refresh")
        assert reachable(guest)
