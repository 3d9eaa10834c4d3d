"""The view of a kernel that changes while it is read, so that its dumps disagree, or that has many objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest
from cloud_network.netagent import request_policy, rollback, rtnetlink
from cloud_network.netagent.operations import (
    PROTOCOL,
    TABLE_LOCAL,
    AddressAdd,
    AddressRemove,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from cloud_network.netagent.protocol import MAX_OPS
from cloud_network.netagent.rtnetlink import Address, Link, NextHop, Route, Rule
from cloud_network.netagent.settings import Settings
from cloud_network.netagent.view import OutsideState, Snapshot, View

LOCAL = (Rule(0, IPv4Network("0.0.0.0/0"), False, TABLE_LOCAL, False, False, rtnetlink.RTPROT_KERNEL),)
ETH0 = Link(index=2, name="eth0", mtu=1500, kind=None, up=True, loopback=False)
SUBNET6 = IPv6Interface("fd00:abc::5/64")


def test_an_address_of_a_link_that_is_newer_than_the_links() -> None:
    """A rule for it is refused. It once ended netagent with a KeyError, and the restart refilled all budgets."""
    links = (Link(index=2, name="eth0", mtu=1500, kind=None, up=True, loopback=False),)
    addresses = (Address(9, IPv4Address("10.0.5.5"), 24, 0, None),)
    view = View(Snapshot(links, addresses, (), LOCAL, frozenset()), Settings(), OutsideState())
    rule = RuleAdd(31000, IPv4Network("10.0.5.5/32"), False, 10001, True, False)
    (refused,) = request_policy.check_for_report([rule], view)
    assert refused.reason == "10.0.5.5/32 is no address or range of eth0"


def rules_for(lengths: range, first: str) -> list[RuleAdd]:
    """Return different rules for networks that begin at `first`: of each priority, with and without `iif lo`."""
    networks = [IPv4Network(f"{first}/{length}", strict=False) for length in lengths]
    return [
        RuleAdd(priority, network, False, 10001, True, local)
        for priority in range(31000, 31030)
        for network in networks
        for local in (True, False)
    ]


@pytest.mark.exhaustive
def test_many_ranges_do_not_delay_rules_around_them() -> None:
    """With a list of all ranges for each rule, the check took 35 s."""
    address = Address(2, IPv4Address("10.88.0.1"), 16, 0, PROTOCOL)
    hosts = range(int(IPv4Address("10.88.0.4")), int(IPv4Address("10.88.31.68")))
    routes = [
        Route(TABLE_LOCAL, IPv4Network(host), (NextHop(2, None),), rtnetlink.RTN_LOCAL, PROTOCOL, 0, None, False)
        for host in hosts
    ]
    view = View(Snapshot((ETH0,), (address,), tuple(routes), LOCAL, frozenset()), Settings(), OutsideState())
    rules = rules_for(range(8, 20), "10.88.0.0")
    began = time.process_time()
    refused = request_policy.check_for_report(rules, view)
    assert time.process_time() < began + 5
    assert len(rules) - len(refused) == len(range(16, 20)) * 30  # those in its subnet, with `iif lo`


@pytest.mark.exhaustive
def test_many_subnets_do_not_delay_rules_for_the_network_around() -> None:
    """With a search of all subnets for each rule, the check took 56 s."""
    first = int(IPv4Address("10.0.0.0"))
    addresses = tuple(Address(2, IPv4Address(first + 8 * at + 1), 30, 0, PROTOCOL) for at in range(8000))
    view = View(Snapshot((ETH0,), addresses, (), LOCAL, frozenset()), Settings(), OutsideState())
    rules = rules_for(range(8, 14), "10.0.0.0")
    began = time.process_time()
    refused = request_policy.check_for_report(rules, view)
    assert time.process_time() < began + 5
    assert len(refused) == len(rules)


@pytest.mark.exhaustive
def test_many_on_link_routes_do_not_delay_rules_that_come_between() -> None:
    """With a search of all of them after each new one, the check took 56 s, and a rollback waited for it."""
    address = Address(2, IPv4Address("10.0.2.10"), 24, 0, PROTOCOL)
    subnets = [*IPv4Network("10.64.0.0/10").subnets(new_prefix=24)][:12048]
    hop, kind = (NextHop(2, None),), rtnetlink.RTN_UNICAST
    routes = tuple(Route(10001, each, hop, kind, PROTOCOL, 0, None, expires=False) for each in subnets[2048:])
    view = View(Snapshot((ETH0,), (address,), routes, LOCAL, frozenset()), Settings(), OutsideState())
    ranges = IPv4Network("10.0.2.0/24").subnets(new_prefix=31)
    rules = [RuleAdd(priority, each, False, 10001, True, False) for each in ranges for priority in range(31000, 31016)]
    additions = [RouteReplace(10001, 2, each, None) for each in subnets[: len(rules)]]
    ops: list[Operation] = [op for pair in zip(additions, rules, strict=True) for op in pair]
    began = time.process_time()
    request_policy.check_for_apply(ops, view)
    assert time.process_time() < began + 5


def test_a_check_that_takes_too_long_refuses_the_other_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = [AddressAdd(2, IPv4Interface(f"10.0.2.{host}/32"), False) for host in (10, 11, 12)]
    times = iter((0.0, 1.0, 10.0, 10.1))
    monkeypatch.setattr(request_policy, "process_time", lambda: next(times))
    view = View(Snapshot((ETH0,), (), (), LOCAL, frozenset()), Settings(), OutsideState())
    (refused,) = request_policy.check_for_report(ops, view)
    assert (refused.position, refused.reason[:47]) == (2, "the check of the request takes longer than 10 s")


def test_a_search_for_orphans_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 1.0, 10.1))
    monkeypatch.setattr(request_policy, "process_time", lambda: next(times))
    address = Address(2, IPv4Address("10.0.2.10"), 32, 0, PROTOCOL)
    view = View(Snapshot((ETH0,), (address,), (), LOCAL, frozenset()), Settings(), OutsideState())
    (refused,) = request_policy.check_for_report([AddressRemove(2, IPv4Interface("10.0.2.10/32"))], view)
    assert (refused.position, refused.reason[:47]) == (0, "the check of the request takes longer than 10 s")


@pytest.mark.exhaustive
def test_a_repeated_removal_does_not_delay_root() -> None:
    """Each check of a rule for main asks all 8,000 rules whether they need it: together, 84 s."""
    first, everything = int(IPv4Address("10.0.0.10")), IPv4Network("0.0.0.0/0")
    addresses = tuple(Address(2, IPv4Address(first + at), 32, 0, PROTOCOL) for at in range(4000))
    rules = [
        Rule(priority, IPv4Network(each.ip), False, 10001, priority < 31020, False, PROTOCOL)
        for priority in (31015, 31020)
        for each in addresses
    ]
    main = Rule(31010, everything, False, 254, True, False, PROTOCOL)
    view = View(Snapshot((ETH0,), addresses, (), (*LOCAL, main, *rules[:-1]), frozenset()), Settings(), OutsideState())
    removal = RuleRemove(31010, everything, False, 254, True, False)
    began = time.process_time()
    refused = request_policy.check_for_report([removal] * MAX_OPS, view)
    assert time.process_time() < began + 5
    assert [each.reason for each in refused[1:]] == ["the same operation twice in one request"] * (MAX_OPS - 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("length", [64, 44])
def test_many_advertised_prefixes_delay_no_request(length: int) -> None:
    """A neighbour can advertise thousands in a second. With a search of all of them, a check took minutes."""
    first, hop = int(IPv6Address("fd60::")), (NextHop(2, None),)
    prefixes = (IPv6Network((first + (at << 64), 64)) for at in range(20000))
    kernel = rtnetlink.RTN_UNICAST, rtnetlink.RTPROT_KERNEL
    routes = tuple(Route(254, prefix, hop, *kernel, 256, None, expires=True) for prefix in prefixes)
    view = View(Snapshot((ETH0,), (), routes, LOCAL, frozenset()), Settings(), OutsideState())
    others = int(IPv6Address("fd60:0:0:8000::9" if length == 64 else "fd60::8000:0:0:0:9"))
    ops = [AddressAdd(2, IPv6Interface((others + (at << 64), length)), True) for at in range(MAX_OPS // 2)]
    began = time.process_time()
    refused = request_policy.check_for_report(ops, view)
    assert time.process_time() < began + 5
    assert len(refused) == (0 if length == 64 else len(ops))


@pytest.mark.exhaustive
def test_many_addresses_do_not_delay_a_rollback() -> None:
    """With a search of all addresses for each, the rollback took 28 s."""
    first = int(IPv4Address("10.0.0.0"))
    addresses = [Address(2, IPv4Address(first + at), 32, 0, PROTOCOL) for at in range(1, 12000)]
    view = View(Snapshot((ETH0,), tuple(addresses), (), LOCAL, frozenset()), Settings(), OutsideState())
    state = rollback.RollbackState(view, {}, set(), all_applied=True)
    began = time.process_time()
    for at in range(MAX_OPS):
        op = AddressAdd(2, IPv4Interface(first + 65536 + at), True)
        assert state.obstacle(op) is None
        state.count_done(op)
    assert time.process_time() < began + 5


@pytest.mark.exhaustive
def test_many_wider_rules_do_not_delay_a_rollback_of_ranges() -> None:
    """With a look at all rules around each range, the rollback took minutes, and systemd ended each start of it."""
    subnet = Address(2, IPv6Address("fd00:1:2::1:0"), 48, 0, PROTOCOL)
    rules = [
        Rule(priority, IPv6Network(f"fd00:1:2::/{length}"), False, table, True, False, PROTOCOL)
        for priority in range(31000, 31030)
        for length in range(64, 117)
        for table in (10001, 10001 + 2**30)
    ]
    ranges = [IPv6Network(int(IPv6Address("fd00:1:2::")) + host) for host in range(1, 1001)]
    hop = (NextHop(2, None),)
    routes = [Route(TABLE_LOCAL, each, hop, rtnetlink.RTN_LOCAL, PROTOCOL, 0, None, expires=False) for each in ranges]
    view = View(Snapshot((ETH0,), (subnet,), tuple(routes), tuple(rules), frozenset()), Settings(), OutsideState())
    removals = [RouteRemove(TABLE_LOCAL, 2, each, None) for each in ranges]
    places = {(each.table, each.destination) for each in removals}
    state = rollback.RollbackState(view, {}, places, all_applied=True)
    began = time.process_time()
    for op in removals:
        assert state.obstacle(op) is None
        state.count_done(op)
    assert time.process_time() < began + 5


def test_an_address_that_was_not_restored_keeps_no_routes() -> None:
    """Without it, the kernel would remove another program's route with the link's only address."""
    added, former = IPv4Interface("10.0.3.10/24"), AddressAdd(2, IPv4Interface("10.0.2.10/24"), True)
    static = Route(254, IPv4Network("10.99.0.0/16"), (NextHop(2, None),), rtnetlink.RTN_UNICAST, 4, 0, None, False)
    snapshot = Snapshot((ETH0,), (Address(2, added.ip, 24, 0, PROTOCOL),), (static,), LOCAL, frozenset())
    state = rollback.RollbackState(View(snapshot, Settings(), OutsideState()), {}, set(), all_applied=True)
    removal = AddressRemove(2, added)
    assert "10.99.0.0/16" in (state.obstacle(removal) or "")
    state.count_done(former)
    assert state.obstacle(removal) is None
    state.count_absent(former)
    assert "10.99.0.0/16" in (state.obstacle(removal) or "")


@pytest.mark.parametrize("op", [AddressAdd(2, SUBNET6, True), AddressRemove(2, SUBNET6)])
def test_an_ipv6_prefix_route_in_the_table_of_a_vrf_stays(op: AddressAdd | AddressRemove) -> None:
    """For a member of a VRF, the kernel searches the VRF's table for the connected route (l3mdev_fib_table)."""
    owned = Address(2, SUBNET6.ip, 64, 0, PROTOCOL)
    prefix = Route(10, SUBNET6.network, (NextHop(2, None),), rtnetlink.RTN_UNICAST, 4, 256, None, False)
    there = (owned,) if isinstance(op, AddressRemove) else ()
    view = View(Snapshot((ETH0,), there, (prefix,), (), frozenset()), Settings(), OutsideState())
    (refused,) = request_policy.check_for_report([op], view)
    assert "fd00:abc::/64" in refused.reason


def test_an_address_from_dhcpv6_is_no_subnet() -> None:
    """Two interfaces in one subnet: the kernel has a route to the /128 of the first one's lease."""
    links = tuple(Link(index, f"eth{index - 2}", 1500, None, True, False) for index in (2, 3))
    lease = IPv6Interface("2001:db8::a/128")
    subnet = IPv6Network("2001:db8::/64")
    unicast, kernel = rtnetlink.RTN_UNICAST, rtnetlink.RTPROT_KERNEL
    routes = [Route(254, subnet, (NextHop(index, None),), unicast, kernel, 256, None, True) for index in (2, 3)]
    routes.append(Route(254, lease.network, (NextHop(2, None),), unicast, kernel, 256, None, False))
    addresses = (Address(2, lease.ip, 128, 0, None),)
    view = View(Snapshot(links, addresses, tuple(routes), LOCAL, frozenset()), Settings(), OutsideState())
    assert request_policy.check_for_report([RouteReplace(10002, 3, subnet, None)], view) == []


OLD = Address(2, IPv4Address("10.0.1.5"), 24, 0, None)  # Linux before 5.18: no address has a protocol


def refusals(before: Address, ops: Sequence[Operation], max_objects: int = 100) -> list[str]:
    snapshot = Snapshot((ETH0,), (before,), (), LOCAL, frozenset())
    view = View(snapshot, Settings(max_objects=max_objects), OutsideState())
    return [refused.reason for refused in request_policy.check_for_report(ops, view)]


@pytest.mark.parametrize("before", [OLD, replace(OLD, protocol=0)])
def test_what_a_request_adds_is_owned_with_every_kernel(before: Address) -> None:
    first, second = (AddressAdd(2, IPv6Interface(f"fd00:9::{at}/64"), True) for at in (10, 11))
    assert refusals(before, [first, second]) == []
    for_now = AddressAdd(2, IPv4Interface("10.9.0.10/32"), True)
    assert refusals(before, [for_now, AddressRemove(2, for_now.interface)]) == []
    assert "1 addresses, routes and rules already" in refusals(before, [first, second], max_objects=1)[0]


def test_a_route_of_two_dumps_counts_once() -> None:
    """Its flags may have changed meanwhile. Otherwise a rule could stay after the route that it needs."""
    subnet, network = IPv4Network("10.0.1.0/24"), IPv4Network("10.0.1.128/28")
    there = Address(2, IPv4Address("10.0.1.5"), 24, 0, 2)
    main = Rule(31000, IPv4Network("0.0.0.0/0"), False, 254, True, False, PROTOCOL)
    rule = Rule(31020, network, False, 10001, True, False, PROTOCOL)
    own = Route(10001, subnet, (NextHop(2, None),), rtnetlink.RTN_UNICAST, PROTOCOL, 0, None, False)
    view = View(Snapshot((ETH0,), (there,), (own, own), (*LOCAL, main, rule), frozenset()), Settings(), OutsideState())
    view.remove_route(10001, subnet)
    assert not view.networks.owned_on_link.has(2, subnet)
