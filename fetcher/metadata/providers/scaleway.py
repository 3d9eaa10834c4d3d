"""Scaleway Instances: the metadata API.

Sources: "User data" of the Instances API reference (www.scaleway.com/en/developers/api/instance/user-data);
cloud-init's reference of the Scaleway datasource for the server and its IPv6 address, and its
tests/unittests/sources/test_scaleway.py for the legacy `ipv6` and for ssh keys in tags (AUTHORIZED_KEY=ssh-rsa_AAAA,
with _ for a space); Scaleway's own reader of the document (scaleway-sdk-go, api/instance/v1/instance_metadata_sdk.go,
type Metadata) for its fields.

The document has the public interface's MAC (`mac_address`; without it the public interface is left as DHCP configures
it) and its routed addresses: public_ips_v4 and public_ips_v6, or public_ips with a family. DHCP sets the first of
several addresses. The others are public and need AllowAddresses=. For a private interface the document has only the
MAC: DHCP sets its addresses, which Scaleway's IPAM assigns.
"""

from __future__ import annotations

from typing import Any

from cloud_network.fetcher.metadata.base import JsonProvider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, lines_of
from cloud_network.fetcher.metadata.model import Instance

_PATH = "/conf?format=json"
_PUBLIC = ("public_ips_v4", "public_ips_v6", "public_ips")
_KEY_TAG = "AUTHORIZED_KEY="
_FACTS = (
    "id", "name", "hostname", "organization", "project", "commercial_type", "arch", "zone", "location", "state",
    "state_detail", "creation_date", "modification_date", "tags", "timezone", "security_group", "placement_group",
    "public_ip", "private_ip",
)  # fmt: skip


class Scaleway(JsonProvider):
    """A Provider: everything is one document."""

    name = "scaleway"
    endpoints = ("169.254.42.42", "[fd00:42::42]")
    probe_path = _PATH

    def read(self) -> Instance:
        """See Provider."""
        return instance(self.document(_PATH))


def instance(document: Node) -> Instance:
    """Return the Instance that /conf?format=json describes."""
    builder = InstanceBuilder(Scaleway.name)
    builder.expect(document, "mac_address", "private_nics")
    if document.given("mac_address"):
        builder.read_interfaces([document], _mac, _fill_public)
    else:
        builder.notices.append("mac_address: missing; the public interface is left as DHCP configures it")
    builder.read_interfaces(document.items("private_nics"), _mac, _fill_private)
    return builder.build(_system(document))


def _mac(node: Node) -> str:
    return node.at("mac_address").mac()


def _fill_public(document: Node, builder: InterfaceBuilder, _position: int) -> None:
    builder.path = builder.path or "the document"
    builder.number, builder.dhcp = 0, True
    builder.document = document.pick(*_PUBLIC, "ipv6", "private_ip")
    _expect_public(document, builder)
    translated = False
    with builder.part():
        if private := document.given("private_ip"):  # not routed: public addresses are translated to this one
            translated = True
            builder.add_address(private, 4, 32)
    for key in _PUBLIC:
        with builder.part():
            for node in document.items(key):
                with builder.part():
                    _add_public(node, builder, translated)
    with builder.part():
        if legacy := document.find("ipv6"):
            _add_public(legacy, builder, translated)


def _expect_public(document: Node, builder: InterfaceBuilder) -> None:
    """Note a list of public addresses that each known shape of the document has, in a document that has another."""
    if not document.lacks("public_ips_v4") or not document.lacks("public_ips_v6"):
        builder.expect(document, "public_ips_v4", "public_ips_v6")
    elif "ipv6" not in document.value or "private_ip" not in document.value:
        builder.expect(document, "public_ips")  # the legacy shape has these, if only with null
    if "private_ip" not in document.value:
        builder.missing.append("private_ip: missing")  # null without a private address
    if not document.lacks("public_ip") and document.lacks("private_ip"):
        listed = [key for key in _PUBLIC if not document.lacks(key, or_empty=True)]
        if not listed:
            builder.missing.append("public_ips: names no address, but public_ip does")


def _add_public(node: Node, builder: InterfaceBuilder, translated: bool) -> None:
    address = node.at("address")
    version = address.address().version
    if translated and version == 4:
        builder.public.append(address.address(4))
        return
    builder.add_address(address, version, node.at("netmask").length(version))
    builder.add_gateway(node.given("gateway"), version)


def _fill_private(_node: Node, builder: InterfaceBuilder, position: int) -> None:
    builder.number, builder.dhcp = position + 1, True


def _system(document: Node) -> dict[str, Any]:
    """Return facts, with the ssh keys of the project and of tags."""
    facts = document.pick(*_FACTS)
    listed = document.pick("ssh_public_keys").get("ssh_public_keys")
    keys = [key.get("key") for key in listed if isinstance(key, dict)] if isinstance(listed, list) else []
    tags = [tag for tag in lines_of(facts.get("tags")) if tag.startswith(_KEY_TAG)]
    keys += [tag.removeprefix(_KEY_TAG).replace("_", " ") for tag in tags]
    return facts | {"public-keys": list(dict.fromkeys(lines_of(keys)))}
