"""The kernel's state, with the accepted operations of this request applied. Answers queries; makes no decision."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property

from . import claims
from .addresses import Addresses, OwnedAddresses, network_of
from .claims import is_link_local, is_single, single
from .foreign_routes import ForeignRoutes
from .gateways import Gateways
from .links import Links
from .networks import Networks
from .operations import (
    EVERYTHING,
    PROTOCOL,
    TABLE_LOCAL,
    IPAddress,
    IPInterface,
    IPNetwork,
    LinkMark,
    RouteReplace,
    RuleRemove,
)
from .rtnetlink import IFA_F_NOPREFIXROUTE, IFA_F_SECONDARY, Address, Link, NextHop, Route, Rule
from .rules import Rules
from .settings import Settings
from .side_effects import RoutesAtRisk, find_routes_at_risk


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The kernel's state, as read for one request."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]
    routers: frozenset[tuple[int, IPAddress]]  # IPv6 neighbours with NTF_ROUTER
    static_neighbours: frozenset[tuple[int, int]] = frozenset()  # links and IP versions: see Kernel
    marks: tuple[LinkMark, ...] | None = None  # of the table `cloud_network`; None without a socket to nfnetlink
    nexthops: tuple[NextHop, ...] = ()  # of nexthop objects, also of unused ones

    def incomplete_families(self) -> set[int]:
        """Return the IP versions of which the kernel has not listed all routes.

        Linux 6.18 ends a dump, without an error, at a route that does not fit into 32 KiB: an IPv4 route with 2,026
        next hops, an IPv6 route with 1,155. Table local is the last, and has the addresses of the loopback link.
        """
        loopback = {link.index for link in self.links if link.loopback and link.up}
        expected: set[int] = {address.ip.version for address in self.addresses if address.link in loopback}
        return expected - {route.destination.version for route in self.routes if route.table == TABLE_LOCAL}


@dataclass(frozen=True, slots=True)
class OutsideState:
    """State outside the kernel: the host's resolvers, and the ledger's entries."""

    resolvers: frozenset[IPAddress] = frozenset()
    owned: OwnedAddresses | None = frozenset()  # None if the kernel has IFA_PROTO
    former_gateways: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class OwnedRoute:
    """An owned route."""

    link: int
    gateway: IPAddress | None


class View:
    """The state in parts, each indexed for the queries of `policy`, and what concerns several parts."""

    def __init__(self, snapshot: Snapshot, settings: Settings, outside: OutsideState) -> None:
        self.settings, self.outside, self.snapshot = settings, outside, snapshot
        self.links = Links(snapshot.links, settings)
        self.addresses = Addresses(snapshot.addresses, outside.owned)
        self.networks = Networks(self.links)
        self.gateways = Gateways(
            self.networks, snapshot.routers, settings.allow_gateways, outside.resolvers, outside.former_gateways
        )
        self.foreign = ForeignRoutes(self.links, self.addresses, self.networks, self.gateways)
        self.rules = Rules(snapshot.rules, settings.rule_priority)
        self.owned_routes: dict[tuple[int, IPNetwork], OwnedRoute] = {}  # by table and destination
        self.lost_routes: list[RouteReplace] = []  # owned ones that the kernel removes with addresses of the request
        self._partly_elsewhere: dict[tuple[int, int], IPNetwork | None] = {}  # by link and IP version
        self._owned_copies = Counter[tuple[int, IPNetwork]]()  # number of the link's tables that have each
        self.earlier_routes = Counter[int]()  # by link, owned routes in tables of an earlier RouteTableBase=
        self.changed_routes = set[tuple[int, IPNetwork]]()  # table and destination of each route operation
        self.changed_mtus = set[int]()  # links whose MTU this request changes
        self.added_ipv6 = set[tuple[int, IPInterface]]()  # addresses that this request adds
        self.marks, self.static_neighbours = snapshot.marks, snapshot.static_neighbours
        self._read_addresses(snapshot.addresses)
        self._count_gateways(snapshot.nexthops)
        self._read_routes(snapshot.routes)

    def _read_addresses(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self.add_address(address)
            if self.addresses.owns(address):
                continue
            if (network := network_of(address)) is not None:
                self.networks.learn(address.link, network)
            self.foreign.add_when_up(address)

    def _count_gateways(self, hops: Iterable[NextHop]) -> None:
        for hop in hops:
            if hop.gateway is not None:
                self.gateways.add(hop.gateway, hop.link)

    def _read_routes(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self._count_gateways(route.hops)
            if not route.is_owned:
                self.foreign.add(route)
            elif (route.table, route.destination) not in self.owned_routes:  # it may be in several dumps: Kernel.routes
                self.add_route(route.table, route.destination, OwnedRoute(route.hops[0].link, route.hops[0].gateway))

    def name(self, link: int) -> str:
        """Return the name of a link, for messages."""
        return self.links.name(link)

    def is_allowed(self, network: IPNetwork) -> bool:
        """Return True if AllowAddresses= contains all of `network`."""
        return claims.within(network, self.settings.allow_addresses)

    @cached_property
    def routes_at_risk(self) -> RoutesAtRisk:
        """The foreign routes that the kernel may remove with an address."""
        foreign = (route for route in self.snapshot.routes if not route.is_owned)
        return find_routes_at_risk(foreign, self.snapshot.addresses)

    # Addresses.

    def add_address(self, address: Address) -> None:
        """Count an address."""
        self.addresses.add(address)
        self.networks.held.add(address.link, single(address.ip))
        if (network := network_of(address)) is not None:
            self.networks.subnets.add(address.link, network)
            self._update_partly_elsewhere(address.link, network)

    def add_owned(self, link: int, interface: IPInterface, *, connected_route: bool) -> None:
        """Count an address that netagent adds."""
        ip, prefix = interface.ip, interface.network.prefixlen
        address = Address(link, ip, prefix, 0 if connected_route else IFA_F_NOPREFIXROUTE, PROTOCOL)
        if ip.version == 4 and any(True for _ in self.addresses.same_subnet(address)):
            address = replace(address, flags=address.flags | IFA_F_SECONDARY)  # the kernel removes it with the primary
        self.add_address(address)

    def remove_address(self, address: Address) -> None:
        """Forget an address, and the routes that the kernel removes with it."""
        link, network = address.link, network_of(address)
        self.addresses.remove(address)
        if not self.addresses.entries(link, address.ip):
            self.networks.held.discard(link, single(address.ip))
        if address.ip.version == 4 and not self.addresses.has_family(link, 4):
            self._lose_routes(link)
        if network is None or self.addresses.in_network(link, network):
            return
        if not self.networks.learned.has(link, network) and (link, network) not in self.foreign.on_link_without_address:
            self.networks.subnets.discard(link, network)

    def _lose_routes(self, link: int) -> None:
        """Forget the owned IPv4 routes of a link: the kernel removes them with its last IPv4 address.

        Those through gateways are last in `lost_routes`: the on-link routes to the gateways must be restored first.
        """
        found = [(place, route) for place, route in self.owned_routes.items() if route.link == link]
        for (table, destination), route in sorted(found, key=lambda each: each[1].gateway is not None):
            if destination.version == 4:
                self.remove_route(table, destination)
                if (table, destination) not in self.changed_routes:  # otherwise, the inverse restores the former one
                    self.lost_routes.append(RouteReplace(table, link, destination, route.gateway))

    def is_subnet_of_address(self, link: int, network: IPNetwork) -> bool:
        """Return True for the subnet of an address of the link.

        Also of an address with a /32 or /128, if this or another link of the cloud has learned the subnet. Link-local
        IPv4 networks do not count: a host adds them by itself.
        """
        if network.version == 4 and is_link_local(network):
            return False
        if self.addresses.in_network(link, network):
            return True
        is_learned = self.networks.learned.has(link, network) or network in self.networks.learned_by_any_managed
        return is_learned and any(True for _ in self.networks.held.overlapping(link, network))

    def tables_of(self, link: int) -> tuple[int, int]:
        """Return the numbers of the link's two tables."""
        return claims.tables(link, self.settings.route_table_base)

    def rules_of(self, link: int, network: IPNetwork) -> Iterator[RuleRemove]:
        """Yield the owned rules that overlap `network` and lead to a table of the link, or to one of no link.

        The latter may be rules of this link, from the time of another RouteTableBase=.
        """
        yield from self._of_link(link, self.rules.overlapping(network))

    def rules_inside(self, link: int, network: IPNetwork) -> Iterator[RuleRemove]:
        """Yield those of rules_of whose selector is `network` or lies in it. Many wider rules may overlap it."""
        yield from self._of_link(link, self.rules.inside(network))

    def _of_link(self, link: int, rules: Iterable[RuleRemove]) -> Iterator[RuleRemove]:
        base = self.settings.route_table_base
        for rule in rules:
            other = claims.link_of_table(rule.table, base)
            if other == link or not self.links.is_cloud(other):
                yield rule

    def is_in_subnet(self, link: int, network: IPNetwork) -> bool:
        """Return True if `network` is a part of a subnet of the link: of one of its addresses, or a learned one.

        Also if it is a part of a subnet of another link that the link has on link, too: of an address, or a learned
        one. Other on-link routes are no evidence: a client can make one for any private network, and an operator's may
        be as wide as a /1.
        """
        there = self.networks.subnets.containing(link, network)
        around = (each for each in there if self._is_evidence(link, each))
        shared = (each for each in self.shared_subnets(link, network) if claims.contains(each, network))
        return any(each != network for each in (*around, *shared))

    def shared_subnets(self, link: int, network: IPNetwork) -> Iterator[IPNetwork]:
        """Yield the subnets of interfaces that overlap `network` and that a table of the link has on link."""
        for each in self.networks.owned_on_link.overlapping(link, network):
            if each in self.networks.learned_by_any_managed or self._has_address_with(each):
                yield each

    def _has_address_with(self, subnet: IPNetwork) -> bool:
        """Return True if an interface of the cloud has an address with this subnet."""
        managed = filter(self.links.is_managed, self.networks.subnets.links_with(subnet))
        return any(self.addresses.in_network(link, subnet) for link in managed)

    def network_partly_elsewhere(self, link: int, version: int) -> IPNetwork | None:
        """Return an on-link network of the link of which another program routes all or a part elsewhere, or None.

        It may be one that this request has removed meanwhile. Link-local networks do not count: most links have
        fe80::/64.
        """
        place = link, version
        if place not in self._partly_elsewhere:
            self._partly_elsewhere[place] = None
            for network in self.networks.on_link(link, EVERYTHING[version]):
                self._update_partly_elsewhere(link, network)
        return self._partly_elsewhere[place]

    def _update_partly_elsewhere(self, link: int, network: IPNetwork) -> None:
        """Account for a new on-link network if the answer of network_partly_elsewhere was None.

        A search of all would be slow: a link may have 10,000.
        """
        place = link, network.version
        is_none = place in self._partly_elsewhere and self._partly_elsewhere[place] is None
        if is_none and not is_link_local(network) and self.foreign.is_partly_elsewhere(network):
            self._partly_elsewhere[place] = network

    def _is_evidence(self, link: int, subnet: IPNetwork) -> bool:
        return self.networks.learned.has(link, subnet) or bool(self.addresses.in_network(link, subnet))

    def is_network_or_broadcast(self, ip: IPAddress) -> bool:
        """Return True for the network or broadcast address of a subnet of any link."""
        return any(
            claims.is_network_or_broadcast(ip, subnet) for subnet, _ in self.networks.subnets.all_containing(single(ip))
        )

    def held_elsewhere(self, link: int, network: IPNetwork) -> IPAddress | None:
        """Return an address in `network` that another link has."""
        return next((each.network_address for each, _ in self.networks.held.elsewhere(link, network)), None)

    def is_of_this_host(self, ip: IPAddress) -> bool:
        """Return True for an address of this host: a link has it, or a local range of any link contains it."""
        return bool(self.addresses.holders(ip)) or any(
            True for _ in self.networks.local_ranges.all_containing(single(ip))
        )

    def _virtual_holders(self, network: IPNetwork) -> list[int]:
        """Return the links that have this /32 or /128, if all are links of other programs."""
        holders = self.addresses.holders(network.network_address) if is_single(network) else []
        return [] if any(map(self.links.is_cloud, holders)) else holders

    def is_virtual_address(self, network: IPNetwork) -> bool:
        """Return True for an address that only links of other programs have, and not all of them lo or a dummy."""
        return not all(map(self.links.is_lo_or_dummy, self._virtual_holders(network)))

    def has_virtual_network(self, network: IPNetwork) -> bool:
        """Return True for an address that only links of other programs have, and one of them with a network or peer."""
        holders = self._virtual_holders(network)
        entries = [each for link in holders for each in self.addresses.entries(link, network.network_address)]
        return any(each.peer is not None or network_of(each) is not None for each in entries)

    def is_connected_elsewhere(self, link: int, network: IPNetwork) -> bool:
        """Return True if main has this network on another link of the cloud, or will have it once the link is up."""
        there = self.networks.subnets.links_with(network)
        others = {other for other in there if self.addresses.has_connected_route(other, network)}
        others |= self.foreign.links_in_main(network)
        return any(other != link and self.links.is_cloud(other) for other in others)

    @cached_property
    def _links_before(self) -> Mapping[IPNetwork, Set[int]]:
        """The links with an address in each subnet before the request."""
        found = defaultdict[IPNetwork, set[int]](set)
        for each in self.snapshot.addresses:
            if (network := network_of(each)) is not None:
                found[network].add(each.link)
        return found

    def taken_over_by(self, network: IPNetwork, link: int) -> IPAddress | None:
        """Return an address that a connected route to `network` on the link would take over, or None.

        A resolver, or a gateway of links on which main does not have this subnet.
        """
        before: Set[int] = self._links_before.get(network, frozenset())
        # A link that had the connected route receives these packets already; one that is down has none.
        had_route = link in before and not self.links.is_down(link)
        sharing = {other for other in before if self.foreign.has_on_link_route(other, network)} | {link}
        for ip, links in self.gateways.gateways_inside(network):
            others = links - sharing
            if had_route:
                others = {each for each in others if not self.networks.owned_on_link.has(each, network)}
            if others:
                return ip
        return self.gateways.resolver_inside(network)

    # Owned routes.

    def add_route(self, table: int, destination: IPNetwork, route: OwnedRoute) -> None:
        """Count an owned route, which may replace one."""
        before = self.owned_routes.get((table, destination))
        if table == TABLE_LOCAL and before is not None:
            self.networks.local_ranges.discard(before.link, destination)
        if table == TABLE_LOCAL:
            self.networks.local_ranges.add(route.link, destination)
        if route.gateway is not None:
            self.gateways.add(route.gateway, route.link)
        if before is not None:
            self._count_route(table, destination, before, -1)
        self._count_route(table, destination, route, 1)
        self.owned_routes[table, destination] = route

    def remove_route(self, table: int, destination: IPNetwork) -> None:
        """Forget an owned route."""
        route = self.owned_routes.pop((table, destination))
        self._count_route(table, destination, route, -1)
        if table == TABLE_LOCAL:
            self.networks.local_ranges.discard(route.link, destination)

    def _count_route(self, table: int, destination: IPNetwork, route: OwnedRoute, delta: int) -> None:
        """Count an owned route, or forget it with -1."""
        if table == TABLE_LOCAL:
            return
        if table not in self.tables_of(route.link):
            self.earlier_routes[route.link] += delta
            return
        if route.gateway is not None:
            self.gateways.count_owned(route.gateway, route.link, delta)
            return
        copies = self._owned_copies[route.link, destination]
        self._owned_copies[route.link, destination] += delta
        if not copies:
            self.networks.owned_on_link.add(route.link, destination)
            self._update_partly_elsewhere(route.link, destination)
        elif not copies + delta:
            self.networks.owned_on_link.discard(route.link, destination)

    @property
    def number_owned_objects(self) -> int:
        """Number of owned addresses, routes and rules."""
        return self.addresses.number_owned + len(self.owned_routes) + len(self.rules.owned)
