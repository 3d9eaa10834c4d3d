"""Valid requests of a compromised fetcher for objects that it must not change, and their refusals.

The lab's primary is eth1 (10.0.1.10/24, gateway 10.0.1.1, all by DHCP); eth0 is the secondary, in 10.0.2.0/24.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import Lab
from tests.system.netagent.conftest import start
from tests.system.netagent.wire import Wire, address, audit_lines, ifindex, kernel_state, main_rule, packed, route, rule

Ops = list[dict[str, Any]]


@dataclass(frozen=True)
class Links:
    primary: int
    secondary: int
    bridge: int
    loopback: int = 1


ATTACKS: dict[str, tuple[Callable[[Links], Ops], str]] = {
    # addresses of other programs or hosts
    "the gateway's address": (lambda on: [address(on.secondary, "10.0.1.1")], "is a gateway"),
    "a resolver's address": (lambda on: [address(on.secondary, "10.0.4.2")], "is a resolver"),
    "the metadata server": (lambda on: [address(on.secondary, "169.254.169.254")], "metadata server"),
    "Alibaba's metadata server": (lambda on: [address(on.secondary, "100.100.100.200")], "metadata server"),
    "AWS's metadata server, IPv6": (lambda on: [address(on.secondary, "fd00:ec2::254/128")], "metadata server"),
    "a public address": (lambda on: [address(on.secondary, "8.8.8.8")], "neither private"),
    "a public network": (lambda on: [address(on.secondary, "203.0.113.5/24")], "neither private"),
    "another link's address": (lambda on: [address(on.secondary, "10.0.1.10")], "already"),
    "the bridge's address": (lambda on: [address(on.secondary, "172.17.0.1")], "another program routes by docker0"),
    "loopback": (lambda on: [address(on.secondary, "127.0.0.2")], "loopback"),
    "multicast": (lambda on: [address(on.secondary, "224.0.0.1")], "multicast"),
    "broadcast": (lambda on: [address(on.secondary, "255.255.255.255")], "reserved"),
    "NAT64": (lambda on: [address(on.secondary, "64:ff9b::10.0.0.5/128")], "reserved"),
    "IPv6 that is not assigned": (lambda on: [address(on.secondary, "4000::5/128")], "reserved"),
    "unspecified": (lambda on: [address(on.secondary, "0.0.0.0")], "loopback, link-local, multicast, reserved"),
    "IPv6 loopback": (lambda on: [address(on.secondary, "::1/128")], "loopback"),
    "IPv6 link-local": (lambda on: [address(on.secondary, "fe80::1/64")], "link-local"),
    "a subnet that is too wide": (lambda on: [address(on.secondary, "10.200.0.5/15")], "wider than /16"),
    "an IPv6 subnet that is too wide": (lambda on: [address(on.secondary, "fd77::5/43")], "wider than /44"),
    "the broadcast address of a subnet": (lambda on: [address(on.secondary, "10.0.2.255/24")], "broadcast"),
    "a /0": (lambda on: [address(on.secondary, "10.0.2.10/0")], "loopback"),
    "a /0 without its route": (lambda on: [{**address(on.secondary, "10.0.2.10/0"), "route": False}], "loopback"),
    "a connected route over the primary's subnet": (
        lambda on: [address(on.secondary, "10.0.2.10/16")],
        "would take over a part of 10.0.1.0/24",
    ),
    "a connected route over a part of the primary's subnet": (
        lambda on: [address(on.secondary, "10.0.1.130/26")],
        "would take over a part of 10.0.1.0/24",
    ),
    "the address twice": (
        lambda on: [address(on.secondary, "10.0.2.10/24"), address(on.secondary, "10.0.2.10/24")],
        "the same operation twice",
    ),
    # links that are not the cloud's
    "an address on lo": (lambda on: [address(on.loopback, "10.0.2.10")], "loopback link"),
    "lo's MTU": (lambda on: [{"op": "link_mtu", "link": on.loopback, "mtu": 1500}], "loopback link"),
    "an address on a bridge": (lambda on: [address(on.bridge, "10.0.2.10")], "of kind bridge"),
    "a bridge's MTU": (lambda on: [{"op": "link_mtu", "link": on.bridge, "mtu": 1400}], "AllowKinds|of kind bridge"),
    "a link that is not there": (lambda on: [{"op": "link_up", "link": 4711}], "no link 4711"),
    "a link that is up": (lambda on: [{"op": "link_up", "link": on.primary}], "already up"),
    # routes
    "table main": (lambda on: [route(on.secondary, "0.0.0.0/0", table=254)], "not the link's own"),
    "another link's second table": (
        lambda on: [route(on.secondary, "0.0.0.0/0", "10.0.2.1", table=9999 + 2**30 + on.primary)],
        "not the link's own",
    ),
    "another link's gateway in the second table": (
        lambda on: [route(on.secondary, "0.0.0.0/0", "10.0.1.1", table=9999 + 2**30 + on.secondary)],
        "gateway 10.0.1.1 is not on eth0",
    ),
    "an address into another link's second table": (
        lambda on: [rule("10.0.1.10", 9999 + 2**30 + on.secondary)],
        "10.0.1.10/32 is no address or range of eth0",
    ),
    "table default": (lambda on: [route(on.secondary, "10.7.0.0/24", table=253)], "not the link's own"),
    "another link's table": (
        lambda on: [route(on.secondary, "10.0.2.0/24", table=9999 + on.primary)],
        "not the link's own",
    ),
    "a default route through another link": (
        lambda on: [route(on.secondary, "0.0.0.0/0", "10.0.1.1", table=9999 + on.primary)],
        "not the link's own",
    ),
    "an off-link gateway": (lambda on: [route(on.primary, "0.0.0.0/0", "10.0.2.1")], "not on eth"),
    "a gateway that only the internet knows": (lambda on: [route(on.primary, "0.0.0.0/0", "8.8.8.8")], "not on eth"),
    "a gateway made on-link first": (
        lambda on: [route(on.secondary, "10.0.1.1/32"), route(on.secondary, "0.0.0.0/0", "10.0.1.1")],
        "would take over a part of 10.0.1.0/24",
    ),
    "itself as gateway": (lambda on: [route(on.primary, "0.0.0.0/0", "10.0.1.10")], "this host's own"),
    "an on-link default route": (lambda on: [route(on.secondary, "0.0.0.0/0")], "loopback"),
    "a local route over the gateway": (
        lambda on: [route(on.secondary, "10.0.1.0/28", table=255)],
        "overlaps a subnet of eth1",
    ),
    "a range that is too wide": (lambda on: [route(on.secondary, "10.64.0.0/19", table=255)], "wider than /20"),
    "half of the subnet as a range": (
        lambda on: [route(on.primary, "10.0.1.128/25", table=255)],
        "more than a quarter of 10.0.1.0/24",
    ),
    "an IPv6 range that is too wide": (lambda on: [route(on.secondary, "fd77::/63", table=255)], "wider than /64"),
    "a local route over public addresses": (
        lambda on: [route(on.secondary, "8.8.8.0/24", table=255)],
        "neither private",
    ),
    "a local route through a gateway": (
        lambda on: [route(on.primary, "10.9.0.0/24", "10.0.1.1", table=255)],
        "no gateway",
    ),
    "the kernel's own local route": (
        lambda on: [route(on.primary, "10.0.1.10/32", table=255)],
        "cloud-network did not add",
    ),
    # rules
    "a rule without a source": (lambda on: [rule("0.0.0.0/0", 9999 + on.primary)], "without a source"),
    "a rule without a source to main": (lambda on: [rule("0.0.0.0/0", 254, suppress=False)], "without a source"),
    "a rule for everything that goes somewhere": (
        lambda on: [rule("0.0.0.0/0", 254, suppress=True, to=True)],
        "without a source",
    ),
    "another link's source": (lambda on: [rule("10.0.1.10", 9999 + on.secondary)], "no address or range"),
    "a neighbour's source": (lambda on: [rule("10.0.1.77", 9999 + on.primary)], "no address or range"),
    "a source that nobody has": (lambda on: [rule("198.51.100.7", 9999 + on.primary)], "no address or range"),
    "a range with another link's address": (lambda on: [rule("10.0.0.0/16", 9999 + on.primary)], "no address or range"),
    # prefixes that cover addresses
    "a prefix in which the link has nothing": (
        lambda on: [rule("10.0.1.64/26", 9999 + on.primary, local=True)],
        "no address or range",
    ),
    "a prefix with another link's address": (
        lambda on: [
            address(on.secondary, "10.0.1.77/32"),
            route(on.secondary, "10.0.1.0/24"),
            rule("10.0.1.0/24", 9999 + on.secondary, local=True),
        ],
        "no address or range",
    ),
    "a prefix around the subnet": (
        lambda on: [rule("10.0.0.0/23", 9999 + on.primary, local=True)],
        "no address or range",
    ),
    "a prefix in nothing that is on link": (
        lambda on: [
            {**address(on.secondary, "10.0.2.10/24"), "prefix": 32},
            rule("10.0.2.0/24", 9999 + on.secondary, local=True),
        ],
        "no address or range",
    ),
    "a prefix of all that is forwarded, too": (
        lambda on: [rule("10.0.1.0/24", 9999 + on.primary)],
        "no address or range",
    ),
    "a prefix that packets go to": (
        lambda on: [rule("10.0.1.0/24", 9999 + on.primary, local=True, to=True)],
        "no address or range",
    ),
    "all that this host sends": (lambda on: [rule("0.0.0.0/0", 9999 + on.primary, local=True)], "without a source"),
    "main for all that this host sends": (
        lambda on: [rule("0.0.0.0/0", 254, suppress=True, local=True)],
        "without a source",
    ),
    "another link's whole subnet": (
        lambda on: [rule("10.0.1.0/24", 9999 + on.secondary, local=True)],
        "no address or range",
    ),
    "all IPv6 that this host sends": (lambda on: [rule("::/0", 9999 + on.primary, local=True)], "without a source"),
    "link-local addresses, which every link has": (
        lambda on: [rule("fe80::/64", 9999 + on.primary, local=True)],
        "no address or range",
    ),
    "two rules of which the kernel may remove the wrong one": (
        lambda on: [rule("10.0.1.10", 9999 + on.primary), rule("10.0.1.10", 9999 + on.primary, local=True)],
        "such a rule already",
    ),
    "two rules that differ in suppress_prefixlength alone": (
        lambda on: [
            main_rule(),
            *(rule("10.0.1.10", 9999 + on.primary, 31020, suppress=suppress) for suppress in (True, False)),
        ],
        "such a rule already",
    ),
    "a priority above all": (lambda on: [rule("10.0.1.10", 9999 + on.primary, priority=1)], "priority 1"),
    "a priority below the band": (lambda on: [rule("10.0.1.10", 9999 + on.primary, priority=31030)], "priority 31030"),
    "a rule into table main": (lambda on: [rule("10.0.1.10", 254)], "is no link's|no link"),
    "a rule into the bridge's table": (lambda on: [rule("172.17.0.1", 9999 + on.bridge)], "of kind bridge"),
    # removals of foreign objects
    "DHCP's address": (lambda on: [address(on.primary, "10.0.1.10/24", "address_remove")], "cloud-network did not add"),
    "the bridge's": (lambda on: [address(on.bridge, "172.17.0.1/16", "address_remove")], "of kind bridge"),
    "an address that is not there": (lambda on: [address(on.primary, "10.0.1.99", "address_remove")], "has no"),
    "an operator's route": (
        lambda on: [route(on.primary, "192.168.77.0/24", "10.0.1.1", table=254, op="route_remove")],
        "has no such route",
    ),
    "a local route of the kernel's": (
        lambda on: [route(on.primary, "10.0.1.10/32", table=255, op="route_remove")],
        "has no such route",
    ),
    "an operator's rule": (lambda on: [rule("10.9.9.9", 254, priority=31005, op="rule_remove")], "no such rule"),
    # a request with one invalid operation is refused as a whole
    "a good one and a bad one": (
        lambda on: [address(on.secondary, "10.0.2.10/24"), address(on.secondary, "8.8.8.8")],
        "neither private",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_refuses_before_anything_is_touched(shared_lab: Lab, attack: str) -> None:
    lab = shared_lab
    ops, reason = ATTACKS[attack]
    on = Links(ifindex(lab, "eth1"), ifindex(lab, "eth0"), ifindex(lab, "docker0"))
    before, lines = kernel_state(lab), len(audit_lines(lab))
    with Wire(lab) as wire:
        answer = wire.apply(*ops(on))
    assert answer["verdict"] == "refused"
    assert any(part in answer["reason"] for part in reason.split("|")), answer["reason"]
    assert 0 <= answer["position"] < len(ops(on))
    assert kernel_state(lab) == before
    (line,) = audit_lines(lab)[lines:]
    assert (line["verdict"], line["reason"], len(line["ops"])) == ("refused", answer["reason"], len(ops(on)))


def test_a_refusal_names_the_key_that_would_allow_it(shared_lab: Lab) -> None:
    with Wire(shared_lab) as wire:
        kind = wire.apply({"op": "link_mtu", "link": ifindex(shared_lab, "docker0"), "mtu": 1400})
        public = wire.apply(address(ifindex(shared_lab, "eth0"), "203.0.113.5"))
    assert kind["allow"] == '[Netagent] AllowKinds="bridge"'
    assert public["allow"] == '[Netagent] AllowAddresses="203.0.113.5/32"'


def test_the_named_key_does_allow_it(lab: Lab) -> None:
    lab.write_config(
        '[Network]\nExclude = "eth1"\n[Netagent]\nAllowKinds = "veth"\nAllowAddresses = "203.0.113.0/24"\n'
    )
    lab.stop("netagent")
    start(lab)
    with Wire(lab) as wire:
        assert wire.apply(address(ifindex(lab, "eth0"), "203.0.113.5"))["verdict"] == "applied"
        excluded = wire.apply({"op": "link_mtu", "link": ifindex(lab, "eth1"), "mtu": 1400})
    assert excluded["reason"] == "eth1 is excluded"
    assert "Exclude=" in excluded["allow"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("AllowKinds = [veth]", "not TOML"),
        ('AuditFailure = "sometimes"', "accepted: refuse, continue"),
        ('AllowAddresses = "10.0.0.0/64"', "'10.0.0.0/64' is not an address or prefix"),
        ('AllowKinds = "veth"\nAllowKinds = "bridge"', "not TOML"),
    ],
)
def test_invalid_configuration_stops_the_start(lab: Lab, line: str, expected: str) -> None:
    lab.stop("netagent")
    lab.write_config(f"[Netagent]\n{line}\n")
    lab.start("netagent")
    lab.wait_for(lambda: not lab.daemons.running("netagent"))
    assert "/etc/cloud-network/cloud-network.toml: " in lab.log("netagent")
    assert expected in lab.log("netagent")


def test_unknown_requests_are_refused(shared_lab: Lab) -> None:
    link = ifindex(shared_lab, "eth0")
    good = address(link, "10.0.2.10/24")
    for op, reason in (
        ({"op": "link_rename", "link": link}, "is not one of"),
        ({"op": "link_down", "link": link}, "is not one of"),
        ({**good, "name": "eth7"}, "'name' is not a known key"),
        (route(link, "10.0.1.5/24"), "host bits"),
        ({**good, "prefix": 33}, "33 is not in 0..32"),
        ({**good, "prefix": True}, "prefix: True is not int"),
        ({**good, "address": b"\x0a\x00\x02"}, "address"),
        ({**good, "address": "10.0.2.10"}, "address"),
        ({"op": "link_mtu", "link": link, "mtu": -1}, "mtu: -1 is not in 0..65535"),
        ({"op": "link_mtu", "link": link, "mtu": 65536}, "65536"),
        ({"op": "link_up"}, "'link' is missing"),
        ({**route(link, "10.0.2.0/24"), "gateway": packed("fe80::1")}, "family"),
    ):
        with Wire(shared_lab) as wire:
            answer = wire.apply(op)
            assert answer["verdict"] == "refused"
            assert reason in answer["reason"], answer["reason"]
