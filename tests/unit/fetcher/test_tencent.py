"""Tencent's tree -> Instance."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.metadata.providers.tencent import Tencent

from tests.lab.metadata.in_process import InProcess
from tests.unit.fetcher.emulated import document, read, settled

MAC = "52:54:00:BF:B3:01"  # upper case, as from the cloud
MACS = "/latest/meta-data/network/interfaces/macs/"
PRIMARY = "10.104.1.59"


@pytest.fixture
def cloud() -> Iterator[InProcess]:
    found = InProcess("tencent")
    found.record(document("tencent", "many"))
    yield found
    found.close()


@pytest.fixture
def tencent(cloud: InProcess) -> Iterator[Tencent]:
    client = Client(cloud.endpoint)
    yield Tencent(client)
    client.close()


def parsed(**changes: str) -> Instance:
    """Return the instance with these leaves of the primary address, or of the interface."""
    ip = {"gateway": "10.104.1.1", "subnet-mask": "255.255.255.0", "local-ipv4": PRIMARY}
    ips = {"10.104.1.60": ip, PRIMARY: ip | {key: text for key, text in changes.items() if key in ip}}
    interface: dict[str, Any] = {"mac": MAC, "primary-local-ipv4": PRIMARY, "local-ipv4s": ips}
    interface |= {"public-ipv4s": "203.0.113.1"} | {key: text for key, text in changes.items() if key not in ip}
    return read("tencent", {"meta-data": {"mac": MAC, "network": {"interfaces": {"macs": {MAC: interface}}}}})


def test_interface_is_read_whole_primary_address_first() -> None:
    (found,) = parsed().interfaces
    assert found.mac == MAC.lower()
    assert [str(address) for address in found.addresses] == ["10.104.1.59/24", "10.104.1.60/24"]
    assert (found.subnets, found.gateways) == ((ip_network("10.104.1.0/24"),), (ip_address("10.104.1.1"),))
    assert (found.public, found.device_number) == ((ip_address("203.0.113.1"),), 0)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("subnet-mask", "255.255.255", "local-ipv4s/.../subnet-mask: '255.255.255' is not a subnet mask"),
        ("gateway", "10.104.1.60", "is both an address of the interface and its gateway"),
        ("gateway", "", "local-ipv4s/10.104.1.59/gateway: is listed but empty"),
        ("public-ipv4s", "none", "public-ipv4s: 'none'"),
    ],
)
def test_wrong_value_is_reported_by_its_path(key: str, text: str, message: str) -> None:
    whole = document("tencent", "many")
    interface = whole["meta-data"]["network"]["interfaces"]["macs"][MAC]
    (interface if key in interface else interface["local-ipv4s"][interface["primary-local-ipv4"]])[key] = text
    found = read("tencent", whole)
    assert any(message in problem.text for problem in found.problems)
    assert {problem.mac for problem in found.problems} == {MAC.lower()}
    assert len(found.interfaces) >= 3


def test_many_addresses_cost_no_more_requests_than_one(cloud: InProcess, tencent: Tencent) -> None:
    assert [len(each.addresses) for each in settled(tencent).interfaces] == [15] * 4
    cloud.reset()
    tencent.fetch()
    assert len(cloud.requests()) == 1 + 4 * 6


def test_primary_address_that_is_not_listed_is_no_proof(cloud: InProcess, tencent: Tencent) -> None:
    cloud.content(f"{MACS}{MAC}/primary-local-ipv4", "10.104.1.99")
    found = tencent.fetch()
    assert found.unproven == {MAC.lower()}
    assert "has no 10.104.1.99" in found.problems[0].text


@pytest.mark.parametrize("status", [None, 404])
def test_public_address_may_be_missing(cloud: InProcess, tencent: Tencent, status: int | None) -> None:
    path = f"{MACS}{MAC}/public-ipv4s"
    if status:
        cloud.fail("status", path, status=status)
    else:
        cloud.content(path, "")
    found = tencent.fetch()
    assert (found.complete, found.interfaces[0].public) == (True, ())


def test_server_is_asked_at_its_address_by_its_name() -> None:
    assert Tencent.endpoints == ("169.254.0.23",)
    assert Tencent.headers == {"Host": "metadata.tencentyun.com"}


def test_credentials_are_the_roles(tencent: Tencent) -> None:
    assert tencent.credentials() == {"cam/security-credentials/lab-role": '{"TmpSecretKey": "SECRET"}'}
