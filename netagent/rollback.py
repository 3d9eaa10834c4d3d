"""The rollback of a transaction: the parts of the undo operations, and the checks before each of them.

Since the request, another program may have added objects that the kernel would remove with an address or a link, or the
operator may have changed the configuration.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from enum import IntEnum
from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH
from typing import TypeVar

from .claims import is_single, single
from .kernel import JoinedAddresses, Kernel, split_before_removals
from .operations import (
    EVERYTHING,
    PROTOCOL,
    TABLE_LOCAL,
    AddressAdd,
    AddressRemove,
    Change,
    ForwardedReplies,
    IPInterface,
    IPNetwork,
    LinkDown,
    LinkMtu,
    Operation,
    RouteAdd,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from .policy import (
    IPV6_MIN_MTU,
    Refusal,
    check_connected_when_up,
    check_link,
    check_local_when_up,
    check_on_link_with_rules,
    check_operation,
    check_removal,
    forwarding_orphan,
    lost_with_address,
    rule_text,
    split_by_policy,
)
from .protocol import Remaining
from .rtnetlink import Address
from .rules import is_rule_for_main, rule_key
from .side_effects import is_derived, lost_with_link, places_of
from .view import OwnedRoute, View

Found = TypeVar("Found")
Subject = TypeVar("Subject")

_REMOVALS = (AddressRemove, RouteRemove, RuleRemove, LinkDown)
_ALREADY_GONE = (ENOENT, ESRCH, EADDRNOTAVAIL, ENODEV)  # the object, or its link
UNDO_ATTEMPTS = 3


class Rollback:
    """Undoes operations. `links` are the identities of the links at the request.

    `all_applied` is True if this process has carried out all operations that are undone.
    """

    def __init__(
        self, kernel: Kernel, read_view: Callable[[], View], links: Mapping[int, str], *, all_applied: bool
    ) -> None:
        self._kernel, self._read_view, self._links, self._all_applied = kernel, read_view, links, all_applied
        self._joined = JoinedAddresses()

    def undo(self, ops: Sequence[Change]) -> list[Remaining]:
        """Carry out `ops`, except those that must not be. Returns those that were not carried out.

        Rules for main are added first, before the routes and rules that need them, and removed last. Routes through a
        gateway, and then the other rules, are added when their addresses are back. Links are set down after their
        addresses are removed.
        """
        mains = [op for op in ops if isinstance(op, RuleAdd | RuleRemove) and is_rule_for_main(op)]
        rules = [op for op in ops if isinstance(op, RuleAdd) and op not in mains]
        separate = {*mains, *rules}
        others = [op for op in ops if op not in separate]
        remaining = self._undo_rules([op for op in mains if isinstance(op, RuleAdd)])
        remaining += self._undo_parts(sorted(others, key=_stage))
        remaining += self._undo_rules(rules)
        return remaining + self._undo_rules([op for op in mains if isinstance(op, RuleRemove)])

    def _undo_rules(self, rules: Sequence[RuleAdd | RuleRemove]) -> list[Remaining]:
        """Add or remove those rules that a request could add or remove now. Returns the others."""
        if not rules:
            return []
        pending, refused = self._acceptable(rules)
        return [*refused, *self._carry_out(pending)]

    def _undo_parts(self, ops: Sequence[Change]) -> list[Remaining]:
        """Carry out `ops` in parts, except those that objects of other programs now prevent. Returns the others."""
        if not any(map(_is_guarded, ops)):
            return self._carry_out(ops)
        state = self._state(ops)
        if state is None:  # without the kernel's answer their dependents are unknown
            guarded = [op for op in ops if _is_guarded(op)]
            left = self._carry_out([op for op in ops if not _is_guarded(op)])
            return [*(failure(op, None) for op in guarded), *left]
        remaining = list[Remaining]()
        for part in split_before_removals(_without_temporary_addresses(ops, all_applied=self._all_applied)):
            pending, removals = list[Change](), dict[Change, RouteRemove]()
            for op in part:
                if isinstance(op, AddressRemove) and not state.has(op):
                    continue
                removal = state.removal_instead(op)
                if obstacle := state.obstacle(op):
                    remaining.append(Remaining(op, obstacle))
                    state.count_as_kept(op)
                    if removal is None or state.obstacle(removal):
                        continue
                    op = removal
                elif removal is not None and removal.table != TABLE_LOCAL:  # a rule may need a range
                    removals[op] = removal
                pending.append(state.without_replacing(op))
                state.count_done(op)
            failed = self._carry_out(pending)
            for each in failed:
                state.count_absent(each.op)  # later removals must not count on this address or range
            remaining += failed
            remaining += self._carry_out([removals[each.op] for each in failed if each.op in removals])
        return remaining

    def _carry_out(self, ops: Sequence[Change]) -> list[Remaining]:
        """Carry out `ops`, and retry those that fail. Returns those that still do."""
        failed: list[tuple[Change, int | None]] = [(op, None) for op in ops]
        for _ in range(UNDO_ATTEMPTS):
            errnos = self._kernel.change([op for op, _ in failed], stop=False, joined=self._joined)
            tried = [(op, errno) for (op, _), errno in zip(failed, errnos, strict=True)]
            failed = [(op, errno) for op, errno in tried if not is_done(op, errno)]
        return [failure(op, errno) for op, errno in failed]

    def _acceptable(self, rules: Sequence[RuleAdd | RuleRemove]) -> tuple[list[Change], list[Remaining]]:
        """Return the operations that a request could contain now, and the others with the reasons."""

        def split(view: View) -> tuple[list[Change], list[Remaining]]:
            left = [op for op in dict.fromkeys(rules) if _has_work(op, view)]
            pending, refused = split_by_policy(left, _check_rule, view)
            return [*pending], refused

        found = self._read(split)
        return found if found is not None else ([], [failure(op, None) for op in rules])

    def _state(self, ops: Sequence[Change]) -> RollbackState | None:
        """Return the kernel's state for a rollback; None if it cannot be read."""
        to_remove = {(op.table, op.destination) for op in ops if isinstance(op, RouteRemove)}
        return self._read(lambda view: RollbackState(view, self._links, to_remove, all_applied=self._all_applied))

    def _read(self, use: Callable[[View], Found]) -> Found | None:
        """Return what `use` makes of the kernel's state; None if it cannot be read, or does not fit into memory."""
        for _ in range(UNDO_ATTEMPTS):
            with contextlib.suppress(OSError, MemoryError):
                return use(self._read_view())
        return None


def _has_work(op: RuleAdd | RuleRemove, view: View) -> bool:
    """Return True for the addition of an absent rule, and for the removal of a present one."""
    is_there = rule_key(op) in view.rules.owned
    return is_there if isinstance(op, RuleRemove) else not is_there


def _check_rule(op: Operation, view: View) -> None:
    """Raise Refusal for a rule that a request could not add now, or that another rule still needs."""
    if isinstance(op, RuleRemove):
        check_removal(op, view)
    else:
        check_operation(op, view)


class _Stage(IntEnum):
    """The order in which operations are undone."""

    FIRST = 0
    GATEWAY_ROUTES = 1  # which need an address or an on-link route
    LINKS_DOWN = 2


def _stage(op: Change) -> _Stage:
    match op:
        case LinkDown():
            return _Stage.LINKS_DOWN
        case RouteReplace() if op.gateway is not None:
            return _Stage.GATEWAY_ROUTES
    return _Stage.FIRST


def _is_guarded(op: Change) -> bool:
    """Return True for what is undone only after a check for objects that other programs have added since.

    Local ranges are among them because rules may need them; other routes and rules only if they are added.
    """
    if isinstance(op, RouteRemove):
        return op.table == TABLE_LOCAL
    return isinstance(op, AddressAdd | AddressRemove | ForwardedReplies | LinkDown | LinkMtu | RouteReplace)


def as_addition(op: Change) -> Change:
    """Return the operation that adds a new route; any other operation as it is."""
    if not isinstance(op, RouteReplace):
        return op
    return RouteAdd(op.table, op.link, op.destination, op.gateway)


def is_done(op: Change, errno: int | None) -> bool:
    """Return True if an operation was carried out, or had no work left: the object was gone, or there, already.

    A route that is there already is another program's, or that of a broadcast address: an owned one would be replaced.
    """
    if isinstance(op, RouteAdd):
        return errno == 0
    return errno == 0 or errno in (_ALREADY_GONE if isinstance(op, _REMOVALS) else (EEXIST,))


def failure(op: Change, errno: int | None) -> Remaining:
    """Return an operation that failed, for an answer."""
    return Remaining(op, os.strerror(errno) if errno else "the kernel could not be asked", errno)


def _check_when_up(op: AddressAdd, view: View) -> None:
    """Raise Refusal for an IPv6 address with which the policy would refuse to set its link up."""
    ip, network = op.interface.ip, op.interface.network
    check_local_when_up(Address(op.link, ip, network.prefixlen, 0, PROTOCOL), view)
    if op.connected_route:
        check_connected_when_up(op.link, network, view)


def _reason(check: Callable[[Subject, View], object], subject: Subject, view: View) -> str | None:
    """Return the reason for which a check of the policy refuses, or None."""
    try:
        check(subject, view)
    except Refusal as refusal:
        return refusal.reason
    return None


def _without_temporary_addresses(ops: Sequence[Change], *, all_applied: bool) -> list[Change]:
    """Return `ops` without each addition of an address that a later one removes again, and without that removal.

    The request added and removed such an address itself: it is gone, and need not be added for a rollback. It must be
    if another address of the link is removed in between: without it, that could be the last one, whose routes would go.
    Without `all_applied`, the removal stays: the request may have added the address and not removed it.
    """
    added = dict[tuple[int, IPInterface], tuple[int, int]]()  # position, and removals of the link's addresses before
    left_out, removals = set[int](), Counter[int]()
    for at, op in enumerate(ops):
        if isinstance(op, AddressAdd):
            added[op.link, op.interface] = at, removals[op.link]
        elif isinstance(op, AddressRemove):
            begin, before = added.pop((op.link, op.interface), (at, -1))
            if before == removals[op.link]:
                left_out |= {begin, at} if all_applied else {begin}
            else:
                removals[op.link] += 1
    return [op for at, op in enumerate(ops) if at not in left_out]


class RollbackState:
    """The kernel's state, with the operations that the rollback has carried out so far."""

    def __init__(
        self, view: View, links: Mapping[int, str], to_remove: Set[tuple[int, IPNetwork]], *, all_applied: bool
    ) -> None:
        """`to_remove`: owned routes that the rollback removes; `links` and `all_applied`: see Rollback."""
        self._view, self._to_remove, self._all_applied = view, {*to_remove}, all_applied
        _ = view.routes_at_risk  # computed now: a MemoryError here is before the first change
        there = {link.index: link.identity for link in view.links.all()}
        self._other_links = {link for link, identity in links.items() if there.get(link, identity) != identity}
        places = places_of(view.snapshot.addresses)
        self._foreign = [each for each in view.snapshot.routes if not is_derived(each, places)]
        self._foreign_places = {(route.table, route.destination) for route in self._foreign}
        self._nexthop_links = {hop.link for hop in view.snapshot.nexthops}

    def has(self, op: AddressRemove) -> bool:
        """Return True if the address still exists."""
        return self._view.addresses.get(op.link, op.interface) is not None

    def obstacle(self, op: Change) -> str | None:
        """Return the reason why an operation must not be carried out, or None."""
        if isinstance(op, AddressAdd | RouteReplace | LinkDown | LinkMtu) and (reason := self._why_link_stays(op.link)):
            return reason
        match op:
            case AddressRemove():
                return self._why_address_stays(op)
            case RouteRemove() if (rule := self._orphan_without_range(op)) is not None:
                return f"{rule_text(rule)} depends on it and stays"
            case LinkDown():
                if state := lost_with_link(op.link, self._view.addresses.all(), self._foreign):
                    return f"{state} depends on it"
                if {(op.link, 4), (op.link, 6)} & self._view.static_neighbours:
                    return "static neighbour entries of the link depend on it"
                if op.link in self._nexthop_links:
                    return "nexthop objects that cloud-network did not add depend on it"
            case AddressAdd():
                return self._obstacle_to_address(op)
            case ForwardedReplies() if op.marks and not self._view.settings.sets_marks:
                return "ForwardedReplies= is off"
            case ForwardedReplies():
                return next(filter(None, (self._why_link_stays(mark.link) for mark in op.marks)), None)
            case RouteReplace() if op.table == TABLE_LOCAL and self._is_address(op.destination):
                return "a link has this address now"
            case RouteReplace() if (op.table, op.destination) in self._foreign_places:
                return "another program has a route to it there now"
            case RouteReplace() if op.gateway is not None and self._view.is_of_this_host(op.gateway):
                return "its gateway is an address of this host now: the kernel would put the destination on link"
            case RouteReplace() if op.table == TABLE_LOCAL:
                if (rule := self._orphan_without_range(op)) is not None:
                    return f"{rule_text(rule)} depends on the range that it would replace, and stays"
            case RouteReplace() if op.gateway is None:
                return _reason(check_on_link_with_rules, op, self._view)
            case LinkMtu() if self._view.links.get(op.link) is None:
                return "the link is gone; in another network namespace it keeps its MTU"
            case LinkMtu() if op.mtu < IPV6_MIN_MTU:
                routes = [route for route in self._foreign if route.destination.version == 6]
                if state := lost_with_link(op.link, self._view.addresses.all(), routes):
                    return f"{state} depends on it"
                if (op.link, 6) in self._view.static_neighbours:
                    return "static neighbour entries of the link depend on it"
        return None

    def removal_instead(self, op: Change) -> RouteRemove | None:
        """Return the removal of the request's route to the destination of a former one that is not restored, if any."""
        if not isinstance(op, RouteReplace):
            return None
        present = self._view.owned_routes.get((op.table, op.destination))
        if present is None or (present.link, present.gateway) == (op.link, op.gateway):  # still the former one
            return None
        return RouteRemove(op.table, present.link, op.destination, present.gateway)

    def without_replacing(self, op: Change) -> Change:
        """Return a restored route as an addition, unless it replaces an owned one; any other operation as it is."""
        if isinstance(op, RouteReplace) and (op.table, op.destination) not in self._view.owned_routes:
            return as_addition(op)
        return op

    def count_done(self, op: Change) -> None:
        """Count an operation as carried out."""
        match op:
            case AddressRemove():
                self.count_absent(op)
            case AddressAdd() if self._view.addresses.get(op.link, op.interface) is None:
                self._view.add_owned(op.link, op.interface, connected_route=op.connected_route)
            case RouteRemove() if (op.table, op.destination) in self._view.owned_routes:
                self._view.remove_route(op.table, op.destination)
            case RuleRemove() if rule_key(op) in self._view.rules.owned:
                self._view.rules.remove(op)
            case RouteReplace():
                self._view.add_route(op.table, op.destination, OwnedRoute(op.link, op.gateway))

    def count_as_kept(self, op: Change) -> None:
        """Count the route of a removal that is not carried out as one that stays."""
        if isinstance(op, RouteRemove):
            self._to_remove.discard((op.table, op.destination))

    def count_absent(self, op: Change) -> None:
        """Count an owned address as removed, or an address or a new route as not restored. Other operations stay."""
        match op:
            case AddressAdd() | AddressRemove():
                if (address := self._view.addresses.get(op.link, op.interface)) is not None:
                    self._view.remove_address(address)
            case RouteAdd() if (op.table, op.destination) in self._view.owned_routes:
                self._view.remove_route(op.table, op.destination)

    def _why_link_stays(self, link: int) -> str | None:
        """Return the reason why a rollback must not change the link, except for removals."""
        if link in self._other_links:
            return "another link has its number now"
        if self._view.links.get(link) is None:  # nothing is left to undo
            return None
        return _reason(check_link, link, self._view)

    def _obstacle_to_address(self, op: AddressAdd) -> str | None:
        """Return the reason why an address must not be restored, or None.

        The kernel makes a new IPv6 address local at once, also on a link that is down. It had not been local there.
        """
        if (found := self._address_in_the_way(op)) is not None and not self._was_never_removed(found):
            return "another program has added the address"
        if any(link != op.link for link in self._view.addresses.holders(op.interface.ip)):
            return "another link has the address now"
        if op.interface.version == 6 and self._view.links.is_down(op.link):
            return _reason(_check_when_up, op, self._view)
        return None

    def _address_in_the_way(self, op: AddressAdd) -> Address | None:
        """Return the link's address that prevents this addition: with IPv4, an owned one may have another length."""
        addresses = self._view.addresses
        if (equal := addresses.get(op.link, op.interface)) is not None:
            return equal
        there = addresses.entries(op.link, op.interface.ip)
        foreign = [each for each in there if addresses.have_protocol and each.protocol != PROTOCOL]
        return next(iter(there if op.interface.version == 6 else foreign), None)

    def _was_never_removed(self, address: Address) -> bool:
        """Return True if an address that must be restored is there already and owned: the request did not remove it.

        Before Linux 5.18, such an address is another program's if all operations of the request were carried out.
        """
        return address.protocol == PROTOCOL if self._view.addresses.have_protocol else not self._all_applied

    def _is_address(self, network: IPNetwork) -> bool:
        """Return True for the /32 or /128 of an address that a link has."""
        return is_single(network) and bool(self._view.addresses.holders(network.network_address))

    def _why_address_stays(self, op: AddressRemove) -> str | None:
        """Return the reason why an address must not be removed, or None."""
        address = self._view.addresses.get(op.link, op.interface)
        if address is None:
            return None
        if self._view.addresses.have_protocol and address.protocol != PROTOCOL:
            return "another program has added or changed it since"
        last = op.interface.version == 4 and self._view.addresses.counts.is_last(address)
        if last and (kept := self._route_that_stays(op.link)):
            return f"the route to {kept} depends on it and stays"
        if (rule := self._orphan_without_address(address, last=last)) is not None:
            return f"{rule_text(rule)} depends on it and stays"
        return lost_with_address(address, self._view)

    def _orphan_without_address(self, address: Address, *, last: bool) -> RuleRemove | None:
        """Return a rule that stays and would select forwarded packets once the address is removed, or None.

        The rollback could not restore what the request has replaced by this address. With the last IPv4 address, the
        kernel removes the local ranges, too. The view is the same afterwards.
        """
        view = self._view
        ranges = [
            (place, route)
            for place, route in (view.owned_routes.items() if last else ())
            if place[0] == TABLE_LOCAL and place[1].version == 4 and route.link == address.link
        ]
        view.addresses.remove(address)
        for place, _ in ranges:
            view.remove_route(*place)
        try:
            network = EVERYTHING[4] if last else single(address.ip)
            return forwarding_orphan(address.link, network, view, exact=not last)
        finally:
            view.addresses.add(address)
            for place, route in ranges:
                view.add_route(*place, route)

    def _orphan_without_range(self, op: RouteRemove | RouteReplace) -> RuleRemove | None:
        """Return a rule that stays and would select forwarded packets once the link loses the local range, or None."""
        route = self._view.owned_routes.get((op.table, op.destination))
        if route is None or op.table != TABLE_LOCAL or (isinstance(op, RouteReplace) and route.link == op.link):
            return None
        self._view.remove_route(op.table, op.destination)
        try:
            return forwarding_orphan(route.link, op.destination, self._view, exact=False)
        finally:
            self._view.add_route(op.table, op.destination, route)

    def _route_that_stays(self, link: int) -> IPNetwork | None:
        """Return the destination of an owned IPv4 route of the link, which the request did not add."""
        for place, route in self._view.owned_routes.items():
            if route.link == link and place[1].version == 4 and place not in self._to_remove:
                return place[1]
        return None
