"""What a packet of this host may have for its source, and which link that is of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.kept import Kept
from cloud_network.fetcher.metadata.model import Instance, Interface, IPAddress, IPNetwork
from cloud_network.fetcher.network.objects import Actual, Link
from cloud_network.fetcher.network.spans import NOBODY, Found, Span
from cloud_network.netagent.protocol import TABLE_LOCAL


class Group(NamedTuple):
    """What one link has of one family, of what a packet of this host may have for its source."""

    span: Span  # around all of it
    members: tuple[Span, ...]  # in order
    wide: tuple[Span, ...]  # of these, what is more than an address


def grouped(spans: Iterable[Span]) -> tuple[Group, ...]:
    """By link and family."""
    found = []
    in_order = sorted(set(spans), key=lambda each: (each.ifindex, each))
    for (version, ifindex), run in groupby(in_order, key=lambda each: (each.version, each.ifindex)):
        members = tuple(run)
        around = Span(version, members[0].first, max(each.last for each in members), ifindex)
        found.append(Group(around, members, tuple(each for each in members if each.first != each.last)))
    return tuple(found)


def singles(interface: Interface) -> tuple[IPAddress, ...]:
    """The addresses without their subnets."""
    return tuple(each.ip for each in interface.addresses)


def sources_of(
    instance: Instance, found: Mapping[str, Link], config: Config, actual: Actual, left: frozenset[int], kept: Kept
) -> Found[Group]:
    """What may be the source of a packet of this host, as the kernel and the metadata say; also of links to come."""
    groups = [*kept(_of_host, actual, instance.complete, left), *kept(_of_nobody, config)]
    for interface in instance.interfaces:
        groups += kept(_of_interface, kept(singles, interface), interface.ranges, found.get(interface.mac))
    return Found(groups)


def _of_host(actual: Actual, complete: bool, left: frozenset[int]) -> tuple[Group, ...]:
    """The kernel's. What is ours and the metadata no longer list is taken away before any rule is added."""
    spans = [
        Span.one(address, ifindex)
        for (ifindex, address), kernel in actual.addresses.items()
        if not (kernel.owned and complete and ifindex not in left)
    ]
    spans += [Span.all_of(network, ifindex) for network, ifindex in actual.local.items()]
    spans += [
        Span.all_of(route.destination, route.ifindex)
        for route in actual.routes
        if route.table == TABLE_LOCAL and not (complete and route.ifindex not in left)
    ]
    return grouped(spans)


def _of_interface(alone: tuple[IPAddress, ...], ranges: tuple[IPNetwork, ...], link: Link | None) -> tuple[Group, ...]:
    ifindex = link.ifindex if link else NOBODY
    spans = [Span.one(address, ifindex) for address in alone]
    return grouped(spans + [Span.all_of(network, ifindex) for network in ranges])


def _of_nobody(config: Config) -> tuple[Group, ...]:
    return grouped(Span.all_of(network) for network in config.exclude_addresses)


def near(link: Link, homes: tuple[IPNetwork, ...], sources: Found[Group]) -> Iterator[Group]:
    """Of other links, what has a part in a network that this one has on link."""
    for home in homes:
        yield from (each for each in sources.of(Span.all_of(home)) if each.span.ifindex != link.ifindex)
