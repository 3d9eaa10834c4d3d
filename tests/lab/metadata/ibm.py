"""IBM Cloud's VPC metadata service.

Source: "Use the instance metadata service" (cloud.ibm.com/docs/vpc?topic=vpc-imd-get-metadata: a token by PUT with
`Metadata-Flavor: ibm`, for 5 to 3600 seconds, 300 by default; `version` and `Authorization: Bearer` on every
request; the instance, its network interfaces and attachments, keys, initialization), "VPC Metadata API change log" for
virtual network interfaces. Secondary addresses are in a virtual network interface's `ips`; `mac_address` there is the
VPC API's key; no page confirms that the metadata has it: `macs` False leaves it out. No answer has a prefix length.
The firmware's strings are those that public detectors read: no page has them.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Nic
from .behaviour import Behaviour, Dmi, answer, dmi
from .frame import Request, Response

KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
INSTANCE = "02u7_0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209"
CRN = "crn:v1:bluemix:public:is:eu-de-1:a/0c10d0e7ab1e5209ac10d0e7ab1e5209::"
CREATED = "2026-01-01T00:00:00Z"
MIN_LIFETIME_S, DEFAULT_LIFETIME_S, MAX_LIFETIME_S = 5, 300, 3600


@dataclass(frozen=True)
class Settings:
    macs: bool = True
    user_data: str | None = None


class Ibm(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="SeaBIOS",
        chassis_asset_tag="ibmcloud",
        chassis_vendor="IBM:Cloud Compute Server 1.0:bx2-8x32",
        product_name="Standard PC (i440FX + PIIX, 1996)",
        product_uuid="0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
        sys_vendor="QEMU",
    )
    convention: ClassVar[Convention] = Convention(most_ipv6=0)

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if "version" not in request.parameters:
            return error(400, "missing_version", "The version query parameter is required.")
        if request.path == "/instance_identity/v1/token":
            return self._token(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or self.tokens.left(token) <= 0:
            return error(401, "not_authorized", "The request is not authorized.")
        if request.path == "/instance_identity/v1/iam_token" and request.method == "POST":
            return answer(self._credentials())
        found = (self._documents() if self.recorded is None else self.recorded).get(
            request.path.removeprefix("/metadata/v1/")
        )
        if request.method != "GET" or found is None:
            return error(404, "not_found", "The resource was not found.")
        return answer(found)

    def _token(self, request: Request) -> Response:
        if request.method != "PUT":
            return error(405, "method_not_allowed", "Use PUT.")
        if request.headers.get("metadata-flavor") != "ibm":
            return error(400, "missing_header", "The Metadata-Flavor header is required.")
        try:
            seconds = json.loads(request.body or b"{}").get("expires_in", DEFAULT_LIFETIME_S)
        except (ValueError, AttributeError):
            return error(400, "invalid_body", "The body is not a JSON object.")
        if not isinstance(seconds, int) or not MIN_LIFETIME_S <= seconds <= MAX_LIFETIME_S:
            return error(400, "invalid_expires_in", f"expires_in is {MIN_LIFETIME_S} to {MAX_LIFETIME_S}.")
        return answer(granted(self.tokens.grant(seconds), seconds))

    def _credentials(self) -> dict[str, Any]:
        return granted("lab-SECRET-iam-token", MAX_LIFETIME_S)

    def _documents(self) -> dict[str, Any]:
        """Return the documents by path below /metadata/v1/."""
        interfaces = [interface(nic) for nic in self.nics]
        attachments = [attachment(nic) for nic in self.nics]
        virtual = [self._virtual(nic) for nic in self.nics]
        keys = [
            {"id": identifier("key"), "name": "lab-key", "public_key": KEY, "resource_type": "key", "type": "ed25519"}
        ]
        found: dict[str, Any] = {
            "instance": self._instance(interfaces, attachments),
            "instance/initialization": {"keys": keys, "user_data": self.settings.user_data or ""},
            "instance/network_attachments": {"network_attachments": attachments},
            "instance/network_interfaces": {"network_interfaces": interfaces},
            "keys": {"keys": keys},
            "placement_groups": {"placement_groups": []},
            "virtual_network_interfaces": {"virtual_network_interfaces": virtual},
        }
        found |= {f"instance/network_interfaces/{one['id']}": one for one in interfaces}
        found |= {f"instance/network_attachments/{one['id']}": one for one in attachments}
        found |= {f"virtual_network_interfaces/{one['id']}": one for one in virtual}
        found |= {f"virtual_network_interfaces/{one['id']}/ips": {"ips": one["ips"]} for one in virtual}
        return found

    def _instance(self, interfaces: list[dict[str, Any]], attachments: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "created_at": CREATED,
            "crn": f"{CRN}instance:{INSTANCE}",
            "disks": [],
            "id": INSTANCE,
            "image": {"crn": f"{CRN}image:{identifier('image')}", "id": identifier("image"), "name": "debian-13"},
            "memory": 32,
            "name": "lab",
            "network_attachments": attachments,
            "network_interfaces": interfaces,
            "primary_network_attachment": attachments[0],
            "primary_network_interface": interfaces[0],
            "profile": {"name": "bx2-8x32", "resource_type": "instance_profile"},
            "resource_type": "instance",
            "vcpu": {"architecture": "amd64", "count": 8},
            "volume_attachments": [],
            "vpc": {"crn": f"{CRN}vpc:{identifier('vpc')}", "id": identifier("vpc"), "name": "lab"},
            "zone": {"name": "eu-de-1"},
        }

    def _virtual(self, nic: Nic) -> dict[str, Any]:
        found: dict[str, Any] = {
            "allow_ip_spoofing": False,
            "enable_infrastructure_nat": True,
            "id": identifier(f"vni {nic.mac}"),
            "ips": [reserved(address) for address in nic.addresses],
            "name": f"lab-vni-{nic.device}",
            "primary_ip": reserved(nic.addresses[0]),
            "resource_type": "virtual_network_interface",
            "subnet": subnet(nic),
        }
        return found | ({"mac_address": nic.mac} if self.settings.macs else {})


def granted(token: str, seconds: int) -> dict[str, Any]:
    now = datetime.now(UTC)
    times = [time.strftime("%Y-%m-%dT%H:%M:%SZ") for time in (now, now + timedelta(seconds=seconds))]
    return {"access_token": token, "created_at": times[0], "expires_at": times[1], "expires_in": seconds}


def error(status: int, code: str, message: str) -> Response:
    return answer({"errors": [{"code": code, "message": message}], "trace": identifier(code)}, status=status)


def identifier(what: str) -> str:
    return f"02u7-{uuid.uuid5(uuid.NAMESPACE_OID, what)}"


def reserved(address: str) -> dict[str, str]:
    return {
        "address": address,
        "id": identifier(address),
        "name": f"ip-{address}",
        "resource_type": "subnet_reserved_ip",
    }


def subnet(nic: Nic) -> dict[str, str]:
    found = identifier(nic.subnet)
    return {"crn": f"{CRN}subnet:{found}", "id": found, "name": f"lab-{nic.device}", "resource_type": "subnet"}


def interface(nic: Nic) -> dict[str, Any]:
    return {
        "floating_ips": [{"address": public, "id": identifier(public)} for public in nic.public.values()],
        "id": identifier(nic.mac),
        "name": f"lab-{nic.device}",
        "primary_ip": reserved(nic.addresses[0]),
        "resource_type": "network_interface",
        "subnet": subnet(nic),
    }


def attachment(nic: Nic) -> dict[str, Any]:
    virtual = {"id": identifier(f"vni {nic.mac}"), "name": f"lab-vni-{nic.device}"}
    return {
        "id": identifier(f"attachment {nic.mac}"),
        "name": f"lab-{nic.device}",
        "primary_ip": reserved(nic.addresses[0]),
        "resource_type": "instance_network_attachment",
        "subnet": subnet(nic),
        "type": "primary" if nic.device == 0 else "secondary",
        "virtual_network_interface": {**virtual, "resource_type": "virtual_network_interface"},
    }
