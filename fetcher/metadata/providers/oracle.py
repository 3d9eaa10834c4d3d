"""Oracle Cloud Infrastructure: the instance metadata service, version 2.

Sources: "Getting Instance Metadata" (docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm),
"Virtual Network Interface Cards (VNICs)" (…/Content/Network/Tasks/managingVNICs.htm) and "IPv6 Addresses"; what
/opc/v2/vnics/ holds on a VM, a dual-stack VM and bare metal: cloud-init's tests/unittests/sources/test_oracle.py.

Of IPv4 the metadata names a VNIC's primary address only: secondary private IPs are in Oracle's API and nowhere in
/opc/v2/vnics/ ("Private IP Addresses", …/managingIPaddresses.htm, has the operator add them by hand); all IPv6
addresses are there. On bare metal a secondary VNIC is a VLAN on the physical NIC (nicIndex, vlanTag), and no link: it
is a notice, and the others are configured as if it were not there.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from cloud_network.fetcher.metadata.model import Instance, Interface
from cloud_network.fetcher.metadata.providers.document import Node, NotYetError, each, texts
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.served import JsonProvider

NAME = "oracle"
ENDPOINT = "169.254.169.254"
_VNICS, _INSTANCE = "/opc/v2/vnics/", "/opc/v2/instance/"
_IDENTITY = ("cert.pem", "intermediate.pem", "key.pem")
_FACTS = (
    "id", "displayName", "hostname", "shape", "shapeConfig", "image", "region", "canonicalRegionName", "regionInfo",
    "availabilityDomain", "ociAdName", "faultDomain", "compartmentId", "tenantId", "state", "timeCreated",
    "agentConfig", "definedTags", "freeformTags",
)  # fmt: skip


class Oracle(JsonProvider):
    """A Provider: one request for the VNICs, a second for the rest when they have changed."""

    name = NAME
    endpoint = ENDPOINT
    headers = MappingProxyType({"Authorization": "Bearer Oracle"})  # documented, the same for everybody
    probe = _VNICS

    def fetch(self) -> Instance:
        """See Provider."""
        vnics = self.read(_VNICS)
        return instance(vnics, self.facts(vnics, _INSTANCE).get(_INSTANCE))

    def credentials(self) -> dict[str, Any]:
        """The certificate and the key of the instance principal ("Calling Services from an Instance")."""
        paths = [f"/opc/v2/identity/{name}" for name in _IDENTITY]
        return {path: self.text(path) for path in paths}


def instance(vnics: Node, facts: Node | None = None) -> Instance:
    """The instance that /opc/v2/vnics/ and /opc/v2/instance/ describe."""
    nodes = vnics.items()

    def vnic(node: Node, mac: str) -> Interface:
        return _interface(node, mac, nodes.index(node))

    found = each(nodes, lambda node: node.at("macAddr").mac(), vnic)
    return Instance(NAME, *found, system=_system(facts) if facts else {"public-keys": []})


def _interface(node: Node, mac: str, number: int) -> Interface:
    tag = node.find("vlanTag")
    if node.find("nicIndex") and tag and tag.number(0, 4095):
        raise NotYetError(f"{tag.path}: {tag.value}: {mac} is a VLAN on a bare metal machine")
    parts = Parts(mac, node.path)
    for prefix in (node.given("subnetCidrBlock"), node.given("ipv6SubnetCidrBlock")):
        if prefix:
            parts.subnets.append(prefix.network())
    if private := node.given("privateIp"):
        parts.address(private)
    for address in node.items("ipv6Addresses"):
        parts.address(address)
    parts.gateway(node.given("virtualRouterIp"), 4)
    parts.gateway(node.given("ipv6VirtualRouterIp"), 6)
    return parts.interface(node.value, number)


def _system(facts: Node) -> dict[str, Any]:
    """Not `metadata` as a whole: it is the user's, user_data and whatever else."""
    found = facts.find("metadata") if isinstance(facts.value, dict) else None
    keys = found.pick("ssh_authorized_keys") if found else {}
    return facts.pick(*_FACTS) | {"public-keys": texts(keys.get("ssh_authorized_keys"))}
