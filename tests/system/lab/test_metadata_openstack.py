"""The metadata server behaves like OpenStack's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Lab, Spec
from tests.lab.curl import ask

LATEST = "/openstack/latest"


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    with Lab(Spec.cloud("openstack", interfaces=2, addresses=2, ipv6=1)) as made:
        yield made


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.metadata.configure(dhcp=False, all_addresses=True, links="ovs", user_data=None)


def network_data(lab: Lab) -> Any:
    return ask(lab, f"{LATEST}/network_data.json").json


def test_networks_refer_to_links_and_have_routes(lab: Lab) -> None:
    document = network_data(lab)
    assert [link["ethernet_mac_address"] for link in document["links"]] == [nic.mac for nic in lab.nics]
    first = [network for network in document["networks"] if network["link"] == document["links"][0]["id"]]
    assert [(network["type"], network["ip_address"], network["netmask"]) for network in first] == [
        ("ipv4", "10.0.1.10", "255.255.255.0"),
        ("ipv4", "10.0.1.11", "255.255.255.0"),
        ("ipv6", "2001:db8:0:1::a", "ffff:ffff:ffff:ffff::"),
    ]
    assert first[0]["routes"] == [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.1.1"}]
    assert first[2]["routes"] == [{"network": "::", "netmask": "::", "gateway": "2001:db8:0:1::1"}]
    assert [network["id"] for network in document["networks"]] == [f"network{n}" for n in range(6)]
    assert {link["mtu"] for link in document["links"]} == {1450}


def test_novas_own_lists_are_shorter_and_dhcp_has_no_addresses(lab: Lab) -> None:
    lab.metadata.configure(all_addresses=False)
    assert [network["type"] for network in network_data(lab)["networks"]] == ["ipv4", "ipv6"] * 2
    lab.metadata.configure(dhcp=True)
    networks = network_data(lab)["networks"]
    assert [network["type"] for network in networks] == ["ipv4_dhcp", "ipv6_dhcp"] * 2
    assert "ip_address" not in networks[0]


def test_vlans_and_bonds_have_their_link_type(lab: Lab) -> None:
    lab.metadata.configure(links="vlan")
    first, last = network_data(lab)["links"]
    assert (last["type"], last["vlan_link"], last["vlan_mac_address"]) == ("vlan", first["id"], lab.nics[1].mac)
    lab.metadata.configure(links="bond")
    _, slave, bond = network_data(lab)["links"]
    assert (slave["type"], bond["type"], bond["bond_links"]) == ("phy", "bond", [slave["id"]])


def test_listing_has_versions_and_only_existing_files(lab: Lab) -> None:
    assert "2018-08-27" in ask(lab, "/openstack").body.split()
    files = ask(lab, f"{LATEST}/").body.split()
    assert {"meta_data.json", "network_data.json"} <= set(files)
    assert "user_data" not in files
    assert ask(lab, f"{LATEST}/user_data").status == 404
    lab.metadata.configure(user_data="#!/bin/sh")
    assert ask(lab, f"{LATEST}/user_data").body == "#!/bin/sh"
    assert ask(lab, f"{LATEST}/meta_data.json").json["uuid"].startswith("0c10d0e7-")


def test_cloud_init_has_configured_every_first_address(lab: Lab) -> None:
    present = lab.run(["ip", "-br", "address"]).stdout
    assert all(f" {nic.addresses[0]}/24" in present and f" {nic.addresses[1]}/" not in present for nic in lab.nics)
    assert "mtu 1450" in lab.run(["ip", "link", "show", lab.nics[1].name]).stdout
