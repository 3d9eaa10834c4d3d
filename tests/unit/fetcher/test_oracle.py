"""Oracle's VNICs → Instance."""

from __future__ import annotations

import re
from copy import deepcopy
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.metadata.providers import oracle
from cloud_network.fetcher.metadata.providers.document import Node

from tests.unit.fetcher.clouds import payload


def made(name: str, **changes: object) -> Instance:
    """With these values in the last VNIC."""
    vnics = deepcopy(payload("oracle", name)["vnics"])
    vnics[-1] |= changes
    return oracle.instance(Node(vnics))


def test_a_vnic_is_read_whole() -> None:
    first = made("many").interfaces[0]
    assert first.mac == "02:00:17:00:00:01"
    assert [str(address) for address in first.addresses[:2]] == ["10.0.1.230/24", "2603:c020:400d:1::100/64"]
    assert len(first.addresses) == 15
    assert first.subnets == (ip_network("10.0.1.0/24"), ip_network("2603:c020:400d:1::/64"))
    assert first.gateways == (ip_address("10.0.1.1"), ip_address("fe80::200:17ff:fe40:8972"))
    assert [each.device_number for each in made("many").interfaces] == [0, 1, 2, 3]


def test_a_vnic_may_have_ipv6_alone_or_a_prefix_without_an_address() -> None:
    _, alone, prefix = made("ipv6").interfaces
    assert [address.version for address in alone.addresses] == [6, 6]
    assert alone.gateways == (ip_address("fe80::200:17ff:fe40:8972"),)
    assert [address.version for address in prefix.addresses] == [4]


def test_a_vlan_of_bare_metal_is_named_and_not_configured() -> None:
    found = made("metal")
    assert [each.mac for each in found.interfaces] == ["90:e2:ba:d4:f1:68"]
    assert found.notices == (
        "[1].vlanTag: 1: 02:00:17:05:cf:51 is a VLAN on a bare metal machine, which is not configured yet",
    )
    assert found.complete, "what is not configured stops nothing"


def test_the_vlan_tag_of_a_virtual_machine_is_the_clouds_own_affair() -> None:
    assert made("one").complete


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("privateIp", "10.9.9.9", "[0].privateIp: '10.9.9.9' is not inside 10.0.1.0/24"),
        ("privateIp", "10.0.1.255", "[0].privateIp"),
        ("privateIp", "10.0.1.1", "the gateway's"),
        ("privateIp", "<null>", "[0]: no address"),
        ("subnetCidrBlock", "10.0.1.0/240", "[0].subnetCidrBlock: '10.0.1.0/240' is not a prefix"),
        ("virtualRouterIp", "8.8.8.8", "[0].virtualRouterIp: '8.8.8.8' is not inside"),
        ("ipv6Addresses", "fe80::1", "[0].ipv6Addresses: 'fe80::1' is not a list"),
        ("ipv6Addresses", ["2603::1"], "[0].ipv6Addresses[0]: '2603::1' is not inside"),
    ],
)
def test_what_a_vnic_cannot_have_is_named_by_its_path(key: str, value: object, said: str) -> None:
    (problem,) = made("one", **{key: value}).problems
    assert said in problem.text


def test_the_user_data_is_nobodys_business_and_the_keys_are_shown() -> None:
    whole = payload("oracle", "one")
    system = oracle.instance(Node(whole["vnics"]), Node(whole["instance"])).system
    assert system["shape"] == "VM.Standard2.1"
    assert "metadata" not in system
    assert [re.match(r"ssh-\w+", key)[0] for key in system["public-keys"]] == ["ssh-ed25519", "ssh-rsa"]  # type: ignore[index]


def test_it_is_known_by_its_asset_tag() -> None:
    assert firmware.oracle({"chassis_asset_tag": "OracleCloud.com", "sys_vendor": "QEMU"})
    assert not firmware.oracle({"sys_vendor": "Oracle Corporation", "product_name": "VirtualBox"})
