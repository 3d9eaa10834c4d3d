"""The metadata servers of Hetzner, Vultr, Scaleway, IBM and Tencent behave like the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.curl import ask


@pytest.fixture
def hetzner() -> Iterator[Lab]:
    public = Interface("192.0.2.0/24", 1, ipv6=1, gateway="172.31.1.1", subnet6="2001:db8:0:1::/64")
    private = Interface("10.0.2.0/24", 3), Interface("10.3.1.0/24", 1, gateway="10.3.0.1")
    with Lab(Spec((public, *private), provider="hetzner")) as made:
        yield made


def test_hetzner_serves_yaml_and_private_networks(hetzner: Lab) -> None:
    _, second, third = hetzner.nics
    metadata = "/hetzner/v1/metadata"
    lines = ask(hetzner, metadata).body.split("\n")
    assert {"hostname: lab", "local-ipv4: ''", "public-ipv4: 192.0.2.10", "  version: 1"} <= set(lines)
    at = lines.index(f"  - mac_address: {hetzner.nics[0].mac}")
    assert lines[at + 2 : at + 8] == [
        "    subnets:",
        "    - ipv4: true",
        "      type: dhcp",
        "    - address: 2001:db8:0:1::a/64",
        "      gateway: fe80::1",
        "      ipv6: true",
    ]
    private = ask(hetzner, f"{metadata}/private-networks").body.split("\n")
    assert private[:4] == [
        "- ip: 10.0.2.10",
        "  alias_ips: [10.0.2.11, 10.0.2.12]",
        "  interface_num: 1",
        f"  mac_address: {second.mac}",
    ]
    assert private[6:10] == [
        "  network: 10.0.2.0/24",
        "  subnet: 10.0.2.0/24",
        "  gateway: 10.0.2.1",
        "- ip: 10.3.1.10",
    ]
    assert {"  network: 10.3.0.0/16", "  gateway: 10.3.0.1", f"  mac_address: {third.mac}"} <= set(private)
    assert ask(hetzner, f"{metadata}/instance-id").body == "4286291"
    assert ask(hetzner, f"{metadata}/public-keys").body.startswith("- ssh-ed25519 ")
    assert ask(hetzner, f"{metadata}/nothing").status == 404
    assert ask(hetzner, "/hetzner/v1/userdata").status == 404


def test_hetzners_gateway_is_outside_the_subnet(hetzner: Lab) -> None:
    assert "172.31.1.1 dev eth0 proto dhcp scope link" in hetzner.run(["ip", "route"]).stdout
    assert all(hetzner.reachability(["192.0.2.10"]).values())
    third = hetzner.nics[2]
    hetzner.batch(
        [
            f"link set {third.name} up",
            f"address add 10.3.1.10/32 dev {third.name}",
            f"route add 10.3.0.1 dev {third.name}",
            f"route add 10.3.0.0/16 via 10.3.0.1 dev {third.name}",
        ]
    )
    assert hetzner.reachability(["10.3.1.10"])["neighbour2", "10.3.1.10"]


def test_vultr_serves_public_and_private_interfaces() -> None:
    with Lab(Spec.cloud("vultr", interfaces=2, addresses=3, ipv6=1)) as lab:
        first, second = lab.nics
        public, private = ask(lab, "/v1.json").json["interfaces"]
        assert public["ipv4"] == {
            "additional": [
                {"address": f"192.0.2.{n}", "gateway": "192.0.2.1", "netmask": "255.255.255.0"} for n in (11, 12)
            ],
            "address": "192.0.2.10",
            "gateway": "192.0.2.1",
            "netmask": "255.255.255.0",
        }
        assert (public["ipv6"]["address"], public["ipv6"]["prefix"]) == (first.ipv6[0], "64")
        assert (public["network-type"], public["mac"]) == ("public", first.mac)
        assert (private["network-type"], private["mac"]) == ("private", second.mac)
        assert (private["ipv4"]["gateway"], private["ipv6"]["address"]) == ("", "")
        assert ask(lab, "/v1/interfaces/1/ipv4/address").body == "10.0.2.10"
        assert ask(lab, "/v1/interfaces/0/").body.split() == ["ipv4/", "ipv6/", "mac", "network-type"]
        assert ask(lab, "/v1/nothing").status == 404


def test_scaleway_serves_public_ips_and_private_nics() -> None:
    with Lab(Spec.cloud("scaleway", interfaces=3, addresses=2, ipv6=1)) as lab:
        first, *private = lab.nics
        conf = ask(lab, "/conf?format=json").json
        four = [(a["address"], a["netmask"], a["gateway"], a["provisioning_mode"]) for a in conf["public_ips_v4"]]
        assert four == [(address, "32", "62.210.0.1", "dhcp") for address in ("192.0.2.10", "192.0.2.11")]
        assert conf["public_ip"] == conf["public_ips_v4"][0]
        assert [address["address"] for address in conf["public_ips_v6"]] == list(first.ipv6)
        assert [nic["mac_address"] for nic in conf["private_nics"]] == [nic.mac for nic in private]
        assert ask(lab, "/conf?format=json", address="fd00:42::42").json == conf
        assert "PUBLIC_IP=192.0.2.10" in ask(lab, "/conf").body.split("\n")
        assert ask(lab, "/user_data/cloud-init").status == 404


@pytest.fixture
def ibm() -> Iterator[Lab]:
    with Lab(Spec.cloud("ibm", interfaces=2, addresses=3, public=1)) as made:
        yield made


TOKEN = "/instance_identity/v1/token?version=2025-04-22"


def test_ibm_tokens_are_required_and_expire(ibm: Lab) -> None:
    put = partial(ask, ibm, TOKEN, method="PUT")
    assert put("Metadata-Flavor: ibm").json["expires_in"] == 300
    assert put("Metadata-Flavor: ibm", data='{"expires_in": 3600}').json["expires_in"] == 3600
    assert [put("Metadata-Flavor: ibm", data=f'{{"expires_in": {n}}}').status for n in (4, 3601)] == [400, 400]
    assert put().status == 400
    instance = "/metadata/v1/instance?version=2025-04-22"
    bearer = f"Authorization: Bearer {put('Metadata-Flavor: ibm').json['access_token']}"
    assert [ask(ibm, instance, *headers).status for headers in ((), (bearer,))] == [401, 200]
    assert ask(ibm, "/metadata/v1/instance", bearer).status == 400
    ibm.metadata.expire_tokens()
    assert ask(ibm, instance, bearer).status == 401


def test_ibm_serves_attachments_and_virtual_interfaces(ibm: Lab) -> None:
    token = ask(ibm, TOKEN, "Metadata-Flavor: ibm", method="PUT").json["access_token"]

    def get(path: str) -> Any:
        return ask(ibm, f"/metadata/v1/{path}?version=2025-04-22", f"Authorization: Bearer {token}").json

    one, other = get("instance/network_interfaces")["network_interfaces"]
    assert [one["primary_ip"]["address"], other["primary_ip"]["address"]] == ["10.0.1.10", "10.0.2.10"]
    assert "mac_address" not in one
    virtual = get("virtual_network_interfaces")["virtual_network_interfaces"]
    assert [each["mac_address"] for each in virtual] == [nic.mac for nic in ibm.nics]
    addresses = [[ip["address"] for ip in each["ips"]] for each in virtual]
    assert addresses == [list(nic.addresses) for nic in ibm.nics]
    assert get("instance")["primary_network_interface"] == one
    assert get(f"virtual_network_interfaces/{virtual[0]['id']}") == virtual[0]


def test_tencent_serves_interfaces_by_mac() -> None:
    with Lab(Spec.cloud("tencent", interfaces=2, addresses=2, public=1)) as lab:
        macs = "/latest/meta-data/network/interfaces/macs"
        first, second = lab.nics
        assert set(ask(lab, f"{macs}/").body.split()) == {f"{first.mac}/", f"{second.mac}/"}
        assert ask(lab, f"{macs}/{first.mac}/local-ipv4s/").body.split() == ["10.0.1.10/", "10.0.1.11/"]
        expected = {
            f"{first.mac}/primary-local-ipv4": "10.0.1.10",
            f"{first.mac}/local-ipv4s/10.0.1.11/gateway": "10.0.1.1",
            f"{first.mac}/local-ipv4s/10.0.1.11/subnet-mask": "255.255.255.0",
            f"{first.mac}/local-ipv4s/10.0.1.10/public-ipv4": "203.0.113.1",
            f"{second.mac}/mac": second.mac,
        }
        assert {path: ask(lab, f"{macs}/{path}").body for path in expected} == expected
        assert ask(lab, f"{macs}/{first.mac}/local-ipv4s/10.0.1.11/public-ipv4").status == 404
        assert ask(lab, "/latest/user-data").status == 404
