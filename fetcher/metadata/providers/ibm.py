"""IBM Cloud VPC: the VPC metadata service.

Sources: "VPC Metadata API" (cloud.ibm.com/apidocs/vpc-metadata: endpoints, `version`), "VPC Identity API"
(cloud.ibm.com/apidocs/vpc-identity: PUT /instance_identity/v1/token), "Summary of data returned by the metadata
service" (cloud.ibm.com/docs/vpc?topic=vpc-imd-metadata-summary) and the VirtualNetworkInterface schema of the VPC API.

MAC addresses are the virtual network interfaces' (`mac_address`); an instance with the older network interfaces has
none in its metadata. A subnet is named there by its id, without its prefix: every address stands alone (/32), and
subnet and gateway are what DHCP has set on the link.
"""

from __future__ import annotations

import re
import time
from typing import Any

from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance, Interface, MetadataError
from cloud_network.fetcher.metadata.providers.document import Node, each, parse, texts
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.served import JsonProvider

NAME = "ibm"
ENDPOINT = "169.254.169.254"
_VERSION = "?version=2024-11-12"
_TOKEN = "/instance_identity/v1/token" + _VERSION
_VNIS = "/metadata/v1/virtual_network_interfaces" + _VERSION
_INSTANCE, _KEYS = "/metadata/v1/instance" + _VERSION, "/metadata/v1/keys" + _VERSION
_TTL = 300  # seconds that a token lives which is asked for without a body
_FACTS = (
    "id", "crn", "name", "profile", "image", "zone", "vpc", "vcpu", "memory", "bandwidth", "total_network_bandwidth",
    "created_at", "lifecycle_state", "status", "resource_group", "resource_type", "placement_target",
)  # fmt: skip


class Ibm(JsonProvider):
    """A Provider: one request for the interfaces, others when they have changed, and one for a token now and then."""

    name = NAME
    endpoint = ENDPOINT
    probe = _VNIS

    def __init__(self, client: Client | None = None) -> None:
        super().__init__(client)
        self._token = ""
        self._token_expires = 0.0

    def fetch(self) -> Instance:
        """See Provider."""
        vnis = self.read(_VNIS)
        facts = self.facts(vnis, _INSTANCE, _KEYS)
        return instance(vnis, facts.get(_INSTANCE), facts.get(_KEYS))

    def _ask(self, path: str, seconds: float) -> Response:
        for _ in range(2):
            headers = {"Authorization": f"Bearer {self._token_now()}", "Accept": "application/json"}
            answer = self.client.request("GET", path, headers, seconds)
            if answer.status != 401:
                break
            self._token_expires = 0.0  # once more with a new one
        return answer

    def _token_now(self) -> str:
        if time.monotonic() >= self._token_expires:
            answer = self.client.request("PUT", _TOKEN, {"Metadata-Flavor": "ibm", "Accept": "application/json"})
            if answer.status not in (200, 201):
                raise answer.error(_TOKEN)
            try:
                granted = parse(answer.text(_TOKEN), _TOKEN)
                token = granted.at("access_token").text()
            except MetadataError:
                token = ""
            if not re.fullmatch(r"[\x21-\x7e]+", token):
                raise MetadataError("invalid", f"{_TOKEN}: the answer is not a token")  # and is not shown
            lives = granted.find("expires_in")
            self._token = token
            self._token_expires = time.monotonic() + 0.9 * (lives.number(5, 3600) if lives else _TTL)
        return self._token


def instance(vnis: Node, facts: Node | None = None, keys: Node | None = None) -> Instance:
    """The instance that virtual_network_interfaces, instance and keys of /metadata/v1 describe."""
    nodes = vnis.at("virtual_network_interfaces").items()

    primary = _primary(facts)

    def interface(node: Node, mac: str) -> Interface:
        return _interface(node, mac, 0 if node.pick("id").get("id") == primary else nodes.index(node) + 1)

    found = each(nodes, lambda node: node.at("mac_address").mac(), interface)
    return Instance(NAME, *found, system=_system(facts, keys))


def _interface(node: Node, mac: str, number: int) -> Interface:
    parts = Parts(mac, node.path)
    for ip in (node.at("primary_ip"), *node.items("ips")):
        address = ip.at("address")
        parts.address(address, address.address().max_prefixlen)
    for floating in node.items("floating_ips"):
        parts.public.append(floating.at("address").address())
    return parts.interface(node.value, number)


def _primary(facts: Node | None) -> object:
    """The id of the interface of the primary network attachment."""
    found = facts.value if facts else None
    for key in ("primary_network_attachment", "virtual_network_interface", "id"):
        found = found.get(key) if isinstance(found, dict) else None
    return found or object()


def _system(facts: Node | None, keys: Node | None) -> dict[str, Any]:
    listed = keys.pick("keys").get("keys") if keys else None
    public = [key.get("public_key") for key in listed if isinstance(key, dict)] if isinstance(listed, list) else []
    return (facts.pick(*_FACTS) if facts else {}) | {"public-keys": texts(public)}
