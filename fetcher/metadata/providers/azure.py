"""Microsoft Azure: the Instance Metadata Service (IMDS).

Sources: "Azure Instance Metadata Service" (learn.microsoft.com/azure/virtual-machines/instance-metadata-service): the
header, api-version and `newest-versions`, network metadata, attested data, and the status codes 410, 429 and 5xx; the
subnet's first address is the default gateway: "Azure Virtual Network FAQ", reserved addresses; the chassis asset tag of
every VM: "How to identify Azure VMs" of cloud-init's Azure data source (docs.cloud-init.io).

DHCP gives the primary address of each interface. With accelerated networking each interface is two links with one MAC,
a VF below a synthetic one ("How Accelerated Networking works in Linux"); `match_links` takes the synthetic one.
IPv6 addresses come without a subnet: each stands alone, as DHCPv6 gives it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import (
    Instance,
    Interface,
    IPAddress,
    IPInterface,
    IPNetwork,
    MetadataError,
    invalid,
    parse_network,
    place,
)
from cloud_network.fetcher.metadata.providers.document import Node, each, parse, texts

NAME = "azure"
ENDPOINT = "169.254.169.254"
_VERSION = "2025-04-07"  # the newest; a region that has not got it yet offers others
_HEADERS = {"Metadata": "true"}
_INSTANCE, _ATTESTED = "/metadata/instance", "/metadata/attested/document"
_TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F"  # noqa: S105
_LOOK = 2.0  # seconds that it may take to see whether the server still answers
_BUSY = (410, 429, 500, 503)
_FACTS = (
    "additionalCapabilities", "azEnvironment", "evictionPolicy", "extendedLocation", "host", "hostGroup",
    "isHostCompatibilityLayerVm", "isVmInStandbyPool", "licenseType", "location", "name", "offer", "osProfile",
    "osType", "physicalZone", "placementGroupId", "plan", "platformFaultDomain", "platformSubFaultDomain",
    "platformUpdateDomain", "priority", "provider", "publisher", "resourceGroupName", "resourceId", "securityProfile",
    "sku", "storageProfile", "subscriptionId", "tags", "tagsList", "version", "virtualMachineScaleSet", "vmId",
    "vmScaleSetName", "vmSize", "zone",
)  # fmt: skip  # all of `compute` but userData and customData, which are the user's, and whatever comes to be
_ATTESTED_FOR, _ATTESTED_AGAIN = 3 * 3600.0, 600.0  # seconds: the signature says for how long it holds, six hours


class Azure:
    """A Provider: one request a refresh, and the attested document every few hours."""

    name = NAME

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client(ENDPOINT)
        self.unread = False
        self._version = _VERSION
        self._identity: dict[str, bytes] = {}
        self._attest_at = 0.0

    def fetch(self) -> Instance:
        """See Provider."""
        found = instance(parse(self._read(_INSTANCE), _INSTANCE))
        self._attest()
        return replace(found, identity=self._identity)

    def answers(self) -> bool:
        """See Provider. Asked twice: a kept connection may have had an address for its source that is gone."""
        for _ in range(2):
            try:
                answer = self._get(_INSTANCE, _LOOK)
                return answer.status in _BUSY or (
                    answer.status == 200 and answer.text(_INSTANCE).lstrip().startswith("{")
                )
            except MetadataError:
                continue
        return False

    def credentials(self) -> dict[str, Any]:
        """A token of the VM's managed identity, for Azure Resource Manager; nothing where it has none."""
        answer = self.client.request("GET", _TOKEN, _HEADERS)
        if answer.status in (400, 404):
            return {}
        if answer.status != 200:
            raise answer.error("/metadata/identity/oauth2/token")
        return {"identity/oauth2/token": parse(answer.text(_TOKEN), "/metadata/identity/oauth2/token").value}

    def _get(self, path: str, seconds: float = 5.0) -> Response:
        return self.client.request("GET", f"{path}?api-version={self._version}", _HEADERS, seconds)

    def _read(self, path: str) -> str:
        answer = self._get(path)
        if answer.status == 400 and (other := _another_version(answer, self._version)):
            self._version = other
            answer = self._get(path)
        if answer.status != 200:
            raise answer.error(path)
        return answer.text(path)

    def _attest(self) -> None:
        """The signed document, which is only shown: a failure costs nothing but time."""
        if time.monotonic() < self._attest_at:
            return
        self._attest_at = time.monotonic() + _ATTESTED_AGAIN
        try:
            signed = parse(self._read(_ATTESTED), _ATTESTED)
            signature = signed.at("signature").text()
        except MetadataError:
            return
        if signed.value.get("encoding") == "pkcs7" and signature.isascii():
            self._identity = {"pkcs7": signature.encode()}
        self._attest_at = time.monotonic() + _ATTESTED_FOR


def _another_version(answer: Response, refused: str) -> str | None:
    """Of the versions that the server offers instead, the newest that is older than ours, else the oldest."""
    try:
        offered = sorted(node.text() for node in parse(answer.text(_INSTANCE), _INSTANCE).items("newest-versions"))
    except MetadataError:
        return None
    usable = [each for each in offered if len(each) == 10 and each.replace("-", "").isdecimal() and each.isascii()]
    older = [each for each in usable if each < refused]
    return older[-1] if older else next((each for each in usable if each != refused), None)


def instance(root: Node) -> Instance:
    """What /metadata/instance says."""
    nodes = root.at("network").items("interface")
    order = {node.path: position for position, node in enumerate(nodes)}
    found = each(
        nodes, lambda node: node.at("macAddress").mac(), lambda node, mac: _interface(node, mac, order[node.path])
    )
    return Instance(NAME, *found, system=_system(root))


def _system(root: Node) -> dict[str, Any]:
    """Facts of `compute`."""
    compute = Node(root.value.get("compute"))
    keys = compute.pick("publicKeys").get("publicKeys")
    listed = [key.get("keyData") for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
    return compute.pick(*_FACTS) | {"public-keys": texts(listed)}


def _interface(node: Node, mac: str, position: int) -> Interface:
    subnets, addresses, ranges, public = list[IPNetwork](), list[IPInterface](), list[IPNetwork](), list[IPAddress]()
    for version, key in ((4, "ipv4"), (6, "ipv6")):
        family = node.find(key)
        if family is None:
            continue
        own = [_subnet(entry, version) for entry in family.items("subnet") if entry.find("address")]
        subnets += own
        for entry in family.items("ipAddress"):
            private, outside = (entry.find(f"{which}IpAddress") for which in ("private", "public"))
            if outside is not None and outside.value != "":
                public.append(outside.address(version))
            if private is None or private.value == "":
                continue
            if "/" in private.text():
                ranges.append(private.network(version))
            elif version == 6 and not any(private.address(6) in subnet for subnet in own):
                addresses.append(ip_interface(private.address(6)))
            else:
                addresses.append(place(private.path, private.address(version), tuple(own)))
    if not addresses:
        raise MetadataError("invalid", f"{node.path}: no address; every interface has one")
    gateways = tuple(subnet.network_address + 1 for subnet in subnets if subnet.version == 4)
    for address in addresses:
        if address.ip in gateways:
            raise invalid(f"{node.path}.ipv4.ipAddress", str(address.ip), "a host's: it is the subnet's gateway's")
    return Interface(
        mac=mac,
        addresses=tuple(dict.fromkeys(addresses)),
        subnets=tuple(dict.fromkeys(subnets)),
        gateways=gateways,
        device_number=position,
        ranges=tuple(dict.fromkeys(ranges)),
        public=tuple(public),
        document=node.value | {"mac": mac},
    )


def _subnet(node: Node, version: int) -> IPNetwork:
    address, prefix = node.at("address"), node.at("prefix").number(0, 32 if version == 4 else 128)
    return parse_network(address.path, f"{address.address(version)}/{prefix}")
