"""Oracle Cloud's instance metadata service.

Sources: "Getting Instance Metadata" (docs.oracle.com/iaas/Content/Compute/Tasks/gettingmetadata.htm: the keys of
instance and VNICs, `Authorization: Bearer Oracle`, forwarded requests rejected, version 1 a 404 where it is disabled)
and "Virtual Network Interface Cards" (…/Network/Tasks/managingVNICs.htm). `privateIp` is the primary address of a
VNIC: secondary private addresses are *not* in the metadata, so the lab has none here. The IPv6 keys are not on those
pages; they are as clients read them (Talos, oracle_test.go; pritunl-cloud, netconf). Captures have MAC addresses in
capitals (cloud-init, test_oracle.py). On bare metal secondary VNICs share the physical link and have a VLAN tag.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from dataclasses import dataclass
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Nic
from .behaviour import Behaviour, Dmi, answer, dmi, pick
from .frame import Request, Response

KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host")


@dataclass(frozen=True)
class Settings:
    v1: bool = True
    bare_metal: bool = False
    user_data: str | None = None


class Oracle(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="EDK II",
        chassis_asset_tag="OracleCloud.com",
        chassis_vendor="QEMU",
        product_name="Standard PC (i440FX + PIIX, 1996)",
        product_uuid="0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209",
        sys_vendor="QEMU",
    )
    convention: ClassVar[Convention] = Convention(
        endpoints=("169.254.169.254", "fd00:c1::a9fe:a9fe"), most_addresses=1, router6="fe80::200:17ff:fe00:1"
    )

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        match request.path.strip("/").split("/"):
            case ["opc", "v2", *names]:
                if any(name in request.headers for name in FORWARDED):
                    return error(403, "Forbidden")
                if request.headers.get("authorization") != "Bearer Oracle":
                    return error(401, "Unauthorized")
            case ["opc", "v1", *names] if self.settings.v1:
                pass
            case _:
                return error(404, "Not Found")
        if request.method != "GET":
            return error(405, "Method Not Allowed")
        document = self.recorded
        if document is None:
            document = {"instance": self._instance(), "vnics": [self._vnic(nic) for nic in self.nics]}
        try:
            found = pick(document, names)
        except LookupError:
            return error(404, "Not Found")
        return answer(found) if isinstance(found, dict | list) else Response(200, str(found).encode(errors="replace"))

    def _instance(self) -> dict[str, Any]:
        user_data = self.settings.user_data
        more = {"user_data": b64encode(user_data.encode()).decode()} if user_data else {}
        return {
            "availabilityDomain": "EMIr:EU-FRANKFURT-1-AD-1",
            "faultDomain": "FAULT-DOMAIN-2",
            "compartmentId": ocid("compartment", "lab"),
            "displayName": "lab",
            "hostname": "lab",
            "id": ocid("instance", "lab"),
            "image": ocid("image", "lab"),
            "metadata": {"ssh_authorized_keys": KEY, **more},
            "region": "eu-frankfurt-1",
            "canonicalRegionName": "eu-frankfurt-1",
            "ociAdName": "eu-frankfurt-1-ad-1",
            "regionInfo": {
                "realmKey": "oc1",
                "realmDomainComponent": "oraclecloud.com",
                "regionKey": "FRA",
                "regionIdentifier": "eu-frankfurt-1",
            },
            "shape": "BM.Standard3.64" if self.settings.bare_metal else "VM.Standard.E5.Flex",
            "state": "Running",
            "timeCreated": 1767225600000,
            "agentConfig": {"monitoringDisabled": False, "managementDisabled": False, "allPluginsDisabled": False},
        }

    def _vnic(self, nic: Nic) -> dict[str, Any]:
        found: dict[str, Any] = {
            "vnicId": ocid("vnic", nic.mac),
            "privateIp": nic.addresses[0],
            "vlanTag": nic.device if self.settings.bare_metal else 1039 + nic.device,
            "macAddr": nic.mac.upper(),
            "virtualRouterIp": nic.gateway,
            "subnetCidrBlock": nic.subnet,
        }
        if self.settings.bare_metal:
            found["nicIndex"] = 0
        if nic.ipv6:
            found |= {
                "ipv6Addresses": list(nic.ipv6),
                "ipv6SubnetCidrBlock": nic.subnet6,
                "ipv6VirtualRouterIp": self.convention.router6,
            }
        return found


def ocid(kind: str, what: str) -> str:
    return f"ocid1.{kind}.oc1.eu-frankfurt-1.{hashlib.sha256(what.encode()).hexdigest()[:60]}"


def error(status: int, text: str) -> Response:
    return Response(status, f"<html><head><title>{status} {text}</title></head></html>".encode(), {}, "text/html")
