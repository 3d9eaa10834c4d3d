"""IBM's virtual network interfaces -> Instance."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers.ibm import Ibm

from tests.lab.metadata.in_process import InProcess
from tests.unit.fetcher.emulated import document, read


@pytest.fixture
def cloud() -> Iterator[InProcess]:
    found = InProcess("ibm")
    found.record(document("ibm", "many"))
    yield found
    found.close()


@pytest.fixture
def ibm(cloud: InProcess) -> Iterator[Ibm]:
    client = Client(cloud.endpoint)
    yield Ibm(client)
    client.close()


def parsed(**changes: object) -> Instance:
    whole = document("ibm", "one")
    whole["virtual_network_interfaces"]["virtual_network_interfaces"][0] |= changes
    return read("ibm", whole)


def test_instance_is_read_whole() -> None:
    found = read("ibm", "many").interfaces
    assert found[0].mac == "02:00:04:00:c6:01"
    assert [len(each.addresses) for each in found] == [15] * 4
    assert [str(address) for address in found[0].addresses[:2]] == ["10.240.1.4/32", "10.240.1.5/32"]
    assert (found[0].subnets, found[0].gateways) == ((), ())
    assert [each.device_number for each in found] == [1, 0, 3, 4]  # the instance names its primary attachment


def test_floating_addresses_are_shown() -> None:
    assert parsed(floating_ips=[{"address": "203.0.113.7"}]).interfaces[0].public == (ip_address("203.0.113.7"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"primary_ip": {"address": "0.0.0.0"}}, "virtual_network_interfaces[0].primary_ip.address: '0.0.0.0'"),
        ({"ips": [{"address": "10.240.1.5"}, {}]}, "virtual_network_interfaces[0].ips[1].address: missing"),
    ],
)
def test_wrong_value_is_reported_by_its_path(change: dict[str, object], message: str) -> None:
    found = parsed(**change)
    assert message in found.problems[0].text
    assert found.interfaces[0].addresses


def test_token_is_asked_for_with_the_flavor_and_reused(cloud: InProcess, ibm: Ibm) -> None:
    ibm.fetch()
    ibm.fetch()
    assert [(record.method, record.path) for record in cloud.requests()] == [
        ("PUT", "/instance_identity/v1/token"),
        ("GET", "/metadata/v1/virtual_network_interfaces"),
        ("GET", "/metadata/v1/instance"),
        ("GET", "/metadata/v1/keys"),
        ("GET", "/metadata/v1/virtual_network_interfaces"),
    ]


@pytest.mark.parametrize("body", ["", "[]", '{"access_token": ""}', '{"access_token": "a b"}', '{"access_token": 1}'])
def test_invalid_token_is_an_error(cloud: InProcess, ibm: Ibm, body: str) -> None:
    cloud.content("/instance_identity/v1/token", body)
    with pytest.raises(MetadataError, match="/instance_identity/v1/token"):
        ibm.fetch()
