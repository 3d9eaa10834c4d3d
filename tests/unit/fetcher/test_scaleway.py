"""Scaleway's document → Instance."""

from __future__ import annotations

from copy import deepcopy
from ipaddress import ip_address

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.providers.document import Node
from cloud_network.fetcher.metadata.providers.scaleway import ENDPOINT, instance

from tests.unit.fetcher.clouds import payload


def test_an_instance_is_read_whole() -> None:
    public, *private = instance(Node(payload("scaleway", "many"))).interfaces
    assert [str(address) for address in public.addresses] == [
        *(f"51.158.10.{100 + at}/32" for at in range(5)),
        "2001:bc8:1640:1::1/64",
    ]
    assert public.gateways == (ip_address("62.210.0.1"), ip_address("fe80::dc00:ff:fe00:1"))  # not of its subnet
    assert [(each.mac, each.addresses, each.device_number) for each in private] == [
        (f"02:00:00:00:01:0{at}", (), at) for at in (1, 2, 3)
    ]


def test_an_address_that_is_translated_is_shown_and_not_the_interfaces() -> None:
    (found,) = instance(Node(payload("scaleway", "nat"))).interfaces
    assert [str(address) for address in found.addresses] == ["10.64.1.5/32"]
    assert found.public == (ip_address("51.158.10.100"),)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("netmask", "33", "public_ips_v4[0].netmask: '33' is not 0..32"),
        ("address", "fe80::1", "public_ips_v4[0].address: 'fe80::1' is not an IPv4"),
        ("gateway", "x", "public_ips_v4[0].gateway: 'x' is not an IP address"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(key: str, value: object, said: str) -> None:
    document = deepcopy(payload("scaleway", "one"))
    document["public_ips_v4"][0][key] = value
    (problem,) = instance(Node(document)).problems
    assert said in problem.text


def test_it_is_known_by_its_vendor_and_has_an_address_of_its_own() -> None:
    assert firmware.scaleway({"sys_vendor": "Scaleway"})
    assert not firmware.scaleway({"sys_vendor": "QEMU"})
    assert ENDPOINT == "169.254.42.42"
