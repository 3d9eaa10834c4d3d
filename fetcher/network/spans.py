"""Addresses and networks as runs of numbers, of which thousands are compared. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Generic, NamedTuple, Protocol, TypeVar

from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.fetcher.network.objects import Address

NOBODY = 0  # is no link's index


class Span(NamedTuple):
    """All from `first` to `last`, and which link has it."""

    version: int
    first: int
    last: int
    ifindex: int

    @classmethod
    def one(cls, address: IPAddress, ifindex: int = NOBODY) -> Span:
        """An address alone."""
        number = int(address)
        return cls(address.version, number, number, ifindex)

    @classmethod
    def all_of(cls, network: IPNetwork, ifindex: int = NOBODY) -> Span:
        """Every address of a network."""
        first = int(network.network_address)
        return cls(network.version, first, first + (1 << network.max_prefixlen - network.prefixlen) - 1, ifindex)

    @classmethod
    def around(cls, address: IPAddress, prefix: int, ifindex: int) -> Span:
        """Every address of the network that an address of this prefix length is in."""
        host = address.max_prefixlen - prefix
        first = int(address) >> host << host
        return cls(address.version, first, first + (1 << host) - 1, ifindex)

    @property
    def span(self) -> Span:
        """Itself, among what is `Found`."""
        return self

    def meets(self, other: Span) -> bool:
        """Whether they have an address in common."""
        return self.first <= other.last and other.first <= self.last and self.version == other.version

    def holds(self, other: Span) -> bool:
        """Whether all of `other` is in it."""
        return self.first <= other.first and other.last <= self.last and self.version == other.version


def covering(addresses: Iterable[Address]) -> list[Span]:
    """The networks that addresses are in; /32 siblings in one of their own link are many, and say no more."""
    wide, alone = defaultdict[int, list[Span]](list), list[Address]()
    for each in addresses:
        if each.prefix < each.address.max_prefixlen:
            wide[each.ifindex].append(Span.around(each.address, each.prefix, each.ifindex))
        else:
            alone.append(each)
    found = [span for spans in wide.values() for span in spans]
    for each in alone:
        number, version = int(each.address), each.address.version
        if not any(net.first <= number <= net.last and net.version == version for net in wide.get(each.ifindex, ())):
            found.append(Span(version, number, number, each.ifindex))
    return found


class HasSpan(Protocol):
    """What is found by the numbers that it spans."""

    @property
    def span(self) -> Span:
        """These."""


T = TypeVar("T", bound=HasSpan)


class Found(Generic[T]):
    """Those of many that have a part in a span."""

    def __init__(self, those: Iterable[T]) -> None:
        self._those = sorted(those, key=lambda each: each.span)
        self._firsts = [each.span[:2] for each in self._those]
        self._furthest = list(accumulate((each.span[::2] for each in self._those), max))  # (version, last) up to here

    def of(self, span: Span) -> Iterator[T]:
        """In falling order."""
        at = bisect_right(self._firsts, (span.version, span.last)) - 1
        while at >= 0 and self._furthest[at] >= (span.version, span.first):
            if self._those[at].span.meets(span):
                yield self._those[at]
            at -= 1
