"""Vultr's document → Instance."""

from __future__ import annotations

from copy import deepcopy
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers.document import Node
from cloud_network.fetcher.metadata.providers.vultr import instance

from tests.unit.fetcher.clouds import payload


def test_an_instance_is_read_whole() -> None:
    public, private, *_ = instance(Node(payload("vultr", "many"))).interfaces
    assert len(public.addresses) == 16
    assert [str(public.addresses[at]) for at in (0, 1, 15)] == [
        "108.61.89.242/24",
        "108.61.90.10/24",
        "2001:19f0:5:56c2:5400:3ff:fe15:c465/64",
    ]
    assert public.gateways == (ip_address("108.61.89.1"),)
    assert ([str(each) for each in private.addresses], private.gateways) == (["10.1.112.3/20"], ())


def test_an_additional_ipv6_network_is_a_range_and_an_unconfigured_interface_bare() -> None:
    public, left = instance(Node(payload("vultr", "ipv6"))).interfaces
    assert public.ranges == (ip_network("2002:19f0:5:28a7::/64"),)
    assert (left.addresses, left.subnets) == ((), ())


@pytest.mark.parametrize(
    ("family", "key", "value", "said"),
    [
        ("ipv4", "netmask", "", "interfaces[0].ipv4.netmask"),
        ("ipv4", "address", "2001::1", "interfaces[0].ipv4.address: '2001::1' is not an IPv4"),
        (
            "ipv4",
            "additional",
            [{"netmask": "x", "address": "1.2.3.4"}],
            "interfaces[0].ipv4.additional[0].netmask: 'x'",
        ),
        ("ipv6", "prefix", "640", "interfaces[0].ipv6.prefix: '640' is not 0..128"),
        (
            "ipv6",
            "additional",
            [{"network": "2002::1", "prefix": "64"}],
            "ipv6.additional[0].network: '2002::1/64' is not",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_path(family: str, key: str, value: object, said: str) -> None:
    document = deepcopy(payload("vultr", "one"))
    document["interfaces"][0][family][key] = value
    (problem,) = instance(Node(document)).problems
    assert said in problem.text


def test_a_document_without_interfaces_is_refused() -> None:
    with pytest.raises(MetadataError, match="names no interface"):
        instance(Node({"interfaces": []}))


def test_it_is_known_by_its_vendor() -> None:
    assert firmware.vultr({"sys_vendor": "Vultr"})
    assert not firmware.vultr({})
