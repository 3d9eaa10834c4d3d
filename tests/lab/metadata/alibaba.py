"""Alibaba Cloud ECS's instance metadata service.

Sources: "Instance metadata" (alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata: normal and security
hardening mode, tokens of 1 to 21600 seconds, 400, 401 and 403) and "Instance metadata items" (the same guide,
instance-metadata-items: the tree, and the form of its lists: private-ipv4s is JSON, ipv6s has brackets and no quotes,
prefixes are bare). The separator of several prefixes is not documented; here it is a newline. A vSwitch's gateway
is its third address from the end ("VPCs and vSwitches": the first and the last three addresses are reserved); that of
IPv6 is the ninth. There is no device number. Absent keys are a 404.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar

from ..convention import Convention
from ..nic import Nic
from .behaviour import Behaviour, Dmi, dmi, find, lifetime, listing, pruned
from .frame import Request, Response, Tree

TOKEN = "x-aliyun-ecs-metadata-token"
VPC = "10.0.0.0/16"
KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
VERSIONS = ("2016-01-01", "latest")
ERRORS = {400: "Missing or Invalid Parameters", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}


@dataclass(frozen=True)
class Settings:
    """`hardened`: no answer without a token."""

    hardened: bool = False
    role: str | None = "lab-role"
    user_data: str | None = None


class Alibaba(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="SeaBIOS",
        chassis_vendor="Alibaba Cloud",
        product_name="Alibaba Cloud ECS",
        product_uuid="0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
        product_version="pc-i440fx-2.1",
        sys_vendor="Alibaba Cloud",
    )
    convention: ClassVar[Convention] = Convention(
        endpoints=("100.100.100.200",), gateway=-3, gateway6=-9, ranges=(4, 6)
    )

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if request.path == "/latest/api/token":
            return self._token(request)
        if request.method not in ("GET", "HEAD"):
            return error(404)
        given = request.headers.get(TOKEN)
        if (given is None and self.settings.hardened) or (given is not None and self.tokens.left(given) <= 0):
            return error(401)
        if request.path == "/":
            return Response(200, "\n".join(VERSIONS).encode())
        found = find(dict.fromkeys(VERSIONS, self._tree() if self.recorded is None else self.recorded), request.path)
        if found is None:
            return error(404)
        return Response(200, (found if isinstance(found, str) else listing(found)).encode())

    def _token(self, request: Request) -> Response:
        if request.method != "PUT":
            return error(404)
        if "x-forwarded-for" in request.headers:
            return error(403)
        seconds = lifetime(request.headers.get(f"{TOKEN}-ttl-seconds"))
        return error(400) if seconds is None else Response(200, self.tokens.grant(seconds).encode())

    def _tree(self) -> Tree:
        primary = self.nics[0]
        role = self.settings.role
        return pruned(
            {
                "dynamic": {"instance-identity": {"document": identity(primary), "pkcs7": signature(primary)}},
                "meta-data": {
                    "dns-conf": {"nameservers": "100.100.2.136\n100.100.2.138"},
                    "eipv4": next(iter(primary.public.values()), ""),
                    "hostname": "lab",
                    "image-id": "debian_13_x64_20G_alibase_20260101.vhd",
                    "instance": {"instance-type": "ecs.g8i.2xlarge", "instance-name": "lab"},
                    "instance-id": "i-bp10c10d0e7ab1e5209a",
                    "mac": primary.mac,
                    "network": {"interfaces": {"macs": {nic.mac: interface(nic) for nic in self.nics}}},
                    "network-type": "vpc",
                    "owner-account-id": "1234567890123456",
                    "private-ipv4": primary.addresses[0],
                    "public-keys": {"0": {"openssh-key": KEY}},
                    "ram": {"security-credentials": {role: credentials()} if role else {}},
                    "region-id": "eu-central-1",
                    "serial-number": "0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
                    "vpc-cidr-block": VPC,
                    "vpc-id": identifier("vpc", VPC),
                    "vswitch-cidr-block": primary.subnet,
                    "vswitch-id": identifier("vsw", primary.subnet),
                    "zone-id": "eu-central-1a",
                },
                "user-data": self.settings.user_data or "",
            }
        )


def interface(nic: Nic) -> Tree:
    six = nic.network6
    return {
        "gateway": nic.gateway,
        "ipv4-prefixes": "\n".join(nic.ranges4),
        "ipv6-gateway": str(six[-9]) if six else "",
        "ipv6-prefixes": "\n".join(nic.ranges6),
        "ipv6s": f"[{','.join(nic.ipv6)}]" if nic.ipv6 else "",
        "netmask": str(nic.network.netmask),
        "network-interface-id": identifier("eni", nic.mac),
        "primary-ip-address": nic.addresses[0],
        "private-ipv4s": json.dumps(nic.addresses, separators=(",", ":")),
        "vpc-cidr-block": VPC,
        "vpc-id": identifier("vpc", VPC),
        "vpc-ipv6-cidr-blocks": f"[{six.supernet(new_prefix=56)}]" if six else "",
        "vswitch-cidr-block": nic.subnet,
        "vswitch-id": identifier("vsw", nic.subnet),
        "vswitch-ipv6-cidr-block": nic.subnet6,
    }


def identifier(kind: str, what: str) -> str:
    return f"{kind}-bp1{hashlib.sha256(what.encode()).hexdigest()[:17]}"


def error(status: int) -> Response:
    page = f"<html><head><title>{status} - {ERRORS[status]}</title></head></html>"
    return Response(status, page.encode(), {}, "text/html")


def credentials() -> str:
    return json.dumps(
        {
            "AccessKeyId": "STS.LABSECRET",
            "AccessKeySecret": "lab-SECRET-access-key",
            "Expiration": "2036-01-01T00:00:00Z",
            "SecurityToken": "lab-SECRET-session-token",
            "LastUpdated": "2026-01-01T00:00:00Z",
            "Code": "Success",
        }
    )


def identity(primary: Nic) -> str:
    """Keys as in "Use instance identities" (…/user-guide/use-instance-identities)."""
    return json.dumps(
        {
            "owner-account-id": "1234567890123456",
            "instance-id": "i-bp10c10d0e7ab1e5209a",
            "mac": primary.mac,
            "region-id": "eu-central-1",
            "serial-number": "0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
            "zone-id": "eu-central-1a",
            "instance-type": "ecs.g8i.2xlarge",
            "image-id": "debian_13_x64_20G_alibase_20260101.vhd",
            "private-ipv4": primary.addresses[0],
        }
    )


def signature(primary: Nic) -> str:
    """Return a signature of the right form; the lab does not have Alibaba's key."""
    return hashlib.shake_256(identity(primary).encode()).hexdigest(600)
