"""Azure: the instance document, its versions, and the answers of a busy server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from cloud_network.fetcher.metadata.base import Provider
from cloud_network.fetcher.metadata.model import Interface, MetadataError
from cloud_network.fetcher.metadata.providers.azure import Azure

from tests.unit.fetcher.emulated import document, read
from tests.unit.fetcher.metadata import Answer, Server

ONE = json.dumps(document("azure", "one"))
SIGNED = json.dumps({"encoding": "pkcs7", "signature": "TUlJRUV3WUpLb1o="})


def ordinary(path: str) -> Answer:
    return Answer(200, SIGNED if "attested" in path else ONE)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(ordinary)
    yield made
    made.close()


@pytest.fixture
def provider(server: Server) -> Azure:
    return Azure(server.client)


def first(**changes: Any) -> Interface:
    """Return the only interface of one.json, with changes."""
    node = document("azure", "one")["network"]["interface"][0] | changes
    found = read("azure", ({"network": {"interface": [node]}}))
    assert not found.problems, found.problems
    return found.interfaces[0]


def test_gateway_is_the_first_address_of_the_subnet() -> None:
    found = read("azure", "one").interfaces[0]
    assert found.mac == "00:0d:3a:f8:06:ec"
    assert found.addresses == (ip_interface("10.144.133.132/26"),)
    assert (found.subnets, found.gateways) == ((ip_network("10.144.133.128/26"),), (ip_address("10.144.133.129"),))
    assert (found.public, found.device_number, found.mtu) == ((ip_address("20.56.1.9"),), 0, None)
    assert found.document["macAddress"] == "000D3AF806EC"


def test_several_subnets_and_ipv6_without_one_are_read() -> None:
    primary, secondary = read("azure", "ipv6").interfaces
    assert [str(address) for address in primary.addresses] == [
        *("10.224.0.4/16", "10.225.0.9/24"),
        *("fd85:534e:4cd6:ab02::5/128", "fd85:534e:4cd6:ab02::6/128"),
    ]
    assert [str(gateway) for gateway in primary.gateways] == ["10.224.0.1", "10.225.0.1"]
    assert [str(address) for address in secondary.addresses] == ["10.226.0.4/24", "fd00:7::4/64"]


def test_empty_address_is_none_and_block_is_one_range() -> None:
    found = first(
        ipv6={"ipAddress": [{"privateIpAddress": ""}]},
        ipv4={
            "ipAddress": [{"privateIpAddress": "10.0.0.4"}, {"privateIpAddress": "10.0.0.16/28"}],
            "subnet": [{"address": "10.0.0.0", "prefix": "24"}],
        },
    )
    assert found.addresses == (ip_interface("10.0.0.4/24"),)
    assert found.ranges == (ip_network("10.0.0.16/28"),)


@pytest.mark.parametrize("changes", [{"ipv4": {"ipAddress": []}}, {"ipv4": None}])
def test_nic_without_addresses_is_a_notice_and_no_proof(changes: dict[str, Any]) -> None:
    whole = document("azure", "many")
    whole["network"]["interface"][1] |= changes
    found = read("azure", whole)
    assert (found.problems, len(found.interfaces)) == ((), 4)
    assert found.interfaces[1].addresses == ()
    assert found.unproven == {found.interfaces[1].mac}
    assert "has no address" in found.notices[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "ipv4": {
                    "ipAddress": [{"privateIpAddress": "10.0.0.1"}, {"privateIpAddress": "10.0.0.4"}],
                    "subnet": [{"address": "10.0.0.0", "prefix": "24"}],
                }
            },
            "10.0.0.1 is both an address of the interface and its gateway",
        ),
        (
            {"ipv4": {"ipAddress": [{"privateIpAddress": "10.0.0.4"}], "subnet": [{"address": "10.0.0.0"}]}},
            "network.interface[0].ipv4.subnet[0].prefix: missing",
        ),
        ({"ipv6": []}, "network.interface[0].ipv6"),
    ],
)
def test_wrong_part_is_reported_and_the_rest_used(changes: dict[str, Any], message: str) -> None:
    node = document("azure", "one")["network"]["interface"][0] | changes
    found = read("azure", {"network": {"interface": [node]}})
    [problem] = found.problems
    assert message in problem.text
    assert problem.mac == "00:0d:3a:f8:06:ec"
    assert len(found.interfaces[0].addresses) == 1


def test_error_of_the_second_interface_stops_no_other() -> None:
    one = document("azure", "one")["network"]["interface"][0]
    two = deepcopy(one) | {"macAddress": "000D3AF806ED"}
    two["ipv4"]["subnet"][0]["prefix"] = "240"
    found = read("azure", ({"network": {"interface": [one, two]}}))
    assert [each.text for each in found.problems] == [
        "network.interface[1].ipv4.subnet[0].prefix: '240' is not 0..32",
    ]
    assert found.interfaces[0] == read("azure", "one").interfaces[0]
    assert [str(address) for address in found.interfaces[1].addresses] == ["10.144.133.132/32"]


def test_facts_have_no_user_data() -> None:
    found = read("azure", "one").system
    assert found["vmId"] == "02aab8a4-74ef-476e-8182-f6d2ba4166a6"
    [key] = found["public-keys"]
    assert key.split()[::2] == ["ssh-ed25519", "one"]
    assert not found.keys() & {"userData", "customData"}
    whole: Any = document("azure", "one")
    whole["compute"]["somethingNewForPrograms"] = "SECRET"
    assert read("azure", (whole)).system == found, "an unknown key is not shown"


def test_refresh_is_one_request(server: Server, provider: Azure) -> None:
    found = provider.fetch()
    assert found.identity == {"pkcs7": b"TUlJRUV3WUpLb1o="}
    server.asked.clear()
    assert provider.fetch() == found
    assert server.paths == ["/metadata/instance?api-version=2025-04-07"]
    assert server.asked[0].headers["metadata"] == "true"
    assert provider.fetch().identity == found.identity


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (["2021-02-01", "2020-09-01"], "2021-02-01"),
        (["2030-01-01", "2022-08-01", "2021-02-01"], "2022-08-01"),
        (["2030-01-01", "x", "2031-01-01"], "2030-01-01"),
    ],
)
def test_unknown_version_is_replaced_by_an_offered_one(
    server: Server, provider: Azure, offered: list[str], taken: str
) -> None:
    server.answer = lambda path: (
        ordinary(path)
        if f"api-version={taken}" in path
        else Answer(400, json.dumps({"error": "Bad request", "newest-versions": offered}))
    )
    assert provider.fetch().interfaces
    server.asked.clear()
    provider.fetch()
    assert server.paths == [f"/metadata/instance?api-version={taken}"]


@pytest.mark.parametrize("body", ["", "<html>", "[]", "{}", '{"newest-versions": 5}', '{"newest-versions": [7, "x"]}'])
def test_refusal_that_offers_nothing_is_an_error(server: Server, provider: Azure, body: str) -> None:
    server.answer = lambda _: Answer(400, body)
    with pytest.raises(MetadataError, match="HTTP 400"):
        provider.fetch()
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [410, 429, 503])
def test_busy_server_is_there_and_says_when_to_retry(server: Server, provider: Azure, status: int) -> None:
    server.answer = lambda _: Answer(status, "{}", {"Retry-After": "17"})
    with pytest.raises(MetadataError, match=f"/metadata/instance: HTTP {status}") as caught:
        provider.fetch()
    assert (caught.value.kind, caught.value.retry_after) == ("status", 17.0)
    assert provider.is_reachable()


@pytest.mark.parametrize(
    ("answer", "alive"),
    [(Answer(200, ONE), True), (Answer(200, "<html>"), False), (Answer(200, "hello"), False), (Answer(404, ""), False)],
)
def test_answers_checks_the_content(server: Server, provider: Azure, answer: Answer, alive: bool) -> None:
    server.answer = lambda _: answer
    assert provider.is_reachable() is alive


@pytest.mark.parametrize(
    "signed", ["{}", '{"encoding": "../x", "signature": "a"}', '{"encoding": "pkcs7"}', "", "\x00"]
)
def test_wrong_signed_document_costs_nothing(server: Server, provider: Azure, signed: str) -> None:
    server.answer = lambda path: Answer(200, signed) if "attested" in path else ordinary(path)
    assert provider.fetch().identity == {}
    assert provider.fetch().complete
    assert sum("attested" in path for path in server.paths) == 1  # and it is not requested again at once


def test_credentials_are_a_token_or_none(server: Server, provider: Azure) -> None:
    kept: Provider = provider
    server.answer = lambda _: Answer(200, '{"access_token": "abc"}')
    assert kept.credentials() == {"identity/oauth2/token": {"access_token": "abc"}}
    server.answer = lambda _: Answer(400, '{"error": "invalid_request"}')
    assert kept.credentials() == {}


BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIE9uZTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTEx"


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ("ssh-rsa AAAA\r\nBBBB\r\nCC==\r\n", ["ssh-rsa AAAABBBBCC=="]),  # as Azure folds a key that it has generated
        ("ssh-rsa AAAA\r\nBBBB\r\n user@host\n", ["ssh-rsa AAAABBBB user@host"]),
        ("ssh-rsa AAAA one\nssh-ed25519 BBBB two\n", ["ssh-rsa AAAA one", "ssh-ed25519 BBBB two"]),
        ("ecdsa-sha2-nistp256 AA\nBB\nsk-ssh-ed25519@openssh.com CC\n",
         ["ecdsa-sha2-nistp256 AABB", "sk-ssh-ed25519@openssh.com CC"]),
        (
            '---- BEGIN SSH2 PUBLIC KEY ----\nComment: "two \\\nlines"\n'
            f"{BLOB[:40]}\n{BLOB[40:]}\n---- END SSH2 PUBLIC KEY ----\n",
            [f"ssh-ed25519 {BLOB}"],
        ),
        ("---- BEGIN SSH2 PUBLIC KEY ----\n!\n---- END SSH2 PUBLIC KEY ----", []),
        ("-----BEGIN CERTIFICATE-----\r\nMIIC\r\n-----END CERTIFICATE-----\r\n",
         ["-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----"]),
        (" \r\n", []),
    ],
)  # fmt: skip
def test_lines_of_one_key_are_one_key(data: str, keys: list[str]) -> None:
    whole = document("azure", "one")
    whole["compute"]["publicKeys"] = [{"keyData": data, "path": "/x"}]
    assert read("azure", whole).system["public-keys"] == keys


def test_facts_name_licence_disks_and_key_paths() -> None:
    found = read("azure", "one").system
    names = {"osType", "licenseType", "tags", "plan", "storageProfile", "osProfile", "publicKeys"}
    assert names <= found.keys()
    assert found["publicKeys"][0]["path"] == "/home/azureuser/.ssh/authorized_keys"
    assert not found.keys() & {"customData", "userData"}
