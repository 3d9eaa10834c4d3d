"""Tencent Cloud CVM's instance metadata service.

Source: "Querying Instance Metadata" (tencentcloud.com/document/product/213/4934: the tree, with a directory for every
local address; metadata.tencentyun.com is 169.254.0.23). IPv6 addresses are not in it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar

from ..convention import Convention
from ..nic import Nic
from .behaviour import Behaviour, Dmi, dmi, find, listing, pruned
from .frame import Request, Response, Tree

KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
VERSIONS = ("1.0", "2017-09-19", "latest")


@dataclass(frozen=True)
class Settings:
    role: str | None = "lab-role"
    user_data: str | None = None


class Tencent(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="SeaBIOS",
        chassis_vendor="Smdbmds",
        product_name="CVM",
        product_uuid="0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
        product_version="3.0",
        sys_vendor="Tencent Cloud",
    )
    convention: ClassVar[Convention] = Convention(endpoints=("169.254.0.23",), most_ipv6=0)

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"")
        if request.path == "/":
            return Response(200, "\n".join(f"{version}/" for version in VERSIONS).encode())
        found = find(dict.fromkeys(VERSIONS, self._tree() if self.recorded is None else self.recorded), request.path)
        if found is None:
            return Response(404, b"404 page not found")
        return Response(200, (found if isinstance(found, str) else listing(found)).encode())

    def _tree(self) -> Tree:
        primary, role = self.nics[0], self.settings.role
        return pruned(
            {
                "meta-data": {
                    "app-id": "1250000000",
                    "cam": {"security-credentials": {role: credentials()} if role else {}},
                    "instance": {"image-id": "img-0c10d1ab", "instance-type": "S6.2XLARGE16"},
                    "instance-id": "ins-0c10d1ab",
                    "instance-name": "lab",
                    "local-ipv4": primary.addresses[0],
                    "mac": primary.mac,
                    "network": {"interfaces": {"macs": {nic.mac: interface(nic) for nic in self.nics}}},
                    "payment": {"charge-type": "POSTPAID_BY_HOUR", "create-time": "2026-01-01 00:00:00"},
                    "placement": {"region": "eu-frankfurt", "zone": "eu-frankfurt-1"},
                    "public-ipv4": next(iter(primary.public.values()), ""),
                    "public-keys": {"0": {"openssh-key": KEY}},
                    "uuid": "0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
                },
                "user-data": self.settings.user_data or "",
            }
        )


def interface(nic: Nic) -> Tree:
    each: Tree = {
        address: {
            "gateway": nic.gateway,
            "local-ipv4": address,
            "public-ipv4": nic.public.get(address, ""),
            "public-ipv4-mode": "NORMAL" if address in nic.public else "",
            "subnet-mask": str(nic.network.netmask),
        }
        for address in nic.addresses
    }
    return {
        "local-ipv4s": each,
        "mac": nic.mac,
        "primary-local-ipv4": nic.addresses[0],
        "public-ipv4s": "\n".join(nic.public.values()),
        "subnet-id": identifier("subnet", nic.subnet),
        "vpc-id": identifier("vpc", "lab"),
    }


def identifier(kind: str, what: str) -> str:
    return f"{kind}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


def credentials() -> str:
    return json.dumps(
        {
            "TmpSecretId": "AKIDLABSECRET",
            "TmpSecretKey": "lab-SECRET-access-key",
            "ExpiredTime": 2082758400,
            "Expiration": "2036-01-01T00:00:00Z",
            "Token": "lab-SECRET-session-token",
            "Code": "Success",
        }
    )
