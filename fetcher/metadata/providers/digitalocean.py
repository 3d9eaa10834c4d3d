"""DigitalOcean: the Droplet metadata service.

Sources: "Droplet Properties", "Network Interfaces", "Reserved IPs" and "Public Keys" of the Metadata API reference
(docs.digitalocean.com/reference/api/metadata/); whole documents of Droplets: cloud-init's
tests/unittests/sources/test_digitalocean.py. The page shows the document inside a list; Droplets answer with it alone.

The public address is on the interface itself. The anchor address is what a reserved IP is translated to.
"""

from __future__ import annotations

from typing import Any

from cloud_network.fetcher.metadata.model import Instance, Interface
from cloud_network.fetcher.metadata.providers.document import Node, each, texts
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.served import JsonProvider

NAME = "digitalocean"
ENDPOINT = "169.254.169.254"
_PATH = "/metadata/v1.json"
_FACTS = ("droplet_id", "hostname", "region", "tags", "features", "dns", "floating_ip", "reserved_ip")


class Digitalocean(JsonProvider):
    """A Provider: everything is one document."""

    name = NAME
    endpoint = ENDPOINT
    probe = _PATH

    def fetch(self) -> Instance:
        """See Provider."""
        return instance(self.read(_PATH))


def instance(document: Node) -> Instance:
    """The Droplet that /metadata/v1.json describes."""
    if isinstance(document.value, list) and len(document.value) == 1:
        document = document.items()[0]
    kinds = document.at("interfaces")
    public = kinds.items("public")
    nodes = public + kinds.items("private")
    reserved = [kind for kind in (document.find("reserved_ip"), document.find("floating_ip")) if kind]

    def interface(node: Node, mac: str) -> Interface:
        return _interface(node, mac, nodes.index(node), reserved if public and node is public[0] else [])

    found = each(nodes, lambda node: node.at("mac").mac(), interface)
    return Instance(NAME, *found, system=_system(document))


def _interface(node: Node, mac: str, number: int, reserved: list[Node]) -> Interface:
    parts = Parts(mac, node.path)
    for key in ("ipv4", "anchor_ipv4"):
        if found := node.find(key):
            parts.address(_ip(found, 4), found.at("netmask").length(4))
            parts.gateway(found.given("gateway"), 4)
    if found := node.find("ipv6"):
        parts.address(_ip(found, 6), found.at("cidr").length(6))
        parts.gateway(found.given("gateway"), 6)
    for kind in reserved:
        for version in (4, 6):
            ip = kind.find(f"ipv{version}")
            if ip and (address := ip.given("ip_address")):
                parts.public.append(address.address(version))
    return parts.interface(node.value, number)


def _ip(node: Node, version: int) -> Node:
    address = node.at("ip_address")
    address.address(version)
    return address


def _system(document: Node) -> dict[str, Any]:
    """Not user_data, vendor_data, auth_key."""
    keys = document.pick("public_keys")
    return document.pick(*_FACTS) | {"public-keys": texts(keys.get("public_keys"))}
