"""DigitalOcean's metadata service.

Sources: "Droplet Properties" and "Network Interfaces" (docs.digitalocean.com/reference/api/metadata: /metadata/v1.json
is everything at once; an index without its slash is a 301) and "How to Manually Enable Reserved IPs" for the anchor
address, a second IPv4 address of the public interface to which a reserved address is translated. A Droplet has one
public address, and at most one interface in a VPC with one address; all is configured by cloud-init, statically. The
reference gives the private interface a gateway; recent captures have 0.0.0.0 there (setting `vpc_gateway`).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Interface, Nic
from .behaviour import Behaviour, Dmi, answer, dmi, find, listing
from .frame import Request, Response, Tree

KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
DROPLET = 2756294


@dataclass(frozen=True)
class Settings:
    """`reserved`: an address that the cloud translates to the anchor's."""

    reserved: str | None = None
    vpc_gateway: bool = True
    user_data: str | None = None


class DigitalOcean(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="DigitalOcean",
        bios_version="20171212",
        product_family="DigitalOcean_Droplet",
        product_name="Droplet",
        product_serial=str(DROPLET),
        product_uuid="0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
        sys_vendor="DigitalOcean",
    )
    convention: ClassVar[Convention] = Convention(
        protocol="static",
        all_links=True,
        first=Interface("192.0.2.0/24", 1, ipv6=1, anchor="10.17.0.5/16"),
        most_interfaces=2,
        most_addresses=1,
        most_ipv6=0,
    )

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if request.method != "GET":
            return Response(405, b"method not allowed")
        if request.path == "/metadata/v1.json":
            return answer(self._document() if self.recorded is None else self.recorded)
        found = find({"metadata": {"v1": tree(self._document())}}, request.path)
        if found is None:
            return Response(404, b"not found")
        if isinstance(found, str):
            return Response(200, found.encode())
        if not request.path.endswith("/"):
            return Response(301, b"", {"Location": f"{request.path}/"})
        return Response(200, listing(found).encode())

    def _document(self) -> dict[str, Any]:
        reserved = self.settings.reserved
        address = {"ip_address": reserved, "active": True} if reserved else {"active": False}
        return {
            "droplet_id": DROPLET,
            "hostname": "lab",
            **({"user_data": self.settings.user_data} if self.settings.user_data else {}),
            "vendor_data": "#cloud-config\ndisable_root: false\n",
            "public_keys": [KEY],
            "region": "fra1",
            "interfaces": {
                "private": [self._private(nic) for nic in self.nics[1:]],
                "public": [public(nic) for nic in self.nics[:1]],
            },
            "dns": {"nameservers": ["67.207.67.2", "67.207.67.3"]},
            "floating_ip": {"ipv4": address},
            "reserved_ip": {"ipv4": address},
            "tags": ["lab"],
            "features": {"dhcp_enabled": False},
        }

    def _private(self, nic: Nic) -> dict[str, Any]:
        four = ipv4(nic) | ({} if self.settings.vpc_gateway else {"gateway": "0.0.0.0"})
        return {"ipv4": four, "mac": nic.mac, "type": "private"}


def ipv4(nic: Nic) -> dict[str, str]:
    return {"ip_address": nic.addresses[0], "netmask": str(nic.network.netmask), "gateway": nic.gateway}


def public(nic: Nic) -> dict[str, Any]:
    found: dict[str, Any] = {"ipv4": ipv4(nic), "mac": nic.mac, "type": "public"}
    if nic.network6:
        found["ipv6"] = {"ip_address": nic.ipv6[0], "cidr": nic.network6.prefixlen, "gateway": str(nic.network6[1])}
    if nic.anchor:
        anchor = IPv4Interface(nic.anchor)
        found["anchor_ipv4"] = {
            "ip_address": str(anchor.ip),
            "netmask": str(anchor.netmask),
            "gateway": str(anchor.network[1]),
        }
    return found


def tree(document: dict[str, Any]) -> Tree:
    """Return the same as text: some names differ, and every interface has a number."""
    names = {"droplet_id": "id", "user_data": "user-data", "vendor_data": "vendor-data", "public_keys": "public-keys"}
    found: Tree = {}
    for name, value in document.items():
        if name == "interfaces":
            kinds = {kind: {str(n): leaves(nic) for n, nic in enumerate(nics)} for kind, nics in value.items()}
            found[name] = {kind: nics for kind, nics in kinds.items() if nics}
        else:
            found[names.get(name, name)] = leaves(value)
    return found


def leaves(value: Any) -> Any:
    match value:
        case dict():
            return {"address" if name == "ip_address" else name: leaves(below) for name, below in value.items()}
        case list():
            return "\n".join(map(str, value))
        case bool():
            return str(value).lower()
    return str(value)
