"""Hetzner Cloud: the server metadata.

Sources: "Server Metadata" (docs.hetzner.cloud/reference/cloud#description/server-metadata), which shows
/hetzner/v1/metadata/private-networks whole; /hetzner/v1/metadata with its network-config, and the second endpoint:
cloud-init's tests/unittests/sources/test_hetzner.py and DataSourceHetzner.py; "What are Hetzner Cloud Networks?"
(docs.hetzner.com/cloud/networks/faq).

A private network is layer 3: only the gateway is on the link, and the rest of the network is behind it. DHCP sets the
public IPv4 address of the first interface. IPv6 addresses are those of network-config.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from cloud_network.fetcher.metadata import network_config
from cloud_network.fetcher.metadata.base import JsonProvider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, lines_of
from cloud_network.fetcher.metadata.model import Instance, IPNetwork, MetadataError, Problem, invalid

_METADATA = "/hetzner/v1/metadata"
_PRIVATE = _METADATA + "/private-networks"
_MAX_YAML = 1 << 17  # characters: PyYAML reads 100,000 in about a second
_ALWAYS = ("public-ipv4",)  # empty without a public address
_LAST = ("public-keys", "region", "vendor_data")  # the keys are sorted: these come after all that the network needs
_FACTS = ("instance-id", "hostname", "availability-zone", "region", "public-ipv4", "local-ipv4")


class _Loader(yaml.BaseLoader):
    """Reads every scalar as text, except null, and an alias as the text `*name`: the part that uses it is reported.

    YAML's types would read the MAC 86:00:00:12:34:56 as a number of base 60. Nested aliases make a small document huge.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node; an alias is not followed (called by yaml.load)."""
        if self.check_event(yaml.AliasEvent):
            alias = self.get_event()  # type: ignore[no-untyped-call]  # of PyYAML
            return yaml.ScalarNode("tag:yaml.org,2002:str", f"*{alias.anchor}", alias.start_mark, alias.end_mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def parse_yaml(text: str, path: str) -> Node:
    """Return a YAML document. Raises MetadataError that starts with `path`."""
    if len(text) > _MAX_YAML:
        raise MetadataError("too large", f"{path}: longer than {_MAX_YAML} characters")
    try:
        return Node(yaml.load(text, _Loader), path)  # noqa: S506  # a BaseLoader makes text, lists and maps only
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MetadataError("invalid", f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from None


class Hetzner(JsonProvider):
    """A Provider: two documents, both YAML."""

    name = "hetzner"
    endpoints = ("169.254.169.254", "[fe80::a9fe:a9fe]")
    probe_path = _METADATA + "/instance-id"

    def read(self) -> Instance:
        """See Provider."""
        metadata = parse_yaml(self.text(_METADATA), "metadata")
        return instance(metadata, parse_yaml(self.text(_PRIVATE), "private-networks"))


def instance(metadata: Node, private: Node) -> Instance:
    """Return the server that the two documents describe."""
    builder = InstanceBuilder(Hetzner.name)
    config = metadata.find("network-config")
    builder.expect(metadata, "network-config")
    builder.missing += [Problem("", f"metadata.{key}: missing") for key in _ALWAYS if metadata.value.get(key) is None]
    if not any(key in metadata.value for key in _LAST):
        builder.missing.append(Problem("", f"metadata: cut off; none of {', '.join(_LAST)} is there"))
    if private.value is None:
        builder.missing.append(Problem("", "private-networks: empty"))
    networks = private.items() if private.value is not None else []
    if networks:
        builder.expect(networks[-1], "gateway")  # one of its last keys: the list may have been cut off there
    ipv4 = metadata.given("public-ipv4")

    def fill_public(node: Node, interface: InterfaceBuilder, position: int) -> None:
        interface.number = position
        if position == 0 and ipv4:
            with interface.part():
                interface.add_address(ipv4, 4, 32)
        network_config.fill(node, aliases.get(position, []), interface)

    entries, aliases = network_config.physical(config, builder)
    builder.read_interfaces(entries, network_config.mac, fill_public)
    builder.read_interfaces(networks, network_config.mac, _fill_private)
    return builder.build(_system(metadata))


def _fill_private(node: Node, builder: InterfaceBuilder, _position: int) -> None:
    builder.routed = True
    builder.expect(node, "alias_ips", "gateway")
    with builder.part():
        if number := node.given("interface_num"):
            builder.number = number.number(0, 4096)
    network = node.at("network").network(4)
    length = 32
    with builder.part():
        if subnet := node.given("subnet"):
            length = subnet.network(4).prefixlen
    with builder.part():
        _add_private(node.at("ip"), builder, network, length)
    with builder.part():
        for alias in node.items("alias_ips"):
            with builder.part():
                _add_private(alias, builder, network, length)
    builder.subnets = {network: None}  # all of it lies behind the gateway
    with builder.part():
        builder.add_gateway(node.given("gateway"), 4)


def _add_private(node: Node, builder: InterfaceBuilder, network: IPNetwork, length: int) -> None:
    if node.address(4) not in network:
        raise invalid(node.path, node.value, f"inside {network}")
    builder.add_address(node, 4, length)


def _system(metadata: Node) -> dict[str, Any]:
    """Return facts; not vendor_data and user data."""
    return metadata.pick(*_FACTS) | {"public-keys": lines_of(metadata.pick("public-keys").get("public-keys"))}
