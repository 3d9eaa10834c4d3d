"""Hetzner Cloud's metadata service.

Source: "Server Metadata" of the API reference (docs.hetzner.cloud: /hetzner/v1/metadata in YAML, its leaves as text,
and /hetzner/v1/metadata/private-networks), "Networks" there and its FAQ: at most three private networks a server and
five alias addresses; everything on link goes through a gateway, with masks of /32. The public interface has one IPv4
address by DHCP, with 172.31.1.1 for a gateway, and a /64 whose gateway is fe80::1. The gateway of a private network
may be outside its subnet.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Interface, Nic
from .behaviour import Behaviour, Dmi, dmi
from .frame import Request, Response

KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
ROOT = "/hetzner/v1/metadata"
INSTANCE = 4286291


@dataclass(frozen=True)
class Settings:
    user_data: str | None = None


class Hetzner(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="Hetzner",
        chassis_vendor="QEMU",
        product_family="Hetzner_vServer",
        product_name="vServer",
        product_serial=str(INSTANCE),
        product_uuid="0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
        sys_vendor="Hetzner",
    )
    convention: ClassVar[Convention] = Convention(
        link_local="fe80::a9fe:a9fe",
        mask=32,
        on_link6=False,
        first=Interface("192.0.2.0/24", 1, ipv6=1, gateway="172.31.1.1"),
        most_interfaces=4,
        most_addresses=6,
        most_ipv6=0,
    )

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if self.recorded is not None:
            return self._recorded(request.path)
        document = self._document()
        private = yaml([private_network(nic) for nic in self.nics[1:]])
        if request.method != "GET":
            return Response(405, b"method not allowed")
        match request.path.rstrip("/").removeprefix(ROOT).strip("/"):
            case "" if request.path.startswith(ROOT):
                return reply(yaml(document))
            case "private-networks":
                return reply(private)
            case leaf if leaf in document:
                value = document[leaf]
                return reply(yaml(value) if isinstance(value, dict | list) else str(value))
            case "hetzner/v1/userdata" if self.settings.user_data:
                return reply(self.settings.user_data)
        return Response(404, b"not found")

    def _recorded(self, path: str) -> Response:
        """Serve parts of {"metadata": its lines, "private-networks": its lines}."""
        name = path.removeprefix(ROOT).strip("/") or "metadata"
        if name == "instance-id":
            return reply("42")
        if name not in self.recorded:
            return Response(404, b"not found")
        lines = self.recorded[name]
        return reply("\n".join(map(str, lines)) if isinstance(lines, list) else str(lines))

    def _document(self) -> dict[str, Any]:
        first = self.nics[0]
        subnets: list[dict[str, Any]] = [{"ipv4": True, "type": "dhcp"}]
        if first.network6:
            address = f"{first.ipv6[0]}/{first.network6.prefixlen}"
            subnets.append({"address": address, "gateway": self.convention.router6, "ipv6": True, "type": "static"})
        config = [{"mac_address": first.mac, "name": "eth0", "subnets": subnets, "type": "physical"}]
        return {
            "availability-zone": "hel1-dc2",
            "hostname": "lab",
            "instance-id": INSTANCE,
            "local-ipv4": "",
            "network-config": {"config": config, "version": 1},
            "public-ipv4": first.addresses[0],
            "public-keys": [KEY],
            "region": "eu-central",
            "vendor_data": "",
        }


def private_network(nic: Nic) -> dict[str, Any]:
    inside = nic.network if nic.gateway in map(str, nic.network) else nic.network.supernet(new_prefix=16)
    return {
        "ip": nic.addresses[0],
        "alias_ips": list(nic.addresses[1:]),
        "interface_num": nic.device,
        "mac_address": nic.mac,
        "network_id": zlib.crc32(nic.subnet.encode()),
        "network_name": f"lab-{nic.device}",
        "network": str(inside),
        "subnet": nic.subnet,
        "gateway": nic.gateway,
    }


def reply(text: str) -> Response:
    return Response(200, text.encode())


def yaml(value: Any, indent: str = "") -> str:
    """Return YAML in block style, except lists of plain values inside a mapping, which are in brackets."""
    if isinstance(value, dict):
        return "".join(f"{indent}{key}:{below(item, indent)}" for key, item in value.items())
    if isinstance(value, list):
        return "".join(f"{indent}- {yaml(item, f'{indent}  ').lstrip()}" for item in value) or f"{indent}[]\n"
    return f"{plain(value)}\n"


def below(value: Any, indent: str) -> str:
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        return f" [{', '.join(map(plain, value))}]\n"
    if isinstance(value, dict | list):
        return "\n" + yaml(value, indent if isinstance(value, list) else f"{indent}  ")
    return f" {plain(value)}\n"


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "''"
