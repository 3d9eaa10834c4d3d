"""The same of Debian 13, with its own kernel, systemd and Python: `make boot` runs it, `make test` does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.others.dhcp import server

from .checks import Checks, Endings
from .conftest import build_both, require
from .image import debian
from .machine import Machine
from .machine_checks import MachineChecks
from .test_debian12 import SPEC


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    require({"qemu-system-x86_64": "qemu-system-x86", "dnsmasq": "dnsmasq-base", "systemd-nspawn": "systemd-container"})
    work = tmp_path_factory.mktemp("debian13")
    packages = build_both(work, "trixie")
    with (
        Lab(SPEC, vacant=True) as lab,
        server(lab, lab.nics[0]),
        Machine(lab, debian("trixie"), packages.package, work, packages.newer) as guest,
    ):
        yield guest


class TestDebian13(Endings, MachineChecks, Checks):
    pass
