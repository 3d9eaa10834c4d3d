"""Vultr: the instance metadata service.

Sources: "Metadata" (www.vultr.com/metadata/) and whole documents of instances: cloud-init's
tests/unittests/sources/test_vultr.py. Public addresses are on the interface itself; an additional IPv6 network is
delegated whole. IPv6 gateways come from router advertisements. `unconfigured` is a network that the user has told Vultr
to leave alone.
"""

from __future__ import annotations

from typing import Any

from cloud_network.fetcher.metadata.model import Instance, Interface, parse_network
from cloud_network.fetcher.metadata.providers.document import Node, each, texts
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.served import JsonProvider

NAME = "vultr"
ENDPOINT = "169.254.169.254"
_PATH = "/v1.json"
_FACTS = ("instance-v2-id", "instanceid", "instance-id", "hostname", "local-hostname", "region", "tags")


class Vultr(JsonProvider):
    """A Provider: everything is one document."""

    name = NAME
    endpoint = ENDPOINT
    probe = _PATH

    def fetch(self) -> Instance:
        """See Provider."""
        return instance(self.read(_PATH))


def instance(document: Node) -> Instance:
    """The instance that /v1.json describes."""
    nodes = document.at("interfaces").items()

    def interface(node: Node, mac: str) -> Interface:
        return _interface(node, mac, nodes.index(node))

    found = each(nodes, lambda node: node.at("mac").mac(), interface)
    return Instance(NAME, *found, system=_system(document))


def _interface(node: Node, mac: str, number: int) -> Interface:
    parts = Parts(mac, node.path)
    unconfigured = node.find("unconfigured")
    if unconfigured is None or unconfigured.value is False:
        _ipv4(parts, node.at("ipv4"))
        if ipv6 := node.find("ipv6"):
            _ipv6(parts, ipv6)
    return parts.interface(node.value, number, bare=unconfigured is not None)


def _ipv4(parts: Parts, node: Node) -> None:
    for one in (node, *node.items("additional")):
        if address := one.given("address"):
            address.address(4)
            parts.address(address, one.at("netmask").length(4))
    parts.gateway(node.given("gateway"), 4)


def _ipv6(parts: Parts, node: Node) -> None:
    if address := node.given("address"):
        address.address(6)
        parts.address(address, node.at("prefix").length(6))
    for one in node.items("additional"):
        network = one.at("network")
        network.address(6)
        block = parse_network(network.path, f"{network.text()}/{one.at('prefix').length(6)}")
        parts.subnets.append(block)
        parts.range(block, network.path)


def _system(document: Node) -> dict[str, Any]:
    """Not user-data, vendor-data, startup-script, user-defined, nor the password of bgp."""
    return document.pick(*_FACTS) | {"public-keys": texts(document.pick("public-keys").get("public-keys"))}
