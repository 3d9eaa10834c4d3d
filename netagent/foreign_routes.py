"""The routes that netagent did not add: those of other programs, and those that the kernel derived. A part of `view`.

They say which networks a link has learned and which gateways are the cloud's, and they may conflict with a claim.
Requests do not change them, except that an owned address takes its connected route along; the list keeps that route.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from . import claims, rtnetlink
from .addresses import Addresses
from .claims import IPAddress, IPNetwork, contains, is_single, single
from .conflicts import ForeignHop, is_too_wide
from .gateways import Gateways
from .links import Links
from .network_index import NetworkIndex
from .networks import Networks
from .operations import PROTOCOL, TABLE_LOCAL, TABLE_MAIN
from .rtnetlink import IFA_F_NOPREFIXROUTE, IFA_F_PERMANENT, Address, NextHop, Route
from .side_effects import IP6_RT_PRIO_ADDRCONF

_DISCARDS = (rtnetlink.RTN_BLACKHOLE, rtnetlink.RTN_UNREACHABLE, rtnetlink.RTN_PROHIBIT)
_DHCP_OR_RA = (rtnetlink.RTPROT_DHCP, rtnetlink.RTPROT_RA)


class ForeignRoutes:
    """The foreign routes by destination, with the connected routes that links which are down will have."""

    def __init__(self, links: Links, addresses: Addresses, networks: Networks, gateways: Gateways) -> None:
        self._links, self._addresses, self._networks, self._gateways = links, addresses, networks, gateways
        self._routes: NetworkIndex[Route] = NetworkIndex()
        self._halves: list[tuple[Route, NextHop]] = []  # to halves of the address space: a VPN for everything
        self._main_defaults: dict[int, list[tuple[int, bool]]] = defaultdict(list)  # by IP version: metric, discards
        self._connected_before = set[tuple[int, IPNetwork]]()  # by link, connected routes before the request
        self._any_ip = set[tuple[int, IPNetwork]]()  # by link, those in table local of other programs: see _add_local
        self._hops: dict[IPNetwork, Sequence[ForeignHop]] = {}  # see hops
        self._partly_elsewhere: dict[IPNetwork, bool] = {}  # see is_partly_elsewhere
        self.ipv6_connected = set[tuple[int, IPNetwork]]()  # by link, with the kernel's protocol and metric
        self.prefixes_of_routers = set[tuple[int, IPNetwork]]()  # by link, connected routes that no address needs
        self.on_link_without_address = set[tuple[int, IPNetwork]]()  # on link in main by a route that no address needs

    # Reading the routes. Addresses must be read before.

    def add_when_up(self, address: Address) -> None:
        """Add the connected routes that a foreign address gets in main when its link is set up."""
        if not self._links.is_down(address.link):
            return
        for network in address.connected_networks:
            hops, kind, protocol = (NextHop(address.link, None),), rtnetlink.RTN_UNICAST, rtnetlink.RTPROT_KERNEL
            route = Route(TABLE_MAIN, network, hops, kind, protocol, 0, address.ip, expires=False)
            self._add(route)

    def _add(self, route: Route) -> None:
        self._routes.add(route.destination, route)
        self._connected_before.update(
            (hop.link, route.destination) for hop in route.hops if self._is_of_address(route, hop)
        )

    def add(self, route: Route) -> None:
        """Add a foreign route, and what it says about networks and gateways."""
        self._add(route)
        if route.table == TABLE_LOCAL:
            self._add_local(route)
            return
        if not route.destination.prefixlen:
            self._add_default(route)
            return
        if route.destination.prefixlen == 1 and not _is_throw(route):
            self._halves += [(route, hop) for hop in route.hops]
        if route.protocol == rtnetlink.RTPROT_KERNEL and route.metric == IP6_RT_PRIO_ADDRCONF:
            self.ipv6_connected.update((hop.link, route.destination) for hop in route.hops if hop.gateway is None)
        for hop in route.hops:
            if _puts_on_link(route, hop) and not route.for_some_packets:
                self._add_on_link(route, hop)

    def _add_local(self, route: Route) -> None:
        """Add a route in table local: AnyIP or anycast, unless the kernel has added it for a single address.

        The range of an address with a prefix on lo has the kernel's protocol, and so may a route of another program.
        """
        link, destination, is_local = route.hops[0].link, route.destination, route.kind == rtnetlink.RTN_LOCAL
        by_kernel = route.protocol == rtnetlink.RTPROT_KERNEL and is_single(destination)
        if by_kernel and (not is_local or link in self._addresses.holders(destination.network_address)):
            return
        self._any_ip.add((link, destination))
        if is_local:
            self._networks.local_ranges.add(link, destination)

    def _add_default(self, route: Route) -> None:
        in_main = route.table == TABLE_MAIN and not route.for_some_packets
        if in_main and not _may_be_advertised_prefix(route):
            self._main_defaults[route.destination.version].append((route.metric, route.kind in _DISCARDS))
        for hop in route.hops:
            if hop.gateway is not None and route.protocol != PROTOCOL:
                self._gateways.add_default(hop.gateway, hop.link, route.destination.version, in_main=in_main)

    def _add_on_link(self, route: Route, hop: NextHop) -> None:
        """Add an on-link route in main. There may be thousands that do not belong to the cloud's links (of a CNI)."""
        network = route.destination
        if is_single(network) and hop.link in self._addresses.holders(network.network_address):
            return  # of an IPv6 address: it is no subnet of the link
        is_advertised = _may_be_advertised_prefix(route) and not self._addresses.in_network(hop.link, network)
        if is_advertised and _is_wider_than_cloud_subnets(network):
            return
        learned = self._is_learned(route, hop)
        if learned:
            self._networks.learn(hop.link, network)
        if learned or self._links.is_cloud(hop.link):
            self._networks.subnets.add(hop.link, network)
            if not self._is_of_address(route, hop):
                self.on_link_without_address.add((hop.link, network))
        if route.protocol == rtnetlink.RTPROT_KERNEL:
            addresses = self._addresses.in_network(hop.link, network)
            if all(each.flags & IFA_F_NOPREFIXROUTE for each in addresses):
                self.prefixes_of_routers.add((hop.link, network))

    def _is_learned(self, route: Route, hop: NextHop) -> bool:
        """Return True for a subnet from DHCP or a router; IPv6 prefixes of routers have the protocol `kernel`."""
        network = route.destination
        if _is_wider_than_cloud_subnets(network):
            return False
        if route.protocol in _DHCP_OR_RA:
            return True
        if route.protocol != rtnetlink.RTPROT_KERNEL or network.version == 4 or is_single(network):
            return False
        return route.expires or not any(map(self._addresses.owns, self._addresses.in_network(hop.link, network)))

    def _is_of_address(self, route: Route, hop: NextHop) -> bool:
        """Return True for the connected route of an address, and for an IPv6 prefix of a router.

        Other programs, too, use the protocol `kernel`, and a peer has such a route as well.
        """
        if route.protocol != rtnetlink.RTPROT_KERNEL or hop.gateway is not None or route.table == TABLE_LOCAL:
            return False
        if route.destination.version == 6:
            ip = route.destination.network_address
            return not is_single(route.destination) or hop.link in self._addresses.holders(ip)
        return bool(self._addresses.in_network(hop.link, route.destination))

    # Conflicts with claims.

    def hops(self, network: IPNetwork) -> Sequence[ForeignHop]:
        """Return the next hops of the routes that overlap `network` and may conflict with a claim of it.

        Of table local, these are the routes that another program made: ranges (AnyIP), mostly on lo, and anycast.
        Left out are routes that the kernel derived from addresses of the cloud's links: they do not conflict. A network
        may contain thousands of routes, and a request may name it thousands of times. The list is that of the first
        time: an operation that is checked later does not change it.
        """
        if network not in self._hops:
            self._hops[network] = list(self._find_hops(network))
        return self._hops[network]

    def _find_hops(self, network: IPNetwork) -> Iterator[ForeignHop]:
        for _, route in self._routes.overlapping(network):
            if _is_throw(route) or route.destination.prefixlen <= 1:
                continue
            if route.table != TABLE_LOCAL or (route.hops[0].link, route.destination) in self._any_ip:
                for each in (self._foreign_hop(route, hop) for hop in route.hops):
                    if each.discards or not (each.by_cloud and each.belongs_to_link):
                        yield each

    def _foreign_hop(self, route: Route, hop: NextHop) -> ForeignHop:
        """Return one next hop of a foreign route. A tunnel (encap) is not the cloud's, even on a link of the cloud."""
        link, gateway = hop.link, None if hop.encapsulates else hop.gateway
        on_cloud = self._links.is_cloud(link) and not hop.encapsulates
        by_dhcp_or_ra = route.protocol in _DHCP_OR_RA
        version = route.destination.version
        if self._links.is_excluded(link):  # the operator's own link: other routes are the operator's, not the cloud's
            of_cloud = by_dhcp_or_ra or (gateway is None and self._is_subnet_of_cloud(route, hop))
        else:
            of_cloud = by_dhcp_or_ra or gateway is None or self._gateways.is_router_of_cloud(link, gateway, version)
        # systemd-networkd adds such a route to the gateway, and to name and time servers: see hosts_of_leases.
        is_host_of_lease = by_dhcp_or_ra and gateway is None and is_single(route.destination)
        by_kernel = route.protocol == rtnetlink.RTPROT_KERNEL and hop.gateway is None
        is_connected = by_kernel and (link, route.destination) in self._connected_before
        parent = self._links.parent(link) if is_connected and not hop.encapsulates else 0
        delivers = route.table == TABLE_LOCAL or route.kind == rtnetlink.RTN_UNICAST
        return ForeignHop(
            destination=route.destination,
            link=link,
            gateway=gateway,
            discards=route.kind in (*_DISCARDS, rtnetlink.RTN_THROW),
            by_cloud=on_cloud and of_cloud and delivers,
            belongs_to_link=on_cloud and (is_host_of_lease or is_connected),
            parent=parent,
            is_learned_by_parent=self._networks.learned.has(parent, route.destination),
            is_local=route.table == TABLE_LOCAL,
        )

    def _is_subnet_of_cloud(self, route: Route, hop: NextHop) -> bool:
        """Return True for a subnet of an excluded link that DHCP or a router gave to it, or to a link of the cloud."""
        addresses = self._addresses.in_network(hop.link, route.destination)
        leased = any(not each.flags & IFA_F_PERMANENT for each in addresses)
        return route.expires or leased or route.destination in self._networks.learned_by_any_managed

    def is_subnet_of_parent(self, hop: ForeignHop) -> bool:
        """Return True for the connected route of a macvlan or ipvlan, if its interface has the same subnet."""
        networks = (self._networks.subnets, self._networks.owned_on_link)
        return hop.parent > 0 and any(each.has(hop.parent, hop.destination) for each in networks)

    def halves(self) -> Iterator[ForeignHop]:
        """Yield the next hops of routes to halves of the address space that do not go through the cloud."""
        found = (self._foreign_hop(route, hop) for route, hop in self._halves)
        return (each for each in found if each.discards or not each.by_cloud)

    def main_discards(self, version: int) -> bool:
        """Return True if main's default route of this family is of type unreachable, blackhole or prohibit.

        A suppressor has no effect on it: the kernel suppresses only routes that a lookup has found.
        """
        defaults = self._main_defaults[version]
        first = min((metric for metric, _ in defaults), default=0)
        return (first, True) in defaults

    def may_bypass_vpn(self, network: IPNetwork) -> bool:
        """Return True if a link's table may route the network past a VPN that carries all traffic.

        These are private networks, metadata servers and subnets of the cloud's links.
        """
        near = any(self._links.is_cloud(link) for _, link in self._networks.subnets.all_containing(network))
        return near or claims.within(network, (*claims.PRIVATE, *claims.LINK_LOCAL, *claims.METADATA))

    def is_partly_elsewhere(self, subnet: IPNetwork) -> bool:
        """Return True if another program routes all or a part of a subnet elsewhere, or through a gateway."""
        if subnet not in self._partly_elsewhere:
            inside = (each for each in self.hops(subnet) if each.destination.prefixlen >= subnet.prefixlen)
            routed = (each for each in inside if not each.is_local)
            self._partly_elsewhere[subnet] = any(each.gateway is not None or not each.by_cloud for each in routed)
        return self._partly_elsewhere[subnet]

    def tunnels_to(self, link: int, network: IPNetwork) -> set[int]:
        """Return the tunnels through which other programs route all of `network`, as specifically as `link` has it."""
        learned = list(self._networks.learned.containing(link, network))
        around = (each for each in self.hops(network) if contains(each.destination, network))
        others = (each for each in around if not (each.by_cloud or each.discards))
        links = {each.link for each in others if not is_too_wide(each.destination, learned)} - self._links.cloud
        return {each for each in links if not self._links.may_have_cloud_addresses(each)}

    # Single routes.

    def has(self, table: int, destination: IPNetwork) -> bool:
        """Return True if a table has a foreign route to exactly this destination."""
        return any(route.table == table for route in self._routes.exactly(destination))

    def is_broadcast_or_anycast(self, ip: IPAddress) -> bool:
        """Return True if table local has a route of such a type to exactly this address, also one of the kernel's."""
        routes = self._routes.exactly(single(ip))
        return any(route.kind in (rtnetlink.RTN_BROADCAST, rtnetlink.RTN_ANYCAST) for route in routes)

    def hosts_of_leases(self, network: IPNetwork) -> Iterator[tuple[IPAddress, int]]:
        """Yield the hosts in `network` that DHCP or a router has put on a link, in any table, and that link."""
        for destination, route in self._routes.overlapping(network):
            if is_single(destination) and route.protocol in _DHCP_OR_RA and route.kind == rtnetlink.RTN_UNICAST:
                on_link = (hop.link for hop in route.hops if hop.gateway is None and hop.link)
                yield from ((destination.network_address, link) for link in on_link)

    def links_in_main(self, network: IPNetwork) -> set[int]:
        """Return the links of main's foreign routes to exactly this network, also through gateways."""
        return {hop.link for route in self._in_main(network) for hop in route.hops}

    def has_on_link_route(self, link: int, network: IPNetwork) -> bool:
        """Return True if main has a foreign route to exactly this network on the link, for all packets."""
        routes = (route for route in self._in_main(network) if not route.for_some_packets)
        return any(hop.link == link and _puts_on_link(route, hop) for route in routes for hop in route.hops)

    def _in_main(self, network: IPNetwork) -> Iterable[Route]:
        return (route for route in self._routes.exactly(network) if route.table == TABLE_MAIN)

    def best_is_on_link(self, link: int, network: IPNetwork) -> bool:
        """Return True if the best route in main that contains `network` is on this link, without a gateway."""
        around = (route for _, route in self._routes.containing(network))
        routes = [route for route in around if route.table == TABLE_MAIN and not route.for_some_packets]
        best = max(routes, key=lambda route: (route.destination.prefixlen, -route.metric), default=None)
        return best is not None and all(hop.link == link and _puts_on_link(best, hop) for hop in best.hops)

    def subnets_elsewhere(self, link: int, network: IPNetwork) -> Iterator[int]:
        """Yield the other links that have an on-link network that overlaps `network`, also links of other programs."""
        yield from (other for _, other in self._networks.subnets.elsewhere(link, network))
        learned = list(self._networks.learned.containing(link, network))
        for _, route in self._routes.overlapping(network):
            if not is_too_wide(route.destination, learned):
                yield from (hop.link for hop in route.hops if hop.link != link and _puts_on_link(route, hop))


def _is_wider_than_cloud_subnets(network: IPNetwork) -> bool:
    """Return True for an IPv6 network that no cloud gives to a link, such as 2000::/3."""
    return network.version == 6 and network.prefixlen < claims.WIDEST_SUBNET[6]


def _may_be_advertised_prefix(route: Route) -> bool:
    """Return True for an IPv6 on-link route as a neighbour can make it, by advertising a prefix of any length."""
    by_router = route.protocol in (rtnetlink.RTPROT_KERNEL, rtnetlink.RTPROT_RA) and route.kind == rtnetlink.RTN_UNICAST
    return route.destination.version == 6 and by_router and all(hop.gateway is None for hop in route.hops)


def _puts_on_link(route: Route, hop: NextHop) -> bool:
    """Return True for a next hop in main that puts the destination on a link."""
    direct = hop.gateway is None and hop.link > 0 and not hop.encapsulates
    return direct and route.table == TABLE_MAIN and route.kind == rtnetlink.RTN_UNICAST


def _is_throw(route: Route) -> bool:
    """Return True for a route with which the kernel goes on to the next rule (VPNs leave out local subnets so).

    In main, there is usually no further rule, and the kernel discards the packets.
    """
    return route.kind == rtnetlink.RTN_THROW and route.table != TABLE_MAIN
