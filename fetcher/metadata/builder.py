"""Builders of interfaces, filled part by part from a cloud's document.

An invalid part is reported by its path and left out; the other parts of the interface and all other interfaces are
built. An `InterfaceBuilder` collects one interface, an `InstanceBuilder` all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network
from typing import Any

from cloud_network.fetcher.metadata.document import Node
from cloud_network.fetcher.metadata.model import (
    MAX_ADDRESSES,
    MAX_INTERFACES,
    Instance,
    Interface,
    IPAddress,
    IPInterface,
    IPNetwork,
    MetadataError,
    Problem,
    Vlan,
    host,
    invalid,
    parse_network,
    with_prefix_length,
)

_MTU_RANGE = (576, 65535)  # bytes; netagent accepts the same
_MAX_SUBNETS = 256  # of one interface
_MAX_REPORTED = 8  # problems per interface


class UnsupportedError(MetadataError):
    """A part is valid but of a kind that is not configured: reported as a notice, not as a Problem."""

    def __init__(self, text: str) -> None:
        super().__init__("unsupported", text)


@dataclass(slots=True)
class InterfaceBuilder:
    """Collects the parts of the interface with this MAC. Add subnets first and gateways last.

    `path` names the interface in errors. Wrap each part in `with builder.part():`, so that an invalid one is reported
    and the next part is still read.
    """

    mac: str
    path: str
    addresses: dict[IPAddress, IPInterface] = field(default_factory=dict)
    subnets: dict[IPNetwork, None] = field(default_factory=dict)
    gateways: list[IPAddress] = field(default_factory=list)
    anchor: tuple[IPNetwork, IPAddress] | None = None  # a subnet with a gateway of its own
    routes: list[tuple[IPNetwork, IPAddress]] = field(default_factory=list)
    ranges: dict[IPNetwork, None] = field(default_factory=dict)
    public: list[IPAddress] = field(default_factory=list)
    mtu: int | None = None
    number: int | None = None
    network_card: int = 0
    routed: bool = False
    dhcp: bool = False  # the cloud may leave all addresses of this interface to DHCP
    vlan: Vlan | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def expect(self, node: Node, *keys: str) -> None:
        """Record which of these keys, which the cloud always gives, are missing or empty: absence proves nothing."""
        self.missing += [f"{path}: missing" for path in node.lacks(*keys)]

    def expect_entries(self, node: Node, *keys: str) -> None:
        """Record the keys that are missing or have no entry, although the cloud always gives at least one."""
        self.missing += [f"{path}: missing or empty" for path in node.lacks(*keys, or_empty=True)]

    def expect_no_null(self, node: Node, *keys: str) -> None:
        """Record the keys that are null, although the cloud omits what an interface does not have."""
        self.missing += [f"{path}: null" for path in node.nulls(*keys)]

    @contextmanager
    def part(self) -> Iterator[None]:
        """Report an error in one part of the interface; the code after the block continues with the next part."""
        try:
            yield
        except UnsupportedError as notice:
            self.notices.append(str(notice))
        except MetadataError as error:
            self.problems.append(str(error))

    def add_subnet(self, network: IPNetwork) -> None:
        """Add a subnet of the interface."""
        if network not in self.subnets and len(self.subnets) >= _MAX_SUBNETS:
            raise MetadataError("invalid", f"{self.path}: more than {_MAX_SUBNETS} subnets")
        self.subnets[network] = None

    def add_address(self, node: Node, version: int | None = None, length: int | None = None) -> None:
        """Add a private address with the prefix length of its subnet, computed from `length` if given.

        An address without a known subnet of its IP version gets the full length (/32 or /128).
        """
        address = node.address(version)
        if address.is_link_local:
            raise invalid(node.path, str(address), "a routable address: it is link-local")
        if len(self.addresses) >= MAX_ADDRESSES and address not in self.addresses:
            raise MetadataError("invalid", f"{self.path}: more than {MAX_ADDRESSES} addresses")
        if length is not None:
            subnets: tuple[IPNetwork, ...] = (self._subnet_of(node, address, length),)
        else:
            subnets = tuple(subnet for subnet in self.subnets if subnet.version == address.version) or (host(address),)
        self.addresses.setdefault(address, with_prefix_length(node.path, address, subnets))

    def _subnet_of(self, node: Node, address: IPAddress, length: int) -> IPNetwork:
        """Return the subnet of an address with this prefix length; the address alone if the length is too short for a
        subnet.

        DigitalOcean and others give a /24 for IPv6 instead of a /64: the address is usable, the subnet is not.
        """
        try:
            subnet = parse_network(node.path, f"{address}/{length}")
        except MetadataError as error:
            self.problems.append(str(error))
            return host(address)
        if length < address.max_prefixlen:
            self.add_subnet(subnet)
        return subnet

    def add_range(self, node: Node, network: IPNetwork) -> None:
        """Add a delegated block, which must be inside a subnet of the interface if any is known."""
        subnets = [subnet for subnet in self.subnets if subnet.version == network.version]
        if subnets and not any(_is_within(network, subnet) for subnet in subnets):
            raise invalid(node.path, str(network), "inside a subnet of its interface")
        self.add_forwarded(network)

    def add_forwarded(self, network: IPNetwork) -> None:
        """Add a block or address that the cloud forwards to the interface, inside or outside its subnets."""
        if len(self.ranges) >= MAX_ADDRESSES and network not in self.ranges:
            raise MetadataError("invalid", f"{self.path}: more than {MAX_ADDRESSES} ranges")
        self.ranges[network] = None

    def add_gateway(self, node: Node | None, version: int) -> None:
        """Add the gateway of an IP version; the first is used. One outside the subnets is reached by a host route."""
        if node is None or any(known.version == version for known in self.gateways):
            return
        gateway = _without_zone(node).address(version)
        self.gateways.append(gateway)

    def add_first_as_gateway(self) -> None:
        """Add the first address of every IPv4 subnet as gateway, for clouds that document it as the router."""
        for subnet in self.subnets:
            if isinstance(subnet.network_address, IPv4Address) and subnet.prefixlen < 31:
                self.gateways.append(subnet.network_address + 1)

    def add_route(self, node: Node, length: int, gateway: Node) -> None:
        """Add a network with its own gateway."""
        try:
            network = ip_network(f"{node.text()}/{length}", strict=False)
        except ValueError:
            raise invalid(node.path, node.value, "the destination of a route") from None
        self.routes.append((network, _without_zone(gateway).address(network.version)))

    def set_mtu(self, node: Node | None) -> None:
        """Set the MTU, if the cloud gives one: 0 and an empty text mean none."""
        if node is not None and node.value not in (0, "0", ""):
            self.mtu = node.number(*_MTU_RANGE)

    def build(self) -> Interface | None:
        """Return the interface, or None if no part of it is usable. An address equal to its gateway is left out."""
        for gateway in self.gateways:
            if gateway in self.addresses:
                self.problems.append(f"{self.path}: {gateway} is both an address of the interface and its gateway")
                del self.addresses[gateway]
        if self.problems and not (self.addresses or self.ranges or self.dhcp):
            return None
        own = {host(address) for address in self.addresses}
        return Interface(
            mac=self.mac,
            addresses=tuple(self.addresses.values()),
            subnets=tuple(self.subnets),
            gateways=tuple(dict.fromkeys(self.gateways)),
            anchor=self.anchor,
            device_number=self.number,
            network_card=self.network_card,
            routed=self.routed,
            routes=tuple(dict.fromkeys(self.routes)),
            ranges=tuple(network for network in self.ranges if network not in own),
            public=tuple(dict.fromkeys(self.public)),
            mtu=self.mtu,
            dhcp=self.dhcp and not self.addresses,
            vlan=self.vlan,
            document={"mac": self.mac} | dict(self.document) | {"mac": self.mac},  # first: same form on all clouds
        )


def _without_zone(node: Node) -> Node:
    """Return a link-local gateway without its zone (fe80::1%eth0): the interface is known."""
    text = node.text()
    return Node(text.partition("%")[0], node.path) if text.lower().startswith("fe80:") else node


def _is_within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner[0] in outer and inner.prefixlen >= outer.prefixlen


class InstanceBuilder:
    """Collects the interfaces of an instance."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._seen: set[str] = set()
        self.interfaces: list[Interface] = []
        self.problems: list[Problem] = []
        self.notices: list[str] = []
        self.left_alone: set[str] = set()  # MACs of interfaces with a notice
        self.missing: list[Problem] = []

    def expect(self, node: Node, *keys: str) -> None:
        """Record which of these keys, which the cloud always gives, are missing: then no interface is proven absent."""
        self.missing += [Problem("", f"{path}: missing") for path in node.lacks(*keys)]

    def expect_entries(self, node: Node, *keys: str) -> None:
        """Record the keys that are missing or have no entry, although the cloud always gives at least one."""
        self.missing += [Problem("", f"{path}: missing or empty") for path in node.lacks(*keys, or_empty=True)]

    def start(self, mac: str, path: str) -> InterfaceBuilder | None:
        """Return the builder of an interface; None if its MAC is a duplicate, or there are too many."""
        if mac in self._seen:
            self.problems.append(Problem(mac, f"{path}: a second interface with the MAC {mac}; the first is used"))
            return None
        self._seen.add(mac)
        return InterfaceBuilder(mac, path)

    @contextmanager
    def adding(self, builder: InterfaceBuilder) -> Iterator[None]:
        """Add the interface that the block fills, with the problems and notices of its parts.

        An UnsupportedError leaves the interface out, with a notice.
        """
        try:
            yield
        except UnsupportedError as notice:
            self.notices.append(str(notice))
            self.left_alone.add(builder.mac)
            return
        except MetadataError as error:
            builder.problems.append(str(error))
        interface = builder.build()
        if interface is not None:
            self.interfaces.append(interface)
            if not interface.addresses and not interface.ranges and not interface.dhcp:
                self.notices.append(f"{builder.path}: {builder.mac} has no address; nothing is configured on it")
        shown, more = builder.problems[:_MAX_REPORTED], len(builder.problems) - _MAX_REPORTED
        if more > 0:
            shown.append(f"{builder.path}: and {more} more")
        self.problems += [Problem(builder.mac, text) for text in shown]
        self.missing += [Problem(builder.mac, text) for text in builder.missing[:_MAX_REPORTED]]
        if builder.notices:
            self.notices += builder.notices[:_MAX_REPORTED]
            self.left_alone.add(builder.mac)

    def read_interfaces(
        self,
        nodes: Iterable[Node],
        mac: Callable[[Node], str],
        fill: Callable[[Node, InterfaceBuilder, int], None],
    ) -> None:
        """Read one interface from each node. `fill` gets the node, the builder and the position in the list."""
        for position, node in enumerate(nodes):
            if len(self._seen) >= MAX_INTERFACES:
                text = f"{node.path}: only the first {MAX_INTERFACES} interfaces are configured"
                self.problems.append(Problem("", text))
                return
            try:
                builder = self.start(mac(node), node.path)
            except MetadataError as error:
                self.report(str(error))
                continue
            if builder is None:
                continue
            builder.document = node.value if isinstance(node.value, dict) else {}
            with self.adding(builder):
                fill(node, builder, position)

    def report(self, text: str) -> None:
        """Report a part that belongs to no interface, or to an unknown one."""
        if sum(not problem.mac for problem in self.problems) < _MAX_REPORTED:
            self.problems.append(Problem("", text))

    def build(self, system: Mapping[str, Any]) -> Instance:
        """Return the instance. Raises MetadataError without any interface or notice: every instance has one."""
        if not self.interfaces and not self.notices:
            reason = self.problems[0].text if self.problems else "the document names no interface"
            raise MetadataError("invalid", reason)
        return Instance(
            self._provider,
            tuple(self.interfaces),
            tuple(self.problems),
            tuple(self.notices),
            tuple(self.missing),
            frozenset(self.left_alone),
            system,
        )
