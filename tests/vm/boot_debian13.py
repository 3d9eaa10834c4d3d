"""The checks on Debian 13, with its own kernel, systemd and Python: `make boot` runs it, `make test` does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .checks import Checks, LastChecks
from .conftest import build_both, require
from .image import PACKAGES, debian
from .kernel_checks import KernelChecks
from .reply_checks import ReplyChecks
from .virtual_machine import PROGRAMS, VirtualMachine, booted


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    require({**PROGRAMS, "systemd-nspawn": "systemd-container"})
    work = tmp_path_factory.mktemp("debian13")
    packages = build_both(work, "trixie")
    files = debian("trixie", (*PACKAGES, "nftables"))
    with booted(files, packages.package, work, packages.newer) as guest:
        yield guest


class TestDebian13(LastChecks, ReplyChecks, KernelChecks, Checks):
    pass
