"""Matches the cloud's interfaces with this host's links, and adds what only DHCP provides. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_interface

from cloud_network.fetcher.config import Config, Manage
from cloud_network.fetcher.metadata.model import Instance, Interface, IPAddress, IPInterface
from cloud_network.fetcher.network.objects import Actual, Link
from cloud_network.netagent.claims import is_excluded

Matches = Mapping[str, Link]
"""The link of each interface that has one, by MAC."""


def match_links(instance: Instance, config: Config, links: Iterable[Link]) -> Matches:
    """Match by MAC alone, and only links of a kind that a cloud attaches (a VLAN has its parent's MAC).

    A port of another link is not matched: Azure's accelerated networking has a VF below each synthetic interface with
    the same MAC, virtio's failover a primary and a standby, and a bridge represents its ports. A member of a VRF is
    matched. If two links remain (a VF that is not yet a port), neither is matched.
    """
    macs = {interface.mac for interface in instance.interfaces}
    by_index = {link.ifindex: link for link in links}
    found = defaultdict[str, list[Link]](list)
    for link in by_index.values():
        if (
            link.mac in macs
            and link.ready
            and link.may_be_of_cloud(config.allow_kinds)
            and not _is_port(link, by_index)
        ):
            found[link.mac].append(link)
    return {mac: candidates[0] for mac, candidates in found.items() if len(candidates) == 1}


def explain_mismatch(mac: str, links: Iterable[Link], config: Config) -> str:
    """Return the reason why no link was matched with this MAC."""
    by_index = {link.ifindex: link for link in links}
    candidates = [link for link in by_index.values() if link.mac == mac]
    if not candidates:
        return f'no link of this host has that MAC; if another network namespace has it, set [Network] Exclude="{mac}"'
    for link in candidates:
        if not link.ready:
            return f"udev has not finished with {link.name}"
        if _is_port(link, by_index):
            return _explain_port(link, by_index[link.master or 0], config)
        if link.kind not in (None, *config.allow_kinds):
            key = f'[Netagent] AllowKinds="{link.kind}"'
            return f"{link.name} has that MAC and is of kind {link.kind}, which needs {key}"
    names = " and ".join(link.name for link in candidates)
    return f"{names} have that MAC" if len(candidates) > 1 else f"{names} has that MAC"


def ports(instance: Instance, links: Iterable[Link]) -> set[int]:
    """Return the links with the MAC of an interface that are ports of another link."""
    macs, by_index = {each.mac for each in instance.interfaces}, {link.ifindex: link for link in links}
    return {link.ifindex for link in by_index.values() if link.mac in macs and _is_port(link, by_index)}


def _explain_port(port: Link, master: Link, config: Config) -> str:
    """Return the advice for a port: its master may have its MAC and represent the interface."""
    cure = f'if another program uses it, set [Network] Exclude="{port.mac}"'
    if master.mac == port.mac and master.kind not in config.allow_kinds:
        cure += f'; to configure {master.name} instead, set [Netagent] AllowKinds="{master.kind}"'
    return f"{port.name} has that MAC and is a port of {master.name}; {cure}"


def idle_patterns(instance: Instance, config: Config, links: Iterable[Link]) -> list[str]:
    """Return the patterns of Exclude= that match no link of this host and no interface of the metadata."""
    names = [(link.name, link.mac) for link in links] + [("", each.mac) for each in instance.interfaces]
    return [each for each in config.exclude if not any(is_excluded((each,), name, mac) for name, mac in names)]


def without_absent_vlans(instance: Instance, matches: Matches) -> Instance:
    """Return the instance without VLANs that lack a link on this host. A notice for each has the command to add it."""
    absent = [each for each in instance.interfaces if each.vlan is not None and each.mac not in matches]
    if not absent:
        return instance
    notices = tuple(_how_to_make(each, matches) for each in absent)
    present = tuple(each for each in instance.interfaces if each not in absent)
    return replace(instance, interfaces=present, notices=(*instance.notices, *notices))


def _how_to_make(interface: Interface, matches: Matches) -> str:
    if interface.vlan is None:
        return ""
    tag, below = interface.vlan.tag, matches.get(interface.vlan.parent)
    parent = below.name if below is not None else "PARENT"
    return (
        f"{interface.mac}: VLAN {tag} of {parent} has no link on this host. To configure it, set [Netagent] "
        f'AllowKinds="vlan" and run: ip link add link {parent} name {parent}.{tag} address {interface.mac} '
        f"type vlan id {tag}"
    )


def managed(instance: Instance, matches: Matches, config: Config) -> list[tuple[Interface, Link]]:
    """Return the interfaces to configure with their links, the primary first (see `order`)."""
    found = [
        (interface, matches[interface.mac])
        for interface in sorted(instance.interfaces, key=order)
        if interface.mac in matches
    ]
    if config.manage is Manage.PRIMARY:
        found = found[:1]
    return [each for each in found if not is_excluded(config.exclude, each[1].name, each[1].mac)]


def order(interface: Interface) -> tuple[int, int, str]:
    """Return the sorting key that puts the primary first: in a shared subnet it gets the connected route."""
    number = interface.device_number if interface.device_number is not None else 1 << 16
    return (number, interface.network_card, interface.mac)


def with_leases(instance: Instance, matches: Matches, actual: Actual) -> Instance:
    """Add what some clouds leave to DHCP: subnets (IBM), or everything except the MAC (Scaleway, OpenStack)."""
    foreign = defaultdict[int, dict[IPAddress, IPInterface]](dict)
    for (ifindex, address), kernel in actual.addresses.items():
        if not kernel.owned and not address.is_link_local:
            foreign[ifindex][address] = ip_interface((address, kernel.address.prefix))
    whole = []
    for interface in instance.interfaces:
        link = matches.get(interface.mac)
        held = foreign.get(link.ifindex) if link is not None else None
        whole.append(_with_lease(interface, held) if held else interface)
    return replace(instance, interfaces=tuple(whole))


def _with_lease(interface: Interface, held: Mapping[IPAddress, IPInterface]) -> Interface:
    addresses = interface.addresses or tuple(held.values())
    alone = [each for each in addresses if each.version == 4 and each.network.prefixlen == each.max_prefixlen]
    known = alone if interface.addresses else addresses
    if interface.routed and interface.addresses:
        known = []
    networks = [held[each.ip].network for each in known if each.ip in held]
    subnets = [*interface.subnets, *(network for network in networks if network.prefixlen < network.max_prefixlen)]
    return replace(interface, addresses=addresses, subnets=tuple(dict.fromkeys(subnets)))


def _is_port(link: Link, links: Mapping[int, Link]) -> bool:
    """Return True for a port. A member of a VRF is not one, unless the VRF has its MAC and is matched like a bond."""
    master = links.get(link.master or 0)
    return master is not None and (master.kind != "vrf" or master.mac == link.mac)
