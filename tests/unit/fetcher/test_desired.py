"""Instance, configuration and host -> what the kernel must hold (DESIGN.md, "Kernel state")."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from cloud_network.fetcher.config import Config, Manage, Prefixes, RulesMode
from cloud_network.fetcher.network.desired import desired
from cloud_network.fetcher.network.matching import match_links
from cloud_network.fetcher.network.objects import (
    Actual,
    Address,
    Cause,
    Desired,
    GatewayUse,
    IPv6Settings,
    Link,
    LinkSettings,
    Object,
    Rejection,
    Route,
    Rule,
)
from cloud_network.fetcher.network.rules import main_rule

from tests.unit.fetcher.values import BASE, FIRST, host, instance, interface, kernel_address, link, mac, wanted

EVERYTHING, EVERYTHING6 = ip_network("0.0.0.0/0"), ip_network("::/0")


def link_addresses(found: Desired, ifindex: int) -> list[str]:
    """Return the link's addresses; `+` if the kernel makes a connected route."""
    return [
        f"{each.address}/{each.prefix}{'+' if each.connected else ''}"
        for each in found.addresses
        if each.ifindex == ifindex
    ]


def routes(found: Desired, ifindex: int) -> list[str]:
    """Return the routes of the link's own table, in order."""
    own = [each for each in found.routes if each.table == BASE + ifindex]
    assert all(each.ifindex == ifindex for each in own)
    return [f"{each.destination}{f' via {each.gateway}' if each.gateway else ''}" for each in own]


def rule(step: int, selector: str | None, table: int, *, to: bool = False, version: int = 4) -> Rule:
    network = ip_network(selector) if selector else None
    return Rule(FIRST + 10 * step, version, network, table, suppress=step < 2, to=to)


def test_first_address_carries_the_subnet() -> None:
    found = wanted(instance(interface(1, "10.0.1.10", "10.0.1.11", "10.0.1.12")), host(link(1)))
    assert link_addresses(found, 2) == ["10.0.1.10/24+", "10.0.1.11/32", "10.0.1.12/32"]


def test_each_subnet_of_an_interface_has_its_own_first_address() -> None:
    one = interface(1, "10.0.1.10", "10.0.9.10", "10.0.1.11", subnets=["10.0.1.0/24", "10.0.9.0/25"])
    assert link_addresses(wanted(instance(one), host(link(1))), 2) == ["10.0.1.10/24+", "10.0.9.10/25+", "10.0.1.11/32"]


def test_links_are_matched_by_mac_only() -> None:
    here = host(link(2, "eth0"), link(1, "enp0s9"))
    found = wanted(instance(interface(1), interface(2)), here)
    assert (link_addresses(found, 2), link_addresses(found, 3)) == (["10.0.1.10/24+"], ["10.0.2.10/24+"])


@pytest.mark.parametrize("kind", ["vlan", "ipvlan", "macvlan"])
def test_child_of_an_interface_is_not_the_interface(kind: str) -> None:
    """It may have its MAC: always (ipvlan), or in passthru mode (macvlan)."""
    child = link(1, "child0", ifindex=9, kind=kind, master=None)
    found = wanted(instance(interface(1), interface(2)), host(child, link(1), link(2)))
    assert (link_addresses(found, 2), link_addresses(found, 9)) == (["10.0.1.10/24+"], [])
    assert found.unknown_macs == {}


def test_bond_with_fail_over_mac_is_matched_by_its_mac() -> None:
    """With fail_over_mac=active a bond has the MAC of its active port, and another one after a failover."""
    cloud = instance(interface(1), interface(2), interface(3))
    ports = (link(1, master=9), link(2, master=9), link(3))
    for active, passive in ((1, 2), (2, 1)):
        here = host(*ports, link(active, "bond0", ifindex=9, kind="bond"))
        found = wanted(cloud, here, allow_kinds=("bond",))
        assert link_addresses(found, 9) == [f"10.0.{active}.10/24+"]
        assert link_addresses(found, 2) == link_addresses(found, 3) == []
        assert found.unknown_macs.keys() == {mac(passive)}
        assert f'is a port of bond0; if another program uses it, set [Network] Exclude="{mac(passive)}"' in str(
            found.unknown_macs
        )
        without = wanted(cloud, here)
        assert link_addresses(without, 9) == link_addresses(without, 2) == link_addresses(without, 3) == []
        assert 'AllowKinds="bond"' in without.unknown_macs[mac(active)]
        assert link_addresses(without, 4) == link_addresses(found, 4) == ["10.0.3.10/24+"]


def test_a_vlan_on_an_interface_is_not_the_interface() -> None:
    """It has its parent's MAC."""
    for links in (
        [link(1), link(1, "eth0.7", ifindex=9, kind="vlan")],
        [link(1, "v", ifindex=9, kind="vlan"), link(1)],
    ):
        found = wanted(instance(interface(1)), host(*links))
        assert [address.ifindex for address in found.addresses] == [2]


def test_a_kind_that_the_operator_allows_is_an_interface() -> None:
    here = host(link(1, kind="veth"))
    assert wanted(instance(interface(1)), here).unknown_macs.keys() == {mac(1)}
    assert link_addresses(wanted(instance(interface(1)), here, allow_kinds=("veth",)), 2) == ["10.0.1.10/24+"]


def test_a_single_interface_needs_no_table() -> None:
    found = wanted(instance(interface(1)), host(link(1)))
    assert found.routes == ()
    assert found.rules == ()


def test_a_single_interface_named_in_supplementary_has_a_table() -> None:
    found = wanted(instance(interface(1)), host(link(1)), supplementary=("eth0",))
    assert routes(found, 2) == ["10.0.1.0/24", "0.0.0.0/0 via 10.0.1.1"]
    assert len(found.rules) == 3


def test_table_has_subnet_siblings_and_default_in_order() -> None:
    cloud = instance(interface(1), interface(2), interface(3))
    found = wanted(cloud, host(link(1), link(2), link(3)))
    assert routes(found, 3) == [
        "10.0.2.0/24",
        "10.0.1.0/24 via 10.0.2.1",
        "10.0.3.0/24 via 10.0.2.1",
        "0.0.0.0/0 via 10.0.2.1",
    ]


def test_siblings_without_a_link_count() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1)))
    assert "10.0.2.0/24 via 10.0.1.1" in routes(found, 2)
    assert found.unknown_macs.keys() == {mac(2)}


def test_rules_come_in_three_steps_for_every_address() -> None:
    cloud = instance(interface(1, "10.0.1.10", "10.0.1.11"), interface(2))
    found = wanted(cloud, host(link(1), link(2)), rules=RulesMode.ADDRESS)
    expected = {rule(1, None, 254)}
    for address, ifindex in (("10.0.1.10", 2), ("10.0.1.11", 2), ("10.0.2.10", 3)):
        expected |= {rule(0, address, BASE + ifindex), rule(2, address, BASE + ifindex)}
    assert set(found.rules) == expected
    assert len(found.rules) == len(expected)


def test_the_original_asks_for_rules_to_addresses_too() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1), link(2)), rules=RulesMode.ORIGINAL)
    assert {each for each in found.rules if each.to} == {
        rule(2, "10.0.1.10", BASE + 2, to=True),
        rule(2, "10.0.2.10", BASE + 3, to=True),
    }


def test_table_base_and_priorities_are_configurable() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1), link(2)), route_table_base=500, rule_priority=7)
    assert {route.table for route in found.routes} == {502, 503}
    assert {each.priority for each in found.rules} == {7, 17, 27}


def test_excluded_link_loses_owned_objects() -> None:
    here = host(link(1), link(2))
    found = wanted(instance(interface(1), interface(2)), here, exclude=("eth1",))
    assert link_addresses(found, 3) == routes(found, 3) == []
    assert {each.table for each in found.rules} == {254, BASE + 2}
    assert (set(found.unmanaged), set(found.unmanaged_tables)) == (set(), set())
    assert not found.unknown_macs
    assert "10.0.2.0/24 via 10.0.1.1" in routes(found, 2)  # the cloud still has it as a sibling


def test_exclusion_applies_despite_a_missing_interface() -> None:
    here = host(link(1), link(2), link(3))
    found = wanted(instance(interface(1), interface(4)), here, exclude=("eth1",))
    assert found.unmanaged == {4}


def test_main_rule_of_a_refused_link_stays() -> None:
    left = host(link(1), rules=frozenset({rule(0, "10.0.1.10", BASE + 2), rule(1, None, 254)}))
    refused: dict[Object, Rejection] = {LinkSettings(2, None): Rejection("of kind veth")}
    found = wanted(instance(interface(1), interface(2)), left, refused)
    assert found.rules == (rule(1, None, 254),)


@pytest.mark.parametrize("pattern", ["eth1", "eth[1-9]", "e*1", "eth?", "02:00:00:00:00:02"])
def test_exclude_takes_patterns_and_macs(pattern: str) -> None:
    here = host(link(1, "ens5"), link(2))
    found = wanted(instance(interface(1), interface(2)), here, exclude=(pattern,))
    assert link_addresses(found, 3) == []
    assert link_addresses(found, 2) == ["10.0.1.10/24+"]
    assert not found.notices


def test_exclude_that_matches_nothing_is_a_notice() -> None:
    found = wanted(instance(interface(1)), host(link(1)), exclude=("eni*", "eth7"))
    assert found.notices == tuple(
        f'[Network] Exclude="{each}" matches no link of this host' for each in ("eni*", "eth7")
    )


def test_an_excluded_mac_without_a_link_is_not_missing() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1)), exclude=(mac(2),))
    assert (found.unknown_macs, found.notices) == ({}, ())


def test_an_interface_whose_link_left_is_a_notice() -> None:
    cloud, here = instance(interface(1), interface(2)), host(link(1), link(9))
    config = Config()
    found = desired(cloud, match_links(cloud, config, here.links), config, here, departed=frozenset({mac(2)}))
    assert (found.unknown_macs, found.unmanaged) == ({}, set())
    assert f'[Network] Exclude="{mac(2)}"' in found.notices[0]


def test_a_link_that_udev_has_not_finished_with_waits() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1), link(2, ready=False)))
    assert found.unknown_macs == {mac(2): "udev has not finished with eth1"}
    assert link_addresses(found, 3) == []


def test_excluded_addresses_are_left_to_others() -> None:
    cloud = instance(interface(1, "10.0.1.10", "10.0.1.12", "10.0.1.20"), interface(2))
    others = (ip_network("10.0.1.10/31"), ip_network("fd00::/8"))
    for rules, expected in (
        (RulesMode.ADDRESS, {"10.0.1.12/32", "10.0.1.20/32"}),
        (RulesMode.AGGREGATE, {"10.0.1.12/30", "10.0.1.16/28"}),
    ):
        found = wanted(cloud, host(link(1), link(2)), exclude_addresses=others, rules=rules)
        assert link_addresses(found, 2) == ["10.0.1.12/24+", "10.0.1.20/32"]
        assert {str(each.selector) for each in found.rules if each.table == BASE + 2} == expected


@pytest.mark.parametrize(
    ("provider", "config", "local", "selected"),
    [
        ("aws", None, False, True),
        ("gcp", None, True, True),
        ("aws", Prefixes.LOCAL, True, True),
        ("gcp", Prefixes.ROUTE, False, True),
        ("gcp", Prefixes.IGNORE, False, False),
    ],
)
def test_range_is_one_object_in_the_form_of_prefixes(
    provider: str, config: Prefixes | None, local: bool, selected: bool
) -> None:
    block = ip_network("10.0.1.128/28")
    cloud = instance(interface(1, ranges=(block,)), interface(2), provider=provider)
    found = wanted(cloud, host(link(1), link(2)), prefixes=config)
    assert (Route(255, 2, block, None) in found.routes) == local
    assert [each.priority for each in found.rules if each.selector == block] == (
        [FIRST, FIRST + 20] if selected else []
    )
    assert link_addresses(found, 2) == ["10.0.1.10/24+"]


def test_a_local_range_needs_no_second_interface() -> None:
    block = ip_network("10.0.1.128/28")
    found = wanted(instance(interface(1, ranges=(block,))), host(link(1)), prefixes=Prefixes.LOCAL)
    assert found.routes == (Route(255, 2, block, None),)
    assert found.rules == ()


def test_shared_subnet_connected_route_is_the_primarys() -> None:
    same = ["10.0.1.0/24"]
    cloud = instance(interface(2, "10.0.1.20", subnets=same), interface(1, "10.0.1.10", subnets=same))
    found = wanted(cloud, host(link(1), link(2)))
    assert link_addresses(found, 2) == ["10.0.1.10/24+"]
    assert link_addresses(found, 3) == ["10.0.1.20/32"]
    assert routes(found, 2) == routes(found, 3) == ["10.0.1.0/24", "0.0.0.0/0 via 10.0.1.1"]


@pytest.mark.parametrize(("ifindex", "foreign"), [(3, "10.0.1.13/24"), (9, "10.0.0.1/16"), (1, "10.0.1.99/32")])
def test_connected_route_never_shadows_another_link(ifindex: int, foreign: str) -> None:
    here = host(link(1), link(2), addresses=kernel_address(ifindex, foreign))
    assert link_addresses(wanted(instance(interface(1), interface(2)), here), 2) == ["10.0.1.10/32"]


@pytest.mark.parametrize("more", [["10.0.0.7/32"], ["10.0.0.7/24", "10.0.0.9/32"], ["10.0.9.7/16"]])
def test_link_with_further_addresses_is_not_shadowed(more: list[str]) -> None:
    """The other network may be before, inside or around its part of the subnet."""
    foreign = {place: value for text in [*more, "10.0.1.99/32"] for place, value in kernel_address(9, text).items()}
    here = host(link(1), link(8, "lan0"), addresses=foreign)
    assert link_addresses(wanted(instance(interface(1)), here, allow_addresses=Config().allow_addresses), 2) == [
        "10.0.1.10/32"
    ]


def test_own_addresses_do_not_hide_another_links() -> None:
    here = host(
        link(1), link(8, "lan0"), addresses=kernel_address(2, "10.0.0.7/16") | kernel_address(9, "10.0.1.99/32")
    )
    assert link_addresses(wanted(instance(interface(1)), here), 2) == ["10.0.1.10/32"]


def test_own_addresses_shadow_nothing() -> None:
    here = host(
        link(1),
        addresses=kernel_address(2, "10.0.1.10/24")
        | kernel_address(2, "fe80::1/64")
        | kernel_address(1, "127.0.0.1/8"),
    )
    assert link_addresses(wanted(instance(interface(1)), here), 2) == ["10.0.1.10/24+"]


def test_an_address_that_two_interfaces_have_is_the_primarys() -> None:
    """Two VPCs may have the same addresses."""
    same = ["10.0.1.0/24"]
    cloud = instance(interface(1, "10.0.1.10", subnets=same), interface(2, "10.0.1.10", "10.0.1.11", subnets=same))
    found = wanted(cloud, host(link(1), link(2)))
    assert (link_addresses(found, 2), link_addresses(found, 3)) == (["10.0.1.10/24+"], ["10.0.1.11/32"])
    assert [each.table for each in found.rules if each.selector == ip_network("10.0.1.10")] == [BASE + 2] * 2


def test_without_device_numbers_macs_decide_who_is_first() -> None:
    same = ["10.0.1.0/24"]
    ones = [interface(n, f"10.0.1.{n}0", subnets=same, device_number=None) for n in (2, 1)]
    assert link_addresses(wanted(instance(*ones), host(link(1), link(2))), 2) == ["10.0.1.10/24+"]


def test_a_gateway_outside_the_subnets_is_reached_on_link_first() -> None:
    one = interface(1, "10.0.1.10", subnets=["10.0.1.10/32"], gateways=(ip_address("10.0.1.1"),))
    found = wanted(instance(one, interface(2)), host(link(1), link(2)))
    assert routes(found, 2) == ["10.0.1.10/32", "10.0.1.1/32", "10.0.2.0/24 via 10.0.1.1", "0.0.0.0/0 via 10.0.1.1"]


def test_kernel_gateway_is_used_without_a_cloud_gateway() -> None:
    cloud = instance(interface(1, gateways=()), interface(2, gateways=()))
    learned = {2: (ip_address("10.0.1.7"), ip_address("fe80::7"))}
    found = wanted(cloud, host(link(1), link(2), gateways=learned))
    assert routes(found, 2) == ["10.0.1.0/24", "10.0.2.0/24 via 10.0.1.7", "0.0.0.0/0 via 10.0.1.7"]
    assert routes(found, 3) == ["10.0.2.0/24"]  # never another link's


def test_cloud_gateway_precedes_the_kernels() -> None:
    found = wanted(
        instance(interface(1), interface(2)), host(link(1), link(2), gateways={2: (ip_address("10.0.1.7"),)})
    )
    assert "0.0.0.0/0 via 10.0.1.1" in routes(found, 2)


def test_ipv6_gateway_comes_from_router_advertisements() -> None:
    dual = [interface(n, f"10.0.{n}.10", f"fd00:{n}::a", subnets=[f"10.0.{n}.0/24", f"fd00:{n}::/64"]) for n in (1, 2)]
    found = wanted(instance(*dual), host(link(1), link(2), gateways={2: (ip_address("fe80::1"),)}))
    assert link_addresses(found, 2) == ["10.0.1.10/24+", "fd00:1::a/128"]
    assert [text for text in routes(found, 2) if "fd00" in text or "::" in text] == [
        "fd00:1::/64",
        "fd00:2::/64 via fe80::1",
        "::/0 via fe80::1",
    ]
    assert [text for text in routes(found, 3) if "::" in text] == ["fd00:2::/64"]
    assert [each for each in found.rules if each.version == 6 and each.selector is None] == [
        rule(1, None, 254, version=6)
    ]
    assert len([each for each in found.rules if isinstance(each.selector, IPv6Network)]) == 4


def test_ipv6_only_interface_gets_no_ipv4_routes() -> None:
    six = interface(2, "fd00:2::a", subnets=["fd00:2::/64"])
    found = wanted(instance(interface(1), six), host(link(1), link(2), gateways={3: (ip_address("fe80::1"),)}))
    assert routes(found, 3) == ["fd00:2::/64", "::/0 via fe80::1"]
    assert routes(found, 2) == ["10.0.1.0/24", "0.0.0.0/0 via 10.0.1.1"]
    assert {each.version for each in found.rules} == {4, 6}


def test_links_are_up_with_the_metadatas_mtu() -> None:
    found = wanted(instance(interface(1, mtu=9001), interface(2)), host(link(1, up=False), link(2)))
    assert [(goal.settings.ifindex, goal.settings.mtu) for goal in found.links] == [(2, 9001), (3, None)]


def test_unknown_mac_keeps_unnamed_links_unchanged() -> None:
    """One of them may have a new MAC."""
    here = host(link(1), link(2), link(7, "docker0", kind="bridge"))
    known = wanted(instance(interface(1)), here)
    assert (known.unknown_macs, known.unmanaged) == ({}, frozenset())
    unknown = wanted(instance(interface(1), interface(5)), here)
    assert (list(unknown.unknown_macs), set(unknown.unmanaged)) == ([mac(5)], {3, 8})


# Links that share a MAC


def test_ports_with_the_same_mac_are_not_matched() -> None:
    """Azure: a VF (mlx5) below the synthetic interface (hv_netvsc), neither with a kind."""
    synthetic, vf = link(1), link(1, "enP1s1", ifindex=9, master=2)
    for links in ((synthetic, vf), (vf, synthetic)):
        found = wanted(instance(interface(1)), host(*links))
        assert link_addresses(found, 2) == ["10.0.1.10/24+"]
        assert link_addresses(found, 9) == []
        assert not found.unknown_macs


def test_port_of_a_foreign_master_is_matched() -> None:
    """A VRF has a MAC of its own."""
    here = host(link(1, master=7), link(6, "vrf0", kind="vrf", mac="02:00:00:00:00:99"))
    assert link_addresses(wanted(instance(interface(1)), here), 2) == ["10.0.1.10/24+"]


def test_two_links_with_one_mac_match_neither() -> None:
    """A VF appears some milliseconds before it becomes a port of the synthetic interface."""
    here = host(link(1), link(1, "enP1s1", ifindex=9))
    found = wanted(instance(interface(1)), here)
    assert found.addresses == ()
    assert found.unknown_macs.keys() == {mac(1)}
    assert found.unmanaged == {2, 9}


# Interfaces of which only the gateway is on link


def test_routed_subnet_and_siblings_are_behind_the_gateway() -> None:
    ones = [interface(n, f"10.0.{n}.10", routed=True) for n in (1, 2)]
    found = wanted(instance(*ones, provider="gcp"), host(link(1), link(2)))
    assert routes(found, 2) == [
        "10.0.1.1/32",
        "10.0.1.0/24 via 10.0.1.1",
        "10.0.2.0/24 via 10.0.1.1",
        "0.0.0.0/0 via 10.0.1.1",
    ]
    assert link_addresses(found, 2) == ["10.0.1.10/32"]


# Objects that were refused


def refused(*objects: Object, cause: Cause = Cause.POLICY) -> dict[Object, Rejection]:
    return dict.fromkeys(objects, Rejection("refused; to allow it, set KEY", cause))


def address(text: str, ifindex: int = 2, *, connected: bool = False) -> Address:
    found = ip_interface(text)
    return Address(ifindex, found.ip, found.network.prefixlen, connected)


def reports(found: Desired) -> list[str]:
    return [each.text for each in found.withheld]


def test_refused_subnet_length_falls_back_to_single_address() -> None:
    rejections = refused(address("10.0.1.10/24", connected=True))
    found = wanted(instance(interface(1)), host(link(1)), rejections)
    assert link_addresses(found, 2) == ["10.0.1.10/32"]
    assert not found.withheld


def test_refused_address_is_left_out_with_its_rules() -> None:
    rejections = refused(address("10.0.1.11/32"))
    cloud = instance(interface(1, "10.0.1.10", "10.0.1.11"), interface(2))
    found = wanted(cloud, host(link(1), link(2)), rejections, rules=RulesMode.ADDRESS)
    assert link_addresses(found, 2) == ["10.0.1.10/24+"]
    assert not [each for each in found.rules if each.selector == ip_network("10.0.1.11")]
    assert reports(found) == ["10.0.1.11 of eth0: refused; to allow it, set KEY"]


def test_refused_address_that_is_there_stays() -> None:
    here = host(link(1), addresses=kernel_address(2, "10.0.1.10/24", owned=True))
    found = wanted(instance(interface(1)), here, refused(address("10.0.1.10/24", connected=True)))
    assert link_addresses(found, 2) == ["10.0.1.10/24+"]
    assert not found.withheld


def test_refused_rule_for_main_is_reported_before_its_dependents() -> None:
    cloud = instance(interface(1), interface(2))
    needs_it = next(each for each in wanted(cloud, host(link(1), link(2))).rules if each.priority == 31020)
    found = wanted(cloud, host(link(1), link(2)), refused(main_rule(4, Config()), needs_it))
    assert reports(found)[0] == "rule 31010 for the table main (IPv4): refused; to allow it, set KEY"
    assert reports(found)[1].startswith("rule 31020 from ")


def test_waiting_address_is_transient() -> None:
    rejections = refused(address("2001:db8::a/128"), cause=Cause.WAITING)
    one = instance(interface(1, "2001:db8::a", subnets=["2001:db8::/64"]))
    [withheld] = wanted(one, host(link(1)), rejections).withheld
    assert withheld.transient


def test_conflicting_address_waits_in_every_form() -> None:
    rejections = refused(address("10.0.1.10/24", connected=True), cause=Cause.CONFLICT)
    found = wanted(instance(interface(1, "10.0.1.10", "10.0.1.11")), host(link(1)), rejections)
    assert link_addresses(found, 2) == ["10.0.1.11/24+"]
    assert not found.withheld


def test_refused_on_link_route_omits_routes_via_its_gateway() -> None:
    subnet, gateway = (ip_network(text) for text in ("10.0.1.0/24", "10.0.1.1/32"))
    rejections = refused(*(Route(BASE + 2, 2, network, None) for network in (subnet, gateway)))
    found = wanted(instance(interface(1), interface(2)), host(link(1), link(2)), rejections)
    assert routes(found, 2) == []
    assert len(found.withheld) == 2


def test_refused_link_is_left_alone() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1), link(2)), refused(LinkSettings(3, None)))
    assert found.unmanaged == {3}
    assert link_addresses(found, 3) == []
    assert reports(found) == ["eth1: refused; to allow it, set KEY"]


def test_link_that_cannot_come_up_does_not_stop_the_other() -> None:
    rejections = refused(LinkSettings(3, None), cause=Cause.KERNEL)
    cloud = instance(interface(1), interface(2))
    found = wanted(cloud, host(link(1), link(2, up=False)), rejections)
    assert (link_addresses(found, 2), link_addresses(found, 3)) == (["10.0.1.10/24+"], [])
    assert link_addresses(wanted(cloud, host(link(1), link(2)), rejections), 3) == ["10.0.2.10/24+"], (
        "the link is up now"
    )


def test_refused_mtu_is_reported_and_the_rest_configured() -> None:
    found = wanted(instance(interface(1, mtu=9001)), host(link(1)), refused(LinkSettings(2, 9001)))
    assert found.links[0].settings == LinkSettings(2, None)
    assert link_addresses(found, 2) == ["10.0.1.10/24+"]
    assert reports(found) == ["MTU 9001 of eth0: refused; to allow it, set KEY"]


def test_new_gateway_that_is_silent_leaves_the_present_one() -> None:
    old = Route(BASE + 2, 2, EVERYTHING, ip_address("10.0.1.7"))
    here = host(link(1), link(2), routes=frozenset({old}))
    rejections = refused(GatewayUse(2, ip_address("10.0.1.1")), cause=Cause.GATEWAY)
    found = wanted(instance(interface(1), interface(2)), here, rejections)
    assert "0.0.0.0/0 via 10.0.1.7" in routes(found, 2)
    assert reports(found) == ["gateway 10.0.1.1 of eth0: refused; to allow it, set KEY"]


# Facts of the host


def test_address_of_an_operators_link_is_left_to_it() -> None:
    here = host(link(1), link(7), addresses=kernel_address(8, "10.0.1.10/32"))
    found = wanted(instance(interface(1, "10.0.1.10", "10.0.1.11")), here)
    assert [each.split("/")[0] for each in link_addresses(found, 2)] == ["10.0.1.11"]
    [report] = reports(found)
    assert report.startswith("10.0.1.10 of eth0: eth6 has 10.0.1.10; ")
    assert '[Network] ExcludeAddresses="10.0.1.10"' in report


def test_address_on_lo_or_a_dummy_gets_its_rules() -> None:
    """A load balancer's address, such as kube-proxy's on kube-ipvs0."""
    for service in (Link(1, "lo", "", True, 65536, None, hardware=772), link(7, "kube-ipvs0", kind="dummy")):
        here = host(link(1), link(2), service, addresses=kernel_address(service.ifindex, "10.0.1.10/32"))
        found = wanted(instance(interface(1, "10.0.1.10", "10.0.1.11"), interface(2)), here)
        assert link_addresses(found, 2) == ["10.0.1.11/24+"]
        assert rule(0, "10.0.1.10", BASE + 2) in found.rules
        assert service.name in found.notices[0]


def test_duplicate_on_another_link_removes_nothing() -> None:
    here = host(
        link(1),
        link(2),
        link(7, "kube-ipvs0", kind="dummy"),
        addresses=kernel_address(2, "10.0.1.10/24", owned=True) | kernel_address(8, "10.0.1.10/32"),
    )
    found = wanted(instance(interface(1), interface(2)), here)
    assert link_addresses(found, 2) == ["10.0.1.10/24+"]
    assert rule(0, "10.0.1.10", BASE + 2) in found.rules


def test_owned_address_moves_to_its_new_link() -> None:
    here = host(link(1), link(2), addresses=kernel_address(3, "10.0.1.10/32", owned=True))
    found = wanted(instance(interface(1), interface(2)), here)
    assert "10.0.1.10" in link_addresses(found, 2)[0]


def test_disabled_ipv6_is_named_once_and_ipv4_configured() -> None:
    dual = interface(1, "10.0.1.10", "fd00::a", "fd00::b", subnets=["10.0.1.0/24", "fd00::/64"])
    found = wanted(instance(dual), host(link(1, ipv6=IPv6Settings(disabled=True))))
    assert link_addresses(found, 2) == ["10.0.1.10/24+"]
    assert reports(found) == [
        "eth0: IPv6 is disabled on this link; to use its IPv6 addresses, set net.ipv6.conf.eth0.disable_ipv6=0"
    ]


@pytest.mark.parametrize(
    ("mtu", "reason"),
    [
        (
            1200,
            "eth0: its MTU of 1200 is too small for IPv6, which needs 1280; to use its IPv6 addresses: ",
        ),
        (1500, "eth0: IPv6 is disabled in the kernel; to use its IPv6 addresses, boot without ipv6.disable=1"),
    ],
)
def test_link_without_ipv6_is_reported_with_the_cause(mtu: int, reason: str) -> None:
    dual = interface(1, "10.0.1.10", "fd00::a", subnets=["10.0.1.0/24", "fd00::/64"])
    without = link(1, mtu=mtu, ipv6=IPv6Settings(disabled=True, absent=True))
    [text] = reports(wanted(instance(dual), host(without)))
    assert text.startswith(reason)


def test_forwarding_without_accept_ra_2_is_named() -> None:
    six, forwards = interface(1, "fd00::a", subnets=["fd00::/64"]), IPv6Settings(forwarding=True)
    router = {2: (ip_address("fe80::1"),)}
    [text] = reports(wanted(instance(six), host(link(1, ipv6=forwards))))
    assert "net.ipv6.conf.eth0.accept_ra=2" in text
    for here in (host(link(1, ipv6=replace(forwards, accept_ra=2))), host(link(1, ipv6=forwards), gateways=router)):
        assert not wanted(instance(six), here).withheld


def test_ipv6_gateway_outlives_its_purged_route() -> None:
    six = [interface(n, f"fd00:{n}::a", subnets=[f"fd00:{n}::/64"]) for n in (1, 2)]
    owned = Route(BASE + 2, 2, EVERYTHING6, ip_address("fe80::1"))
    kept = wanted(instance(*six), host(link(1), link(2), routes=frozenset({owned})))
    assert "::/0 via fe80::1" in routes(kept, 2)
    here = host(link(1), link(2), routers={2: (ip_address("fe80::2"),)})
    assert "::/0 via fe80::2" in routes(wanted(instance(*six), here), 2)
    silent = refused(GatewayUse(2, ip_address("fe80::2")), cause=Cause.GATEWAY)
    assert "::/0 via fe80::2" not in routes(wanted(instance(*six), here, silent), 2)


def test_port_of_a_bridge_is_not_the_interface() -> None:
    here = host(link(1), link(2, master=9), Link(9, "br1", "02:aa:bb:cc:dd:01", True, 1500, "bridge"))
    found = wanted(instance(interface(1), interface(2)), here)
    assert link_addresses(found, 3) == []
    cure = f'if another program uses it, set [Network] Exclude="{mac(2)}"'
    assert found.unknown_macs == {mac(2): f"eth1 has that MAC and is a port of br1; {cure}"}


def test_manage_primary_configures_only_the_primary() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1), link(2)), manage=Manage.PRIMARY)
    assert (link_addresses(found, 2), link_addresses(found, 3)) == (["10.0.1.10/24+"], [])
    assert found.unmanaged == set()


def test_excluded_subnets_are_left_to_main() -> None:
    """EKS: the plugin adds a host route for each pod in the subnets of further interfaces."""
    excluded = tuple(map(ip_network, ("10.0.2.0/24",)))
    here, cloud = host(link(1), link(2)), instance(interface(1), interface(2), interface(3))
    found = wanted(cloud, here, manage=Manage.PRIMARY, exclude_addresses=excluded)
    assert "10.0.3.0/24 via 10.0.1.1" in routes(found, 2)
    assert "10.0.2.0/24 via 10.0.1.1" not in routes(found, 2)


def forwarded(*ranges: str, here: Actual | None = None, **config: Any) -> Desired:
    """Return the goal for an interface with these ranges on GCP, where they become local routes."""
    one = interface(1, ranges=tuple(map(ip_network, ranges)))
    return wanted(instance(one, provider="gcp"), here or host(link(1)), **config)


def test_foreign_local_range_is_adopted() -> None:
    """Google's guest agent adds the same routes, with its own protocol number."""
    alias = ip_network("10.64.0.0/24")
    adopted = forwarded(str(alias), here=host(link(1), local={alias: 2}))
    assert (adopted.routes, adopted.withheld) == ((), ())
    elsewhere = forwarded(str(alias), here=host(link(1), link(5, "eth9"), local={alias: 6}))
    assert elsewhere.routes == ()
    assert reports(elsewhere) == ["10.64.0.0/24 of eth0: table local already has it for eth9"]


def test_range_in_which_another_link_has_an_address_is_given_up() -> None:
    """The other link belongs to a pod. This is checked on every pass, also if the range is configured already."""
    owned = Route(255, 2, ip_network("10.64.0.0/24"), None)
    bridge = host(link(1), link(7, "cbr0", kind="bridge"), addresses=kernel_address(8, "10.64.0.1/24"))
    for here in (bridge, replace(bridge, routes=frozenset({owned}))):
        found = forwarded("10.64.0.0/24", here=here)
        assert found.routes == ()
        [text] = reports(found)
        assert "cbr0 has 10.64.0.1" in text
        assert "Prefixes=" in text
        assert "ExcludeAddresses=" in text
    excluded = forwarded("10.64.0.0/24", here=bridge, exclude_addresses=(ip_network("10.64.0.0/24"),))
    assert not excluded.withheld


def test_forwarded_address_of_two_interfaces_is_the_primarys() -> None:
    ones = [interface(n, ranges=(ip_network("10.64.0.7/32"),)) for n in (1, 2)]
    found = wanted(instance(*ones, provider="gcp"), host(link(1), link(2)))
    assert [route.ifindex for route in found.routes if route.table == 255] == [2]


def test_range_outside_subnets_needs_a_local_route() -> None:
    ones = [interface(1, ranges=(ip_network("10.64.0.0/24"), ip_network("10.0.1.16/28"))), interface(2)]
    found = wanted(instance(*ones), host(link(1), link(2)), prefixes=Prefixes.ROUTE)
    assert {str(each.selector) for each in found.rules if each.table == BASE + 2} == {"10.0.1.0/24", "10.0.1.16/28"}
    [text] = reports(found)
    assert '[Network] Prefixes="local"' in text


def test_each_gateway_outside_the_subnets_has_its_host_route() -> None:
    ways = (
        (ip_network("10.7.0.0/16"), ip_address("10.9.9.1")),
        (ip_network("10.8.0.0/16"), ip_address("203.0.113.1")),
        (ip_network("10.6.0.0/16"), ip_address("10.9.9.1")),
    )
    cloud = instance(interface(1, routes=ways, gateways=()), interface(2))
    rejections = refused(Route(BASE + 2, 2, ip_network("203.0.113.1/32"), None))
    found = wanted(cloud, host(link(1), link(2)), rejections)
    assert routes(found, 2) == ["10.0.1.0/24", "10.9.9.1/32", "10.7.0.0/16 via 10.9.9.1", "10.6.0.0/16 via 10.9.9.1"]


def test_two_network_cards_have_device_numbers_of_their_own() -> None:
    same = ["10.0.1.0/24"]
    ones = [interface(n, f"10.0.1.{n}0", subnets=same, device_number=1, network_card=3 - n) for n in (1, 2)]
    found = wanted(instance(*ones), host(link(1), link(2)))
    assert (link_addresses(found, 2), link_addresses(found, 3)) == (["10.0.1.10/32"], ["10.0.1.20/24+"])


def test_missing_subnet_is_taken_from_dhcp() -> None:
    """IBM's metadata has addresses without prefix lengths."""
    ones = [interface(n, f"10.0.{n}.10", subnets=[f"10.0.{n}.10/32"], gateways=()) for n in (1, 2)]
    leased = kernel_address(2, "10.0.1.10/24") | kernel_address(3, "10.0.2.10/24")
    learned = {2: (ip_address("10.0.1.1"),), 3: (ip_address("10.0.2.1"),)}
    found = wanted(instance(*ones), host(link(1), link(2), addresses=leased, gateways=learned))
    assert routes(found, 2) == [
        "10.0.1.10/32",
        "10.0.1.0/24",
        "10.0.2.10/32 via 10.0.1.1",
        "10.0.2.0/24 via 10.0.1.1",
        "0.0.0.0/0 via 10.0.1.1",
    ]
    owned = {place: replace(kernel, owned=True) for place, kernel in leased.items()}
    assert "10.0.1.0/24" not in routes(wanted(instance(*ones), host(link(1), link(2), addresses=owned)), 2)
