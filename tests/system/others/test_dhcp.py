"""Real DHCP clients with a real server: renewal, another address, release. Our objects stay."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.system.service import (
    ip,
    kernel,
    kernel_addresses,
    own_objects,
    refresh,
    running_lab,
    wait_until_healthy,
    without_order,
)

from . import dhcp
from .programs import Program

CLIENTS = {"dhclient": dhcp.dhclient, "dhcpcd": dhcp.dhcpcd}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=2, addresses=3)) as made:
        yield made
        assert "Traceback" not in made.log("fetcher") + made.log("netagent")


@pytest.mark.parametrize("name", CLIENTS)
def test_a_lease_is_taken_renewed_changed_and_released(lab: Lab, name: str) -> None:
    """The primary interface is tested. Its siblings' connections stay open throughout."""
    nic = lab.nics[0]
    first, second = nic.addresses[0], "10.0.1.99"
    held = [lab.hold_connection(address) for address in (nic.addresses[1], nic.addresses[2], lab.nics[1].addresses[0])]
    owned = [own_objects(lab, what) for what in ("rule-4", "route-4")]
    with dhcp.server(lab, nic) as server, CLIENTS[name](lab, nic) as client:
        server.wait_for_grants(1)
        lab.wait_for(lambda: has_lease(lab, first) and set(lab.addresses) <= kernel_addresses(lab), message="the lease")
        wait_until_healthy(lab)
        before = without_order(kernel(lab))
        server.wait_for_grants(1)
        lab.wait_for(lambda: has_lease(lab, first), message="the renewal")
        assert refresh(lab) == "ok"
        assert without_order(kernel(lab)) == before
        assert [own_objects(lab, what) for what in ("rule-4", "route-4")] == owned
        assert all(connection.alive() for connection in held)
        # the cloud gives the interface another first address
        lab.add_address(nic.mac, second)
        lab.remove_address(nic.mac, first)
        server.give(nic, second)
        lab.wait_for(lambda: has_lease(lab, second) and first not in kernel_addresses(lab), 20, "the new lease")
        lab.wait_for(lambda: set(lab.addresses) <= kernel_addresses(lab), message="the siblings")
        lab.wait_for(lambda: refresh(lab) == "ok", 20, "the metadata server, by the new default route")
        assert all(connection.alive() for connection in held)
        assert all(lab.reachability().values())
        release(lab, client, name, server)
        lab.wait_for(lambda: not has_lease(lab, second), message="the end of the lease")
        lab.wait_for(lambda: set(lab.addresses) <= kernel_addresses(lab), message="the address, now owned")
        assert held[2].alive()


def has_lease(lab: Lab, address: str) -> bool:
    """Return True if the address has a lease's lifetime."""
    found = [each for link in ip(lab, "address") for each in link["addr_info"] if each["local"] == address]
    return any(each["valid_life_time"] < 2**32 - 1 for each in found)


def release(lab: Lab, client: Program, name: str, server: dhcp.Server) -> None:
    """Release as the package documents: `dhclient -r`, and dhcpcd's signal."""
    if name == "dhcpcd":
        client.stop(signal.SIGALRM)
    else:
        files = ("-cf", "/dev/null", "-lf", "/run/dhclient.leases", "-pf", "/run/dhclient.pid")
        lab.run(["dhclient", "-4", "-r", *files, lab.nics[0].name])
    lab.wait_for(server.released, message="the release")
