"""OpenStack's metadata service.

Sources: "Metadata" (docs.openstack.org/nova/latest/user/metadata.html: versions, files) and the schema of
network_data.json that it links (docs.openstack.org/nova: links of kind ovs, bond, vlan and others; networks ipv4,
ipv4_dhcp, ipv6 …; netmasks as addresses). Nova lists the first fixed address of a port's subnet; the schema allows any
number, and other writers list all, as the lab does unless `all_addresses` is False. cloud-init configures it
statically.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, ClassVar

from ..convention import Convention
from ..nic import Nic
from .behaviour import Behaviour, Dmi, answer, dmi
from .frame import Request, Response

VERSIONS = ("2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-06-30", "2016-10-06", "2017-02-22")
VERSIONS_ALL = (*VERSIONS, "2018-08-27", "2020-10-14", "latest")
INSTANCE = "0c10d0e7-ab1e-5209-ac10-d0e7ab1e5209"
MTU = 1450
KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} lab-key"


@dataclass(frozen=True)
class Settings:
    """`dhcp`: the networks leave the addresses to DHCP. `links`: the type of the last interface: ovs, vlan or bond.

    `routes`: the subnets' host routes, (network, gateway) each; Nova lists them with every address of the subnet.
    """

    dhcp: bool = False
    all_addresses: bool = True
    links: str = "ovs"
    routes: tuple[tuple[str, str], ...] = ()
    user_data: str | None = None


class OpenStack(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_vendor="SeaBIOS",
        chassis_vendor="OpenStack Foundation",
        product_family="Virtual Machine",
        product_name="OpenStack Nova",
        product_serial=INSTANCE,
        product_uuid=INSTANCE,
        product_version="29.2.0",
        sys_vendor="OpenStack Foundation",
    )
    convention: ClassVar[Convention] = Convention(
        link_local="fe80::a9fe:a9fe", protocol="static", mtu=MTU, all_links=True
    )

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"405 Method Not Allowed")
        files = self._files() if self.recorded is None else self.recorded
        match request.path.strip("/").split("/"):
            case ["openstack"]:
                return Response(200, "\n".join(VERSIONS_ALL).encode())
            case ["openstack", version] if version in VERSIONS_ALL:
                return Response(200, "\n".join(files).encode())
            case ["openstack", version, file] if version in VERSIONS_ALL and file in files:
                content = files[file]
                return Response(200, content.encode(errors="replace")) if isinstance(content, str) else answer(content)
        return Response(404, b"404 Not Found")

    def _files(self) -> dict[str, Any]:
        files: dict[str, Any] = {
            "meta_data.json": META,
            "password": "",
            "vendor_data.json": {},
            "vendor_data2.json": {},
            "network_data.json": self._network(),
        }
        if self.settings.user_data:
            files["user_data"] = self.settings.user_data
        return files

    def _network(self) -> dict[str, Any]:
        links = [link(nic) for nic in self.nics]
        networks = [network for nic in self.nics for network in self._networks(nic)]
        last = self.nics[-1]
        if self.settings.links == "vlan":
            links[-1] = {
                "id": name(last),
                "type": "vlan",
                "vlan_id": 100 + last.device,
                "vlan_link": name(self.nics[0]),
                "vlan_mac_address": last.mac,
                "mtu": MTU,
                "vif_id": port(last),
            }
        elif self.settings.links == "bond":
            slave = {"id": "phy0", "type": "phy", "ethernet_mac_address": last.mac, "mtu": MTU}
            bond = {"id": name(last), "type": "bond", "bond_links": ["phy0"], "bond_mode": "active-backup"}
            links[-1:] = [slave, {**bond, "ethernet_mac_address": last.mac, "mtu": MTU}]
        for number, network in enumerate(networks):
            network["id"] = f"network{number}"
        return {"links": links, "networks": networks, "services": [{"type": "dns", "address": "192.0.2.53"}]}

    def _networks(self, nic: Nic) -> list[dict[str, Any]]:
        shared = {"link": name(nic), "network_id": str(uuid.uuid5(uuid.NAMESPACE_OID, nic.subnet))}
        how_many = None if self.settings.all_addresses else 1
        if self.settings.dhcp:
            return [{**shared, "type": "ipv4_dhcp"}, *([{**shared, "type": "ipv6_dhcp"}] if nic.ipv6 else [])]
        found: list[dict[str, Any]] = []
        for address in nic.addresses[:how_many]:
            default = {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": nic.gateway}
            mask = str(nic.network.netmask)
            routes = [default, *(route(*each) for each in self.settings.routes if IPv4Address(each[1]) in nic.network)]
            found.append({**shared, "type": "ipv4", "ip_address": address, "netmask": mask, "routes": routes})
        for address in nic.ipv6[:how_many]:
            assert nic.network6
            default = {"network": "::", "netmask": "::", "gateway": str(nic.network6[1])}
            mask = str(nic.network6.netmask)
            found.append({**shared, "type": "ipv6", "ip_address": address, "netmask": mask, "routes": [default]})
        return found


def route(destination: str, gateway: str) -> dict[str, str]:
    network = IPv4Network(destination)
    return {"network": str(network.network_address), "netmask": str(network.netmask), "gateway": gateway}


def port(nic: Nic) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, nic.mac))


def name(nic: Nic) -> str:
    return f"tap{port(nic)[:11]}"


def link(nic: Nic) -> dict[str, Any]:
    return {"id": name(nic), "type": "ovs", "ethernet_mac_address": nic.mac, "mtu": MTU, "vif_id": port(nic)}


META = {
    "uuid": INSTANCE,
    "name": "lab",
    "hostname": "lab.novalocal",
    "availability_zone": "nova",
    "project_id": "0c10d0e7ab1e5209ac10d0e7ab1e5209",
    "launch_index": 0,
    "random_seed": "bGFi",
    "public_keys": {"lab-key": KEY},
    "keys": [{"name": "lab-key", "type": "ssh", "data": KEY}],
    "devices": [],
    "meta": {},
    "dedicated_cpus": [],
}
