"""The kernel's objects as values: read by `kernel`, computed by `desired`, compared by `plan`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import ip_network

from cloud_network.fetcher.metadata.model import IPAddress, IPNetwork
from cloud_network.netagent.claims import MarkSelector
from cloud_network.netagent.operations import LinkMark

ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
"""Hardware types of links: linux/if_arp.h."""


@dataclass(frozen=True, slots=True)
class IPv6Settings:
    """The sysctls net.ipv6.conf.LINK that decide whether addresses and router advertisements work on a link."""

    disabled: bool = False  # disable_ipv6, or there is no IPv6 on this link
    absent: bool = False  # the link has no such sysctls: its MTU is below 1280, or the kernel runs with ipv6.disable=1
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
    kind: str | None  # rtnetlink's kind: bridge, veth, vlan ...; None for hardware and for what a cloud attaches
    master: int | None = None  # ifindex of the bond, bridge or VRF that the link is a port of
    hardware: int = ARPHRD_ETHER
    ipv6: IPv6Settings = IPv6Settings()
    ready: bool = True  # udev has finished with it

    def may_be_of_cloud(self, allow_kinds: Collection[str]) -> bool:
        """Return True for an Ethernet link without an rtnetlink kind, or of one that AllowKinds= names."""
        return self.hardware == ARPHRD_ETHER and self.kind in (None, *allow_kinds)

    @property
    def is_service_link(self) -> bool:
        """True for links on which load balancers put addresses that this host serves (kube-ipvs0 is a dummy)."""
        return self.hardware == ARPHRD_LOOPBACK or self.kind == "dummy"


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link. With `connected`, the kernel adds the connected route of its prefix."""

    ifindex: int
    address: IPAddress
    prefix: int
    connected: bool

    @property
    def plain(self) -> Address:
        """The address alone, as a /32 or /128."""
        return Address(self.ifindex, self.address, self.address.max_prefixlen, connected=False)

    @property
    def subnet(self) -> tuple[int, IPNetwork]:
        """The link, and the network that the prefix length gives the address."""
        return self.ifindex, ip_network((self.address, self.prefix), strict=False)


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An address as the kernel has it."""

    address: Address
    owned: bool
    secondary: bool = False  # IPv4: the kernel removes it with the first address of its network (IFA_F_SECONDARY)

    @property
    def place(self) -> tuple[int, IPAddress]:
        """The link and the address."""
        return self.address.ifindex, self.address.address


@dataclass(frozen=True, slots=True)
class Route:
    """A route in a table: on link without a gateway; of type local in table 255."""

    table: int
    ifindex: int
    destination: IPNetwork
    gateway: IPAddress | None


@dataclass(frozen=True, slots=True)
class Rule:
    """`from SELECTOR lookup TABLE`, or `to SELECTOR`; without a selector, the rule matches its whole family.

    `iif_lo`: match only packets that this host itself sends, not forwarded ones. Rules for a prefix that
    contains addresses have it.
    """

    priority: int
    version: int  # 4 or 6
    selector: IPNetwork | None
    table: int
    suppress: bool  # suppress_prefixlength 0: ignore default routes of the table
    to: bool = False
    iif_lo: bool = False
    mark: int = 0  # fwmark MARK/MASK; 0/0: any mark
    mask: int = 0


class ReversePath(Enum):
    """The reverse path filter (rp_filter) of a link, for packets whose reverse path is selected by mark."""

    LOOSE = "loose"  # or off
    BY_MARK = "by mark"  # strict, with src_valid_mark=1: the reverse path is looked up with the packet's mark
    DROPS = "drops"  # strict


@dataclass(frozen=True, slots=True)
class Actual:
    """The relevant part of the kernel's state."""

    links: tuple[Link, ...]
    addresses: Mapping[tuple[int, IPAddress], KernelAddress]  # a foreign address takes precedence over an owned one
    routes: frozenset[Route]  # with protocol 209
    rules: frozenset[Rule]  # with protocol 209
    gateways: Mapping[int, tuple[IPAddress, ...]]  # of default routes from DHCP or a router, by ifindex
    local: Mapping[IPNetwork, int] = field(default_factory=dict)  # others' ranges in table local, with their link
    routers: Mapping[int, tuple[IPAddress, ...]] = field(default_factory=dict)  # IPv6 neighbours with NTF_ROUTER
    marks: tuple[LinkMark, ...] | None = None  # of netagent's nftables table; None: netagent manages none
    marks_of_others: frozenset[MarkSelector] = frozenset()  # of the rules of other programs
    reverse_path: Mapping[int, ReversePath] = field(default_factory=dict)  # of links for which it matters
    leased: Mapping[int, Mapping[IPNetwork, IPAddress]] = field(default_factory=dict)  # their further routes in main
    static: frozenset[IPNetwork] = frozenset()  # destinations of an operator's routes in main, if `leased` is not empty
    further: tuple[KernelAddress, ...] = ()  # duplicates on the same link, with another prefix length

    @property
    def configured_macs(self) -> frozenset[str]:
        """The MACs of links with owned addresses or routes."""
        configured = {ifindex for (ifindex, _), address in self.addresses.items() if address.owned}
        configured |= {route.ifindex for route in self.routes}
        return frozenset(link.mac for link in self.links if link.ifindex in configured)

    def with_owned(self, owned: Collection[tuple[int, IPAddress]]) -> Actual:
        """Return this with the addresses at these places as owned: kernels before 5.18 do not mark them."""
        if not owned:
            return self
        addresses = {place: replace(each, owned=each.owned or place in owned) for place, each in self.addresses.items()}
        further = tuple(replace(each, owned=each.owned or each.place in owned) for each in self.further)
        return replace(self, addresses=addresses, further=further)

    def entries(self, place: tuple[int, IPAddress]) -> list[KernelAddress]:
        """Return the entries of an address on a link: seldom more than one, with different prefix lengths."""
        first = self.addresses.get(place)
        if first is None:
            return []
        return [first, *(each for each in self.further if each.place == place)]


@dataclass(frozen=True, slots=True)
class HeldLink:
    """A link on hold, because a change of it broke something."""

    reason: str
    seconds_left: float


class Cause(Enum):
    """The reason why an object is left out."""

    POLICY = "policy"  # netagent refuses it
    WAITING = "waiting"  # netagent refuses it until an IPv6 router advertisement arrives
    KERNEL = "kernel"  # the kernel refused it
    GATEWAY = "gateway"  # a new gateway does not resolve
    ROLLED_BACK = "rolled back"  # a new gateway does not resolve, so its routes were removed again
    CONFLICT = "conflict"  # another program keeps reverting it


@dataclass(frozen=True, slots=True)
class Rejection:
    """A reason, as text for the operator, why an object cannot be made."""

    reason: str
    cause: Cause = Cause.POLICY
    dependent: bool = False  # follows from another rejection, which is reported


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """A link is up, and has this MTU if the metadata gives one."""

    ifindex: int
    mtu: int | None


@dataclass(frozen=True, slots=True)
class GatewayUse:
    """A gateway on a link."""

    ifindex: int
    address: IPAddress


@dataclass(frozen=True, slots=True)
class MarkTable:
    """netagent's nftables table as an object, independent of its marks."""


Object = LinkSettings | Address | Route | Rule | GatewayUse | MarkTable
"""An object that can be rejected."""
Rejections = Mapping[Object, Rejection]


@dataclass(frozen=True, slots=True)
class LinkGoal:
    """The desired state of one link. Routes are in an order in which they can be added."""

    settings: LinkSettings
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Withheld:
    """A part of the metadata that is not configured."""

    text: str  # object, reason, and the key to set
    transient: bool = False  # will most likely disappear within seconds without action


@dataclass(frozen=True, slots=True)
class Desired:
    """All objects that the kernel must hold."""

    links: tuple[LinkGoal, ...]
    common: tuple[Rule, ...]  # rules that belong to no link
    unknown_macs: Mapping[str, str]  # named by the metadata, without a link on this host, and the reason
    unmanaged: frozenset[int] = frozenset()  # ifindexes of links that are not changed ...
    unmanaged_tables: frozenset[int] = frozenset()  # ... and their tables
    notices: tuple[str, ...] = ()  # unusual facts that need no action
    withheld: tuple[Withheld, ...] = ()
    marks: tuple[LinkMark, ...] | None = None  # of netagent's nftables table; None: the table is not changed
    marks_in_use: tuple[LinkMark, ...] = ()  # that rules use until they are removed

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
