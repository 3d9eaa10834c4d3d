"""The networks of each link, with the accepted operations of this request applied: a part of `view`."""

from __future__ import annotations

from collections.abc import Iterator

from . import claims
from .claims import IPNetwork, is_link_local, is_single
from .links import Links
from .network_index import NetworksByLink


class Networks:
    """The networks of each link.

    - `held`: its addresses, each as /32 or /128;
    - `learned`: subnets that DHCP, a router or an operator gave to it;
    - `subnets`: those, the subnets of owned addresses and, on the cloud's links, other on-link routes in main;
    - `owned_on_link`: owned on-link routes in the link's tables;
    - `local_ranges`: routes of type local that no address has (AnyIP).
    """

    def __init__(self, links: Links) -> None:
        self.held, self.learned, self.subnets = NetworksByLink(), NetworksByLink(), NetworksByLink()
        self.owned_on_link, self.local_ranges = NetworksByLink(), NetworksByLink()
        self.learned_by_any_managed = set[IPNetwork]()  # of interfaces of the cloud that Exclude= does not name
        self._links = links
        self._learned_versions = set[tuple[int, int]]()  # links and IP versions with a learned subnet: see learn
        self._has_ipv6 = set[int]()  # links that have learned an IPv6 network

    def learn(self, link: int, network: IPNetwork) -> None:
        """Count a network of the link from DHCP, a router or an operator. A neighbour can advertise thousands."""
        self.learned.add(link, network)
        if self._links.is_managed(link):
            self.learned_by_any_managed.add(network)
        if is_link_local(network):
            return
        if network.version == 6:
            self._has_ipv6.add(link)
        if not is_single(network):
            self._learned_versions.add((link, network.version))

    def has_learned_subnet(self, link: int, version: int) -> bool:
        """Return True if the link has learned a subnet of this family, except for link-local networks."""
        return (link, version) in self._learned_versions

    def has_ipv6_network(self, link: int) -> bool:
        """Return True if the link has learned an IPv6 network, except for link-local ones."""
        return link in self._has_ipv6

    def on_link(self, link: int, network: IPNetwork) -> Iterator[IPNetwork]:
        """Yield the on-link networks that overlap `network`: by the link's addresses, main and the link's tables."""
        yield from self.subnets.overlapping(link, network)
        yield from self.owned_on_link.overlapping(link, network)

    def is_on_link(self, link: int, network: IPNetwork) -> bool:
        """Return True if all of `network` is on the link."""
        return self.subnets.covers(link, network) or self.owned_on_link.covers(link, network)

    def nested_elsewhere(self, link: int, network: IPNetwork) -> IPNetwork | None:
        """Return a subnet of another link of the cloud that contains `network` or lies in it."""
        found = self.subnets.elsewhere(link, network)
        return claims.nested(network, (each for each, other in found if self._links.is_cloud(other)))
