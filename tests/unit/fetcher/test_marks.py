"""ForwardedReplies="mark": the mark of each link, the rules for it, and the order of the changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cloud_network.fetcher.apply import components
from cloud_network.fetcher.config import Config, ForwardedRepliesMode
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.marks import assign_marks
from cloud_network.fetcher.network.objects import (
    Actual,
    Cause,
    Desired,
    LinkSettings,
    MarkTable,
    Rejection,
    Rejections,
    ReversePath,
    Rule,
)
from cloud_network.fetcher.network.plan import COMMON, in_ip_syntax, link_of
from cloud_network.fetcher.schedule import MARKS_CHECK_S, Schedule
from cloud_network.netagent.claims import MarkSelector
from cloud_network.netagent.operations import ForwardedReplies as Table
from cloud_network.netagent.operations import LinkMark, RuleAdd, RuleRemove
from hypothesis import given, settings
from hypothesis import strategies as st

from .values import (
    BASE,
    FIRST,
    after_changes,
    clouds,
    configs,
    goal_of,
    host,
    hosts,
    instance,
    interface,
    link,
    plan_of,
    wanted,
)

MARK = ForwardedRepliesMode.MARK
CONFIG = Config(forwarded_replies=MARK)
CLOUD = instance(interface(1), interface(2, "10.0.2.10", "fd00:2::10", subnets=["10.0.2.0/24", "fd00:2::/64"]))
HERE = host(link(1), link(2))


def goal(here: Actual = HERE, **more: Any) -> Desired:
    return wanted(CLOUD, here, forwarded_replies=MARK, **more)


def marks(*pairs: tuple[int, int]) -> tuple[LinkMark, ...]:
    return tuple(LinkMark(*pair) for pair in pairs)


def test_off_needs_no_mark_and_leaves_the_table_alone() -> None:
    found = wanted(CLOUD, replace(HERE, marks=marks((2, 2))))
    assert found.marks is None
    assert not any(rule.mark for rule in found.rules)
    assert not any(isinstance(op, Table) for op in plan_of(found, replace(HERE, marks=marks((2, 2)))))


def test_each_link_has_the_three_steps_for_its_mark() -> None:
    found = [rule for rule in goal().rules if rule.mark]
    assert found == [
        Rule(FIRST + step, version, None, BASE + ifindex, suppress=step == 0, mark=ifindex, mask=0x7F)
        for ifindex, versions in ((2, (4,)), (3, (4, 6)))
        for version in versions
        for step in (0, 20)
    ]


def test_strict_rp_filter_needs_the_arrival_mark() -> None:
    for kind, number in ((ReversePath.BY_MARK, 0), (ReversePath.DROPS, 1)):
        found = goal(replace(HERE, reverse_path={2: ReversePath.LOOSE, 3: kind}))
        arrived = [rule for rule in found.rules if rule.mark & 0x40]
        assert [(rule.mark, rule.version, rule.table) for rule in arrived] == [(0x43, 4, BASE + 3)] * 2
        assert len(found.withheld) == number
    assert "eth1: rp_filter=1 drops" in found.withheld[0].text


def test_one_interface_alone_needs_no_mark() -> None:
    found = wanted(instance(interface(1)), host(link(1)), forwarded_replies=MARK)
    assert found.marks == ()
    assert not any(isinstance(op, Table) for op in plan_of(found, host(link(1))))


def test_a_link_keeps_the_mark_of_the_table_or_of_its_rules() -> None:
    rule = Rule(FIRST, 4, None, BASE + 3, True, mark=9, mask=0x7F)
    here = replace(HERE, marks=marks((2, 7)), rules=frozenset({rule}))
    assert goal(here).marks == marks((2, 7), (3, 9))
    assert goal(replace(here, marks=marks((3, 5)))).marks == marks((2, 2), (3, 5))


def test_mark_of_another_mask_is_replaced() -> None:
    rule = Rule(FIRST, 4, None, BASE + 3, True, mark=9, mask=0xFF)
    assert goal(replace(HERE, rules=frozenset({rule}))).marks == marks((2, 2), (3, 3))


@given(st.sets(st.integers(1, 500), max_size=80), st.sampled_from([0x3, 0x7F, 0xF00, 0xFF0000, 0xC0000000]))
def test_marks_are_unique_and_inside_the_mask(links: set[int], mask: int) -> None:
    config = Config(forwarded_replies=MARK, mark_mask=mask)
    found = assign_marks(sorted(links), config, HERE, ())
    top = 1 << (mask.bit_length() - 1)
    assert len(set(found.values())) == len(found)
    assert all(mark and not mark & ~mask and not mark & top for mark in found.values())
    limit = min((mask & ~top) // (mask & -mask), 64)
    assert len(found) == min(len(links), limit)
    after = replace(HERE, marks=tuple(LinkMark(*pair) for pair in found.items()))
    assert assign_marks(sorted(links, reverse=True), config, after, ()) == found


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (MarkSelector(2, 0xFFFFFFFF), {2: 1, 3: 3}),
        (MarkSelector(0x42, 0x7F), {2: 1, 3: 3}),  # of packets that arrive
        (MarkSelector(0x2, 0x2), {2: 1, 3: 4}),
        (MarkSelector(0x4000, 0x4000), {2: 2, 3: 3}),  # kube-proxy
        (MarkSelector(0x40, 0x40), {}),
        (MarkSelector(0, 0x3), {2: 2, 3: 3}),
        (MarkSelector(0, 0x3, is_inverted=True), {2: 4, 3: 8}),  # all packets with one of these bits
        (MarkSelector(0xCA00, 0xFFFFFFFF, is_inverted=True), {2: 2, 3: 3}),  # also packets without a mark
    ],
)
def test_new_mark_is_not_one_of_another_program(others: MarkSelector, expected: dict[int, int]) -> None:
    here = replace(HERE, marks_of_others=frozenset({others}))
    assert assign_marks([2, 3], CONFIG, here, ()) == expected
    kept = replace(here, marks=marks((2, 2), (3, 3)))
    assert assign_marks([2, 3], CONFIG, kept, ()) == {2: 2, 3: 3}, "its connections have it"


def test_widest_mask_needs_no_list_of_all_marks() -> None:
    assert assign_marks([2, 5000], Config(forwarded_replies=MARK, mark_mask=0xFFFFFFFF), HERE, ()) == {2: 2, 5000: 1}


def test_exhausted_marks_are_reported_and_block_nothing() -> None:
    found = goal(mark_mask=0x3)
    assert len(found.marks or ()) == 1
    assert "no mark is left" in found.withheld[0].text
    assert {rule.table for rule in found.rules if not rule.mark} == {BASE + 2, BASE + 3, 254}


def test_the_table_comes_before_the_rules_that_need_it() -> None:
    ops = plan_of(goal(), HERE)
    parts = components(ops, BASE)
    assert isinstance(parts[0][0], Table)
    assert [len([op for op in part if isinstance(op, Table)]) for part in parts] == [1, 0]
    assert after_changes(tuple(op for part in parts for op in part), HERE).marks == marks((2, 2), (3, 3))


def test_mark_is_removed_after_its_rules() -> None:
    """The metadata no longer names the second interface, but its link is still present."""
    before = after_changes(plan_of(goal(), HERE), HERE)
    less = wanted(instance(interface(1)), before, forwarded_replies=MARK, supplementary=("eth0",))
    ops = plan_of(less, before)
    kinds = [type(op) for op in ops if isinstance(op, Table | RuleRemove)]
    assert kinds == [RuleRemove] * (len(kinds) - 1) + [Table]
    parts = [part for part in components(ops, BASE) if any(link_of(op, BASE) != COMMON for op in part)]
    assert isinstance(parts[-1][-1], Table)
    assert after_changes(ops, before).marks == marks((2, 2))


@given(clouds(), configs, hosts())
@settings(deadline=None)
def test_no_request_leaves_a_rule_without_its_mark(cloud: Instance, config: Config, here: Actual) -> None:
    """netagent refuses such a request. It does not check the rules of excluded links, which stay as they are."""
    config = replace(config, forwarded_replies=MARK, exclude=())
    for part in components(plan_of(goal_of(cloud, config, here), here), BASE):
        here = after_changes(part, here)
        if any(isinstance(op, Table) for op in part):
            present = {each.ifindex for each in here.links}
            marked = {LinkMark(rule.table - BASE, rule.mark & 0x3F) for rule in here.rules if rule.mark}
            assert {each for each in marked if each.link in present} <= set(here.marks or ())


def test_second_plan_is_empty_with_marks() -> None:
    after = after_changes(plan_of(goal(), HERE), HERE)
    assert plan_of(goal(after), after) == ()


def test_incomplete_table_is_replaced() -> None:
    after = replace(after_changes(plan_of(goal(), HERE), HERE), marks=())
    assert plan_of(goal(after), after) == (Table(marks((2, 2), (3, 3))),)


def test_a_kernel_without_nftables_gets_everything_else() -> None:
    refused: Rejections = {MarkTable(): Rejection("the kernel refuses it: Operation not supported", Cause.KERNEL)}
    found = wanted(CLOUD, HERE, refused, forwarded_replies=MARK)
    assert found.marks is None
    assert [each.text for each in found.withheld] == [
        "ForwardedReplies: the kernel refuses it: Operation not supported"
    ]
    assert found.rules == wanted(CLOUD, HERE).rules


def test_refused_link_does_not_block_other_marks() -> None:
    after = after_changes(plan_of(goal(), HERE), HERE)
    refused: Rejections = {LinkSettings(3, None): Rejection("eth1 is of kind bond, not an interface of the cloud")}
    found = wanted(CLOUD, after, refused, forwarded_replies=MARK)
    assert found.marks == marks((2, 2))
    assert [op for op in plan_of(found, after) if isinstance(op, Table)] == [Table(marks((2, 2)))]


def test_rules_stay_while_another_program_reverts_the_table() -> None:
    after = after_changes(plan_of(goal(), HERE), HERE)
    waiting: Rejections = {MarkTable(): Rejection("another program removes it", Cause.CONFLICT)}
    found = wanted(CLOUD, replace(after, marks=()), waiting, forwarded_replies=MARK)
    assert plan_of(found, replace(after, marks=())) == ()


def test_the_changes_are_shown_as_commands() -> None:
    links = {each.ifindex: each for each in HERE.links}
    shown = [in_ip_syntax(op, links) for op in plan_of(goal(), HERE) if isinstance(op, Table | RuleAdd)]
    assert shown[0] == "nft table inet cloud_network: eth0=0x2 eth1=0x3"
    assert (
        f"ip rule add pref 31000 from all fwmark 0x2/0x7f lookup {BASE + 2} suppress_prefixlength 0 protocol 209"
        in (shown)
    )


def test_netagent_is_asked_every_ten_seconds() -> None:
    now = 100.0
    for config, due in ((Config(), float("inf")), (CONFIG, now + MARKS_CHECK_S)):
        schedule = Schedule(config, lambda: now)
        schedule.read_begins()
        schedule.compare_begins(on_event=False)
        schedule.compare_ended(float("inf"))
        assert schedule.compare_due == due
