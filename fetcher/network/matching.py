"""Which link of this host is which interface of the cloud, and what is known of it only from DHCP. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_interface

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.kept import Kept
from cloud_network.fetcher.metadata.model import Instance, Interface, IPAddress, IPInterface
from cloud_network.fetcher.network.objects import Actual, Link

_UNHELD: Mapping[IPAddress, IPInterface] = {}


def match_links(instance: Instance, config: Config, links: Iterable[Link]) -> dict[str, Link]:
    """{MAC: link}: by MAC alone, and never a link of a kind that no cloud attaches (a VLAN has its parent's MAC).

    A part of another link with the same MAC is not it either: Azure's accelerated networking has a VF below each
    synthetic interface, virtio's failover a primary and a standby, a bond its members. When two are left (a VF that is
    not yet a part), neither is taken.
    """
    macs = {interface.mac for interface in instance.interfaces}
    links = [link for link in links if link.mac in macs]
    of = {link.ifindex: link.mac for link in links}
    found = defaultdict[str, list[Link]](list)
    for link in links:
        part = link.master is not None and of.get(link.master) == link.mac
        if not part and (link.kind is None or link.kind in config.allow_kinds):
            found[link.mac].append(link)
    return {mac: candidates[0] for mac, candidates in found.items() if len(candidates) == 1}


def without_absent_vlans(instance: Instance, found: Mapping[str, Link]) -> tuple[Instance, tuple[str, ...]]:
    """Return the instance without VLANs that have no link here, and a notice of each that says how to make it."""
    absent = [each for each in instance.interfaces if each.vlan is not None and each.mac not in found]
    if not absent:
        return instance, ()
    notices = tuple(_how_to_make(each, found) for each in absent)
    return replace(instance, interfaces=tuple(each for each in instance.interfaces if each not in absent)), notices


def _how_to_make(interface: Interface, found: Mapping[str, Link]) -> str:
    assert interface.vlan is not None
    tag, below = interface.vlan.tag, found.get(interface.vlan.parent)
    parent = below.name if below else "PARENT"
    return (
        f"{interface.mac}: VLAN {tag} of {parent} has no link here. To have it configured, set [Netagent] "
        f'AllowKinds="vlan" and run: ip link add link {parent} name {parent}.{tag} address {interface.mac} '
        f"type vlan id {tag}"
    )


def with_what_dhcp_says(
    instance: Instance, found: Mapping[str, Link], actual: Actual, kept: Kept | None = None
) -> Instance:
    """The instance, with what its metadata leave to DHCP: subnets (IBM), or all but the MAC (Scaleway, OpenStack)."""
    kept = kept or Kept()
    others = kept(_of_others, actual)
    whole = []
    for each in instance.interfaces:
        interface = kept.same(("said", each.mac), each)
        held = others.get(found[each.mac].ifindex, _UNHELD) if each.mac in found else None
        whole.append(interface if held is None else kept(_leased, interface, held))
    return replace(instance, interfaces=tuple(whole))


def _of_others(actual: Actual) -> Mapping[int, Mapping[IPAddress, IPInterface]]:
    """{ifindex: {address: with its prefix length}} of what is not ours."""
    others = defaultdict[int, dict[IPAddress, IPInterface]](dict)
    for (ifindex, address), kernel in actual.addresses.items():
        if not kernel.owned and not address.is_link_local:
            others[ifindex][address] = ip_interface((address, kernel.address.prefix))
    return others


def _leased(interface: Interface, held: Mapping[IPAddress, IPInterface]) -> Interface:
    addresses = interface.addresses or tuple(held.values())
    alone = [each for each in addresses if each.version == 4 and each.network.prefixlen == each.max_prefixlen]
    known = addresses if not interface.addresses else () if interface.routed else alone
    networks = [held[each.ip].network for each in known if each.ip in held]
    subnets = [*interface.subnets, *(network for network in networks if network.prefixlen < network.max_prefixlen)]
    return replace(interface, addresses=addresses, subnets=tuple(dict.fromkeys(subnets)))
