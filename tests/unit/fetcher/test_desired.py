"""Instance, configuration and host → what the kernel shall hold (DESIGN.md, "What the kernel must look like")."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Network, ip_address, ip_network

import pytest
from cloud_network.fetcher.config import Config, Prefixes, Rules
from cloud_network.fetcher.network.objects import Actual, Desired, Route, Rule

from tests.unit.fetcher.values import BASE, FIRST, has, host, instance, interface, link, mac, wanted

EVERYTHING, EVERYTHING6 = ip_network("0.0.0.0/0"), ip_network("::/0")


def carried(found: Desired, ifindex: int) -> list[str]:
    """The link's addresses; `+` where the kernel makes a connected route."""
    return [
        f"{each.address}/{each.prefix}{'+' if each.connected else ''}"
        for each in found.addresses
        if each.ifindex == ifindex
    ]


def routes(found: Desired, ifindex: int) -> list[str]:
    """The routes of the link's own table, in order."""
    own = [each for each in found.routes if each.table == BASE + ifindex]
    assert all(each.ifindex == ifindex for each in own)
    return [f"{each.destination}{f' via {each.gateway}' if each.gateway else ''}" for each in own]


def rule(step: int, selector: str | None, table: int, *, to: bool = False, version: int = 4) -> Rule:
    network = ip_network(selector) if selector else None
    return Rule(FIRST + 10 * step, version, network, table, suppress=step < 2, to=to)


def test_the_first_address_of_a_subnet_carries_it_and_siblings_stand_alone() -> None:
    found = wanted(instance(interface(1, "10.0.1.10", "10.0.1.11", "10.0.1.12")), host(link(1)))
    assert carried(found, 2) == ["10.0.1.10/24+", "10.0.1.11/32", "10.0.1.12/32"]


def test_each_subnet_of_an_interface_has_its_own_first_address() -> None:
    one = interface(1, "10.0.1.10", "10.0.9.10", "10.0.1.11", subnets=["10.0.1.0/24", "10.0.9.0/25"])
    assert carried(wanted(instance(one), host(link(1))), 2) == ["10.0.1.10/24+", "10.0.9.10/25+", "10.0.1.11/32"]


def test_links_are_found_by_mac_whatever_their_name_or_order() -> None:
    here = host(link(2, "eth0"), link(1, "enp0s9"))
    found = wanted(instance(interface(1), interface(2)), here)
    assert (carried(found, 2), carried(found, 3)) == (["10.0.1.10/24+"], ["10.0.2.10/24+"])


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
    assert wanted(instance(interface(1)), here).unknown_macs == (mac(1),)
    assert carried(wanted(instance(interface(1)), here, allow_kinds=("veth",)), 2) == ["10.0.1.10/24+"]


def test_a_single_interface_needs_no_table() -> None:
    found = wanted(instance(interface(1)), host(link(1)))
    assert found.routes == ()
    assert found.rules == ()


def test_a_single_interface_named_in_supplementary_has_a_table() -> None:
    found = wanted(instance(interface(1)), host(link(1)), supplementary=("eth0",))
    assert routes(found, 2) == ["10.0.1.0/24", "0.0.0.0/0 via 10.0.1.1"]
    assert len(found.rules) == 3


def test_a_table_holds_own_subnet_then_the_siblings_by_its_gateway_then_everything() -> None:
    cloud = instance(interface(1), interface(2), interface(3))
    found = wanted(cloud, host(link(1), link(2), link(3)))
    assert routes(found, 3) == [
        "10.0.2.0/24",
        "10.0.1.0/24 via 10.0.2.1",
        "10.0.3.0/24 via 10.0.2.1",
        "0.0.0.0/0 via 10.0.2.1",
    ]


def test_siblings_count_even_where_this_host_lacks_their_link() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1)))
    assert "10.0.2.0/24 via 10.0.1.1" in routes(found, 2)
    assert found.unknown_macs == (mac(2),)


def test_rules_come_in_three_steps_for_every_address() -> None:
    cloud = instance(interface(1, "10.0.1.10", "10.0.1.11"), interface(2))
    found = wanted(cloud, host(link(1), link(2)), rules=Rules.ADDRESS)
    expected = {rule(1, None, 254)}
    for address, ifindex in (("10.0.1.10", 2), ("10.0.1.11", 2), ("10.0.2.10", 3)):
        expected |= {rule(0, address, BASE + ifindex), rule(2, address, BASE + ifindex)}
    assert set(found.rules) == expected
    assert len(found.rules) == len(expected)


def test_the_original_asks_for_rules_to_addresses_too() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1), link(2)), rules=Rules.ORIGINAL)
    assert {each for each in found.rules if each.to} == {
        rule(2, "10.0.1.10", BASE + 2, to=True),
        rule(2, "10.0.2.10", BASE + 3, to=True),
    }


def test_bands_of_tables_and_rules_are_the_operators() -> None:
    found = wanted(instance(interface(1), interface(2)), host(link(1), link(2)), route_table_base=500, rule_priority=7)
    assert {route.table for route in found.routes} == {502, 503}
    assert {each.priority for each in found.rules} == {7, 17, 27}


def test_an_excluded_link_gets_nothing_and_keeps_what_it_has() -> None:
    here = host(link(1), link(2))
    found = wanted(instance(interface(1), interface(2)), here, exclude=("eth1",))
    assert carried(found, 3) == routes(found, 3) == []
    assert {each.table for each in found.rules} == {254, BASE + 2}
    assert (set(found.unmanaged_links), set(found.unmanaged_tables)) == ({3}, {BASE + 3})
    assert found.unknown_macs == ()
    assert "10.0.2.0/24 via 10.0.1.1" in routes(found, 2)  # in the cloud it is still a sibling


def test_the_rule_that_an_excluded_links_rules_lean_on_stays() -> None:
    left = host(link(1), rules=frozenset({rule(0, "10.0.1.10", BASE + 2), rule(1, None, 254)}))
    found = wanted(instance(interface(1), interface(2)), left, exclude=("eth0",))
    assert found.rules == (rule(1, None, 254),)


def test_excluded_addresses_are_left_to_others() -> None:
    cloud = instance(interface(1, "10.0.1.10", "10.0.1.12", "10.0.1.20"), interface(2))
    others = (ip_network("10.0.1.10/31"), ip_network("fd00::/8"))
    for rules, expected in (
        (Rules.ADDRESS, {"10.0.1.12/32", "10.0.1.20/32"}),
        (Rules.AGGREGATE, {"10.0.1.12/30", "10.0.1.16/28"}),
    ):
        found = wanted(cloud, host(link(1), link(2)), exclude_addresses=others, rules=rules)
        assert carried(found, 2) == ["10.0.1.12/24+", "10.0.1.20/32"]
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
def test_a_range_is_one_object_and_becomes_what_prefixes_says(
    provider: str, config: Prefixes | None, local: bool, selected: bool
) -> None:
    block = ip_network("10.0.1.128/28")
    cloud = instance(interface(1, ranges=(block,)), interface(2), provider=provider)
    found = wanted(cloud, host(link(1), link(2)), prefixes=config)
    assert (Route(255, 2, block, None) in found.routes) == local
    assert [each.priority for each in found.rules if each.selector == block] == (
        [FIRST, FIRST + 20] if selected else []
    )
    assert carried(found, 2) == ["10.0.1.10/24+"]


def test_a_local_range_needs_no_second_interface() -> None:
    block = ip_network("10.0.1.128/28")
    found = wanted(instance(interface(1, ranges=(block,))), host(link(1)), prefixes=Prefixes.LOCAL)
    assert found.routes == (Route(255, 2, block, None),)
    assert found.rules == ()


def test_of_two_interfaces_in_one_subnet_the_primary_keeps_the_connected_route() -> None:
    same = ["10.0.1.0/24"]
    cloud = instance(interface(2, "10.0.1.20", subnets=same), interface(1, "10.0.1.10", subnets=same))
    found = wanted(cloud, host(link(1), link(2)))
    assert carried(found, 2) == ["10.0.1.10/24+"]
    assert carried(found, 3) == ["10.0.1.20/24"]
    assert routes(found, 2) == routes(found, 3) == ["10.0.1.0/24", "0.0.0.0/0 via 10.0.1.1"]


@pytest.mark.parametrize(("ifindex", "theirs"), [(3, "10.0.1.13/24"), (9, "10.0.0.1/16"), (1, "10.0.1.99/32")])
def test_no_connected_route_shadows_what_another_link_has(ifindex: int, theirs: str) -> None:
    here = host(link(1), link(2), addresses=has(ifindex, theirs))
    assert carried(wanted(instance(interface(1), interface(2)), here), 2) == ["10.0.1.10/24"]


@pytest.mark.parametrize("more", [["10.0.0.7/32"], ["10.0.0.7/24", "10.0.0.9/32"], ["10.0.9.7/16"]])
def test_a_link_that_has_much_else_still_is_not_shadowed(more: list[str]) -> None:
    """Whatever lies before, inside or around its part of the subnet."""
    theirs = {place: value for text in [*more, "10.0.1.99/32"] for place, value in has(9, text).items()}
    here = host(link(1), link(8, "lan0"), addresses=theirs)
    assert carried(wanted(instance(interface(1)), here, allow_addresses=Config().allow_addresses), 2) == [
        "10.0.1.10/24"
    ]


def test_what_the_link_itself_has_hides_nothing_of_anothers() -> None:
    here = host(link(1), link(8, "lan0"), addresses=has(2, "10.0.0.7/16") | has(9, "10.0.1.99/32"))
    assert carried(wanted(instance(interface(1)), here), 2) == ["10.0.1.10/24"]


def test_what_the_link_itself_has_shadows_nothing() -> None:
    here = host(link(1), addresses=has(2, "10.0.1.10/24") | has(2, "fe80::1/64") | has(1, "127.0.0.1/8"))
    assert carried(wanted(instance(interface(1)), here), 2) == ["10.0.1.10/24+"]


def test_an_address_that_two_interfaces_have_is_the_primarys() -> None:
    """Two VPCs may have the same addresses."""
    same = ["10.0.1.0/24"]
    cloud = instance(interface(1, "10.0.1.10", subnets=same), interface(2, "10.0.1.10", "10.0.1.11", subnets=same))
    found = wanted(cloud, host(link(1), link(2)))
    assert (carried(found, 2), carried(found, 3)) == (["10.0.1.10/24+"], ["10.0.1.11/24"])
    assert [each.table for each in found.rules if each.selector == ip_network("10.0.1.10")] == [BASE + 2] * 2


def test_without_device_numbers_macs_decide_who_is_first() -> None:
    same = ["10.0.1.0/24"]
    ones = [interface(n, f"10.0.1.{n}0", subnets=same, device_number=None) for n in (2, 1)]
    assert carried(wanted(instance(*ones), host(link(1), link(2))), 2) == ["10.0.1.10/24+"]


def test_a_gateway_outside_the_subnets_is_reached_on_link_first() -> None:
    one = interface(1, "10.0.1.10", subnets=["10.0.1.10/32"], gateways=(ip_address("10.0.1.1"),))
    found = wanted(instance(one, interface(2)), host(link(1), link(2)))
    assert routes(found, 2) == ["10.0.1.10/32", "10.0.1.1/32", "10.0.2.0/24 via 10.0.1.1", "0.0.0.0/0 via 10.0.1.1"]


def test_the_kernels_gateway_of_the_same_link_serves_where_the_cloud_names_none() -> None:
    cloud = instance(interface(1, gateways=()), interface(2, gateways=()))
    learned = {2: (ip_address("10.0.1.7"), ip_address("fe80::7"))}
    found = wanted(cloud, host(link(1), link(2), gateways=learned))
    assert routes(found, 2) == ["10.0.1.0/24", "10.0.2.0/24 via 10.0.1.7", "0.0.0.0/0 via 10.0.1.7"]
    assert routes(found, 3) == ["10.0.2.0/24"]  # never another link's


def test_the_clouds_gateway_goes_before_the_kernels() -> None:
    found = wanted(
        instance(interface(1), interface(2)), host(link(1), link(2), gateways={2: (ip_address("10.0.1.7"),)})
    )
    assert "0.0.0.0/0 via 10.0.1.1" in routes(found, 2)


def test_ipv6_goes_by_the_routers_advertisement() -> None:
    dual = [interface(n, f"10.0.{n}.10", f"fd00:{n}::a", subnets=[f"10.0.{n}.0/24", f"fd00:{n}::/64"]) for n in (1, 2)]
    found = wanted(instance(*dual), host(link(1), link(2), gateways={2: (ip_address("fe80::1"),)}))
    assert carried(found, 2) == ["10.0.1.10/24+", "fd00:1::a/128"]
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


def test_an_interface_without_ipv4_gets_no_ipv4_routes_but_its_siblings_do() -> None:
    six = interface(2, "fd00:2::a", subnets=["fd00:2::/64"])
    found = wanted(instance(interface(1), six), host(link(1), link(2), gateways={3: (ip_address("fe80::1"),)}))
    assert routes(found, 3) == ["fd00:2::/64", "::/0 via fe80::1"]
    assert routes(found, 2) == ["10.0.1.0/24", "0.0.0.0/0 via 10.0.1.1"]
    assert {each.version for each in found.rules} == {4, 6}


def test_links_are_wished_up_with_the_metadatas_mtu() -> None:
    found = wanted(instance(interface(1, mtu=9001), interface(2)), host(link(1, up=False), link(2)))
    assert [(each.ifindex, each.mtu) for each in found.settings] == [(2, 9001), (3, None)]


def test_while_a_mac_is_unknown_links_that_are_not_named_are_left_alone() -> None:
    """Somebody may have changed the MAC of one of them."""
    here = host(link(1), link(2), link(7, "docker0", kind="bridge"))
    known = wanted(instance(interface(1)), here)
    assert (known.unknown_macs, known.unmanaged_links) == ((), frozenset())
    unknown = wanted(instance(interface(1), interface(5)), here)
    assert (list(unknown.unknown_macs), set(unknown.unmanaged_links)) == ([mac(5)], {3, 8})


# Links that share a MAC


def test_the_parts_of_a_link_with_the_same_mac_are_not_it() -> None:
    """Azure: a VF (mlx5) below the synthetic interface (hv_netvsc), neither with a kind."""
    synthetic, vf = link(1), link(1, "enP1s1", ifindex=9, master=2)
    for links in ((synthetic, vf), (vf, synthetic)):
        found = wanted(instance(interface(1)), host(*links))
        assert carried(found, 2) == ["10.0.1.10/24+"]
        assert carried(found, 9) == []
        assert found.unknown_macs == ()


def test_a_part_of_something_else_is_still_the_interface() -> None:
    """A VRF has a MAC of its own."""
    here = host(link(1, master=7), link(6, "vrf0", kind="vrf", mac="02:00:00:00:00:99"))
    assert carried(wanted(instance(interface(1)), here), 2) == ["10.0.1.10/24+"]


def test_of_two_links_with_one_mac_neither_is_taken() -> None:
    """A VF comes some milliseconds before it becomes a part of the synthetic interface."""
    here = host(link(1), link(1, "enP1s1", ifindex=9))
    found = wanted(instance(interface(1)), here)
    assert found.addresses == ()
    assert found.unknown_macs == (mac(1),)
    assert found.unmanaged_links == {2, 9}


# Interfaces of which only the gateway is on link


def test_behind_the_gateway_lie_the_own_subnet_and_the_siblings() -> None:
    ones = [interface(n, f"10.0.{n}.10", routed=True) for n in (1, 2)]
    found = wanted(instance(*ones, provider="gcp"), host(link(1), link(2)))
    assert routes(found, 2) == [
        "10.0.1.1/32",
        "10.0.1.0/24 via 10.0.1.1",
        "10.0.2.0/24 via 10.0.1.1",
        "0.0.0.0/0 via 10.0.1.1",
    ]
    assert carried(found, 2) == ["10.0.1.10/32"]


# What netagent would refuse

PUBLIC = ip_network("203.0.113.7/32")


def forwarded(*ranges: str, here: Actual | None = None, **config: object) -> Desired:
    """An interface with these ranges on GCP, where they become local routes."""
    one = interface(1, ranges=tuple(map(ip_network, ranges)))
    return wanted(instance(one, provider="gcp"), here or host(link(1)), **config)


def test_an_address_that_netagent_would_refuse_does_not_stop_the_others() -> None:
    one = interface(1, "10.0.1.10", "198.18.0.7", subnets=["10.0.1.0/24", "198.18.0.0/24"])
    found = wanted(instance(one, interface(2)), host(link(1), link(2)))
    assert carried(found, 2) == ["10.0.1.10/24+"]
    [text] = found.withheld
    assert "198.18.0.7 of eth0" in text
    assert '[Netagent] AllowAddresses="198.18.0.7"' in text
    assert not [each for each in found.rules if each.selector == ip_network("198.18.0.7")]
    assert "198.18.0.0/24" not in routes(found, 2)


def test_an_address_that_the_operator_allows_or_dhcp_gave_or_a_router_named_is_not_withheld() -> None:
    one = interface(1, "198.18.0.7", subnets=["198.18.0.0/24"])
    allowed = (*Config().allow_addresses, ip_network("198.18.0.0/24"))
    assert carried(wanted(instance(one), host(link(1)), allow_addresses=allowed), 2) == ["198.18.0.7/24+"]
    there = host(link(1), addresses=has(2, "198.18.0.7/24"))
    neighbour = host(link(1), addresses=has(2, "198.18.0.9/24"))
    learned = host(link(1), learned={2: frozenset({ip_network("198.18.0.0/24")})})
    for here in (there, neighbour, learned):
        assert carried(wanted(instance(one), here), 2) == ["198.18.0.7/24+"]
    only_this = (*Config().allow_addresses, ip_network("198.18.0.7"))
    assert carried(wanted(instance(one), host(link(1)), allow_addresses=only_this), 2) == ["198.18.0.7/24"]


def test_a_public_ipv6_address_is_withheld_only_until_a_router_is_heard() -> None:
    fe80 = frozenset({ip_network("fe80::/64")})  # every link has that of the kernel
    one = instance(interface(1, "2001:db8:1::a", subnets=["2001:db8:1::/64"]))
    unheard = wanted(one, host(link(1), link(2), learned={2: fe80, 3: frozenset({ip_network("2001:db8:1::/64")})}))
    [text] = unheard.withheld
    assert "2001:db8:1::a of eth0: no router has advertised itself there yet" in text
    assert unheard.transient == {text}
    networks = frozenset({ip_network("2001:db8:2::/64")})
    for here in (
        host(link(1), learned={2: fe80 | networks}),
        host(link(1), learned={2: fe80}, gateways={2: (ip_address("fe80::1"),)}),
    ):
        heard = wanted(one, here)
        assert "neither private nor" in heard.withheld[0]
        assert heard.transient == frozenset()


def test_what_does_not_pass_by_itself_is_not_said_to() -> None:
    """Nor IPv4, nor an address that another link has, nor one that is nobody's."""
    one = interface(
        1, "198.18.0.7", "fd00::7", "fd00:ec2::254", subnets=["198.18.0.0/24", "fd00::/64", "fd00:ec2::/64"]
    )
    found = wanted(instance(one), host(link(1), link(2), addresses=has(3, "fd00::7/128")))
    assert len(found.withheld) == 3
    assert found.transient == frozenset()


def test_what_we_gave_a_link_ourselves_proves_nothing() -> None:
    one = interface(1, "198.18.0.7", subnets=["198.18.0.0/24"])
    assert wanted(instance(one), host(link(1), addresses=has(2, "198.18.0.9/24", owned=True))).withheld


def test_an_address_that_an_operators_link_has_is_not_asked_for() -> None:
    here = host(link(1), link(7), addresses=has(8, "10.0.1.10/32"))
    found = wanted(instance(interface(1, "10.0.1.10", "10.0.1.11")), here)
    assert [address.split("/")[0] for address in carried(found, 2)] == ["10.0.1.11"]
    assert found.withheld == ("10.0.1.10 of eth0: eth6 has 10.0.1.10",)


def test_addresses_of_a_bridges_subnet_are_the_bridges_unless_the_operator_or_dhcp_says_otherwise() -> None:
    one, bridge = interface(1, "10.0.1.10", "10.0.1.11"), link(7, "br0", kind="bridge")
    here = host(link(1), bridge, addresses=has(8, "10.0.1.1/24"))
    assert ["not the cloud's" in reason for reason in wanted(instance(one), here).withheld] == [True, True]
    allowed = (*Config().allow_addresses, ip_network("10.0.1.0/24"))
    assert not wanted(instance(one), here, allow_addresses=allowed).withheld
    there = host(link(1), bridge, addresses=has(8, "10.0.1.1/24") | has(2, "10.0.1.10/24"))
    assert not wanted(instance(one), there).withheld


def test_a_forwarded_public_address_is_named_with_the_key_and_the_aliases_stay() -> None:
    found = forwarded("203.0.113.7/32", "10.64.0.0/24")
    assert [str(route.destination) for route in found.routes] == ["10.64.0.0/24"]
    [text] = found.withheld
    assert 'AllowAddresses="203.0.113.7"' in text
    allowed = forwarded("203.0.113.7/32", allow_addresses=(*Config().allow_addresses, PUBLIC))
    assert [route.destination for route in allowed.routes] == [PUBLIC]
    assert allowed.withheld == ()


def test_metadata_servers_are_no_links_whatever_is_allowed() -> None:
    everything = (ip_network("0.0.0.0/1"), ip_network("128.0.0.0/1"))
    found = forwarded("100.100.100.200/32", "169.254.169.254/32", allow_addresses=everything)
    assert found.routes == ()
    assert len(found.withheld) == 2
    assert "AllowAddresses" not in "".join(found.withheld)


def test_a_range_that_others_have_made_local_on_this_link_is_adopted_and_elsewhere_withheld() -> None:
    """Google's guest agent writes the same routes, with its own protocol; an alias may be an address already."""
    alias = ip_network("10.64.0.0/24")
    assert forwarded(str(alias), here=host(link(1), local={alias: 2})).routes == ()
    assert forwarded(str(alias), here=host(link(1), local={alias: 2})).withheld == ()
    elsewhere = forwarded(str(alias), here=host(link(1), link(5, "eth9"), local={alias: 6}))
    assert elsewhere.routes == ()
    assert elsewhere.withheld == ("10.64.0.0/24 of eth0: table local has it for eth9",)


def test_a_range_in_which_another_link_has_an_address_is_withheld_until_we_have_it() -> None:
    bridge = has(8, "10.64.0.1/24")
    here = host(link(1), link(7, "docker0", kind="bridge"), addresses=bridge)
    found = forwarded("10.64.0.0/24", here=here)
    assert found.withheld == ("10.64.0.0/24 of eth0: docker0 has 10.64.0.1",)
    ours = Route(255, 2, ip_network("10.64.0.0/24"), None)
    again = forwarded("10.64.0.0/24", here=host(*here.links, addresses=bridge, routes=frozenset({ours})))
    assert again.routes == (ours,)  # a container comes later: nothing is taken away for it


def test_a_forwarded_address_of_two_interfaces_is_the_primarys() -> None:
    ones = [interface(n, ranges=(ip_network("10.64.0.7/32"),)) for n in (1, 2)]
    found = wanted(instance(*ones, provider="gcp"), host(link(1), link(2)))
    assert [route.ifindex for route in found.routes if route.table == 255] == [2]


def test_a_range_outside_the_subnets_cannot_have_rules_alone() -> None:
    ones = [interface(1, ranges=(ip_network("10.64.0.0/24"), ip_network("10.0.1.16/28"))), interface(2)]
    found = wanted(instance(*ones), host(link(1), link(2)), prefixes=Prefixes.ROUTE)
    assert {str(each.selector) for each in found.rules if each.table == BASE + 2} == {"10.0.1.0/24", "10.0.1.16/28"}
    [text] = found.withheld
    assert '[Network] Prefixes="local"' in text


def test_a_gateway_that_may_not_be_put_on_link_is_not_used() -> None:
    one = interface(1, "10.0.1.10", subnets=["10.0.1.10/32"], gateways=(ip_address("198.18.0.1"),))
    assert routes(wanted(instance(one, interface(2)), host(link(1), link(2))), 2) == ["10.0.1.10/32"]


def test_of_two_gateways_outside_the_subnets_each_is_looked_at() -> None:
    ways = (
        (ip_network("10.7.0.0/16"), ip_address("10.9.9.1")),
        (ip_network("10.8.0.0/16"), ip_address("203.0.113.1")),  # nobody's to put on link
        (ip_network("10.6.0.0/16"), ip_address("10.9.9.1")),
    )
    found = wanted(instance(interface(1, routes=ways, gateways=()), interface(2)), host(link(1), link(2)))
    assert routes(found, 2) == ["10.0.1.0/24", "10.9.9.1/32", "10.7.0.0/16 via 10.9.9.1", "10.6.0.0/16 via 10.9.9.1"]


def test_a_subnet_that_the_links_table_has_already_stays_on_link() -> None:
    """DHCP's word for a public subnet may end with its lease; a route that is there is no reason to take it away."""
    public = interface(1, "203.0.113.10", subnets=["203.0.113.0/24"])
    there = frozenset({Route(BASE + 2, 2, ip_network("203.0.113.0/24"), None)})
    assert "203.0.113.0/24" in routes(wanted(instance(public, interface(2)), host(link(1), link(2), routes=there)), 2)
    assert routes(wanted(instance(public, interface(2)), host(link(1), link(2))), 2) == []


def test_two_network_cards_have_device_numbers_of_their_own() -> None:
    same = ["10.0.1.0/24"]
    ones = [interface(n, f"10.0.1.{n}0", subnets=same, device_number=1, network_card=3 - n) for n in (1, 2)]
    found = wanted(instance(*ones), host(link(1), link(2)))
    assert (carried(found, 2), carried(found, 3)) == (["10.0.1.10/24"], ["10.0.1.20/24+"])


def test_a_subnet_that_the_metadata_do_not_name_is_what_dhcp_has_set() -> None:
    """IBM names addresses alone."""
    ones = [interface(n, f"10.0.{n}.10", subnets=[f"10.0.{n}.10/32"], gateways=()) for n in (1, 2)]
    leased = has(2, "10.0.1.10/24") | has(3, "10.0.2.10/24")
    learned = {2: (ip_address("10.0.1.1"),), 3: (ip_address("10.0.2.1"),)}
    found = wanted(instance(*ones), host(link(1), link(2), addresses=leased, gateways=learned))
    assert routes(found, 2) == [
        "10.0.1.10/32",
        "10.0.1.0/24",
        "10.0.2.10/32 via 10.0.1.1",
        "10.0.2.0/24 via 10.0.1.1",
        "0.0.0.0/0 via 10.0.1.1",
    ]
    ours = {place: replace(kernel, owned=True) for place, kernel in leased.items()}
    assert "10.0.1.0/24" not in routes(wanted(instance(*ones), host(link(1), link(2), addresses=ours)), 2)
