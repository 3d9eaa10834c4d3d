"""Interfaces built part by part: an invalid part affects no other."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder, UnsupportedError
from cloud_network.fetcher.metadata.document import Node
from cloud_network.fetcher.metadata.model import MAX_INTERFACES, Instance, MetadataError

from tests.unit.fetcher.values import mac


def fill(node: Node, builder: InterfaceBuilder, _position: int) -> None:
    if node.find("unsupported"):
        raise UnsupportedError(f"{node.path}: unsupported")
    with builder.part():
        builder.add_subnet(node.at("subnet").network(4))
    with builder.part():
        for entry in node.items("addresses"):
            with builder.part():
                builder.add_address(entry, 4)
    with builder.part():
        builder.add_gateway(node.find("gateway"), 4)


def parsed(*nodes: object) -> Instance:
    builder = InstanceBuilder("test")
    builder.read_interfaces(Node(list(nodes), "nics").items(), lambda node: node.at("mac").mac(), fill)
    return builder.build({})


def nic(number: int, **changes: object) -> dict[str, object]:
    subnet = f"10.0.{number}"
    whole = {"subnet": f"{subnet}.0/24", "addresses": [f"{subnet}.10", f"{subnet}.11"], "gateway": f"{subnet}.1"}
    return {"mac": mac(number)} | whole | changes


def test_wrong_part_stops_no_other() -> None:
    found = parsed(nic(1), nic(2, addresses=["10.0.2.10", "x", "10.0.2.12"], gateway="y"))
    assert found.interfaces[0] == parsed(nic(1)).interfaces[0]
    assert [str(each) for each in found.interfaces[1].addresses] == ["10.0.2.10/24", "10.0.2.12/24"]
    assert [problem.text for problem in found.problems] == [
        "nics[1].addresses[1]: 'x' is not an IP address",
        "nics[1].gateway: 'y' is not an IP address",
    ]


def test_entry_without_a_mac_stops_no_other() -> None:
    found = parsed({}, nic(1), 7, nic(2, mac=None))
    assert [each.mac for each in found.interfaces] == [mac(1)]
    assert [problem.mac for problem in found.problems] == ["", "", ""]


def test_second_entry_of_a_mac_is_reported() -> None:
    found = parsed(nic(1), nic(1, addresses=["10.0.1.99"]), nic(2))
    assert [each.mac for each in found.interfaces] == [mac(1), mac(2)]
    assert found.interfaces[0] == parsed(nic(1)).interfaces[0]
    assert "a second interface with the MAC" in found.problems[0].text


def test_unsupported_interface_is_a_notice() -> None:
    found = parsed(nic(1), nic(2, unsupported=True))
    assert (len(found.interfaces), found.notices, found.unproven) == (1, ("nics[1]: unsupported",), {mac(2)})


def test_address_stands_alone_without_a_usable_subnet() -> None:
    found = parsed(nic(1, subnet="10.0.0.0/2", gateway="192.0.2.1"))
    assert [str(each) for each in found.interfaces[0].addresses] == ["10.0.1.10/32", "10.0.1.11/32"]
    assert found.interfaces[0].gateways == (ip_address("192.0.2.1"),)


def test_address_outside_its_known_subnet_is_refused() -> None:
    found = parsed(nic(1, addresses=["10.0.1.10", "8.8.8.8"]))
    assert [str(each) for each in found.interfaces[0].addresses] == ["10.0.1.10/24"]
    assert "'8.8.8.8' is not inside 10.0.1.0/24" in found.problems[0].text


def test_address_of_the_gateway_is_left_out() -> None:
    found = parsed(nic(1, addresses=["10.0.1.1", "10.0.1.10"]))
    assert [str(each) for each in found.interfaces[0].addresses] == ["10.0.1.10/24"]
    assert "10.0.1.1 is both an address of the interface and its gateway" in found.problems[0].text


def test_too_many_interfaces_are_reported_once() -> None:
    found = parsed(*(nic(number) for number in range(1, 100)))
    assert len(found.interfaces) == MAX_INTERFACES
    assert [problem.mac for problem in found.problems] == [""]


def test_problems_of_one_interface_are_bounded() -> None:
    found = parsed(nic(1, addresses=["10.0.1.10", *["x"] * 5000]), *[7] * 5000)
    assert len(found.problems) <= 20
    assert any("more" in problem.text for problem in found.problems)


def test_subnets_of_one_interface_are_bounded() -> None:
    builder = InterfaceBuilder(mac(1), "nic")
    for number in range(256):
        builder.add_subnet(ip_network(f"10.0.{number}.0/24"))
    builder.add_subnet(ip_network("10.0.0.0/24"))
    with pytest.raises(MetadataError, match="more than 256 subnets"):
        builder.add_subnet(ip_network("10.1.0.0/24"))


@pytest.mark.parametrize("nodes", [[], [{}], [7]])
def test_no_interface_at_all_is_an_error(nodes: list[object]) -> None:
    with pytest.raises(MetadataError):
        parsed(*nodes)
