"""Tencent Cloud CVM: the instance metadata service.

Source: "Querying Instance Metadata" (intl.cloud.tencent.com/document/product/213/4934), which names every item and the
server, metadata.tencentyun.com; it is asked at that name's address, so that nobody's resolver decides who answers.
The page has no IPv6: those addresses come by DHCPv6. All addresses of an interface are in its one subnet ("Elastic
Network Interface", …/product/576): mask and gateway are read of the primary address, for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

from cloud_network.fetcher.metadata.model import Instance, Interface, MetadataError
from cloud_network.fetcher.metadata.providers.document import Node
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.tree import Gone, Leaves, TreeProvider, assembled, words

NAME = "tencent"
ENDPOINT = "169.254.0.23"
_IPS = "local-ipv4s"
_SYSTEM_KEYS = (
    "instance-id", "instance-name", "uuid", "instance/instance-type", "instance/image-id", "placement/region",
    "placement/zone", "mac", "local-ipv4", "public-ipv4", "app-id", "payment/charge-type", "payment/create-time",
)  # fmt: skip


class Tencent(TreeProvider):
    """A Provider."""

    name = NAME
    endpoint = ENDPOINT
    headers = MappingProxyType({"Host": "metadata.tencentyun.com"})
    system_keys = _SYSTEM_KEYS
    shown_keys = ("vpc-id", "subnet-id")
    roles = "cam/security-credentials/"

    def leaves(self, directory: str, listed: set[str]) -> Leaves:
        """See TreeProvider. Six requests, however many addresses there are."""
        if not {"mac", "primary-local-ipv4", _IPS} <= listed:
            raise MetadataError("invalid", f"{directory}: the listing is not an interface's: {sorted(listed)}")
        primary = self.leaf(directory + "primary-local-ipv4").strip()
        addresses = [line.rstrip("/") for line in self.listing(f"{directory}{_IPS}/")]
        if primary not in addresses:
            raise MetadataError("changed", f"{directory}{_IPS}/: has no {primary}, the primary; it is read again")
        found = {"primary-local-ipv4": primary, _IPS: "\n".join(addresses)}
        for key in ("gateway", "subnet-mask"):
            found[key] = self.leaf(f"{directory}{_IPS}/{primary}/{key}")
        with suppress(Gone):  # only shown, and whether it is listed where there is none is nowhere said
            public = self.leaf(directory + "public-ipv4s") if "public-ipv4s" in listed else ""
            found |= {"public-ipv4s": public} if public.strip() else {}
        return found

    def instance(self, macs: Mapping[str, Leaves], primary: str) -> Instance:
        """See TreeProvider."""
        return instance(macs, primary)


def instance(macs: Mapping[str, Leaves], primary: str = "") -> Instance:
    """The instance whose interfaces have these leaves; mask and gateway are those of the primary address."""
    return assembled(
        NAME, macs, lambda mac, where, leaves: _interface(mac, where, leaves, mac == primary.strip().lower())
    )


def _interface(mac: str, where: str, leaves: Leaves, primary: bool) -> Interface:
    parts = Parts(mac, where)
    first = Node(leaves.get("primary-local-ipv4", ""), where + "primary-local-ipv4")
    first.address(4)
    parts.address(first, Node(leaves.get("subnet-mask", ""), f"{where}{_IPS}/{first.value}/subnet-mask").length(4))
    for node in words(where, leaves, _IPS):
        node.address(4)
        parts.address(node)
    for node in words(where, leaves, "public-ipv4s"):
        parts.public.append(node.address(4))
    parts.gateway(Node(leaves.get("gateway", ""), f"{where}{_IPS}/{first.value}/gateway"), 4)
    return parts.interface(leaves, 0 if primary else None)
