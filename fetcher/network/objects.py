"""The kernel's objects as values: `kernel` reads them, `desired` computes them and `plan` compares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

from cloud_network.fetcher.metadata.model import Interface, IPAddress, IPInterface, IPNetwork


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of this host."""

    ifindex: int
    name: str
    mac: str
    up: bool
    mtu: int
    kind: str | None  # rtnetlink's: bridge, veth, vlan …; None for hardware and for what a cloud attaches
    master: int | None = None  # ifindex of its master link: a bond, a bridge, Azure's synthetic interface


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link. `connected`: the kernel adds the connected route of its prefix."""

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
    """A route in a table. It is on link if it has no gateway, and of type local in table 255."""

    table: int
    ifindex: int
    destination: IPNetwork
    gateway: IPAddress | None


@dataclass(frozen=True, slots=True)
class Rule:
    """`from SELECTOR lookup TABLE`, or `to SELECTOR`. Without a selector it matches every packet of its family.

    `local` restricts it to packets that this host sends (`iif lo`), so that forwarded ones do not match.
    """

    priority: int
    version: int  # 4 or 6
    selector: IPNetwork | None
    table: int
    suppress: bool  # suppress_prefixlength 0: ignore a default route found there
    to: bool = False
    local: bool = False


@dataclass(frozen=True, slots=True)
class Actual:
    """The kernel's state, as far as it concerns us."""

    links: tuple[Link, ...]
    addresses: dict[tuple[int, IPAddress], KernelAddress]
    routes: frozenset[Route]  # with our protocol number
    rules: frozenset[Rule]  # with our protocol number
    gateways: dict[int, tuple[IPAddress, ...]]  # of default routes from DHCP or a router, by ifindex
    learned: dict[int, frozenset[IPNetwork]] = field(default_factory=dict)  # on-link routes from DHCP or a router
    # {destination: ifindex} of other programs' routes in table local, without the kernel's own for addresses
    local: dict[IPNetwork, int] = field(default_factory=dict)
    # {(table, destination): protocol} of other programs' routes in numbered tables
    foreign: dict[tuple[int, IPNetwork], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An address in the kernel. `owned`: cloud-network added it."""

    address: Address
    owned: bool


@dataclass(frozen=True, slots=True)
class Rejection:
    """The reason why a link cannot have an address or a range of the metadata."""

    text: str
    transient: bool = False  # True if the only thing missing is a router advertisement, seconds after the link is up


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """The settings of a link: it is up, and has this MTU where the metadata gives one."""

    ifindex: int
    mtu: int | None


@dataclass(frozen=True, slots=True)
class LinkGoal:
    """Everything of ours that one link must hold. No route and no rule is listed twice."""

    settings: LinkSettings
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]  # in the order in which they can be added: on-link ones first
    rules: tuple[Rule, ...]
    ranges: tuple[IPNetwork, ...] = ()  # delegated to the link; it has routes or rules for them
    notices: tuple[str, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything of ours that the kernel must hold."""

    links: tuple[LinkGoal, ...]
    common: tuple[Rule, ...]  # rules that belong to no link
    matches: tuple[tuple[Interface, Link], ...] = ()  # each interface that this host has, completed from DHCP
    unknown_macs: tuple[str, ...] = ()  # interfaces of the metadata that this host does not have
    unmanaged_links: frozenset[int] = frozenset()  # ifindexes of links on which nothing is changed …
    unmanaged_tables: frozenset[int] = frozenset()  # … and their tables
    notices: tuple[str, ...] = ()  # limitations that need no action of ours; they do not degrade the state
    withheld: tuple[str, ...] = ()  # what netagent would refuse and is not asked for, with the key that allows it …
    transient: frozenset[str] = frozenset()  # … and those of them that only wait for a router advertisement

    @property
    def settings(self) -> tuple[LinkSettings, ...]:
        """The settings of all links."""
        return tuple(goal.settings for goal in self.links)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of all links."""
        return tuple(address for goal in self.links for address in goal.addresses)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes of all links."""
        return tuple(route for goal in self.links for route in goal.routes)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of all links, and those that belong to no link."""
        return (*(rule for goal in self.links for rule in goal.rules), *self.common)
