"""OpenStack: Nova's network_data.json, from the metadata service or from the config drive.

Sources: "Metadata" and "Config drives" of Nova's user guide (https://docs.openstack.org/nova/latest/user/metadata.html,
.../user/config-drive.html), the JSON schema of network_data.json that the first page offers, nova/virt/netutils.py,
which writes it, and "Metadata service over IPv6" for the second endpoint (Neutron,
docs.openstack.org/neutron/latest/admin/config-ipv6.html). Older Nova writes a `type` of null for a physical NIC
(cloud-init's tests/unittests/sources/helpers/test_openstack.py).

A bond is a notice: its link and its members are left to the operator. A VLAN is configured where its link exists. Nova
names the first IPv4 and the first IPv6 address of a port. It names none where Neutron serves DHCP: there the addresses
come from DHCP and router advertisements, and the port is listed without addresses.

The config drive (iso9660 or vfat, with the label config-2) is read where it is mounted, and identified by its content:
this process may not mount it, and its unit has no /dev in which to find the label. The drive is written at boot. It is
therefore read only if the service has never answered, and what it does not list is not removed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from cloud_network.fetcher.metadata import network_config
from cloud_network.fetcher.metadata.base import JsonProvider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node, lines_of, parse_json
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError, Vlan

_NETWORK, _META = "openstack/latest/network_data.json", "openstack/latest/meta_data.json"
_FACTS = (
    "uuid", "name", "hostname", "availability_zone", "launch_index", "project_id", "devices", "dedicated_cpus",
)  # fmt: skip
# Of a plain interface: Nova's LEGACY_EXPOSED_VIF_TYPES and "phy", and those of clouds that cloud-init supports.
_PLAIN = (
    "bgpovs", "bridge", "cascading", "dvs", "ethernet", "hw_veb", "hyperv", "None", "ovs", "phy", "tap", "vhostuser",
    "vif", "",
)  # fmt: skip
_MOUNTS = Path("/proc/self/mounts")
_DRIVES = ("iso9660", "vfat")  # what Nova makes; a user of the host can mount neither, except ...
_USER_MOUNTS = ("/media/", "/run/media/")  # ... where udisks mounts what is plugged in


class Openstack(JsonProvider):
    """A Provider: one request for the network, a second for the rest when it has changed."""

    name = "openstack"
    endpoints = ("169.254.169.254", "[fe80::a9fe:a9fe]")
    probe_path = "/" + _NETWORK

    def __init__(self, client: Client | None = None, mounts: Path = _MOUNTS) -> None:
        super().__init__(client)
        self._mounts = mounts
        self._answered = False
        self._drive: Path | None = None  # where it is mounted, while it is the source

    def clone(self) -> Self:
        """See Provider. The clone, too, does not use the drive once the server has answered."""
        other = super().clone()
        other._mounts, other._answered = self._mounts, self._answered
        return other

    def read(self) -> Instance:
        """See Provider."""
        try:
            network = self.document("/" + _NETWORK)
        except MetadataError as error:
            if self._answered:
                raise
            return self._from_drive(error)
        self._answered, self._drive = True, None
        return instance(network, self.facts(network, "/" + _META).get("/" + _META))

    def is_reachable(self) -> bool:
        """See Provider. A drive needs no network: it is there as long as it is mounted."""
        return (self._drive / _NETWORK).is_file() if self._drive else super().is_reachable()

    def _from_drive(self, error: MetadataError) -> Instance:
        drive = mounted(self._mounts)
        if drive is None:
            none = f"no config drive (label config-2) is mounted with a {_NETWORK} that this process may read"
            raise MetadataError(error.kind, f"{error}; and {none}", error.retry_after) from None
        network, facts = _file(drive / _NETWORK), None
        with suppress(MetadataError):  # only shown
            facts = _file(drive / _META)
        self._drive = drive
        return replace(instance(network, facts), stale=True)


def mounted(mounts: Path) -> Path | None:
    """Return the mount point of the config drive, from /proc/self/mounts (proc_pid_mounts(5))."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        _, place, kind, *_ = [*line.split(" "), "", ""]
        place = place.replace("\\040", " ")
        if kind in _DRIVES and not place.startswith(_USER_MOUNTS) and os.access(Path(place) / _NETWORK, os.R_OK):
            return Path(place)
    return None


def _file(path: Path) -> Node:
    try:
        return parse_json(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise MetadataError("unreachable", f"{path}: {error}") from None


def instance(network: Node, facts: Node | None = None) -> Instance:
    """Return the instance that network_data.json and meta_data.json describe."""
    builder = InstanceBuilder(Openstack.name)
    links = _links_by_id(network, builder)
    nets = _networks_by_link(network, links, builder)
    members = {member for link in links.values() if _type(link) == "bond" for member in _members(link, builder)}
    given = {name: link.pick("ethernet_mac_address").get("ethernet_mac_address") for name, link in links.items()}
    macs = {name: str(written) for name, written in given.items() if written is not None}
    builder.expect_entries(network, "networks")
    plain, vlans = list[Node](), list[Node]()
    for name, link in links.items():
        kind = _type(link)
        if kind == "bond":
            text = f"{link.path}.type: {name} is a bond, which is not configured; its link is the operator's"
            builder.notices.append(text)
        elif kind == "vlan" and str(link.pick("vlan_mac_address").get("vlan_mac_address")) in macs.values():
            text = f"{link.path}.type: {name} is a VLAN with the MAC of its parent, which is not configured"
            builder.notices.append(text)
        elif kind == "vlan":
            vlans.append(link)
        elif name not in members:
            plain.append(link)

    def fill(link: Node, interface: InterfaceBuilder, position: int) -> None:
        interface.number = position
        kind = _type(link)
        if kind not in (*_PLAIN, "vlan"):
            interface.notices.append(f"{link.path}.type: {kind!r} is not a known type; it is configured like a NIC")
        if kind == "vlan":
            interface.number = len(plain) + position
            parent = macs.get(str(link.pick("vlan_link").get("vlan_link")), "")
            interface.vlan = Vlan(link.at("vlan_id").number(1, 4094), parent)
        _fill(link, nets.get(link.at("id").text(), []), interface)

    builder.read_interfaces(plain, lambda link: link.at("ethernet_mac_address").mac(), fill)
    builder.read_interfaces(vlans, lambda link: link.at("vlan_mac_address").mac(), fill)
    return builder.build(_system(facts) if facts else {"public-keys": []})


def _links_by_id(network: Node, builder: InstanceBuilder) -> dict[str, Node]:
    links: dict[str, Node] = {}
    for link in network.at("links").items():
        try:
            name = link.at("id").text()
        except MetadataError as error:
            builder.report(str(error))
            continue
        if name in links:
            builder.report(f"{link.path}.id: a second link {name!r}; the first is used")
        links.setdefault(name, link)
    return links


def _networks_by_link(network: Node, links: dict[str, Node], builder: InstanceBuilder) -> dict[str, list[Node]]:
    nets: dict[str, list[Node]] = {}
    try:
        entries = network.items("networks")
    except MetadataError as error:
        builder.report(str(error))
        return {}
    for net in entries:
        try:
            name = net.at("link").text()
        except MetadataError as error:
            builder.report(str(error))
            continue
        if name not in links:
            builder.report(f"{net.path}.link: {name!r} is not a link of the document")
        nets.setdefault(name, []).append(net)
    return nets


def _type(link: Node) -> str:
    return str(link.pick("type").get("type", ""))


def _members(bond: Node, builder: InstanceBuilder) -> list[str]:
    try:
        return [member.text() for member in bond.items("bond_links")]
    except MetadataError as error:
        builder.report(str(error))
        return []


def _fill(link: Node, nets: list[Node], builder: InterfaceBuilder) -> None:
    builder.dhcp = True
    builder.document = {**link.value, "networks": [net.value for net in nets]}
    with builder.part():
        builder.set_mtu(link.find("mtu"))
    for net in nets:
        with builder.part():
            _fill_network(net, builder)


def _fill_network(net: Node, builder: InterfaceBuilder) -> None:
    kind = net.at("type").text()
    if not kind.startswith(("ipv4", "ipv6")):
        builder.notices.append(f"{net.path}.type: {kind!r} is not a type that is configured: ipv4..., ipv6...")
        return
    version = 4 if kind.startswith("ipv4") else 6
    if kind in ("ipv4", "ipv6"):
        net.at("ip_address")  # static, so an address must be there
        builder.expect(net, "ip_address")
    written = net.given("ip_address")
    if written is None:
        return
    address, length = written.split_length()
    length = length or net.given("netmask")
    if length is None:
        builder.expect(net, "netmask")
    builder.expect(net, "routes")
    builder.add_address(address, version, length.length(version) if length else None)
    with builder.part():
        for route in net.items("routes"):
            with builder.part():
                network_config.add_route(route, builder)
    with builder.part():
        builder.add_gateway(net.given("gateway"), version)


def _system(facts: Node) -> dict[str, Any]:
    """Return facts; not admin_pass, random_seed, nor `meta`, which is the user's."""
    keys = facts.pick("public_keys").get("public_keys")
    listed = list(keys.values()) if isinstance(keys, dict) else keys
    return facts.pick(*_FACTS) | {"public-keys": lines_of(listed)}
