"""cloud-init's network configuration, version 1, as Hetzner (YAML) and Vultr (JSON) embed it in their metadata.

Source: "Networking config Version 1" (docs.cloud-init.io/en/latest/reference/network-config-format-v1.html).
"""

from __future__ import annotations

import re

from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node
from cloud_network.fetcher.metadata.model import MetadataError, invalid

_NOT_LINKS = ("nameserver", "route")  # entries of other types, which describe no interface
_WITHOUT_ADDRESS = ("dhcp", "ipv6_", "manual")
_WITH_ADDRESS = ("static", "static6")
_ALIAS = re.compile(r".+:\d+")


def physical(config: Node | None, builder: InstanceBuilder) -> tuple[list[Node], dict[int, list[Node]]]:
    """Return the physical interfaces, and the aliases of each by its position. Other kinds of links give a notice."""
    entries = list[Node]()
    if config:
        builder.expect(config, "version")
        builder.expect_entries(config, "config")
    for entry in config.items("config") if config else []:
        try:
            kind = entry.at("type").text()
            if kind == "physical":
                entries.append(entry)
            elif kind not in _NOT_LINKS:
                builder.notices.append(f"{entry.path}.type: {kind!r} is not configured; only physical interfaces are")
                if entry.given("mac_address"):
                    builder.left_alone.add(mac(entry))
        except MetadataError as error:
            builder.report(str(error))
    parents = [entry for entry in entries if not _is_alias(entry)]
    names = [entry.pick("name").get("name") for entry in parents]
    aliases = dict[int, list[Node]]()
    for entry in filter(_is_alias, entries):
        parent = str(entry.pick("name").get("name")).rpartition(":")[0]
        if parent in names:
            aliases.setdefault(names.index(parent), []).append(entry)
        else:
            builder.report(f"{entry.path}: no MAC, and not an alias: no physical interface is named {parent!r}")
    return parents, aliases


def _is_alias(entry: Node) -> bool:
    """Return True for an entry without a MAC such as eth0:0: it holds further addresses of eth0."""
    return entry.given("mac_address") is None and bool(_ALIAS.fullmatch(str(entry.pick("name").get("name"))))


def mac(entry: Node) -> str:
    """Return the entry's MAC address."""
    return entry.at("mac_address").mac()


def fill(entry: Node, aliases: list[Node], builder: InterfaceBuilder) -> None:
    """Fill the builder from an entry and its aliases. A subnet without an address is left to DHCP."""
    builder.dhcp = True
    with builder.part():
        builder.set_mtu(entry.find("mtu"))
    for each in (entry, *aliases):
        builder.expect_entries(each, "subnets")
        with builder.part():
            for subnet in each.items("subnets"):
                with builder.part():
                    _fill_subnet(subnet, builder)


def _fill_subnet(subnet: Node, builder: InterfaceBuilder) -> None:
    written, kind = subnet.given("address"), str(subnet.pick("type").get("type", "static"))
    if kind not in _WITH_ADDRESS and not kind.startswith(_WITHOUT_ADDRESS):
        builder.notices.append(f"{subnet.path}.type: {kind!r} is not a known type; an address is used as static")
    if written is None:
        if not kind.startswith(_WITHOUT_ADDRESS):
            builder.expect(subnet, "address")
        return
    address, length = written.split_length()
    version = address.address().version
    if length is None:
        length = subnet.given("netmask")
        builder.expect(subnet, "netmask")
    bits = length.length(version) if length else None
    block = Node(f"{address.text()}/{bits}", written.path).network() if bits is not None else None
    if version == 6 and block and bits != 128 and block.network_address == address.address():
        builder.add_subnet(block)  # an additional network, delegated as a whole
        builder.add_range(written, block)
    else:
        builder.add_address(address, version, bits)
    with builder.part():
        builder.add_gateway(subnet.given("gateway"), version)
    with builder.part():
        for route in subnet.items("routes"):
            with builder.part():
                add_route(route, builder)


def add_route(route: Node, builder: InterfaceBuilder) -> None:
    """Add a route: `destination` or `network`, followed by a prefix length or a netmask, and `gateway`.

    Without a gateway the network is on link and covered by its subnet's route.
    """
    destination = route.given("destination") or route.at("network")
    gateway = route.given("gateway")
    network, length = destination.split_length()
    length = length or route.given("netmask") or route.at("prefix")
    if gateway is None:
        builder.expect(route, "gateway")
        return
    version = 6 if ":" in network.text() else 4
    bits = length.length(version)
    if bits == 0:
        builder.add_gateway(gateway, version)
    elif gateway.value != destination.value:
        builder.add_route(network, bits, gateway)
    else:
        raise invalid(gateway.path, gateway.value, "a gateway: it is the destination itself")
