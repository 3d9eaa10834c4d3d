"""The metadata server behaves like Alibaba's, and the gateway has Alibaba's address."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.curl import ask

META = "/latest/meta-data"
MACS = f"{META}/network/interfaces/macs"
TOKEN = "X-aliyun-ecs-metadata-token"


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    ranges = ("10.0.2.64/28", "2001:db8:0:2:1::/80")
    second = Interface("10.0.2.0/24", 1, ipv6=2, prefixes=ranges, subnet6="2001:db8:0:2::/64")
    interfaces = (Interface("10.0.1.0/24", 3, public=1), second)
    with Lab(Spec(interfaces, provider="alibaba")) as made:
        yield made


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.metadata.configure(hardened=False, role="lab-role", user_data=None)


def test_leaves_have_the_values_of_the_interface(lab: Lab) -> None:
    first, second = lab.nics
    expected = {
        f"{first.mac}/private-ipv4s": '["10.0.1.10","10.0.1.11","10.0.1.12"]',
        f"{first.mac}/primary-ip-address": "10.0.1.10",
        f"{first.mac}/netmask": "255.255.255.0",
        f"{first.mac}/gateway": "10.0.1.253",
        f"{first.mac}/vswitch-cidr-block": "10.0.1.0/24",
        f"{second.mac}/ipv4-prefixes": "10.0.2.64/28",
        f"{second.mac}/ipv6-prefixes": "2001:db8:0:2:1::/80",
        f"{second.mac}/ipv6s": "[2001:db8:0:2::a,2001:db8:0:2::b]",
        f"{second.mac}/ipv6-gateway": "2001:db8:0:2:ffff:ffff:ffff:fff7",
        f"{second.mac}/vswitch-ipv6-cidr-block": "2001:db8:0:2::/64",
    }
    assert {path: ask(lab, f"{MACS}/{path}").body for path in expected} == expected


def test_inapplicable_keys_are_absent(lab: Lab) -> None:
    first = lab.nics[0].mac
    assert not [key for key in ask(lab, f"{MACS}/{first}/").body.split() if "ipv6" in key or "prefixes" in key]
    assert ask(lab, f"{MACS}/{first}/ipv6s").status == 404
    assert ask(lab, f"{META}/nothing").status == 404
    assert set(ask(lab, f"{MACS}/").body.split()) == {f"{nic.mac}/" for nic in lab.nics}
    assert ask(lab, "/").body.split() == ["2016-01-01", "latest"]
    assert ask(lab, f"{META}/eipv4").body == "203.0.113.1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((f"{TOKEN}-ttl-seconds: 21600",), 200),
        ((f"{TOKEN}-ttl-seconds: 21700",), 400),
        ((), 400),
        ((f"{TOKEN}-ttl-seconds: 60", "X-Forwarded-For: 10.0.0.1"), 403),
    ],
)
def test_token_needs_a_valid_lifetime(lab: Lab, headers: tuple[str, ...], status: int) -> None:
    assert ask(lab, "/latest/api/token", *headers, method="PUT").status == status


def test_hardened_mode_wants_a_token_and_no_mode_a_wrong_one(lab: Lab) -> None:
    assert ask(lab, f"{META}/mac").status == 200
    assert ask(lab, f"{META}/mac", f"{TOKEN}: aaa").status == 401
    lab.metadata.configure(hardened=True)
    assert ask(lab, f"{META}/mac").status == 401
    token = ask(lab, "/latest/api/token", f"{TOKEN}-ttl-seconds: 60", method="PUT").body
    assert ask(lab, f"{META}/mac", f"{TOKEN}: {token}").body == lab.nics[0].mac
    lab.metadata.expire_tokens()
    assert ask(lab, f"{META}/mac", f"{TOKEN}: {token}").status == 401


def test_the_gateway_is_the_third_address_from_the_end(lab: Lab) -> None:
    assert "default via 10.0.1.253" in lab.run(["ip", "route"]).stdout
    assert all(lab.reachability(["10.0.1.10"]).values())
    second = lab.nics[1]
    lab.batch([f"link set {second.name} up", f"address add {second.ipv6[0]}/64 dev {second.name} nodad"])
    router = "2001:db8:0:2:ffff:ffff:ffff:fff7"
    lab.run(["curl", "-sgm", "10", f"http://[{router}]:9/"], check=False)
    assert "lladdr 02:00:00:00:fe:02 router" in lab.run(["ip", "-6", "neigh", "show", router]).stdout
