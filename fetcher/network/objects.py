"""The kernel's objects as values: what `kernel` reads, `desired` wants and `plan` compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.netagent.operations import LinkMark

ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
"""Hardware types of links: linux/if_arp.h."""


@dataclass(frozen=True, slots=True)
class IPv6Settings:
    """The sysctls net.ipv6.conf.LINK that decide if addresses and router advertisements work on a link."""

    disabled: bool = False  # disable_ipv6
    forwarding: bool = False
    accept_ra: int = 1  # 0: never, 1: unless forwarding, 2: always


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of this host."""

    ifindex: int
    name: str
    mac: str
    up: bool
    mtu: int
    kind: str | None  # rtnetlink's: bridge, veth, vlan ...; None for hardware and for what a cloud attaches
    master: int | None = None  # ifindex of the bond, bridge or VRF that it is a port of
    hardware: int = ARPHRD_ETHER
    ipv6: IPv6Settings = IPv6Settings()
    ready: bool = True  # udev has finished with it


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link. With `connected`, the kernel makes the connected route of its prefix."""

    ifindex: int
    address: IPAddress
    prefix: int
    connected: bool

    @property
    def plain(self) -> Address:
        """The address alone, as a /32 or /128."""
        return Address(self.ifindex, self.address, self.address.max_prefixlen, connected=False)


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An address as the kernel has it."""

    address: Address
    owned: bool

    @property
    def place(self) -> tuple[int, IPAddress]:
        """The link and the address."""
        return self.address.ifindex, self.address.address


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
    suppress: bool  # suppress_prefixlength 0: ignore default routes of the table
    to: bool = False
    local: bool = False
    mark: int = 0  # fwmark MARK/MASK; 0/0: whatever the mark
    mask: int = 0


class ReversePath(Enum):
    """The reverse path filter (rp_filter) of a link, for packets whose way back is decided by a mark."""

    LOOSE = "loose"  # or off
    BY_MARK = "by mark"  # strict, with src_valid_mark=1: it looks for the way back with the packet's mark
    DROPS = "drops"  # strict


@dataclass(frozen=True, slots=True)
class Actual:
    """What the kernel holds now, as far as it concerns us."""

    links: tuple[Link, ...]
    addresses: Mapping[tuple[int, IPAddress], KernelAddress]  # one of others before one of ours
    routes: frozenset[Route]  # with our protocol number
    rules: frozenset[Rule]  # with our protocol number
    gateways: Mapping[int, tuple[IPAddress, ...]]  # of default routes from DHCP or a router, by ifindex
    learned: Mapping[int, frozenset[IPNetwork]] = field(default_factory=dict)  # on-link routes from DHCP or a router
    local: Mapping[IPNetwork, int] = field(default_factory=dict)  # others' ranges in table local, with their link
    routers: Mapping[int, tuple[IPAddress, ...]] = field(default_factory=dict)  # IPv6 neighbours with NTF_ROUTER
    marks: tuple[LinkMark, ...] | None = None  # of netagent's nftables table, as netagent says; None: it has none
    reverse_path: Mapping[int, ReversePath] = field(default_factory=dict)  # of links, where they matter
    leased: Mapping[int, Mapping[IPNetwork, IPAddress]] = field(default_factory=dict)  # main's further routes of these
    static: frozenset[IPNetwork] = frozenset()  # destinations that an operator routes in main, if there are leased ones
    further: tuple[KernelAddress, ...] = ()  # the same address on the same link once more, with another prefix length

    def entries(self, place: tuple[int, IPAddress]) -> list[KernelAddress]:
        """Return an address as its link has it: seldom more than once, with several prefix lengths."""
        first = self.addresses.get(place)
        if first is None:
            return []
        return [first, *(each for each in self.further if each.place == place)]


class Cause(Enum):
    """The reason why an object is left out."""

    POLICY = "policy"  # netagent refuses it
    WAITING = "waiting"  # netagent refuses it until an IPv6 router has advertised itself
    KERNEL = "kernel"  # the kernel refused it
    GATEWAY = "gateway"  # a new gateway does not resolve
    CONFLICT = "conflict"  # another program reverts it again and again


@dataclass(frozen=True, slots=True)
class Rejection:
    """A reason, for the operator, why an object cannot be made."""

    reason: str
    cause: Cause = Cause.POLICY
    dependent: bool = False  # it follows from another rejection, which is reported


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """A link is up, and has this MTU where the metadata gives one."""

    ifindex: int
    mtu: int | None


@dataclass(frozen=True, slots=True)
class GatewayUse:
    """A gateway on a link."""

    ifindex: int
    address: IPAddress


@dataclass(frozen=True, slots=True)
class MarkTable:
    """netagent's nftables table, whatever its marks."""


Object = LinkSettings | Address | Route | Rule | GatewayUse | MarkTable
"""What can be rejected."""
Rejections = Mapping[Object, Rejection]


@dataclass(frozen=True, slots=True)
class LinkGoal:
    """What the kernel must hold for one link. Routes are in an order in which they can be added."""

    settings: LinkSettings
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Withheld:
    """Something that the metadata name and that is not configured."""

    text: str  # object, reason, and the key to set
    transient: bool = False  # it will most likely pass by itself, within seconds


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything of ours that the kernel must hold."""

    links: tuple[LinkGoal, ...]
    common: tuple[Rule, ...]  # rules that belong to no link
    unknown_macs: Mapping[str, str]  # named by the metadata, without a link here: the reason
    unmanaged: frozenset[int] = frozenset()  # ifindexes of links that stay as they are ...
    unmanaged_tables: frozenset[int] = frozenset()  # ... and their tables
    notices: tuple[str, ...] = ()  # facts that may surprise and need no action
    withheld: tuple[Withheld, ...] = ()
    marks: tuple[LinkMark, ...] | None = None  # of netagent's nftables table; None: not ours to change
    marks_in_use: tuple[LinkMark, ...] = ()  # that rules need until they are removed

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Addresses of all links."""
        return tuple(address for goal in self.links for address in goal.addresses)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Routes of all links."""
        return tuple(route for goal in self.links for route in goal.routes)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Rules that belong to no link, which others need, and those of all links."""
        return (*self.common, *(rule for goal in self.links for rule in goal.rules))
