"""The same of Debian 13, with its own kernel, systemd and Python: `make boot` runs it, `make test` does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.others.dhcp import server

from .checks import Checks
from .conftest import require
from .guest import Guest
from .image import build
from .machine import Machine
from .test_debian12 import SPEC


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    require({"qemu-system-x86_64": "qemu-system-x86", "dnsmasq": "dnsmasq-base", "systemd-nspawn": "systemd-container"})
    work = tmp_path_factory.mktemp("debian13")
    package = build(work / "package", "trixie")
    with Lab(SPEC, vacant=True) as lab, server(lab, lab.nics[0]), Machine(lab, "trixie", package, work) as guest:
        yield guest


class TestDebian13(Checks):
    pass
