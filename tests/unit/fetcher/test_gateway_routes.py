"""Egress of a link's table: further gateways, an anchor's, no gateway, and addresses known only to DHCP."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import Cause, Desired, GatewayUse, Rejection, Rejections, Route
from cloud_network.fetcher.network.plan import is_removal, link_of
from cloud_network.netagent.claims import SECOND_TABLE
from cloud_network.netagent.operations import AddressAdd

from tests.unit.fetcher.values import (
    BASE,
    FIRST,
    after_changes,
    host,
    instance,
    interface,
    kernel_address,
    link,
    plan_of,
    wanted,
)


def table(found: Desired, ifindex: int, further: int = 0) -> list[str]:
    """Return the routes of the link's own table, in order; of its second one with SECOND_TABLE."""
    own = [each for each in found.routes if each.table == BASE + ifindex + further]
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


def droplet() -> Instance:
    """A public and an anchor address on one interface, and a private interface."""
    public = interface(1, "203.0.113.10", "10.17.0.5", subnets=["203.0.113.0/24", "10.17.0.0/16"])
    anchor = (ip_network("10.17.0.0/16"), ip_address("10.17.0.1"))
    return instance(replace(public, gateways=public.gateways[:1], anchor=anchor), interface(2), provider="digitalocean")


def test_anchor_leaves_by_its_own_gateway() -> None:
    found = wanted(droplet(), host(link(1), link(2)))
    near = ["203.0.113.0/24", "10.17.0.0/16"]
    assert table(found, 2) == [*near, "10.0.2.0/24 via 203.0.113.1", "0.0.0.0/0 via 203.0.113.1"]
    assert table(found, 2, SECOND_TABLE) == [*near, "10.0.2.0/24 via 10.17.0.1", "0.0.0.0/0 via 10.17.0.1"]
    leads = {(str(each.selector), each.priority - FIRST, each.table) for each in found.rules if each.selector}
    assert {each for each in leads if each[0] != "10.0.2.0/24"} == {
        ("203.0.113.0/24", 0, BASE + 2),
        ("203.0.113.0/24", 20, BASE + 2),
        ("10.17.0.0/16", 0, BASE + 2 + SECOND_TABLE),
        ("10.17.0.0/16", 20, BASE + 2 + SECOND_TABLE),
    }


def test_anchor_of_a_single_interface_uses_its_own_gateway() -> None:
    found = wanted(replace(droplet(), interfaces=droplet().interfaces[:1]), host(link(1)))
    near = ["203.0.113.0/24", "10.17.0.0/16"]
    assert table(found, 2) == [*near, "0.0.0.0/0 via 203.0.113.1"]
    assert table(found, 2, SECOND_TABLE) == [*near, "0.0.0.0/0 via 10.17.0.1"]


def test_anchor_uses_the_public_gateway_if_its_own_is_refused() -> None:
    refused: Rejections = {GatewayUse(2, ip_address("10.17.0.1")): Rejection("not known", Cause.POLICY)}
    found = wanted(droplet(), host(link(1), link(2)), refused)
    assert "0.0.0.0/0 via 203.0.113.1" in table(found, 2, SECOND_TABLE)
    assert [each.text for each in found.withheld] == ["gateway 10.17.0.1 of eth0: not known"]


def test_refused_route_of_the_second_table_is_named() -> None:
    default = Route(BASE + 2 + SECOND_TABLE, 2, ip_network("0.0.0.0/0"), ip_address("10.17.0.1"))
    found = wanted(droplet(), host(link(1), link(2)), {default: Rejection("no")})
    assert [each.text for each in found.withheld] == ["route 0.0.0.0/0 via 10.17.0.1 of eth0: no"]


def test_second_table_of_a_refused_link_stays() -> None:
    here = host(link(1), link(2))
    after = after_changes(plan_of(wanted(droplet(), here), here), here)
    found = wanted(instance(interface(2), interface(4)), after)
    assert not [op for op in plan_of(found, after) if is_removal(op) and link_of(op, BASE) == 2]


def test_route_through_unusable_gateway_is_left_out() -> None:
    """Neutron lists a subnet's host routes on every port, including the gateway's own."""
    behind = (
        (ip_network("192.168.0.0/24"), ip_address("198.18.0.1")),
        (ip_network("192.168.1.0/24"), ip_address("10.0.1.10")),
        (ip_network("192.168.2.0/24"), ip_address("10.0.2.10")),
        (ip_network("10.0.1.0/24"), ip_address("10.0.1.250")),
    )
    refused: Rejections = {Route(BASE + 2, 2, ip_network("198.18.0.1"), None): Rejection("refused")}
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
    here = host(link(1), link(2), gateways={3: (ip_address("fe80::1"),)})
    assert wanted(instance(interface(1), dual), here).notices == ()


def test_unconfigured_parts_are_reported() -> None:
    assert wanted(instance(interface(1), notices=("a bond",)), host(link(1))).notices == ("a bond",)


def test_dhcp_only_addresses_get_rules_and_stay_dhcps() -> None:
    bare = replace(interface(2), addresses=(), subnets=(), gateways=())
    leased = (
        kernel_address(3, "10.7.0.9/22")
        | kernel_address(3, "fe80::9/64")
        | kernel_address(3, "10.9.9.9/24", owned=True)
    )
    here = host(link(1), link(2), addresses=leased, gateways={3: (ip_address("10.7.0.1"),)})
    found = wanted(instance(interface(1), bare), here)
    assert table(found, 3) == ["10.7.0.0/22", "10.0.1.0/24 via 10.7.0.1", "0.0.0.0/0 via 10.7.0.1"]
    assert {str(each.selector) for each in found.rules if each.table == BASE + 3} == {"10.7.0.0/22"}
    assert "10.7.0.0/22 via 10.0.1.1" in table(found, 2), "the sibling's route"
    added = [op.interface.ip for op in plan_of(found, here) if isinstance(op, AddressAdd)]
    assert list(map(str, added)) == ["10.0.1.10"]


def test_an_mtu_that_netagent_would_refuse_is_left_out_and_named() -> None:
    found = wanted(instance(interface(1, mtu=1200)), host(link(1)))
    assert [goal.settings.mtu for goal in found.links] == [None]
    assert found.notices == ("eth0: an MTU of 1200 would disable IPv6 on the link; the MTU stays 1500",)
    assert [goal.settings.mtu for goal in wanted(instance(interface(1, mtu=1280)), host(link(1))).links] == [1280]
