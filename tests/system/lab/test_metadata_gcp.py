"""The metadata server behaves like Google's, and the network around it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.curl import Answer, ask

ROOT = "/computeMetadata/v1"
NICS = f"{ROOT}/instance/network-interfaces/"
WATCH = f"{ROOT}/?recursive=true&wait_for_change=true&last_etag="


def get(lab: Lab, path: str) -> Answer:
    return ask(lab, path, "Metadata-Flavor: Google")


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    ranges = ("10.0.2.64/28", "203.0.113.200/32", "2001:db8:0:2:1::/96")
    interfaces = (Interface("10.0.1.0/24", 2, public=1), Interface("10.0.2.0/24", 1, ipv6=1, prefixes=ranges))
    with Lab(Spec(interfaces, provider="gcp")) as made:
        yield made


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.metadata.clear()
    shared.metadata.configure(flavor=True, target_instance=False)


def test_one_document_has_everything(lab: Lab) -> None:
    answer = get(lab, f"{ROOT}/?recursive=true")
    assert (answer.headers["metadata-flavor"], answer.headers["content-type"]) == ("Google", "application/json")
    assert set(answer.json) == {"instance", "project"}
    one, other = answer.json["instance"]["networkInterfaces"]
    assert (one["ip"], one["ipAliases"], one["mac"]) == ("10.0.1.10", ["10.0.1.11/32"], lab.nics[0].mac)
    assert (one["gateway"], one["subnetmask"], one["mtu"]) == ("10.0.1.1", "255.255.255.0", 1460)
    assert one["accessConfigs"] == [{"externalIp": "203.0.113.1", "type": "ONE_TO_ONE_NAT"}]
    assert "ipv6s" not in one
    assert (other["ipAliases"], other["forwardedIps"]) == (["10.0.2.64/28"], ["203.0.113.200"])
    assert (other["ipv6s"], other["gatewayIpv6"]) == (list(lab.nics[1].ipv6), "fe80::1")
    assert other["forwardedIpv6s"] == ["2001:db8:0:2:1::/96"]


def test_forwarded_address_can_belong_to_a_target_instance(lab: Lab) -> None:
    lab.metadata.configure(target_instance=True)
    nic = get(lab, f"{NICS}1/?recursive=true").json
    assert (nic["forwardedIps"], nic["targetInstanceIps"]) == ([], ["203.0.113.200"])


def test_paths_have_dashes(lab: Lab) -> None:
    assert get(lab, NICS).body.split() == ["0/", "1/"]
    assert "ip-aliases/" in get(lab, f"{NICS}0/").body.split()
    assert get(lab, f"{NICS}0/ip-aliases/").body.split() == ["10.0.1.11/32"]
    assert get(lab, f"{NICS}0/ip").body == "10.0.1.10"
    assert get(lab, f"{NICS}0/access-configs/0/external-ip").body == "203.0.113.1"
    assert get(lab, f"{ROOT}/project/attributes/ssh-keys").body.startswith("lab:ssh-ed25519 ")
    assert get(lab, f"{NICS}0").status == 301
    assert get(lab, f"{NICS}7/").status == 404


def test_request_without_the_metadata_flavor_is_refused(lab: Lab) -> None:
    assert ask(lab, NICS).status == 403
    assert ask(lab, NICS, "Metadata-Flavor: Google", "X-Forwarded-For: 10.0.0.1").status == 403
    lab.metadata.configure(flavor=False)
    assert "metadata-flavor" not in get(lab, NICS).headers


def test_the_etag_is_that_of_the_part(lab: Lab) -> None:
    def etags() -> tuple[str, str]:
        return get(lab, f"{NICS}?recursive=true").headers["etag"], get(lab, f"{ROOT}/project/").headers["etag"]

    before = etags()
    assert etags() == before
    lab.add_address(lab.nics[0].mac, "10.0.1.50")
    after = etags()
    lab.remove_address(lab.nics[0].mac, "10.0.1.50")
    assert (after[0] == before[0], after[1] == before[1]) == (False, True)
    assert etags() == before


class Waiting(threading.Thread):
    def __init__(self, question: Callable[[], Answer]) -> None:
        super().__init__()
        self._question = question
        self.answers: list[Answer] = []
        self.start()

    def run(self) -> None:
        self.answers.append(self._question())


def test_a_long_poll_answers_at_the_change_and_not_before(lab: Lab) -> None:
    etag = get(lab, f"{ROOT}/?recursive=true").headers["etag"]
    waiting = Waiting(lambda: get(lab, f"{WATCH}{etag}&timeout_sec=15"))
    lab.wait_for(lambda: lab.metadata.waiting() == 1, message="the poll")
    lab.metadata.load(lab.nics)  # unchanged
    assert lab.metadata.waiting() == 1
    assert waiting.answers == []
    lab.add_address(lab.nics[0].mac, "10.0.1.50")
    waiting.join(10)
    [answer] = waiting.answers
    assert "10.0.1.50/32" in json.dumps(answer.json)
    assert answer.headers["etag"] != etag
    assert lab.metadata.waiting() == 0
    lab.remove_address(lab.nics[0].mac, "10.0.1.50")


def test_long_poll_answers_for_an_old_etag_and_at_its_timeout(lab: Lab) -> None:
    etag = get(lab, f"{ROOT}/?recursive=true").headers["etag"]
    assert get(lab, f"{WATCH}0&timeout_sec=300").headers["etag"] == etag
    lab.metadata.reset()
    assert get(lab, f"{WATCH}{etag}&timeout_sec=1").headers["etag"] == etag
    [record] = lab.metadata.requests()
    assert "timeout_sec=1" in record.query


def test_a_fault_can_apply_to_the_long_poll_only(lab: Lab) -> None:
    lab.metadata.fail("status", "*wait_for_change=true*", status=503)
    assert get(lab, f"{WATCH}0").status == 503
    assert get(lab, f"{ROOT}/?recursive=true").status == 200


def test_without_an_etag_a_long_poll_waits_for_the_next_change(lab: Lab) -> None:
    waiting = Waiting(lambda: get(lab, f"{NICS}?recursive=true&wait_for_change=true"))
    lab.wait_for(lambda: lab.metadata.waiting() == 1, message="the poll")
    lab.add_range(lab.nics[0].mac, "10.0.1.64/28")
    waiting.join(10)
    assert "10.0.1.64/28" in waiting.answers[0].json[0]["ipAliases"]
    lab.remove_range(lab.nics[0].mac, "10.0.1.64/28")


def test_dhcp_gives_a_mask_of_32_and_the_gateway_on_link(lab: Lab) -> None:
    routes = json.loads(lab.run(["ip", "-j", "route"]).stdout)
    assert [(route["dst"], route.get("gateway"), route["protocol"]) for route in routes] == [
        ("default", "10.0.1.1", "dhcp"),
        ("10.0.1.1", None, "dhcp"),
    ]
    [link] = json.loads(lab.run(["ip", "-j", "address", "show", "eth1"]).stdout)
    assert (link["mtu"], link["addr_info"][0]["prefixlen"]) == (1460, 32)
    assert all(lab.reachability(["10.0.1.10"]).values())


def test_forwarded_addresses_arrive_at_their_interface() -> None:
    with Lab(Spec.cloud("gcp", interfaces=1, addresses=3, ipv6=2)) as lab:
        [nic] = lab.nics
        assert len(nic.ipv6) == 1
        assert ask(lab, f"{ROOT}/", "Metadata-Flavor: Google", address="fd20:ce::254").status == 200
        lab.add_range(nic.mac, "203.0.113.200/32")
        wanted = ["203.0.113.200", *nic.addresses[1:]]
        lab.batch([f"route add local {address}/32 dev eth0 proto 66" for address in wanted])
        assert all(lab.reachability([*wanted, *nic.ipv6]).values()), lab.lost()
        assert all(lab.outbound(addresses=[*wanted, *nic.ipv6]).values())
        assert lab.lost() == []
