"""The metadata server behaves like DigitalOcean's, and so does the network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.lab.curl import ask

V1 = "/metadata/v1"


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    with Lab(Spec.cloud("digitalocean", ipv6=5)) as made:
        yield made


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.metadata.configure(reserved=None, vpc_gateway=True)


def test_public_and_private_interfaces(lab: Lab) -> None:
    first, second = lab.nics
    interfaces = ask(lab, f"{V1}.json").json["interfaces"]
    assert interfaces["public"] == [
        {
            "ipv4": {"ip_address": "192.0.2.10", "netmask": "255.255.255.0", "gateway": "192.0.2.1"},
            "ipv6": {"ip_address": "2001:db8:0:1::a", "cidr": 64, "gateway": "2001:db8:0:1::1"},
            "anchor_ipv4": {"ip_address": "10.17.0.5", "netmask": "255.255.0.0", "gateway": "10.17.0.1"},
            "mac": first.mac,
            "type": "public",
        }
    ]
    [private] = interfaces["private"]
    assert (private["mac"], private["ipv4"]["ip_address"]) == (second.mac, "10.0.2.10")
    assert private["ipv4"]["gateway"] == "10.0.2.1"
    lab.metadata.configure(vpc_gateway=False)
    assert ask(lab, f"{V1}.json").json["interfaces"]["private"][0]["ipv4"]["gateway"] == "0.0.0.0"


def test_the_tree_has_the_same_values(lab: Lab) -> None:
    lab.metadata.configure(reserved="203.0.113.9")
    assert ask(lab, f"{V1}/interfaces/public/0/anchor_ipv4/address").body == "10.17.0.5"
    assert ask(lab, f"{V1}/reserved_ip/ipv4/active").body == "true"
    assert ask(lab, f"{V1}/reserved_ip/ipv4/address").body == "203.0.113.9"
    assert ask(lab, f"{V1}/interfaces/").body.split() == ["private/", "public/"]
    assert ask(lab, f"{V1}/interfaces").status == 301
    assert ask(lab, f"{V1}/nothing").status == 404


def test_anchor_and_cloud_init_addresses_are_reachable(lab: Lab) -> None:
    answers = lab.reachability(["192.0.2.10", "10.17.0.5", "2001:db8:0:1::a"])
    assert {source for source, _ in answers} == {"beyond0", "neighbour0", "neighbour1"}
    assert all(answers[pair] for pair in answers if pair[0] != "neighbour1")
    assert lab.run(["ip", "route", "show", "default", "proto", "static"]).stdout.count("default") == 2


def test_a_droplet_has_two_interfaces_with_an_address_each() -> None:
    assert [interface.addresses for interface in Spec.cloud("digitalocean").interfaces] == [1, 1]
