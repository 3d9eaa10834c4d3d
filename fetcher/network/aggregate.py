"""The fewest prefixes that hold every address of a link and none of another's. Pure.

The kernel goes through its rules in order for every lookup, so `Rules=aggregate` has one prefix for all addresses of a
subnet on one link where `Rules=address` has one each. A prefix is as large as it can be: the whole subnet where no
other link has a part in it, so that an address more or less changes no rule.

Why these are the fewest: numbers in order are the leaves of a binary tree from left to right, and a prefix is a branch.
Of all addresses of others, the next one on either side shares the longest run of leading bits with an address of ours,
so these two bound the largest branch around it that is free of others. Two such branches are the same or have nothing
in common; every prefix that is allowed lies in one of them; and each holds an address that none of the others holds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from ipaddress import ip_network

from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.fetcher.network.sources import Group
from cloud_network.fetcher.network.spans import Span


def aggregate(mine: Collection[IPAddress], homes: Iterable[IPNetwork], *others: Group) -> list[IPNetwork]:
    """The fewest prefixes that hold all of `mine`, and nothing of `others`, which is what other links have.

    None reaches beyond the largest of `homes` in which its addresses lie; an address in none of them stands alone,
    and so does one that another link has a claim to.
    """
    left = {version: sorted(int(each) for each in mine if each.version == version) for version in (4, 6)}
    found = list[IPNetwork]()
    for home in sorted(homes, key=lambda home: home.prefixlen):
        span, numbers = Span.all_of(home), left[home.version]
        inside = slice(bisect_left(numbers, span.first), bisect_right(numbers, span.last))
        own, numbers[inside] = numbers[inside], []
        if own:
            found += _around(own, _inside(span, others, set(own)), home)
    alone = {version: set(numbers) for version, numbers in left.items()}
    return found + [ip_network(each) for each in mine if int(each) in alone[each.version]]


def _inside(home: Span, others: Iterable[Group], own: set[int]) -> list[Span]:
    """What others have of a network; each is a part of it, or it is a part of each."""
    found = list[Span]()
    for group in others:
        if group.span.meets(home):
            begin = bisect_left(group.members, (home.version, home.first))
            found += group.members[begin : bisect_left(group.members, (home.version, home.last + 1))]
            found += [each for each in group.wide if each.first < home.first and each.last >= home.last]
    return [each for each in found if not (each.first == each.last and each.first in own)]


def _around(own: Iterable[int], others: Collection[Span], home: IPNetwork) -> Iterable[IPNetwork]:
    """The largest prefixes of `home` around numbers of ours that are free of others, each once."""
    firsts, lasts = sorted(each.first for each in others), sorted(each.last for each in others)
    size, found = home.max_prefixlen, dict[tuple[int, int], None]()
    for number in own:
        ended, begun = bisect_left(lasts, number), bisect_right(firsts, number)
        host = size - home.prefixlen
        for other in (*lasts[max(0, ended - 1) : ended], *firsts[begun : begun + 1]):
            host = min(host, (number ^ other).bit_length() - 1)
        if begun > ended:
            host = 0  # in the middle of another's
        found[number >> host << host, size - host] = None
    return map(type(home), found)
