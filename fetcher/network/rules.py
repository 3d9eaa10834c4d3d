"""Source rules: the ip rules that send each source address of this host to its link's table. Pure.

The kernel tests its rules in order for every lookup. `Rules="aggregate"` therefore has one prefix for all addresses of
a subnet on one link, where `Rules="address"` has one rule for each address. A prefix is as large as possible: the whole
subnet if no other link has an address in it, so that adding or removing an address changes no rule.

`aggregate` returns the fewest prefixes possible. Addresses in order are the leaves of a binary tree and a prefix is a
branch of it. For each address of ours, the nearest address of another link on either side shares the longest run of
leading bits with it, so these two bound the largest branch around ours that is free of others. Two such branches are
either equal or disjoint, every permitted prefix lies inside one of them, and each contains an address that no other
branch contains.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_network

from cloud_network.fetcher.config import Config, Rules
from cloud_network.fetcher.metadata.model import Instance, IPAddress, IPNetwork, host
from cloud_network.fetcher.network.intervals import NO_LINK, Interval, IntervalIndex
from cloud_network.fetcher.network.objects import Actual, Link, Rule
from cloud_network.netagent.protocol import TABLE_LOCAL

STEP = 10  # between the priorities of two steps; an operator's own rules fit between them


def source_addresses(
    instance: Instance, matches: Mapping[str, Link], config: Config, actual: Actual, unmanaged: frozenset[int]
) -> IntervalIndex:
    """Return every source address of this host with its link, according to the kernel and the metadata.

    Addresses of interfaces that are not plugged in yet, and excluded addresses, belong to no link.
    """
    intervals = list(_kernel_addresses(actual, instance.complete, unmanaged))
    intervals += [Interval.of_network(network) for network in config.exclude_addresses]
    for interface in instance.interfaces:
        link = matches.get(interface.mac)
        ifindex = link.ifindex if link else NO_LINK
        intervals += [Interval.of_address(each.ip, ifindex) for each in interface.addresses]
        intervals += [Interval.of_network(network, ifindex) for network in interface.ranges]
    return IntervalIndex(intervals)


def _kernel_addresses(actual: Actual, complete: bool, unmanaged: frozenset[int]) -> Iterator[Interval]:
    """Yield what the kernel has, without our own objects: a complete answer removes those that it does not list."""
    for (ifindex, address), kernel in actual.addresses.items():
        if not (kernel.owned and complete and ifindex not in unmanaged):
            yield Interval.of_address(address, ifindex)
    for network, ifindex in actual.local.items():
        yield Interval.of_network(network, ifindex)
    for route in actual.routes:
        if route.table == TABLE_LOCAL and not (complete and route.ifindex not in unmanaged):
            yield Interval.of_network(route.destination, route.ifindex)


def source_rules(
    link: Link,
    addresses: Collection[IPAddress],
    ranges: Iterable[IPNetwork],
    on_link: Iterable[IPNetwork],
    config: Config,
    sources: IntervalIndex,
) -> tuple[Rule, ...]:
    """Return the rules for a link's sources. `on_link` are the networks that its table reaches without a gateway."""
    if config.rules is Rules.AGGREGATE:
        selectors = aggregate(link.ifindex, addresses, on_link, sources)
    else:
        selectors = [host(address) for address in addresses]
    local = dict.fromkeys(ranges, False)  # {selector: True if the rule matches only packets that this host sends}
    for selector in selectors:
        local.setdefault(selector, selector.prefixlen < selector.max_prefixlen)
    first, last, table = config.rule_priority, config.rule_priority + 2 * STEP, config.route_table_base + link.ifindex
    rules = list[Rule]()
    for selector, iif_lo in local.items():
        rules.append(Rule(first, selector.version, selector, table, suppress=True, local=iif_lo))
        rules.append(Rule(last, selector.version, selector, table, suppress=False, local=iif_lo))
        if config.rules is Rules.ORIGINAL:  # has no effect: the kernel looks in table local first
            rules.append(Rule(last, selector.version, selector, table, suppress=False, to=True))
    return tuple(rules)


def aggregate(
    ifindex: int, addresses: Collection[IPAddress], subnets: Iterable[IPNetwork], sources: IntervalIndex
) -> list[IPNetwork]:
    """Return the fewest prefixes that contain all `addresses` of a link and no source address of another link.

    A prefix lies inside the largest of `subnets` that contains its addresses. An address that is in none of them, or
    that another link's range contains, has a prefix of its own.
    """
    remaining = {version: sorted(int(each) for each in addresses if each.version == version) for version in (4, 6)}
    prefixes = list[IPNetwork]()
    for subnet in sorted(subnets, key=lambda subnet: subnet.prefixlen):
        interval, numbers = Interval.of_network(subnet), remaining[subnet.version]
        inside = slice(bisect_left(numbers, interval.first), bisect_right(numbers, interval.last))
        own, numbers[inside] = numbers[inside], []
        if own:
            others = _others(ifindex, set(own), sources.overlapping(interval))
            prefixes += _largest_prefixes(own, others, subnet)
    alone = {version: set(numbers) for version, numbers in remaining.items()}
    return prefixes + [ip_network(each) for each in addresses if int(each) in alone[each.version]]


def _others(ifindex: int, own: set[int], sources: Iterable[Interval]) -> list[Interval]:
    """Return the sources of other links. Of an address that two links have, ours counts."""
    return [each for each in sources if each.ifindex != ifindex and not (each.first == each.last and each.first in own)]


def _largest_prefixes(own: Iterable[int], others: Collection[Interval], subnet: IPNetwork) -> Iterable[IPNetwork]:
    """Return the largest prefixes inside `subnet` that contain a number of `own` and nothing of `others`."""
    firsts, lasts = sorted(each.first for each in others), sorted(each.last for each in others)
    size, found = subnet.max_prefixlen, dict[tuple[int, int], None]()
    for number in own:
        below, above = bisect_left(lasts, number), bisect_right(firsts, number)
        host_bits = size - subnet.prefixlen
        for other in (*lasts[max(0, below - 1) : below], *firsts[above : above + 1]):
            host_bits = min(host_bits, (number ^ other).bit_length() - 1)
        if above > below:
            host_bits = 0  # inside another link's range
        found[number >> host_bits << host_bits, size - host_bits] = None
    return map(type(subnet), found)
