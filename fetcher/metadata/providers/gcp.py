"""Google Compute Engine: the metadata server.

Sources (docs.cloud.google.com/compute/docs/metadata): "About VM metadata" and "Predefined metadata keys" for what there
is, "Querying metadata" for `recursive`, `alt`, the ETag, `wait_for_change`, `last_etag` and `timeout_sec`, and for the
header Metadata-Flavor that is asked for and answered; "Detect if a VM is running in Compute Engine" for the product
name; "Alias IP ranges overview" (VPC). `networkInterfaces[].forwardedIpv6s` and its siblings, `vlanNetworkInterfaces`
(dynamic NICs: parent's index -> VLAN ID -> interface) and `sshKeys` are named as Google's guest agent reads them
(GoogleCloudPlatform/guest-agent, google_guest_agent, and google-guest-agent, internal/metadata).

A VM's interface is a /32: by default only the gateway answers ARP ("Create VMs with multiple network interfaces",
troubleshooting), so everything except the gateway is routed through the gateway, including the interface's own subnet.
Alias ranges, forwarded and target addresses are ranges, one object each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cloud_network.fetcher.metadata.base import BUSY, Provider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, lines_of, parse_json
from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance, IPNetwork, MetadataError, Problem, Vlan, invalid

_ALL = "/computeMetadata/v1/?recursive=true&alt=json"
_ID = "/computeMetadata/v1/instance/id"
_ACCOUNTS = "/computeMetadata/v1/instance/service-accounts/"
_HEADERS = {"Metadata-Flavor": "Google"}
_WAIT_S = 60  # timeout_sec of wait_for_change: the server answers then, also without a change
_RANGES = ("ipAliases", "forwardedIps", "forwardedIpv6s", "targetInstanceIps")
_VLANS = "vlanNetworkInterfaces"
_ALWAYS = ("forwardedIps", "ipAliases")
_SOMETIMES = ("ipv6s", "forwardedIpv6s", "targetInstanceIps")
_IPV4 = ("ip", "gateway", "subnetmask")
_FACTS = (
    "cpuPlatform", "description", "disks", "hostname", "id", "image", "licenses", "machineType", "maintenanceEvent",
    "name", "physicalHostTopology", "preempted", "scheduling", "tags", "virtualClock", "zone",
)  # fmt: skip  # of these none can be a secret; attributes of all sorts can
_ACCOUNT_FACTS = ("aliases", "email", "scopes")  # not tokens, which `recursive` leaves out anyway
_PROJECT = ("projectId", "numericProjectId")
_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]*/")
_ETAG = re.compile(r"[A-Za-z0-9._~-]{1,256}")


class Gcp(Provider):
    """A Provider, and WatchingProvider: one request a refresh.

    `wait_for_change` runs in another thread, with a client of its own; of the two ETags each thread writes one.
    """

    name = "gcp"
    endpoints = (
        "169.254.169.254",
        "[fd20:ce::254]",
    )  # no name, which a resolver could redirect; the second is for IPv6-only VMs

    def __init__(self, client: Client | None = None) -> None:
        super().__init__(client)
        self._watcher = self.client.clone()
        self._read_etag = ""  # of the last `read`
        self._seen_etag = ""  # of the last `wait_for_change`

    def read(self) -> Instance:
        """See Provider."""
        answer = self.client.request("GET", _ALL, _HEADERS)
        found = instance(parse_json(_text(answer, _ALL), _ALL))
        self._read_etag = answer.headers.get("etag", "")
        return found

    def wait_for_change(self) -> bool:
        """See WatchingProvider."""
        last = self._seen_etag or self._read_etag or "0"
        self._watcher.kinds = self.client.kinds
        path = f"{_ALL}&wait_for_change=true&timeout_sec={_WAIT_S}&last_etag={last}"
        answer = self._watcher.request("GET", path, _HEADERS, _WAIT_S + 10.0)
        _text(answer, _ALL)
        etag = answer.headers.get("etag", "")
        if not _ETAG.fullmatch(etag):
            raise invalid("ETag", etag, "a usable ETag")
        self._seen_etag = etag
        return etag != self._read_etag

    def send_probe(self) -> bool:
        """See Provider."""
        answer = self.client.request("GET", _ID, _HEADERS)
        return answer.status in BUSY or bool(_text(answer, _ID))

    def is_recognised(self) -> bool:
        """See Provider: the header of every answer of the metadata server."""
        try:
            answer = self.client.request("GET", "/", _HEADERS)
        except MetadataError:
            return False
        return answer.headers.get("metadata-flavor") == "Google"

    def credentials(self) -> dict[str, Any]:
        """Return a token for each of the VM's service accounts."""
        answer = self.client.request("GET", _ACCOUNTS, _HEADERS)
        if answer.status == 404:
            return {}
        found: dict[str, Any] = {}
        for line in _text(answer, _ACCOUNTS).split():
            if not _ACCOUNT.fullmatch(line):
                raise invalid(_ACCOUNTS, line, "a service account")
            path = f"{_ACCOUNTS}{line}token"
            token = self.client.request("GET", path, _HEADERS)
            found[path.removeprefix("/computeMetadata/v1/")] = parse_json(_text(token, path), path).value
        return found


def _text(answer: Response, path: str) -> str:
    """Return the text of an answer with the header Metadata-Flavor: Google."""
    if answer.status != 200:
        raise answer.error(path)
    if answer.headers.get("metadata-flavor") != "Google":
        raise MetadataError("invalid", f"{path}: the answer has no Metadata-Flavor: Google; another server sent it")
    return answer.text(path)


def instance(document: Node) -> Instance:
    """Return the instance that /computeMetadata/v1/?recursive=true describes."""
    root = document.at("instance")
    nodes = root.items("networkInterfaces")
    builder = InstanceBuilder(Gcp.name)
    builder.expect_entries(root, "networkInterfaces")
    vlan_parents = Node(root.pick(_VLANS).get(_VLANS), f"instance.{_VLANS}")
    nulls = (*root.nulls(_VLANS), *vlan_parents.nulls(*_keys(vlan_parents)))
    builder.missing += [Problem("", f"{path}: null") for path in nulls]
    builder.read_interfaces(nodes, _mac, _fill)
    macs = {index: node.pick("mac").get("mac") for index, node in enumerate(nodes)}
    for parent, vlans in _below(root, _VLANS, builder):
        parent_mac = str(macs.get(int(parent), "")).lower() if parent.isascii() and parent.isdecimal() else ""

        def fill(node: Node, interface: InterfaceBuilder, _position: int, parent_mac: str = parent_mac) -> None:
            interface.vlan = Vlan(node.at("vlan").number(1, 4094), parent_mac)
            _fill(node, interface, None)

        own = [node for _, node in vlans if _has_own_mac(node, macs.values())]
        for node in (node for _, node in vlans if node not in own):
            builder.notices.append(f"{node.path}: a VLAN with the MAC of its parent, which is not configured")
        builder.read_interfaces(own, _mac, fill)
    return builder.build(_system(document.value))


def _mac(node: Node) -> str:
    return node.at("mac").mac()


def _has_own_mac(node: Node, macs: Iterable[object]) -> bool:
    written = node.pick("mac").get("mac")
    return written is None or written not in macs


def _below(root: Node, key: str, builder: InstanceBuilder) -> list[tuple[str, list[tuple[str, Node]]]]:
    """Return (parent's index, [(VLAN ID, interface)]) of each; a part that is not understood is reported."""
    found = []
    try:
        for parent, vlans in _entries(root.find(key)):
            found.append((parent, _entries(vlans)))
            builder.missing += [Problem("", f"{path}: null") for path in vlans.nulls(*_keys(vlans))]
    except MetadataError as error:
        builder.report(str(error))
    return found


def _keys(node: Node) -> list[str]:
    return list(node.value) if isinstance(node.value, dict) else []


def _entries(node: Node | None) -> list[tuple[str, Node]]:
    """Return the entries of an object by their keys, or of a list by their positions."""
    if node is None:
        return []
    if isinstance(node.value, list):
        return [(str(index), entry) for index, entry in enumerate(node.items())]
    if not isinstance(node.value, dict):
        raise invalid(node.path, node.value, "an object")
    return [(key, node.at(key)) for key, value in node.value.items() if value is not None]


def _fill(node: Node, builder: InterfaceBuilder, position: int | None) -> None:
    builder.number, builder.routed = position, True
    builder.expect(node, *_ALWAYS)
    builder.expect_no_null(node, *_SOMETIMES)
    has_ipv6 = not node.lacks("gatewayIpv6")
    if has_ipv6:
        builder.expect_entries(node, "ipv6s")
    if not has_ipv6 or len(node.lacks(*_IPV4)) < len(_IPV4):  # else it has IPv6 only
        builder.expect(node, *_IPV4)
    with builder.part():
        if own := node.given("ip"):
            subnet = _subnet(own, node.given("subnetmask"))
            builder.add_subnet(subnet)
            builder.add_address(own, 4)
            if node.given("gateway") is None:
                builder.add_first_as_gateway()
    with builder.part():
        for entry in node.items("ipv6s"):
            with builder.part():
                builder.add_address(entry, 6, 128)
    for version, key in ((4, "gateway"), (6, "gatewayIpv6")):
        with builder.part():
            builder.add_gateway(node.given(key), version)
    with builder.part():
        builder.set_mtu(node.find("mtu"))
    for key in _RANGES:
        with builder.part():
            for entry in node.items(key):
                with builder.part():
                    builder.add_forwarded(entry.network())
    with builder.part():
        for entry in node.items("accessConfigs"):
            if external := entry.given("externalIp"):
                builder.public.append(external.address())


def _subnet(own: Node, mask: Node | None) -> IPNetwork:
    """Return the subnet of an address and its mask; the address alone without one, or with 255.255.255.255."""
    length = 32 if mask is None else mask.length(4)
    return Node(f"{own.address(4)}/{length}", own.path).network(4)


def _system(document: dict[str, Any]) -> dict[str, Any]:
    """Return facts; of the attributes, which may hold anything, only the ssh keys."""
    own, project = (Node(document).pick(key).get(key) for key in ("instance", "project"))
    own_attributes, project_attributes = (
        Node(Node(part).pick("attributes").get("attributes")) for part in (own, project)
    )
    blocked = str(own_attributes.pick("block-project-ssh-keys").get("block-project-ssh-keys")).lower() == "true"
    texts = [
        own_attributes.pick("sshKeys", "ssh-keys"),
        {} if blocked else project_attributes.pick("sshKeys", "ssh-keys"),
    ]
    lines = [line for text in texts for value in text.values() for line in lines_of(value)]
    keys = [line.partition(":")[2].strip() if re.match(r"[^ :]+:", line) else line for line in lines]
    facts = Node(own).pick(*_FACTS)
    accounts = Node(own).pick("serviceAccounts").get("serviceAccounts")
    if isinstance(accounts, dict):
        facts["serviceAccounts"] = {name: Node(each).pick(*_ACCOUNT_FACTS) for name, each in accounts.items()}
    return facts | {"project": Node(project).pick(*_PROJECT), "public-keys": list(dict.fromkeys(keys))}
