"""Azure's Instance Metadata Service.

Sources: "Azure Instance Metadata Service" (learn.microsoft.com/azure/virtual-machines/instance-metadata-service:
header, versions, filters by path, `format=text` for leaves, 5 requests a second, attested document, error codes) and
"Retrieve load balancer information" (learn.microsoft.com/azure/load-balancer/instance-metadata-service-load-balancer),
for public addresses of the Standard SKU, which are not in the instance's. MAC addresses have no separators; values are
text, and inapplicable ones are empty. The asset tag is Azure's on every host (cloud-init, sources/azure/identity.py).
IPv6 has addresses only, no subnet: the router (fe80::1234:5678:9abc) advertises the rest, and no prefix is on link.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Nic
from .behaviour import Behaviour, Dmi, answer, dmi, pick
from .frame import NO_HEADERS, Headers, Request, Response

VERSIONS = (
    *("2017-03-01", "2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01", "2018-02-01", "2018-04-02", "2018-10-01"),
    *("2019-02-01", "2019-03-11", "2019-04-30", "2019-06-01", "2019-06-04", "2019-08-01", "2019-08-15", "2019-11-01"),
    *("2020-06-01", "2020-07-15", "2020-09-01", "2020-10-01", "2020-12-01", "2021-01-01", "2021-02-01", "2021-03-01"),
    *("2021-05-01", "2021-08-01", "2021-10-01", "2021-11-01", "2021-11-15", "2021-12-13", "2023-07-01", "2023-11-15"),
    *("2024-03-15", "2024-07-17", "2025-04-07"),
)
SUBSCRIPTION = "0c10d0e7-ab1e-4520-9a0c-10d0e7ab1e52"
VM = "02aab8a4-74ef-476e-8182-f6d2ba4166a6"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/lab"
KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
SERVER = {"Server": "IMDS/150.870.65.1854"}


@dataclass(frozen=True)
class Settings:
    """`standard`: public addresses are of the Standard SKU. `per_second`: more requests than that get a 429."""

    versions: tuple[str, ...] = VERSIONS
    standard: bool = False
    per_second: int | None = None
    user_data: str = ""


class Azure(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="American Megatrends Inc.",
        bios_version="090008",
        board_name="Virtual Machine",
        board_vendor="Microsoft Corporation",
        chassis_asset_tag="7783-7084-3265-9085-8269-3286-77",
        chassis_vendor="Microsoft Corporation",
        product_name="Virtual Machine",
        product_uuid=VM,
        product_version="7.0",
        sys_vendor="Microsoft Corporation",
    )
    convention: ClassVar[Convention] = Convention(router6="fe80::1234:5678:9abc", on_link6=False)

    def __init__(self) -> None:
        super().__init__(Settings())
        self._counts: Counter[int] = Counter()

    def answer(self, request: Request) -> Response:
        self._counts[second := int(time.monotonic())] += 1
        if self.settings.per_second is not None and self._counts[second] > self.settings.per_second:
            return error(429, "Too many requests", {"Retry-After": "1"})
        if request.method != "GET":
            return error(405, "Method not allowed")
        if request.headers.get("metadata", "").lower() != "true" or "x-forwarded-for" in request.headers:
            return error(400, "Bad request. Required metadata header not specified")
        if request.path.rstrip("/") == "/metadata/versions":
            return answer({"apiVersions": list(self.settings.versions)}, SERVER)
        if request.parameters.get("api-version") not in self.settings.versions or duplicates(request.query):
            return self._newest()
        match request.path.strip("/").split("/"):
            case ["metadata", "instance", *names]:
                return filtered(self._instance() if self.recorded is None else self.recorded, names, request)
            case ["metadata", "loadbalancer", *names]:
                return filtered(self._load_balancer(), names, request)
            case ["metadata", "attested", "document"]:
                return answer({"encoding": "pkcs7", "signature": signature(request)}, SERVER)
            case ["metadata", "identity", "oauth2", "token"] if "resource" in request.parameters:
                return answer(credentials(request.parameters["resource"]), SERVER)
        return error(404, "Not found")

    def _newest(self) -> Response:
        newest = sorted(self.settings.versions, reverse=True)[:3]
        text = "Bad request. api-version is invalid or was not specified in the request."
        more = "For more information refer to aka.ms/azureimds"
        return answer({"error": f"{text} {more}", "newest-versions": newest}, SERVER, 400)

    def _instance(self) -> dict[str, Any]:
        nics = [interface(nic, not self.settings.standard) for nic in self.nics]
        return {"compute": compute(self.settings.user_data), "network": {"interface": nics}}

    def _load_balancer(self) -> dict[str, Any]:
        pairs = [pair for nic in self.nics for pair in nic.public.items()] if self.settings.standard else []
        addresses = [{"frontendIpAddress": public, "privateIpAddress": private} for private, public in pairs]
        return {"loadbalancer": {"publicIpAddresses": addresses, "inboundRules": [], "outboundRules": []}}


def error(status: int, text: str, headers: Headers = NO_HEADERS) -> Response:
    return answer({"error": text}, {**SERVER, **headers}, status)


def duplicates(query: str) -> bool:
    names = [part.partition("=")[0] for part in query.split("&")]
    return len(names) != len(set(names))


def filtered(document: object, names: list[str], request: Request) -> Response:
    """Return the part that the path names. A leaf is text, and must be requested as text."""
    text = request.parameters.get("format") == "text"
    try:
        found = pick(document, [name for name in names if name])
    except LookupError:
        return error(404, "Not found")
    if isinstance(found, str):
        return Response(200, found.encode(), SERVER) if text else error(400, "Bad request. format=text is needed")
    if text:
        keys = found if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ()
        return Response(200, "\n".join(f"{key}/" for key in keys).encode(), SERVER)
    return answer(found, SERVER)


def interface(nic: Nic, public: bool) -> dict[str, Any]:
    return {
        "ipv4": {
            "ipAddress": [
                {"privateIpAddress": address, "publicIpAddress": nic.public.get(address, "") if public else ""}
                for address in nic.addresses
            ],
            "subnet": [{"address": str(nic.network.network_address), "prefix": str(nic.network.prefixlen)}],
        },
        "ipv6": {"ipAddress": [{"privateIpAddress": address} for address in nic.ipv6]},
        "macAddress": nic.mac.replace(":", "").upper(),
    }


def compute(user_data: str) -> dict[str, Any]:
    return {
        "azEnvironment": "AzurePublicCloud",
        "customData": "",
        "evictionPolicy": "",
        "isHostCompatibilityLayerVm": "false",
        "licenseType": "",
        "location": "westeurope",
        "name": "lab",
        "offer": "debian-13",
        "osProfile": {"adminUsername": "lab", "computerName": "lab", "disablePasswordAuthentication": "true"},
        "osType": "Linux",
        "placementGroupId": "",
        "plan": {"name": "", "product": "", "publisher": ""},
        "platformFaultDomain": "0",
        "platformUpdateDomain": "0",
        "priority": "",
        "provider": "Microsoft.Compute",
        "publicKeys": [{"keyData": KEY, "path": "/home/lab/.ssh/authorized_keys"}],
        "publisher": "Debian",
        "resourceGroupName": "lab",
        "resourceId": f"{GROUP}/providers/Microsoft.Compute/virtualMachines/lab",
        "sku": "13-gen2",
        "subscriptionId": SUBSCRIPTION,
        "tags": "Environment:lab",
        "tagsList": [{"name": "Environment", "value": "lab"}],
        "userData": b64encode(user_data.encode()).decode(),
        "version": "0.20260101.1",
        "vmId": VM,
        "vmScaleSetName": "",
        "vmSize": "Standard_D8s_v5",
        "zone": "1",
    }


def signature(request: Request) -> str:
    """Return a signature of the right form, different for every nonce; the lab does not have Microsoft's key."""
    noise = hashlib.shake_256(f"{VM} {request.parameters.get('nonce', '')}".encode()).digest(2300)
    return b64encode(noise).decode()


def credentials(resource: str) -> dict[str, str]:
    return {
        "access_token": "lab-SECRET-access-token",
        "expires_in": "3599",
        "expires_on": str(int(time.time()) + 3599),
        "not_before": str(int(time.time())),
        "resource": resource,
        "token_type": "Bearer",
    }
