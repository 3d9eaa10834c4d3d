"""OpenStack: Nova's network_data.json, from the metadata service or from the config drive.

Sources: "Metadata" and "Config drives" of Nova's user guide (https://docs.openstack.org/nova/latest/user/metadata.html,
…/user/config-drive.html), the JSON schema of network_data.json that the first page offers, and nova/virt/netutils.py,
which writes it. A bond or a VLAN is a notice: the link of each stays the operator's. Nova names the first IPv4 and the
first IPv6 address of a port, and none where Neutron serves DHCP: there the addresses come from DHCP and router
advertisements, and the port is listed here without any.

The config drive (iso9660 or vfat, with the label config-2) is read where it is mounted, and known by what is in it:
this process may not mount, and its unit has no /dev to find a label in. It is as old as the boot, so it is asked only
when the service has never answered, and what it does not list is not gone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, Interface, MetadataError
from cloud_network.fetcher.metadata.providers.document import Found, Node, NotYetError, each, parse, texts
from cloud_network.fetcher.metadata.providers.parts import Parts
from cloud_network.fetcher.metadata.providers.served import JsonProvider

NAME = "openstack"
ENDPOINT = "169.254.169.254"
_NETWORK, _META = "openstack/latest/network_data.json", "openstack/latest/meta_data.json"
_FACTS = (
    "uuid", "name", "hostname", "availability_zone", "launch_index", "project_id", "devices", "dedicated_cpus",
)  # fmt: skip
_MOUNTS = Path("/proc/self/mounts")
_DRIVES = ("iso9660", "vfat")  # what Nova makes; a user of the host can mount neither, but for …
_USERS = ("/media/", "/run/media/")  # … where udisks mounts what is plugged in


class Openstack(JsonProvider):
    """A Provider: one request for the network, a second for the rest when it has changed."""

    name = NAME
    endpoint = ENDPOINT
    probe = "/" + _NETWORK

    def __init__(self, client: Client | None = None, mounts: Path = _MOUNTS) -> None:
        super().__init__(client)
        self._mounts = mounts
        self._answered = False
        self._drive: Path | None = None  # where it is mounted, while it is the source

    def fetch(self) -> Instance:
        """See Provider."""
        try:
            network = self.read("/" + _NETWORK)
        except MetadataError as error:
            if self._answered:
                raise
            return self._from_drive(error)
        self._answered, self._drive = True, None
        return instance(network, self.facts(network, "/" + _META).get("/" + _META))

    def answers(self) -> bool:
        """See Provider. A drive needs no network: it is there as long as it is mounted."""
        return (self._drive / _NETWORK).is_file() if self._drive else super().answers()

    def _from_drive(self, error: MetadataError) -> Instance:
        drive = mounted(self._mounts)
        if drive is None:
            none = f"no config drive (label config-2) is mounted with a {_NETWORK} that this process may read"
            raise MetadataError(error.kind, f"{error}; and {none}") from None
        network, facts = _file(drive / _NETWORK), None
        with suppress(MetadataError):  # only shown
            facts = _file(drive / _META)
        self._drive = drive
        return replace(instance(network, facts), stale=True)


def mounted(mounts: Path) -> Path | None:
    """Where the config drive is mounted, by /proc/self/mounts (proc_pid_mounts(5))."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        _, place, kind, *_ = [*line.split(" "), "", ""]
        place = place.replace("\\040", " ")
        if kind in _DRIVES and not place.startswith(_USERS) and os.access(Path(place) / _NETWORK, os.R_OK):
            return Path(place)
    return None


def _file(path: Path) -> Node:
    try:
        return parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise MetadataError("unreachable", f"{path}: {error}") from None


def instance(network: Node, facts: Node | None = None) -> Instance:
    """The instance that network_data.json and meta_data.json describe."""
    links = network.items("links")
    nets: dict[str, list[Node]] = {}
    for net in network.items("networks"):
        nets.setdefault(net.at("link").text(), []).append(net)
    ids = [link.at("id").text() for link in links]
    if unknown := next((net for name in nets if name not in ids for net in nets[name]), None):
        raise MetadataError("invalid", f"{unknown.path}.link: {unknown.at('link').value!r} is no link of the document")
    bonds = [link for link in links if link.at("type").text() == "bond"]
    vlans = [link for link in links if link.at("type").text() == "vlan"]
    members = {member.text() for bond in bonds for member in bond.items("bond_links")}
    plain = [
        link for link, name in zip(links, ids, strict=True) if link not in (*bonds, *vlans) and name not in members
    ]

    def interface(link: Node, mac: str) -> Interface:
        return _interface(link, mac, plain.index(link), nets.get(link.at("id").text(), []))

    made: Found = ((), (), ())
    if plain or not links:
        made = each(plain, lambda link: link.at("ethernet_mac_address").mac(), interface)
    notices = made[2] + tuple(_not_yet(link) for link in (*bonds, *vlans))
    return Instance(NAME, *made[:2], notices, system=_system(facts) if facts else {"public-keys": []})


def _not_yet(link: Node) -> str:
    """Named by its id: the MAC of a bond is a member's, a VLAN's is mostly its parent's, and those are other links."""
    kind, name = link.at("type").text(), link.at("id").text()
    return str(NotYetError(f"{link.path}.type: {name} is a {kind}"))


def _interface(link: Node, mac: str, number: int, nets: list[Node]) -> Interface:
    parts = Parts(mac, link.path)
    parts.packets(link.find("mtu"))
    for net in nets:
        kind = net.at("type").text()
        address = net.given("ip_address")
        if not kind.startswith(("ipv4", "ipv6")):
            raise MetadataError("invalid", f"{net.path}.type: {kind!r} is neither ipv4… nor ipv6…")
        if address is None and kind in ("ipv4", "ipv6"):
            net.at("ip_address")  # static, so it is missing
        if address is not None:
            version = 4 if kind.startswith("ipv4") else 6
            _place(parts, net, address, version)
            for route in net.items("routes"):
                length, gateway = route.at("netmask").length(version), route.given("gateway")
                if length == 0:
                    parts.gateway(gateway, version, outside=True)
                elif gateway:  # without one it says that the network is on link, which is the subnet's own route
                    parts.route(route.at("network"), length, gateway)
    document = {**link.value, "networks": [net.value for net in nets]}
    return parts.interface(document, number, bare=True)


def _place(parts: Parts, net: Node, address: Node, version: int) -> None:
    """The address with its netmask, or with a prefix length behind it, as some deployments write it."""
    alone, slash, length = address.text().partition("/")
    node = Node(alone, address.path)
    node.address(version)
    parts.address(node, Node(length, address.path).length(version) if slash else net.at("netmask").length(version))


def _system(facts: Node) -> dict[str, Any]:
    """Not admin_pass, random_seed, nor `meta`, which is the user's."""
    keys = facts.pick("public_keys").get("public_keys")
    listed = [key for each in keys.values() for key in texts(each)] if isinstance(keys, dict) else texts(keys)
    return facts.pick(*_FACTS) | {"public-keys": listed}
