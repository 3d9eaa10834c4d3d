"""Compute Engine's metadata server.

Sources: "View and query VM metadata" (cloud.google.com/compute/docs/metadata/querying-metadata: header in request and
answer, listings, `recursive`, `alt`, ETag, `wait_for_change`, `last_etag`, `timeout_sec`), "Predefined metadata keys"
(…/metadata/predefined-metadata-keys), "Alias IP ranges" and "Networking metadata" for ranges and /32 masks: DHCP gives
a /32, the gateway on link, and everything else through it. A path has dashes where the document has capitals:
`network-interfaces/0/ip-aliases` is networkInterfaces[0].ipAliases. The server's IPv6 address is fd20:ce::254.

A range inside the subnet is an alias range, any other one a forwarded address (or a target instance's, by a setting).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Nic
from .behaviour import Behaviour, Dmi, dmi, pick
from .frame import NO_HEADERS, Headers, Request, Response, Wait

PROJECT = 123456789012
ZONE = f"projects/{PROJECT}/zones/europe-west1-b"
MTU = 1460
LONGEST_WAIT_S = 86400.0
KEY = f"lab:ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
ACCOUNT = f"{PROJECT}-compute@developer.gserviceaccount.com"
ALWAYS = {
    "Metadata-Flavor": "Google",
    "Server": "Metadata Server for VM",
    "X-XSS-Protection": "0",
    "X-Frame-Options": "SAMEORIGIN",
}
FORBIDDEN = "<p><b>403.</b> <ins>That’s an error.</ins><p>Missing Metadata-Flavor:Google header."
ROOT = "/computeMetadata/v1"


@dataclass(frozen=True)
class Settings:
    """`flavor` False: an answer without Metadata-Flavor, as from a server that is not Google's."""

    flavor: bool = True
    target_instance: bool = False
    startup_script: str | None = None


class Gcp(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="Google",
        bios_version="Google",
        board_name="Google Compute Engine",
        board_vendor="Google",
        chassis_vendor="Google",
        product_name="Google Compute Engine",
        product_serial="GoogleCloud-0C10D0E7AB1E5209AC10D0E7AB1E5209",
        product_uuid="0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
        sys_vendor="Google",
    )
    convention: ClassVar[Convention] = Convention(
        endpoints=("169.254.169.254", "fd20:ce::254"), mask=32, mtu=MTU, on_link6=False, most_ipv6=1, ranges=(4, 6)
    )

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response | Wait:
        found = self._answer(request)
        if isinstance(found, Response) and not self.settings.flavor:
            kept = {name: value for name, value in found.headers.items() if name != "Metadata-Flavor"}
            return replace(found, headers=kept)
        return found

    def _answer(self, request: Request) -> Response | Wait:
        if request.path in ("/", "/computeMetadata", "/computeMetadata/"):
            return reply("computeMetadata/" if request.path == "/" else "v1/")
        if request.headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in request.headers:
            return reply(FORBIDDEN, status=403, kind="text/html; charset=UTF-8")
        if not f"{request.path}/".startswith(f"{ROOT}/"):
            return reply("Not Found", status=404, kind="text/html; charset=UTF-8")
        if request.method != "GET":
            return reply("Method not allowed", status=405)
        names = [name for name in request.path.removeprefix(ROOT).split("/") if name]
        try:
            value = pick(
                self._document() if self.recorded is None else self.recorded,
                [camel(name, names[:position]) for position, name in enumerate(names)],
            )
        except LookupError:
            return reply("Not Found", status=404, kind="text/html; charset=UTF-8")
        wanted = request.parameters
        recursive = wanted.get("recursive", "").lower() == "true"
        if isinstance(value, dict | list) and not recursive and not request.path.endswith("/"):
            return reply("", {"Location": f"http://metadata.google.internal{request.path}/"}, 301)
        etag = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
        if wanted.get("wait_for_change", "").lower() == "true" and not request.waited:
            seen = wanted.get("last_etag", etag)
            if seen == etag:
                seconds = float(wanted.get("timeout_sec", LONGEST_WAIT_S))
                return Wait(seconds, replace(request, query=f"{request.query}&last_etag={etag}"))
        if wanted.get("alt", "json" if recursive else "text") == "json":
            return reply(json.dumps(value), {"ETag": etag}, kind="application/json")
        return reply(text(value), {"ETag": etag})

    def _document(self) -> dict[str, Any]:
        return {
            "instance": {
                "attributes": {"startup-script": self.settings.startup_script} if self.settings.startup_script else {},
                "cpuPlatform": "Intel Sapphire Rapids",
                "description": "",
                "disks": [{"deviceName": "lab", "index": 0, "interface": "NVME", "mode": "READ_WRITE"}],
                "guestAttributes": {},
                "hostname": "lab.europe-west1-b.c.lab-project.internal",
                "id": 7413733082653629001,
                "image": "projects/debian-cloud/global/images/debian-13-trixie-v20260101",
                "licenses": [{"id": "2147286739765738111"}],
                "machineType": f"projects/{PROJECT}/machineTypes/n2-standard-8",
                "maintenanceEvent": "NONE",
                "name": "lab",
                "networkInterfaces": [self._interface(nic) for nic in self.nics],
                "preempted": "FALSE",
                "scheduling": {"automaticRestart": "TRUE", "onHostMaintenance": "MIGRATE", "preemptible": "FALSE"},
                "serviceAccounts": {
                    "default": {"aliases": ["default"], "email": ACCOUNT, "token": "lab-SECRET-access-token"},
                },
                "tags": [],
                "virtualClock": {"driftToken": "0"},
                "zone": ZONE,
            },
            "project": {
                "attributes": {"ssh-keys": KEY},
                "numericProjectId": PROJECT,
                "projectId": "lab-project",
            },
        }

    def _interface(self, nic: Nic) -> dict[str, Any]:
        aliases = [f"{address}/32" for address in nic.addresses[1:]]
        aliases += [prefix for prefix in nic.ranges4 if IPv4Network(prefix).subnet_of(nic.network)]
        forwarded = [prefix.removesuffix("/32") for prefix in nic.ranges4 if prefix not in aliases]
        target = self.settings.target_instance
        found: dict[str, Any] = {
            "accessConfigs": [{"externalIp": next(iter(nic.public.values()), ""), "type": "ONE_TO_ONE_NAT"}],
            "dnsServers": ["169.254.169.254"],
            "forwardedIps": [] if target else forwarded,
            "gateway": nic.gateway,
            "ip": nic.addresses[0],
            "ipAliases": aliases,
            "mac": nic.mac,
            "mtu": MTU,
            "network": f"projects/{PROJECT}/networks/lab-{nic.device}",
            "subnetmask": str(nic.network.netmask),
            "targetInstanceIps": forwarded if target else [],
        }
        if nic.network6:
            found |= {
                "dhcpv6Refresh": hashlib.sha256(repr(nic.ipv6).encode()).hexdigest()[:16],
                "forwardedIpv6s": nic.ranges6,
                "gatewayIpv6": self.convention.router6,
                "ipv6s": list(nic.ipv6),
            }
        return found


def reply(body: str, headers: Headers = NO_HEADERS, status: int = 200, kind: str = "application/text") -> Response:
    return Response(status, body.encode(), {**ALWAYS, **headers}, kind)


def camel(name: str, above: list[str]) -> str:
    """Return the key in camel case (`ip-aliases` is ipAliases); names from a user stay unchanged."""
    return name if "attributes" in above else re.sub(r"-(\w)", lambda match: match.group(1).upper(), name)


def dashed(name: str) -> str:
    return re.sub("[A-Z]", lambda match: f"-{match.group().lower()}", name)


def text(value: object) -> str:
    """Return a listing, the values of a list one per line, or a value."""
    if isinstance(value, dict):
        return "".join(f"{dashed(k)}{'/' if isinstance(v, dict | list) else ''}\n" for k, v in value.items())
    if isinstance(value, list):
        return "".join(f"{n}/\n" if isinstance(v, dict) else f"{v}\n" for n, v in enumerate(value))
    return str(value)
