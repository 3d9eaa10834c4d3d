"""Scaleway's document -> Instance."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.unit.fetcher.emulated import document, read


def test_instance_is_read_whole() -> None:
    public, *private = read("scaleway", "many").interfaces
    assert [str(address) for address in public.addresses] == [
        *(f"51.158.10.{100 + number}/32" for number in range(5)),
        "2001:bc8:1640:1::1/64",
    ]
    assert public.gateways == (ip_address("62.210.0.1"), ip_address("fe80::dc00:ff:fe00:1"))  # outside its subnet
    assert [(each.mac, each.addresses, each.device_number) for each in private] == [
        (f"02:00:00:00:01:0{number}", (), number) for number in (1, 2, 3)
    ]
    assert all(each.dhcp for each in private)


def test_translated_address_is_shown_only() -> None:
    (found,) = read("scaleway", "nat").interfaces
    assert [str(address) for address in found.addresses] == ["10.64.1.5/32"]
    assert found.public == (ip_address("51.158.10.100"),)


def test_public_ips_of_both_families_in_one_list_are_read() -> None:
    whole = document("scaleway", "many")
    expected = read("scaleway", whole).interfaces
    whole["public_ips"] = whole.pop("public_ips_v4") + whole.pop("public_ips_v6")
    assert read("scaleway", whole).interfaces == expected


def test_legacy_ipv6_is_read() -> None:
    found = read("scaleway", "legacy")
    assert [str(address) for address in found.interfaces[0].addresses] == [
        "10.64.1.5/32",
        "2001:bc8:4444:9876::42/127",
    ]
    assert found.interfaces[0].gateways == (ip_address("2001:bc8:4444:9876::43"),)
    assert found.complete


def test_ssh_keys_in_tags_are_shown() -> None:
    assert read("scaleway", "legacy").system["public-keys"] == [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILabLabLabLabLabLabLabLabLabLabLabLabLab lab@example",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQTag",
    ]


def test_document_without_public_mac_is_a_notice() -> None:
    found = read("scaleway", {"id": "x", "private_nics": []})
    assert (found.interfaces, found.may_remove) == ((), False)
    assert "mac_address: missing" in found.notices[0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("netmask", "33", "public_ips_v4[0].netmask: '33' is not 0..32"),
        ("address", "fe80::1", "public_ips_v4[0].address: 'fe80::1' is not a routable"),
        ("gateway", "x", "public_ips_v4[0].gateway: 'x' is not an IP address"),
    ],
)
def test_wrong_value_is_reported_by_its_path(key: str, value: object, message: str) -> None:
    whole = document("scaleway", "one")
    whole["public_ips_v4"][0][key] = value
    (problem,) = read("scaleway", whole).problems
    assert message in problem.text
