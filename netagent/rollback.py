"""The rollback of a transaction: the parts of the undo operations, and the checks before each of them.

Since the request, another program may have added objects that the kernel would remove with an address or a link, or the
operator may have changed the configuration.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH
from ipaddress import ip_interface
from typing import TypeVar

from .addresses import uses_ifa_proto
from .claims import is_single
from .kernel import Kernel
from .operations import (
    PROTOCOL,
    TABLE_LOCAL,
    AddressAdd,
    AddressRemove,
    Change,
    ForwardedReplies,
    IPAddress,
    IPInterface,
    IPNetwork,
    LinkDown,
    LinkMtu,
    RouteAdd,
    RouteRemove,
    RouteReplace,
    RuleAdd,
)
from .policy import IPV6_MIN_MTU, Refusal, check_link, check_operation, split_by_policy
from .protocol import Remaining
from .rtnetlink import IFA_F_SECONDARY, Address
from .rules import is_main_rule, rule_key
from .side_effects import AddressCounts, foreign_dependents, is_derived, lost_with_link
from .view import OwnRoute, View

Found = TypeVar("Found")

ALREADY_UNDONE = (0, ENOENT, ESRCH, EADDRNOTAVAIL, EEXIST, ENODEV)
"""The object was removed already (or its link), or added already."""
UNDO_ATTEMPTS = 3
_GUARDED = (AddressAdd, AddressRemove, ForwardedReplies, LinkDown, LinkMtu, RouteReplace)
"""Operations that are undone only after a check for objects that other programs have added since."""


class Rollback:
    """Undoes operations. `links` are the identities of the links at the request.

    `all_applied` is True if this process has carried out all operations that are undone.
    """

    def __init__(
        self, kernel: Kernel, look: Callable[[], View], links: Mapping[int, str], *, all_applied: bool
    ) -> None:
        self._kernel, self._look, self._links, self._all_applied = kernel, look, links, all_applied

    def undo(self, ops: Sequence[Change]) -> list[Remaining]:
        """Carry out `ops`, except those that must not be. Returns those that were not carried out.

        Rules are added last, when their addresses are back.
        """
        rules = sorted((op for op in ops if isinstance(op, RuleAdd)), key=is_main_rule, reverse=True)  # others need it
        remaining = self._undo_parts([op for op in ops if not isinstance(op, RuleAdd)])
        if rules:
            pending, refused = self._acceptable(rules)
            remaining += [*refused, *self._carry_out(pending)]
        return remaining

    def _undo_parts(self, ops: Sequence[Change]) -> list[Remaining]:
        """Carry out `ops` in parts, except those that objects of other programs now prevent. Returns the others."""
        if not any(isinstance(op, _GUARDED) for op in ops):
            return self._carry_out(ops)
        state = self._state(ops)
        if state is None:  # without the kernel's answer their dependents are unknown
            guarded = [op for op in ops if isinstance(op, _GUARDED)]
            left = self._carry_out([op for op in ops if not isinstance(op, _GUARDED)])
            return [*(failure(op, None) for op in guarded), *left]
        remaining = list[Remaining]()
        for part in _parts(_without_detours(ops)):
            pending = list[Change]()
            for op in part:
                if isinstance(op, AddressRemove) and not state.is_still_owned(op):
                    continue
                if obstacle := state.obstacle(op):
                    remaining.append(Remaining(op, obstacle))
                    continue
                pending.append(state.exact(op))
                state.record(op)
            failed = self._carry_out(pending)
            for each in failed:
                if isinstance(each.op, AddressAdd):
                    state.forget(each.op)  # later removals must not count on this address
            remaining += failed
        return remaining

    def _carry_out(self, ops: Sequence[Change]) -> list[Remaining]:
        """Carry out `ops`, and retry those that fail. Returns those that still do."""
        failed: list[tuple[Change, int | None]] = [(op, None) for op in ops]
        for _ in range(UNDO_ATTEMPTS):
            errnos = self._kernel.change([op for op, _ in failed], stop=False)
            tried = [(op, errno) for (op, _), errno in zip(failed, errnos, strict=True)]
            failed = [(op, errno) for op, errno in tried if errno not in ALREADY_UNDONE]
        return [failure(op, errno) for op, errno in failed]

    def _acceptable(self, rules: Sequence[RuleAdd]) -> tuple[list[Change], list[Remaining]]:
        """Return the rules that a request could add now, and the others with the reasons."""

        def split(view: View) -> tuple[list[Change], list[Remaining]]:
            missing = [op for op in dict.fromkeys(rules) if rule_key(op) not in view.rules.own]
            pending, refused = split_by_policy(missing, check_operation, view)
            return [*pending], refused

        return self._read(split) or ([], [failure(op, None) for op in rules])

    def _state(self, ops: Sequence[Change]) -> RollbackState | None:
        """Return the kernel's state for a rollback; None if it cannot be read."""
        to_remove = {(op.table, op.destination) for op in ops if isinstance(op, RouteRemove)}
        return self._read(lambda view: RollbackState(view, self._links, to_remove, all_applied=self._all_applied))

    def _read(self, use: Callable[[View], Found]) -> Found | None:
        """Return what `use` makes of the kernel's state; None if it cannot be read, or does not fit into memory."""
        for _ in range(UNDO_ATTEMPTS):
            with contextlib.suppress(OSError, MemoryError):
                return use(self._look())
        return None


def as_addition(op: Change) -> Change:
    """Return the operation that adds a new route; any other operation as it is."""
    if not isinstance(op, RouteReplace):
        return op
    return RouteAdd(op.table, op.link, op.destination, op.gateway)


def failure(op: Change, errno: int | None) -> Remaining:
    """Return an operation that failed, for an answer."""
    return Remaining(op, os.strerror(errno) if errno else "the kernel could not be asked", errno)


def _without_detours(ops: Sequence[Change]) -> list[Change]:
    """Return `ops` without each addition of an address that a later one removes again, and without that removal.

    The request added and removed such an address itself: it is gone, and need not be added for a rollback.
    """
    added, cancelled = dict[tuple[int, IPInterface], int](), set[int]()
    for at, op in enumerate(ops):
        if isinstance(op, AddressAdd):
            added[op.link, op.interface] = at
        elif isinstance(op, AddressRemove) and (op.link, op.interface) in added:
            cancelled |= {at, added.pop((op.link, op.interface))}
    return [op for at, op in enumerate(ops) if at not in cancelled]


def _parts(ops: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Yield parts of `ops`, in which no address is removed after one was added: see RollbackState.forget."""
    start, has_addition = 0, False
    for at, op in enumerate(ops):
        if isinstance(op, AddressRemove) and has_addition:
            yield ops[start:at]
            start, has_addition = at, False
        has_addition = has_addition or isinstance(op, AddressAdd)
    yield ops[start:]


class RollbackState:
    """The kernel's state, with the operations that the rollback has carried out so far."""

    def __init__(
        self, view: View, links: Mapping[int, str], to_remove: Set[tuple[int, IPNetwork]], *, all_applied: bool
    ) -> None:
        """`to_remove`: owned routes that the rollback removes; `links` and `all_applied`: see Rollback."""
        self._view, self._to_remove, self._all_applied = view, to_remove, all_applied
        self._losable_routes = view.losable_routes  # computed here: memory may not suffice
        there = {link.index: link.identity for link in view.links.all()}
        self._replaced = {link for link, identity in links.items() if there.get(link, identity) != identity}
        addresses, routes = view.snapshot.addresses, view.snapshot.routes
        self._foreign = [route for route in routes if not route.is_owned]
        self._nexthop_links = {hop.link for hop in view.snapshot.nexthops}
        by_peer = sorted(addresses, key=lambda each: each.peer is None)  # owned ones have no peer, and must be kept
        self._addresses = {(each.link, each.interface): each for each in by_peer}
        self._holders = defaultdict[IPAddress, set[tuple[int, int]]](set)  # links and prefix lengths, by address
        for each in addresses:
            self._holders[each.ip].add((each.link, each.prefix))
        self._tagged, self._counts = uses_ifa_proto(addresses), AddressCounts(addresses)
        self._subnets = Counter((each.link, each.network) for each in addresses)  # number of addresses in each
        made = (route for route in self._foreign if not is_derived(route))  # derived ones go with their addresses
        self._foreign_places = {(route.table, route.destination) for route in made}
        self._secondaries = defaultdict[tuple[int, IPNetwork], set[IPAddress]](set)
        for each in addresses:
            if each.ip.version == 4 and each.flags & IFA_F_SECONDARY:
                self._secondaries[each.link, each.network].add(each.ip)

    def is_still_owned(self, op: AddressRemove) -> bool:
        """Return True if the address still exists and is owned."""
        address = self._addresses.get((op.link, op.interface))
        return address is not None and (not self._tagged or address.protocol == PROTOCOL)

    def obstacle(self, op: Change) -> str | None:
        """Return the reason why an operation must not be carried out, or None."""
        if isinstance(op, AddressAdd | RouteReplace | LinkDown | LinkMtu) and (reason := self._not_changed(op.link)):
            return reason
        match op:
            case AddressRemove():
                return self._dependent(self._addresses[op.link, op.interface])
            case LinkDown():
                if state := lost_with_link(op.link, self._addresses.values(), self._foreign):
                    return f"{state} depends on it"
                if {(op.link, 4), (op.link, 6)} & self._view.static_neighbours:
                    return "static neighbour entries of the link depend on it"
                if op.link in self._nexthop_links:
                    return "nexthop objects that cloud-network did not add depend on it"
            case AddressAdd():
                if (there := self._there(op)) is not None and not self._was_never_removed(there):
                    return "another program has added the address"
                if any(link != op.link for link, _ in self._holders[op.interface.ip]):
                    return "another link has the address now"
            case ForwardedReplies():
                return next(filter(None, (self._not_changed(mark.link) for mark in op.marks)), None)
            case RouteReplace() if op.table == TABLE_LOCAL and self._is_address(op.destination):
                return "a link has this address now"
            case RouteReplace() if (op.table, op.destination) in self._foreign_places:
                return "another program has a route to it there now"
            case LinkMtu() if op.mtu < IPV6_MIN_MTU:
                routes = [route for route in self._foreign if route.destination.version == 6]
                if state := lost_with_link(op.link, self._addresses.values(), routes):
                    return f"{state} depends on it"
                if (op.link, 6) in self._view.static_neighbours:
                    return "static neighbour entries of the link depend on it"
        return None

    def exact(self, op: Change) -> Change:
        """Return a restored route as an addition, unless it replaces an owned one; any other operation as it is."""
        if isinstance(op, RouteReplace) and (op.table, op.destination) not in self._view.own_routes:
            return as_addition(op)
        return op

    def record(self, op: Change) -> None:
        """Count an operation as carried out."""
        match op:
            case AddressRemove():
                self.forget(op)
            case AddressAdd():
                self._restore(op)
            case RouteRemove() if (op.table, op.destination) in self._view.own_routes:
                self._view.remove_route(op.table, op.destination)
            case RouteReplace():
                self._view.add_route(op.table, op.destination, OwnRoute(op.link, op.gateway))

    def _restore(self, op: AddressAdd) -> None:
        """Count an address as added, unless it is there already."""
        if (op.link, op.interface) in self._addresses:
            return
        ip, network = op.interface.ip, op.interface.network
        address = Address(op.link, ip, network.prefixlen, 0, PROTOCOL)
        if ip.version == 4 and self._subnets[op.link, network]:
            address = replace(address, flags=IFA_F_SECONDARY)
            self._secondaries[op.link, network].add(ip)
        self._addresses[op.link, op.interface] = address
        self._holders[ip].add((op.link, network.prefixlen))
        self._subnets[op.link, network] += 1
        self._counts.add(address)

    def forget(self, op: AddressAdd | AddressRemove) -> None:
        """Count an owned address as removed, or as not restored."""
        address = self._addresses.pop((op.link, op.interface), None)
        if address is None:
            return
        self._holders[address.ip].discard((address.link, address.prefix))
        self._counts.add(address, -1)
        self._subnets[address.link, address.network] -= 1
        self._secondaries[address.link, address.network].discard(address.ip)

    def _not_changed(self, link: int) -> str | None:
        """Return the reason why a rollback must not change the link, except for removals."""
        if link in self._replaced:
            return "another link has its number now"
        try:
            if self._view.links.get(link) is not None:  # otherwise nothing is left to undo
                check_link(link, self._view)
        except Refusal as refusal:
            return refusal.reason
        return None

    def _there(self, op: AddressAdd) -> Address | None:
        """Return the link's address that prevents this addition: with IPv4, an owned one may have another length."""
        ip, wanted = op.interface.ip, op.interface.network.prefixlen
        lengths = [length for link, length in self._holders[ip] if link == op.link]
        found = [self._addresses[op.link, ip_interface((ip, length))] for length in lengths]
        equal = [each for each in found if each.prefix == wanted or ip.version == 6]
        foreign = [each for each in found if self._tagged and each.protocol != PROTOCOL]
        return next(iter((*equal, *foreign)), None)

    def _was_never_removed(self, address: Address) -> bool:
        """Return True if an address that must be restored is there already and owned: the request did not remove it.

        Before Linux 5.18, such an address is another program's if all operations of the request were carried out.
        """
        return address.protocol == PROTOCOL if self._tagged else not self._all_applied

    def _is_address(self, network: IPNetwork) -> bool:
        """Return True for the /32 or /128 of an address that a link has."""
        return is_single(network) and bool(self._holders[network.network_address])

    def _dependent(self, address: Address) -> str | None:
        """Return a description of an object that the kernel would remove with an owned address, or None."""
        route = foreign_dependents(address, self._counts, self._losable_routes)
        last = address.ip.version == 4 and self._counts.is_last(address)
        if last and (address.link, 4) in self._view.static_neighbours:
            return "static neighbour entries of the link depend on it"
        if last and (kept := self._own_route(address.link)):
            return f"the route to {kept} depends on it and stays"
        if route is not None:
            return (
                f"the route to {route.destination} in table {route.table} depends on it; cloud-network did not add it"
            )
        secondaries = self._secondaries[address.link, address.network]
        if secondaries and address.ip.version == 4 and not address.flags & IFA_F_SECONDARY:
            return f"{min(secondaries)} is its secondary and may go with it"
        return None

    def _own_route(self, link: int) -> IPNetwork | None:
        """Return the destination of an owned IPv4 route of the link, which the request did not add."""
        for place, route in self._view.own_routes.items():
            if route.link == link and place[1].version == 4 and place not in self._to_remove:
                return place[1]
        return None
