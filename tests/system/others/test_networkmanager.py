"""The real NetworkManager: after each of its actions the owned objects are repaired, and its own stay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.system.service import kernel_addresses, own_objects, refresh, running_lab

from . import dhcp
from .host import bus
from .networkmanager import NetworkManager


@pytest.fixture
def cloud() -> Iterator[tuple[Lab, dhcp.Server]]:
    with running_lab(Spec.aws(interfaces=2, addresses=3)) as made, dhcp.server(made, made.nics[0]) as server, bus(made):
        yield made, server
        assert "Traceback" not in made.log("fetcher") + made.log("netagent")


def test_owned_objects_survive_reactivation(cloud: tuple[Lab, dhcp.Server]) -> None:
    """NetworkManager starts, reapplies its profile with and without a new activation, and restarts."""
    lab, server = cloud

    def owned() -> list[list[str]]:
        return [sorted(map(str, own_objects(lab, what))) for what in ("rule-4", "route-4")]

    def all_objects_exist() -> bool:
        return owned() == before and set(lab.addresses) <= kernel_addresses(lab)

    before, nic = owned(), lab.nics[0]
    held = [lab.hold_connection(address) for address in (nic.addresses[1], lab.nics[1].addresses[0])]
    with NetworkManager(lab, nic) as manager:
        lab.wait_for(all_objects_exist, message="the objects of cloud-network and of NetworkManager")
        for step in (manager.reapply, manager.up, manager.restart):
            step()
            lab.wait_for(manager.connected, 20, f"NetworkManager after {step.__name__}")
            lab.wait_for(all_objects_exist, message=f"the objects after {step.__name__}")
            assert all(connection.alive() for connection in held), step.__name__
        assert server.grants() >= 2, "NetworkManager has its own lease"
        lab.wait_for(lambda: refresh(lab) == "ok", 20, "state ok")
        dhcp_routes = lab.run(["ip", "route", "show", "proto", "dhcp"]).stdout
        assert f"default via {nic.gateway}" in dhcp_routes
        lab.restart("fetcher")
        lab.wait_for(
            lambda: lab.path("/run/cloud-network/control.sock").exists(), message="the fetcher's control socket"
        )
        assert refresh(lab) == "ok"
        assert lab.run(["ip", "route", "show", "proto", "dhcp"]).stdout == dhcp_routes
        assert all(lab.reachability().values())
