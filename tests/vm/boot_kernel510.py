"""Debian 12 with Debian 11's kernel 5.10, the oldest supported one: `make boot` runs it, `make test` does not.

This kernel has no IFA_PROTO (5.18), so only netagent's ledger identifies owned addresses; it also has no Landlock
(5.13) and no SO_PEERPIDFD (6.5).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .checks import Checks, LastChecks, all_reachable
from .conftest import Packages, require
from .image import PACKAGES, debian
from .reply_checks import ReplyChecks
from .virtual_machine import PROGRAMS, VirtualMachine, booted


@pytest.fixture(scope="module")
def guest(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    require(PROGRAMS)
    work = tmp_path_factory.mktemp("kernel510")
    files = debian("bookworm", (*PACKAGES, "nftables"), kernel_of="bullseye")
    with booted(files, packages.package, work, packages.newer) as guest:
        yield guest


class RemovalChecks:
    def test_an_address_that_the_cloud_removes_goes_and_returns(self, guest: VirtualMachine) -> None:
        """Only the ledger says that it is owned. DHCP's address is not in the ledger and stays."""
        guest.wait_for(lambda: all_reachable(guest), 120, "all addresses")
        nic = guest.lab.nics[1]
        gone = nic.addresses[-1]
        guest.lab.remove_address(nic.mac, gone)
        guest.run("cnctl", "refresh", check=False)
        guest.wait_for(lambda: f" {gone}/" not in guest.run("ip", "-4", "-o", "address"), 30, f"the removal of {gone}")
        assert all_reachable(guest)
        guest.lab.add_address(nic.mac, gone)
        guest.run("cnctl", "refresh", check=False)
        guest.wait_for(lambda: all_reachable(guest), 30, "the address again")


class TestKernel510(LastChecks, RemovalChecks, ReplyChecks, Checks):
    def test_the_kernel_is_the_old_one(self, guest: VirtualMachine) -> None:
        assert guest.run("uname", "--kernel-release").startswith("5.10.")
