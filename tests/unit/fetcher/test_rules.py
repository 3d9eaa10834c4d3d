"""The fewest prefixes: every case of a small network by exhaustive search, large networks by a simple reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_network
from itertools import combinations, product
from typing import Any

import pytest
from cloud_network.fetcher.config import Config, Prefixes, RulesMode
from cloud_network.fetcher.metadata.model import Instance, IPAddress, IPNetwork
from cloud_network.fetcher.network import rules as fewest
from cloud_network.fetcher.network.objects import Actual, Desired, Rejection, Rejections, Route, Rule
from cloud_network.fetcher.network.rules import Interval, IntervalIndex
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fetcher.values import (
    BASE,
    FIRST,
    clouds,
    configs,
    goal_of,
    host,
    hosts,
    instance,
    interface,
    kernel_address,
    link,
    wanted,
)

OWN, OTHERS, FREE = 2, 3, None
NETWORK = IPv4Network("10.0.1.8/29")


def aggregate(own: Sequence[IPAddress], others: Iterable[IPNetwork], *on_link: IPNetwork) -> list[IPNetwork]:
    sources = [Interval.of_network(network, OTHERS) for network in others]
    sources += [Interval.of_address(address, OWN) for address in own]
    return fewest.aggregate(own, on_link, OWN, IntervalIndex(sources))


def branches(network: IPNetwork) -> list[IPNetwork]:
    return [
        net
        for length in range(network.prefixlen, network.max_prefixlen + 1)
        for net in network.subnets(new_prefix=length)
    ]


@pytest.mark.exhaustive
def test_prefixes_are_minimal_in_all_6561_cases() -> None:
    """Each of eight addresses is the link's, another link's or unused. Fewer prefixes would miss one of the link's."""
    bits = {net: sum(1 << int(each) - int(NETWORK[0]) for each in net) for net in branches(NETWORK)}
    for owners in product((OWN, OTHERS, FREE), repeat=8):
        own = [address for address, owner in zip(NETWORK, owners, strict=True) if owner == OWN]
        others = [ip_network(address) for address, owner in zip(NETWORK, owners, strict=True) if owner == OTHERS]
        found = aggregate(own, others, NETWORK)
        own_bits = sum(bits[ip_network(each)] for each in own)
        other_bits = sum(bits[each] for each in others)
        covered = 0
        for each in found:
            assert not covered & bits[each], "one address, one prefix"
            covered |= bits[each]
        assert own_bits & ~covered == 0
        assert other_bits & covered == 0
        allowed = [each for each in bits.values() if not each & other_bits]
        for fewer in range(len(found)):
            for choice in combinations(allowed, fewer):
                together = 0
                for bit in choice:
                    together |= bit
                assert own_bits & ~together, f"{owners}: {fewer} prefixes suffice, got {len(found)}"


def aggregate_by_search(own: Sequence[IPAddress], others: Sequence[IPNetwork], network: IPNetwork) -> list[IPNetwork]:
    """Return the same prefixes by halving, which checks every address each time."""
    inside = [address for address in own if address in network]
    if not inside:
        return []
    if network.num_addresses == 1 or not any(network.overlaps(other) for other in others):
        return [network]
    return [found for half in network.subnets() for found in aggregate_by_search(inside, others, half)]


def parts(network: IPNetwork, shortest: int) -> st.SearchStrategy[IPNetwork]:
    lengths = st.one_of(st.just(network.max_prefixlen), st.integers(shortest, network.max_prefixlen))
    first, last = int(network.network_address), int(network.broadcast_address)
    numbers = st.one_of(st.integers(first, first + 20), st.integers(first, first + 255), st.integers(first, last))
    return st.builds(lambda number, length: type(network)((number, length), strict=False), numbers, lengths)


@pytest.mark.parametrize("text", ["10.0.0.0/16", "10.0.1.0/24", "fd00:1::/64", "fd00:1::/48"])
def test_large_prefixes_equal_those_of_halving(text: str) -> None:
    network = ip_network(text)

    @given(st.lists(parts(network, 128 if network.version == 6 else 32), unique=True), st.lists(parts(network, 10)))
    def check(own: list[IPNetwork], others: list[IPNetwork]) -> None:
        addresses = [each.network_address for each in own]
        assert sorted(aggregate(addresses, others, network)) == aggregate_by_search(addresses, others, network)

    check()


def test_additional_address_keeps_an_exclusive_prefix() -> None:
    network = IPv4Network("10.0.1.0/24")
    for count in (1, 2, 50, 254):
        assert aggregate(list(network.hosts())[:count], [], network) == [network]


def test_no_prefix_reaches_beyond_a_network_that_is_on_link() -> None:
    one, two, far = map(ip_address, ("10.0.1.10", "10.0.2.10", "192.168.7.7"))
    on_link = [ip_network("10.0.2.0/25"), ip_network("10.0.1.0/24"), ip_network("10.0.2.0/24"), ip_network("fd00::/64")]
    found = aggregate([one, two, far], [], *on_link)
    assert [str(each) for each in found] == ["10.0.1.0/24", "10.0.2.0/24", "192.168.7.7/32"]
    assert aggregate([one], []) == [ip_network("10.0.1.10/32")]


def test_families_with_equal_numbers_are_separate() -> None:
    """As a number, 10.0.1.10 equals ::a00:10a."""
    four, six = ip_address("10.0.1.10"), ip_address("::a00:10a")
    others = [ip_network("10.0.1.128/25"), ip_network("::a00:108/126")]
    found = aggregate([six, four], others, ip_network("::/64"), ip_network("10.0.0.0/16"))
    assert {str(each) for each in found} == {"::a00:10a/128", "10.0.1.0/25"}


def test_address_that_another_link_has_too_stands_alone() -> None:
    own = [ip_address("10.0.1.10")]
    for foreign in ("10.0.1.10", "10.0.1.8/29", "10.0.0.0/16"):
        assert aggregate(own, [ip_network(foreign)], ip_network("10.0.1.0/24")) == [ip_network("10.0.1.10")]


# — within the desired state


def without_rules(found: Desired) -> Desired:
    return replace(found, links=tuple(replace(each, rules=()) for each in found.links))


def rule_for(rules: Iterable[Rule], source: IPAddress, *, last: bool) -> int | None:
    """Return the table for a packet of this host with that source, in the first step or the last."""
    for rule in rules:
        named = rule.selector is not None and not rule.to and rule.suppress != last
        if named and rule.version == source.version and rule.selector is not None and source in rule.selector:
            return rule.table
    return None


@given(clouds(), configs, hosts())
def test_aggregate_routes_every_source_as_single_rules_do(cloud: Instance, config: Config, here: Actual) -> None:
    """An operator's address on the same link may use the rule: it belongs to that link. No other address may."""
    singly = goal_of(cloud, replace(config, rules=RulesMode.ADDRESS), here)
    together = goal_of(cloud, replace(config, rules=RulesMode.AGGREGATE), here)
    assert without_rules(singly) == without_rules(together)
    assert len(together.rules) <= len(singly.rules)
    owners = {
        address: ifindex
        for (ifindex, address), kernel in here.addresses.items()
        if not (kernel.owned and cloud.complete and ifindex not in singly.unmanaged)  # removed before a rule is added
    }
    owners |= {each.address: each.ifindex for each in singly.addresses}
    for source, ifindex in owners.items():
        for last in (False, True):
            wanted, found = (rule_for(each.rules, source, last=last) for each in (singly, together))
            own = [each for each in singly.addresses if each.address == source]
            assert found == wanted or (wanted is None and not own and found == BASE + ifindex), source


@given(clouds(), configs, hosts())
def test_forwarded_packets_match_no_aggregate_rule(cloud: Instance, config: Config, here: Actual) -> None:
    """Every selector that is wider than an address and has no `iif lo` is a range, which has its own rules."""
    singly = goal_of(cloud, replace(config, rules=RulesMode.ADDRESS), here)
    together = goal_of(cloud, replace(config, rules=RulesMode.AGGREGATE), here)
    wide = {each for each in together.rules if each.selector and each.selector.num_addresses > 1 and not each.iif_lo}
    assert wide <= set(singly.rules)
    assert not any(each.iif_lo for each in singly.rules)


def selectors(rules: Iterable[Rule], ifindex: int) -> list[str]:
    """Return the selectors of the first step, which equal those of the last; `local` is shown as `iif lo`."""
    steps = [[], []]  # type: list[list[str]]
    for each in rules:
        if each.table == BASE + ifindex:
            steps[each.priority == FIRST].append(f"{each.selector}{' iif lo' if each.iif_lo else ''}")
    assert steps[0] == steps[1]
    return steps[0]


def test_subnet_on_one_link_is_one_rule_per_step() -> None:
    cloud = instance(interface(1, *(f"10.0.1.{n}" for n in range(10, 60))), interface(2))
    found = wanted(cloud, host(link(1), link(2)))
    assert Config().rules is RulesMode.AGGREGATE
    assert selectors(found.rules, 2) == ["10.0.1.0/24 iif lo"]
    assert selectors(found.rules, 3) == ["10.0.2.0/24 iif lo"]
    assert len(found.rules) == 5


def test_aggregate_contains_no_foreign_address() -> None:
    cloud = instance(interface(1, "10.0.1.10"), interface(2))
    whole = ["10.0.1.0/24 iif lo"]
    halved = ["10.0.1.0/25 iif lo"]
    bridge, other = link(7, "docker0", kind="bridge"), interface(3, "10.0.1.200", subnets=["10.0.1.0/24"])
    cases: list[tuple[Instance, Actual, dict[str, Any], list[str]]] = [
        (cloud, host(link(1), link(2)), {}, whole),
        (cloud, host(link(1), link(2), addresses=kernel_address(3, "10.0.1.200/32")), {}, halved),
        (cloud, host(link(1), link(2), bridge, addresses=kernel_address(8, "10.0.1.200/32")), {}, halved),
        (cloud, host(link(1), link(2), addresses=kernel_address(1, "10.0.1.200/32")), {}, halved),
        (cloud, host(link(1), link(2), local={ip_network("10.0.1.192/26"): 3}), {}, halved),
        (cloud, host(link(1), link(2), addresses=kernel_address(2, "10.0.1.200/32")), {}, whole),
        (instance(*cloud.interfaces, other), host(link(1), link(2)), {}, halved),
        (instance(*cloud.interfaces, other), host(link(1), link(2), link(3)), {}, halved),
        (cloud, host(link(1), link(2)), {"exclude_addresses": (IPv4Network("10.0.1.200/32"),)}, halved),
    ]
    for given_cloud, here, config, expected in cases:
        assert selectors(wanted(given_cloud, here, **config).rules, 2) == expected


def test_ranges_keep_rules_that_forwarded_packets_meet() -> None:
    block = ip_network("10.0.1.128/28")
    cloud = instance(interface(1, ranges=(block,)), interface(2))
    for prefixes in (Prefixes.ROUTE, Prefixes.LOCAL):
        found = wanted(cloud, host(link(1), link(2)), prefixes=prefixes)
        assert selectors(found.rules, 2) == ["10.0.1.128/28", "10.0.1.0/24 iif lo"]
    other = instance(interface(1), interface(2, ranges=(block,)))
    assert selectors(wanted(other, host(link(1), link(2))).rules, 2) == ["10.0.1.0/25 iif lo"]


def test_routed_subnet_has_one_rule_per_address() -> None:
    ones = [interface(n, f"10.0.{n}.10", f"10.0.{n}.11", routed=True) for n in (1, 2)]
    found = wanted(instance(*ones, provider="gcp"), host(link(1), link(2)))
    assert selectors(found.rules, 2) == ["10.0.1.10/32", "10.0.1.11/32"]


def test_ipv6_prefix_stays_inside_on_link_networks() -> None:
    six = [interface(n, f"2001:db8:{n}::a", f"2001:db8:{n}::b", subnets=[f"2001:db8:{n}::/64"]) for n in (1, 2)]
    found = wanted(instance(*six), host(link(1), link(2)))
    assert selectors(found.rules, 2) == ["2001:db8:1::/64 iif lo"]
    refused: Rejections = {Route(BASE + 2, 2, ip_network("2001:db8:1::/64"), None): Rejection("refused")}
    there = kernel_address(2, "2001:db8:1::a/128") | kernel_address(2, "2001:db8:1::b/128")
    found = wanted(instance(*six), host(link(1), link(2), addresses=there), refused)
    assert selectors(found.rules, 2) == ["2001:db8:1::a/128", "2001:db8:1::b/128"]
