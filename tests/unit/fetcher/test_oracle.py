"""Oracle's VNICs -> Instance."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata.model import Instance, Vlan

from tests.unit.fetcher.emulated import document, read, settled
from tests.unit.fetcher.emulated import provider_of as provider


def parsed(name: str, **changes: object) -> Instance:
    """Return the instance with these values in the last VNIC."""
    whole = document("oracle", name)
    whole["vnics"][-1] |= changes
    return read("oracle", whole)


def test_vnic_is_read_whole() -> None:
    first = parsed("many").interfaces[0]
    assert first.mac == "02:00:17:00:00:01"
    assert [str(address) for address in first.addresses[:2]] == ["10.0.1.230/24", "2603:c020:400d:1::100/64"]
    assert len(first.addresses) == 15
    assert first.subnets == (ip_network("10.0.1.0/24"), ip_network("2603:c020:400d:1::/64"))
    assert first.gateways == (ip_address("10.0.1.1"), ip_address("fe80::200:17ff:fe40:8972"))
    assert [each.device_number for each in parsed("many").interfaces] == [0, 1, 2, 3]


def test_vnic_may_have_ipv6_only() -> None:
    _, alone, prefix = parsed("ipv6").interfaces
    assert [address.version for address in alone.addresses] == [6, 6]
    assert alone.gateways == (ip_address("fe80::200:17ff:fe40:8972"),)
    assert [address.version for address in prefix.addresses] == [4]


@pytest.mark.parametrize("name", ["metal", "metal_tags"])
def test_second_vnic_of_a_physical_nic_is_a_vlan(name: str) -> None:
    physical, vlan = parsed(name).interfaces
    assert physical.vlan is None
    assert vlan.vlan is not None
    assert vlan.vlan.parent == physical.mac
    assert parsed(name).complete


def test_vnics_of_two_physical_nics_are_no_vlans() -> None:
    assert [each.vlan for each in parsed("metal", nicIndex=1).interfaces] == [None, None]
    assert parsed("metal").interfaces[1].vlan == Vlan(1, "90:e2:ba:d4:f1:68")


def test_vlan_tag_of_a_virtual_machine_is_ignored() -> None:
    assert [each.vlan for each in parsed("one").interfaces] == [None]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("privateIp", "10.9.9.9", "vnics: [0].privateIp: '10.9.9.9' is not inside 10.0.1.0/24"),
        ("privateIp", "10.0.1.255", "[0].privateIp"),
        ("privateIp", "10.0.1.1", "[0]: 10.0.1.1 is both an address of the interface and its gateway"),
        ("subnetCidrBlock", "10.0.1.0/240", "[0].subnetCidrBlock: '10.0.1.0/240' is not a prefix"),
        ("virtualRouterIp", "x", "[0].virtualRouterIp: 'x' is not an IP address"),
        ("ipv6Addresses", "fe80::1", "[0].ipv6Addresses: 'fe80::1' is not a list"),
        ("ipv6Addresses", ["fe80::1"], "[0].ipv6Addresses[0]: 'fe80::1' is not a routable"),
    ],
)
def test_wrong_value_is_reported_by_its_path(key: str, value: object, message: str) -> None:
    whole = document("oracle", "many")
    whole["vnics"][0] |= {key: value}
    found = read("oracle", whole)
    assert any(message.removeprefix("vnics: ") in problem.text for problem in found.problems)
    assert len(found.interfaces) == 4
    assert found.interfaces[0].addresses, "its other addresses are configured"


def test_gateway_outside_the_subnet_is_used() -> None:
    found = parsed("one", virtualRouterIp="10.0.9.1")
    assert (found.interfaces[0].gateways[0], found.complete) == (ip_address("10.0.9.1"), True)


def test_user_data_is_not_shown_and_keys_are() -> None:
    system = settled(provider("oracle", document("oracle", "one"))).system
    assert system["shape"] == "VM.Standard2.1"
    assert "metadata" not in system
    assert [re.match(r"ssh-\w+", key)[0] for key in system["public-keys"]] == ["ssh-ed25519", "ssh-rsa"]  # type: ignore[index]
