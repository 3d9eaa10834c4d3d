"""The same of Debian 13, with its own kernel, systemd and Python: `make boot` runs it, `make test` does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .checks import Checks, Endings
from .conftest import build_both, require
from .image import debian
from .machine import PROGRAMS, Machine, booted
from .machine_checks import MachineChecks


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    require({**PROGRAMS, "systemd-nspawn": "systemd-container"})
    work = tmp_path_factory.mktemp("debian13")
    packages = build_both(work, "trixie")
    with booted(debian("trixie"), packages.package, work, packages.newer) as guest:
        yield guest


class TestDebian13(Endings, MachineChecks, Checks):
    pass
