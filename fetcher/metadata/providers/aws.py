"""Amazon EC2: the instance metadata service, version 2.

Sources: "Use the Instance Metadata Service to access instance metadata" and "Instance metadata categories" in the
Amazon EC2 User Guide (docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html and
.../ec2-instance-metadata.html#instancemetadata-data-categories); the first address of a subnet is the VPC router's:
"Subnet CIDR blocks" in the Amazon VPC User Guide (docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html).

Interfaces that a container network plugin manages are named in Exclude=: amazon-vpc-cni-k8s marks them by tags of the
network interface (node.k8s.amazonaws.com/instance_id, .../no_manage), and the metadata has only the instance's own
tags ("Instance metadata categories", tags/instance/).

An EFA-only interface has no IP address ("Create and attach an Elastic Fabric Adapter"), and no link either; its
directory is whole and has neither local-ipv4s nor ipv6s (aws/amazon-vpc-cni-k8s pull request 3047).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from cloud_network.fetcher.metadata.builder import InterfaceBuilder, UnsupportedError
from cloud_network.fetcher.metadata.document import Node, parse_json
from cloud_network.fetcher.metadata.model import Interface, MetadataError
from cloud_network.fetcher.metadata.tree import Leaves, TokenRequest, TreeProvider

_EVENTS = ("events/maintenance/history", "events/maintenance/scheduled", "events/recommendations/rebalance")
_IDENTITY = "/latest/dynamic/instance-identity/"


class Aws(TreeProvider):
    """A Provider."""

    name = "aws"
    endpoints = ("169.254.169.254", "[fd00:ec2::254]")  # the second on Nitro, where it has been switched on
    token_request = TokenRequest(
        "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
    )
    network_keys = (
        "device-number", "network-card", "local-ipv4s", "subnet-ipv4-cidr-block", "ipv6s", "subnet-ipv6-cidr-blocks",
        "ipv4-prefix", "ipv6-prefix", "public-ipv4s",
    )  # fmt: skip
    shown_keys = (
        "interface-id", "local-hostname", "owner-id", "public-hostname", "security-group-ids", "security-groups",
        "subnet-id", "vpc-id", "vpc-ipv4-cidr-block", "vpc-ipv4-cidr-blocks", "vpc-ipv6-cidr-blocks",
    )  # fmt: skip
    system_keys = (
        "ami-id", "instance-id", "instance-type", "hostname", "placement/availability-zone",
        "placement/availability-zone-id", "placement/region", "services/domain", "services/partition",
        "ami-launch-index", "block-device-mapping/ami", "block-device-mapping/root", "public-hostname",
        "local-hostname", "instance-action", "instance-life-cycle", "profile", "public-ipv4", "reservation-id",
        "security-groups", "public-keys/0/openssh-key", "ami-manifest-path", *_EVENTS,
    )  # fmt: skip
    passing_keys = _EVENTS
    shown_directories = ("ipv4-associations",)
    numbers_devices = True
    lists_keys = False
    identity = MappingProxyType({part: _IDENTITY + part for part in ("document", "pkcs7", "signature", "rsa2048")})
    role_directories = ("iam/security-credentials/", "identity-credentials/ec2/security-credentials/")

    def leaves(self, directory: str, listed: frozenset[str]) -> Leaves:
        """See TreeProvider. A listing without `mac` is not that of an interface."""
        if "mac" not in listed:
            raise MetadataError("invalid", f"{directory}: the listing is not an interface's: it has no 'mac'")
        return super().leaves(directory, listed)

    def fill(self, builder: InterfaceBuilder, leaves: Leaves) -> None:
        """See TreeProvider. The whole listing (vpc-id is one of its last) proves that there is no address."""
        if "vpc-id" in leaves.listed and not leaves.listed & {"local-ipv4s", "ipv6s"}:
            raise UnsupportedError(f"{builder.path}: no address (an EFA-only interface); nothing is configured")
        if "vpc-id" not in leaves.listed:
            builder.problems.append(f"{builder.path}: the listing is not whole: it has no 'vpc-id'")
        with builder.part():
            builder.number = _number(leaves, "device-number")
        with builder.part():
            builder.network_card = _number(leaves, "network-card") or 0
        for subnets, addresses, ranges, version in (
            ("subnet-ipv4-cidr-block", "local-ipv4s", "ipv4-prefix", 4),
            ("subnet-ipv6-cidr-blocks", "ipv6s", "ipv6-prefix", 6),
        ):
            if version == 4 and subnets in leaves.listed and addresses not in leaves.listed:
                builder.missing.append(f"{builder.path}: lists {subnets} without {addresses}")
            if addresses in leaves.listed and subnets not in leaves.listed:
                builder.problems.append(f"{builder.path}: lists {addresses} without {subnets}")
                continue
            if subnets in leaves.errors:
                continue  # without their subnet the addresses would be misconfigured; they are read again
            for node in leaves.words(builder, subnets):
                with builder.part():
                    builder.add_subnet(node.block(version))
            for node in leaves.words(builder, addresses):
                with builder.part():
                    builder.add_address(node, version)
            for node in leaves.words(builder, ranges):
                with builder.part():
                    builder.add_range(node, node.block(version))
        for node in leaves.words(builder, "public-ipv4s"):
            with builder.part():
                builder.public.append(node.address())
        builder.add_first_as_gateway()

    def describe(self, texts: dict[str, str], keys: list[str], interfaces: tuple[Interface, ...]) -> dict[str, Any]:
        """See TreeProvider. The facts are nested as their paths are, as the Go original has them."""
        system: dict[str, Any] = {}
        for key, text in texts.items():
            *directories, leaf = key.split("/")
            node = system
            for directory in directories:
                node = node.setdefault(directory, {})
            node[leaf] = text
        primary = next((each for each in interfaces if (each.device_number, each.network_card) == (0, 0)), None)
        if primary is not None:
            system["mac"] = primary.mac
            if own := [str(address.ip) for address in primary.addresses if address.version == 4]:
                system["local-ipv4"] = own[0]
        return system

    def is_recognised(self) -> bool:
        """See Provider. The identity document is checked, as "Detect whether a host is an EC2 instance" requires."""
        path = _IDENTITY + "document"
        try:
            document = parse_json(self.get(path).text(path), path)
            return document.at("instanceId").text().startswith("i-") and bool(document.at("accountId").text())
        except MetadataError:
            return False


def _number(leaves: Leaves, key: str) -> int | None:
    text = leaves.texts.get(key)
    return Node(text.strip(), leaves.directory + key).number(0, 99999) if text is not None else None
