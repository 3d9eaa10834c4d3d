"""Tencent's tree → Instance."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.providers.tencent import ENDPOINT, Tencent, instance

from tests.unit.fetcher.clouds import CLOUDS, META, payload
from tests.unit.fetcher.site import Site

MAC = "52:54:00:BF:B3:01"  # written so by the cloud
MACS = META + "network/interfaces/macs/"
LEAVES = {
    "primary-local-ipv4": "10.104.1.59",
    "local-ipv4s": "10.104.1.60\n10.104.1.59",
    "gateway": "10.104.1.1",
    "subnet-mask": "255.255.255.0",
    "public-ipv4s": "203.0.113.1",
}


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    CLOUDS["tencent"].serve(found, payload("tencent", "many"))
    yield found
    found.close()


@pytest.fixture
def tencent(site: Site) -> Iterator[Tencent]:
    client = Client(site.endpoint)
    yield Tencent(client)
    client.close()


def test_an_interface_is_read_whole_its_primary_address_first() -> None:
    (found,) = instance({MAC: LEAVES}, MAC).interfaces
    assert found.mac == MAC.lower()
    assert [str(address) for address in found.addresses] == ["10.104.1.59/24", "10.104.1.60/24"]
    assert (found.subnets, found.gateways) == ((ip_network("10.104.1.0/24"),), (ip_address("10.104.1.1"),))
    assert (found.public, found.device_number) == ((ip_address("203.0.113.1"),), 0)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("local-ipv4s", "10.104.2.60", "local-ipv4s: '10.104.2.60' is not inside 10.104.1.0/24"),
        ("subnet-mask", "255.255.255", "local-ipv4s/10.104.1.59/subnet-mask: '255.255.255' is not a subnet mask"),
        ("gateway", "10.104.1.60", "the gateway's"),
        ("gateway", "", "local-ipv4s/10.104.1.59/gateway"),
        ("primary-local-ipv4", "", "primary-local-ipv4"),
        ("public-ipv4s", "none", "public-ipv4s: 'none'"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(key: str, text: str, said: str) -> None:
    (problem,) = instance({MAC: LEAVES | {key: text}}).problems
    assert said in problem.text


def test_many_addresses_cost_no_more_requests_than_one(site: Site, tencent: Tencent) -> None:
    assert [len(each.addresses) for each in tencent.fetch().interfaces] == [15] * 4
    while tencent.unread:
        tencent.fetch()
    site.asked.clear()
    tencent.fetch()
    assert len(site.asked) == 1 + 4 * 6


def test_a_primary_address_that_is_not_listed_is_read_again(site: Site, tencent: Tencent) -> None:
    site.texts[f"{MACS}{MAC}/primary-local-ipv4"] = "10.104.1.99"
    found = tencent.fetch()
    assert not found.complete
    assert "has no 10.104.1.99" in found.problems[0].text


@pytest.mark.parametrize("status", [None, 404])
def test_an_interface_without_a_public_address_is_one_too(site: Site, tencent: Tencent, status: int | None) -> None:
    path = f"{MACS}{MAC}/public-ipv4s"
    site.texts[path] = ""
    if status:
        site.statuses[path] = status
    found = tencent.fetch()
    assert (found.complete, found.interfaces[0].public) == (True, ())


def test_it_is_asked_at_its_address_by_its_name() -> None:
    assert ENDPOINT == "169.254.0.23"
    assert Tencent.headers == {"Host": "metadata.tencentyun.com"}  # the site of these tests insists on it


def test_the_roles_credentials_are_read_on_request(tencent: Tencent) -> None:
    assert tencent.credentials() == {"cam/security-credentials/lab-role": '{"TmpSecretKey": "SECRET"}'}


def test_it_is_known_by_its_vendor() -> None:
    assert firmware.tencent({"sys_vendor": "Tencent Cloud", "product_name": "CVM"})
    assert not firmware.tencent({"sys_vendor": "QEMU"})
