"""Vultr: the instance metadata service.

Sources: "Metadata" (www.vultr.com/metadata/) and whole documents of instances, with `interfaces` or with
`cloud_interfaces` in their place: cloud-init's tests/unittests/sources/test_vultr.py; bare metal without firmware
fields: cloud-init's sources/helpers/vultr.py. Public addresses are on the interface itself; an additional IPv6 network
is delegated as a whole. IPv6 gateways come from router advertisements. `unconfigured` is a network that Vultr's own
scripts leave to the user.
"""

from __future__ import annotations

from typing import Any

from cloud_network.fetcher.metadata import network_config
from cloud_network.fetcher.metadata.base import JsonProvider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, lines_of
from cloud_network.fetcher.metadata.model import Instance, MetadataError

_PATH = "/v1.json"
_FACTS = ("instance-v2-id", "instanceid", "instance-id", "hostname", "local-hostname", "region", "tags")


class Vultr(JsonProvider):
    """A Provider: everything is one document."""

    name = "vultr"
    endpoints = ("169.254.169.254",)
    probe_path = _PATH

    def read(self) -> Instance:
        """See Provider."""
        return instance(self.document(_PATH))


def instance(document: Node) -> Instance:
    """Return the instance that /v1.json describes. `interfaces` counts unless it is empty."""
    builder = InstanceBuilder(Vultr.name)
    nodes = document.items("interfaces")
    if nodes:
        builder.read_interfaces(nodes, lambda node: node.at("mac").mac(), _fill)
    else:
        entries, aliases = network_config.physical(document.at("cloud_interfaces"), builder)

        def fill(node: Node, interface: InterfaceBuilder, position: int) -> None:
            interface.number = position
            network_config.fill(node, aliases.get(position, []), interface)

        builder.read_interfaces(entries, network_config.mac, fill)
    return builder.build(_system(document))


def _fill(node: Node, builder: InterfaceBuilder, position: int) -> None:
    builder.number = position
    with builder.part():
        builder.set_mtu(node.find("mtu"))
    if node.pick("unconfigured").get("unconfigured") not in (None, False, "false"):
        builder.dhcp = True
        return
    kind = node.pick("network-type").get("network-type")
    if kind not in (None, "public", "private"):
        builder.notices.append(f"{node.path}.network-type: {kind!r} is not a known type; configured like private")
    builder.expect(node, "ipv4", "ipv6")
    builder.expect_no_null(node, "routes")
    if kind == "public" and (family := node.pick("ipv4").get("ipv4")):
        builder.expect(Node(family, f"{node.path}.ipv4"), "gateway")
    for key, fill in (("ipv4", _fill_ipv4), ("ipv6", _fill_ipv6)):
        with builder.part():
            if family := node.find(key):
                fill(builder, family)
    with builder.part():
        for route in node.items("routes"):
            with builder.part():
                network_config.add_route(route, builder)


def _fill_ipv4(builder: InterfaceBuilder, family: Node) -> None:
    for node in (family, *_additional(builder, family)):
        builder.expect(node, "address")
        with builder.part():
            if address := node.given("address"):
                builder.add_address(address, 4, node.at("netmask").length(4))
    builder.add_gateway(family.given("gateway"), 4)


def _fill_ipv6(builder: InterfaceBuilder, family: Node) -> None:
    if not family.lacks("network") or not family.lacks("prefix"):
        builder.expect(family, "address")
    with builder.part():
        if address := family.given("address"):
            builder.add_address(address, 6, family.at("prefix").length(6))
    for node in _additional(builder, family):
        with builder.part():
            if address := node.given("address"):
                builder.add_address(address, 6, node.at("prefix").length(6))
        with builder.part():
            if network := node.given("network"):
                block = Node(f"{network.text()}/{node.at('prefix').length(6)}", network.path).network(6)
                builder.add_subnet(block)
                builder.add_range(network, block)
            elif node.given("address") is None:
                raise MetadataError("invalid", f"{node.path}: neither an address nor a network")


def _additional(builder: InterfaceBuilder, family: Node) -> list[Node]:
    found = list[Node]()
    builder.expect(family, "additional")
    with builder.part():
        found += family.items("additional")
    return found


def _system(document: Node) -> dict[str, Any]:
    """Return facts; not user-data, vendor-data, startup-script, user-defined, nor the password of bgp."""
    return document.pick(*_FACTS) | {"public-keys": lines_of(document.pick("public-keys").get("public-keys"))}
