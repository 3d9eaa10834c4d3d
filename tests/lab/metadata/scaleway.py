"""Scaleway's metadata service.

Sources: "How to use Instance metadata" (scaleway.com/en/docs/instances: 169.254.42.42 and fd00:42::42,
/conf?format=json) and the type of that document in Scaleway's own SDK (scaleway-sdk-go, api/instance/v1,
instance_metadata_sdk.go: MACAddress, "mac_address", of the server, and one of each private NIC). Public addresses are
on the first interface: /32 each, with a gateway outside; DHCP gives the first, the image must add the others.
Private interfaces have MAC and network, and no addresses: DHCP has them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Interface, Nic
from .behaviour import Behaviour, Dmi, answer, dmi
from .frame import Request, Response

KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
SERVER = "0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209"


@dataclass(frozen=True)
class Settings:
    user_data: str | None = None


class Scaleway(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="EDK II",
        chassis_vendor="QEMU",
        product_name="SCW-POP2-8C-32G",
        product_uuid=SERVER,
        sys_vendor="Scaleway",
    )
    convention: ClassVar[Convention] = Convention(
        endpoints=("169.254.42.42", "fd00:42::42"),
        mask=32,
        on_link6=False,
        first=Interface("192.0.2.0/24", 3, ipv6=1, gateway="62.210.0.1"),
        most_interfaces=9,
        most_addresses=1,
        most_ipv6=1,
    )

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if request.method != "GET":
            return Response(405, b"")
        match request.path.rstrip("/"):
            case "/conf":
                document = self._document() if self.recorded is None else self.recorded
                return answer(document) if request.parameters.get("format") == "json" else shell(document)
            case "/user_data/cloud-init" if self.settings.user_data:
                return Response(200, self.settings.user_data.encode())
        return Response(404, b"")

    def _document(self) -> dict[str, Any]:
        first, *private = self.nics
        four = [self._address(address, "inet", "32", first.gateway, "dhcp") for address in first.addresses]
        six = [self._address(address, "inet6", "64", self.convention.router6, "slaac") for address in first.ipv6]
        old = {key: six[0][key] for key in ("address", "gateway", "netmask")} if six else None
        return {
            "id": SERVER,
            "name": "lab",
            "hostname": "lab",
            "mac_address": first.mac,
            "organization": identifier("organization"),
            "project": identifier("project"),
            "commercial_type": "POP2-8C-32G",
            "state_detail": "booted",
            "timezone": "Europe/Paris",
            "tags": ["lab"],
            "private_ip": None,
            "public_ip": four[0],
            "public_ips_v4": four,
            "public_ips_v6": six,
            "ipv6": old,
            "location": {
                "platform_id": "14",
                "hypervisor_id": "201",
                "node_id": "5",
                "cluster_id": "6",
                "zone_id": "fr-par-1",
            },
            "ssh_public_keys": [
                {"id": identifier("key"), "key": KEY, "fingerprint": "256 MD5:… lab-key (ssh-ed25519)"}
            ],
            "volumes": {},
            "private_nics": [private_nic(nic) for nic in private],
        }

    def _address(self, address: str, family: str, mask: str, gateway: str, mode: str) -> dict[str, Any]:
        return {
            "id": identifier(address),
            "address": address,
            "dynamic": False,
            "family": family,
            "netmask": mask,
            "gateway": gateway,
            "provisioning_mode": mode,
            "tags": [],
        }


def private_nic(nic: Nic) -> dict[str, Any]:
    return {
        "id": identifier(nic.mac),
        "private_network_id": identifier(nic.subnet),
        "server_id": SERVER,
        "mac_address": nic.mac,
        "state": "available",
        "zone": "fr-par-1",
    }


def identifier(what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, what))


def shell(document: dict[str, Any]) -> Response:
    """Return the answer without `format`: assignments for a shell, of plain values only."""
    plain = {name.upper(): value for name, value in document.items() if isinstance(value, str)}
    lines = [*(f"{name}={value}" for name, value in plain.items()), f"PUBLIC_IP={document['public_ip']['address']}"]
    return Response(200, "\n".join(lines).encode())
