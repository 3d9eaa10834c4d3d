"""Desired and Actual → the changes between them, in the order in which they can be made. Pure.

Only what is ours is ever removed, and only when the caller says that the metadata proves it gone. An address that is
already on its link satisfies a wish whoever put it there and with whatever prefix length, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from cloud_network.fetcher.model import IPNetwork
from cloud_network.fetcher.objects import Actual, Address, Desired, Link, Route, Rule

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


def plan(desired: Desired, actual: Actual, *, may_remove: bool) -> Plan:
    """The changes that make `actual` what `desired` says."""
    changes: list[Change] = list(_removals(desired, actual)) if may_remove else []
    changes += _links(desired, actual)
    for address in desired.addresses:
        if (address.ifindex, address.address) not in actual.addresses:
            changes.append(Change(Verb.ADD, address))
    changes += [Change(Verb.ADD, route) for route in desired.routes if route not in actual.routes]
    changes += [Change(Verb.ADD, rule) for rule in desired.rules if rule not in actual.rules]
    if may_remove:
        changes += _rules_that_go(desired, actual)
    return tuple(changes)


def _links(desired: Desired, actual: Actual) -> Iterator[Change]:
    links = {link.ifindex: link for link in actual.links}
    for wish in desired.wishes:
        link = links[wish.ifindex]
        if wish.mtu is not None and link.mtu != wish.mtu:
            yield Change(Verb.ADD, LinkMtu(wish.ifindex, wish.mtu))
        if not link.up:
            yield Change(Verb.ADD, LinkUp(wish.ifindex))


def _removals(desired: Desired, actual: Actual) -> Iterator[Change]:
    """Routes before addresses: the kernel takes a link's routes with its last address, and then ours are not there."""
    places = {(route.table, route.destination) for route in desired.routes}
    for route in sorted(actual.routes - set(desired.routes), key=str):
        if (route.table, route.destination) not in places and route.ifindex not in desired.left_links:
            yield Change(Verb.REMOVE, route)  # one that changes is replaced in place
    wanted = {(address.ifindex, address.address) for address in desired.addresses}
    for place, kernel in actual.addresses.items():
        if kernel.owned and place not in wanted and kernel.address.ifindex not in desired.left_links:
            yield Change(Verb.REMOVE, kernel.address)


def of_link(plan: Plan, ifindex: int, table: int) -> Plan:
    """What of a plan concerns one link, whose table is `table`."""
    return tuple(
        change
        for change in plan
        if (change.what.table == table if isinstance(change.what, Rule) else change.what.ifindex == ifindex)
    )


def _rules_that_go(desired: Desired, actual: Actual) -> Iterator[Change]:
    """Last of all: others may take their place, and no address of an open connection may be without one meanwhile.

    Until then one that goes comes first, for the kernel asks rules of one number in the order in which they were made;
    one whose address or table is gone already leads nothing anywhere.
    """
    for rule in sorted(actual.rules - set(desired.rules), key=str):
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
