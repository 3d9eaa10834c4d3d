"""One change of the kernel, applied completely or not at all, and rolled back unless it is confirmed.

The undo operations are computed from the kernel's state and written to the ledger before the kernel is changed. Undoing
an operation that was never carried out does no harm: routes and rules are removed by protocol number, addresses only if
they are still owned. Objects that other programs depend on meanwhile stay, and are reported. So is what must not be
added again: the host or the configuration may have changed since.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH
from ipaddress import ip_interface

from .claims import is_single
from .kernel import Kernel
from .ledger import MAX_GATEWAYS, Entry, Ledger
from .operations import (
    PROTOCOL,
    TABLE_LOCAL,
    AddressAdd,
    AddressRemove,
    ForwardedReplies,
    IPAddress,
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
    Undo,
)
from .policy import IPV6_MIN_MTU, Refusal, check_flush, check_link, check_one
from .protocol import MARKS_ADDRESSES, Remaining
from .removal import AddressCounts, foreign_dependents, is_derived, lost_with_link
from .rtnetlink import IFA_F_SECONDARY, Address, Link
from .rules import asks_main, rule_key
from .view import Owned, OwnRoute, View, uses_ifa_proto

ALREADY_UNDONE = (0, ENOENT, ESRCH, EADDRNOTAVAIL, EEXIST, ENODEV)
"""The object was removed already (or its link), or added already."""
UNDO_ATTEMPTS = 3
_GUARDED = (AddressAdd, AddressRemove, ForwardedReplies, LinkDown, LinkMtu, RouteReplace)
"""Operations that are undone only after a check for objects that other programs have added since."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The errno of every operation (0: done; None: not tried or not known), and the undo operations that failed."""

    errnos: tuple[int | None, ...]
    failed: int | None = None  # position of the first failure; all but `remaining` was rolled back
    remaining: tuple[Remaining, ...] = ()

    @property
    def reason(self) -> str:
        """The error of the operation that failed."""
        errno = self.errnos[self.failed] if self.failed is not None else None
        return os.strerror(errno) if errno else "the kernel could not be asked"


class Transaction:
    """The only transaction that can be open: applied and not confirmed."""

    def __init__(self, kernel: Kernel, ledger: Ledger, look: Callable[[], View]) -> None:
        """`look` returns the kernel's state, and raises OSError if it cannot be read."""
        self._kernel, self._ledger, self._look = kernel, ledger, look
        self._is_applied = False  # True if this process has carried out all operations of the open transaction
        self._gateways: tuple[IPAddress, ...] = ()  # of the routes that the open transaction added

    @property
    def request(self) -> str | None:
        """Id of the open transaction."""
        return self._ledger.entry.request

    def apply(
        self,
        request: str,
        ops: Sequence[Operation],
        undo: Sequence[Undo],
        lost_routes: Sequence[RouteReplace] = (),
        links: Iterable[Link] = (),
    ) -> Outcome:
        """Apply `ops`; `undo` has the inverse of each, in the same order. If one fails, undo all.

        `lost_routes` are owned ones that the kernel removes with addresses; a rollback adds them again, after the
        addresses. `links` are the host's: a rollback changes no other link that gets the ifindex of one. Raises OSError
        if the ledger cannot be written; then the kernel is not changed.
        """
        entry = self._ledger.entry
        table = entry.table or any(isinstance(op, ForwardedReplies) for op in ops)
        back = (*reversed(undo), *lost_routes)
        used = {op.link for op in back if not isinstance(op, RuleAdd | RuleRemove | ForwardedReplies)}
        used |= {mark.link for op in back if isinstance(op, ForwardedReplies) for mark in op.marks}
        identities = {link.index: link.identity for link in links if link.index in used}
        self._ledger.write(replace(entry, request=request, undo=back, table=table, links=identities))
        routes = (op for op in ops if isinstance(op, RouteReplace))
        self._is_applied, self._gateways = False, tuple(op.gateway for op in routes if op.gateway is not None)
        is_new = (isinstance(each, RouteRemove) for each in undo)
        sent = tuple(self._kernel.change([_adding(op) if new else op for op, new in zip(ops, is_new, strict=True)]))
        failed = next((at for at, errno in enumerate(sent) if errno != 0), None)
        if failed is None:
            self._is_applied = True
            return Outcome(sent)
        done = [each for errno, each in zip(sent, undo[: len(sent)], strict=True) if errno in (0, None)]
        errnos = (*sent, *(None for _ in ops[len(sent) :]))
        return Outcome(errnos, failed, self._undo((*reversed(done), *lost_routes)))

    def roll_back(self) -> tuple[Remaining, ...]:
        """Undo the open transaction. Returns the operations that could not be undone, normally none."""
        return self._undo(self._ledger.entry.undo)

    def commit(self) -> None:
        """Keep the open transaction. Raises OSError if the ledger cannot be written or the kernel cannot be read."""
        entry = self._ledger.entry
        removed = [op.gateway for op in entry.undo if isinstance(op, RouteReplace) and op.gateway is not None]
        gateways = tuple(dict.fromkeys((*entry.gateways, *self._gateways, *removed)))
        remembered = gateways[:MAX_GATEWAYS]  # the earliest: a client cannot displace those from boot
        self._ledger.write(Entry(owned=self._owned(entry), gateways=remembered, table=entry.table))

    def _owned(self, entry: Entry) -> Owned:
        """Return the addresses that are owned after the commit; none if the kernel marks them itself.

        An address that the request added and removed again is not owned: another program may add it later. If the
        request removed one prefix length of an address and the link has it with another, it stays owned.
        """
        if MARKS_ADDRESSES:
            return frozenset()
        there = dict[tuple[int, IPInterface], bool]()
        for op in reversed(entry.undo):  # in the order of the request
            if isinstance(op, AddressAdd | AddressRemove):
                there[op.link, op.interface] = isinstance(op, AddressRemove)
        added = {(link, interface.ip) for (link, interface), is_there in there.items() if is_there}
        removed = {(link, interface.ip) for link, interface in there} - added
        if removed:
            left = (each for each in self._kernel.addresses() if (each.link, each.interface) not in there)
            removed -= {(each.link, each.ip) for each in left}
        return (entry.owned - removed) | added

    def remove_table(self) -> int | None:
        """Remove the nftables table, without an undo. Returns an errno: 0: done, None: not known."""
        [errno] = self._kernel.change([ForwardedReplies(())])
        if errno == 0:
            self._ledger.shorten(replace(self._ledger.entry, table=False))
        return errno

    def _undo(self, ops: tuple[Undo, ...]) -> tuple[Remaining, ...]:
        """Carry out `ops`, except those that must not be. Rules are added last, when their addresses are back."""
        rules = sorted((op for op in ops if isinstance(op, RuleAdd)), key=asks_main, reverse=True)  # others need it
        remaining = self._undo_parts([op for op in ops if not isinstance(op, RuleAdd)])
        if rules:
            pending, refused = self._acceptable(rules)
            remaining += [*refused, *self._carry_out(pending)]
        self._close(remaining)
        return tuple(remaining)

    def _carry_out(self, ops: Sequence[Undo]) -> list[Remaining]:
        """Carry out `ops`, and retry those that fail. Returns those that still do."""
        failed: list[tuple[Undo, int | None]] = [(op, None) for op in ops]
        for _ in range(UNDO_ATTEMPTS):
            errnos = self._kernel.change([op for op, _ in failed], stop=False)
            tried = [(op, errno) for (op, _), errno in zip(failed, errnos, strict=True)]
            failed = [(op, errno) for op, errno in tried if errno not in ALREADY_UNDONE]
        return [_failure(op, errno) for op, errno in failed]

    def _acceptable(self, rules: Sequence[RuleAdd]) -> tuple[list[Undo], list[Remaining]]:
        """Return the rules that a request could add now, and the others with the reasons."""
        view = self._read()
        if view is None:
            return [], [_failure(op, None) for op in rules]
        missing = [op for op in dict.fromkeys(rules) if rule_key(op) not in view.rules.own]
        pending, refused = _split_by_policy(missing, check_one, view)
        return [*pending], refused

    def _close(self, left: Sequence[Remaining]) -> None:
        """Close the transaction. Addresses that could not be removed stay owned."""
        entry = self._ledger.entry
        kept = {(each.op.link, each.op.interface.ip) for each in left if isinstance(each.op, AddressRemove)}
        lost = {(each.op.link, each.op.interface.ip) for each in left if isinstance(each.op, AddressAdd)}
        self._ledger.shorten(replace(entry, request=None, undo=(), links={}, owned=(entry.owned - lost) | kept))

    def _undo_parts(self, ops: Sequence[Undo]) -> list[Remaining]:
        """Carry out `ops` in parts, except those that objects of other programs now prevent. Returns the others."""
        if not any(isinstance(op, _GUARDED) for op in ops):
            return self._carry_out(ops)
        view = self._read()
        if view is None:  # without the kernel's answer their dependents are unknown
            guarded = [op for op in ops if isinstance(op, _GUARDED)]
            left = self._carry_out([op for op in ops if not isinstance(op, _GUARDED)])
            return [*(_failure(op, None) for op in guarded), *left]
        removed = {(op.table, op.destination) for op in ops if isinstance(op, RouteRemove)}
        state = RollbackState(view, self._is_applied, self._ledger.entry.links, removed)
        remaining = list[Remaining]()
        for part in _parts(_without_detours(ops)):
            pending = list[Undo]()
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

    def _read(self) -> View | None:
        """Return the kernel's state; None if it cannot be read."""
        for _ in range(UNDO_ATTEMPTS):
            with contextlib.suppress(OSError, MemoryError):
                return self._look()
        return None

    def remove(self, ops: Sequence[Operation]) -> tuple[list[int | None], list[Remaining]]:
        """Carry out removals, without an undo. Returns the errnos, and the removals that failed."""
        errnos = self._kernel.change(ops, stop=False)
        gone = {(op.link, op.interface.ip) for op in ops if isinstance(op, AddressRemove)}
        entry = self._ledger.entry
        if entry.owned & gone:
            self._ledger.shorten(replace(entry, owned=entry.owned - gone))
        failed = [(op, errno) for op, errno in zip(ops, errnos, strict=True) if errno not in ALREADY_UNDONE]
        return errnos, [_failure(op, errno) for op, errno in failed]


def _adding(op: Operation | Undo) -> Undo:
    """Return the operation that adds a new route; any other operation as it is."""
    if not isinstance(op, RouteReplace):
        return op
    return RouteAdd(op.table, op.link, op.destination, op.gateway)


def _without_detours(ops: Sequence[Undo]) -> list[Undo]:
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


def _parts(ops: Sequence[Undo]) -> Iterator[Sequence[Undo]]:
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
        self, view: View, is_applied: bool, links: Mapping[int, str], removed: Set[tuple[int, IPNetwork]]
    ) -> None:
        """`links`: the identities at the request; `removed`: owned routes that the rollback removes."""
        self._view, self._is_applied, self._removed = view, is_applied, removed
        there = {index: link.identity for index, link in view.links.items()}
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

    def obstacle(self, op: Undo) -> str | None:
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
                if (there := self._there(op)) is not None and not self._is_restored(there):
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

    def exact(self, op: Undo) -> Undo:
        """Return a restored route as an addition, unless it replaces an owned one; any other operation as it is."""
        if isinstance(op, RouteReplace) and (op.table, op.destination) not in self._view.own_routes:
            return _adding(op)
        return op

    def record(self, op: Undo) -> None:
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
            if link in self._view.links:  # otherwise nothing is left to undo
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

    def _is_restored(self, address: Address) -> bool:
        """Return True if an address that must be restored is there already and owned: the request did not remove it.

        Before Linux 5.18, such an address is another program's if all operations of the request were carried out.
        """
        return address.protocol == PROTOCOL if self._tagged else not self._is_applied

    def _is_address(self, network: IPNetwork) -> bool:
        """Return True for the /32 or /128 of an address that a link has."""
        return is_single(network) and bool(self._holders[network.network_address])

    def _dependent(self, address: Address) -> str | None:
        """Return a description of an object that the kernel would remove with an owned address, or None."""
        route = foreign_dependents(address, self._counts, self._view.losable_routes)
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
            if route.link == link and place[1].version == 4 and place not in self._removed:
                return place[1]
        return None


def _failure(op: Undo, errno: int | None) -> Remaining:
    return Remaining(op, os.strerror(errno) if errno else "the kernel could not be asked", errno)


def _split_by_policy(
    ops: Iterable[Operation], check: Callable[[Operation, View], object], view: View
) -> tuple[list[Operation], list[Remaining]]:
    """Return the operations that `check` accepts, and the refused ones with the reasons."""
    accepted, refused = list[Operation](), list[Remaining]()
    for op in ops:
        try:
            check(op, view)
        except Refusal as refusal:
            refused.append(Remaining(op, refusal.reason))
        else:
            accepted.append(op)
    return accepted, refused


def removals(view: View) -> tuple[list[Operation], list[Remaining]]:
    """Return the removals of all owned objects, the last added address first, and the refused removals.

    Of an IPv6 route with next hops of other programs, too, the removal of every next hop is tried: the kernel compares
    the protocol of each.
    """
    ops, remaining = _split_by_policy(_owned(view), check_flush, view)
    shared = [route for route in view.snapshot.routes if route.is_shared]
    ops += [RouteRemove(each.table, hop.link, each.destination, hop.gateway) for each in shared for hop in each.hops]
    return ops, remaining


def _owned(view: View) -> list[Operation]:
    found: list[Operation] = list(view.rules.removals())
    found += [
        RouteRemove(table, route.link, destination, route.gateway)
        for (table, destination), route in view.own_routes.items()
    ]
    addresses = [address for address in view.addresses.values() if view.owns(address)]
    found += [AddressRemove(address.link, address.interface) for address in reversed(addresses)]
    if view.settings.sets_marks and view.marks is not None:
        found.append(ForwardedReplies(()))
    return found
