"""network_data.json, from the service or the config drive → Instance."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError, Vlan
from cloud_network.fetcher.metadata.providers.openstack import Openstack, mounted

from tests.lab.metadata.in_process import InProcess
from tests.unit.fetcher.emulated import document, read


def parsed(name: str) -> Instance:
    return read("openstack", name)


def changed(what: str, change: dict[str, Any], name: str = "one") -> Instance:
    """Return the instance with these values in the first of `links` or `networks`."""
    whole = document("openstack", name)
    whole["network_data.json"][what][0] |= change
    return read("openstack", whole)


def test_port_is_read_whole() -> None:
    (one,) = parsed("one").interfaces
    assert ([str(address) for address in one.addresses], one.mtu) == (["10.192.35.66/22"], 1450)
    assert (one.subnets, one.gateways) == ((ip_network("10.192.32.0/22"),), (ip_address("10.192.35.254"),))
    assert one.document["networks"][0]["routes"][1]["network"] == "192.168.0.0"
    assert [len(each.addresses) for each in parsed("many").interfaces] == [15] * 4


def test_port_with_dhcp_has_no_address() -> None:
    first, second = parsed("dhcp").interfaces
    assert (first.addresses, first.mtu, second.addresses, first.dhcp) == ((), None, (), True)
    assert parsed("dhcp").complete
    (mixed,) = parsed("ipv6").interfaces
    assert [str(address) for address in mixed.addresses] == ["2604:1380:9:19::520c/64"]
    assert mixed.gateways == (ip_address("2604:1380:9:19::1"),)


def test_bonds_are_a_notice_and_their_members_left_alone() -> None:
    found = parsed("bonds")
    assert [each.mac for each in found.interfaces] == ["fa:16:3e:60:32:01"]
    assert [notice.partition(" is a ")[2] for notice in found.notices] == [
        "bond, which is not configured; its link is the operator's",
        "VLAN with the MAC of its parent, which is not configured",
    ]
    assert found.complete, "an unsupported link does not block others"


def test_vlan_with_a_mac_of_its_own_is_an_interface() -> None:
    whole = document("openstack", "bonds")
    (vlan,) = [link for link in whole["network_data.json"]["links"] if link["type"] == "vlan"]
    vlan["vlan_mac_address"] = "fa:16:3e:60:32:99"
    found = read("openstack", whole).interfaces[-1]
    assert found.mac == "fa:16:3e:60:32:99"
    assert isinstance(found.vlan, Vlan)
    assert found.vlan.tag == vlan["vlan_id"]


@pytest.mark.parametrize("kind", [None, "phy", "vif"])
def test_link_of_a_null_type_is_an_interface(kind: str | None) -> None:
    found = changed("links", {"type": kind})
    assert (len(found.interfaces), found.complete, found.notices) == (1, True, ())


def test_link_of_an_unknown_type_is_an_interface_with_a_notice() -> None:
    found = changed("links", {"type": "hologram"})
    assert (len(found.interfaces[0].addresses), found.problems) == (1, ())
    assert "links[0].type: 'hologram' is not a known type" in found.notices[0]
    assert found.unproven == {found.interfaces[0].mac}


def test_link_without_a_mac_stops_no_other() -> None:
    found = changed("links", {"ethernet_mac_address": None}, "many")
    assert len(found.interfaces) == 3
    assert [problem.mac for problem in found.problems] == [""]
    assert "links[0].ethernet_mac_address: missing" in found.problems[0].text
    assert not found.may_remove


def test_empty_netmask_leaves_the_address_alone() -> None:
    found = changed("networks", {"netmask": ""})
    assert [str(address) for address in found.interfaces[0].addresses] == ["10.192.35.66/32"]
    assert found.interfaces[0].gateways == (ip_address("10.192.35.254"),)
    assert (found.problems, found.unproven) == ((), {found.interfaces[0].mac})


def test_routes_by_other_gateways_are_read() -> None:
    found = parsed("one").interfaces[0]
    assert [(str(network), str(gateway)) for network, gateway in found.routes] == [
        ("192.168.0.0/16", "10.192.35.1"),
    ]


def test_unknown_network_type_is_a_notice() -> None:
    found = changed("networks", {"type": "carrier pigeon"})
    assert (found.problems, len(found.interfaces)) == ((), 1)
    assert found.unproven == {found.interfaces[0].mac}, "the addresses may be in the missing part"
    assert "networks[0].type: 'carrier pigeon'" in found.notices[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"netmask": "255.0.255.0"}, "networks[0].netmask: '255.0.255.0' is not a mask"),
        ({"ip_address": "2604::1"}, "networks[0].ip_address: '2604::1' is not an IPv4"),
        ({"ip_address": "10.192.35.66/33"}, "networks[0].ip_address: '33' is not 0..32"),
        ({"ip_address": None}, "networks[0].ip_address: missing"),
        ({"link": "nowhere"}, "networks[0].link: 'nowhere' is not a link"),
        ({"routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "x"}]}, "routes[0].gateway: 'x' is not"),
        ({"routes": [{"network": "x", "netmask": "255.0.0.0", "gateway": "10.192.35.254"}]}, "routes[0].network: 'x'"),
    ],
)
def test_wrong_value_is_reported_by_its_path(change: dict[str, Any], message: str) -> None:
    (problem,) = changed("networks", change, "many").problems
    assert message in problem.text


# — the config drive


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Mount a config drive on a path with a space, after other file systems."""
    place, boot, user = tmp_path / "the drive", tmp_path / "boot", Path("/media/user/stick")
    where = place / "openstack" / "latest"
    where.mkdir(parents=True)
    boot.mkdir()
    for name, content in document("openstack", "one").items():
        (where / name).write_text(json.dumps(content))
    mounts = [("proc", Path("/proc"), "proc"), ("/dev/sda1", boot, "vfat"), ("/dev/sdb1", user, "vfat")]
    lines = [f"{device} {at} {kind} rw 0 0" for device, at, kind in mounts]
    escaped = str(place).replace(" ", "\\040")
    (tmp_path / "mounts").write_text("\n".join([*lines, f"/dev/sr0 {escaped} iso9660 ro 0 0", ""]))
    return tmp_path


def on(drive: Path, client: Client) -> Openstack:
    return Openstack(client, drive / "mounts")


@pytest.fixture
def unreachable() -> Client:
    return Client("127.0.0.1:9")


def test_drive_is_read_without_a_service_and_is_no_proof(drive: Path, unreachable: Client) -> None:
    provider = on(drive, unreachable)
    found = provider.fetch()
    assert found.interfaces == parsed("one").interfaces
    assert (found.complete, found.problems) == (False, ())
    assert found.system["public-keys"]
    assert provider.is_reachable()


def test_drive_is_not_asked_once_the_service_has_answered(drive: Path) -> None:
    cloud = InProcess("openstack")
    cloud.record(document("openstack", "many"))
    client = Client(cloud.endpoint)
    provider = on(drive, client)
    assert len(provider.fetch().interfaces) == 4
    assert provider.fetch().complete
    cloud.fail("status")
    for each in (provider, provider.clone()):
        with pytest.raises(MetadataError, match="HTTP 500"):
            each.fetch()
    assert not provider.is_reachable()
    client.close()
    cloud.close()


def test_neither_service_nor_drive_is_an_error(tmp_path: Path, unreachable: Client) -> None:
    with pytest.raises(MetadataError, match=r"no config drive .* is mounted"):
        Openstack(unreachable, tmp_path / "mounts").fetch()


def test_drive_without_facts_has_the_network(drive: Path, unreachable: Client) -> None:
    (drive / "the drive/openstack/latest/meta_data.json").write_text("")
    assert on(drive, unreachable).fetch().interfaces


def test_broken_drive_is_an_error(drive: Path, unreachable: Client) -> None:
    (drive / "the drive/openstack/latest/network_data.json").write_bytes(b"\xff")
    with pytest.raises(MetadataError, match=r"network_data\.json"):
        on(drive, unreachable).fetch()


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "fuse.iso"])
def test_other_file_system_is_no_config_drive(drive: Path, kind: str) -> None:
    """Users can mount such a file system."""
    assert mounted(drive / "mounts") == drive / "the drive"
    mounts = (drive / "mounts").read_text()
    (drive / "mounts").write_text(mounts.replace("iso9660", kind))
    assert mounted(drive / "mounts") is None
    (drive / "mounts").write_text(mounts.replace(str(drive), "/media/user"))
    assert mounted(drive / "mounts") is None
