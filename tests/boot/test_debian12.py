"""Debian 12 in a virtual machine, in place of the instance of an EC2 lab: three interfaces, IPv4 and IPv6."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, Spec
from tests.others.dhcp import server

from .checks import Checks
from .conftest import require
from .guest import Guest
from .machine import Machine

SPEC = Spec.cloud("aws", interfaces=3, addresses=4, ipv6=2)


@pytest.fixture(scope="module")
def guest(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    require({"qemu-system-x86_64": "qemu-system-x86", "dnsmasq": "dnsmasq-base"})
    work = tmp_path_factory.mktemp("debian12")
    with Lab(SPEC, vacant=True) as lab, server(lab, lab.nics[0]), Machine(lab, "bookworm", package, work) as guest:
        yield guest


class TestDebian12(Checks):
    def test_the_cloud_is_known_by_its_firmware(self, guest: Guest) -> None:
        assert guest.run("cat", "/sys/class/dmi/id/sys_vendor").strip() == "Amazon EC2"
        assert "rovider" not in guest.run("grep", "-v", "^#", "/etc/cloud-network/cloud-network.toml", check=False)
        assert "cloud: aws" in guest.journal()
