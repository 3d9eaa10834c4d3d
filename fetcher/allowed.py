"""What netagent will not refuse, so that one address that it would refuse does not stop the others.

netagent refuses a request whole. It decides by netagent/policy.py and asks the kernel itself; this is the same
judgement of the same facts, made before and only to leave things out: it allows nothing. A test holds the two together.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import NamedTuple

from cloud_network.fetcher.config import PRIVATE, Config
from cloud_network.fetcher.model import IPAddress, IPNetwork, host
from cloud_network.fetcher.objects import Actual, Link

_SHORTEST = {4: 8, 6: 32}
NEVER = tuple(
    ip_network(text)
    for text in (
        *("fe80::/10", "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"),
        *("::/96", "::ffff:0:0/96", "ff00::/8"),
        *("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::254/128", "fd20:ce::254/128"),
    )
)
"""No link's, whatever AllowAddresses= says: loopback, link-local, multicast, reserved, and the metadata servers'."""
_NEVER = {version: [(int(each[0]), int(each[-1])) for each in NEVER if each.version == version] for version in (4, 6)}


def within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Whether every address of `inner` is one of `outer`."""
    return inner.version == outer.version and inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def _is_global6(network: IPNetwork) -> bool:
    """The kernel has fe80::/64 on every link, whoever is there."""
    return network.version == 6 and not network.is_link_local


def _never(network: IPNetwork) -> bool:
    """Whether it has a part in one of NEVER. In numbers, because it is asked for every address."""
    begin = int(network.network_address)
    end = begin + (1 << (network.max_prefixlen - network.prefixlen)) - 1
    return any(begin <= last and first <= end for first, last in _NEVER[network.version])


class Against(NamedTuple):
    """Why a link may not have something."""

    text: str
    passes: bool = False
    """Whether it will when a router has advertised itself on the link, seconds after that came up."""


class Allowed:
    """What the operator and the kernel allow on this host."""

    def __init__(self, config: Config, actual: Actual, left: frozenset[int]) -> None:
        self._allow = config.allow_addresses[len(PRIVATE) :]
        clouds = (None, *config.allow_kinds)
        others = {link.ifindex for link in actual.links if link.kind not in clouds}  # a container bridge, a VPN …
        self._rivals = set[IPNetwork]()  # … whose subnets are not the cloud's to give addresses of
        self._learned = {ifindex: set(networks) for ifindex, networks in actual.learned.items()}
        self._subnets = {ifindex: set(networks) for ifindex, networks in actual.learned.items()}
        self._holders: dict[IPAddress, tuple[int, bool]] = {}  # by which link, and whether it will be taken from it
        self._local = actual.local
        self._heard = {  # where a router has advertised itself: a network, or the way out
            *(index for index, networks in actual.learned.items() if any(_is_global6(net) for net in networks)),
            *(index for index, gateways in actual.gateways.items() if any(each.version == 6 for each in gateways)),
        }
        self._base = config.route_table_base
        self._routes = {(route.table, route.destination) for route in actual.routes}
        self._names = {link.ifindex: link.name for link in actual.links}
        for (ifindex, address), kernel in actual.addresses.items():
            self._holders[address] = (ifindex, kernel.owned and ifindex not in left)
            single = kernel.address.prefix == address.max_prefixlen
            network = host(address) if single else ip_network((address, kernel.address.prefix), strict=False)
            self._subnets.setdefault(ifindex, set()).add(network)
            if not kernel.owned and network.prefixlen < network.max_prefixlen:
                self._learned.setdefault(ifindex, set()).add(network)
                if ifindex in others:
                    self._rivals.add(network)

    def may_claim(self, link: Link, network: IPNetwork) -> bool:
        """Whether the link may have all of `network`."""
        if network.prefixlen < _SHORTEST[network.version]:
            return False
        if _never(network):
            return False
        if any(within(network, own) for own in (*self._allow, *self._learned.get(link.ifindex, ()))):
            return True
        private = any(within(network, own) for own in PRIVATE)
        return private and not any(within(network, rival) or within(rival, network) for rival in self._rivals)

    def is_on(self, link: Link, network: IPNetwork) -> bool:
        """Whether `network` is a part of a subnet that the kernel has on the link, in its table, or may become one."""
        return (
            (self._base + link.ifindex, network) in self._routes
            or self.may_claim(link, network)
            or any(within(network, subnet) for subnet in self._subnets.get(link.ifindex, ()))
        )

    def against(self, link: Link, network: IPNetwork) -> Against | None:
        """Why the link may not have this address or range; None if it may."""
        single = network.prefixlen == network.max_prefixlen
        shown = str(network.network_address) if single else str(network)
        for address in (network.network_address,) if single else self._holders:
            ifindex, goes = self._holders.get(address, (link.ifindex, False))
            if ifindex != link.ifindex and not goes and address.version == network.version and address in network:
                return Against(f"{shown} of {link.name}: {self._name(ifindex)} has {address}")
        holder, goes = self._holders.get(network.network_address, (None, False)) if single else (None, False)
        if link.ifindex in (holder, self._local.get(network)):
            return None  # it is there already
        if network in self._local and not goes:
            return Against(f"{shown} of {link.name}: table local has it for {self._name(self._local[network])}")
        if self.may_claim(link, network):
            return None
        if _never(network):
            return Against(f"{shown} of {link.name}: no link's address")
        key = f'[Netagent] AllowAddresses="{shown}"'
        why = "neither private nor of a network that the link learned, or of a subnet of a link that is not the cloud's"
        if passes := network.version == 6 and link.ifindex not in self._heard:
            why = "no router has advertised itself there yet, and it is not private"
        return Against(f"{shown} of {link.name}: {why}; to allow it: {key}", passes)

    def _name(self, ifindex: int) -> str:
        return self._names.get(ifindex, f"link {ifindex}")
