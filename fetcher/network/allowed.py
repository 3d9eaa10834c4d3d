"""What netagent will not refuse, so that one address that it would refuse does not stop the others.

netagent refuses a request whole. It decides by netagent/policy.py and asks the kernel itself; this is the same
judgement of the same facts, made before and only to leave things out: it allows nothing. A test holds the two together.
"""

from __future__ import annotations

from functools import cached_property
from ipaddress import ip_network

from cloud_network.fetcher.config import PRIVATE, Config
from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.fetcher.network.intervals import NO_LINK, Interval
from cloud_network.fetcher.network.objects import Actual, Link, Rejection

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
_HELD_BY_NONE = (NO_LINK, False)
_NEVER, _PRIVATE = [Interval.of_network(each) for each in NEVER], [Interval.of_network(each) for each in PRIVATE]


def within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Whether every address of `inner` is one of `outer`."""
    return inner.version == outer.version and inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def _is_global6(network: IPNetwork) -> bool:
    """The kernel has fe80::/64 on every link, whoever is there."""
    return network.version == 6 and not network.is_link_local


class Allowed:
    """What the operator and the kernel allow on this host."""

    def __init__(self, config: Config, actual: Actual, left: frozenset[int]) -> None:
        self._allow = [Interval.of_network(each) for each in config.allow_addresses[len(PRIVATE) :]]
        clouds = (None, *config.allow_kinds)
        others = {link.ifindex for link in actual.links if link.kind not in clouds}  # a container bridge, a VPN …
        self._rivals = list[Interval]()  # … whose subnets are not the cloud's to give addresses of
        self._learned = {index: [Interval.of_network(each) for each in nets] for index, nets in actual.learned.items()}
        self._subnets = {index: list(spans) for index, spans in self._learned.items()}
        self._holders: dict[IPAddress, tuple[int, bool]] = {}  # by which link, and whether it will be taken from it
        self._local = actual.local
        self._heard = {  # where a router has advertised itself: a network, or the way out
            *(index for index, networks in actual.learned.items() if any(_is_global6(net) for net in networks)),
            *(index for index, gateways in actual.gateways.items() if any(each.version == 6 for each in gateways)),
        }
        self._ours, self._base = actual.routes, config.route_table_base
        self._names = {link.ifindex: link.name for link in actual.links}
        for (ifindex, address), kernel in actual.addresses.items():
            owned, prefix = kernel.owned, kernel.address.prefix
            self._holders[address] = (ifindex, owned and ifindex not in left)
            if prefix < address.max_prefixlen:
                span = Interval.around(address, prefix, ifindex)
                self._subnets.setdefault(ifindex, []).append(span)
                if not owned:
                    self._learned.setdefault(ifindex, []).append(span)
                    if ifindex in others:
                        self._rivals.append(span)

    def may_claim(self, link: Link, network: IPNetwork) -> bool:
        """Whether the link may have all of `network`."""
        return network.prefixlen >= _SHORTEST[network.version] and self._may_claim(link, Interval.of_network(network))

    def _may_claim(self, link: Link, span: Interval) -> bool:
        if any(each.overlaps(span) for each in _NEVER):
            return False
        if any(each.contains(span) for each in (*self._allow, *self._learned.get(link.ifindex, ()))):
            return True
        return any(each.contains(span) for each in _PRIVATE) and not any(each.overlaps(span) for each in self._rivals)

    def is_on(self, link: Link, network: IPNetwork) -> bool:
        """Whether `network` is a part of a subnet that the kernel has on the link, in its table, or may become one."""
        single, span = network.prefixlen == network.max_prefixlen, Interval.of_network(network)
        return (
            self.may_claim(link, network)
            or (single and self._holders.get(network.network_address, _HELD_BY_NONE)[0] == link.ifindex)
            or any(each.contains(span) for each in self._subnets.get(link.ifindex, ()))
            or (self._base + link.ifindex, network) in self._places
        )

    def rejection(self, link: Link, address: IPAddress, *, free: bool = False) -> Rejection | None:
        """Why the link may not have this address; None if it may. `free`: it may claim all of the address's subnet."""
        ifindex, goes = self._holders.get(address, _HELD_BY_NONE)
        if ifindex == link.ifindex:
            return None  # it is there already
        if ifindex and not goes:
            return Rejection(f"{address} of {link.name}: {self._name(ifindex)} has {address}")
        local = self._local_addresses.get(address)
        if local == link.ifindex:
            return None
        if local is not None and not goes:
            return Rejection(f"{address} of {link.name}: table local has it for {self._name(local)}")
        span = Interval.of_address(address)
        return None if free or self._may_claim(link, span) else self._why(link, span, str(address))

    def range_rejection(self, link: Link, network: IPNetwork) -> Rejection | None:
        """Why the link may not have this range; None if it may."""
        if network.prefixlen == network.max_prefixlen:
            return self.rejection(link, network.network_address)
        span = Interval.of_network(network)
        for address, (ifindex, goes) in self._holders.items():
            if ifindex != link.ifindex and not goes and span.contains(Interval.of_address(address)):
                return Rejection(f"{network} of {link.name}: {self._name(ifindex)} has {address}")
        if self._local.get(network) == link.ifindex:
            return None  # it is there already
        if network in self._local:
            return Rejection(f"{network} of {link.name}: table local has it for {self._name(self._local[network])}")
        return None if self.may_claim(link, network) else self._why(link, span, str(network))

    @cached_property
    def _local_addresses(self) -> dict[IPAddress, int]:
        """What others have in table local for one address alone. Asked of what no link has."""
        alone = (each for each in self._local.items() if each[0].prefixlen == each[0].max_prefixlen)
        return {network.network_address: ifindex for network, ifindex in alone}

    @cached_property
    def _places(self) -> set[tuple[int, IPNetwork]]:
        """Where routes of ours are."""
        return {(route.table, route.destination) for route in self._ours}

    def _why(self, link: Link, span: Interval, shown: str) -> Rejection:
        if any(each.overlaps(span) for each in _NEVER):
            return Rejection(f"{shown} of {link.name}: no link's address")
        key = f'[Netagent] AllowAddresses="{shown}"'
        why = "neither private nor of a network that the link learned, or of a subnet of a link that is not the cloud's"
        if passes := span.version == 6 and link.ifindex not in self._heard:
            why = "no router has advertised itself there yet, and it is not private"
        return Rejection(f"{shown} of {link.name}: {why}; to allow it: {key}", passes)

    def _name(self, ifindex: int) -> str:
        return self._names.get(ifindex, f"link {ifindex}")
