"""An interface, put together from the parts that a cloud's document has, each held against the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from cloud_network.fetcher.metadata.model import (
    Interface,
    IPAddress,
    IPInterface,
    IPNetwork,
    MetadataError,
    invalid,
    parse_network,
    place,
)
from cloud_network.fetcher.metadata.providers.document import Node

_MTU = (576, 65535)  # what netagent accepts


@dataclass(slots=True)
class Parts:
    """The parts of the interface with this MAC; `where` names it in the errors. Subnets first, gateways last."""

    mac: str
    where: str
    addresses: list[IPInterface] = field(default_factory=list)
    subnets: list[IPNetwork] = field(default_factory=list)
    gateways: list[IPAddress] = field(default_factory=list)
    routes: list[tuple[IPNetwork, IPAddress]] = field(default_factory=list)
    ranges: list[IPNetwork] = field(default_factory=list)
    public: list[IPAddress] = field(default_factory=list)
    mtu: int | None = None
    routed: bool = False

    def address(self, node: Node, length: int | None = None) -> None:
        """One of the interface's own: in a subnet that is known, or in the one that its prefix length makes."""
        address = node.address()
        if address.is_link_local:
            raise invalid(node.path, str(address), "a cloud's: it is link-local")
        if length is not None:
            subnet = parse_network(node.path, str(ip_network((address, length), strict=False)))
            if length < address.max_prefixlen and subnet not in self.subnets:
                self.subnets.append(subnet)
            self.addresses.append(place(node.path, address, (subnet,)))
        else:
            self.addresses.append(place(node.path, address, tuple(self.subnets)))

    def range(self, network: IPNetwork, path: str) -> None:
        """A block delegated whole, inside one of the subnets."""
        if not any(_within(network, subnet) for subnet in self.subnets):
            raise invalid(path, str(network), "inside a subnet of its interface")
        self.ranges.append(network)

    def gateway(self, node: Node | None, version: int, *, outside: bool = False) -> None:
        """The first one of an IP version counts. Only where the cloud says so is it `outside` the subnets."""
        if node is None or any(known.version == version for known in self.gateways):
            return
        gateway = node.address(version)
        near = gateway.version == 6 and gateway.is_link_local
        if (
            not near
            and not outside
            and not any(gateway.version == net.version and gateway in net for net in self.subnets)
        ):
            raise invalid(node.path, str(gateway), "inside a subnet of its interface")
        self.gateways.append(gateway)

    def route(self, node: Node, length: int, gateway: Node) -> None:
        """A network that lies behind a gateway of its own. Whether that one is on link, the host's links tell."""
        network = node.address()
        try:
            destination = ip_network((network, length))
        except ValueError:
            raise invalid(node.path, f"{network}/{length}", "a network: it has host bits set") from None
        self.routes.append((destination, gateway.address(network.version)))

    def packets(self, node: Node | None) -> None:
        """The MTU, where the cloud names one."""
        if node is not None:
            self.mtu = node.number(*_MTU)

    def interface(self, document: Mapping[str, Any], number: int | None = None, *, bare: bool = False) -> Interface:
        """The whole. Only where a cloud leaves addresses to DHCP may it be `bare` of them."""
        if not self.addresses and not bare:
            raise MetadataError("invalid", f"{self.where}: no address; every interface has one")
        for address in self.addresses:
            if address.ip in self.gateways:
                raise invalid(self.where, str(address.ip), "a host's: it is the gateway's")
        return Interface(
            mac=self.mac,
            addresses=tuple(dict.fromkeys(self.addresses)),
            subnets=tuple(dict.fromkeys(self.subnets)),
            gateways=tuple(self.gateways),
            device_number=number,
            routes=tuple(dict.fromkeys(self.routes)),
            ranges=tuple(dict.fromkeys(self.ranges)),
            public=tuple(dict.fromkeys(self.public)),
            mtu=self.mtu,
            routed=self.routed,
            document={"mac": self.mac} | dict(document) | {"mac": self.mac},  # first, and spelt alike on all clouds
        )


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner[0] in outer and inner.prefixlen >= outer.prefixlen
