"""What a lab is made of: written by a test, resolved once, then only read.

`Interface` and `Spec` say what somebody wants; `Nic` is what the lab made of it (MAC, kernel name, addresses).
The same `Nic` goes to the cloud's filter and to the metadata server, so that the two cannot disagree by accident.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from itertools import islice

METADATA_ADDRESS = "169.254.169.254"
BEYOND_SUBNET = IPv4Network("198.51.100.0/24")
PUBLIC_SUBNET = IPv4Network("203.0.113.0/24")
FIRST_HOST = 10
"""The first address an instance gets in a subnet: clouds keep the lowest for gateway, resolver and themselves."""


@dataclass(frozen=True)
class Interface:
    """One interface as a user would order it.

    `addresses` is a number or the private addresses themselves, the primary one first. `public` is the number of
    them (from the first) that have a public address, or those public addresses. `prefixes` are delegated blocks.
    """

    subnet: str
    addresses: int | tuple[str, ...] = 1
    public: int | tuple[str, ...] = 0
    ipv6: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    name: str | None = None
    mac: str | None = None


@dataclass(frozen=True)
class Spec:
    """A whole lab. `sysctl` is set in the instance, over the defaults that `Lab` documents."""

    interfaces: tuple[Interface, ...]
    provider: str = "aws"
    beyond: int = 1
    dhcp_all: bool = False
    sysctl: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    """What the provider's metadata server is told at its start, e.g. {"v1": False}."""

    @classmethod
    def aws(cls, interfaces: int = 4, addresses: int = 15, public: int = 0, **settings: object) -> Spec:
        """The usual lab: every interface in a subnet of its own, 10.0.1.0/24 and so on."""
        each = (Interface(f"10.0.{n}.0/24", addresses, public) for n in range(1, interfaces + 1))
        return cls(tuple(each), settings=settings)


@dataclass(frozen=True)
class Nic:
    """One interface as it is: plain strings, so that it travels to the metadata server as JSON."""

    device: int
    name: str
    mac: str
    subnet: str
    addresses: tuple[str, ...]
    public: Mapping[str, str]
    ipv6: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    @property
    def network(self) -> IPv4Network:
        return IPv4Network(self.subnet)

    @property
    def gateway(self) -> str:
        return gateway(self.subnet)

    @property
    def port(self) -> str:
        """The cloud's end of the cable."""
        return f"vm{self.device}"

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Nic:
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**tuples)  # type: ignore[arg-type]  # the other end is `asdict(nic)`


def gateway(subnet: str) -> str:
    """AWS's and Azure's convention: the first address after the subnet's own."""
    return str(IPv4Network(subnet)[1])


def neighbour_address(subnet: str) -> str:
    """Another host in the subnet, well above the instance's addresses."""
    return str(IPv4Network(subnet)[-6])


def names(count: int) -> list[str]:
    """Kernel names by device number, never in that order: who goes by order configures the wrong link.

    The first stays eth0, as on every cloud; the others are rotated. Of two, both change places.
    """
    if count == 2:
        return ["eth1", "eth0"]
    return ["eth0", *(f"eth{1 + n % (count - 1)}" for n in range(1, count))][:count]


def mac(subnet: str, device: int) -> str:
    """Locally administered, the same on every run, in no order."""
    digest = hashlib.sha256(f"{subnet} {device}".encode()).hexdigest()
    return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])


class Resolver:
    """Gives out addresses, so that a later interface never gets one that was given before."""

    def __init__(self) -> None:
        self._private: set[str] = set()
        self._public = iter(PUBLIC_SUBNET.hosts())

    def resolve(self, interface: Interface, device: int, name: str) -> Nic:
        addresses = interface.addresses
        if isinstance(addresses, int):
            addresses = tuple(islice(self._free(interface.subnet), addresses))
        self._private.update(addresses)
        public = interface.public
        if isinstance(public, int):
            public = tuple(str(address) for address in islice(self._public, public))
        return Nic(
            device=device,
            name=interface.name or name,
            mac=interface.mac or mac(interface.subnet, device),
            subnet=interface.subnet,
            addresses=addresses,
            public=dict(zip(addresses, public, strict=False)),
            ipv6=interface.ipv6,
            prefixes=interface.prefixes,
        )

    def _free(self, subnet: str) -> Sequence[str]:
        network = IPv4Network(subnet)
        hosts = (str(network[n]) for n in range(FIRST_HOST, network.num_addresses - FIRST_HOST))
        return [host for host in hosts if host not in self._private]


def resolve(spec: Spec, resolver: Resolver) -> list[Nic]:
    order = names(len(spec.interfaces))
    return [resolver.resolve(i, n, order[n]) for n, i in enumerate(spec.interfaces)]


def beyond_address(number: int) -> str:
    return str(IPv4Address(int(BEYOND_SUBNET[FIRST_HOST]) + number))
