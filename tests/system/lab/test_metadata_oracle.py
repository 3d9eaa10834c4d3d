"""The metadata server behaves like Oracle's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.curl import Answer, ask


def get(lab: Lab, path: str, *more: str) -> Answer:
    return ask(lab, f"/opc/v2/{path}", "Authorization: Bearer Oracle", *more)


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    interfaces = (Interface("10.0.1.0/24", 1, ipv6=2), Interface("10.0.2.0/24", 1))
    with Lab(Spec(interfaces, provider="oracle")) as made:
        yield made


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.metadata.configure(v1=True, bare_metal=False, user_data=None)


def test_vnics_have_their_address_and_subnet(lab: Lab) -> None:
    first, second = lab.nics
    one, other = get(lab, "vnics/").json
    assert one.pop("vnicId").startswith("ocid1.vnic.oc1.eu-frankfurt-1.")
    assert one == {
        "privateIp": "10.0.1.10",
        "vlanTag": 1039,
        "macAddr": first.mac.upper(),
        "virtualRouterIp": "10.0.1.1",
        "subnetCidrBlock": "10.0.1.0/24",
        "ipv6Addresses": list(first.ipv6),
        "ipv6SubnetCidrBlock": first.subnet6,
        "ipv6VirtualRouterIp": lab.convention.router6,
    }
    assert other["macAddr"] == second.mac.upper()
    assert not [key for key in other if key.startswith("ipv6") or key == "nicIndex"]
    assert get(lab, "vnics/0/privateIp").body == "10.0.1.10"
    assert get(lab, "vnics/2/").status == 404


def test_secondary_vnics_of_bare_metal_have_a_vlan_tag(lab: Lab) -> None:
    lab.metadata.configure(bare_metal=True)
    assert [(vnic["nicIndex"], vnic["vlanTag"]) for vnic in get(lab, "vnics/").json] == [(0, 0), (0, 1)]


def test_instance_has_keys_region_and_user_data(lab: Lab) -> None:
    lab.metadata.configure(user_data="#!/bin/sh")
    instance = get(lab, "instance/").json
    assert instance["metadata"]["ssh_authorized_keys"].startswith("ssh-ed25519 ")
    assert get(lab, "instance/canonicalRegionName").body == instance["canonicalRegionName"] == "eu-frankfurt-1"
    assert get(lab, "instance/metadata/user_data").body == "IyEvYmluL3No"


def test_version_2_needs_its_header_and_version_1_can_be_off(lab: Lab) -> None:
    assert ask(lab, "/opc/v2/vnics/").status == 401
    assert get(lab, "vnics/", "X-Forwarded-For: 10.0.0.1").status == 403
    assert ask(lab, "/opc/v1/vnics/").json == get(lab, "vnics/").json
    lab.metadata.configure(v1=False)
    assert ask(lab, "/opc/v1/vnics/").status == 404


def test_metadata_names_one_private_address_per_vnic() -> None:
    spec = Spec.cloud("oracle", interfaces=4, addresses=15, ipv6=15)
    assert [(interface.addresses, interface.ipv6) for interface in spec.interfaces] == [(1, 15)] * 4
