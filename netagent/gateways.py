"""The gateways of the host, with the accepted operations of this request applied: a part of `view`.

It says which addresses a link's routes may use as gateway, and which addresses no link may claim.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set

from . import claims
from .claims import IPAddress, IPNetwork, contains, is_link_local, is_single, single
from .network_index import NetworkIndex
from .networks import Networks


class Gateways:
    """The gateways of all routes, those of the default routes, and those of the owned routes.

    `routers` are links and IPv6 neighbours that the kernel flags as routers; `allowed` is AllowGateways=. `resolvers`
    and `former` gateways (of owned routes) are protected, too.
    """

    def __init__(
        self,
        networks: Networks,
        routers: Set[tuple[int, IPAddress]],
        allowed: Iterable[IPNetwork],
        resolvers: Set[IPAddress],
        former: Set[IPAddress],
    ) -> None:
        self._networks, self._routers, self._allowed = networks, routers, tuple(allowed)
        self._resolvers, self._former = resolvers, former
        self._users: dict[IPAddress, set[int]] = defaultdict(set)  # the links that use each gateway
        self._by_network: NetworkIndex[IPAddress] = NetworkIndex()  # the same gateways, as /32 or /128
        self._of_defaults: dict[int, set[IPAddress]] = defaultdict(set)  # of other programs' default routes, by link
        self._default_families = set[tuple[int, int]]()  # the links and IP versions of these routes
        self._of_main: dict[tuple[int, int], set[IPAddress]] = defaultdict(set)  # those in main, also by IP version
        self._of_owned: dict[int, Counter[IPAddress]] = defaultdict(Counter)  # of owned routes in the link's tables

    def add(self, gateway: IPAddress, link: int) -> None:
        """Count a gateway of any route, or of a nexthop object."""
        if gateway not in self._users:
            self._by_network.add(single(gateway), gateway)
        self._users[gateway].add(link)

    def add_default(self, gateway: IPAddress, link: int, version: int, *, in_main: bool) -> None:
        """Count the gateway of another program's default route. `version` is that of the destination.

        An IPv4 route may have an IPv6 gateway (RFC 5549).
        """
        self._of_defaults[link].add(gateway)
        self._default_families.add((link, version))
        if in_main:
            self._of_main[link, version].add(gateway)

    def count_owned(self, gateway: IPAddress, link: int, delta: int) -> None:
        """Count an owned route through this gateway in one of the link's tables, or forget it with -1."""
        self._of_owned[link][gateway] += delta

    # Which gateways a link's routes may use.

    def is_gateway(self, link: int, gateway: IPAddress) -> bool:
        """Return True if this is a gateway of the cloud on the link. docs/policy.md lists the five cases."""
        if gateway in self._of_defaults[link] or self.is_router_of_cloud(link, gateway, gateway.version):  # 1; 2, 3, 5
            return True
        if not is_link_local(single(gateway)):
            return False
        # 4. An own gateway stays one after its advertisement has expired.
        return (link, gateway) in self._routers or self._of_owned[link][gateway] > 0

    def is_router_of_cloud(self, link: int, gateway: IPAddress, version: int) -> bool:
        """Return True for the cases 1 (of main only), 2, 3 and 5: other programs' routes through it are the cloud's.

        Case 4 and default routes of other tables are not enough for that: every host that forwards has the flag of a
        router, also a node of a CNI, and another table may send some sources through an appliance. Nor is a default
        route of another `version` than that of the routes: any neighbour can advertise itself as an IPv6 router, also
        the next hop of IPv4 routes (RFC 5549).
        """
        if gateway in self._of_main[link, version] or claims.within(single(gateway), self._allowed):
            return True
        learned = self._networks.learned.containing(link, single(gateway))
        subnets = (each for each in learned if not (is_single(each) or is_link_local(each)))
        if any(gateway == each.network_address + 1 for each in subnets):
            return True
        is_known = (link, gateway.version) in self._default_families
        is_known = is_known or self._networks.has_learned_subnet(link, gateway.version)
        if is_known or is_link_local(single(gateway)):
            return False
        return self._is_convention(link, gateway)

    def _is_convention(self, link: int, gateway: IPAddress) -> bool:
        """Return True for a gateway by convention of one of the link's addresses. One per link and family."""
        for used, times in self._of_owned[link].items():
            is_other = times and used.version == gateway.version and used != gateway
            if is_other and not claims.within(single(used), self._allowed):
                return False
        return any(
            any(each.network_address != gateway for each in self._networks.held.overlapping(link, subnet))
            and self._networks.nested_elsewhere(link, subnet) is None
            for subnet in claims.conventional_subnets(gateway)
        )

    def has_ipv6_router(self, link: int) -> bool:
        """Return True if the link has an IPv6 default route or has learned an IPv6 network.

        If not, an advertisement may still arrive.
        """
        return (link, 6) in self._default_families or self._networks.has_ipv6_network(link)

    # Which addresses no link may claim.

    def protects(self, ip: IPAddress) -> str | None:
        """Return a description of a protected address: a gateway's or a resolver's. None for any other address."""
        if use := self.use_of(ip):
            return use
        for subnet, link in self._networks.subnets.all_containing(single(ip)):
            if self._networks.learned.has(link, subnet) and ip == self._expected_gateway(link, subnet):
                return f"the gateway of {subnet} by convention"
        return None

    def use_of(self, ip: IPAddress) -> str | None:
        """Return a description of a resolver's address or of a gateway's that routes use or have used, or None."""
        if ip in self._resolvers:
            return "a resolver's address"
        return "a gateway's address" if ip in self._users or ip in self._former else None

    def _expected_gateway(self, link: int, subnet: IPNetwork) -> IPAddress | None:
        """Return the first host of a subnet that the link has learned, if the subnet's gateway is not known.

        The default route of a link gives it: with IPv4 for the subnet that contains the gateway, with IPv6 for all.
        """
        if subnet.version == 6:
            is_known = (link, 6) in self._default_families
        else:
            is_known = any(contains(subnet, single(each)) for each in self._of_defaults[link])
        return None if is_known or is_single(subnet) else subnet.network_address + 1

    def protected_inside(self, network: IPNetwork, link: int | None) -> IPAddress | None:
        """Return a gateway or resolver inside `network`, except gateways of `link`; None: of no link."""
        for ip in (*self._inside(network), *self._resolvers, *self._former):
            if contains(network, single(ip)) and (link is None or link not in self._users.get(ip, ())):
                return ip
        others = self._networks.learned.elsewhere(link or 0, network)  # there is no link 0
        gateways = (self._expected_gateway(other, subnet) for subnet, other in others)
        return next((ip for ip in gateways if ip is not None and contains(network, single(ip))), None)

    def resolver_inside(self, network: IPNetwork) -> IPAddress | None:
        """Return a resolver inside `network`."""
        return next((ip for ip in self._resolvers if contains(network, single(ip))), None)

    def gateways_inside(self, network: IPNetwork) -> Iterator[tuple[IPAddress, Set[int]]]:
        """Yield each gateway inside `network`, with the links that use it. A host may have thousands."""
        return ((gateway, self._users[gateway]) for gateway in self._inside(network))

    def _inside(self, network: IPNetwork) -> Iterator[IPAddress]:
        return (gateway for _, gateway in self._by_network.overlapping(network))

    def of_main_inside(self, link: int, network: IPNetwork) -> IPAddress | None:
        """Return the gateway of a default route in main on this link, if it is inside `network`."""
        gateways = self._of_main[link, network.version]
        return next((each for each in gateways if contains(network, single(each))), None)
