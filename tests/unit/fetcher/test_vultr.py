"""Vultr's document -> Instance."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from cloud_network.fetcher.metadata.model import Instance, MetadataError

from tests.unit.fetcher.emulated import document, read


def parsed(name: str, **changes: object) -> Instance:
    """Return the instance with these values in the first interface."""
    whole = document("vultr", name)
    whole["interfaces"][0] |= changes
    return read("vultr", whole)


def test_instance_is_read_whole() -> None:
    public, private, *_ = parsed("many").interfaces
    assert len(public.addresses) == 16
    assert [str(public.addresses[index]) for index in (0, 1, 15)] == [
        "108.61.89.242/24",
        "108.61.90.10/24",
        "2001:19f0:5:56c2:5400:3ff:fe15:c465/64",
    ]
    assert public.gateways == (ip_address("108.61.89.1"),)
    assert ([str(each) for each in private.addresses], private.gateways) == (["10.1.112.3/20"], ())


def test_additional_ipv6_network_is_a_range() -> None:
    public, unconfigured = parsed("ipv6").interfaces
    assert public.ranges == (ip_network("2002:19f0:5:28a7::/64"),)
    assert (unconfigured.addresses, unconfigured.subnets, unconfigured.dhcp) == ((), (), True)


def test_additional_ipv6_address_beside_its_network_is_read() -> None:
    entry = {"address": "2002:19f0:5:28a7::9", "network": "2002:19f0:5:28a7::", "prefix": "64"}
    found = parsed("one", ipv6={"additional": [entry]})
    assert found.complete
    assert "2002:19f0:5:28a7::9/64" in map(str, found.interfaces[0].addresses)
    assert found.interfaces[0].ranges == (ip_network("2002:19f0:5:28a7::/64"),)


def test_mtu_and_routes_are_read() -> None:
    route = {"network": "10.9.0.0", "netmask": "255.255.0.0", "gateway": "108.61.89.7"}
    found = parsed("one", mtu=1450, routes=[route]).interfaces[0]
    assert found.mtu == 1450
    assert found.routes == ((ip_network("10.9.0.0/16"), ip_address("108.61.89.7")),)


def test_unknown_type_of_network_is_a_notice() -> None:
    found = parsed("one", **{"network-type": "hologram"})
    assert ["network-type: 'hologram' is not a known type" in notice for notice in found.notices] == [True]
    assert (found.problems, found.interfaces) == ((), parsed("one").interfaces)


def test_cloud_interfaces_are_read_where_interfaces_is_empty() -> None:
    public, private = read("vultr", "cloud_interfaces").interfaces
    assert (public.mac, public.addresses, public.dhcp) == ("56:00:03:1b:4e:ca", (), True)
    assert public.ranges == (ip_network("2002:19f0:5:28a7::/64"),)
    assert [str(address) for address in private.addresses] == ["10.1.112.3/20"]
    assert (private.mtu, private.routes) == (1450, ((ip_network("10.9.0.0/16"), ip_address("10.1.112.1")),))
    assert read("vultr", "cloud_interfaces").complete


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [
        ("ipv4", "netmask", "", "interfaces[0].ipv4.netmask"),
        ("ipv4", "address", "2001::1", "interfaces[0].ipv4.address: '2001::1' is not an IPv4"),
        ("ipv4", "additional", [{"netmask": "x", "address": "1.2.3.4"}], "ipv4.additional[0].netmask: 'x'"),
        ("ipv6", "prefix", "640", "interfaces[0].ipv6.prefix: '640' is not 0..128"),
        ("ipv6", "additional", [{"network": "x", "prefix": "64"}], "ipv6.additional[0].network: 'x/64' is not"),
        ("ipv6", "additional", [{"prefix": "64"}], "ipv6.additional[0]: neither an address nor a network"),
    ],
)
def test_wrong_value_is_reported_by_its_path(family: str, key: str, value: object, message: str) -> None:
    whole = document("vultr", "one")
    whole["interfaces"][0][family][key] = value
    (problem,) = read("vultr", whole).problems
    assert message in problem.text


def test_document_without_interfaces_is_an_error() -> None:
    documents: tuple[dict[str, Any], ...] = ({}, {"config": []})
    for cloud_interfaces in documents:
        with pytest.raises(MetadataError, match="names no interface"):
            read("vultr", {"interfaces": [], "cloud_interfaces": cloud_interfaces})
