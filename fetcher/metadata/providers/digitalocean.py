"""DigitalOcean: the Droplet metadata service.

Sources: "Droplet Properties", "Network Interfaces", "Reserved IPs" and "Public Keys" of the Metadata API reference
(docs.digitalocean.com/reference/api/metadata/); whole documents of Droplets: cloud-init's
tests/unittests/sources/test_digitalocean.py. The page shows the document inside a list; Droplets answer with it alone.
"Reserved IPs" (docs.digitalocean.com/products/networking/reserved-ips/): a reserved IPv4 address is translated to the
anchor address; a reserved IPv6 address is routed to the Droplet untranslated and belongs on its public interface as a
/128.

The public address and the anchor address are on the same interface. "How to Send Outbound Traffic Over a Reserved IP"
(.../how-to/outbound-traffic/): packets through the anchor gateway leave with the reserved address. Therefore packets
from the anchor address are routed through the anchor gateway, and all others through the public one.
"""

from __future__ import annotations

from typing import Any

from cloud_network.fetcher.metadata.base import JsonProvider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, lines_of
from cloud_network.fetcher.metadata.model import Instance, IPAddress

_PATH = "/metadata/v1.json"
_FACTS = ("droplet_id", "hostname", "region", "tags", "features", "dns", "floating_ip", "reserved_ip")


class Digitalocean(JsonProvider):
    """A Provider: everything is one document."""

    name = "digitalocean"
    endpoints = ("169.254.169.254",)
    probe_path = _PATH

    def read(self) -> Instance:
        """See Provider."""
        return instance(self.document(_PATH))


def instance(document: Node) -> Instance:
    """Return the Droplet that /metadata/v1.json describes."""
    if isinstance(document.value, list) and len(document.value) == 1:
        document = document.items()[0]
    kinds = document.at("interfaces")
    public = kinds.items("public")

    def fill(node: Node, builder: InterfaceBuilder, position: int) -> None:
        builder.number = position
        _fill(node, builder)
        builder.expect(node, "ipv4")
        builder.expect_no_null(node, "anchor_ipv4", "ipv6")
        if position == 0 and public:
            _add_reserved(document, builder)

    builder = InstanceBuilder(Digitalocean.name)
    builder.expect_entries(kinds, "public")
    builder.expect(kinds, "private")
    builder.read_interfaces([*public, *kinds.items("private")], lambda node: node.at("mac").mac(), fill)
    return builder.build(_system(document))


def _fill(node: Node, builder: InterfaceBuilder) -> None:
    for key, length, version in (("ipv4", "netmask", 4), ("anchor_ipv4", "netmask", 4), ("ipv6", "cidr", 6)):
        with builder.part():
            if family := node.find(key):
                builder.add_address(family.at("ip_address"), version, family.at(length).length(version))
        with builder.part():
            if family := node.find(key):
                builder.expect(family, "gateway")
                gateway = _gateway(family)
                builder.add_gateway(gateway, version)
                if gateway and key == "anchor_ipv4":
                    _set_anchor(gateway.address(4), builder)


def _set_anchor(gateway: IPAddress, builder: InterfaceBuilder) -> None:
    """Give the subnet of the anchor address its own default route through the anchor gateway."""
    subnet = next((each for each in builder.subnets if gateway in each), None)
    if subnet is not None and gateway not in builder.gateways:
        builder.anchor = subnet, gateway


def _gateway(node: Node) -> Node | None:
    """Return the gateway; 0.0.0.0 is that of a VPC without one."""
    found = node.given("gateway")
    return None if found is not None and found.value in ("0.0.0.0", "::") else found  # noqa: S104


def _add_reserved(document: Node, builder: InterfaceBuilder) -> None:
    """Add reserved addresses: IPv6 to the interface, IPv4 for display only."""
    builder.expect(document, "reserved_ip")
    reserved = document.find("reserved_ip")
    if reserved is not None:
        builder.expect(reserved, "ipv4")
        builder.expect_no_null(reserved, "ipv6")
    for key in ("reserved_ip", "floating_ip"):
        with builder.part():
            kind = document.find(key)
            for version in (4, 6):
                entry = kind.find(f"ipv{version}") if kind else None
                active = entry is not None and _is_active(entry)
                address = entry.given("ip_address") if entry and active else None
                if entry and active:
                    builder.expect(entry, "ip_address")
                if address and version == 4:
                    builder.public.append(address.address(4))
                elif address:
                    builder.add_address(address, 6, 128)


def _is_active(reserved: Node) -> bool:
    return reserved.pick("active").get("active") not in (False, "false")


def _system(document: Node) -> dict[str, Any]:
    """Return facts; not user_data, vendor_data and auth_key."""
    return document.pick(*_FACTS) | {"public-keys": lines_of(document.pick("public_keys").get("public_keys"))}
