"""Tencent Cloud CVM: the instance metadata service.

Source: "Querying Instance Metadata" (intl.cloud.tencent.com/document/product/213/4934), which names every item and the
server, metadata.tencentyun.com; requests go to the address of that name, so that no resolver can redirect them. The
page has no IPv6: DHCPv6 sets those addresses. All addresses of an interface are in one subnet ("Elastic Network
Interface", .../product/576), so the mask and the gateway of the primary address apply to all.
"""

from __future__ import annotations

from contextlib import suppress
from types import MappingProxyType

from cloud_network.fetcher.metadata.builder import InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.tree import Leaves, NotFoundError, TreeProvider

_IPS, _PRIMARY = "local-ipv4s", "primary-local-ipv4"


class Tencent(TreeProvider):
    """A Provider."""

    name = "tencent"
    endpoints = ("169.254.0.23",)
    headers = MappingProxyType({"Host": "metadata.tencentyun.com"})
    network_keys = (_PRIMARY,)
    shown_keys = ("vpc-id", "subnet-id")
    system_keys = (
        "instance-id", "instance-name", "uuid", "instance/instance-type", "instance/image-id", "placement/region",
        "placement/zone", "mac", "local-ipv4", "public-ipv4", "app-id", "payment/charge-type", "payment/create-time",
    )  # fmt: skip
    role_directories = ("cam/security-credentials/",)

    def leaves(self, directory: str, listed: frozenset[str]) -> Leaves:
        """See TreeProvider. Six requests, however many addresses there are."""
        if not {"mac", _PRIMARY, _IPS} <= listed:
            raise MetadataError("invalid", f"{directory}: the listing is not an interface's: {sorted(listed)[:8]}")
        found = super().leaves(directory, listed)
        addresses = [line.rstrip("/") for line in self.listing(f"{directory}{_IPS}/")]
        primary = found.texts.get(_PRIMARY, "").strip()
        if primary and primary not in addresses:
            raise MetadataError("changed", f"{directory}{_IPS}/: has no {primary}, the primary; reading it again")
        found.texts[_IPS] = "\n".join(addresses)
        for key in ("gateway", "subnet-mask"):
            if primary:
                self.read_leaf(found, key, f"{_IPS}/{primary}/{key}")
        with suppress(NotFoundError):  # only shown; the documentation does not say whether it is listed if it is absent
            public = self.leaf(directory + "public-ipv4s") if "public-ipv4s" in listed else ""
            found.texts |= {"public-ipv4s": public} if public.strip() else {}
        return found

    def fill(self, builder: InterfaceBuilder, leaves: Leaves) -> None:
        """See TreeProvider."""
        if _PRIMARY not in leaves.texts or "subnet-mask" not in leaves.texts:
            return  # without their subnet the addresses would be misconfigured; they are read again
        mask = Node(leaves.texts["subnet-mask"].strip(), f"{leaves.directory}{_IPS}/.../subnet-mask").mask()
        for node in (*leaves.words(builder, _PRIMARY), *leaves.words(builder, _IPS)):
            with builder.part():
                builder.add_address(node, 4, mask)
        for node in leaves.words(builder, "public-ipv4s"):
            with builder.part():
                builder.public.append(node.address(4))
        if "gateway" in leaves.texts:
            with builder.part():
                builder.add_gateway(Node(leaves.texts["gateway"].strip(), f"{leaves.directory}{_IPS}/.../gateway"), 4)
