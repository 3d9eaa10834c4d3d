"""Hetzner Cloud: the server metadata.

Sources: "Server Metadata" (docs.hetzner.cloud/reference/cloud#description/server-metadata), which shows
/hetzner/v1/metadata/private-networks whole; /hetzner/v1/metadata with its network-config: cloud-init's
tests/unittests/sources/test_hetzner.py; "What are Hetzner Cloud Networks?" (docs.hetzner.com/cloud/networks/faq).

A private network is layer 3: on the link is nothing but the gateway, and all of the network is behind it. The public
IPv4 address is the first interface's own, by DHCP; IPv6 is as network-config has it.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from cloud_network.fetcher.metadata.model import Instance, Interface, MetadataError, place
from cloud_network.fetcher.metadata.providers.document import Node, each, texts
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.served import JsonProvider

NAME = "hetzner"
ENDPOINT = "169.254.169.254"
_METADATA = "/hetzner/v1/metadata"
_PRIVATE = _METADATA + "/private-networks"
_FACTS = ("instance-id", "hostname", "availability-zone", "region", "public-ipv4", "local-ipv4")


class _Loader(yaml.BaseLoader):
    """Reads every scalar as text but null, and refuses aliases.

    YAML's types would read the MAC 86:00:00:12:34:56 as a number of base 60. Nested aliases make a small document huge.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node, which may not be an alias (called by yaml.load)."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("has an alias")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def parse_yaml(text: str, where: str) -> Node:
    """Return a YAML document. Raises MetadataError that starts with `where`."""
    try:
        return Node(yaml.load(text, _Loader), where)  # noqa: S506  # a BaseLoader makes text, lists and maps only
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MetadataError("invalid", f"{where}: not YAML: {' '.join(str(error).split())[:200]}") from None


class Hetzner(JsonProvider):
    """A Provider: two documents, both YAML."""

    name = NAME
    endpoint = ENDPOINT
    probe = _METADATA + "/instance-id"

    def fetch(self) -> Instance:
        """See Provider."""
        metadata = parse_yaml(self.text(_METADATA), "metadata")
        return instance(metadata, parse_yaml(self.text(_PRIVATE), "private-networks"))


def instance(metadata: Node, private: Node) -> Instance:
    """The server that the two documents describe."""
    config = metadata.find("network-config")
    public = [node for node in config.items("config") if node.at("type").text() == "physical"] if config else []
    networks = private.items() if private.value is not None else []

    def interface(node: Node, mac: str) -> Interface:
        if node in networks:
            return _private(node, mac)
        at = public.index(node)
        return _public(node, mac, at, metadata.given("public-ipv4") if at == 0 else None)

    found = each([*public, *networks], lambda node: node.at("mac_address").mac(), interface)
    return Instance(NAME, *found, system=_system(metadata))


def _public(node: Node, mac: str, number: int, ipv4: Node | None) -> Interface:
    parts = Parts(mac, node.path)
    if ipv4:
        ipv4.address(4)
        parts.address(ipv4, 32)
    for subnet in node.items("subnets"):
        if found := subnet.given("address"):
            text, _, length = found.text().partition("/")
            address = Node(text, found.path)
            version = address.address().version
            parts.address(address, Node(length, found.path).length(version))
            parts.gateway(subnet.given("gateway"), version, outside=True)
    return parts.interface(node.value, number, bare=True)


def _private(node: Node, mac: str) -> Interface:
    parts = Parts(mac, node.path, routed=True)
    subnet = node.at("subnet").network(4)
    for address in (node.at("ip"), *node.items("alias_ips")):
        place(address.path, address.address(4), (subnet,))
        parts.address(address, subnet.prefixlen)
    parts.subnets = [node.at("network").network(4)]
    parts.gateway(node.at("gateway"), 4)
    return parts.interface(node.value, node.at("interface_num").number(0, 4096))


def _system(metadata: Node) -> dict[str, Any]:
    """Not vendor_data."""
    return metadata.pick(*_FACTS) | {"public-keys": texts(metadata.pick("public-keys").get("public-keys"))}
