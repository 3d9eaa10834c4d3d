"""DigitalOcean's document → Instance."""

from __future__ import annotations

from copy import deepcopy
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers import digitalocean
from cloud_network.fetcher.metadata.providers.document import Node

from tests.unit.fetcher.clouds import payload


def test_a_droplet_is_read_whole() -> None:
    found = digitalocean.instance(Node(payload("digitalocean", "many"))).interfaces
    public, private = found[0], found[1]
    assert [str(address) for address in public.addresses] == [
        "45.55.249.133/18",
        "10.17.0.5/16",
        "2604:a880:800:0:1000::1/64",
    ]
    assert public.subnets[:2] == (ip_network("45.55.192.0/18"), ip_network("10.17.0.0/16"))
    assert public.gateways == (ip_address("45.55.192.1"), ip_address("2604:a880:800::1"))  # not the anchor's
    assert public.public == (ip_address("138.197.59.92"), ip_address("2604:a880:1:2::1"))
    assert ([str(address) for address in private.addresses], private.public) == (["10.132.6.205/16"], ())
    assert [each.device_number for each in found] == [0, 1, 2, 3, 4]


def test_the_document_may_stand_in_a_list_as_the_page_shows_it() -> None:
    listed = payload("digitalocean", "ipv6")
    assert isinstance(listed, list)
    assert digitalocean.instance(Node(listed)) == digitalocean.instance(Node(listed[0]))


@pytest.mark.parametrize(
    ("place", "key", "value", "said"),
    [
        ("ipv4", "ip_address", "45.55.249.333", "interfaces.public[0].ipv4.ip_address: '45.55.249.333' is not an IP"),
        ("ipv4", "netmask", "255.255.0.255", "interfaces.public[0].ipv4.netmask: '255.255.0.255' is not a mask"),
        ("ipv4", "gateway", "1.1.1.1", "interfaces.public[0].ipv4.gateway: '1.1.1.1' is not inside"),
        (
            "anchor_ipv4",
            "ip_address",
            "2604::1",
            "interfaces.public[0].anchor_ipv4.ip_address: '2604::1' is not an IPv4",
        ),
        ("ipv6", "cidr", 129, "interfaces.public[0].ipv6.cidr: 129 is not 0..128"),
        ("ipv6", "ip_address", "fe80::1", "interfaces.public[0].ipv6.ip_address: 'fe80::1' is not a cloud's"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(place: str, key: str, value: object, said: str) -> None:
    document = deepcopy(payload("digitalocean", "many"))
    document["interfaces"]["public"][0][place][key] = value
    (problem,) = digitalocean.instance(Node(document)).problems
    assert said in problem.text


@pytest.mark.parametrize(
    "document", [[], {}, {"interfaces": []}, {"interfaces": {}}, {"interfaces": {"public": []}}, 1]
)
def test_a_document_without_interfaces_is_refused(document: object) -> None:
    with pytest.raises(MetadataError):
        digitalocean.instance(Node(document))


def test_it_is_known_by_its_vendor() -> None:
    assert firmware.digitalocean({"sys_vendor": "DigitalOcean"})
    assert not firmware.digitalocean({"product_name": "DigitalOcean"})
