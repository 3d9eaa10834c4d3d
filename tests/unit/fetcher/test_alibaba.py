"""Alibaba's tree -> Instance."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers.alibaba import Alibaba

from tests.lab.metadata.in_process import InProcess
from tests.unit.fetcher.emulated import document, read, settled

MAC = "00:16:3e:0f:00:01"
MACS = "/latest/meta-data/network/interfaces/macs/"
TOKEN = "/latest/api/token"
LEAVES = {
    "primary-ip-address": "192.168.1.11",
    "private-ipv4s": '["192.168.1.10","192.168.1.11"]',
    "vswitch-cidr-block": "192.168.1.0/24",
    "gateway": "192.168.1.253",
    "ipv4-prefixes": "192.168.1.64/28\n192.168.1.80/28",
    "ipv6s": "[2408:4005:325:1::a, 2408:4005:325:1::b]",
    "vswitch-ipv6-cidr-block": "2408:4005:325:1::/64",
    "ipv6-gateway": "2408:4005:325:1:ffff:ffff:ffff:fff7",
    "ipv6-prefixes": "2408:4005:325:1:8000::/80",
}


@pytest.fixture
def cloud() -> Iterator[InProcess]:
    found = InProcess("alibaba")
    found.record(document("alibaba", "many"))
    yield found
    found.close()


@pytest.fixture
def alibaba(cloud: InProcess) -> Iterator[Alibaba]:
    client = Client(cloud.endpoint)
    yield Alibaba(client)
    client.close()


def parsed(leaves: dict[str, str], primary: str = MAC.upper()) -> Instance:
    macs = {MAC: {"mac": MAC} | leaves}
    return read("alibaba", {"meta-data": {"mac": primary, "network": {"interfaces": {"macs": macs}}}})


def test_interface_is_read_whole_primary_address_first() -> None:
    (found,) = parsed(LEAVES).interfaces
    assert [str(address) for address in found.addresses] == [
        "192.168.1.11/24",
        "192.168.1.10/24",
        "2408:4005:325:1::a/64",
        "2408:4005:325:1::b/64",
    ]
    assert found.gateways == (ip_address("192.168.1.253"), ip_address("2408:4005:325:1:ffff:ffff:ffff:fff7"))
    assert [str(network) for network in found.ranges] == [
        "192.168.1.64/28",
        "192.168.1.80/28",
        "2408:4005:325:1:8000::/80",
    ]
    assert (found.mac, found.device_number) == (MAC, 0)


def test_netmask_serves_where_there_is_no_block() -> None:
    (found,) = parsed({"private-ipv4s": "192.168.1.10", "netmask": "255.255.255.0"}, "00:16:3e:0f:00:09").interfaces
    assert (found.subnets, found.device_number) == ((ip_network("192.168.1.0/24"),), None)


def test_interface_without_address_leaf_has_its_primary_address() -> None:
    leaves = {key: LEAVES[key] for key in ("primary-ip-address", "vswitch-cidr-block", "gateway")}
    found = parsed(leaves)
    assert [str(address) for address in found.interfaces[0].addresses] == ["192.168.1.11/24"]
    assert (found.problems, found.unproven) == ((), {MAC})  # the listing may have been cut off


def test_interface_without_any_address_is_no_proof() -> None:
    found = parsed({"vpc-id": "vpc-1", "vswitch-cidr-block": "192.168.1.0/24"})
    assert (found.problems, found.unproven) == ((), {MAC})


def test_ipv6_without_its_prefix_stands_alone() -> None:
    found = parsed({key: text for key, text in LEAVES.items() if key != "vswitch-ipv6-cidr-block"})
    assert "2408:4005:325:1::a/128" in map(str, found.interfaces[0].addresses)
    assert (found.problems, found.unproven) == ((), {MAC})


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("private-ipv4s", '["192.168.1.10", "192.168.1.1', "private-ipv4s: "),
        ("private-ipv4s", '"192.168.1.10"]', "is not a whole list"),
        ("private-ipv4s", '["192.168.2.10"]', "private-ipv4s: '192.168.2.10' is not inside 192.168.1.0/24"),
        ("private-ipv4s", "[2408::1]", "private-ipv4s: '2408::1' is not an IPv4 address"),
        ("ipv6s", "[192.168.1.10]", "ipv6s: '192.168.1.10' is not an IPv6 address"),
        ("vswitch-cidr-block", "192.168.1.1/240", "vswitch-cidr-block: '192.168.1.1/240' is not a prefix"),
        ("gateway", "192.168.1.10", "is both an address of the interface and its gateway"),
        ("ipv4-prefixes", "192.168.0.0/16", "ipv4-prefixes: '192.168.0.0/16' is not inside"),
    ],
)
def test_wrong_value_is_reported_by_its_path(key: str, text: str, message: str) -> None:
    (problem,) = parsed(LEAVES | {key: text}).problems
    assert message in problem.text
    assert f"macs/{MAC}/" in problem.text


def test_leaf_that_is_listed_must_be_there(cloud: InProcess, alibaba: Alibaba) -> None:
    before = alibaba.fetch()
    cloud.fail("status", f"{MACS}{MAC}/ipv6s", status=404)
    found = alibaba.fetch()
    assert (found.unproven, found.problems[0].mac) == ({MAC}, MAC)
    assert "ipv6s: HTTP 404" in found.problems[0].text
    assert all(address.version == 4 for address in found.interfaces[0].addresses)
    assert found.interfaces[0].addresses, "IPv4 is configured"
    assert set(found.with_known(before).interfaces[0].addresses) == set(before.interfaces[0].addresses)
    cloud.clear()
    cloud.content(f"{MACS}{MAC}/ipv6s", "\n")
    assert "ipv6s: is listed but empty" in alibaba.fetch().problems[0].text


def test_leaf_that_is_not_listed_is_not_there(cloud: InProcess, alibaba: Alibaba) -> None:
    whole = document("alibaba", "many")
    del whole["meta-data"]["network"]["interfaces"]["macs"][MAC]["ipv6s"]
    cloud.record(whole)
    assert alibaba.fetch().complete


def test_token_is_asked_for_once(cloud: InProcess, alibaba: Alibaba) -> None:
    alibaba.fetch()
    alibaba.fetch()
    assert [record.path for record in cloud.requests() if record.method == "PUT"] == [TOKEN]


def test_normal_mode_is_used_without_a_token_service(cloud: InProcess, alibaba: Alibaba) -> None:
    cloud.fail("status", TOKEN, status=405)
    assert alibaba.fetch().complete


@pytest.mark.parametrize("status", [403, 500])
def test_refused_token_is_an_error(cloud: InProcess, alibaba: Alibaba, status: int) -> None:
    cloud.fail("status", TOKEN, status=status)
    with pytest.raises(MetadataError, match=f"/latest/api/token: HTTP {status}"):
        alibaba.fetch()


def test_moved_address_needs_two_equal_reads(cloud: InProcess, alibaba: Alibaba) -> None:
    whole = document("alibaba", "many")
    macs = whole["meta-data"]["network"]["interfaces"]["macs"]
    macs["00:16:3e:0f:00:02"] = dict(macs[MAC])
    cloud.record(whole)
    with pytest.raises(MetadataError, match="more than one interface"):
        alibaba.fetch()
    assert len(alibaba.fetch().interfaces) == 4


def test_facts_wait_for_the_next_refresh(cloud: InProcess, alibaba: Alibaba) -> None:
    alibaba.fetch()
    assert len(cloud.requests()) <= 5 + 12 * 4
    assert alibaba.pending_facts
    found = settled(alibaba)
    assert found.system["instance/instance-type"] == "ecs.g6e.large"
    assert found.identity == {"document": b'{"instance-id": "i-1"}', "pkcs7": b"MIIC"}
    assert len(found.system["public-keys"]) == 2


def test_credentials_are_the_roles(cloud: InProcess, alibaba: Alibaba) -> None:
    assert alibaba.credentials() == {"ram/security-credentials/lab-role": '{"AccessKeySecret": "SECRET"}'}
    cloud.fail("status", "/latest/meta-data/ram/security-credentials/", status=404)
    assert alibaba.credentials() == {}
