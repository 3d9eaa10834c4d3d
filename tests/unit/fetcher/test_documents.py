"""Properties of every document of every cloud, read over HTTP from the lab's metadata server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.base import Provider
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.network.desired import desired
from cloud_network.fetcher.network.matching import match_links, without_absent_vlans
from cloud_network.fetcher.network.objects import Link

from tests.lab.metadata.in_process import InProcess
from tests.unit.fetcher.emulated import CLOUDS, document, names, provider_class, read, settled
from tests.unit.fetcher.values import EMPTY_KERNEL

KEYS = ("ssh-ed25519 AAAA", "ssh-rsa AAAA")
REFRESH = {"alibaba": 6, "aws": 7, "hetzner": 2, "tencent": 7}  # requests of an unchanged refresh of `one`; else 1
WITH_TOKEN = ("alibaba", "aws", "ibm")
FEW = ("digitalocean", "hetzner", "scaleway", "vultr")  # not every interface can have many addresses
NO_IPV6 = ("ibm", "tencent")  # no IPv6 in the metadata
TREES = ("alibaba", "aws", "tencent")
WHOLE = [(cloud, name) for cloud in CLOUDS for name in names(cloud) if name != "broken"]
with_each_document = pytest.mark.parametrize("cloud_name", CLOUDS)


@pytest.fixture
def cloud(cloud_name: str) -> Iterator[InProcess]:
    found = InProcess(cloud_name)
    yield found
    found.close()


@pytest.fixture
def provider(cloud_name: str, cloud: InProcess) -> Iterator[Provider]:
    """Return a provider that reads the document `one`, until the test changes that."""
    cloud.record(document(cloud_name, "one"))
    client = Client(cloud.endpoint)
    yield provider_class(cloud_name)(client)
    client.close()


def addresses(instance: Instance) -> set[tuple[str, str]]:
    return {(interface.mac, str(address)) for interface in instance.interfaces for address in interface.addresses}


@pytest.mark.parametrize(("cloud_name", "name"), WHOLE)
def test_whole_document_is_understood_without_secrets(
    cloud_name: str, name: str, cloud: InProcess, provider: Provider
) -> None:
    cloud.record(document(cloud_name, name))
    found = settled(provider)
    assert (found.provider, found.problems) == (cloud_name, ())
    assert found.interfaces
    empty = [each.mac for each in found.interfaces if not each.addresses and not each.dhcp]
    assert all(mac in found.unproven for mac in empty)
    assert cloud_name == "aws" or isinstance(found.system["public-keys"], list)
    shown = json.dumps([found.system, *(interface.document for interface in found.interfaces)], allow_nan=False)
    assert "SECRET" not in shown + repr(found.identity)
    assert "c2VjcmV0" not in shown
    assert all(interface.document["mac"] == interface.mac for interface in found.interfaces)


@with_each_document
def test_documents_have_every_shape(cloud_name: str) -> None:
    assert {"one", "many", "sparse", "broken"} <= set(names(cloud_name))
    assert len(read(cloud_name, "one").interfaces) == 1
    many = read(cloud_name, "many").interfaces
    assert len(many) >= 4
    assert cloud_name in FEW or all(len(each.addresses) + len(each.ranges) >= 15 for each in many)
    if cloud_name not in NO_IPV6:
        assert any(address.version == 6 for each in read(cloud_name, "ipv6").interfaces for address in each.addresses)


@with_each_document
def test_broken_interface_is_named_and_stops_no_other(cloud_name: str) -> None:
    found = read(cloud_name, "broken")
    assert len({problem.mac for problem in found.problems}) == 1
    assert any(interface.mac not in found.unproven for interface in found.interfaces)
    assert all(len(problem.text) > 20 for problem in found.problems)


@with_each_document
def test_facts_and_ssh_keys_are_read(cloud_name: str, provider: Provider) -> None:
    system = settled(provider).system
    assert len(system) > 4 or cloud_name == "aws"
    if cloud_name != "aws":  # AWS's documents have none
        assert system["public-keys"]
        assert all(key.startswith(KEYS) for key in system["public-keys"])


@with_each_document
def test_unchanged_refresh_costs_few_requests(cloud_name: str, cloud: InProcess, provider: Provider) -> None:
    before = settled(provider)
    cloud.reset()
    after = provider.fetch()
    assert (after, after.system, after.identity) == (before, before.system, before.identity)
    assert len(cloud.requests()) == REFRESH.get(cloud_name, 1)


@with_each_document
def test_facts_are_read_again_after_a_change(cloud_name: str, cloud: InProcess, provider: Provider) -> None:
    settled(provider)
    asked = {record.path for record in cloud.requests() if record.method == "GET"}
    cloud.reset()
    cloud.record(document(cloud_name, "many"))
    settled(provider)
    once = {"/latest/meta-data/mac", "/metadata/attested/document"}
    missed = asked - {record.path for record in cloud.requests()} - once
    assert not {path for path in missed if "/macs/" not in path}


@pytest.mark.exhaustive
@with_each_document
@pytest.mark.parametrize("fault", ["404", "500", "html", "empty", "short", "truncated"])
def test_faulty_answer_removes_no_address(cloud_name: str, cloud: InProcess, provider: Provider, fault: str) -> None:
    """For every document that defines the network."""
    cloud.record(document(cloud_name, "one" if cloud_name in TREES else "many"))
    before = settled(provider)
    cloud.reset()
    provider.fetch()
    for path in {record.path for record in cloud.requests() if record.method == "GET"}:
        if fault.isdigit():
            cloud.fail("status", path, status=int(fault))
        else:
            cloud.fail(fault, path)
        try:
            found = provider.fetch().with_known(before)
        except MetadataError:
            found = before
        cloud.clear()
        listing = path.endswith(("private-networks", "macs/", "local-ipv4s/"))
        if fault in ("short", "empty") and listing:
            continue  # a valid shorter list: accepted after a second read
        ips = {(mac, address.partition("/")[0]) for mac, address in addresses(found)}
        assert {(mac, address.partition("/")[0]) for mac, address in addresses(before)} <= ips, path


@pytest.mark.exhaustive
@with_each_document
def test_unreadable_facts_stop_nothing(cloud_name: str, cloud: InProcess, provider: Provider) -> None:
    network = settled(provider)
    paths = {record.path for record in cloud.requests() if record.method == "GET"}
    cloud.reset()
    provider.fetch()
    needed = {record.path for record in cloud.requests()} | {"/latest/meta-data/mac"}
    for path in paths - needed:
        cloud.fail("status", path)
    again = provider_class(cloud_name)(Client(cloud.endpoint))
    assert settled(again) == network
    cloud.clear()
    assert [settled(again).system for _ in range(40)][-1] == network.system
    again.client.close()


@with_each_document
@pytest.mark.parametrize(
    ("fault", "status", "expected"), [("status", 503, True), ("status", 404, False), ("html", 200, False)]
)
def test_answers_checks_the_content(
    cloud: InProcess, provider: Provider, fault: str, status: int, expected: bool
) -> None:
    assert provider.is_reachable()  # and gets a token, on clouds with tokens
    cloud.fail(fault, status=status)
    assert provider.is_reachable() == expected


@with_each_document
def test_unreachable_server_is_an_error(cloud_name: str) -> None:
    provider = provider_class(cloud_name)(Client("127.0.0.1:9"))
    with pytest.raises(MetadataError):
        provider.fetch()
    assert not provider.is_reachable()


@pytest.mark.parametrize("cloud_name", WITH_TOKEN)
def test_void_token_is_replaced(cloud_name: str, cloud: InProcess, provider: Provider) -> None:
    before = settled(provider)
    cloud.expire_tokens()
    cloud.reset()
    assert provider.fetch() == before
    assert sum(record.method == "PUT" for record in cloud.requests()) == 1


@with_each_document
@pytest.mark.parametrize("name", ["one", "many"])
def test_unknown_keys_are_ignored_everywhere(cloud_name: str, name: str) -> None:
    whole = document(cloud_name, name)
    assert read(cloud_name, with_unknown_keys(whole)) == read(cloud_name, name)


@pytest.mark.parametrize(
    ("cloud_name", "name"), [("gcp", "vlan"), ("openstack", "vlan"), ("oracle", "metal"), ("oracle", "metal_tags")]
)
def test_vlan_is_configured_where_its_link_exists_and_is_allowed(cloud_name: str, name: str) -> None:
    found = read(cloud_name, name)
    *others, vlan = sorted(found.interfaces, key=lambda each: each.vlan is not None)
    assert vlan.vlan is not None
    links = [Link(at, f"eth{at}", each.mac, True, 1500, None) for at, each in enumerate(others, 2)]
    links.append(Link(90, "eth2.1", vlan.mac, True, 1500, "vlan"))
    for kinds in ((), ("vlan",)):
        config = Config(allow_kinds=kinds)
        matches = match_links(found, config, links)
        present = without_absent_vlans(found, matches)
        goal = desired(present, matches, config, replace(EMPTY_KERNEL, links=tuple(links)))
        configured = {each.address for each in goal.addresses if each.ifindex == 90}
        assert configured == ({each.ip for each in vlan.addresses} if kinds else set())
        advice = f"ip link add link eth2 name eth2.{vlan.vlan.tag} address {vlan.mac} type vlan id {vlan.vlan.tag}"
        assert any(advice in notice for notice in goal.notices) == (not kinds)


def with_unknown_keys(value: object) -> object:
    if isinstance(value, list):
        return [with_unknown_keys(each) for each in value]
    if not isinstance(value, dict):
        return value
    if any(key.count(":") == 5 or key.count(".") == 3 for key in value):  # names of directories, not of properties
        return {key: with_unknown_keys(below) for key, below in value.items()}
    return {key: with_unknown_keys(below) for key, below in value.items()} | {"somethingNew": "x"}


@with_each_document
def test_deadline_ends_the_read(cloud_name: str, cloud: InProcess, provider: Provider) -> None:
    with pytest.raises(MetadataError) as caught:
        provider.fetch(deadline=0.0)
    assert caught.value.kind == "timeout"
    assert cloud.requests() == []
    assert provider.fetch().interfaces
