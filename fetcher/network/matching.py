"""Matching of the cloud's interfaces to this host's links, and facts of an interface that only DHCP gives. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_interface

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance, Interface, IPAddress, IPInterface
from cloud_network.fetcher.network.objects import Actual, Link


def match_links(instance: Instance, config: Config, links: Iterable[Link]) -> dict[str, Link]:
    """Return {MAC: link}, by MAC alone and only of kinds that a cloud attaches (a VLAN has its parent's MAC).

    A member of a link with the same MAC is not a match: Azure's accelerated networking puts a VF below each synthetic
    interface, virtio failover has a primary and a standby, and a bond has members. If two candidates are left, such as
    a VF that is not a member yet, the MAC has no match.
    """
    macs = {interface.mac for interface in instance.interfaces}
    links = [link for link in links if link.mac in macs]
    mac_of = {link.ifindex: link.mac for link in links}
    candidates = defaultdict[str, list[Link]](list)
    for link in links:
        is_member = link.master is not None and mac_of.get(link.master) == link.mac
        if not is_member and (link.kind is None or link.kind in config.allow_kinds):
            candidates[link.mac].append(link)
    return {mac: found[0] for mac, found in candidates.items() if len(found) == 1}


def with_dhcp_facts(instance: Instance, matches: Mapping[str, Link], actual: Actual) -> Instance:
    """Return the instance with what its metadata leave to DHCP: subnets (IBM), or all but the MAC (OpenStack)."""
    foreign = _foreign_addresses(actual)
    interfaces = []
    for interface in instance.interfaces:
        link = matches.get(interface.mac)
        leased = foreign.get(link.ifindex) if link else None
        interfaces.append(_with_lease(interface, leased) if leased else interface)
    return replace(instance, interfaces=tuple(interfaces))


def _foreign_addresses(actual: Actual) -> Mapping[int, Mapping[IPAddress, IPInterface]]:
    """Return {ifindex: {address: with its prefix length}} of addresses that we did not add."""
    foreign = defaultdict[int, dict[IPAddress, IPInterface]](dict)
    for (ifindex, address), kernel in actual.addresses.items():
        if not kernel.owned and not address.is_link_local:
            foreign[ifindex][address] = ip_interface((address, kernel.address.prefix))
    return foreign


def _with_lease(interface: Interface, leased: Mapping[IPAddress, IPInterface]) -> Interface:
    """Return the interface with addresses from `leased` if it has none, and with the subnets of those it lacks."""
    addresses = interface.addresses or tuple(leased.values())
    networks = [leased[each.ip].network for each in _without_subnet(interface, addresses) if each.ip in leased]
    subnets = [*interface.subnets, *(network for network in networks if network.prefixlen < network.max_prefixlen)]
    return replace(interface, addresses=addresses, subnets=tuple(dict.fromkeys(subnets)))


def _without_subnet(interface: Interface, addresses: tuple[IPInterface, ...]) -> tuple[IPInterface, ...]:
    """Return the addresses whose subnet the metadata do not give."""
    if not interface.addresses:
        return addresses
    if interface.routed:
        return ()
    return tuple(each for each in addresses if each.version == 4 and each.network.prefixlen == each.max_prefixlen)
