"""DigitalOcean's document -> Instance."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata.model import MetadataError

from tests.unit.fetcher.emulated import document, read


def test_droplet_is_read_whole() -> None:
    found = read("digitalocean", "many").interfaces
    public, private = found[0], found[1]
    assert [str(address) for address in public.addresses] == [
        "45.55.249.133/18",
        "10.17.0.5/16",
        "2604:a880:800:0:1000::1/64",
        "2604:a880:1:2::1/128",
    ]
    assert public.subnets[:2] == (ip_network("45.55.192.0/18"), ip_network("10.17.0.0/16"))
    assert public.gateways == (ip_address("45.55.192.1"), ip_address("2604:a880:800::1"))
    assert public.public == (ip_address("138.197.59.92"),)
    assert ([str(address) for address in private.addresses], private.public) == (["10.132.6.205/16"], ())
    assert [each.device_number for each in found] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("active", "there"), [(True, True), (False, False), (None, True)])
def test_reserved_ipv6_belongs_on_the_droplet_while_active(active: bool | None, there: bool) -> None:
    whole = document("digitalocean", "many")
    whole["reserved_ip"]["ipv6"] = {"ip_address": "2604:a880:9::9", "active": active}
    addresses = [str(address) for address in read("digitalocean", whole).interfaces[0].addresses]
    assert ("2604:a880:9::9/128" in addresses) == there


def test_anchor_gateway_is_the_fallback() -> None:
    whole = document("digitalocean", "one")
    whole["interfaces"]["public"][0]["ipv4"].pop("gateway")
    found = read("digitalocean", whole).interfaces[0]
    assert (found.gateways, found.anchor) == ((ip_address("10.17.0.1"),), None)


def test_anchor_gateway_is_the_anchors_beside_the_public_one() -> None:
    found = read("digitalocean", "one").interfaces[0]
    assert found.gateways == (ip_address("45.55.192.1"),)
    assert found.anchor == (ip_network("10.17.0.0/16"), ip_address("10.17.0.1"))


@pytest.mark.parametrize("gateway", [None, "", "0.0.0.0", "203.0.113.1", "x"])
def test_anchor_without_its_own_gateway_has_no_default_route(gateway: str | None) -> None:
    whole = document("digitalocean", "one")
    whole["interfaces"]["public"][0]["anchor_ipv4"]["gateway"] = gateway
    assert read("digitalocean", whole).interfaces[0].anchor is None


def test_wrong_anchor_gateway_costs_no_address() -> None:
    whole = document("digitalocean", "one")
    whole["interfaces"]["public"][0]["anchor_ipv4"]["gateway"] = "x"
    found = read("digitalocean", whole)
    assert [str(address) for address in found.interfaces[0].addresses] == ["45.55.249.133/18", "10.17.0.5/16"]
    assert len(found.problems) == 1


def test_vpc_without_a_gateway_has_none() -> None:
    whole = document("digitalocean", "many")
    whole["interfaces"]["private"][0]["ipv4"]["gateway"] = "0.0.0.0"
    found = read("digitalocean", whole)
    assert (found.interfaces[1].gateways, found.complete) == ((), True)


def test_document_may_stand_in_a_list() -> None:
    listed = document("digitalocean", "ipv6")
    assert isinstance(listed, list)
    assert read("digitalocean", listed).interfaces == read("digitalocean", listed[0]).interfaces


def test_ipv6_length_that_is_too_short_keeps_the_address() -> None:
    whole = document("digitalocean", "many")
    whole["interfaces"]["public"][0]["ipv6"]["cidr"] = 24
    found = read("digitalocean", whole)
    assert "2604:a880:800:0:1000::1/128" in map(str, found.interfaces[0].addresses)
    assert ip_address("2604:a880:800::1") in found.interfaces[0].gateways
    assert "/24" in found.problems[0].text


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("ipv4", "ip_address", "45.55.249.333", "public[0].ipv4.ip_address: '45.55.249.333' is not an IP"),
        ("ipv4", "netmask", "255.255.0.255", "public[0].ipv4.netmask: '255.255.0.255' is not a mask"),
        ("ipv4", "gateway", "1.1.1", "public[0].ipv4.gateway: '1.1.1' is not an IP"),
        ("anchor_ipv4", "ip_address", "2604::1", "public[0].anchor_ipv4.ip_address: '2604::1' is not an IPv4"),
        ("ipv6", "cidr", 129, "public[0].ipv6.cidr: 129 is not 0..128"),
        ("ipv6", "ip_address", "fe80::1", "public[0].ipv6.ip_address: 'fe80::1' is not a routable"),
    ],
)
def test_wrong_value_is_reported_by_its_path(place: str, key: str, value: object, message: str) -> None:
    whole = document("digitalocean", "many")
    whole["interfaces"]["public"][0][place][key] = value
    found = read("digitalocean", whole)
    assert any(message in problem.text for problem in found.problems)
    assert len(found.interfaces[0].addresses) >= 3, "the other parts are configured"


@pytest.mark.parametrize("served", [[], {}, {"interfaces": []}, {"interfaces": {}}, {"interfaces": {"public": []}}, 1])
def test_document_without_interfaces_is_an_error(served: object) -> None:
    with pytest.raises(MetadataError):
        read("digitalocean", served)
