"""The kernel's objects as values: what `kernel` reads, `desired` wants and `plan` compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

from cloud_network.fetcher.metadata.model import IPAddress, IPInterface, IPNetwork


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of this host."""

    ifindex: int
    name: str
    mac: str
    up: bool
    mtu: int
    kind: str | None  # rtnetlink's: bridge, veth, vlan …; None for hardware and for what a cloud attaches
    master: int | None = None  # ifindex of the link that it is a part of: a bond, a bridge, Azure's synthetic interface


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link. `connected`: the kernel shall make the connected route of its prefix."""

    ifindex: int
    address: IPAddress
    prefix: int
    connected: bool

    @property
    def interface(self) -> IPInterface:
        """The address with its prefix length."""
        if isinstance(self.address, IPv4Address):
            return IPv4Interface((self.address, self.prefix))
        return IPv6Interface((self.address, self.prefix))


@dataclass(frozen=True, slots=True)
class Route:
    """A route in a table; on link when there is no gateway, of type local in table 255."""

    table: int
    ifindex: int
    destination: IPNetwork
    gateway: IPAddress | None


@dataclass(frozen=True, slots=True)
class Rule:
    """`from SELECTOR lookup TABLE`, or `to SELECTOR`; without a selector it matches everything of its family.

    `local`: only what this host itself sends (`iif lo`), not what it forwards. A prefix around addresses has it.
    """

    priority: int
    version: int  # 4 or 6
    selector: IPNetwork | None
    table: int
    suppress: bool  # suppress_prefixlength 0: a default route found there does not count
    to: bool = False
    local: bool = False


@dataclass(frozen=True, slots=True)
class Actual:
    """What the kernel holds now, as far as it concerns us."""

    links: tuple[Link, ...]
    addresses: dict[tuple[int, IPAddress], KernelAddress]
    routes: frozenset[Route]  # with our protocol number
    rules: frozenset[Rule]  # with our protocol number
    gateways: dict[int, tuple[IPAddress, ...]]  # of default routes that DHCP or a router set, by ifindex
    learned: dict[int, frozenset[IPNetwork]] = field(default_factory=dict)  # on-link routes that DHCP or a router set
    local: dict[IPNetwork, int] = field(
        default_factory=dict
    )  # what others have in table local, and on which link; but for what the kernel has there for an address
    foreign: dict[tuple[int, IPNetwork], int] = field(
        default_factory=dict
    )  # others' routes in tables of numbers: protocol


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An address as the kernel has it."""

    address: Address
    owned: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """How a link shall be: up, and with this MTU where the metadata gives one."""

    ifindex: int
    mtu: int | None


@dataclass(frozen=True, slots=True)
class OfLink:
    """Everything of ours that one link shall have. Routes and rules are sets that have an order."""

    wish: Wish
    addresses: tuple[Address, ...]
    routes: dict[Route, None]  # in the order in which they can be added: on-link ones first
    rules: dict[Rule, None]


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything of ours that the kernel shall hold."""

    links: tuple[OfLink, ...]
    common: tuple[Rule, ...]  # rules that are no link's
    unknown_macs: tuple[str, ...]  # named by the metadata, and no link here has them
    left_links: frozenset[int] = frozenset()  # ifindexes of links that are left as they are …
    left_tables: frozenset[int] = frozenset()  # … and their tables
    notices: tuple[str, ...] = ()  # what is not as people may expect, and no mistake: named, and nothing waits for it
    withheld: tuple[str, ...] = ()  # what netagent would refuse, and so is not asked of it: each with the key to set …
    passing: frozenset[str] = frozenset()  # … and of these, what lacks nothing but a router's advertisement

    @property
    def wishes(self) -> tuple[Wish, ...]:
        """Of all links."""
        return tuple(each.wish for each in self.links)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Of all links."""
        return tuple(address for each in self.links for address in each.addresses)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Of all links."""
        return tuple(route for each in self.links for route in each.routes)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Of all links, and those that are no link's."""
        return (*(rule for each in self.links for rule in each.rules), *self.common)
