"""Debian 12 in a virtual machine, in place of the instance of an EC2 lab: three interfaces, IPv4 and IPv6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .checks import Checks, LastChecks
from .conftest import Packages, require
from .image import debian
from .kernel_checks import KernelChecks
from .virtual_machine import PROGRAMS, VirtualMachine, booted


@pytest.fixture(scope="module")
def guest(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    require(PROGRAMS)
    work = tmp_path_factory.mktemp("debian12")
    with booted(debian("bookworm"), packages.package, work, packages.newer) as guest:
        yield guest


class TestDebian12(LastChecks, KernelChecks, Checks):
    pass
