"""Azure: the instance document, its versions, and what its server says when it is busy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from cloud_network.fetcher.metadata import firmware
from cloud_network.fetcher.metadata.model import Interface, MetadataError
from cloud_network.fetcher.metadata.providers import Provider, azure
from cloud_network.fetcher.metadata.providers.azure import Azure
from cloud_network.fetcher.metadata.providers.document import Node

from tests.unit.fetcher.metadata import Answer, Server
from tests.unit.fetcher.payloads import document, load

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
    """The only interface of one.json, with changes."""
    node = document("azure", "one")["network"]["interface"][0] | changes  # type: ignore[index]
    found = azure.instance(Node({"network": {"interface": [node]}}))
    assert not found.problems, found.problems
    return found.interfaces[0]


def test_an_interface_has_its_addresses_subnet_and_gateway_by_convention() -> None:
    found = load("azure", "one").interfaces[0]
    assert found.mac == "00:0d:3a:f8:06:ec"
    assert found.addresses == (ip_interface("10.144.133.132/26"),)
    assert (found.subnets, found.gateways) == ((ip_network("10.144.133.128/26"),), (ip_address("10.144.133.129"),))
    assert (found.public, found.device_number, found.mtu) == ((ip_address("20.56.1.9"),), 0, None)
    assert found.document["macAddress"] == "000D3AF806EC"


def test_several_subnets_and_ipv6_with_and_without_one() -> None:
    primary, secondary = load("azure", "ipv6").interfaces
    assert [str(address) for address in primary.addresses] == [
        *("10.224.0.4/16", "10.225.0.9/24"),
        *("fd85:534e:4cd6:ab02::5/128", "fd85:534e:4cd6:ab02::6/128"),
    ]
    assert [str(gateway) for gateway in primary.gateways] == ["10.224.0.1", "10.225.0.1"]
    assert [str(address) for address in secondary.addresses] == ["10.226.0.4/24", "fd00:7::4/64"]


def test_addresses_that_are_empty_are_none_and_a_block_is_one_range() -> None:
    found = first(
        ipv6={"ipAddress": [{"privateIpAddress": ""}]},
        ipv4={
            "ipAddress": [{"privateIpAddress": "10.0.0.4"}, {"privateIpAddress": "10.0.0.16/28"}],
            "subnet": [{"address": "10.0.0.0", "prefix": "24"}],
        },
    )
    assert found.addresses == (ip_interface("10.0.0.4/24"),)
    assert found.ranges == (ip_network("10.0.0.16/28"),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ipv4": {"ipAddress": []}}, "network.interface[0]: no address"),
        ({"ipv4": None}, "network.interface[0]: no address"),
        ({"ipv4": {"ipAddress": [{"privateIpAddress": "10.9.9.9"}]}}, "ipv4.ipAddress[0].privateIpAddress: '10.9.9.9'"),
        (
            {
                "ipv4": {
                    "ipAddress": [{"privateIpAddress": "10.0.0.1"}],
                    "subnet": [{"address": "10.0.0.0", "prefix": "24"}],
                }
            },
            "'10.0.0.1' is not a host's",
        ),
        ({"ipv4": {"subnet": [{"address": "10.0.0.0"}]}}, "network.interface[0].ipv4.subnet[0].prefix: missing"),
        ({"ipv6": []}, "network.interface[0].ipv6"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    node = document("azure", "one")["network"]["interface"][0] | changes  # type: ignore[index]
    [problem] = azure.instance(Node({"network": {"interface": [node]}})).problems
    assert said in problem.text
    assert problem.mac == "00:0d:3a:f8:06:ec"


def test_an_error_names_the_second_interfaces_subnet_by_its_path() -> None:
    """Word for word as issue 5 has it; and what is wrong with one does not stop the other."""
    one = document("azure", "one")["network"]["interface"][0]  # type: ignore[index]
    two = deepcopy(one) | {"macAddress": "000D3AF806ED"}
    two["ipv4"]["subnet"][0]["prefix"] = "240"
    found = azure.instance(Node({"network": {"interface": [one, two]}}))
    assert [each.text for each in found.problems] == [
        "network.interface[1].ipv4.subnet[0].prefix: '240' is not 0..32",
    ]
    assert [each.mac for each in found.interfaces] == ["00:0d:3a:f8:06:ec"]


def test_facts_are_azures_own_words_with_the_keys_and_without_what_users_put_there() -> None:
    found = load("azure", "one").system
    assert found["vmId"] == "02aab8a4-74ef-476e-8182-f6d2ba4166a6"
    [key] = found["public-keys"]
    assert key.split()[::2] == ["ssh-ed25519", "one"]
    assert not found.keys() & {"userData", "customData", "publicKeys"}
    whole: Any = document("azure", "one")
    whole["compute"]["somethingNewForPrograms"] = "SECRET"
    assert azure.instance(Node(whole)).system == found, "what nobody knows is nobody's to see"


def test_the_firmware_says_azure_by_its_asset_tag_and_not_by_hyper_v() -> None:
    hyper_v = {"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}
    assert firmware.azure(hyper_v | {"chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"})
    assert not firmware.azure(hyper_v)


def test_a_refresh_is_one_request_and_the_signed_document_comes_with_the_first(server: Server, provider: Azure) -> None:
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
def test_a_version_that_the_region_has_not_is_replaced_by_one_it_offers(
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
def test_a_refusal_that_offers_nothing_is_an_error(server: Server, provider: Azure, body: str) -> None:
    server.answer = lambda _: Answer(400, body)
    with pytest.raises(MetadataError, match="HTTP 400"):
        provider.fetch()
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [410, 429, 503])
def test_a_busy_server_is_there_and_says_when_to_come_back(server: Server, provider: Azure, status: int) -> None:
    server.answer = lambda _: Answer(status, "{}", {"Retry-After": "17"})
    with pytest.raises(MetadataError, match=f"/metadata/instance: HTTP {status}") as caught:
        provider.fetch()
    assert (caught.value.kind, caught.value.retry_after) == ("status", 17.0)
    assert provider.answers()


@pytest.mark.parametrize(
    ("answer", "alive"),
    [(Answer(200, ONE), True), (Answer(200, "<html>"), False), (Answer(200, "hello"), False), (Answer(404, ""), False)],
)
def test_who_answers_is_looked_at(server: Server, provider: Azure, answer: Answer, alive: bool) -> None:
    server.answer = lambda _: answer
    assert provider.answers() is alive


@pytest.mark.parametrize(
    "signed", ["{}", '{"encoding": "../x", "signature": "a"}', '{"encoding": "pkcs7"}', "", "\x00"]
)
def test_a_signed_document_that_is_none_costs_nothing(server: Server, provider: Azure, signed: str) -> None:
    server.answer = lambda path: Answer(200, signed) if "attested" in path else ordinary(path)
    assert provider.fetch().identity == {}
    assert provider.fetch().complete
    assert sum("attested" in path for path in server.paths) == 1  # and it is not asked for again at once


def test_credentials_are_a_token_or_nothing(server: Server, provider: Azure) -> None:
    kept: Provider = provider
    server.answer = lambda _: Answer(200, '{"access_token": "abc"}')
    assert kept.credentials() == {"identity/oauth2/token": {"access_token": "abc"}}
    server.answer = lambda _: Answer(400, '{"error": "invalid_request"}')
    assert kept.credentials() == {}
