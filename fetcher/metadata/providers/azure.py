"""Microsoft Azure: the Instance Metadata Service (IMDS).

Sources: "Azure Instance Metadata Service" (learn.microsoft.com/azure/virtual-machines/instance-metadata-service): the
header, api-version and `newest-versions`, network metadata, attested data, and the status codes 410, 429 and 5xx; the
subnet's first address is the default gateway: "Azure Virtual Network FAQ", reserved addresses; the chassis asset tag of
every VM: "How to identify Azure VMs" of cloud-init's Azure data source (docs.cloud-init.io). A NIC with an empty
ipAddress list: cloud-init's tests/unittests/sources/test_azure.py.

DHCP sets the primary address of each interface. With accelerated networking each interface is two links with one MAC, a
VF below a synthetic one ("How Accelerated Networking works in Linux"); `match_links` takes the synthetic one. IPv6
addresses have no subnet: each is configured alone, as DHCPv6 sets it.
"""

from __future__ import annotations

import base64
import re
import time
from dataclasses import replace
from typing import Any

from cloud_network.fetcher.metadata.base import Provider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, parse_json
from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance, MetadataError

_VERSION = "2025-04-07"  # the newest; a region that does not have it yet offers others
_HEADERS = {"Metadata": "true"}
_INSTANCE, _ATTESTED = "/metadata/instance", "/metadata/attested/document"
_TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F"  # noqa: S105
_BUSY = (410, 429, 500, 503)
_FACTS = (
    "additionalCapabilities", "azEnvironment", "evictionPolicy", "extendedLocation", "host", "hostGroup",
    "isHostCompatibilityLayerVm", "isVmInStandbyPool", "licenseType", "location", "name", "offer", "osProfile",
    "osType", "physicalZone", "placementGroupId", "plan", "platformFaultDomain", "platformSubFaultDomain",
    "platformUpdateDomain", "priority", "provider", "publicKeys", "publisher", "resourceGroupName", "resourceId",
    "securityProfile", "sku", "storageProfile", "subscriptionId", "tags", "tagsList", "version",
    "virtualMachineScaleSet", "vmId", "vmScaleSetName", "vmSize", "zone",
)  # fmt: skip  # of `compute` all but userData and customData, which are the user's, and keys that may come
_SSH2 = ("---- BEGIN SSH2 PUBLIC KEY ----", "---- END SSH2 PUBLIC KEY ----")
_OPENSSH = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ ")  # the type that a key begins with
_ATTESTED_FOR_S, _ATTESTED_AGAIN_S = 3 * 3600.0, 600.0  # the signature holds for six hours


class Azure(Provider):
    """A Provider: one request a refresh, and the attested document every few hours."""

    name = "azure"
    endpoints = ("169.254.169.254",)

    def __init__(self, client: Client | None = None) -> None:
        super().__init__(client)
        self._version = _VERSION
        self._identity: dict[str, bytes] = {}
        self._attest_at = 0.0

    def read(self) -> Instance:
        """See Provider."""
        found = instance(parse_json(self._text(_INSTANCE), _INSTANCE))
        self._attest()
        return replace(found, identity=self._identity)

    def send_probe(self) -> bool:
        """See Provider."""
        answer = self._get(_INSTANCE)
        return answer.status in _BUSY or (answer.status == 200 and answer.text(_INSTANCE).lstrip().startswith("{"))

    def credentials(self) -> dict[str, Any]:
        """Return a token of the VM's managed identity for Azure Resource Manager; nothing if it has none."""
        answer = self.client.request("GET", _TOKEN, _HEADERS)
        if answer.status in (400, 404):
            return {}
        if answer.status != 200:
            raise answer.error("/metadata/identity/oauth2/token")
        return {"identity/oauth2/token": parse_json(answer.text(_TOKEN), "/metadata/identity/oauth2/token").value}

    def _get(self, path: str) -> Response:
        return self.client.request("GET", f"{path}?api-version={self._version}", _HEADERS)

    def _text(self, path: str) -> str:
        answer = self._get(path)
        if answer.status == 400 and (other := _offered_version(answer, self._version)):
            self._version = other
            answer = self._get(path)
        if answer.status != 200:
            raise answer.error(path)
        return answer.text(path)

    def _attest(self) -> None:
        """Read the signed document, which is only shown: if it fails, it is read again later."""
        if time.monotonic() < self._attest_at:
            return
        self._attest_at = time.monotonic() + _ATTESTED_AGAIN_S
        try:
            signed = parse_json(self._text(_ATTESTED), _ATTESTED)
            signature = signed.at("signature").text()
        except MetadataError:
            return
        if signed.value.get("encoding") == "pkcs7" and signature.isascii():
            self._identity = {"pkcs7": signature.encode()}
        self._attest_at = time.monotonic() + _ATTESTED_FOR_S


def _offered_version(answer: Response, refused: str) -> str | None:
    """Return the newest version offered that is older than _VERSION, else the oldest."""
    try:
        document = parse_json(answer.text(_INSTANCE), _INSTANCE)
        offered = sorted(node.text() for node in document.items("newest-versions"))
    except MetadataError:
        return None
    usable = [each for each in offered if len(each) == 10 and each.replace("-", "").isdecimal() and each.isascii()]
    older = [each for each in usable if each < refused]
    return older[-1] if older else next((each for each in usable if each != refused), None)


def instance(document: Node) -> Instance:
    """Return the instance that /metadata/instance describes."""
    builder = InstanceBuilder(Azure.name)
    builder.read_interfaces(document.at("network").items("interface"), lambda node: node.at("macAddress").mac(), _fill)
    return builder.build(_system(document))


def _system(document: Node) -> dict[str, Any]:
    """Return facts of `compute`."""
    compute = Node(document.value.get("compute"))
    listed = compute.pick("publicKeys").get("publicKeys")
    texts = [key.get("keyData") for key in listed if isinstance(key, dict)] if isinstance(listed, list) else []
    keys = [key for text in texts if isinstance(text, str) for key in ssh_keys(text)]
    return compute.pick(*_FACTS) | {"public-keys": keys}


def ssh_keys(data: str) -> list[str]:
    """Return the keys of one keyData, each in OpenSSH's form on one line.

    Azure breaks a key that it has created into lines of 64 characters (cloud-init's pull request 759). It also accepts
    keys in the format of RFC 4716 ("Detailed steps: Create and manage SSH keys"). A keyData can be an X.509
    certificate, which is returned unchanged.
    """
    lines = [line.strip() for line in data.splitlines() if line.strip()]
    if lines and lines[0] == _SSH2[0] and lines[-1] == _SSH2[1]:
        return _from_ssh2(lines[1:-1])
    if lines and lines[0].startswith("-----BEGIN "):
        return ["\n".join(lines)]
    keys = list[str]()
    for line in data.splitlines():
        if _OPENSSH.match(line) or not keys:
            keys.append(line)
        else:
            keys[-1] += line
    return [key.strip() for key in keys if key.strip()]


def _from_ssh2(lines: list[str]) -> list[str]:
    """Return a key of RFC 4716: headers, continued after a backslash at the end of a line, and base64."""
    body, in_header = "", False
    for line in lines:
        is_header = in_header or ":" in line
        in_header = is_header and line.endswith("\\")
        body += "" if is_header else line
    try:
        blob = base64.b64decode(body, validate=True)
        kind = blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii")
    except ValueError:
        return []
    return [f"{kind} {body}"] if _OPENSSH.match(f"{kind} ") else []


def _fill(node: Node, builder: InterfaceBuilder, position: int) -> None:
    builder.number = position
    builder.expect(node, "ipv4", "ipv6")
    for version, key in ((4, "ipv4"), (6, "ipv6")):
        with builder.part():
            if family := node.find(key):
                _fill_family(family, builder, version)
    builder.add_first_as_gateway()


def _fill_family(family: Node, builder: InterfaceBuilder, version: int) -> None:
    builder.expect(family, "ipAddress")
    if version == 4:
        builder.expect_entries(family, "ipAddress", "subnet")
    for entry in family.items("subnet"):
        builder.expect(entry, "address")
        with builder.part():
            if address := entry.given("address"):
                length = entry.at("prefix").number(0, 32 if version == 4 else 128)
                builder.add_subnet(Node(f"{address.address(version)}/{length}", address.path).network(version))
    for entry in family.items("ipAddress"):
        builder.expect(entry, "privateIpAddress")
        with builder.part():
            if (public := entry.given("publicIpAddress")) is not None:
                builder.public.append(public.address(version))
        with builder.part():
            if (private := entry.given("privateIpAddress")) is not None:
                _add_private(private, builder, version)


def _add_private(node: Node, builder: InterfaceBuilder, version: int) -> None:
    """Add an address, or a block of them (Azure CNI). An IPv6 address outside the subnets is added as /128."""
    if "/" in node.text():
        builder.add_range(node, node.network(version))
    elif version == 6 and not any(node.address(6) in subnet for subnet in builder.subnets):
        builder.add_address(node, 6, 128)
    else:
        builder.add_address(node, version)
