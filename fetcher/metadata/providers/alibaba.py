"""Alibaba Cloud ECS: the instance metadata service, in security hardening mode where there is one.

Sources, in the ECS user guide: "Instance metadata" (www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata)
for the items, the token (PUT /latest/api/token, 1 to 21600 seconds), 400, 401 and 403; "Use instance identities" for
the signed document. Lists are written ["192.168.0.1"] or [2408::1] there, prefixes bare.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cloud_network.fetcher.metadata.model import Instance, Interface, MetadataError
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.tree import Leaves, Session, TreeProvider, assembled, words

NAME = "alibaba"
ENDPOINT = "100.100.100.200"
_NETWORK_KEYS = (
    "primary-ip-address", "private-ipv4s", "vswitch-cidr-block", "gateway", "ipv4-prefixes", "ipv6s",
    "vswitch-ipv6-cidr-block", "ipv6-gateway", "ipv6-prefixes",
)  # fmt: skip
_SYSTEM_KEYS = (
    "instance-id", "instance/instance-type", "instance/instance-name", "hostname", "region-id", "zone-id", "image-id",
    "owner-account-id", "serial-number", "mac", "network-type", "private-ipv4", "eipv4", "public-ipv4", "vpc-id",
    "vpc-cidr-block", "vswitch-id", "vswitch-cidr-block", "dns-conf/nameservers",
)  # fmt: skip


class Alibaba(TreeProvider):
    """A Provider."""

    name = NAME
    endpoint = ENDPOINT
    session = Session("/latest/api/token", "X-aliyun-ecs-metadata-token-ttl-seconds", "X-aliyun-ecs-metadata-token")
    system_keys = _SYSTEM_KEYS
    identity = MappingProxyType({part: f"/latest/dynamic/instance-identity/{part}" for part in ("document", "pkcs7")})
    shown_keys = ("network-interface-id", "vpc-id", "vpc-cidr-block", "vswitch-id", "vpc-ipv6-cidr-blocks")
    roles = "ram/security-credentials/"

    def leaves(self, directory: str, listed: set[str]) -> Leaves:
        """See TreeProvider. The netmask says no more than the vSwitch's block, and is read only in its place."""
        if not listed & {"private-ipv4s", "ipv6s"}:
            raise MetadataError("invalid", f"{directory}: the listing is not an interface's: it has no address")
        keys = [key for key in _NETWORK_KEYS if key in listed]
        if "vswitch-cidr-block" not in listed and "netmask" in listed:
            keys.append("netmask")
        return {key: self.leaf(directory + key) for key in keys}

    def instance(self, macs: Mapping[str, Leaves], primary: str) -> Instance:
        """See TreeProvider."""
        return instance(macs, primary)


def instance(macs: Mapping[str, Leaves], primary: str = "") -> Instance:
    """The instance whose interfaces have these leaves below their MACs."""
    return assembled(
        NAME, macs, lambda mac, where, leaves: _interface(mac, where, leaves, mac == primary.strip().lower())
    )


def _interface(mac: str, where: str, leaves: Leaves, primary: bool) -> Interface:
    parts = Parts(mac, where)
    for version, key in ((4, "vswitch-cidr-block"), (6, "vswitch-ipv6-cidr-block")):
        parts.subnets += [word.network(version) for word in words(where, leaves, key)]
    masks = words(where, leaves, "netmask")
    length = masks[0].length(4) if masks else None
    addresses = words(where, leaves, "private-ipv4s")
    first = leaves.get("primary-ip-address", "").strip()
    for node in sorted(addresses, key=lambda each: each.value != first):
        node.address(4)
        parts.address(node, length)
    for node in words(where, leaves, "ipv6s"):
        node.address(6)
        parts.address(node)
    for version, key in ((4, "ipv4-prefixes"), (6, "ipv6-prefixes")):
        for node in words(where, leaves, key):
            parts.range(node.network(version), node.path)
    for version, key in ((4, "gateway"), (6, "ipv6-gateway")):
        for node in words(where, leaves, key)[:1]:
            parts.gateway(node, version)
    return parts.interface(leaves, 0 if primary else None)
