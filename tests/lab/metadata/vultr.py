"""Vultr's metadata service.

Source: "Metadata" (vultr.com/metadata: /v1.json is everything, /v1/ the same as a tree), and for its form today the
captures that Vultr's own author put into cloud-init (test_vultr.py). The public interface has one address by DHCP and
may have further ones (`additional`); private networks have no gateway, and no IPv6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Interface, Nic
from .behaviour import Behaviour, Dmi, answer, dmi, pick
from .frame import Request, Response

KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
NO_BGP = {"my-address": "", "my-asn": "", "peer-address": "", "peer-asn": ""}


@dataclass(frozen=True)
class Settings:
    user_data: str | None = None


class Vultr(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="Vultr",
        product_family="Vultr_VC2",
        product_name="VC2",
        product_serial="42872224",
        product_uuid="29bea708-2e6e-480a-90ad-0e6b5d5ad62f",
        sys_vendor="Vultr",
    )
    convention: ClassVar[Convention] = Convention(first=Interface("192.0.2.0/24", 3, ipv6=1), most_ipv6=0)

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if request.method != "GET":
            return Response(405, b"")
        if request.path == "/v1.json":
            return answer(self._document() if self.recorded is None else self.recorded)
        first, *names = request.path.strip("/").split("/")
        try:
            found = pick(self._document(), names) if first == "v1" else None
        except LookupError:
            found = None
        match found:
            case None:
                return Response(404, b"")
            case dict():
                directory = (f"{k}/" if isinstance(v, dict | list) else k for k, v in found.items())
                return Response(200, "\n".join(directory).encode())
            case list():
                numbered = (f"{n}/" if isinstance(v, dict) else str(v) for n, v in enumerate(found))
                return Response(200, "\n".join(numbered).encode())
        return Response(200, str(found).encode())

    def _document(self) -> dict[str, Any]:
        return {
            "bgp": {"ipv4": NO_BGP, "ipv6": NO_BGP},
            "hostname": "lab",
            "instance-v2-id": "29bea708-2e6e-480a-90ad-0e6b5d5ad62f",
            "instanceid": "42872224",
            "interfaces": [interface(nic, public=nic is self.nics[0]) for nic in self.nics],
            "public-keys": [KEY],
            "region": {"countrycode": "DE", "regioncode": "FRA"},
            "tags": [],
            "user-data": [self.settings.user_data] if self.settings.user_data else [],
            "user-defined": [],
            "vendor-data": "",
        }


def interface(nic: Nic, public: bool) -> dict[str, Any]:
    mask, gateway = str(nic.network.netmask), nic.gateway if public else ""
    six: dict[str, Any] = {"additional": [], "address": "", "network": "", "prefix": ""}
    if nic.network6:
        network = str(nic.network6.network_address)
        six |= {"address": nic.ipv6[0], "network": network, "prefix": str(nic.network6.prefixlen)}
    found: dict[str, Any] = {
        "ipv4": {
            "additional": [{"address": a, "gateway": gateway, "netmask": mask} for a in nic.addresses[1:]],
            "address": nic.addresses[0],
            "gateway": gateway,
            "netmask": mask,
        },
        "ipv6": six,
        "mac": nic.mac,
        "network-type": "public" if public else "private",
    }
    if not public:
        found |= {"network-v2-id": f"fbbe2b5b-b986-4396-87f5-{nic.device:012d}", "networkid": f"net{nic.device:013d}"}
    return found
