"""Pure functions: does a route of another program conflict with a claim of a link? See docs/policy.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .claims import LINK_LOCAL, IPAddress, IPNetwork, contains, is_link_local, is_single


@dataclass(frozen=True, slots=True)
class ForeignHop:
    """One next hop of a foreign route, with all that matters for a conflict."""

    destination: IPNetwork
    link: int  # 0: none
    gateway: IPAddress | None
    discards: bool  # blackhole, unreachable or prohibit; in main also throw
    by_cloud: bool  # through a link of the cloud: on link, or by a gateway of the cloud
    belongs_to_link: bool  # of an address of the cloud's links (also excluded ones), or to a host by DHCP or a router
    parent: int = 0  # the interface of the cloud below `link`, if this is the connected route of a macvlan or ipvlan
    is_learned_by_parent: bool = False  # as a subnet
    is_local: bool = False  # in table local: packets stay on this host, or on its link (anycast)


def conflict(
    network: IPNetwork, link: int, hops: Iterable[ForeignHop], learned: Iterable[IPNetwork]
) -> ForeignHop | None:
    """Return the first of `hops` that already routes `network`, or a part of it, elsewhere than to `link`.

    `hops` are of routes that overlap `network`; `learned` are the learned subnets of the link. These routes do not
    conflict: default routes and halves of the address space (VPNs use /1), a wider route through a gateway of the
    cloud, an on-link route of this link, the equal subnet of another link, and a route that is wider than a learned
    subnet that contains `network`.
    """
    around = [subnet for subnet in learned if contains(subnet, network)]
    for hop in hops:
        if is_too_wide(hop.destination, around) or is_wide_link_local(hop.destination, network):
            continue
        if _leads_elsewhere(hop, network, link):
            return hop
    return None


def is_too_wide(destination: IPNetwork, learned: Iterable[IPNetwork]) -> bool:
    """Return True if a route of another program is too wide to conflict with a claim in these learned subnets."""
    return destination.prefixlen <= 1 or any(destination.prefixlen < subnet.prefixlen for subnet in learned)


def is_wide_link_local(destination: IPNetwork, network: IPNetwork) -> bool:
    """Return True for 169.254.0.0/16 or an IPv6 link-local network that is or contains `network`.

    Several links may have them.
    """
    is_whole = destination.prefixlen == LINK_LOCAL[0].prefixlen
    may_be_shared = not is_single(destination) if destination.version == 6 else is_whole
    return is_link_local(destination) and may_be_shared and destination.prefixlen <= network.prefixlen


def _leads_elsewhere(hop: ForeignHop, network: IPNetwork, link: int) -> bool:
    has_same_neighbours = hop.parent == link or hop.is_learned_by_parent
    if has_same_neighbours and (hop.destination == network or is_single(network)):
        return False
    if hop.discards or not hop.by_cloud:
        return True
    if hop.is_local and hop.link != link:  # AnyIP or anycast of another link
        return True
    if hop.belongs_to_link:
        return False
    is_equal_subnet = hop.destination == network and not is_single(network)
    if hop.gateway is None and (hop.link == link or is_equal_subnet):  # two links may be in one subnet
        return False
    return contains(network, hop.destination)  # a wider route of the cloud stays for the rest of its destination
