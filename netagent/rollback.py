"""What a rollback must not do: the parts of the undo operations, and the checks before each of them.

Since the request, another program may have added objects that the kernel would remove with an address or a link, or the
operator may have changed the configuration.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from ipaddress import ip_interface

from .addresses import uses_ifa_proto
from .claims import is_single
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
    Undo,
)
from .policy import IPV6_MIN_MTU, Refusal, check_link
from .removal import AddressCounts, foreign_dependents, is_derived, lost_with_link
from .rtnetlink import IFA_F_SECONDARY, Address
from .view import OwnRoute, View


def as_addition(op: Operation | Undo) -> Undo:
    """Return the operation that adds a new route; any other operation as it is."""
    if not isinstance(op, RouteReplace):
        return op
    return RouteAdd(op.table, op.link, op.destination, op.gateway)


def without_detours(ops: Sequence[Undo]) -> list[Undo]:
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


def parts(ops: Sequence[Undo]) -> Iterator[Sequence[Undo]]:
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
            return as_addition(op)
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
            if route.link == link and place[1].version == 4 and place not in self._removed:
                return place[1]
        return None
