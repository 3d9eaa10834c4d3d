"""Egress of a link's table: further gateways, no gateway, and links whose addresses are known only to DHCP."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from cloud_network.fetcher.network.objects import Desired, Rejection, Route
from cloud_network.netagent.operations import AddressAdd

from tests.unit.fetcher.values import BASE, has, host, instance, interface, link, plan_of, wanted


def table(found: Desired, ifindex: int) -> list[str]:
    """Return the routes of the link's own table, in order."""
    own = [each for each in found.routes if each.table == BASE + ifindex]
    return [f"{each.destination}{f' via {each.gateway}' if each.gateway else ''}" for each in own]


def test_explicit_route_precedes_derived_routes() -> None:
    other = ip_address("10.0.1.250")
    behind = ((ip_network("10.0.2.0/24"), other), (ip_network("192.168.0.0/16"), other))
    found = wanted(instance(interface(1, routes=behind), interface(2)), host(link(1), link(2)))
    assert table(found, 2) == [
        "10.0.1.0/24",
        "10.0.2.0/24 via 10.0.1.250",
        "192.168.0.0/16 via 10.0.1.250",
        "0.0.0.0/0 via 10.0.1.1",
    ]


def test_route_through_unusable_gateway_is_left_out() -> None:
    """Neutron lists a subnet's host routes on every port, including the gateway's own."""
    behind = (
        (ip_network("192.168.0.0/24"), ip_address("198.18.0.1")),
        (ip_network("192.168.1.0/24"), ip_address("10.0.1.10")),
        (ip_network("192.168.2.0/24"), ip_address("10.0.2.10")),
        (ip_network("10.0.1.0/24"), ip_address("10.0.1.250")),
    )
    refused = {Route(BASE + 2, 2, ip_network("198.18.0.1"), None): Rejection("refused")}
    found = wanted(instance(interface(1, routes=behind), interface(2)), host(link(1), link(2)), refused)
    assert table(found, 2) == ["10.0.1.0/24", "10.0.2.0/24 via 10.0.1.1", "0.0.0.0/0 via 10.0.1.1"]


def test_link_without_gateway_has_only_subnets_and_a_notice() -> None:
    found = wanted(instance(interface(1), interface(2, gateways=())), host(link(1), link(2)))
    assert table(found, 3) == ["10.0.2.0/24"]
    assert found.notices == ("eth1: no gateway known; its IPv4 addresses are reachable only from their own subnet",)


def test_ipv6_is_named_until_a_router_is_heard() -> None:
    dual = interface(2, "10.0.2.10", "fd00::10", subnets=["10.0.2.0/24", "fd00::/64"])
    [notice] = wanted(instance(interface(1), dual), host(link(1), link(2))).notices
    assert notice.startswith("eth1: no IPv6 router advertisement received")
    heard = host(link(1), link(2), gateways={3: (ip_address("fe80::1"),)})
    assert wanted(instance(interface(1), dual), heard).notices == ()


def test_unconfigured_parts_are_reported() -> None:
    assert wanted(instance(interface(1), notices=("a bond",)), host(link(1))).notices == ("a bond",)


def test_dhcp_only_addresses_get_rules_and_stay_dhcps() -> None:
    bare = replace(interface(2), addresses=(), subnets=(), gateways=())
    leased = has(3, "10.7.0.9/22") | has(3, "fe80::9/64") | has(3, "10.9.9.9/24", owned=True)
    here = host(link(1), link(2), addresses=leased, gateways={3: (ip_address("10.7.0.1"),)})
    found = wanted(instance(interface(1), bare), here)
    assert table(found, 3) == ["10.7.0.0/22", "10.0.1.0/24 via 10.7.0.1", "0.0.0.0/0 via 10.7.0.1"]
    assert {str(each.selector) for each in found.rules if each.table == BASE + 3} == {"10.7.0.0/22"}
    assert "10.7.0.0/22 via 10.0.1.1" in table(found, 2), "the sibling's way there"
    added = [op.interface.ip for op in plan_of(found, here) if isinstance(op, AddressAdd)]
    assert list(map(str, added)) == ["10.0.1.10"]


def test_an_mtu_that_netagent_would_refuse_is_left_out_and_named() -> None:
    found = wanted(instance(interface(1, mtu=1200)), host(link(1)))
    assert [goal.settings.mtu for goal in found.links] == [None]
    assert found.notices == ("eth0: an MTU of 1200 would disable IPv6 on the link; the MTU stays 1500",)
    assert [goal.settings.mtu for goal in wanted(instance(interface(1, mtu=1280)), host(link(1))).links] == [1280]
