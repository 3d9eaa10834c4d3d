"""Desired and Actual → the changes between them, in the order in which they can be made. Pure.

Only what is ours is ever removed, and only when the caller says that the metadata proves it gone. An address that is
already on its link satisfies a wish whoever put it there and with whatever prefix length, and is left as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from cloud_network.fetcher.kept import Kept
from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.fetcher.network.objects import Actual, Address, Desired, Link, Route, Rule

Has = TypeVar("Has", Route, Rule)
_NO_RULES: frozenset[Rule] = frozenset()
_TABLES = {254: "main", 255: "local"}


class Verb(Enum):
    """What to do with an object."""

    ADD = "add"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Set a link up."""

    ifindex: int


@dataclass(frozen=True, slots=True)
class LinkMtu:
    """Set a link's MTU, in bytes."""

    ifindex: int
    mtu: int


@dataclass(frozen=True, slots=True)
class Change:
    """One operation for netagent. A route is replaced where it exists; a link is only ever set up or given an MTU."""

    verb: Verb
    what: LinkUp | LinkMtu | Address | Route | Rule


Plan = tuple[Change, ...]


def plan(desired: Desired, actual: Actual, *, may_remove: bool, kept: Kept | None = None) -> Plan:
    """The changes that make `actual` what `desired` says. `kept`: what was made at the last pass."""
    kept = kept or Kept()
    changes: list[Change] = list(_removals(desired, actual, kept)) if may_remove else []
    changes += _links(desired, actual)
    for each in desired.links:
        changes += kept(_addresses_to_add, each.addresses, actual)
    for each in desired.links:
        changes += kept(_to_add, each.routes, actual.routes)
    for each in desired.links:
        changes += kept(_to_add, each.rules, actual.rules)
    changes += [Change(Verb.ADD, rule) for rule in desired.common if rule not in actual.rules]
    if may_remove:
        changes += _rules_that_go(desired, actual, kept)
    return tuple(changes)


def _addresses_to_add(addresses: tuple[Address, ...], actual: Actual) -> list[Change]:
    missing = (each for each in addresses if (each.ifindex, each.address) not in actual.addresses)
    return [Change(Verb.ADD, address) for address in missing]


def _to_add(wanted: dict[Has, None], there: frozenset[Has]) -> list[Change]:
    missing = set(wanted) - there
    return [Change(Verb.ADD, each) for each in wanted if each in missing] if missing else []


def _unwanted(there: frozenset[Has], *wanted: dict[Has, None]) -> frozenset[Has]:
    return there - set[Has]().union(*wanted)


def _links(desired: Desired, actual: Actual) -> Iterator[Change]:
    links = {link.ifindex: link for link in actual.links}
    for wish in desired.wishes:
        link = links[wish.ifindex]
        if wish.mtu is not None and link.mtu != wish.mtu:
            yield Change(Verb.ADD, LinkMtu(wish.ifindex, wish.mtu))
        if not link.up:
            yield Change(Verb.ADD, LinkUp(wish.ifindex))


def _removals(desired: Desired, actual: Actual, kept: Kept) -> Iterator[Change]:
    """Routes before addresses: the kernel takes a link's routes with its last address, and then ours are not there."""
    present = sum(len(each.routes) - len(kept(_to_add, each.routes, actual.routes)) for each in desired.links)
    all_of_it = present == len(actual.routes)  # most often; to compare thousands once more takes its time
    unwanted = () if all_of_it else kept(_unwanted, actual.routes, *(each.routes for each in desired.links))
    places = {(route.table, route.destination) for route in desired.routes} if unwanted else ()
    for route in sorted(unwanted, key=str):
        if (route.table, route.destination) not in places and route.ifindex not in desired.left_links:
            yield Change(Verb.REMOVE, route)  # one that changes is replaced in place
    ours = kept(_ours, actual)
    wanted = {each.wish.ifindex: each.addresses for each in desired.links}
    for ifindex in ours.keys() - desired.left_links:
        gone = kept(_unwanted_addresses, ours[ifindex], wanted.get(ifindex, ()))
        yield from (Change(Verb.REMOVE, address) for address in gone)


def _ours(actual: Actual) -> dict[int, dict[IPAddress, Address]]:
    """By link, in the kernel's order."""
    found = defaultdict[int, dict[IPAddress, Address]](dict)
    for (ifindex, address), kernel in actual.addresses.items():
        if kernel.owned:
            found[ifindex][address] = kernel.address
    return found


def _unwanted_addresses(ours: dict[IPAddress, Address], wanted: tuple[Address, ...]) -> list[Address]:
    gone = ours.keys() - {each.address for each in wanted}
    return [address for place, address in ours.items() if place in gone] if gone else []


def of_link(plan: Plan, ifindex: int, table: int) -> Plan:
    """What of a plan concerns one link, whose table is `table`."""
    return tuple(
        change
        for change in plan
        if (change.what.table == table if isinstance(change.what, Rule) else change.what.ifindex == ifindex)
    )


def _rules_that_go(desired: Desired, actual: Actual, kept: Kept) -> Iterator[Change]:
    """Last of all: others may take their place, and no address of an open connection may be without one meanwhile.

    Until then one that goes comes first, for the kernel asks rules of one number in the order in which they were made;
    one whose address or table is gone already leads nothing anywhere.
    """
    present = sum(len(each.rules) - len(kept(_to_add, each.rules, actual.rules)) for each in desired.links)
    all_of_it = present + sum(rule in actual.rules for rule in desired.common) == len(actual.rules)
    unwanted = _NO_RULES if all_of_it else kept(_unwanted, actual.rules, *(each.rules for each in desired.links))
    for rule in sorted(unwanted.difference(desired.common), key=str):
        if rule.table not in desired.left_tables:
            yield Change(Verb.REMOVE, rule)


def in_ip_syntax(change: Change, links: dict[int, Link]) -> str:
    """The change as the `ip` command that would make it."""
    what = change.what
    verb = "add" if change.verb is Verb.ADD else "del"
    if isinstance(what, LinkUp):
        return f"ip link set {_name(what.ifindex, links)} up"
    if isinstance(what, LinkMtu):
        return f"ip link set {_name(what.ifindex, links)} mtu {what.mtu}"
    if isinstance(what, Address):
        flags = " noprefixroute" if not what.connected else ""
        flags += " nodad" if what.address.version == 6 else ""  # the cloud has seen to it
        text = f"ip address {verb} {what.address}/{what.prefix} dev {_name(what.ifindex, links)}"
        return text + flags if change.verb is Verb.ADD else text
    if isinstance(what, Route):
        verb = "replace" if change.verb is Verb.ADD else "del"
        kind = "local " if what.table == 255 else ""
        via = f" via {what.gateway}" if what.gateway is not None else ""
        family = " -6" if what.destination.version == 6 else ""
        table = _TABLES.get(what.table, what.table)
        device = _name(what.ifindex, links)
        return f"ip{family} route {verb} {kind}{_short(what.destination)}{via} dev {device} table {table} proto 209"
    family = " -6" if what.version == 6 else ""
    selector = "from all" if what.selector is None else f"{'to' if what.to else 'from'} {_short(what.selector)}"
    selector += " iif lo" if what.local else ""
    suppress = " suppress_prefixlength 0" if what.suppress else ""
    table = _TABLES.get(what.table, what.table)
    return f"ip{family} rule {verb} pref {what.priority} {selector} lookup {table}{suppress} protocol 209"


def _name(ifindex: int, links: dict[int, Link]) -> str:
    return links[ifindex].name if ifindex in links else f"if{ifindex}"


def _short(network: IPNetwork) -> str:
    if network.prefixlen == 0:
        return "default"
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
