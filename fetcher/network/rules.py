"""Source rules: select the routing table of this host's packets by their source address. Pure.

For each source SOURCE of a link with table T = RouteTableBase + ifindex, rules in three steps:
  1. from SOURCE lookup T suppress_prefixlength 0    own and sibling subnets
  2. lookup main suppress_prefixlength 0             routes in main that are more specific than a default route
  3. from SOURCE lookup T                            everything else leaves through the link that owns the source

With Rules=aggregate, SOURCE is a prefix with `iif lo` that contains all addresses of the link in a subnet and no
address of another link. The kernel evaluates its rules in order on every lookup, so fewer rules are faster.

The number of prefixes is minimal. Addresses in order are the leaves of a binary tree from left to right, and a prefix
is a branch. Of all foreign addresses, the nearest one on either side shares the most leading bits with an address of
the link, so these two bound the largest branch around it that contains no foreign address. Two such branches are equal
or disjoint. Every allowed prefix lies in one of them, and each contains an address that no other branch contains.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from cloud_network.fetcher.config import Config, RulesMode
from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork, host
from cloud_network.fetcher.network.objects import Rule
from cloud_network.netagent.protocol import TABLE_MAIN

STEP = 10
"""Distance between the priorities of two steps; those in between are free for the operator's rules."""
NO_LINK = 0
"""The ifindex for objects that belong to no link of this host."""


class Interval(NamedTuple):
    """Addresses from `first` to `last`, as numbers, of one link."""

    version: int
    first: int
    last: int
    link: int

    @classmethod
    def of_address(cls, address: IPAddress, link: int = NO_LINK) -> Interval:
        """Return the interval of one address."""
        number = int(address)
        return cls(address.version, number, number, link)

    @classmethod
    def of_network(cls, network: IPNetwork, link: int = NO_LINK) -> Interval:
        """Return the interval of a network."""
        first = int(network.network_address)
        return cls(network.version, first, first | int(network.hostmask), link)

    @classmethod
    def around(cls, address: IPAddress, prefix: int, link: int) -> Interval:
        """Return the interval of the network of an address with this prefix length."""
        bits = address.max_prefixlen - prefix
        first = int(address) >> bits << bits
        return cls(address.version, first, first | (1 << bits) - 1, link)

    def overlaps(self, other: Interval) -> bool:
        """Return True if both intervals have an address in common."""
        return self.version == other.version and self.first <= other.last and other.first <= self.last


class IntervalIndex:
    """Intervals, found by overlap. Most are single addresses; the others are few and searched one by one."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        unique = set(intervals)
        self._single = sorted(each for each in unique if each.first == each.last)
        self._wide = sorted(each for each in unique if each.first != each.last)

    def overlapping(self, wanted: Interval) -> Iterator[Interval]:
        """Yield the intervals that have an address in common with `wanted`."""
        begin = bisect_left(self._single, (wanted.version, wanted.first))
        end = bisect_left(self._single, (wanted.version, wanted.last + 1))
        yield from self._single[begin:end]
        yield from (each for each in self._wide if each.overlaps(wanted))


def source_rules(
    addresses: Sequence[IPAddress],
    ranges: Iterable[IPNetwork],
    on_link: Iterable[IPNetwork],
    link: int,
    table: int,
    config: Config,
    sources: IntervalIndex,
) -> tuple[Rule, ...]:
    """Return the rules that lead to one table of a link.

    `addresses` and `ranges` are the link's sources. `on_link` are the networks that its table has on link: no prefix
    exceeds them. `sources` are those of all links.
    """
    if config.rules is RulesMode.AGGREGATE:
        selectors = aggregate(addresses, on_link, link, sources)
    else:
        selectors = [host(address) for address in addresses]
    only_own = dict.fromkeys(ranges, False)  # also for forwarded packets: containers may own addresses of a range
    for selector in selectors:
        only_own.setdefault(selector, selector.prefixlen < selector.max_prefixlen)
    first, last = config.rule_priority, config.rule_priority + 2 * STEP
    found = []
    for selector, iif_lo in only_own.items():
        found.append(Rule(first, selector.version, selector, table, suppress=True, iif_lo=iif_lo))
        found.append(Rule(last, selector.version, selector, table, suppress=False, iif_lo=iif_lo))
        if config.rules is RulesMode.ORIGINAL and selector in selectors:  # never matched, because local is first
            found.append(Rule(last, selector.version, selector, table, suppress=False, to=True))
    return tuple(found)


def main_rule(version: int, config: Config) -> Rule:
    """Return the rule of step 2 for one family."""
    return Rule(config.rule_priority + STEP, version, None, TABLE_MAIN, suppress=True)


def aggregate(
    addresses: Sequence[IPAddress], on_link: Iterable[IPNetwork], link: int, sources: IntervalIndex
) -> list[IPNetwork]:
    """Return the fewest prefixes that contain all `addresses` and no source of another link.

    An address outside all of `on_link` gets its own rule, and so does one that another link has, too.
    """
    left = {version: sorted({int(each) for each in addresses if each.version == version}) for version in (4, 6)}
    found: list[IPNetwork] = []
    for network in sorted(on_link, key=lambda network: network.prefixlen):
        span, numbers = Interval.of_network(network), left[network.version]
        inside = slice(bisect_left(numbers, span.first), bisect_right(numbers, span.last))
        own, numbers[inside] = numbers[inside], []
        if own:
            others = [each for each in sources.overlapping(span) if each.link != link]
            found += _largest_around(own, others, network)
    alone = {version: set(numbers) for version, numbers in left.items()}
    return found + [host(each) for each in addresses if int(each) in alone[each.version]]


def _largest_around(own: Iterable[int], others: Collection[Interval], network: IPNetwork) -> Iterator[IPNetwork]:
    """Yield the largest prefixes of `network` around the link's addresses that contain no other address, each once."""
    firsts, lasts = sorted(each.first for each in others), sorted(each.last for each in others)
    size, found = network.max_prefixlen, dict[tuple[int, int], None]()
    for number in own:
        ended, begun = bisect_left(lasts, number), bisect_right(firsts, number)
        bits = size - network.prefixlen
        for neighbour in (*lasts[max(0, ended - 1) : ended], *firsts[begun : begun + 1]):
            bits = min(bits, (number ^ neighbour).bit_length() - 1)
        if begun > ended:  # inside another's interval
            bits = 0
        found[number >> bits << bits, size - bits] = None
    return map(type(network), found)
