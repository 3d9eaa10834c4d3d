"""Desired and actual state -> changes: their result, their order, and what they never touch."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import groupby
from operator import contains
from typing import Any

import pytest
from cloud_network.fetcher.config import Config, RulesMode
from cloud_network.fetcher.metadata.model import Instance, IPAddress
from cloud_network.fetcher.network.objects import Actual, Route, Rule
from cloud_network.fetcher.network.plan import is_removal, plan
from cloud_network.netagent.claims import link_of_table, single, within
from cloud_network.netagent.operations import (
    AddressAdd,
    AddressRemove,
    ForwardedReplies,
    LinkMtu,
    LinkUp,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from cloud_network.netagent.protocol import TABLE_LOCAL
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fetcher import values
from tests.unit.fetcher.values import (
    BASE,
    after_changes,
    clouds,
    configs,
    goal_of,
    host,
    hosts,
    instance,
    interface,
    kernel_address,
    link,
    rule_of,
    wanted,
)


def owned_objects(here: Actual) -> tuple[object, ...]:
    """Return all owned objects, each address with its form."""
    entries = (*here.addresses.values(), *here.further)
    return {each.address for each in entries if each.owned}, here.routes, here.rules


@given(st.lists(clouds(), min_size=1, max_size=4), configs, st.booleans())
def test_any_history_ends_like_a_fresh_start(history: list[Instance], config: Config, leased: bool) -> None:
    """Addresses, ranges, subnets and interfaces are added, removed and moved."""
    lease = kernel_address(2, "10.0.1.10/24") if leased else {}
    start = now = host(link(1), link(2), link(3), link(4), addresses=lease)
    for cloud in history:
        now = after_changes(plan(goal_of(cloud, config, now), now, may_remove=True), now)
    fresh = after_changes(plan(goal_of(history[-1], config, start), start, may_remove=True), start)
    assert owned_objects(now) == owned_objects(fresh)


@given(clouds(), configs, hosts())
def test_applied_plan_reaches_the_goal(cloud: Instance, config: Config, before: Actual) -> None:
    """`after_changes` makes the changes one by one and rejects those that the kernel would refuse at that point."""
    goal = goal_of(cloud, config, before)
    after = after_changes(plan(goal, before, may_remove=True), before)
    owned = {place for place, kernel in after.addresses.items() if kernel.owned and place[0] not in goal.unmanaged}
    places = {(each.ifindex, each.address) for each in goal.addresses}
    settings = [each.settings for each in goal.links]
    links = {each.ifindex: each for each in after.links}
    assert places <= after.addresses.keys()
    assert owned <= places
    assert {each for each in after.routes if each.ifindex not in goal.unmanaged} == set(goal.routes)
    assert {each for each in after.rules if each.table not in goal.unmanaged_tables} == set(goal.rules)
    assert all(links[each.ifindex].up and each.mtu in (None, links[each.ifindex].mtu) for each in settings)


@given(clouds(), configs, hosts())
def test_a_second_plan_is_empty(cloud: Instance, config: Config, before: Actual) -> None:
    after = after_changes(plan(goal_of(cloud, config, before), before, may_remove=True), before)
    assert plan(goal_of(cloud, config, after), after, may_remove=True) == ()


@given(clouds(), configs, hosts())
def test_only_owned_objects_are_removed(cloud: Instance, config: Config, before: Actual) -> None:
    goal, added = goal_of(cloud, config, before), set[tuple[int, IPAddress]]()
    for op in plan(goal, before, may_remove=True):
        if isinstance(op, AddressAdd):
            added.add((op.link, op.interface.ip))
        if isinstance(op, AddressRemove):
            place = op.link, op.interface.ip
            assert place in added or before.addresses[place].owned
        if isinstance(op, RuleAdd | RuleRemove):
            assert op.table not in goal.unmanaged_tables
        elif not isinstance(op, ForwardedReplies):
            assert op.link not in goal.unmanaged


@given(clouds(), configs, hosts())
def test_without_proof_nothing_is_removed(cloud: Instance, config: Config, before: Actual) -> None:
    goal = goal_of(cloud, config, before)
    changes = plan(goal, before, may_remove=False)
    assert not any(map(is_removal, changes))


def changes_of(cloud: Instance, here: Actual, **config: Any) -> list[str]:
    return [type(op).__name__ for op in plan(wanted(cloud, here, **config), here, may_remove=True)]


def test_links_come_up_first_and_rules_are_removed_last() -> None:
    """Except for a rule that would select forwarded packets once its address has left."""
    table = BASE + 2
    of_leaving = Rule(31000, 4, ip_network("10.0.1.99"), table, suppress=True)
    here = host(
        link(1, up=False),
        link(2),
        addresses=kernel_address(2, "10.0.1.99/24", owned=True),
        routes=frozenset({Route(table, 2, ip_network("10.9.0.0/16"), None)}),
        rules=frozenset({of_leaving, Rule(31000, 4, ip_network("10.0.1.0/28"), table, suppress=True, iif_lo=True)}),
    )
    order = [kind for kind, _ in groupby(changes_of(instance(interface(1, mtu=9001), interface(2)), here))]
    assert order == [
        "LinkMtu",
        "LinkUp",
        "RuleRemove",
        "RouteRemove",
        "AddressAdd",
        "AddressRemove",
        "AddressAdd",
        "AddressRemove",
        "RouteReplace",
        "RuleAdd",
        "RuleRemove",
    ]


@given(clouds(), configs, hosts(), clouds(), st.sampled_from(RulesMode))
def test_no_forwarding_rule_outlives_its_address(
    cloud: Instance, config: Config, before: Actual, other: Instance, rules: RulesMode
) -> None:
    """netagent refuses such a plan. A range may justify the rule of a single address, too."""
    here = after_changes(plan(goal_of(cloud, config, before), before, may_remove=True), before)
    goal = goal_of(other, replace(config, rules=rules), here)
    for op in plan(goal, here, may_remove=True):
        there = here
        here = after_changes((op,), here)
        if isinstance(op, AddressRemove) and (op.link, op.interface.ip) not in here.addresses:
            ranges = [each.destination for each in here.routes if each.table == TABLE_LOCAL]
            on = {rule.table for rule in there.rules if link_of_table(rule.table, BASE) == op.link}
            left = [rule for rule in here.rules if rule.selector == single(op.interface.ip) and rule.table in on]
            assert [rule for rule in left if not rule.iif_lo and not within(single(op.interface.ip), ranges)] == []
        if isinstance(op, RouteRemove) and op.table == TABLE_LOCAL:
            on = {rule.table for rule in there.rules if link_of_table(rule.table, BASE) == op.link}
            assert [rule for rule in here.rules if rule.selector == op.destination and rule.table in on] == []


def tables(rules: list[Rule], source: IPAddress) -> list[int]:
    """Return the tables of the first and the last step for this source, in the kernel's order of evaluation."""
    return [
        next((each.table for each in rules if each.suppress == first and each.selector and source in each.selector), 0)
        for first in (True, False)
    ]


@given(clouds(), configs, hosts(), st.sampled_from(RulesMode), st.data())
def test_no_address_lacks_a_rule_during_replacement(
    cloud: Instance, config: Config, before: Actual, rules: RulesMode, data: st.DataObject
) -> None:
    """Rules= changes, or addresses change and with them prefixes: checked after each single operation."""
    start = after_changes(plan(goal_of(cloud, config, before), before, may_remove=True), before)
    final = cloud.interfaces[-1]
    fewer = replace(final, addresses=final.addresses[: data.draw(st.integers(0, len(final.addresses)))])
    after = replace(cloud, interfaces=(*cloud.interfaces[:-1], fewer))
    for one, other in ((cloud, after), (after, cloud)):
        here = after_changes(plan(goal_of(one, config, start), start, may_remove=True), start)
        goal = goal_of(other, replace(config, rules=rules), here)
        order = sorted(here.rules, key=str)
        settled = order + [each for each in goal.rules if each not in order]
        stay = [each.address for each in goal.addresses if (each.ifindex, each.address) in here.addresses]
        last = [each for each in settled if each in goal.rules or each.table in goal.unmanaged_tables]
        wanted = {source: tables(last, source) for source in stay}
        began = {source: tables(order, source) for source in stay}
        for op in plan(goal, here, may_remove=True):
            if isinstance(op, RuleAdd | RuleRemove):
                (order.remove if is_removal(op) else order.append)(rule_of(op))
                for source in stay:
                    either = zip(began[source], wanted[source], strict=True)
                    assert all(map(contains, either, tables(order, source))), op
        assert wanted == {source: tables(order, source) for source in stay}


def test_foreign_address_of_any_length_is_adopted() -> None:
    for there in ("10.0.1.10/24", "10.0.1.10/32", "10.0.1.10/16"):
        assert changes_of(instance(interface(1)), host(link(1), addresses=kernel_address(2, there))) == []


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ("10.0.1.10/24", []),
        ("10.0.1.10/32", ["+10.0.1.10/24", "-10.0.1.10/32"]),
        ("10.0.1.10/16", ["+10.0.1.10/32", "-10.0.1.10/16", "+10.0.1.10/24", "-10.0.1.10/32"]),
    ],
)
def test_owned_address_gets_the_form_of_a_fresh_start(there: str, expected: list[str]) -> None:
    """The kernel has the address throughout, temporarily as /32."""
    here = host(link(1), addresses=kernel_address(2, there, owned=True, connected=not there.endswith("/32")))
    ops = plan(wanted(instance(interface(1)), here), here, may_remove=True)
    assert [f"{'-' if is_removal(op) else '+'}{op.interface}" for op in ops] == expected  # type: ignore[union-attr]


def test_address_of_a_shared_subnet_becomes_a_single_one() -> None:
    """Earlier versions gave it the length of the subnet, without the connected route."""
    same = ["10.0.1.0/24"]
    cloud = instance(interface(2, "10.0.1.20", subnets=same), interface(1, "10.0.1.10", subnets=same))
    bare = host(link(1), link(2))
    here = after_changes(plan(wanted(cloud, bare), bare, may_remove=True), bare)
    there = kernel_address(3, "10.0.1.20/24", owned=True, connected=False)
    here = replace(here, addresses={**here.addresses, **there})
    ops = plan(wanted(cloud, here), here, may_remove=True)
    assert [f"{'-' if is_removal(op) else '+'}{op.interface}" for op in ops] == ["+10.0.1.20/32", "-10.0.1.20/24"]  # type: ignore[union-attr]


def test_new_address_is_there_before_the_last_one_leaves() -> None:
    """The kernel would remove the routes of the link together with its last IPv4 address."""
    here = host(link(1), addresses=kernel_address(2, "10.0.1.99/24", owned=True))
    ops = plan(wanted(instance(interface(1, "10.0.1.10", "10.0.1.11")), here), here, may_remove=True)
    changed = [op for op in ops if isinstance(op, AddressAdd | AddressRemove)]
    expected = ["+10.0.1.10/32", "-10.0.1.99/24", "+10.0.1.11/32", "+10.0.1.10/24", "-10.0.1.10/32"]
    assert [f"{'-' if is_removal(op) else '+'}{op.interface}" for op in changed] == expected


def test_addresses_of_another_subnet_come_after_the_former_ones() -> None:
    """netagent allows the gateway of the new subnet only once the kernel has removed the routes by the former one."""
    here = host(link(1), addresses=kernel_address(2, "10.0.9.99/24", owned=True))
    ops = plan(wanted(instance(interface(1)), here), here, may_remove=True)
    changed = [op for op in ops if isinstance(op, AddressAdd | AddressRemove)]
    assert [f"{'-' if is_removal(op) else '+'}{op.interface}" for op in changed] == ["-10.0.9.99/24", "+10.0.1.10/24"]


def test_secondary_is_added_again_when_its_first_address_leaves() -> None:
    """The kernel would remove it together with the first one, which therefore could not be removed at all."""
    here = host(link(1), addresses=kernel_address(2, "10.0.1.99/24", owned=True))
    second = kernel_address(2, "10.0.1.10/24", owned=True)[2, ip_address("10.0.1.10")]
    here = replace(here, addresses={**here.addresses, second.place: replace(second, secondary=True)})
    ops = plan(wanted(instance(interface(1)), here), here, may_remove=True)
    expected = ["+10.0.1.10/32", "-10.0.1.10/24", "-10.0.1.99/24", "+10.0.1.10/24", "-10.0.1.10/32"]
    assert [f"{'-' if is_removal(op) else '+'}{op.interface}" for op in ops] == expected  # type: ignore[union-attr]


def test_owned_address_keeps_its_length_without_proof() -> None:
    here = host(link(1), addresses=kernel_address(2, "10.0.1.10/32", owned=True))
    assert plan(wanted(instance(interface(1)), here), here, may_remove=False) == ()


def test_the_same_address_on_another_link_does_not_satisfy() -> None:
    here = host(link(1), link(2), addresses=kernel_address(3, "10.0.1.10/24", owned=True))
    assert "AddressAdd" in changes_of(instance(interface(1)), here)


def test_a_route_whose_gateway_changes_is_replaced_in_place() -> None:
    cloud, here = instance(interface(1), interface(2)), host(link(1), link(2))
    settled = after_changes(plan(wanted(cloud, here), here, may_remove=True), here)
    default = next(each for each in settled.routes if each.table == BASE + 2 and each.destination.prefixlen == 0)
    other = replace(default, gateway=interface(1, "10.0.1.77").addresses[0].ip)
    moved = replace(settled, routes=settled.routes - {default} | {other})
    assert plan(wanted(cloud, moved), moved, may_remove=True) == (
        RouteReplace(default.table, default.ifindex, default.destination, default.gateway),
    )


def test_detach_removes_rules_and_the_remaining_table() -> None:
    cloud, here = instance(interface(1), interface(2)), host(link(1), link(2))
    both = after_changes(plan(wanted(cloud, here), here, may_remove=True), here)
    gone = replace(
        both,
        links=both.links[:1],
        addresses={place: kernel for place, kernel in both.addresses.items() if place[0] == 2},
        routes=frozenset(each for each in both.routes if each.ifindex == 2),
    )
    alone = instance(interface(1))
    after = after_changes(plan(wanted(alone, gone), gone, may_remove=True), gone)
    assert (after.routes, after.rules) == (frozenset(), frozenset())
    assert [str(address) for _, address in after.addresses] == ["10.0.1.10"]


def test_mtu_and_link_state_are_separate_changes() -> None:
    here = host(link(1, up=False, mtu=1500), addresses=kernel_address(2, "10.0.1.10/24"))
    goal = wanted(instance(interface(1, mtu=9001)), here)
    found = plan(goal, here, may_remove=True)
    assert found == (LinkMtu(2, 9001), LinkUp(2))
    assert changes_of(instance(interface(1, mtu=9001)), after_changes(found, here)) == []


@given(clouds(shared=False), clouds(shared=False), configs)
def test_changed_metadata_ends_like_a_fresh_boot(one: Instance, other: Instance, config: Config) -> None:
    """All except the length of an existing address, and the connected route that depends on it."""
    bare = host(*(link(number, up=False) for number in range(1, 5)))
    here = after_changes(plan(goal_of(one, config, bare), bare, may_remove=True), bare)
    here = after_changes(plan(goal_of(other, config, here), here, may_remove=True), here)
    fresh = after_changes(plan(goal_of(other, config, bare), bare, may_remove=True), bare)
    assert (here.addresses.keys(), here.routes, here.rules) == (fresh.addresses.keys(), fresh.routes, fresh.rules)


def test_unproven_metadata_removes_nothing_after_a_restart() -> None:
    """A new fetcher has no earlier metadata, so only the fact that the interface is unproven protects its link."""
    whole = values.instance(values.interface(1), values.interface(2))
    bare = values.host(values.link(1), values.link(2))
    here = values.after_changes(values.plan_of(values.wanted(whole, bare), bare), bare)
    empty = replace(values.interface(2), addresses=(), subnets=(), gateways=())
    fresh = values.instance(values.interface(1), empty).with_known(None)
    assert fresh.may_remove
    changes = values.plan_of(values.wanted(fresh, here), here)
    tables = {values.BASE + each.ifindex for each in here.links if each.mac == empty.mac}
    lost = [each for each in changes if is_removal(each) and (getattr(each, "table", None) in tables)]
    indexes = {each.ifindex for each in here.links if each.mac == empty.mac}
    lost += [each for each in changes if is_removal(each) and getattr(each, "link", None) in indexes]
    assert lost == []
    assert any(each.ifindex in indexes for each in here.routes), "the host had objects to remove"
