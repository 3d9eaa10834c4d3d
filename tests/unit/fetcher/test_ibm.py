"""IBM's virtual network interfaces → Instance."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from ipaddress import ip_address

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers.document import Node
from cloud_network.fetcher.metadata.providers.ibm import Ibm, instance

from tests.unit.fetcher.clouds import CLOUDS, payload
from tests.unit.fetcher.site import Site


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    CLOUDS["ibm"].serve(found, payload("ibm", "many"))
    yield found
    found.close()


def test_an_instance_is_read_whole() -> None:
    found = CLOUDS["ibm"].made(payload("ibm", "many")).interfaces
    assert found[0].mac == "02:00:04:00:c6:01"
    assert [len(each.addresses) for each in found] == [15] * 4
    assert [str(address) for address in found[0].addresses[:2]] == ["10.240.1.4/32", "10.240.1.5/32"]
    assert (found[0].subnets, found[0].gateways) == ((), ())
    assert [each.device_number for each in found] == [1, 0, 3, 4]  # the instance names its primary attachment


def test_floating_addresses_are_shown() -> None:
    document = deepcopy(payload("ibm", "one")["vnis"])
    document["virtual_network_interfaces"][0]["floating_ips"] = [{"address": "203.0.113.7"}]
    assert instance(Node(document)).interfaces[0].public == (ip_address("203.0.113.7"),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"primary_ip": None}, "virtual_network_interfaces[0].primary_ip: missing"),
        ({"primary_ip": {"address": "0.0.0.0"}}, "virtual_network_interfaces[0].primary_ip.address: '0.0.0.0'"),
        ({"ips": [{"address": "10.240.1.5"}, {}]}, "virtual_network_interfaces[0].ips[1].address: missing"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, object], said: str) -> None:
    document = deepcopy(payload("ibm", "one")["vnis"])
    document["virtual_network_interfaces"][0] |= change
    (problem,) = instance(Node(document)).problems
    assert said in problem.text


def test_the_token_is_asked_for_with_the_flavour_and_kept(site: Site) -> None:
    client = Client(site.endpoint)
    provider = Ibm(client)
    provider.fetch()
    provider.fetch()
    assert [path.partition("?")[0] for path in site.asked] == [
        "PUT /instance_identity/v1/token",
        "/metadata/v1/virtual_network_interfaces",
        "/metadata/v1/instance",
        "/metadata/v1/keys",
        "/metadata/v1/virtual_network_interfaces",
    ]
    client.close()


@pytest.mark.parametrize(
    "body", ["", "[]", '{{"access_token": ""}}', '{{"access_token": "a b"}}', '{{"access_token": 1}}']
)
def test_what_is_no_token_is_refused(site: Site, body: str) -> None:
    site.token_body = body
    client = Client(site.endpoint)
    with pytest.raises(MetadataError, match="/instance_identity/v1/token"):
        Ibm(client).fetch()
    client.close()


@pytest.mark.parametrize(
    "dmi", [{"chassis_asset_tag": "ibmcloud"}, {"sys_vendor": "IBM:Cloud Compute Server 1.0:cx2-2x4"}]
)
def test_it_is_known_by_its_asset_tag_or_its_vendor(dmi: dict[str, str]) -> None:
    assert firmware.ibm(dmi)
    assert not firmware.ibm({"sys_vendor": "IBM"})
