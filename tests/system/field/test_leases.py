"""A DHCP route of a link applies to the sources of that link; an operator's route applies to all sources."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.lab.spec import beyond_address, neighbour_address
from tests.system.service import cnctl, ip, own_objects, refresh, running_lab

PROBES = "168.63.129.16"
"""Azure's load balancers and DHCP: learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16."""
SERVICE = "192.0.2.9"


def egress_link(lab: Lab, destination: str, source: str) -> str:
    """Return the link through which packets from `source` to `destination` leave."""
    return str(ip(lab, "route", "get", destination, "from", source)[0]["dev"])


def add_remote_address(lab: Lab, address: str) -> None:
    """Add an address to a host beyond, and route it there in the cloud."""
    lab.beyond[0].batch([f"address add {address}/32 dev lo"])
    lab.run(["ip", "route", "add", address, "via", beyond_address(0)], "cloud")


def answered_from(lab: Lab, source: str) -> dict[str, bool]:
    """Return {address: answered} for every address of the instance, tested from a client with the address `source`."""
    lab.reach.listen(lab.instance)
    answers = lab.reach.probe({lab.beyond[0]: [(address, source) for address in lab.addresses]}, 1.5)
    return {target: answered for (_, target, _), answered in answers.items()}


@pytest.fixture
def azure() -> Iterator[Lab]:
    with running_lab(Spec.cloud("azure", interfaces=3, addresses=2)) as made:
        add_remote_address(made, PROBES)
        yield made


@pytest.fixture
def aws() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=2), "", "netagent", "fetcher") as made:
        add_remote_address(made, SERVICE)
        yield made


def test_azure_probes_are_answered_through_the_link_of_arrival(azure: Lab) -> None:
    """The route comes from DHCP or from a dhclient script (protocol boot); each table has its own."""
    lab = azure
    assert {route["table"] for route in own_objects(lab, "route-4") if route["dst"] == PROBES} == {
        route["table"] for route in own_objects(lab, "route-4") if route["dst"] == "default"
    }
    for protocol in ("dhcp", "boot"):
        line = f"{PROBES} via {lab.nics[0].gateway} dev {lab.nics[0].name} proto {protocol}"
        lab.batch([f"route add {line}"])
        assert refresh(lab) == "ok"
        assert all(answered_from(lab, PROBES).values())
        assert lab.lost() == []
        lab.batch([f"route del {line}"])


def test_doctor_tries_the_clouds_own_sources(azure: Lab) -> None:
    """Without --from, doctor finds a rule of an operator that diverts the replies to the probes."""
    lab, nic = azure, azure.nics[1]
    lines = [
        f"route add default via {lab.nics[0].gateway} dev {lab.nics[0].name} table 77",
        f"rule add pref 30000 to {PROBES} lookup 77",
    ]
    lab.batch(lines)
    answer = json.loads(cnctl(lab, "doctor", "--json").stdout)
    [broken] = [step for step in answer["steps"] if step["step"] == nic.name]
    assert not broken["ok"]
    assert f"replies to {PROBES} leave by {lab.nics[0].name}" in broken["found"]
    lab.batch([lines[1].replace("add", "del", 1)])
    found = cnctl(lab, "doctor", nic.addresses[0])
    assert PROBES in found.stdout
    assert found.returncode == 0


def test_dhcp_route_applies_to_sources_of_its_link(aws: Lab) -> None:
    """Option 121 on the primary, also with a wider prefix. The route leaves the tables when the lease loses it."""
    lab, primary = aws, aws.nics[0]
    for destination in (f"{SERVICE}/32", "192.0.2.0/24"):
        line = f"{destination} via {primary.gateway} dev {primary.name} proto dhcp"
        lab.batch([f"route add {line}"])
        lab.wait_for(
            lambda: egress_link(lab, SERVICE, lab.nics[1].addresses[0]) == lab.nics[1].name, 10, "its own link"
        )
        assert refresh(lab) == "ok"
        for nic in lab.nics:
            assert {egress_link(lab, SERVICE, address) for address in nic.addresses} == {nic.name}
        assert all(answered_from(lab, SERVICE).values())
        lab.batch([f"route del {line}"])
        lab.wait_for(
            lambda: not [r for r in own_objects(lab, "route-4") if r["dst"].startswith("192.0.2.")],
            10,
            "the removal of the routes",
        )


def test_operators_static_route_takes_precedence(aws: Lab) -> None:
    """The operator's route has the same destination as the DHCP route, or lies within it."""
    lab, primary = aws, aws.nics[0]
    host = neighbour_address(primary.subnet)
    lease = f"192.0.2.0/24 via {primary.gateway} dev {primary.name} proto dhcp metric 100"
    via_host = f"via {host} dev {primary.name}"
    for line in (f"192.0.2.0/24 {via_host} proto static", f"{SERVICE} {via_host}"):
        lab.batch([f"route add {lease}", f"route add {line}"])
        assert refresh(lab) == "ok"
        for source in lab.addresses:
            assert ip(lab, "route", "get", SERVICE, "from", source)[0]["gateway"] == host
        lab.batch([f"route del {line}", f"route del {lease}"])
        assert refresh(lab) == "ok"
