"""The kernel's state, with the accepted operations of this request applied. Answers queries; makes no decision."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

from . import claims, rtnetlink
from .claims import HostRoute, contains, is_link_local, is_single, single
from .gateways import Gateways
from .network_index import NetworkIndex
from .networks import Networks
from .operations import (
    PROTOCOL,
    TABLE_LOCAL,
    TABLE_MAIN,
    IPAddress,
    IPNetwork,
    LinkMark,
    RouteReplace,
)
from .removal import IP6_RT_PRIO_ADDRCONF, AddressCounts, LosableRoutes, losable
from .rtnetlink import IFA_F_NOPREFIXROUTE, IFA_F_PERMANENT, Address, Link, NextHop, Route, Rule
from .rules import Rules
from .settings import Settings

Owned = frozenset[tuple[int, IPAddress]]
"""Link and address of each owned address, from the ledger."""
_KINDS_OF_HOSTS = ("bridge", "dummy", "ipvlan", "macvlan", "veth", "vrf")
"""Kinds of virtual links, other than tunnels, on which a host or its containers may have an address of the cloud."""
_DISCARDS = (rtnetlink.RTN_BLACKHOLE, rtnetlink.RTN_UNREACHABLE, rtnetlink.RTN_PROHIBIT)


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
class Known:
    """State outside the kernel: the host's resolvers, and the ledger's entries."""

    resolvers: frozenset[IPAddress] = frozenset()
    owned: Owned = frozenset()
    former_gateways: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class OwnRoute:
    """An owned route."""

    link: int
    gateway: IPAddress | None
    changed: bool = False  # by this request


def uses_ifa_proto(addresses: Iterable[Address]) -> bool:
    """Return True if the kernel stores IFA_PROTO (Linux 5.18)."""
    return any(address.protocol is not None for address in addresses)


def _is_cloud(link: Link, settings: Settings) -> bool:
    return not link.loopback and (link.kind is None or link.kind in settings.allow_kinds)


class View:
    """Links, addresses, routes and rules, indexed for the queries of `policy`.

    `networks`, `gateways` and `rules` have parts of it. `_foreign` has the routes of other programs, with the connected
    routes that links which are down will have.
    """

    def __init__(self, snapshot: Snapshot, settings: Settings, known: Known) -> None:
        self.settings, self.known, self.snapshot = settings, known, snapshot
        self.links = {link.index: link for link in snapshot.links}
        self.changed_mtus = set[int]()  # links whose MTU this request changes
        self._cloud = {link.index for link in snapshot.links if _is_cloud(link, settings)}
        self._excluded = {
            each.index for each in snapshot.links if claims.is_excluded(settings.exclude, each.name, each.mac)
        }
        self.addresses: dict[tuple[int, IPAddress, int], Address] = {}  # by link, address and prefix length
        self._entries: dict[tuple[int, IPAddress], list[Address]] = defaultdict(list)  # the same, by link and address
        self._holders: dict[IPAddress, list[int]] = defaultdict(list)  # links by address
        self._peers = {address.peer for address in snapshot.addresses if address.peer is not None}
        self.networks = Networks(self._cloud, self._excluded)
        self.gateways = Gateways(
            self.networks, snapshot.routers, settings.allow_gateways, known.resolvers, known.former_gateways
        )
        self.own_routes: dict[tuple[int, IPNetwork], OwnRoute] = {}
        self.lost_routes: list[RouteReplace] = []  # owned ones that the kernel removes with addresses of the request
        self._foreign: NetworkIndex[Route] = NetworkIndex()  # of other programs and the kernel: see also _routes_to_be
        self.rules = Rules(snapshot.rules, settings.rule_priority)
        self._main_defaults: dict[int, list[tuple[int, bool]]] = defaultdict(list)  # by IP version: metric, discards
        self._host_routes: dict[IPNetwork, Sequence[HostRoute]] = {}  # see host_routes
        self._divided: dict[IPNetwork, bool] = {}  # see _has_foreign_part
        self.counts = AddressCounts()
        self.ipv6_connected_routes: set[tuple[int, IPNetwork]] = set()  # IPv6, with the kernel's protocol and metric
        self.unclaimed_prefixes: set[tuple[int, IPNetwork]] = set()  # IPv6, from routers: no address keeps their route
        self._static_networks: set[tuple[int, IPNetwork]] = set()  # on link in main by another program's own route
        self._connected_counts = Counter[tuple[int, IPNetwork]]()  # addresses with a connected route, also if down
        self._subnets_before: dict[IPNetwork, set[int]] = defaultdict(set)  # links by subnet, before the request
        for each in snapshot.addresses:
            if (network := self.network_of(each)) is not None:
                self._subnets_before[network].add(each.link)
        self._subnet_addresses: dict[tuple[int, IPNetwork], dict[IPAddress, Address]] = defaultdict(dict)
        self._own_copies = Counter[tuple[int, IPNetwork]]()  # number of the link's tables that have each
        self._tagged = uses_ifa_proto(snapshot.addresses)
        self.marks = snapshot.marks
        self.static_neighbours = snapshot.static_neighbours
        self._own_count = 0
        self._add_addresses(snapshot.addresses)  # before the routes: _add_on_link needs them
        self._add_gateways(snapshot.nexthops)
        self._add_routes(snapshot.routes)
        self.halves = [each for each in self._half_routes() if each.discards or not each.by_cloud]

    # Reading the snapshot.

    def _add_addresses(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self.add_address(address)
            if self.owns(address):
                continue
            if (network := self.network_of(address)) is not None:
                self.networks.learn(address.link, network)
            for route in self._routes_to_be(address):
                self._foreign.add(route.destination, route)

    def _routes_to_be(self, address: Address) -> Iterator[Route]:
        """Yield the connected routes that an address gets in main when its link is set up; none if the link is up."""
        link, hops = self.links.get(address.link), (NextHop(address.link, None),)
        if link is not None and not link.up:
            for network in address.connected_networks:
                kind, protocol = rtnetlink.RTN_UNICAST, rtnetlink.RTPROT_KERNEL
                yield Route(TABLE_MAIN, network, hops, kind, protocol, 0, address.ip, expires=False)

    def _add_routes(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self._add_gateways(route.hops)
            if not route.is_owned:
                self._foreign.add(route.destination, route)
                self._add_foreign(route)
            elif (route.table, route.destination) not in self.own_routes:  # it may be in several dumps: Kernel.routes
                self.add_route(route.table, route.destination, OwnRoute(route.hops[0].link, route.hops[0].gateway))

    def _add_gateways(self, hops: Iterable[NextHop]) -> None:
        for hop in hops:
            if hop.gateway is not None:
                self.gateways.add(hop.gateway, hop.link)

    def _add_foreign(self, route: Route) -> None:
        if route.table == TABLE_LOCAL:
            if self._is_local_range(route):
                self.networks.local_ranges.add(route.hops[0].link, route.destination)
            return
        if route.table == TABLE_MAIN and not route.destination.prefixlen and not route.restricted:
            self._main_defaults[route.destination.version].append((route.metric, route.kind in _DISCARDS))
        if route.protocol == rtnetlink.RTPROT_KERNEL and route.metric == IP6_RT_PRIO_ADDRCONF:
            self.ipv6_connected_routes.update(
                (hop.link, route.destination) for hop in route.hops if hop.gateway is None
            )
        for hop in route.hops:
            if not route.destination.prefixlen:
                if hop.gateway is not None and route.protocol != PROTOCOL:
                    in_main = route.table == TABLE_MAIN and not route.restricted
                    self.gateways.add_default(hop.gateway, hop.link, route.destination.version, in_main=in_main)
            elif self._is_on_link(route, hop):
                self._add_on_link(route, hop)

    def _add_on_link(self, route: Route, hop: NextHop) -> None:
        """Add an on-link route in main. There may be thousands that do not belong to the cloud's links (of a CNI)."""
        if is_single(route.destination) and hop.link in self.holders(route.destination.network_address):
            return  # of an IPv6 address: it is no subnet of the link
        learned = self._is_learned(route, hop)
        if learned:
            self.networks.learn(hop.link, route.destination)
        if learned or self.is_cloud(hop.link):
            self.networks.subnets.add(hop.link, route.destination)
            if not self._is_connected(route, hop):
                self._static_networks.add((hop.link, route.destination))
        if route.protocol == rtnetlink.RTPROT_KERNEL:
            addresses = self.addresses_in(hop.link, route.destination)
            if all(each.flags & IFA_F_NOPREFIXROUTE for each in addresses):
                self.unclaimed_prefixes.add((hop.link, route.destination))

    @staticmethod
    def _is_local_range(route: Route) -> bool:
        """Return True for addresses that are local without being a link's (AnyIP): as a range, or by a subnet on lo."""
        return route.kind == rtnetlink.RTN_LOCAL and View._is_by_hand(route)

    @staticmethod
    def _is_by_hand(route: Route) -> bool:
        """Return True for a route in table local that the kernel did not derive from an address."""
        return route.protocol != rtnetlink.RTPROT_KERNEL or not is_single(route.destination)

    @staticmethod
    def _is_on_link(route: Route, hop: NextHop) -> bool:
        """Return True for a next hop in main that puts the destination on a link."""
        direct = hop.gateway is None and hop.link > 0 and not hop.encapsulates
        return direct and route.table == TABLE_MAIN and route.kind == rtnetlink.RTN_UNICAST

    def _is_learned(self, route: Route, hop: NextHop) -> bool:
        """Return True for a subnet from DHCP or a router; IPv6 prefixes of routers have the protocol `kernel`.

        A neighbour can advertise a prefix of any length as on link.
        """
        if route.destination.version == 6 and route.destination.prefixlen < claims.WIDEST_SUBNET[6]:
            return False
        if route.protocol in (rtnetlink.RTPROT_DHCP, rtnetlink.RTPROT_RA):
            return True
        if route.protocol != rtnetlink.RTPROT_KERNEL or route.destination.version == 4 or is_single(route.destination):
            return False
        return route.expires or not any(map(self.owns, self.addresses_in(hop.link, route.destination)))

    @cached_property
    def losable_routes(self) -> LosableRoutes:
        """The foreign routes that the kernel may remove with an address."""
        return losable((route for route in self.snapshot.routes if not route.is_owned), self.snapshot.addresses)

    def has_foreign_route(self, table: int, destination: IPNetwork) -> bool:
        """Return True if a table has a route to exactly this destination that netagent did not add."""
        return any(route.table == table for route in self._foreign.exactly(destination))

    def host_routes(self, network: IPNetwork) -> Sequence[HostRoute]:
        """Return the foreign routes that overlap a claim and may conflict with it, one entry per next hop.

        Of table local, these are the routes that another program made: ranges (AnyIP), mostly on lo, and anycast.
        Left out are routes that the kernel derived from addresses of the cloud's links: they do not conflict. A network
        may contain thousands of routes, and a request may name it thousands of times. The list is that of the first
        time: an operation that is checked later does not change it.
        """
        if network not in self._host_routes:
            self._host_routes[network] = list(self._find_host_routes(network))
        return self._host_routes[network]

    def _find_host_routes(self, network: IPNetwork) -> Iterator[HostRoute]:
        for _, route in self._foreign.overlapping(network):
            if self._is_throw(route):
                continue
            if (route.table != TABLE_LOCAL or self._is_by_hand(route)) and route.destination.prefixlen > 1:
                for each in (self._host_route(route, hop) for hop in route.hops):
                    if each.discards or not (each.by_cloud and each.is_expected):
                        yield each

    @staticmethod
    def _is_throw(route: Route) -> bool:
        """Return True for a route with which the kernel goes on to the next rule (VPNs leave out local subnets so).

        In main, there is usually no further rule, and the kernel discards the packets.
        """
        return route.kind == rtnetlink.RTN_THROW and route.table != TABLE_MAIN

    def _half_routes(self) -> Iterator[HostRoute]:
        """Yield the foreign routes to halves of the address space (a VPN for everything), one entry per next hop."""
        for route in self.snapshot.routes:
            is_elsewhere = route.table != TABLE_LOCAL and not self._is_throw(route)
            if route.destination.prefixlen == 1 and is_elsewhere and not route.is_owned:
                yield from (self._host_route(route, hop) for hop in route.hops)

    def may_leave_tunnel(self, network: IPNetwork) -> bool:
        """Return True if a link's table may route the network through its gateway, although a VPN carries all traffic.

        These are private networks, metadata servers and subnets of the cloud's links.
        """
        near = any(self.is_cloud(link) for _, link in self.networks.subnets.around(network))
        return near or claims.within(network, (*claims.PRIVATE, *claims.LINK_LOCAL, *claims.METADATA))

    def _host_route(self, route: Route, hop: NextHop) -> HostRoute:
        """Return one next hop of a foreign route. A tunnel (encap) is not the cloud's, even on a link of the cloud."""
        link, gateway = hop.link, None if hop.encapsulates else hop.gateway
        on_cloud = self.is_cloud(link) and not hop.encapsulates
        by_lease = route.protocol in (rtnetlink.RTPROT_DHCP, rtnetlink.RTPROT_RA)
        by_router = gateway is None or by_lease or self.gateways.is_router_of_main(link, gateway)
        if link in self._excluded:  # the operator's own link: other routes there are the operator's, not the cloud's
            by_router = by_lease or (gateway is None and self._is_subnet_of_cloud(route, hop))
        to_gateway = by_lease and gateway is None and is_single(route.destination)  # systemd-networkd adds it
        parent = self._parent(route, hop)
        return HostRoute(
            destination=route.destination,
            link=link,
            gateway=gateway,
            discards=route.kind in (*_DISCARDS, rtnetlink.RTN_THROW),  # of other tables: see _is_throw
            by_cloud=on_cloud and by_router and (route.table == TABLE_LOCAL or route.kind == rtnetlink.RTN_UNICAST),
            is_expected=on_cloud and (to_gateway or self._is_connected(route, hop)),
            parent=parent,
            is_learned_by_parent=self.networks.learned.has(parent, route.destination),
            is_local=route.table == TABLE_LOCAL,
        )

    def _parent(self, route: Route, hop: NextHop) -> int:
        """Return the interface of the cloud below a macvlan or ipvlan with this connected route; 0 for other routes."""
        found = self.links.get(hop.link)
        parent = found.parent if found is not None else 0
        is_child = self.is_managed(parent) and not hop.encapsulates and self._is_connected(route, hop)
        return parent if is_child else 0

    def has_subnet_of_child(self, route: HostRoute) -> bool:
        """Return True if this is the connected route of a macvlan or ipvlan, and its interface has the same subnet."""
        networks = (self.networks.subnets, self.networks.own_on_link)
        return route.parent > 0 and any(each.has(route.parent, route.destination) for each in networks)

    def _is_subnet_of_cloud(self, route: Route, hop: NextHop) -> bool:
        """Return True for a subnet of an excluded link that DHCP or a router gave to it, or to a link of the cloud."""
        leased = any(not each.flags & IFA_F_PERMANENT for each in self.addresses_in(hop.link, route.destination))
        return route.expires or leased or route.destination in self.networks.learned_by_cloud

    def _is_connected(self, route: Route, hop: NextHop) -> bool:
        """Return True for the connected route of an address, and for an IPv6 prefix of a router.

        Other programs, too, use the protocol `kernel`, and a peer has such a route as well.
        """
        if route.protocol != rtnetlink.RTPROT_KERNEL or hop.gateway is not None:
            return False
        if route.destination.version == 6:
            return not (is_single(route.destination) and self.has_peer(route.destination.network_address))
        return bool(self.addresses_in(hop.link, route.destination))

    # Links and addresses.

    def is_cloud(self, link: int) -> bool:
        """Return True for an interface of the cloud: no loopback, and no rtnetlink kind that AllowKinds= lacks."""
        return link in self._cloud

    def is_managed(self, link: int) -> bool:
        """Return True for an interface of the cloud that Exclude= does not name."""
        return self.is_cloud(link) and not self.is_excluded(link)

    def is_excluded(self, link: int) -> bool:
        """Return True for a link that Exclude= names."""
        return link in self._excluded

    def set_up(self, link: int) -> None:
        """Count a link that this request sets up."""
        self.links[link] = replace(self.links[link], up=True)

    def is_service_link(self, link: int) -> bool:
        """Return True for a link whose addresses only this host uses: lo or a dummy (such as kube-ipvs0)."""
        found = self.links.get(link)  # None: the link is newer than the dump of the links
        return found is not None and (found.loopback or found.kind == "dummy")

    def may_have_cloud_addresses(self, link: int) -> bool:
        """Return True for lo and virtual links of this host. A tunnel (VPN) has addresses of another network.

        A subnet that an interface has learned may contain them by chance, or by an advertisement of a neighbour.
        """
        found = self.links.get(link)
        return found is not None and (found.loopback or found.kind in _KINDS_OF_HOSTS)

    def name(self, link: int) -> str:
        """Return the name of a link, for messages."""
        return self.links[link].name if link in self.links else f"link {link}"

    def owns(self, address: Address) -> bool:
        """Return True if netagent added the address: by IFA_PROTO, or by the ledger if the kernel has no IFA_PROTO.

        Addresses that this request adds have the protocol in any case.
        """
        in_ledger = not self._tagged and (address.link, address.ip) in self.known.owned
        return in_ledger or address.protocol == PROTOCOL

    @staticmethod
    def network_of(address: Address) -> IPNetwork | None:
        """Return the network of an address, or None for a /32 or /128."""
        if address.prefix == address.ip.max_prefixlen:
            return None
        return address.network

    def add_address(self, address: Address) -> None:
        """Count an address of the snapshot, or one that this request adds."""
        if address.peer is None or (address.link, address.ip, address.prefix) not in self.addresses:  # owned: no peer
            self.addresses[address.link, address.ip, address.prefix] = address
        entries = self._entries[address.link, address.ip]
        if not entries:
            self._holders[address.ip].append(address.link)
            self.networks.held.add(address.link, single(address.ip))
        entries.append(address)
        self.counts.add(address)
        self._own_count += self.owns(address)
        network = self.network_of(address)
        if network is not None:
            self._subnet_addresses[address.link, network][address.ip] = address
            self._connected_counts[address.link, network] += not address.flags & IFA_F_NOPREFIXROUTE
            self.networks.subnets.add(address.link, network)

    def remove_address(self, address: Address) -> None:
        """Forget an address that this request removes."""
        del self.addresses[address.link, address.ip, address.prefix]
        entries = self._entries[address.link, address.ip]
        entries.remove(address)
        if not entries:
            self._holders[address.ip].remove(address.link)
            self.networks.held.discard(address.link, single(address.ip))
        self.counts.add(address, -1)
        self._own_count -= self.owns(address)
        if address.ip.version == 4 and not self.has_addresses(address.link, 4):
            self._lose_routes(address.link)
        network = self.network_of(address)
        if network is None:
            return
        same = self._subnet_addresses[address.link, network]
        del same[address.ip]
        self._connected_counts[address.link, network] -= not address.flags & IFA_F_NOPREFIXROUTE
        stays = self.networks.learned.has(address.link, network) or (address.link, network) in self._static_networks
        if not same and not stays:
            self.networks.subnets.discard(address.link, network)

    def has_addresses(self, link: int, version: int) -> bool:
        """Return True if the link has an address of this family."""
        return self.counts.of(link, version) > 0

    def _lose_routes(self, link: int) -> None:
        """Forget the owned IPv4 routes of a link: the kernel removes them with its last IPv4 address.

        Those to gateways are last in `lost_routes`: their on-link routes must be restored first.
        """
        found = [(place, route) for place, route in self.own_routes.items() if route.link == link]
        for (table, destination), route in sorted(found, key=lambda each: each[1].gateway is not None):
            if destination.version == 4:
                self.remove_route(table, destination)
                if not route.changed:  # otherwise, the inverse of the operation that changed it restores the former one
                    self.lost_routes.append(RouteReplace(table, link, destination, route.gateway))

    def same_subnet(self, address: Address) -> Iterable[Address]:
        """Return the link's addresses with the same network, this one included."""
        network = self.network_of(address)
        return () if network is None else self.addresses_in(address.link, network)

    def connected_networks(self, link: int) -> set[IPNetwork]:
        """Return the networks to which the link has, or would have if it were up, a connected route, also of peers."""
        entries = (each for (other, _), found in self._entries.items() if other == link for each in found)
        return {network for each in entries for network in each.connected_networks}

    def addresses_in(self, link: int, network: IPNetwork) -> Iterable[Address]:
        """Return the link's addresses with exactly this network."""
        return self._subnet_addresses.get((link, network), {}).values()

    def is_subnet_of_address(self, link: int, network: IPNetwork) -> bool:
        """Return True for the subnet of an address of the link.

        Also of an address with a /32 or /128, if this or another link of the cloud has learned the subnet. Link-local
        IPv4 networks do not count: a host adds them by itself.
        """
        if network.version == 4 and is_link_local(network):
            return False
        if self.addresses_in(link, network):
            return True
        is_learned = self.networks.learned.has(link, network) or network in self.networks.learned_by_cloud
        return is_learned and any(True for _ in self.networks.held.overlapping(link, network))

    def has_connected_route(self, link: int, network: IPNetwork) -> bool:
        """Return True if an address of the link has a connected route to this network, or will have it once up."""
        return self._connected_counts[link, network] > 0

    def has_route_on_link(self, link: int, network: IPNetwork) -> bool:
        """Return True if main has a foreign route to exactly this network on the link, without a gateway."""
        routes = (route for route in self._foreign.exactly(network) if route.table == TABLE_MAIN)
        return any(hop.link == link and hop.gateway is None for route in routes for hop in route.hops)

    def local_to_be(self, link: int) -> Iterator[IPNetwork]:
        """Yield the IPv6 addresses without a connected route of a link that is down: local once it is up.

        IPv4 addresses are local also while their link is down.
        """
        networks = self.connected_networks(link)
        for other, ip in self._entries:
            if other == link and ip.version == 6 and not claims.within(single(ip), networks):
                yield single(ip)

    def is_on_link_in_main(self, link: int, network: IPNetwork) -> bool:
        """Return True if the best route in main that contains `network` is on this link, without a gateway."""
        routes = [
            route
            for _, route in self._foreign.containing(network)
            if route.table == TABLE_MAIN and not route.restricted
        ]
        best = max(routes, key=lambda route: (route.destination.prefixlen, -route.metric), default=None)
        return best is not None and all(hop.link == link and self._is_on_link(best, hop) for hop in best.hops)

    def is_connected_elsewhere(self, link: int, network: IPNetwork) -> bool:
        """Return True if main has this network on another link of the cloud, or will have it once the link is up."""
        others = {other for _, other in self.networks.subnets.around(network) if self._connected_counts[other, network]}
        in_main = (route for route in self._foreign.exactly(network) if route.table == TABLE_MAIN)
        others |= {hop.link for route in in_main for hop in route.hops}
        return any(other != link and self.is_cloud(other) for other in others)

    def subnets_elsewhere(self, link: int, network: IPNetwork) -> Iterator[int]:
        """Yield the other links that have an on-link network that overlaps `network`, also links of other programs."""
        yield from (other for _, other in self.networks.subnets.elsewhere(link, network))
        own = list(self.networks.learned.containing(link, network))
        for _, route in self._foreign.overlapping(network):
            if not claims.is_too_wide(route.destination, own):
                yield from (hop.link for hop in route.hops if hop.link != link and self._is_on_link(route, hop))

    def entries(self, link: int, ip: IPAddress) -> list[Address]:
        """Return all entries of an address on the link, which may have several prefix lengths."""
        return self._entries.get((link, ip), [])

    def holders(self, ip: IPAddress) -> list[int]:
        """Return the links that have this address."""
        return self._holders.get(ip, [])

    def is_in_local_range(self, ip: IPAddress) -> bool:
        """Return True if a local range of any link contains the address."""
        return any(True for _ in self.networks.local_ranges.around(single(ip)))

    def _virtual_holders(self, network: IPNetwork) -> list[int]:
        """Return the links that have this /32 or /128, if all are links of other programs."""
        holders = self.holders(network.network_address) if is_single(network) else []
        return [] if any(map(self.is_cloud, holders)) else holders

    def is_virtual_address(self, network: IPNetwork) -> bool:
        """Return True for an address that only links of other programs have, and not all of them lo or a dummy."""
        return not all(map(self.is_service_link, self._virtual_holders(network)))

    def has_virtual_network(self, network: IPNetwork) -> bool:
        """Return True for an address that only links of other programs have, and one of them with a network or peer."""
        holders = self._virtual_holders(network)
        entries = [each for link in holders for each in self.entries(link, network.network_address)]
        return any(each.peer is not None or self.network_of(each) is not None for each in entries)

    def is_divided(self, link: int, network: IPNetwork) -> bool:
        """Return True if another program routes all or a part of a subnet that overlaps `network` elsewhere."""
        return any(map(self._has_foreign_part, self.networks.subnets.overlapping(link, network)))

    def _has_foreign_part(self, subnet: IPNetwork) -> bool:
        if subnet not in self._divided:
            inside = (each for each in self.host_routes(subnet) if each.destination.prefixlen >= subnet.prefixlen)
            self._divided[subnet] = any(not each.by_cloud for each in inside if not each.is_local)
        return self._divided[subnet]

    def tunnels_to(self, link: int, network: IPNetwork) -> set[int]:
        """Return the tunnels through which other programs route all of `network`, as specifically as `link` has it."""
        own = list(self.networks.learned.containing(link, network))
        found = (
            each for each in self.host_routes(network) if contains(each.destination, network) and not each.by_cloud
        )
        links = {each.link for each in found if not (each.discards or claims.is_too_wide(each.destination, own))}
        return {each for each in links if not (self.is_cloud(each) or self.may_have_cloud_addresses(each))}

    def has_peer(self, ip: IPAddress) -> bool:
        """Return True if this is the peer of an address, on any link."""
        return ip in self._peers

    def is_edge(self, ip: IPAddress) -> bool:
        """Return True for the network or broadcast address of a subnet of any link."""
        return any(claims.is_edge(ip, subnet) for subnet, _ in self.networks.subnets.around(single(ip)))

    def peer_inside(self, network: IPNetwork) -> IPAddress | None:
        """Return a peer of an address of any link inside `network`."""
        return next((each for each in self._peers if contains(network, single(each))), None)

    def held_elsewhere(self, link: int, network: IPNetwork) -> IPAddress | None:
        """Return an address in `network` that another link has."""
        return next((each.network_address for each, _ in self.networks.held.elsewhere(link, network)), None)

    # Routes and gateways.

    def own_tables(self, link: int) -> tuple[int, int]:
        """Return the numbers of the link's two tables."""
        return claims.tables(link, self.settings.route_table_base)

    def is_in_subnet(self, link: int, network: IPNetwork) -> bool:
        """Return True if `network` is a part of a subnet of the link: of one of its addresses, or a learned one.

        Also if it is a part of a learned subnet of another link in the same subnet. Other on-link routes are no
        evidence: a client can make one for any private network, and an operator's may be as wide as a /1.
        """
        shared = (
            each
            for each in self.networks.own_on_link.containing(link, network)
            if each in self.networks.learned_by_cloud
        )
        networks = self.networks.subnets.containing(link, network)
        around = (each for each in networks if self.networks.learned.has(link, each) or self.addresses_in(link, each))
        return any(each != network for each in (*around, *shared))

    def protected_elsewhere(self, network: IPNetwork, link: int) -> IPAddress | None:
        """Return a resolver inside `network`, or a gateway there of links on which main does not have this subnet."""
        before: Set[int] = self._subnets_before.get(network, frozenset())
        had_it = link in before  # this request replaces the address with the connected route
        sharing = {other for other in before if self.has_route_on_link(other, network)} | {link}
        for ip, users in self.gateways.users_inside(network):
            others = users - sharing
            if had_it:
                others = {each for each in others if not self.networks.own_on_link.has(each, network)}
            if others:
                return ip
        return self.gateways.resolver_inside(network)

    def main_discards(self, version: int) -> bool:
        """Return True if main's default route of this family is of type unreachable, blackhole or prohibit.

        A suppressor has no effect on it: the kernel suppresses only routes that a lookup has found.
        """
        defaults = self._main_defaults[version]
        first = min((metric for metric, _ in defaults), default=0)
        return (first, True) in defaults

    def add_route(self, table: int, destination: IPNetwork, route: OwnRoute) -> None:
        """Count a route that this request adds or replaces."""
        before = self.own_routes.get((table, destination))
        if table == TABLE_LOCAL and before is not None:
            self.networks.local_ranges.discard(before.link, destination)
        if table == TABLE_LOCAL:
            self.networks.local_ranges.add(route.link, destination)
        if route.gateway is not None:
            self.gateways.add(route.gateway, route.link)
        if before is not None:
            self._count_route(table, destination, before, -1)
        self._count_route(table, destination, route, 1)
        self.own_routes[table, destination] = route

    def remove_route(self, table: int, destination: IPNetwork) -> None:
        """Forget a route that this request removes."""
        route = self.own_routes.pop((table, destination))
        self._count_route(table, destination, route, -1)
        if table == TABLE_LOCAL:
            self.networks.local_ranges.discard(route.link, destination)

    def _count_route(self, table: int, destination: IPNetwork, route: OwnRoute, change: int) -> None:
        """Count an owned route in one of the link's tables, or forget it with -1."""
        if table not in self.own_tables(route.link):
            return
        if route.gateway is not None:
            self.gateways.count_own(route.gateway, route.link, change)
            return
        copies = self._own_copies[route.link, destination]
        self._own_copies[route.link, destination] += change
        if not copies:
            self.networks.own_on_link.add(route.link, destination)
        elif not copies + change:
            self.networks.own_on_link.discard(route.link, destination)

    @property
    def own_objects(self) -> int:
        """Number of owned addresses, routes and rules."""
        return self._own_count + len(self.own_routes) + len(self.rules.own)
