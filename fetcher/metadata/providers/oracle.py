"""Oracle Cloud Infrastructure: the instance metadata service, version 2.

Sources: "Getting Instance Metadata" (docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm), which has
the IPv6 endpoint and a sample of two VNICs on nicIndex 0 with VLAN tags; "Virtual Network Interface Cards (VNICs)"
(.../Content/Network/Tasks/managingVNICs.htm) and "IPv6 Addresses"; what /opc/v2/vnics/ holds on a VM, a dual-stack VM
and bare metal: cloud-init's tests/unittests/sources/test_oracle.py.

The metadata names all IPv6 addresses of a VNIC, but only its primary IPv4 address: secondary private IPs are in
Oracle's API and nowhere in /opc/v2/vnics/ ("Private IP Addresses", .../managingIPaddresses.htm, tells the operator to
add them by hand). On bare metal the first VNIC of each physical NIC (nicIndex) is the NIC itself. A further one is a
VLAN on it (vlanTag) with its own MAC, and is configured where that link exists.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from cloud_network.fetcher.metadata.base import JsonProvider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, lines_of
from cloud_network.fetcher.metadata.model import Instance, Vlan

_VNICS, _INSTANCE = "/opc/v2/vnics/", "/opc/v2/instance/"
_IDENTITY = ("cert.pem", "intermediate.pem", "key.pem")
_FACTS = (
    "id", "displayName", "hostname", "shape", "shapeConfig", "image", "region", "canonicalRegionName", "regionInfo",
    "availabilityDomain", "ociAdName", "faultDomain", "compartmentId", "tenantId", "state", "timeCreated",
    "agentConfig", "definedTags", "freeformTags",
)  # fmt: skip


class Oracle(JsonProvider):
    """A Provider: one request for the VNICs, a second for the rest when they have changed."""

    name = "oracle"
    endpoints = ("169.254.169.254", "[fd00:c1::a9fe:a9fe]")
    headers = MappingProxyType({"Authorization": "Bearer Oracle"})  # documented, the same for everyone
    probe_path = _VNICS

    def read(self) -> Instance:
        """See Provider."""
        vnics = self.document(_VNICS)
        return instance(vnics, self.facts(vnics, _INSTANCE).get(_INSTANCE))

    def credentials(self) -> dict[str, Any]:
        """Return the certificate and the key of the instance principal ("Calling Services from an Instance")."""
        paths = [f"/opc/v2/identity/{name}" for name in _IDENTITY]
        return {path: self.text(path) for path in paths}


def instance(vnics: Node, facts: Node | None = None) -> Instance:
    """Return the instance that /opc/v2/vnics/ and /opc/v2/instance/ describe."""
    physical: dict[int, str] = {}  # nicIndex -> MAC of the first VNIC on it

    def fill(node: Node, interface: InterfaceBuilder, position: int) -> None:
        interface.number = position
        with interface.part():
            if nic := node.given("nicIndex"):
                parent = physical.setdefault(nic.number(0, 1 << 16), interface.mac)
                tag = node.given("vlanTag")
                if parent != interface.mac and tag and tag.number(0, 4095):
                    interface.vlan = Vlan(tag.number(1, 4095), parent)
        _fill(node, interface)

    builder = InstanceBuilder(Oracle.name)
    builder.read_interfaces(vnics.items(), lambda node: node.at("macAddr").mac(), fill)
    return builder.build(_system(facts) if facts else {"public-keys": []})


def _fill(node: Node, builder: InterfaceBuilder) -> None:
    builder.expect(node, "subnetCidrBlock")  # "<null>" on a VNIC with IPv6 only
    if node.pick("subnetCidrBlock").get("subnetCidrBlock") != "<null>":
        builder.expect(node, "privateIp", "virtualRouterIp")
    builder.expect_no_null(node, "ipv6Addresses")
    if not node.lacks("ipv6VirtualRouterIp"):
        builder.expect_entries(node, "ipv6Addresses")
    if not node.lacks("ipv6Addresses", or_empty=True):
        builder.expect(node, "ipv6SubnetCidrBlock", "ipv6VirtualRouterIp")
    for key, version in (("subnetCidrBlock", 4), ("ipv6SubnetCidrBlock", 6)):
        with builder.part():
            if subnet := node.given(key):
                builder.add_subnet(subnet.network(version))
    with builder.part():
        if private := node.given("privateIp"):
            builder.add_address(private, 4)
    with builder.part():
        for address in node.items("ipv6Addresses"):
            with builder.part():
                builder.add_address(address, 6)
    for key, version in (("virtualRouterIp", 4), ("ipv6VirtualRouterIp", 6)):
        with builder.part():
            builder.add_gateway(node.given(key), version)


def _system(facts: Node) -> dict[str, Any]:
    """Return facts; not `metadata` as a whole, which is the user's: user_data and anything else."""
    metadata = Node(facts.pick("metadata").get("metadata"))
    keys = metadata.pick("ssh_authorized_keys").get("ssh_authorized_keys")
    return facts.pick(*_FACTS) | {"public-keys": lines_of(keys)}
