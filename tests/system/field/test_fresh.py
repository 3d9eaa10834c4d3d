"""After any change of the metadata, the kernel has the same objects as after a fresh start with these metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Interface, Lab, Spec
from tests.system.service import (
    Kernel,
    ip,
    kernel,
    refresh,
    running_lab,
    send_command,
    wait_until_healthy,
    without_order,
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=3), "", "netagent", "fetcher") as made:
        yield made


def fresh(lab: Lab) -> Kernel:
    """Return the kernel's objects after a flush and a restart of the fetcher."""
    assert send_command(lab, "flush")["ok"]
    lab.stop("fetcher")
    lab.start("fetcher")
    lab.wait_for(lambda: lab.path("/run/cloud-network/control.sock").exists(), message="the fetcher")
    wait_until_healthy(lab)
    return kernel(lab)


def connected(lab: Lab, name: str) -> list[str]:
    """Return the connected subnets of a link in main, with their preferred source."""
    routes: list[dict[str, Any]] = ip(lab, "-4", "route", "show", "dev", name, "proto", "kernel")
    return [f"{route['dst']} src {route['prefsrc']}" for route in routes]


def test_connected_route_survives_removal_of_the_first_address(lab: Lab) -> None:
    nic = lab.nics[1]
    assert connected(lab, nic.name) == [f"{nic.subnet} src {nic.addresses[0]}"]
    connections = [lab.hold_connection(address, ("neighbour", 1)) for address in nic.addresses[1:]]
    lab.remove_address(nic.mac, nic.addresses[0])
    assert refresh(lab) == "ok"
    assert connected(lab, nic.name) == [f"{nic.subnet} src {nic.addresses[1]}"]
    assert all(connection.alive() for connection in connections)
    assert all(lab.reachability().values())
    assert lab.lost() == []
    now = kernel(lab)
    assert without_order(fresh(lab)) == without_order(now)


def test_several_changes_end_as_a_fresh_start(lab: Lab) -> None:
    """The first address changes, an interface in the same subnet comes and goes, and most addresses are removed."""
    nic = lab.nics[1]
    held = lab.hold_connection(nic.addresses[2])
    extra = lab.attach_interface(Interface(nic.subnet, ("10.0.2.50", "10.0.2.51")))
    refresh(lab)
    wait_until_healthy(lab)
    lab.remove_address(nic.mac, nic.addresses[0])
    lab.add_address(extra.mac, "10.0.2.52")
    assert refresh(lab) == "ok"
    lab.remove_address(nic.mac, nic.addresses[1])
    lab.remove_address(extra.mac, "10.0.2.50")
    lab.add_address(nic.mac, nic.addresses[0])
    assert refresh(lab) == "ok"
    assert held.alive()
    assert all(lab.reachability().values())
    now = kernel(lab)
    assert without_order(fresh(lab)) == without_order(now)
    lab.detach_interface(extra.mac)
    refresh(lab)
    wait_until_healthy(lab)
    now = kernel(lab)
    assert without_order(fresh(lab)) == without_order(now)
