"""Addresses and networks as intervals of numbers, and an index that finds overlapping ones. Pure.

Comparing two `ipaddress` networks costs about a microsecond and a large instance needs millions of comparisons, so the
planner compares numbers and searches a sorted list.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.fetcher.network.objects import Address

NO_LINK = 0  # the kernel numbers links from 1


class Interval(NamedTuple):
    """The addresses from `first` to `last` of one family, and the link that has them."""

    version: int  # 4 or 6
    first: int
    last: int
    ifindex: int

    @classmethod
    def of_address(cls, address: IPAddress, ifindex: int = NO_LINK) -> Interval:
        """Return the interval of one address."""
        number = int(address)
        return cls(address.version, number, number, ifindex)

    @classmethod
    def of_network(cls, network: IPNetwork, ifindex: int = NO_LINK) -> Interval:
        """Return the interval of every address of a network."""
        first = int(network.network_address)
        return cls(network.version, first, first + (1 << network.max_prefixlen - network.prefixlen) - 1, ifindex)

    @classmethod
    def around(cls, address: IPAddress, prefix: int, ifindex: int) -> Interval:
        """Return the interval of the network of this prefix length that contains `address`."""
        host_bits = address.max_prefixlen - prefix
        first = int(address) >> host_bits << host_bits
        return cls(address.version, first, first + (1 << host_bits) - 1, ifindex)

    def overlaps(self, other: Interval) -> bool:
        """Return True if the two have an address in common."""
        return self.first <= other.last and other.first <= self.last and self.version == other.version

    def contains(self, other: Interval) -> bool:
        """Return True if every address of `other` is in this interval."""
        return self.first <= other.first and other.last <= self.last and self.version == other.version


class IntervalIndex:
    """Intervals in order, searched by bisection."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        self._intervals = sorted(set(intervals))
        self._firsts = [(each.version, each.first) for each in self._intervals]
        self._highest = list(accumulate(((each.version, each.last) for each in self._intervals), max))  # up to each

    def overlapping(self, interval: Interval) -> list[Interval]:
        """Return the intervals that overlap `interval`, in order."""
        start = bisect_left(self._highest, (interval.version, interval.first))
        inside = bisect_left(self._firsts, (interval.version, interval.first))
        end = bisect_right(self._firsts, (interval.version, interval.last))
        wider = [each for each in self._intervals[start:inside] if each.overlaps(interval)]
        return wider + self._intervals[inside:end]


def networks_of(addresses: Iterable[Address]) -> list[Interval]:
    """Return the networks that contain `addresses`, without host addresses that a network of their link contains."""
    networks, hosts = defaultdict[int, list[Interval]](list), list[Interval]()
    for each in addresses:
        if each.prefix < each.address.max_prefixlen:
            networks[each.ifindex].append(Interval.around(each.address, each.prefix, each.ifindex))
        else:
            hosts.append(Interval.of_address(each.address, each.ifindex))
    found = [network for of_link in networks.values() for network in of_link]
    for host in hosts:
        if not any(network.contains(host) for network in networks.get(host.ifindex, ())):
            found.append(host)
    return found
