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
from typing import NamedTuple

from cloud_network.fetcher.model import IPAddress, IPNetwork

NOBODY = 0  # is no link's index


class Held(NamedTuple):
    """An address or network that a link has, as numbers (thousands are compared): from `first` to `last`."""

    version: int
    first: int
    last: int
    ifindex: int

    @classmethod
    def one(cls, address: IPAddress, ifindex: int) -> Held:
        """An address alone."""
        number = int(address)
        return cls(address.version, number, number, ifindex)

    @classmethod
    def all_of(cls, network: IPNetwork, ifindex: int) -> Held:
        """Every address of a network."""
        return cls(network.version, int(network.network_address), int(network.broadcast_address), ifindex)


class Sources:
    """Which link has what a packet of this host may have for its source; sorted once, for all links."""

    def __init__(self, held: Iterable[Held]) -> None:
        self._held = sorted(set(held))
        self._wide = [each for each in self._held if each.first != each.last]

    def aggregate(self, mine: Collection[IPAddress], homes: Iterable[IPNetwork], ifindex: int) -> list[IPNetwork]:
        """The fewest prefixes that hold all of `mine`, and nothing that another link than `ifindex` has.

        None reaches beyond the largest of `homes` in which its addresses lie; an address in none of them stands alone,
        and so does one that another link has a claim to.
        """
        left = {version: sorted(int(each) for each in mine if each.version == version) for version in (4, 6)}
        found = list[IPNetwork]()
        for home in sorted(homes, key=lambda home: home.prefixlen):
            first, last = int(home.network_address), int(home.broadcast_address)
            numbers = left[home.version]
            inside = slice(bisect_left(numbers, first), bisect_right(numbers, last))
            own, numbers[inside] = numbers[inside], []
            if own:
                found += _around(own, self._others(home.version, first, last, ifindex, set(own)), home)
        alone = {version: set(numbers) for version, numbers in left.items()}
        return found + [ip_network(each) for each in mine if int(each) in alone[each.version]]

    def _others(self, version: int, first: int, last: int, ifindex: int, own: set[int]) -> list[Held]:
        """What other links have of a network; each is a part of it, or it is a part of each."""
        begin, end = bisect_left(self._held, (version, first)), bisect_left(self._held, (version, last + 1))
        around = [each for each in self._wide if each.version == version and each.first < first and each.last >= last]
        return [
            each
            for each in (*self._held[begin:end], *around)
            if each.ifindex != ifindex and not (each.first == each.last and each.first in own)
        ]


def _around(own: Iterable[int], others: Collection[Held], home: IPNetwork) -> Iterable[IPNetwork]:
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
