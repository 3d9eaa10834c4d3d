"""One interface: as ordered (`Interface`), and as made by the lab (`Nic`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network


@dataclass(frozen=True)
class Interface:
    """One interface as a user orders it.

    `addresses` is a number or the private addresses themselves, the primary one first; `ipv6` likewise. `public` is the
    number of them (from the first) that have a public address, or those public addresses. `prefixes` are delegated
    blocks or alias ranges. `subnet6` is the subnet's /64; by default the one that the lab gives it or that of the first
    address. `gateway` is the router's address if it differs from the convention's, possibly outside the subnet.
    `anchor` is DigitalOcean's: a further address in a separate subnet, with its length.
    """

    subnet: str
    addresses: int | tuple[str, ...] = 1
    public: int | tuple[str, ...] = 0
    ipv6: int | tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    name: str | None = None
    mac: str | None = None
    subnet6: str | None = None
    gateway: str | None = None
    anchor: str | None = None


@dataclass(frozen=True)
class Nic:
    """One interface of the lab: plain strings, so that it can be sent to the metadata server as JSON.

    The cloud's filter and the metadata use the same value, so that they cannot disagree by accident.
    """

    device: int
    name: str
    mac: str
    subnet: str
    addresses: tuple[str, ...]
    public: Mapping[str, str]
    ipv6: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    subnet6: str = ""
    router: str = ""
    anchor: str = ""

    @property
    def network(self) -> IPv4Network:
        return IPv4Network(self.subnet)

    @property
    def network6(self) -> IPv6Network | None:
        return IPv6Network(self.subnet6) if self.subnet6 else None

    @property
    def gateway(self) -> str:
        return self.router or str(self.network[1])

    @property
    def port(self) -> str:
        """The cloud's end of the cable."""
        return f"vm{self.device}"

    @property
    def all_addresses(self) -> tuple[str, ...]:
        """Return its addresses of both families, and the anchor address."""
        return (*self.addresses, *self.ipv6, *([self.anchor.partition("/")[0]] if self.anchor else []))

    @property
    def ranges4(self) -> list[str]:
        return [prefix for prefix in self.prefixes if ":" not in prefix]

    @property
    def ranges6(self) -> list[str]:
        return [prefix for prefix in self.prefixes if ":" in prefix]

    @property
    def range_ends(self) -> Iterator[str]:
        """Yield the first and the last address of every range: no range is tested as a whole."""
        for prefix in self.prefixes:
            network = ip_network(prefix)
            yield from dict.fromkeys((str(network[0]), str(network[-1])))

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Nic:
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**tuples)  # type: ignore[arg-type]  # the sender uses `asdict(nic)`


def neighbour_address(subnet: str) -> str:
    """Return the address of another host in the subnet, well above the instance's addresses."""
    return str(IPv4Network(subnet)[-6])


def neighbour_address6(subnet6: str) -> str:
    return str(IPv6Network(subnet6)[0xFFFA])
