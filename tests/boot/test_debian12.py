"""Debian 12 in a virtual machine, in place of the instance of an EC2 lab: three interfaces, IPv4 and IPv6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.others.dhcp import server

from .checks import Checks, Endings
from .conftest import Packages, require
from .image import debian
from .machine import Machine
from .machine_checks import MachineChecks

SPEC = Spec.cloud("aws", interfaces=3, addresses=4, ipv6=2)


@pytest.fixture(scope="module")
def guest(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    require({"qemu-system-x86_64": "qemu-system-x86", "dnsmasq": "dnsmasq-base"})
    work = tmp_path_factory.mktemp("debian12")
    with (
        Lab(SPEC, vacant=True) as lab,
        server(lab, lab.nics[0]),
        Machine(lab, debian("bookworm"), packages.package, work, packages.newer) as guest,
    ):
        yield guest


class TestDebian12(Endings, MachineChecks, Checks):
    pass
