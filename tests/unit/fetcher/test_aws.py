"""EC2's metadata → Instance, from the lab's metadata server over a real connection."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers.aws import Aws

from tests.lab import Interface
from tests.lab.metadata.in_process import InProcess as Cloud
from tests.unit.fetcher.emulated import read, settled

TOKEN = "/latest/api/token"
MACS = "/latest/meta-data/network/interfaces/macs/"
MAC = "02:00:00:00:00:01"


@pytest.fixture
def aws(client: Client) -> Aws:
    return Aws(client)


def leaf(aws: Aws, key: str, device: int = 0) -> str:
    """Return the path of one interface's key."""
    found = next(each for each in aws.fetch().interfaces if each.device_number == device)
    return f"{MACS}{found.mac}/{key}"


def refused(aws: Aws, *parts: str) -> MetadataError:
    with pytest.raises(MetadataError) as caught:
        aws.fetch()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    return caught.value


def parsed(tree: dict[str, str]) -> Instance:
    """Return the instance whose only interface has these leaves."""
    whole = {"mac": MAC, "vpc-id": "vpc-1"} | tree
    return read("aws", {"meta-data": {"network": {"interfaces": {"macs": {MAC: whole}}}}})


# — the tree of one interface

TREE = {
    "mac": "02:00:00:00:00:01",
    "device-number": "1",
    "local-ipv4s": "10.0.1.10\n10.0.1.11",
    "subnet-ipv4-cidr-block": "10.0.1.0/24",
    "ipv6s": "fd00::a",
    "subnet-ipv6-cidr-blocks": "fd00::/64",
    "ipv4-prefix": "10.0.1.16/28\n10.0.1.32/28",
    "ipv6-prefix": "fd00::1:0/112",
    "public-ipv4s": "203.0.113.1",
}


def test_every_part_of_an_interface_is_read() -> None:
    (found,) = parsed(TREE).interfaces
    assert [str(address) for address in found.addresses] == ["10.0.1.10/24", "10.0.1.11/24", "fd00::a/64"]
    assert found.subnets == (ip_network("10.0.1.0/24"), ip_network("fd00::/64"))
    assert found.gateways == (ip_address("10.0.1.1"),)  # the IPv6 gateway comes from the router
    assert [str(network) for network in found.ranges] == ["10.0.1.16/28", "10.0.1.32/28", "fd00::1:0/112"]
    assert (found.device_number, found.public, found.mtu) == (1, (ip_address("203.0.113.1"),), None)


def test_interface_may_have_no_ipv4_and_no_number() -> None:
    (found,) = parsed({key: TREE[key] for key in ("ipv6s", "subnet-ipv6-cidr-blocks")}).interfaces
    assert ([str(address) for address in found.addresses], found.device_number) == (["fd00::a/64"], None)


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("local-ipv4s", "8.8.8.8", "8.8.8.8"),
        ("local-ipv4s", "10.0.1.10\n999.1.1.1", "999.1.1.1"),
        ("local-ipv4s", "127.0.0.1", "127.0.0.1"),
        ("local-ipv4s", "10.0.1.1\n10.0.1.10", "10.0.1.1 is both an address of the interface and its gateway"),
        ("local-ipv4s", "10.0.1.255", "broadcast"),
        ("subnet-ipv4-cidr-block", "0.0.0.0/0", "0.0.0.0/0"),
        ("device-number", "-1", "-1"),
        ("device-number", "\u0663", "0..99999"),
        ("network-card", "-1", "network-card: '-1' is not 0..99999"),
        ("ipv6s", "fe80::1", "fe80::1"),
        ("ipv4-prefix", "10.0.2.0/28", "10.0.2.0/28"),
        ("ipv4-prefix", "10.0.0.0/16", "10.0.0.0/16"),
        ("public-ipv4s", "none", "none"),
    ],
)
def test_wrong_part_is_reported_and_the_rest_used(key: str, text: str, shown: str) -> None:
    found = parsed(TREE | {key: text})
    assert found.unproven == {MAC}
    assert any(shown in problem.text and f"macs/{MAC}/" in problem.text for problem in found.problems)
    assert len(found.interfaces[0].addresses) >= 1


def test_subnet_with_host_bits_or_too_short_keeps_the_addresses() -> None:
    whole = parsed(TREE | {"subnet-ipv4-cidr-block": "10.0.1.5/24"})
    assert (whole.interfaces[0].subnets[0], whole.complete) == (ip_network("10.0.1.0/24"), True)
    short = parsed(TREE | {"subnet-ipv6-cidr-blocks": "fd00::/24", "ipv6-prefix": ""})
    assert "fd00::a/128" in map(str, short.interfaces[0].addresses)
    assert not short.complete


def test_efa_only_interface_is_a_notice(cloud: Cloud, aws: Aws) -> None:
    """The notice stays for the lifetime of the instance; the others' addresses can still change."""
    directory = leaf(aws, "", device=1)
    cloud.content(directory, "device-number\ninterface-id\nmac\nvpc-id\nvpc-ipv4-cidr-block\n")
    found = aws.fetch()
    assert ([each.device_number for each in found.interfaces], found.problems, found.may_remove) == ([0], (), True)
    where = directory.removeprefix("/latest/meta-data/")
    assert found.notices == (f"{where}: no address (an EFA-only interface); nothing is configured",)


def test_listing_cut_short_is_no_proof(cloud: Cloud, aws: Aws) -> None:
    before = aws.fetch()
    directory = leaf(aws, "", device=1)
    cloud.content(directory, "device-number\nmac\n")  # an incomplete listing
    found = aws.fetch()
    mac = next(each.mac for each in before.interfaces if each.device_number == 1)
    assert found.unproven == {mac}
    assert {each.mac: each.addresses for each in found.with_known(before).interfaces}[mac]


def test_interfaces_listed_without_slashes_are_read(cloud: Cloud, aws: Aws) -> None:
    before = aws.fetch()
    cloud.content(MACS, "\n".join(each.mac for each in before.interfaces))
    assert aws.fetch() == before


@pytest.mark.parametrize("upper_first", [True, False])
def test_mac_listed_twice_is_read_once(cloud: Cloud, aws: Aws, upper_first: bool) -> None:
    [first, *_] = nics = list(cloud.load(Interface("10.0.1.0/24", 2), Interface("10.0.2.0/24", 2)))
    again = replace(first, mac=first.mac.upper(), device=7)
    cloud.serve([again, *nics] if upper_first else [*nics, again])
    found = aws.fetch()
    assert sorted(each.mac for each in found.interfaces) == sorted(each.mac for each in nics)
    assert first.mac in {problem.mac for problem in found.problems}


def test_empty_leaf_affects_no_other_value(cloud: Cloud, aws: Aws) -> None:
    cloud.load(Interface("10.0.1.0/24", 3, ipv6=1), Interface("10.0.2.0/24", 3))
    cloud.content(leaf(aws, "ipv6s"), "")
    found = aws.fetch()
    assert [len(each.addresses) for each in found.interfaces] == [3, 3]
    assert "ipv6s: is listed but empty" in found.problems[0].text


def test_unreadable_subnet_keeps_its_addresses(cloud: Cloud, aws: Aws) -> None:
    before = aws.fetch()
    cloud.fail("status", leaf(aws, "subnet-ipv4-cidr-block", device=1))
    found = aws.fetch()
    assert [each.device_number for each in found.interfaces] == [0]
    assert set(found.with_known(before).interfaces) == set(before.interfaces)


# — the whole instance


def test_instance_is_what_the_cloud_has(cloud: Cloud, aws: Aws) -> None:
    nics = cloud.load(
        Interface("10.0.1.0/24", 15), Interface("10.0.2.0/24", 2, ipv6=("fd00:2::a",), prefixes=("10.0.2.64/28",))
    )
    found = {each.mac: each for each in aws.fetch().interfaces}
    assert set(found) == {nic.mac for nic in nics}
    for nic in nics:
        one = found[nic.mac]
        assert [str(address.ip) for address in one.addresses] == [*nic.addresses, *nic.ipv6]
        assert [str(network) for network in one.ranges] == list(nic.prefixes)
        assert one.device_number == nic.device


def test_facts_wait_until_a_change_of_the_network_is_applied(cloud: Cloud, aws: Aws) -> None:
    aws.fetch()
    assert not any("ami-id" in record.path for record in cloud.requests())
    assert aws.pending_facts
    assert settled(aws).system["ami-id"].startswith("ami-")


def test_facts_are_read_although_each_read_finds_a_change(cloud: Cloud, aws: Aws) -> None:
    for count in range(2, 12):
        cloud.load(Interface("10.0.1.0/24", count))
        found = aws.fetch()
    assert found.system["ami-id"].startswith("ami-")


def test_facts_are_read_over_several_refreshes(cloud: Cloud, aws: Aws) -> None:
    system = settled(aws).system
    assert system["instance-id"].startswith("i-")
    assert system["placement"]["region"] == "eu-central-1"
    assert system["local-ipv4"] == "10.0.1.10"
    assert set(settled(aws).identity) == {"document", "pkcs7", "signature", "rsa2048"}
    cloud.reset()
    again = aws.fetch()
    assert (again.system, aws.pending_facts) == (system, False)
    assert not any("ami-id" in record.path for record in cloud.requests())


def test_facts_of_the_go_original_are_read(cloud: Cloud, aws: Aws) -> None:
    (nic, *_) = cloud.load(Interface("10.0.1.0/24", 4, public=2))
    found = settled(aws)
    assert found.system["ami-manifest-path"] == "(unknown)"
    assert found.system["events"]["maintenance"] == {"history": "[]", "scheduled": "[]"}
    document = found.interfaces[0].document
    names = {"owner-id", "subnet-id", "vpc-id", "security-groups", "security-group-ids", "local-hostname"}
    assert names <= document.keys()
    assert document["ipv4-associations"] == {public: private for private, public in nic.public.items()}


def test_facts_are_bounded_together(cloud: Cloud, aws: Aws) -> None:
    for key in ("ami-id", "instance-type", "hostname"):
        cloud.content(f"/latest/meta-data/{key}", "x" * 300_000)
    system = settled(aws).system
    assert sum(len(str(text)) for text in system.values()) < 1 << 19
    assert system["instance-id"].startswith("i-")


def test_events_are_read_again(cloud: Cloud, client: Client) -> None:
    now = 0.0
    aws = Aws(client, clock=lambda: now)
    before = settled(aws).system["events"]
    cloud.content("/latest/meta-data/events/maintenance/scheduled", '[{"Code": "system-reboot"}]')
    assert settled(aws).system["events"] == before
    now = 3601.0
    assert "system-reboot" in settled(aws).system["events"]["maintenance"]["scheduled"]


def test_ipv6_only_instance_shows_no_ipv4_address(cloud: Cloud, aws: Aws) -> None:
    directory = leaf(aws, "", device=0)
    cloud.content(directory, "device-number\nipv6s\nmac\nsubnet-ipv6-cidr-blocks\nvpc-id\n")
    cloud.content(f"{directory}ipv6s", "fd00::a")
    cloud.content(f"{directory}subnet-ipv6-cidr-blocks", "fd00::/64")
    found = settled(aws)
    assert found.complete
    assert "local-ipv4" not in found.system
    assert found.system["mac"] == found.interfaces[0].mac


def test_facts_stay_while_they_are_read_again(cloud: Cloud, aws: Aws) -> None:
    """A new address can have another public name; until it is read, the old one is shown."""
    before = settled(aws)
    nics = cloud.load(Interface("10.0.1.0/24", 4, public=2), Interface("10.0.2.0/24", 3))
    during = aws.fetch()
    assert aws.pending_facts
    assert during.system.keys() == before.system.keys()
    assert "public-hostname" in during.interfaces[0].document
    assert settled(aws).system["public-ipv4"] == next(iter(nics[0].public.values()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["status", "html", "truncated", "reset"])
def test_unreadable_fact_affects_no_other_fact(cloud: Cloud, aws: Aws, fault: str) -> None:
    cloud.fail(fault, "/latest/meta-data/ami-id")
    for _ in range(8):
        found = aws.fetch()
    assert "ami-id" not in found.system
    assert {"instance-id", "profile", "public-keys"} <= found.system.keys()
    assert not aws.pending_facts  # no reason to read again soon
    cloud.clear()
    assert settled(aws).system["ami-id"].startswith("ami-")


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [1, 2, 4, pytest.param(15, marks=pytest.mark.exhaustive)])
def test_refresh_stays_within_its_allowance(cloud: Cloud, aws: Aws, count: int) -> None:
    """This includes the check whether the server still answers, and a session that expires in between."""
    full = [Interface(f"10.0.{n}.0/24", 15, 1, (f"fd00:{n}::a",), (f"10.0.{n}.128/28",)) for n in range(1, count + 1)]
    cloud.load(*full)
    passes = 0
    while passes < 3 or aws.pending_facts:
        cloud.reset()
        aws.fetch()
        assert aws.is_reachable()
        assert len(cloud.requests()) <= 5 + 12 * count
        passes += 1
        cloud.expire_tokens()
    assert cloud.connections() == 0  # since the last reset: the connection is reused


def test_each_path_is_asked_for_once(cloud: Cloud, aws: Aws) -> None:
    settled(aws)
    cloud.reset()
    aws.fetch()
    paths = [record.path for record in cloud.requests()]
    assert len(paths) == len(set(paths))


# — incomplete answers


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
@pytest.mark.parametrize("path", ["macs/", "macs/*/", "macs/*/local-ipv4s"])
def test_error_status_everywhere_ends_the_read(cloud: Cloud, aws: Aws, status: int, path: str) -> None:
    cloud.fail("status", f"/latest/meta-data/network/interfaces/{path}", status=status)
    refused(aws, "network/interfaces/macs/", f"HTTP {status}")


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_gets_no_further_requests(cloud: Cloud, aws: Aws, status: int) -> None:
    path = leaf(aws, "local-ipv4s")
    cloud.fail("status", path, status=status, retry_after=7)
    cloud.reset()
    assert refused(aws, f"HTTP {status}").retry_after == 7
    assert cloud.requests()[-1].path == path


def test_404_of_the_list_of_interfaces_ends_the_read(cloud: Cloud, aws: Aws) -> None:
    cloud.fail("status", MACS, status=404)
    refused(aws, "network/interfaces/macs/: HTTP 404")


@pytest.mark.parametrize(
    ("fault", "message"), [("html", "HTML page"), ("empty", "no interface"), ("truncated", "bytes")]
)
def test_wrong_list_of_interfaces_ends_the_read(cloud: Cloud, aws: Aws, fault: str, message: str) -> None:
    cloud.fail(fault, MACS)
    refused(aws, "network/interfaces/macs/", message)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("fault", "key", "message"),
    [
        ("html", "local-ipv4s", "local-ipv4s: the answer is an HTML page"),
        ("empty", "local-ipv4s", "local-ipv4s: is listed but empty"),
        ("empty", "subnet-ipv4-cidr-block", "subnet-ipv4-cidr-block: is listed but empty"),
        ("status", "subnet-ipv4-cidr-block", "subnet-ipv4-cidr-block: HTTP 500"),
        ("html", "device-number", "device-number: the answer is an HTML page"),
        ("empty", "", "no 'mac'"),
        ("html", "", "HTML page"),
    ],
)
def test_problem_of_one_interface_stops_no_other(cloud: Cloud, aws: Aws, fault: str, key: str, message: str) -> None:
    before = aws.fetch()
    path = leaf(aws, key, device=1)
    cloud.fail(fault, path)
    found = aws.fetch()
    assert before.interfaces[0] in found.interfaces
    assert any(message in problem.text for problem in found.problems)
    assert all(problem.mac in path for problem in found.problems)
    assert len(found.unproven) == 1
    cloud.clear()
    assert aws.fetch().complete


def test_leaf_that_is_listed_and_missing_is_no_proof(cloud: Cloud, aws: Aws) -> None:
    """EC2 answers 404 both for an absent value and for a temporarily unavailable one."""
    cloud.fail("status", leaf(aws, "local-ipv4s"), status=404, times=1)
    [problem] = aws.fetch().problems
    assert "local-ipv4s: HTTP 404" in problem.text
    assert aws.fetch().complete


def test_interface_gone_while_read_is_no_proof(cloud: Cloud, aws: Aws) -> None:
    cloud.content(MACS, "02:00:00:00:00:99/\n" + "\n".join(f"{each.mac}/" for each in aws.fetch().interfaces))
    [problem] = aws.fetch().problems
    assert problem.mac == "02:00:00:00:00:99"


def test_moved_address_needs_two_equal_reads(cloud: Cloud, aws: Aws) -> None:
    nics = list(
        cloud.load(Interface("10.0.1.0/24", ("10.0.1.10", "10.0.1.11")), Interface("10.0.1.0/24", ("10.0.1.20",)))
    )
    nics[1] = replace(nics[1], addresses=("10.0.1.20", "10.0.1.11"))
    cloud.serve(nics)
    for _ in range(2):  # a move back is a new move
        assert refused(aws, "10.0.1.11 is on more than one interface").kind == "changed"
        assert len(aws.fetch().interfaces[1].addresses) == 2
        assert aws.fetch().complete
        cloud.serve([nics[0], replace(nics[1], addresses=("10.0.1.20",))])
        aws.fetch()
        cloud.serve(nics)


# — the session


def methods(cloud: Cloud) -> list[tuple[str, int]]:
    return [
        (record.method, record.status) for record in cloud.requests() if record.method != "GET" or record.status != 200
    ]


@pytest.mark.parametrize("status", [404, 405])
def test_version_1_is_used_without_tokens(cloud: Cloud, aws: Aws, status: int) -> None:
    cloud.fail("status", TOKEN, status=status)
    assert aws.fetch().complete
    aws.fetch()
    assert [each for each in methods(cloud) if each[0] == "PUT"] == [("PUT", status)]


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
def test_no_other_answer_leads_to_version_1(cloud: Cloud, aws: Aws, status: int) -> None:
    """A throttled or firewalled token server must not make the provider send requests that anyone can forge."""
    cloud.fail("status", TOKEN, status=status)
    refused(aws, "/latest/api/token", f"HTTP {status}")
    assert {record.method for record in cloud.requests()} == {"PUT"}


@pytest.mark.parametrize("fault", ["html", "empty", "truncated", "reset"])
def test_invalid_token_is_an_error(cloud: Cloud, aws: Aws, fault: str) -> None:
    cloud.fail(fault, TOKEN)
    refused(aws, "/latest/api/token")
    assert {record.method for record in cloud.requests()} == {"PUT"}


def test_version_2_asks_for_one_token(cloud: Cloud, aws: Aws) -> None:
    cloud.configure(v1=False)
    assert settled(aws).complete
    assert methods(cloud).count(("PUT", 200)) == 1


def test_forgotten_token_is_renewed_once(cloud: Cloud, aws: Aws) -> None:
    settled(aws)
    cloud.expire_tokens()
    cloud.reset()
    assert aws.fetch().complete
    assert [(record.method, record.status) for record in cloud.requests()[:3]] == [
        ("GET", 401),
        ("PUT", 200),
        ("GET", 200),
    ]
    assert sum(record.method == "PUT" for record in cloud.requests()) == 1


def test_server_that_takes_no_token_is_asked_twice(cloud: Cloud, aws: Aws) -> None:
    cloud.fail("status", "/latest/meta-data/*", status=401)
    refused(aws, "HTTP 401")
    assert [record.method for record in cloud.requests()] == ["PUT", "GET", "PUT", "GET"]


def test_token_is_renewed_before_it_expires(cloud: Cloud, client: Client) -> None:
    now = 1.0
    aws = Aws(client, clock=lambda: now)
    settled(aws)
    cloud.reset()
    for hours, renewals in ((5, 0), (5.5, 1), (6, 1)):
        now = hours * 3600
        aws.fetch()
        assert sum(record.method == "PUT" for record in cloud.requests()) == renewals
    assert all(record.status != 401 for record in cloud.requests())


def test_version_2_follows_when_version_1_is_off(cloud: Cloud, aws: Aws) -> None:
    cloud.fail("status", TOKEN, status=405, times=1)
    assert aws.fetch().complete
    cloud.configure(v1=False)
    assert aws.fetch().complete


# — availability, and secrets


@pytest.mark.parametrize(
    ("fault", "status", "expected"),
    [("html", 200, False), ("reset", 200, False), ("status", 404, False), ("status", 503, True), ("status", 429, True)],
)
def test_busy_server_answers_and_a_portal_does_not(
    cloud: Cloud, aws: Aws, fault: str, status: int, expected: bool
) -> None:
    assert aws.is_reachable()
    cloud.fail(fault, "/latest/meta-data/", status=status)
    assert aws.is_reachable() == expected


@pytest.mark.parametrize("fault", ["empty", "html"])
def test_one_wrong_answer_does_not_mean_a_lost_server(cloud: Cloud, aws: Aws, fault: str) -> None:
    cloud.fail(fault, "/latest/meta-data/", times=1)
    assert aws.is_reachable()


def test_dead_connection_is_replaced_once(cloud: Cloud, aws: Aws) -> None:
    """Its source address may have been removed; a new connection has another one."""
    settled(aws)
    cloud.reset()
    cloud.fail("reset", "/latest/meta-data/", times=1)
    assert aws.is_reachable()
    assert cloud.connections() == 1  # a new one since the reset


def test_credentials_are_the_roles_and_the_instances(cloud: Cloud, aws: Aws) -> None:
    found = aws.credentials()
    assert set(found) == {
        "iam/security-credentials/lab-role",
        "identity-credentials/ec2/security-credentials/ec2-instance",
    }
    assert all("SECRET" in text for text in found.values())


def test_instance_without_a_role_has_its_own_credentials(cloud: Cloud, aws: Aws) -> None:
    cloud.configure(role=None)
    assert set(aws.credentials()) == {"identity-credentials/ec2/security-credentials/ec2-instance"}


def test_error_page_is_no_credential(cloud: Cloud, aws: Aws) -> None:
    cloud.fail("status", "/latest/meta-data/iam/security-credentials/lab-role", status=500)
    with pytest.raises(MetadataError, match="lab-role: HTTP 500"):
        aws.credentials()


def test_secrets_are_not_kept(cloud: Cloud, aws: Aws) -> None:
    cloud.configure(user_data="#!SECRET")
    aws.credentials()
    found = settled(aws)
    assert "SECRET" not in repr((found, found.system, found.identity, [each.document for each in found.interfaces]))
    cloud.reset()
    settled(aws)
    assert not any(word in record.path for record in cloud.requests() for word in ("credentials", "user-data", "iam"))


def test_fact_that_is_no_longer_listed_is_not_shown(cloud: Cloud, aws: Aws) -> None:
    assert "public-hostname" in settled(aws).interfaces[0].document
    cloud.load(Interface("10.0.1.0/24", 3), Interface("10.0.2.0/24", 3))
    assert "public-hostname" not in settled(aws).interfaces[0].document


def test_network_card_is_read(cloud: Cloud, aws: Aws) -> None:
    assert [each.network_card for each in aws.fetch().interfaces] == [0, 0]
    assert parsed(TREE | {"network-card": "3"}).interfaces[0].network_card == 3


def test_roles_name_may_have_a_comma(cloud: Cloud, aws: Aws) -> None:
    cloud.configure(role="lab,role+=.@-")
    assert "iam/security-credentials/lab,role+=.@-" in aws.credentials()


@pytest.mark.parametrize(
    ("document", "expected"),
    [('{"instanceId": "i-1", "accountId": "1"}', True), ('{"instanceId": "x"}', False), ("<html>", False), ("", False)],
)
def test_ec2_is_recognised_by_its_identity_document(cloud: Cloud, aws: Aws, document: str, expected: bool) -> None:
    assert aws.is_recognised()
    cloud.content("/latest/dynamic/instance-identity/document", document)
    assert aws.is_recognised() == expected


def test_ipv6_endpoint_is_the_second() -> None:
    assert Aws.endpoints == ("169.254.169.254", "[fd00:ec2::254]")
