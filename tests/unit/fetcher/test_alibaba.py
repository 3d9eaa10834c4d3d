"""Alibaba's tree → Instance."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers.alibaba import Alibaba, instance

from tests.unit.fetcher.clouds import CLOUDS, META, payload
from tests.unit.fetcher.site import Site

MAC = "00:16:3e:0f:00:01"
MACS = META + "network/interfaces/macs/"
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
def site() -> Iterator[Site]:
    found = Site()
    CLOUDS["alibaba"].serve(found, payload("alibaba", "many"))
    yield found
    found.close()


@pytest.fixture
def alibaba(site: Site) -> Iterator[Alibaba]:
    client = Client(site.endpoint)
    yield Alibaba(client)
    client.close()


def test_an_interface_is_read_whole_its_primary_address_first() -> None:
    (found,) = instance({MAC: LEAVES}, MAC.upper()).interfaces
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


def test_a_netmask_will_do_where_there_is_no_block() -> None:
    (found,) = instance({MAC: {"private-ipv4s": "192.168.1.10", "netmask": "255.255.255.0"}}).interfaces
    assert (found.subnets, found.device_number) == ((ip_network("192.168.1.0/24"),), None)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("private-ipv4s", '["192.168.1.10", "192.168.1.1', "private-ipv4s: "),
        ("private-ipv4s", '"192.168.1.10"]', "is not a whole list"),
        ("private-ipv4s", '["192.168.2.10"]', "private-ipv4s: '192.168.2.10' is not inside 192.168.1.0/24"),
        ("private-ipv4s", "[2408::1]", "private-ipv4s: '2408::1' is not an IPv4 address"),
        ("ipv6s", "[192.168.1.10]", "ipv6s: '192.168.1.10' is not an IPv6 address"),
        ("vswitch-cidr-block", "192.168.1.1/24", "vswitch-cidr-block: '192.168.1.1/24' is not a prefix"),
        ("gateway", "192.168.2.253", "gateway: '192.168.2.253' is not inside"),
        ("gateway", "192.168.1.10", "the gateway's"),
        ("ipv4-prefixes", "192.168.0.0/16", "ipv4-prefixes: '192.168.0.0/16' is not inside"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(key: str, text: str, said: str) -> None:
    (problem,) = instance({MAC: LEAVES | {key: text}}).problems
    assert said in problem.text
    assert f"macs/{MAC}/" in problem.text


def test_a_leaf_that_is_not_listed_is_not_there_and_one_that_is_must_be(site: Site, alibaba: Alibaba) -> None:
    before = alibaba.fetch()
    listing = site.texts[f"{MACS}{MAC}/"]
    site.texts[f"{MACS}{MAC}/"] = listing.replace("ipv6s\n", "")
    assert alibaba.fetch().complete
    site.texts[f"{MACS}{MAC}/"] = listing
    site.statuses[f"{MACS}{MAC}/ipv6s"] = 404
    found = alibaba.fetch()
    assert (found.complete, found.problems[0].mac) == (False, MAC)
    assert "ipv6s: HTTP 404" in found.problems[0].text
    assert found.with_what_was_known(before).interfaces[-1] == before.interfaces[0]
    site.statuses.clear()
    site.texts[f"{MACS}{MAC}/ipv6s"] = "\n"
    assert "ipv6s: is listed, and empty" in alibaba.fetch().problems[0].text


def test_the_token_is_asked_for_once_and_shown_every_time(site: Site, alibaba: Alibaba) -> None:
    alibaba.fetch()
    alibaba.fetch()
    assert [path for path in site.asked if path.startswith("PUT")] == ["PUT /latest/api/token"]


def test_without_a_token_service_the_normal_mode_is_used(site: Site, alibaba: Alibaba) -> None:
    site.token_path = ""  # then PUT is 405
    assert alibaba.fetch().complete


@pytest.mark.parametrize("status", [403, 500])
def test_a_token_that_is_refused_is_an_error(site: Site, alibaba: Alibaba, status: int) -> None:
    site.statuses["/latest/api/token"] = status
    with pytest.raises(MetadataError, match=f"/latest/api/token: HTTP {status}"):
        alibaba.fetch()


def test_an_address_on_two_interfaces_is_believed_when_it_is_there_twice(site: Site, alibaba: Alibaba) -> None:
    for key in (
        "private-ipv4s",
        "primary-ip-address",
        "vswitch-cidr-block",
        "gateway",
        "ipv6s",
        "vswitch-ipv6-cidr-block",
    ):
        site.texts[f"{MACS}00:16:3e:0f:00:02/{key}"] = site.texts[f"{MACS}{MAC}/{key}"]
    site.texts[f"{MACS}00:16:3e:0f:00:02/ipv6-gateway"] = site.texts[f"{MACS}{MAC}/ipv6-gateway"]
    with pytest.raises(MetadataError, match="more than one interface"):
        alibaba.fetch()
    assert len(alibaba.fetch().interfaces) == 4


def test_a_refresh_has_an_allowance_and_facts_wait_for_the_next(site: Site, alibaba: Alibaba) -> None:
    alibaba.fetch()
    assert len(site.asked) <= 5 + 12 * 4
    assert alibaba.unread
    while alibaba.unread:
        found = alibaba.fetch()
    assert found.system["instance/instance-type"] == "ecs.g6e.large"
    assert found.identity == {"document": b'{"instance-id": "i-1"}', "pkcs7": b"MIIC"}
    assert len(found.system["public-keys"]) == 2


def test_the_roles_credentials_are_read_on_request(site: Site, alibaba: Alibaba) -> None:
    path = "ram/security-credentials/lab-role"
    assert alibaba.credentials() == {path: '{"AccessKeySecret": "SECRET"}'}
    site.statuses[f"{META}ram/security-credentials/"] = 404
    assert alibaba.credentials() == {}


def test_it_is_known_by_its_product() -> None:
    assert firmware.alibaba({"product_name": "Alibaba Cloud ECS"})
    assert not firmware.alibaba({"sys_vendor": "Alibaba Cloud"})
