"""The changes between the desired and the actual state, in an order in which they can be made. Pure.

Only objects of ours are removed, and only if the caller has proof that the metadata no longer list them. An address
that is on its link already is left as it is, no matter which program added it and with which prefix length.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from enum import Enum

from cloud_network.fetcher.metadata.model import IPNetwork
from cloud_network.fetcher.network.objects import Actual, Address, Desired, Link, Route, Rule

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
    """Return the changes that turn `actual` into `desired`, in the order in which netagent must make them.

    A rule is removed last: another may replace it, and until then every address of an open connection must have one.
    The old rule has precedence meanwhile, because the kernel tests rules of one priority in the order of their
    creation; if its address or table is gone, it matches nothing or finds nothing.
    """
    routes, rules = set(desired.routes), set(desired.rules)
    missing_routes, missing_rules = routes - actual.routes, rules - actual.rules
    changes = list[Change]()
    if may_remove:
        changes += _route_removals(desired, actual.routes - routes)
        changes += _address_removals(desired, actual)
    changes += _link_changes(desired, actual)
    changes += [
        Change(Verb.ADD, address)
        for address in desired.addresses
        if (address.ifindex, address.address) not in actual.addresses
    ]
    if missing_routes:
        changes += [Change(Verb.ADD, route) for route in desired.routes if route in missing_routes]
    if missing_rules:
        changes += [Change(Verb.ADD, rule) for rule in desired.rules if rule in missing_rules]
    if may_remove:
        changes += _rule_removals(desired, actual.rules - rules)
    return tuple(changes)


def _link_changes(desired: Desired, actual: Actual) -> Iterator[Change]:
    links = {link.ifindex: link for link in actual.links}
    for settings in desired.settings:
        link = links[settings.ifindex]
        if settings.mtu is not None and link.mtu != settings.mtu:
            yield Change(Verb.ADD, LinkMtu(link.ifindex, settings.mtu))
        if not link.up:
            yield Change(Verb.ADD, LinkUp(link.ifindex))


def _route_removals(desired: Desired, unwanted: Set[Route]) -> Iterator[Change]:
    """Yield removals of routes, but not of those that are replaced in place.

    They come before addresses: the kernel removes a link's routes with its last address, and netagent would then not
    find ours.
    """
    if not unwanted:
        return
    places = {(route.table, route.destination) for route in desired.routes}
    for route in sorted(unwanted, key=str):
        if (route.table, route.destination) not in places and route.ifindex not in desired.unmanaged_links:
            yield Change(Verb.REMOVE, route)


def _address_removals(desired: Desired, actual: Actual) -> Iterator[Change]:
    wanted = {(address.ifindex, address.address) for address in desired.addresses}
    for place, kernel in actual.addresses.items():
        if kernel.owned and place not in wanted and kernel.address.ifindex not in desired.unmanaged_links:
            yield Change(Verb.REMOVE, kernel.address)


def _rule_removals(desired: Desired, unwanted: Set[Rule]) -> Iterator[Change]:
    for rule in sorted(unwanted, key=str):
        if rule.table not in desired.unmanaged_tables:
            yield Change(Verb.REMOVE, rule)


def of_link(plan: Plan, ifindex: int, table: int) -> Plan:
    """Return the changes of one link, whose table is `table`."""
    return tuple(change for change in plan if _concerns(change, ifindex, table))


def _concerns(change: Change, ifindex: int, table: int) -> bool:
    if isinstance(change.what, Rule):
        return change.what.table == table
    return change.what.ifindex == ifindex


def in_ip_syntax(change: Change, links: dict[int, Link]) -> str:
    """Return the `ip` command that would make the change."""
    what = change.what
    verb = "add" if change.verb is Verb.ADD else "del"
    if isinstance(what, LinkUp):
        return f"ip link set {_name(what.ifindex, links)} up"
    if isinstance(what, LinkMtu):
        return f"ip link set {_name(what.ifindex, links)} mtu {what.mtu}"
    if isinstance(what, Address):
        flags = " noprefixroute" if not what.connected else ""
        flags += " nodad" if what.address.version == 6 else ""  # the cloud assigns it once
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
