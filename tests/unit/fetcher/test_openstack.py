"""network_data.json, from the service or the config drive → Instance."""

from __future__ import annotations

import json
from copy import deepcopy
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers.document import Node
from cloud_network.fetcher.metadata.providers.openstack import Openstack, instance, mounted

from tests.unit.fetcher.clouds import CLOUDS, payload
from tests.unit.fetcher.site import Site


def made(name: str) -> Instance:
    return instance(Node(payload("openstack", name)["network"]))


def test_a_port_is_read_whole() -> None:
    (one,) = made("one").interfaces
    assert ([str(address) for address in one.addresses], one.mtu) == (["10.192.35.66/22"], 1450)
    assert (one.subnets, one.gateways) == ((ip_network("10.192.32.0/22"),), (ip_address("10.192.35.254"),))
    assert one.document["networks"][0]["routes"][1]["network"] == "192.168.0.0"
    assert [len(each.addresses) for each in made("many").interfaces] == [15] * 4


def test_what_dhcp_serves_has_no_address_here() -> None:
    first, second = made("dhcp").interfaces
    assert (first.addresses, first.mtu, second.addresses) == ((), None, ())
    assert made("dhcp").complete
    (mixed,) = made("ipv6").interfaces
    assert [str(address) for address in mixed.addresses] == ["2604:1380:9:19::520c/64"]
    assert mixed.gateways == (ip_address("2604:1380:9:19::1"),)


def test_bonds_and_vlans_are_named_as_such_and_their_members_left_alone() -> None:
    found = made("bonds")
    assert [each.mac for each in found.interfaces] == ["fa:16:3e:60:32:01"]
    assert [notice.partition(" is a ")[2] for notice in found.notices] == [
        "bond, which is not configured yet",
        "vlan, which is not configured yet",
    ]
    assert found.notices[0].startswith("links[0].type: ")
    assert found.complete, "what is not configured stops nothing"


def test_routes_by_other_gateways_are_read() -> None:
    found = made("one").interfaces[0]
    assert [(str(network), str(gateway)) for network, gateway in found.routes] == [
        ("192.168.0.0/16", "10.192.35.1"),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"netmask": "255.0.255.0"}, "networks[0].netmask: '255.0.255.0' is not a mask"),
        ({"ip_address": "2604::1"}, "networks[0].ip_address: '2604::1' is not an IPv4"),
        ({"ip_address": "10.192.35.66/33"}, "networks[0].ip_address: '33' is not 0..32"),
        ({"ip_address": None}, "networks[0].ip_address: missing"),
        ({"type": "carrier pigeon"}, "networks[0].type: 'carrier pigeon' is neither"),
        (
            {"routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "x"}]},
            "routes[0].gateway: 'x' is not an",
        ),
        (
            {"routes": [{"network": "10.0.0.1", "netmask": "255.0.0.0", "gateway": "10.192.35.254"}]},
            "routes[0].network: '10.0.0.1/8' is not a network",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], said: str) -> None:
    document = deepcopy(payload("openstack", "one")["network"])
    document["networks"][0] |= change
    (problem,) = instance(Node(document)).problems
    assert said in problem.text


def test_a_network_of_no_link_is_refused() -> None:
    document = deepcopy(payload("openstack", "one")["network"])
    document["networks"][0]["link"] = "nobody"
    with pytest.raises(MetadataError, match=r"networks\[0\]\.link: 'nobody' is no link"):
        instance(Node(document))


# — the config drive


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """One that is mounted in a place with a space in its name, behind others that are no config drive."""
    place, boot, user = tmp_path / "the drive", tmp_path / "boot", Path("/media/user/stick")
    where = place / "openstack" / "latest"
    where.mkdir(parents=True)
    boot.mkdir()
    whole = payload("openstack", "one")
    (where / "network_data.json").write_text(json.dumps(whole["network"]))
    (where / "meta_data.json").write_text(json.dumps(whole["meta"]))
    mounts = [("proc", Path("/proc"), "proc"), ("/dev/sda1", boot, "vfat"), ("/dev/sdb1", user, "vfat")]
    lines = [f"{device} {at} {kind} rw 0 0" for device, at, kind in mounts]
    escaped = str(place).replace(" ", "\\040")
    (tmp_path / "mounts").write_text("\n".join([*lines, f"/dev/sr0 {escaped} iso9660 ro 0 0", ""]))
    return tmp_path


def on(drive: Path, client: Client) -> Openstack:
    return Openstack(client, drive / "mounts")


@pytest.fixture
def nobody() -> Client:
    site = Site()
    site.close()
    return Client(site.endpoint)


def test_the_drive_is_read_where_there_is_no_service_and_proves_nothing_gone(drive: Path, nobody: Client) -> None:
    provider = on(drive, nobody)
    found = provider.fetch()
    assert found.interfaces == CLOUDS["openstack"].made(payload("openstack", "one")).interfaces
    assert (found.complete, found.problems) == (False, ())
    assert found.system["public-keys"]
    assert provider.answers()


def test_the_service_goes_first_and_once_it_has_answered_the_drive_is_not_asked(drive: Path) -> None:
    site = Site()
    CLOUDS["openstack"].serve(site, payload("openstack", "many"))
    client = Client(site.endpoint)
    provider = on(drive, client)
    assert len(provider.fetch().interfaces) == 4
    assert provider.fetch().complete
    site.statuses = dict.fromkeys(site.texts, 500)
    with pytest.raises(MetadataError, match="HTTP 500"):
        provider.fetch()
    assert not provider.answers()
    site.close()
    client.close()


def test_neither_is_an_error_that_says_so(tmp_path: Path, nobody: Client) -> None:
    with pytest.raises(MetadataError, match=r"no config drive .* is mounted"):
        Openstack(nobody, tmp_path / "mounts").fetch()


def test_a_drive_without_facts_has_the_network(drive: Path, nobody: Client) -> None:
    (drive / "the drive/openstack/latest/meta_data.json").write_text("")
    assert on(drive, nobody).fetch().interfaces


def test_a_broken_drive_is_an_error(drive: Path, nobody: Client) -> None:
    (drive / "the drive/openstack/latest/network_data.json").write_bytes(b"\xff")
    with pytest.raises(MetadataError, match=r"network_data\.json"):
        on(drive, nobody).fetch()


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "fuse.iso"])
def test_another_file_system_with_the_same_files_is_none(drive: Path, kind: str) -> None:
    """Users may have such a one."""
    assert mounted(drive / "mounts") == drive / "the drive"
    mounts = (drive / "mounts").read_text()
    (drive / "mounts").write_text(mounts.replace("iso9660", kind))
    assert mounted(drive / "mounts") is None
    (drive / "mounts").write_text(mounts.replace(str(drive), "/media/user"))
    assert mounted(drive / "mounts") is None


@pytest.mark.parametrize(
    "dmi",
    [{"product_name": "OpenStack Nova"}, {"product_name": "OpenStack Compute"}, {"chassis_asset_tag": "HUAWEICLOUD"}],
)
def test_it_is_known_by_its_product_or_its_asset_tag(dmi: dict[str, str]) -> None:
    assert firmware.openstack(dmi)
    assert not firmware.openstack({"product_name": "KVM"})
