"""Scaleway Instances: the metadata API.

Sources: "User data" of the Instances API reference (www.scaleway.com/en/developers/api/instance/user-data) and
cloud-init's reference of the Scaleway datasource for the server, and Scaleway's own reader of the document
(scaleway-sdk-go, api/instance/v1/instance_metadata_sdk.go, type Metadata) for its fields.

The document has the public interface's MAC (`mac_address`; were it missing, the public interface would be left as
DHCP makes it) and its routed addresses (public_ips_v4, public_ips_v6: of several, the first comes
by DHCP and the others do not; being public they need AllowAddresses=). Of each private interface it has the MAC: their
addresses are IPAM's and come by DHCP alone, so a private interface is listed here without any.
"""

from __future__ import annotations

from typing import Any

from cloud_network.fetcher.metadata.model import Instance, Interface
from cloud_network.fetcher.metadata.providers.document import Node, each, texts
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.served import JsonProvider

NAME = "scaleway"
ENDPOINT = "169.254.42.42"
_PATH = "/conf?format=json"
_FACTS = (
    "id", "name", "hostname", "organization", "project", "commercial_type", "arch", "zone", "location", "state",
    "state_detail", "creation_date", "modification_date", "tags", "timezone", "security_group", "placement_group",
    "public_ip", "private_ip",
)  # fmt: skip


class Scaleway(JsonProvider):
    """A Provider: everything is one document."""

    name = NAME
    endpoint = ENDPOINT
    probe = _PATH

    def fetch(self) -> Instance:
        """See Provider."""
        return instance(self.read(_PATH))


def instance(document: Node) -> Instance:
    """The Instance that /conf?format=json describes."""
    private = document.items("private_nics")
    nodes = [document, *private] if document.given("mac_address") else private

    def interface(node: Node, mac: str) -> Interface:
        return _public(node, mac) if node is document else _private(node, mac, private.index(node) + 1)

    found = each(nodes, lambda node: node.at("mac_address").mac(), interface)
    return Instance(NAME, *found, system=_system(document))


def _public(document: Node, mac: str) -> Interface:
    parts = Parts(mac, document.path or "the document")
    private = document.given("private_ip")
    if private:  # not routed: the public address is translated to this one
        parts.address(private, private.address().max_prefixlen)
    for key, version in (("public_ips_v4", 4), ("public_ips_v6", 6)):
        for node in document.items(key):
            address = node.at("address")
            if private and version == 4:
                parts.public.append(address.address(4))
                continue
            address.address(version)
            parts.address(address, node.at("netmask").length(version))
            parts.gateway(node.given("gateway"), version, outside=True)
    shown = document.pick("public_ips_v4", "public_ips_v6", "private_ip")
    return parts.interface(shown, 0, bare=True)


def _private(node: Node, mac: str, number: int) -> Interface:
    return Parts(mac, node.path).interface(node.value, number, bare=True)


def _system(document: Node) -> dict[str, Any]:
    keys = document.pick("ssh_public_keys").get("ssh_public_keys")
    listed = [key.get("key") for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
    return document.pick(*_FACTS) | {"public-keys": texts(listed)}
