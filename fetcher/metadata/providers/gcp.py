"""Google Compute Engine: the metadata server.

Sources (docs.cloud.google.com/compute/docs/metadata): "About VM metadata" and "Predefined metadata keys" for what there
is, "Querying metadata" for `recursive`, `alt`, the ETag, `wait_for_change`, `last_etag` and `timeout_sec`, and for the
header Metadata-Flavor that is asked for and answered; "Detect if a VM is running in Compute Engine" for the product
name; "Alias IP ranges overview" (VPC). `networkInterfaces[].forwardedIpv6s` and its siblings are named as Google's
guest agent reads them.

A VM's interface is a /32: by default only the gateway answers ARP ("Create VMs with multiple network interfaces",
troubleshooting), so everything but the gateway goes by the gateway, the own subnet too. Alias ranges, forwarded and
target addresses are ranges, one object each.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, ip_interface, ip_network
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
    place,
)
from cloud_network.fetcher.metadata.providers.document import Node, each, parse

NAME = "gcp"
ENDPOINT = "169.254.169.254"  # not metadata.google.internal: a name is what a resolver says it is
ENDPOINT6 = "[fd20:ce::254]"  # of VMs with IPv6 alone
_ALL = "/computeMetadata/v1/?recursive=true&alt=json"
_ACCOUNTS = "/computeMetadata/v1/instance/service-accounts/"
_HEADERS = {"Metadata-Flavor": "Google"}
_LOOK = 2.0  # seconds that it may take to see whether the server still answers
_WAIT = 60  # seconds until the server says that nothing has changed
_RANGES = ("ipAliases", "forwardedIps", "forwardedIpv6s", "targetInstanceIps")
_FACTS = (
    "cpuPlatform", "description", "disks", "hostname", "id", "image", "licenses", "machineType", "maintenanceEvent",
    "name", "physicalHostTopology", "preempted", "scheduling", "tags", "zone",
)  # fmt: skip  # of these none can be a secret: attributes of all sorts and serviceAccounts can
_PROJECT = ("projectId", "numericProjectId")
_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]*/")


def probe() -> bool:
    """The header of every answer of the metadata server, the documented sign where there is no firmware to ask."""
    client = Client(ENDPOINT)
    try:
        return client.request("GET", "/", _HEADERS, _LOOK).headers.get("metadata-flavor") == "Google"
    except MetadataError:
        return False
    finally:
        client.close()


class Gcp:
    """A Provider, and Waiting: one request a refresh."""

    name = NAME

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client(ENDPOINT, ENDPOINT6)
        self.unread = False
        self._watcher = self.client.another()
        self._read_etag = ""  # of what `fetch` last read …
        self._seen_etag = ""  # … and of what `wait` last saw

    def fetch(self) -> Instance:
        """See Provider."""
        answer = self.client.request("GET", _ALL, _HEADERS)
        found = instance(parse(_googles(answer, _ALL), _ALL))
        self._read_etag = answer.headers.get("etag", "")
        return found

    def wait(self) -> bool:
        """See Waiting."""
        last = self._seen_etag or self._read_etag or "0"
        self._watcher.kinds = self.client.kinds
        path = f"{_ALL}&wait_for_change=true&timeout_sec={_WAIT}&last_etag={last}"
        answer = self._watcher.request("GET", path, _HEADERS, _WAIT + 10.0)
        _googles(answer, _ALL)
        etag = answer.headers.get("etag", "")
        if not re.fullmatch(r"[A-Za-z0-9._~-]{1,256}", etag):
            raise invalid("ETag", etag, "what one can wait with")
        self._seen_etag = etag
        return etag != self._read_etag

    def answers(self) -> bool:
        """See Provider. Asked twice: a kept connection may have had an address for its source that is gone."""
        for _ in range(2):
            try:
                answer = self.client.request("GET", "/computeMetadata/v1/instance/id", _HEADERS, _LOOK)
                return answer.status in (429, 503) or bool(_googles(answer, "instance/id"))
            except MetadataError:
                continue
        return False

    def credentials(self) -> dict[str, Any]:
        """A token for each of the VM's service accounts."""
        answer = self.client.request("GET", _ACCOUNTS, _HEADERS)
        if answer.status == 404:
            return {}
        found: dict[str, Any] = {}
        for line in _googles(answer, _ACCOUNTS).split():
            if not _ACCOUNT.fullmatch(line):
                raise invalid(_ACCOUNTS, line, "a service account")
            path = f"{_ACCOUNTS}{line}token"
            token = self.client.request("GET", path, _HEADERS)
            found[path.removeprefix("/computeMetadata/v1/")] = parse(_googles(token, path), path).value
        return found


def _googles(answer: Response, path: str) -> str:
    """The text of an answer that says that it is Google's."""
    if answer.status != 200:
        raise answer.error(path)
    if answer.headers.get("metadata-flavor") != "Google":
        raise MetadataError("invalid", f"{path}: the answer has no Metadata-Flavor: Google; it is somebody else's")
    return answer.text(path)


def instance(root: Node) -> Instance:
    """Return what /computeMetadata/v1/?recursive=true says."""
    nodes = root.at("instance").items("networkInterfaces")
    order = {node.path: position for position, node in enumerate(nodes)}
    found = each(
        nodes,
        lambda node: node.at("mac").mac(),
        lambda node, mac: _interface(node, mac, order[node.path]),
    )
    return Instance(NAME, *found, system=_system(root.value))


def _system(document: dict[str, Any]) -> dict[str, Any]:
    """Facts; of the attributes, which may hold anything, only the ssh keys."""
    own, project = ({} if not isinstance(part := document.get(key), dict) else part for key in ("instance", "project"))
    attributes, shared = ({} if not isinstance(part := of.get("attributes"), dict) else part for of in (own, project))
    if str(attributes.get("block-project-ssh-keys")).lower() == "true":
        shared = {}
    texts = [str(each["ssh-keys"]) for each in (attributes, shared) if "ssh-keys" in each]
    lines = (line.strip() for text in texts for line in text.splitlines())
    keys = [line.partition(":")[2].strip() if re.match(r"[^ :]+:", line) else line for line in lines if line]
    return {
        **{key: own[key] for key in _FACTS if key in own},
        "project": {key: project[key] for key in _PROJECT if key in project},
        "public-keys": list(dict.fromkeys(keys)),
    }


def _interface(node: Node, mac: str, position: int) -> Interface:
    """Return the interface at `node`, the `position`-th in the document."""
    addresses, subnets, gateways = list[IPInterface](), list[IPNetwork](), list[IPAddress]()
    if own := _given(node, "ip"):
        subnets.append(_subnet(own, node.find("subnetmask")))
        addresses.append(place(own.path, own.address(4), tuple(subnets)))
        if gateway := _given(node, "gateway"):
            gateways.append(gateway.address(4))
        elif subnets[0].prefixlen < 31:
            gateways.append(subnets[0].network_address + 1)
    for entry in node.items("ipv6s"):
        addresses.append(ip_interface(entry.address(6)))
    if gateway := _given(node, "gatewayIpv6"):
        gateways.append(gateway.address(6))
    if not addresses:
        raise MetadataError("invalid", f"{node.path}: no address; every interface has one")
    for address in addresses:
        if address.ip in gateways:
            raise invalid(f"{node.path}.ip", str(address.ip), "a host's: it is the gateway's")
    mtu = node.find("mtu")
    singles = {ip_network(address.ip) for address in addresses}
    ranges = (entry.network() for key in _RANGES for entry in node.items(key))
    outside = (entry.find("externalIp") for entry in node.items("accessConfigs"))
    return Interface(
        mac=mac,
        addresses=tuple(dict.fromkeys(addresses)),
        subnets=tuple(subnets),
        gateways=tuple(gateways),
        device_number=position,
        routed=True,
        ranges=tuple(dict.fromkeys(network for network in ranges if network not in singles)),
        public=tuple(entry.address() for entry in outside if entry is not None and entry.value != ""),
        mtu=mtu.number(1280, 65535) if mtu is not None else None,
        document=node.value | {"mac": mac},
    )


def _given(node: Node, key: str) -> Node | None:
    """What stands under `key`, unless it is missing or empty."""
    found = node.find(key)
    return None if found is None or found.value == "" else found


def _subnet(own: Node, mask: Node | None) -> IPNetwork:
    """The subnet of an address and a mask such as 255.255.240.0; without one, or with 255.255.255.255, it is alone."""
    if mask is None:
        return ip_network(own.address(4))
    try:
        hosts = int(IPv4Address(mask.text())) ^ 0xFFFFFFFF
    except ValueError:
        raise invalid(mask.path, mask.value, "a mask such as 255.255.240.0") from None
    if hosts & (hosts + 1) or hosts >= 1 << 24:
        raise invalid(mask.path, mask.value, "a mask such as 255.255.240.0")
    return ip_network((int(own.address(4)) & ~hosts, 32 - hosts.bit_length()))
