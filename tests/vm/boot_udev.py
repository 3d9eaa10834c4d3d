"""Debian 12 whose udev renames the links after a delay: `make boot` runs it, `make test` does not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .checks import AUDIT, all_reachable
from .conftest import Packages, require
from .image import debian
from .kernel_checks import link_of, plugged
from .virtual_machine import PROGRAMS, VirtualMachine, booted

MAC, NAME = "02:00:00:00:d0:01", "spare0"
RULES = f"""\
SUBSYSTEM=="net", ACTION=="add", KERNEL=="eth*", PROGRAM="/usr/bin/sleep 0.3"
SUBSYSTEM=="net", ACTION=="add", ATTR{{address}}=="{MAC}", NAME="{NAME}"
"""


@pytest.fixture(scope="module")
def guest(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    require(PROGRAMS)
    work = tmp_path_factory.mktemp("udev")
    with booted(debian("bookworm"), packages.package, work, udev_rules=RULES) as guest:
        yield guest


class TestUdev:
    def test_every_address_answers_under_the_names_of_udev(self, guest: VirtualMachine) -> None:
        guest.wait_for(lambda: all_reachable(guest), 120, "all addresses")
        names = [link["ifname"] for link in json.loads(guest.run("ip", "-json", "link"))]
        assert not [name for name in names if name.startswith("eth")], names

    def test_link_is_renamed_before_it_is_configured(self, guest: VirtualMachine) -> None:
        with plugged(guest, mac=MAC):
            guest.wait_for(lambda: all_reachable(guest), message="the addresses of the new interface")
            assert link_of(guest, MAC) == NAME

    def test_link_that_udev_gives_an_excluded_name_is_never_touched(self, guest: VirtualMachine) -> None:
        with guest.configured(f'[Network]\nExclude = "{NAME}"\n'):
            log = guest.run("cat", AUDIT)
            with plugged(guest, mac=MAC):
                guest.wait_for(lambda: link_of(guest, MAC) == NAME, message="the name of udev")
                guest.run("cnctl", "refresh")
                index = int(guest.run("cat", f"/sys/class/net/{NAME}/ifindex"))
                lines = [json.loads(line) for line in guest.run("cat", AUDIT).removeprefix(log).splitlines()]
                touched = [op for line in lines for op in line.get("ops", ()) if op.get("link") == index]
                assert touched == []
