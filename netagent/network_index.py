"""Networks with values, indexed to find those that contain, lie in or overlap a given network."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from .claims import IPNetwork, span

Value = TypeVar("Value")


class NetworkIndex(Generic[Value]):
    """Values by network. Finds the values of networks that contain, lie in or overlap a given network.

    Networks are stored as prefix length and leading bits: with `ipaddress` objects, the lookups took most of the time
    of a check.
    """

    def __init__(self) -> None:
        self._families: dict[int, _Family[Value]] = {4: _Family(32), 6: _Family(128)}

    def add(self, network: IPNetwork, value: Value) -> None:
        """Add a value; a network may have several."""
        self._families[network.version].add(network, value)

    def discard(self, network: IPNetwork, value: Value) -> None:
        """Remove one value, if it is there."""
        self._families[network.version].discard(network, value)

    def has(self, network: IPNetwork) -> bool:
        """Return True if there is a value at exactly this network."""
        return self._families[network.version].has(network)

    def exactly(self, network: IPNetwork) -> Sequence[Value]:
        """Return the values at exactly this network."""
        return self._families[network.version].exactly(network)

    def containing(self, network: IPNetwork) -> Iterator[tuple[IPNetwork, Value]]:
        """Yield the values at `network` and at networks that contain it."""
        return self._families[network.version].containing(int(network.network_address), network.prefixlen)

    def inside(self, network: IPNetwork) -> Iterator[tuple[IPNetwork, Value]]:
        """Yield the values at networks inside `network`, but not at `network` itself."""
        return self._families[network.version].inside(network)

    def overlapping(self, network: IPNetwork) -> Iterator[tuple[IPNetwork, Value]]:
        """Yield the values at networks that overlap `network`."""
        yield from self.containing(network)
        yield from self.inside(network)


class NetworksByLink:
    """The networks of each link, without duplicates. A query about one link does not search those of other links."""

    def __init__(self) -> None:
        self._links: dict[int, NetworkIndex[None]] = {}
        self._all: NetworkIndex[int] = NetworkIndex()  # the same networks, with their links

    def add(self, link: int, network: IPNetwork) -> None:
        """Add a network to a link, unless the link has it already."""
        if not self.has(link, network):
            self._links.setdefault(link, NetworkIndex()).add(network, None)
            self._all.add(network, link)

    def discard(self, link: int, network: IPNetwork) -> None:
        """Remove a network of a link, if it is there."""
        if link in self._links:
            self._links[link].discard(network, None)
            self._all.discard(network, link)

    def has(self, link: int, network: IPNetwork) -> bool:
        """Return True if the link has exactly this network."""
        return link in self._links and self._links[link].has(network)

    def containing(self, link: int, network: IPNetwork) -> Iterator[IPNetwork]:
        """Yield the link's networks that are or contain `network`."""
        if link in self._links:
            yield from (each for each, _ in self._links[link].containing(network))

    def covers(self, link: int, network: IPNetwork) -> bool:
        """Return True if one of the link's networks is or contains `network`."""
        return any(True for _ in self.containing(link, network))

    def overlapping(self, link: int, network: IPNetwork) -> Iterator[IPNetwork]:
        """Yield the link's networks that overlap `network`."""
        if link in self._links:
            yield from (each for each, _ in self._links[link].overlapping(network))

    def elsewhere(self, link: int, network: IPNetwork) -> Iterator[tuple[IPNetwork, int]]:
        """Yield the networks of all other links that overlap `network`, with their links."""
        for other in self._links:
            if other != link:
                yield from ((each, other) for each in self.overlapping(other, network))

    def all_containing(self, network: IPNetwork) -> Iterator[tuple[IPNetwork, int]]:
        """Yield the networks of all links that are or contain `network`, with their links."""
        return self._all.containing(network)

    def links_with(self, network: IPNetwork) -> Sequence[int]:
        """Return the links that have exactly this network."""
        return self._all.exactly(network)

    def links_overlapping(self, network: IPNetwork) -> set[int]:
        """Return the links that have a network that overlaps `network`."""
        return {link for link in self._links if any(True for _ in self.overlapping(link, network))}


class _Family(Generic[Value]):
    """The part of a NetworkIndex for one IP version, whose addresses have `bits` bits."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._lengths: dict[int, dict[int, tuple[IPNetwork, list[Value]]]] = {}  # by length and leading bits
        self._order: list[tuple[int, int]] = []  # first address and length of each network

    def _leading(self, number: int, length: int) -> int:
        return number >> self._bits - length

    def add(self, network: IPNetwork, value: Value) -> None:
        first, length = int(network.network_address), network.prefixlen
        networks = self._lengths.setdefault(length, {})
        leading = self._leading(first, length)
        if leading in networks:
            networks[leading][1].append(value)
            return
        networks[leading] = (network, [value])
        insort(self._order, (first, length))

    def discard(self, network: IPNetwork, value: Value) -> None:
        first, length = int(network.network_address), network.prefixlen
        networks, leading = self._lengths.get(length, {}), self._leading(first, length)
        _, values = networks.get(leading, (network, []))
        if value not in values:
            return
        values.remove(value)
        if values:
            return
        del networks[leading]
        if not networks:
            del self._lengths[length]
        del self._order[bisect_left(self._order, (first, length))]

    def has(self, network: IPNetwork) -> bool:
        leading = self._leading(int(network.network_address), network.prefixlen)
        return leading in self._lengths.get(network.prefixlen, {})

    def exactly(self, network: IPNetwork) -> Sequence[Value]:
        found = self._lengths.get(network.prefixlen, {})
        return found.get(self._leading(int(network.network_address), network.prefixlen), (network, []))[1]

    def containing(self, number: int, longest: int) -> Iterator[tuple[IPNetwork, Value]]:
        for length, networks in self._lengths.items():
            found = networks.get(self._leading(number, length)) if length <= longest else None
            if found is not None:
                yield from ((found[0], value) for value in found[1])

    def inside(self, network: IPNetwork) -> Iterator[tuple[IPNetwork, Value]]:
        first, last = span(network)
        for at in range(bisect_left(self._order, (first, network.prefixlen + 1)), len(self._order)):
            begin, length = self._order[at]
            if begin > last:
                return
            found = self._lengths[length][self._leading(begin, length)]
            yield from ((found[0], value) for value in found[1])
