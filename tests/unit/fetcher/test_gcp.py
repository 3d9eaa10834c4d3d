"""GCP: the document, ranges, secrets that must not be shown, and the wait for a change."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cloud_network.fetcher.daemon import watch_metadata
from cloud_network.fetcher.metadata.base import WatchingProvider
from cloud_network.fetcher.metadata.model import Instance, Interface, MetadataError, Vlan
from cloud_network.fetcher.metadata.providers.gcp import Gcp

from tests.unit.fetcher.emulated import document, read
from tests.unit.fetcher.metadata import Answer, Server

ONE = json.dumps(document("gcp", "one"))
GOOGLES = {"Metadata-Flavor": "Google", "ETag": "e1"}


class Changing:
    """A metadata server that answers `wait_for_change` only when there is a change."""

    def __init__(self) -> None:
        self.etag, self.changes = "e1", queue.Queue[str]()

    def __call__(self, path: str) -> Answer:
        query = parse_qs(urlsplit(path).query)
        if query.get("wait_for_change") == ["true"] and query["last_etag"] == [self.etag]:
            self.etag = self.changes.get(timeout=20)
        return Answer(200, ONE, GOOGLES | {"ETag": self.etag})


@pytest.fixture
def cloud() -> Changing:
    return Changing()


@pytest.fixture
def server(cloud: Changing) -> Iterator[Server]:
    made = Server(cloud)
    yield made
    cloud.changes.put("the end")
    made.close()


@pytest.fixture
def provider(server: Server) -> Gcp:
    return Gcp(server.client)


def parsed(**changes: Any) -> Instance:
    """Return the instance of one.json with changes in its interface."""
    whole: Any = document("gcp", "one")
    whole["instance"]["networkInterfaces"][0] |= changes
    return read("gcp", whole)


def first(**changes: Any) -> Interface:
    found = parsed(**changes)
    assert not found.problems, found.problems
    return found.interfaces[0]


def test_subnet_lies_behind_the_gateway() -> None:
    found = first()
    assert (found.mac, found.mtu, found.routed) == ("42:01:0a:84:00:02", 1460, True)
    assert (found.addresses, found.subnets) == ((ip_interface("10.132.0.2/20"),), (ip_network("10.132.0.0/20"),))
    assert (found.gateways, found.public) == ((ip_address("10.132.0.1"),), (ip_address("34.76.1.2"),))


def test_address_with_a_mask_of_32_bits_stands_alone() -> None:
    found = first(subnetmask="255.255.255.255")
    assert (found.addresses, found.subnets) == ((ip_interface("10.132.0.2/32"),), (ip_network("10.132.0.2/32"),))
    assert found.gateways == (ip_address("10.132.0.1"),)


def test_ipv6_addresses_are_single() -> None:
    one, two = read("gcp", "ipv6").interfaces
    assert [str(address) for address in one.addresses] == ["10.132.0.2/20", "2600:1900:4010:1a:0:1::/128"]
    assert [str(gateway) for gateway in one.gateways] == ["10.132.0.1", "fe80::4001:aff:fe84:1"]
    assert [str(network) for network in one.ranges] == ["2600:1900:4010:1a:8000:2::/96"]
    assert [str(address) for address in two.addresses][1:] == ["fd20:1:2:3:0:4::/128", "fd20:1:2:3:0:5::/128"]


def test_interface_may_have_ipv6_only() -> None:
    found = first(ip="", subnetmask="", gateway="", ipv6s=["fd20::1"], gatewayIpv6="fe80::1")
    assert (found.addresses, found.subnets) == ((ip_interface("fd20::1/128"),), ())
    assert found.gateways == (ip_address("fe80::1"),)


def test_aliases_and_forwarded_addresses_are_ranges() -> None:
    found = first(
        ipAliases=["10.64.0.0/16", "10.132.0.9/32", "10.132.0.2/32", "10.132.0.9"],
        forwardedIps=["34.1.2.3"],
        targetInstanceIps=["34.1.2.3", "34.1.2.4"],
        forwardedIpv6s=["2600:1900::/96"],
    )
    shown = ["10.64.0.0/16", "10.132.0.9/32", "34.1.2.3/32", "2600:1900::/96", "34.1.2.4/32"]
    assert [str(network) for network in found.ranges] == shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subnetmask": "255.0.255.0"}, "networkInterfaces[0].subnetmask: '255.0.255.0' is not a mask"),
        ({"subnetmask": "0.0.0.0"}, "networkInterfaces[0].ip: '10.132.0.2/0' is not a prefix"),
        ({"gateway": "x"}, "networkInterfaces[0].gateway: 'x' is not an IP"),
        ({"ipAliases": ["10.64.0.0/240"]}, "networkInterfaces[0].ipAliases[0]: '10.64.0.0/240'"),
        ({"ipAliases": "10.64.0.0/24"}, "networkInterfaces[0].ipAliases: "),
        ({"mtu": 500}, "networkInterfaces[0].mtu: 500 is not 576..65535"),
        ({"ipv6s": ["10.0.0.1", "fd20::1"]}, "networkInterfaces[0].ipv6s[0]: '10.0.0.1' is not an IPv6 address"),
    ],
)
def test_wrong_part_is_reported_and_the_rest_used(changes: dict[str, Any], message: str) -> None:
    found = parsed(**{"ipv6s": ["fd20::1"]} | changes)
    [problem] = found.problems
    assert message in problem.text
    assert "fd20::1/128" in map(str, found.interfaces[0].addresses)


def test_range_with_host_bits_is_used() -> None:
    assert [str(each) for each in first(ipAliases=["10.64.0.1/24"]).ranges] == ["10.64.0.0/24"]


VLAN = {
    "ip": "10.140.0.5", "subnetmask": "255.255.255.0", "gateway": "10.140.0.1", "mac": "42:01:0a:8c:00:05",
    "mtu": 1460, "parentInterface": "/computeMetadata/v1/instance/network-interfaces/0/", "vlan": 5,
}  # fmt: skip


@pytest.mark.parametrize("vlans", [{"0": {"5": VLAN}}, [[VLAN]]])
def test_dynamic_nic_is_a_vlan_of_its_parent(vlans: Any) -> None:
    whole: Any = document("gcp", "one")
    whole["instance"]["vlanNetworkInterfaces"] = vlans
    parent, vlan = read("gcp", whole).interfaces
    assert vlan.vlan == Vlan(5, parent.mac)
    assert ([str(each) for each in vlan.addresses], vlan.routed) == (["10.140.0.5/24"], True)


def test_dynamic_nic_with_its_parents_mac_is_a_notice() -> None:
    whole: Any = document("gcp", "one")
    mac = whole["instance"]["networkInterfaces"][0]["mac"]
    whole["instance"]["vlanNetworkInterfaces"] = {"0": {"5": VLAN | {"mac": mac}}}
    found = read("gcp", whole)
    assert (len(found.interfaces), found.complete) == (1, True)
    assert "vlanNetworkInterfaces.0.5: a VLAN with the MAC of its parent" in found.notices[0]


@pytest.mark.parametrize("vlans", ["x", {"0": "x"}, {"0": {"5": "x"}}, {"0": {"5": VLAN | {"vlan": 9999}}}])
def test_wrong_dynamic_nic_stops_no_other(vlans: Any) -> None:
    whole: Any = document("gcp", "one")
    whole["instance"]["vlanNetworkInterfaces"] = vlans
    found = read("gcp", whole)
    assert found.interfaces == read("gcp", "one").interfaces
    assert len(found.problems) == 1


def test_facts_have_no_attributes() -> None:
    found = read("gcp", "one").system
    assert found["name"] == "example"
    assert found["project"] == {"projectId": "example-project", "numericProjectId": 123456789012}
    assert [key.split()[-1] for key in found["public-keys"]] == ["one", "two", "three"]
    assert all(key.startswith("ssh-ed25519 ") for key in found["public-keys"])
    assert not found.keys() & {
        "partnerAttributes",
        "attributes",
        "guestAttributes",
        "networkInterfaces",
    }


def test_service_accounts_are_shown_without_tokens() -> None:
    whole: Any = document("gcp", "one")
    whole["instance"]["serviceAccounts"]["default"]["token"] = {"access_token": "SECRET"}
    found = read("gcp", whole).system
    assert found["serviceAccounts"] == {
        "default": {
            "aliases": ["default"],
            "email": "123456789012-compute@developer.gserviceaccount.com",
            "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
        }
    }
    assert found["virtualClock"] == {"driftToken": "0"}
    assert {"description", "disks", "scheduling"} <= found.keys()


def test_instance_may_block_the_projects_keys() -> None:
    whole: Any = document("gcp", "one")
    whole["instance"]["attributes"]["block-project-ssh-keys"] = "TRUE"
    assert [key.split()[-1] for key in read("gcp", whole).system["public-keys"]] == ["one", "two"]


def test_legacy_ssh_keys_attribute_is_read() -> None:
    whole: Any = document("gcp", "one")
    whole["instance"]["attributes"] = {"sshKeys": "user:ssh-rsa AAAA old", "ssh-keys": "user:ssh-rsa BBBB new"}
    whole["project"]["attributes"] = {"sshKeys": "user:ssh-rsa CCCC project"}
    keys = read("gcp", whole).system["public-keys"]
    assert keys == ["ssh-rsa AAAA old", "ssh-rsa BBBB new", "ssh-rsa CCCC project"]


def test_refresh_is_one_request(server: Server, provider: Gcp) -> None:
    assert provider.fetch() == provider.fetch()
    assert server.paths == ["/computeMetadata/v1/?recursive=true&alt=json"] * 2
    assert server.asked[0].headers["metadata-flavor"] == "Google"


def test_answer_without_the_flavor_is_an_error(server: Server, provider: Gcp) -> None:
    server.answer = lambda _: Answer(200, ONE)
    with pytest.raises(MetadataError, match="Metadata-Flavor"):
        provider.fetch()
    assert not provider.is_reachable()
    with pytest.raises(MetadataError, match="Metadata-Flavor"):
        provider.wait_for_change()


def test_busy_server_is_there(server: Server, provider: Gcp) -> None:
    assert provider.is_reachable()
    server.answer = lambda _: Answer(503, "", {"Retry-After": "3"})
    assert provider.is_reachable()
    with pytest.raises(MetadataError, match="HTTP 503") as caught:
        provider.fetch()
    assert caught.value.retry_after == 3.0


def test_credentials_are_tokens_of_the_accounts(server: Server, provider: Gcp) -> None:
    tokens = "/computeMetadata/v1/instance/service-accounts/"
    server.answer = lambda path: Answer(200, "default/\n" if path == tokens else '{"access_token": "abc"}', GOOGLES)
    assert provider.credentials() == {"instance/service-accounts/default/token": {"access_token": "abc"}}
    server.answer = lambda path: Answer(200, "../\n", GOOGLES)
    with pytest.raises(MetadataError, match="a service account"):
        provider.credentials()
    server.answer = lambda _: Answer(404, "", GOOGLES)
    assert provider.credentials() == {}


# Waiting


def test_wait_ends_with_a_change_and_misses_none(cloud: Changing, server: Server, provider: Gcp) -> None:
    provider.fetch()
    cloud.etag = "e2"  # between the read and the wait
    assert provider.wait_for_change()
    cloud.changes.put("e3")
    assert provider.wait_for_change()
    provider.fetch()
    assert ["last_etag=e1" in path or "last_etag=e2" in path for path in server.paths] == [False, True, True, False]


def test_wait_without_a_change_returns_false(cloud: Changing, provider: Gcp) -> None:
    provider.fetch()
    cloud.changes.put("e1")  # time is up
    assert not provider.wait_for_change()


def test_first_answer_is_a_change(provider: Gcp) -> None:
    assert provider.wait_for_change()


@pytest.mark.parametrize("etag", ["", "a b", "x&y=z", "a#b", "a" * 300])
def test_unusable_etag_is_an_error(server: Server, provider: Gcp, etag: str) -> None:
    server.answer = lambda _: Answer(200, ONE, GOOGLES | {"ETag": etag})
    with pytest.raises(MetadataError, match="ETag"):
        provider.wait_for_change()


def watch(provider: WatchingProvider) -> queue.Queue[None]:
    """Return a queue of the reported changes."""
    changes: queue.Queue[None] = queue.Queue()
    threading.Thread(target=watch_metadata, args=(provider, lambda: changes.put(None)), daemon=True).start()
    return changes


@pytest.mark.exhaustive
def test_change_is_reported_and_failure_tried_again(cloud: Changing, server: Server, provider: Gcp) -> None:
    assert isinstance(provider, WatchingProvider)
    provider.fetch()
    reported = watch(provider)
    for etag in ("e2", "e3"):
        cloud.changes.put(etag)
        reported.get(timeout=20)
        provider.fetch()
    server.answer = lambda _: Answer(500, "")
    cloud.changes.put(cloud.etag)  # ends the current wait
    asked = len(server.asked)
    while len(server.asked) < asked + 2:
        time.sleep(0.01)
    cloud.etag = "e4"
    server.answer = cloud
    reported.get(timeout=20)


class Refusing:
    """A provider whose server refuses at once: three times by itself, then with a Retry-After, then for ever."""

    def __init__(self) -> None:
        self.answers, self.thread = [0.0, 0.0, 0.0, 17.0, 1e9], 0

    def wait_for_change(self) -> bool:
        self.thread = threading.get_ident()
        if not self.answers:
            threading.Event().wait()
        raise MetadataError("status", "HTTP 503", self.answers.pop(0))


def test_refusing_server_is_asked_with_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the time that the server gave, and with an upper limit."""
    refusing, slept, sleep = Refusing(), queue.Queue[float](), time.sleep

    def note(seconds: float) -> None:
        if threading.get_ident() == refusing.thread:
            slept.put(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", note)
    watch(refusing)
    delays = [slept.get(timeout=20) for _ in range(5)]
    expected = [0.1, 0.2, 0.4, 17.0, 300.0]
    assert all(0.75 * about <= delay <= 1.25 * about for delay, about in zip(delays, expected, strict=True)), delays
