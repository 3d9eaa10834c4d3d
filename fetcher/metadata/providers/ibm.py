"""IBM Cloud VPC: the VPC metadata service.

Sources: "VPC Metadata API" (cloud.ibm.com/apidocs/vpc-metadata: endpoints, `version`), "VPC Identity API"
(cloud.ibm.com/apidocs/vpc-identity: PUT /instance_identity/v1/token), "Summary of data returned by the metadata
service" (cloud.ibm.com/docs/vpc?topic=vpc-imd-metadata-summary) and the VirtualNetworkInterface schema of the VPC API.

MAC addresses are those of the virtual network interfaces (`mac_address`); an instance with the older network interfaces
has none in its metadata. The metadata gives the id of a subnet, but not its prefix: every address is configured alone
(/32), with the subnet and the gateway that DHCP has set on the link.
"""

from __future__ import annotations

import re
import time
from typing import Any

from cloud_network.fetcher.metadata.base import JsonProvider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, lines_of, parse_json
from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance, MetadataError

_VERSION = "?version=2024-11-12"
_TOKEN = "/instance_identity/v1/token" + _VERSION
_VNIS = "/metadata/v1/virtual_network_interfaces" + _VERSION
_INSTANCE, _KEYS = "/metadata/v1/instance" + _VERSION, "/metadata/v1/keys" + _VERSION
_TTL_S = 300  # the lifetime of a token that is asked for without a body
_FACTS = (
    "id", "crn", "name", "profile", "image", "zone", "vpc", "vcpu", "memory", "bandwidth", "total_network_bandwidth",
    "created_at", "lifecycle_state", "status", "resource_group", "resource_type", "placement_target",
)  # fmt: skip


class Ibm(JsonProvider):
    """A Provider: one request for the interfaces, others when they have changed, and one for a token now and then."""

    name = "ibm"
    endpoints = ("169.254.169.254",)
    probe_path = _VNIS

    def __init__(self, client: Client | None = None) -> None:
        super().__init__(client)
        self._token = ""
        self._token_expires = 0.0

    def read(self) -> Instance:
        """See Provider."""
        vnis = self.document(_VNIS)
        facts = self.facts(vnis, _INSTANCE, _KEYS)
        return instance(vnis, facts.get(_INSTANCE), facts.get(_KEYS))

    def request(self, path: str) -> Response:
        """Send a GET request with a token, once more with a new one if the server rejects the old one."""
        for _ in range(2):
            headers = {"Authorization": f"Bearer {self._current_token()}", "Accept": "application/json"}
            answer = self.client.request("GET", path, headers)
            if answer.status != 401:
                break
            self._token_expires = 0.0
        return answer

    def _current_token(self) -> str:
        if time.monotonic() < self._token_expires:
            return self._token
        answer = self.client.request("PUT", _TOKEN, {"Metadata-Flavor": "ibm", "Accept": "application/json"})
        if answer.status not in (200, 201):
            raise answer.error(_TOKEN)
        try:
            granted = parse_json(answer.text(_TOKEN), _TOKEN)
            token = granted.at("access_token").text()
            lives = granted.find("expires_in")
        except MetadataError:
            token, lives = "", None
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise MetadataError("invalid", f"{_TOKEN}: the answer is not a token")  # which is not shown
        self._token = token
        self._token_expires = time.monotonic() + 0.9 * (lives.number(5, 3600) if lives else _TTL_S)
        return token


def instance(vnis: Node, facts: Node | None = None, keys: Node | None = None) -> Instance:
    """Return the instance that virtual_network_interfaces, instance and keys of /metadata/v1 describe."""
    primary = _primary_id(facts)

    def fill(node: Node, interface: InterfaceBuilder, position: int) -> None:
        interface.number = 0 if primary and node.pick("id").get("id") == primary else position + 1
        _fill(node, interface)

    builder = InstanceBuilder(Ibm.name)
    nodes = vnis.at("virtual_network_interfaces").items()
    builder.read_interfaces(nodes, lambda node: node.at("mac_address").mac(), fill)
    return builder.build(_system(facts, keys))


def _fill(node: Node, builder: InterfaceBuilder) -> None:
    builder.expect(node, "primary_ip")
    builder.expect_entries(node, "ips")  # primary_ip is among them; the list is empty while the state is pending
    with builder.part():
        if primary := node.find("primary_ip"):
            _add(primary, builder)
    with builder.part():
        for ip in node.items("ips"):
            with builder.part():
                _add(ip, builder)
    with builder.part():
        for floating in node.items("floating_ips"):
            with builder.part():
                builder.public.append(floating.at("address").address())


def _add(ip: Node, builder: InterfaceBuilder) -> None:
    address = ip.at("address")
    builder.add_address(address, None, address.address().max_prefixlen)


def _primary_id(facts: Node | None) -> object:
    """Return the id of the interface of the primary network attachment."""
    found = facts.value if facts else None
    for key in ("primary_network_attachment", "virtual_network_interface", "id"):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _system(facts: Node | None, keys: Node | None) -> dict[str, Any]:
    listed = keys.pick("keys").get("keys") if keys else None
    public = [key.get("public_key") for key in listed if isinstance(key, dict)] if isinstance(listed, list) else []
    return (facts.pick(*_FACTS) if facts else {}) | {"public-keys": lines_of(public)}
