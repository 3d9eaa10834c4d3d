"""Alibaba Cloud ECS: the instance metadata service, in security hardening mode where there is one.

Sources, in the ECS user guide: "Instance metadata" (www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata)
for the items, the token (PUT /latest/api/token, 1 to 21600 seconds), 400, 401 and 403; "Use instance identities" for
the signed document. Lists are written ["192.168.0.1"] or [2408::1] there, prefixes bare.
"""

from __future__ import annotations

from types import MappingProxyType

from cloud_network.fetcher.metadata.builder import InterfaceBuilder
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.tree import Leaves, TokenRequest, TreeProvider

# Every interface has these. The names are sorted: a truncated listing lacks the last ones.
_ALWAYS = ("gateway", "primary-ip-address", "private-ipv4s", "vpc-id", "vswitch-cidr-block", "vswitch-id")
_INTERFACE_KEYS = {"network-interface-id", "mac", "vpc-id", "vswitch-id", "private-ipv4s", "ipv6s"}


class Alibaba(TreeProvider):
    """A Provider."""

    name = "alibaba"
    endpoints = ("100.100.100.200",)
    token_request = TokenRequest(
        "/latest/api/token", "X-aliyun-ecs-metadata-token-ttl-seconds", "X-aliyun-ecs-metadata-token"
    )
    network_keys = (
        "primary-ip-address", "private-ipv4s", "vswitch-cidr-block", "gateway", "ipv4-prefixes", "ipv6s",
        "vswitch-ipv6-cidr-block", "ipv6-gateway", "ipv6-prefixes",
    )  # fmt: skip
    shown_keys = ("network-interface-id", "vpc-id", "vpc-cidr-block", "vswitch-id", "vpc-ipv6-cidr-blocks")
    system_keys = (
        "instance-id", "instance/instance-type", "instance/instance-name", "hostname", "region-id", "zone-id",
        "image-id", "owner-account-id", "serial-number", "mac", "network-type", "private-ipv4", "eipv4", "public-ipv4",
        "vpc-id", "vpc-cidr-block", "vswitch-id", "vswitch-cidr-block", "dns-conf/nameservers",
    )  # fmt: skip
    identity = MappingProxyType({part: f"/latest/dynamic/instance-identity/{part}" for part in ("document", "pkcs7")})
    role_directories = ("ram/security-credentials/",)

    def leaves(self, directory: str, listed: frozenset[str]) -> Leaves:
        """See TreeProvider. The netmask is read only if the vSwitch's block is missing."""
        if not listed & _INTERFACE_KEYS:
            raise MetadataError("invalid", f"{directory}: the listing is not an interface's: {sorted(listed)[:8]}")
        found = super().leaves(directory, listed)
        if "vswitch-cidr-block" not in listed and "netmask" in listed:
            self.read_leaf(found, "netmask")
        return found

    def fill(self, builder: InterfaceBuilder, leaves: Leaves) -> None:
        """See TreeProvider. Without private-ipv4s, primary-ip-address is the one address."""
        builder.missing += [f"{builder.path}{key}: not listed" for key in _ALWAYS if key not in leaves.listed]
        if "ipv6s" in leaves.listed and "vswitch-ipv6-cidr-block" not in leaves.listed:
            builder.missing.append(f"{builder.path}vswitch-ipv6-cidr-block: not listed")
        self._fill_ipv4(builder, leaves)
        if "vswitch-ipv6-cidr-block" not in leaves.errors:
            for node in leaves.words(builder, "vswitch-ipv6-cidr-block"):
                with builder.part():
                    builder.add_subnet(node.block(6))
            for node in leaves.words(builder, "ipv6s"):
                with builder.part():
                    builder.add_address(node, 6)
        for version, key in ((4, "ipv4-prefixes"), (6, "ipv6-prefixes")):
            for node in leaves.words(builder, key):
                with builder.part():
                    builder.add_range(node, node.block(version))
        for version, key in ((4, "gateway"), (6, "ipv6-gateway")):
            with builder.part():
                builder.add_gateway(next(iter(leaves.words(builder, key)), None), version)

    def _fill_ipv4(self, builder: InterfaceBuilder, leaves: Leaves) -> None:
        if {"vswitch-cidr-block", "netmask"} & leaves.errors.keys():
            return  # without their subnet the addresses would be misconfigured; they are read again
        for node in leaves.words(builder, "vswitch-cidr-block"):
            with builder.part():
                builder.add_subnet(node.block(4))
        length = None
        with builder.part():
            length = next((mask.mask() for mask in leaves.words(builder, "netmask")), None)
        primary = leaves.words(builder, "primary-ip-address")
        first = primary[0].value if primary else ""
        for node in sorted(leaves.words(builder, "private-ipv4s") or primary, key=lambda each: each.value != first):
            with builder.part():
                builder.add_address(node, 4, length)
