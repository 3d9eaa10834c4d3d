"""The specification of a lab: written by a test, resolved once, then only read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice

from .convention import subnet6
from .metadata.providers import PROVIDERS
from .nic import Interface, Nic, neighbour_address, neighbour_address6

__all__ = ["Interface", "Nic", "Resolver", "Spec", "neighbour_address", "neighbour_address6", "resolve"]

BEYOND_SUBNET = IPv4Network("198.51.100.0/24")
BEYOND_SUBNET6 = IPv6Network("2001:db8:ffff::/64")
PUBLIC_SUBNET = IPv4Network("203.0.113.0/24")
FIRST_HOST = 10
"""The first address of an instance in a subnet: clouds reserve the lowest for gateway, resolver and others."""


@dataclass(frozen=True)
class Spec:
    """A whole lab. `sysctl` is set in the instance, in addition to the defaults that `Lab` documents."""

    interfaces: tuple[Interface, ...]
    provider: str = "aws"
    beyond: int = 1
    dhcp_all: bool = False
    sysctl: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings of the provider's metadata server at its start, e.g. {"v1": False}."""

    @classmethod
    def aws(cls, interfaces: int = 4, addresses: int = 15, public: int = 0, **settings: object) -> Spec:
        """Return the usual lab: every interface in a separate subnet, 10.0.1.0/24 and so on."""
        return cls(PROVIDERS["aws"].convention.order(interfaces, addresses, 0, public, 0), settings=settings)

    @classmethod
    def cloud(
        cls,
        name: str,
        interfaces: int = 4,
        addresses: int = 15,
        ipv6: int = 0,
        public: int = 0,
        prefixes: int = 0,
        **settings: object,
    ) -> Spec:
        """Return the same on any cloud, each number for every interface, within the cloud's limits."""
        ordered = PROVIDERS[name].convention.order(interfaces, addresses, ipv6, public, prefixes)
        return cls(ordered, provider=name, settings=settings)


def names(count: int) -> list[str]:
    """Return kernel names by device number, never in that order: a program that relies on the order configures the
    wrong link.

    The first stays eth0, as on every cloud; the others are rotated. Of two, both are swapped.
    """
    if count == 2:
        return ["eth1", "eth0"]
    return ["eth0", *(f"eth{1 + n % (count - 1)}" for n in range(1, count))][:count]


def mac(subnet: str, device: int) -> str:
    """Return a locally administered MAC, the same on every run, in no order."""
    digest = hashlib.sha256(f"{subnet} {device}".encode()).hexdigest()
    return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])


class Resolver:
    """Assigns addresses. A later interface never gets one that was assigned before."""

    def __init__(self, gateway: int = 1) -> None:
        self._gateway = gateway
        self._given: set[str] = set()
        self._public = iter(PUBLIC_SUBNET.hosts())
        self._subnets6: dict[str, str] = {}

    def resolve(self, interface: Interface, device: int, name: str) -> Nic:
        addresses = self._addresses(interface.addresses, IPv4Network(interface.subnet))
        public = interface.public
        if isinstance(public, int):
            public = tuple(str(address) for address in islice(self._public, public))
        six = self._subnet6(interface)
        return Nic(
            device=device,
            name=interface.name or name,
            mac=interface.mac or mac(interface.subnet, device),
            subnet=interface.subnet,
            addresses=addresses,
            public=dict(zip(addresses, public, strict=False)),
            ipv6=self._addresses(interface.ipv6, IPv6Network(six)) if interface.ipv6 else (),
            prefixes=interface.prefixes,
            subnet6=six if interface.ipv6 or any(":" in prefix for prefix in interface.prefixes) else "",
            router=interface.gateway or str(IPv4Network(interface.subnet)[self._gateway]),
            anchor=interface.anchor or "",
        )

    def _addresses(self, wanted: int | tuple[str, ...], network: IPv4Network | IPv6Network) -> tuple[str, ...]:
        found = tuple(islice(self._free(network), wanted)) if isinstance(wanted, int) else wanted
        self._given.update(found)
        return found

    def _free(self, network: IPv4Network | IPv6Network) -> Iterator[str]:
        end = min(network.num_addresses, 1 << 16) - FIRST_HOST
        hosts = (str(network[n]) for n in range(FIRST_HOST, end))
        return (host for host in hosts if host not in self._given)

    def _subnet6(self, interface: Interface) -> str:
        """Return the ordered /64; that of the former address; or the next one, the same for all of a subnet."""
        given = interface.subnet6
        if isinstance(interface.ipv6, tuple) and interface.ipv6:
            given = given or str(IPv6Network((interface.ipv6[0], 64), strict=False))
        return given or self._subnets6.setdefault(interface.subnet, subnet6(0x100 + len(self._subnets6)))


def resolve(spec: Spec, resolver: Resolver) -> list[Nic]:
    order = names(len(spec.interfaces))
    return [resolver.resolve(i, n, order[n]) for n, i in enumerate(spec.interfaces)]


def beyond_address(number: int) -> str:
    return str(IPv4Address(int(BEYOND_SUBNET[FIRST_HOST]) + number))


def beyond_address6(number: int) -> str:
    return str(IPv6Address(int(BEYOND_SUBNET6[FIRST_HOST]) + number))
