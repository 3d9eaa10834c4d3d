"""Computes the operations that change the actual state into the desired one, in an order that can be applied. Pure.

Only owned objects are removed, and only if the caller states that the metadata proves them gone. An address that
another program added to its link satisfies the goal with any prefix length, and is not changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface

from cloud_network.fetcher.metadata.model import EVERYTHING, IPNetwork
from cloud_network.fetcher.network.objects import (
    Actual,
    Address,
    Desired,
    Link,
    LinkSettings,
    MarkTable,
    Object,
    Route,
    Rule,
)
from cloud_network.fetcher.network.rules import Interval, IntervalIndex
from cloud_network.netagent.claims import is_single, link_of_table
from cloud_network.netagent.operations import (
    AddressAdd,
    AddressRemove,
    ForwardedReplies,
    LinkMark,
    LinkMtu,
    LinkUp,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from cloud_network.netagent.protocol import PROTOCOL, TABLE_LOCAL, TABLE_MAIN

Plan = tuple[Operation, ...]
COMMON = 0
"""The link of an operation that belongs to no link: rules with neither selector nor mark, and the table of marks."""
_TABLE_NAMES = {TABLE_MAIN: "main", TABLE_LOCAL: "local"}


def plan(desired: Desired, actual: Actual, *, may_remove: bool) -> Plan:
    """Return the operations that change `actual` into `desired`."""
    links = {link.ifindex: link for link in actual.links}
    first = [op for goal in desired.links for op in _link_changes(goal.settings, links[goal.settings.ifindex])]
    ops: list[Operation] = []
    rules = _leaving_rules(desired, actual) if may_remove else []
    leaving = list(_leaving(desired, actual)) if may_remove else []
    reforms = [*_reforms(desired, actual, leaving), *_renumbered(desired, actual, leaving)] if may_remove else []
    if may_remove:
        first += _forwarding_changes(desired, actual, leaving, rules)
        ops += _route_removals(desired, actual)
    for each in reforms:
        ops += each.release()
    ops += map(remove_address, leaving)
    changed = {each.wanted for each in reforms}
    missing = (each for each in desired.addresses if (each.ifindex, each.address) not in actual.addresses)
    ops += [add_address(address) for address in missing if address not in changed]
    for each in reforms:
        ops += each.complete()
    ops += [replace_route(route) for route in desired.routes if route not in actual.routes]
    ops += _mark_table(desired, actual)
    ops += [add_rule(rule) for rule in desired.rules if rule not in actual.rules]
    ops += map(remove_rule, rules)
    if may_remove:
        ops += _smaller_mark_table(desired)
    done = set(first)
    return (*first, *(op for op in ops if op not in done))


def _mark_table(desired: Desired, actual: Actual) -> Iterator[ForwardedReplies]:
    """Yield the change of netagent's table that comes before the rules that need it."""
    if desired.marks is not None:
        first = _marks_with_old(desired)
        if sorted_marks(actual.marks or ()) != first:
            yield ForwardedReplies(first)


def _smaller_mark_table(desired: Desired) -> Iterator[ForwardedReplies]:
    """Yield the change of netagent's table that comes after the removal of the rules that needed it."""
    if desired.marks is not None and desired.marks != _marks_with_old(desired):
        yield ForwardedReplies(desired.marks)


def _marks_with_old(desired: Desired) -> tuple[LinkMark, ...]:
    """Return the desired marks, and those of links whose rules are about to be removed."""
    wanted = desired.marks or ()
    links, marks = {each.link for each in wanted}, {each.mark for each in wanted}
    old = [each for each in desired.marks_in_use if each.link not in links and each.mark not in marks]
    return sorted_marks((*wanted, *old))


def sorted_marks(marks: Iterable[LinkMark]) -> tuple[LinkMark, ...]:
    """Return marks in the order of their links."""
    return tuple(sorted(marks, key=lambda each: each.link))


@dataclass(frozen=True, slots=True)
class _Reform:
    """An owned address that needs another prefix length or connected route, for example after a first start.

    `is_secondary`: it has its form, but as the secondary of an address that leaves. The kernel would remove both.
    Without `have`, it is a new address: see _renumbered.

    The kernel stores an address once per prefix length. The address stays on the host throughout, temporarily as /32.
    """

    wanted: Address
    have: frozenset[Address]
    is_secondary: bool = False

    def release(self) -> Iterator[Operation]:
        """Yield the operations that remove the connected route from the address."""
        kept = {self.wanted.plain} if self.is_secondary else {self.wanted, self.wanted.plain}
        outdated = self.have - kept
        if (outdated or not self.have) and self.wanted.plain not in self.have:
            yield add_address(self.wanted.plain)
        yield from map(remove_address, sorted(outdated, key=lambda each: each.prefix))

    def complete(self) -> Iterator[Operation]:
        """Yield the operations that give the address its form, once no other address has the connected route."""
        if self.is_secondary or self.wanted not in self.have | {self.wanted.plain}:
            yield add_address(self.wanted)
        if self.wanted != self.wanted.plain:
            yield remove_address(self.wanted.plain)


def _reforms(desired: Desired, actual: Actual, leaving: Iterable[Address]) -> Iterator[_Reform]:
    """Yield the owned addresses that are not in their desired form, or would go together with one that leaves."""
    subnets = {each.subnet for each in leaving if each.address.version == 4}
    for wanted in desired.addresses:
        if wanted.address.version == 6 or wanted.ifindex in desired.unmanaged:
            continue
        entries = actual.entries((wanted.ifindex, wanted.address))
        have = frozenset(each.address for each in entries)
        if not entries or not entries[0].owned:
            continue
        is_secondary = any(each.secondary and each.address == wanted for each in entries) and wanted.subnet in subnets
        if is_secondary or have != {wanted}:
            yield _Reform(wanted, have, is_secondary)


def _renumbered(desired: Desired, actual: Actual, leaving: Iterable[Address]) -> Iterator[_Reform]:
    """Yield a new address for each link that loses all its IPv4 addresses and gets another one in their subnet.

    It is added before they are removed: the kernel removes the link's routes and ranges with its last IPv4 address. In
    another subnet the link needs other routes, and netagent allows its new gateway only after these are gone.
    """
    entries = (*actual.addresses.values(), *actual.further)
    there = {each.address for each in entries if each.address.address.version == 4}
    lost = {each.ifindex for each in there} - {each.ifindex for each in there.difference(leaving)}
    subnets = {each.subnet for each in there if each.ifindex in lost}
    for wanted in desired.addresses:
        if wanted.ifindex in lost and any(link == wanted.ifindex and wanted.address in net for link, net in subnets):
            lost.remove(wanted.ifindex)
            yield _Reform(wanted, frozenset())


def _link_changes(settings: LinkSettings, link: Link) -> Iterator[Operation]:
    if settings.mtu is not None and link.mtu != settings.mtu:
        yield LinkMtu(settings.ifindex, settings.mtu)
    if not link.up:
        yield LinkUp(settings.ifindex)


def _route_removals(desired: Desired, actual: Actual) -> Iterator[Operation]:
    """Yield removals of routes, before those of addresses: the kernel removes a link's routes with its last address."""
    wanted_routes = set(desired.routes)
    places = {(route.table, route.destination) for route in wanted_routes}
    for route in sorted(actual.routes - wanted_routes, key=_route_order):
        if (route.table, route.destination) not in places and route.ifindex not in desired.unmanaged:
            yield remove_route(route)  # a changed route is replaced in place


def _leaving(desired: Desired, actual: Actual) -> Iterator[Address]:
    """Yield the owned addresses that are no longer wanted."""
    wanted = {(each.ifindex, each.address) for each in desired.addresses}
    for kernel in (*actual.addresses.values(), *actual.further):
        if kernel.owned and kernel.place not in wanted and kernel.place[0] not in desired.unmanaged:
            yield kernel.address


def _leaving_rules(desired: Desired, actual: Actual) -> list[Rule]:
    """Return the owned rules that are no longer wanted, in the order of their removal: those for main are last.

    Except for those of _forwarding_changes, they are removed last of all: every address with an open connection needs a
    rule at all times. The kernel evaluates rules of one priority in the order of their addition, so an old rule matches
    first until it is removed. If its address or table is already gone, a rule for this host's packets has no effect.
    """
    leaving = sorted(actual.rules - set(desired.rules), key=_rule_order)
    return [rule for rule in leaving if rule.table not in desired.unmanaged_tables]


def _forwarding_changes(
    desired: Desired, actual: Actual, leaving: Iterable[Address], rules: Iterable[Rule]
) -> Iterator[Operation]:
    """Yield removals of leaving `rules` that would select forwarded packets once their address or range has left.

    netagent refuses to remove the address or range before. The rules that take over for addresses that stay come first,
    with the ranges that they need.
    """
    on_link = [each for each in actual.routes - set(desired.routes) if each.gateway is None]
    ranges = [Interval.of_network(each.destination) for each in on_link]
    addresses = IntervalIndex([*ranges, *(Interval.of_address(each.address) for each in leaving)])
    networks = IntervalIndex([*ranges, *(Interval.of_network(each.subnet[1]) for each in leaving)])
    old = [
        rule
        for rule in rules
        if rule.selector is not None
        and not rule.iif_lo
        and _overlapping(rule, addresses if is_single(rule.selector) else networks)
    ]
    new = _successors(old, desired, actual)
    needed = {rule.selector for rule in new if not rule.iif_lo}
    for route in desired.routes:
        if route.table == TABLE_LOCAL and route.destination in needed and route not in actual.routes:
            yield replace_route(route)
    yield from map(add_rule, new)
    yield from map(remove_rule, old)


def _successors(old: Iterable[Rule], desired: Desired, actual: Actual) -> list[Rule]:
    """Return the new rules for addresses that stay and that `old` rules select, after the new rules of no link."""
    kept = [each for each in desired.addresses if (each.ifindex, each.address) in actual.addresses]
    staying = IntervalIndex(Interval.of_address(each.address) for each in kept)
    selected = {(rule.table, each) for rule in old for each in _overlapping(rule, staying)}
    if not selected:
        return []
    new = [rule for rule in desired.rules if rule not in actual.rules]
    return [
        rule
        for rule in new
        if rule in desired.common or any((rule.table, each) in selected for each in _overlapping(rule, staying))
    ]


def _overlapping(rule: Rule, index: IntervalIndex) -> list[Interval]:
    return [] if rule.selector is None else list(index.overlapping(Interval.of_network(rule.selector)))


def _route_order(route: Route) -> tuple[int, bool, int, int, int]:
    """Return the sorting key that puts routes through a gateway before the on-link routes that they need."""
    destination = route.destination
    return (
        route.table,
        route.gateway is None,
        destination.version,
        int(destination.network_address),
        destination.prefixlen,
    )


def _rule_order(rule: Rule) -> tuple[bool, int, int, int, int, bool, int]:
    """Return the sorting key of removals."""
    selector, is_main = rule.selector or EVERYTHING[rule.version], rule.table == TABLE_MAIN
    return (is_main, rule.priority, rule.version, int(selector.network_address), selector.prefixlen, rule.to, rule.mark)


# Objects and operations


def add_address(address: Address) -> AddressAdd:
    """Return the operation that adds an address."""
    return AddressAdd(address.ifindex, ip_interface((address.address, address.prefix)), address.connected)


def remove_address(address: Address) -> AddressRemove:
    """Return the operation that removes an address."""
    return AddressRemove(address.ifindex, ip_interface((address.address, address.prefix)))


def replace_route(route: Route) -> RouteReplace:
    """Return the operation that adds a route, or replaces the owned route to the same destination."""
    return RouteReplace(route.table, route.ifindex, route.destination, route.gateway)


def remove_route(route: Route) -> RouteRemove:
    """Return the operation that removes a route."""
    return RouteRemove(route.table, route.ifindex, route.destination, route.gateway)


def add_rule(rule: Rule) -> RuleAdd:
    """Return the operation that adds a rule."""
    selector = rule.selector or EVERYTHING[rule.version]
    return RuleAdd(rule.priority, selector, rule.to, rule.table, rule.suppress, rule.iif_lo, rule.mark, rule.mask)


def remove_rule(rule: Rule) -> RuleRemove:
    """Return the operation that removes a rule."""
    selector = rule.selector or EVERYTHING[rule.version]
    return RuleRemove(rule.priority, selector, rule.to, rule.table, rule.suppress, rule.iif_lo, rule.mark, rule.mask)


def added_object(op: Operation) -> Object | None:
    """Return the object that an operation adds, as in `desired`; None for a removal."""
    match op:
        case LinkUp(link):
            return LinkSettings(link, None)
        case LinkMtu(link, mtu):
            return LinkSettings(link, mtu)
        case AddressAdd(link, interface, connected):
            return Address(link, interface.ip, interface.network.prefixlen, connected)
        case RouteReplace(table, link, destination, gateway):
            return Route(table, link, destination, gateway)
        case RuleAdd(priority, selector, to, table, suppress, local, mark, mask):
            source = selector if selector.prefixlen else None
            return Rule(priority, selector.version, source, table, suppress, to, local, mark, mask)
        case ForwardedReplies():
            return MarkTable()
        case _:
            return None


def is_removal(op: Operation) -> bool:
    """Return True if the operation removes something."""
    return isinstance(op, AddressRemove | RouteRemove | RuleRemove)


def link_of(op: Operation, table_base: int) -> int:
    """Return the ifindex that an operation concerns, or COMMON."""
    if isinstance(op, RuleAdd | RuleRemove):
        return link_of_table(op.table, table_base) if op.selector.prefixlen or op.mark else COMMON
    if isinstance(op, ForwardedReplies):
        return COMMON
    return op.link


# Text


def in_ip_syntax(op: Operation, links: Mapping[int, Link]) -> str:
    """Return the operation as the equivalent `ip` command."""
    match op:
        case LinkUp(link):
            return f"ip link set {_name(link, links)} up"
        case LinkMtu(link, mtu):
            return f"ip link set {_name(link, links)} mtu {mtu}"
        case AddressAdd(link, interface, connected):
            flags = "" if connected else " noprefixroute"
            flags += " nodad" if interface.version == 6 else ""  # the cloud assigns each address only once
            return f"ip address add {interface} dev {_name(link, links)}{flags}"
        case AddressRemove(link, interface):
            return f"ip address del {interface} dev {_name(link, links)}"
        case RouteReplace() | RouteRemove():
            return _route_text(op, links)
        case RuleAdd() | RuleRemove():
            return _rule_text(op)
        case ForwardedReplies(marks):
            shown = " ".join(f"{_name(each.link, links)}={each.mark:#x}" for each in marks)
            return f"nft table inet cloud_network: {shown or 'removed'}"


def _route_text(op: RouteReplace | RouteRemove, links: Mapping[int, Link]) -> str:
    verb = "replace" if isinstance(op, RouteReplace) else "del"
    kind = "local " if op.table == TABLE_LOCAL else ""
    via = f" via {op.gateway}" if op.gateway is not None else ""
    family = " -6" if op.destination.version == 6 else ""
    table, device = _TABLE_NAMES.get(op.table, str(op.table)), _name(op.link, links)
    return f"ip{family} route {verb} {kind}{_short(op.destination)}{via} dev {device} table {table} proto {PROTOCOL}"


def _rule_text(op: RuleAdd | RuleRemove) -> str:
    verb = "add" if isinstance(op, RuleAdd) else "del"
    family = " -6" if op.selector.version == 6 else ""
    selector = f"{'to' if op.to else 'from'} {_short(op.selector)}" if op.selector.prefixlen else "from all"
    selector += f" fwmark {op.mark:#x}/{op.mask:#x}" if op.mark else ""
    selector += " iif lo" if op.iif_lo else ""
    suppress = " suppress_prefixlength 0" if op.suppress else ""
    table = _TABLE_NAMES.get(op.table, str(op.table))
    return f"ip{family} rule {verb} pref {op.priority} {selector} lookup {table}{suppress} protocol {PROTOCOL}"


def _name(ifindex: int, links: Mapping[int, Link]) -> str:
    return links[ifindex].name if ifindex in links else f"if{ifindex}"


def _short(network: IPNetwork) -> str:
    if network.prefixlen == 0:
        return "default"
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def summary(ops: Collection[Operation]) -> str:
    """Return the number of operations, in total and of each kind, such as `4 changes (3 addresses, 1 route)`."""
    counts: dict[tuple[str, str], int] = {}
    for op in ops:
        words = _KINDS[type(op)]
        counts[words] = counts.get(words, 0) + 1
    kinds = ", ".join(f"{count} {one if count == 1 else many}" for (one, many), count in counts.items())
    return f"{count_changes(len(ops))} ({kinds})"


def count_changes(number: int) -> str:
    """Return `1 change` or `N changes`."""
    return "1 change" if number == 1 else f"{number} changes"


_KINDS: Mapping[type[Operation], tuple[str, str]] = {
    LinkUp: ("link up", "links up"),
    LinkMtu: ("MTU", "MTUs"),
    AddressAdd: ("address", "addresses"),
    AddressRemove: ("address removed", "addresses removed"),
    RouteReplace: ("route", "routes"),
    RouteRemove: ("route removed", "routes removed"),
    RuleAdd: ("rule", "rules"),
    RuleRemove: ("rule removed", "rules removed"),
    ForwardedReplies: ("table of marks", "tables of marks"),
}
