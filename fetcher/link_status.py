"""The part of status.json for each link: desired, actual and missing objects. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance, Interface
from cloud_network.fetcher.network.matching import Matches, managed
from cloud_network.fetcher.network.objects import Actual, Desired, Link, LinkGoal, LinkSettings
from cloud_network.fetcher.network.plan import COMMON, Plan, in_ip_syntax, link_of
from cloud_network.fetcher.status import AddressStatus, LinkStatus, absent_addresses
from cloud_network.netagent.claims import single, tables, within

MAX_DRIFT = 256
"""Number of operations listed for one link; the rest is counted, to keep status.json small."""


def link_statuses(
    instance: Instance, matches: Matches, config: Config, actual: Actual, desired: Desired, changes: Plan
) -> dict[str, LinkStatus]:
    """Return {ifindex: status} for every link that the metadata names and this host has."""
    goals = {goal.settings.ifindex: goal for goal in desired.links}
    drift = _drift(changes, actual, config)
    statuses = {}
    configured = {link.ifindex for _, link in managed(instance, matches, config)}
    for interface in instance.interfaces:
        link = matches.get(interface.mac)
        if link is not None:
            goal = goals.get(link.ifindex, LinkGoal(LinkSettings(link.ifindex, None), (), (), ()))
            found = _status(interface, link, config, actual, goal, drift.get(link.ifindex, ()))
            if link.ifindex not in configured:
                found["state"] = "excluded"
            statuses[str(link.ifindex)] = found
    return statuses


def _drift(changes: Plan, actual: Actual, config: Config) -> Mapping[int, list[str]]:
    """Return the operations that each link lacks, in `ip` syntax. Rules of no link are listed for every link."""
    links = {link.ifindex: link for link in actual.links}
    drift = defaultdict[int, list[str]](list)
    for op in changes:
        link, text = link_of(op, config.route_table_base), in_ip_syntax(op, links)
        for ifindex in links if link == COMMON else (link,):
            drift[ifindex].append(text)
    return {ifindex: _bounded(texts) for ifindex, texts in drift.items()}


def _bounded(texts: list[str]) -> list[str]:
    more = len(texts) - MAX_DRIFT
    return [*texts[:MAX_DRIFT], f"and {more} more"] if more > 0 else texts


def _status(
    interface: Interface, link: Link, config: Config, actual: Actual, goal: LinkGoal, drift: Sequence[str]
) -> LinkStatus:
    table = _table(tables(link.ifindex, config.route_table_base)[0], goal)
    present = sum((link.ifindex, each.address) in actual.addresses for each in goal.addresses)
    present += sum(each in actual.routes for each in goal.routes) + sum(each in actual.rules for each in goal.rules)
    defaults = [str(each.gateway) for each in goal.routes if each.gateway and each.destination.prefixlen == 0]
    found: LinkStatus = {
        "name": link.name,
        "mac": link.mac,
        "ifindex": link.ifindex,
        "device_number": interface.device_number,
        "state": "drift" if drift else "ok",
        "mtu": link.mtu,
        "table": table,
        "gateways": list(dict.fromkeys(defaults)),
        "subnets": [str(subnet) for subnet in interface.subnets],
        "addresses": _address_statuses(interface, link, config, actual, goal),
        "ranges": [str(network) for network in interface.ranges],
        "desired": len(goal.addresses) + len(goal.routes) + len(goal.rules),
        "actual": present,
        "drift": list(drift),
    }
    if absent_addresses(found):  # also one that is left out; the status has the reason
        found["state"] = "drift"
    return found


def _table(number: int, goal: LinkGoal) -> int | None:
    """Return the number if the link has that table."""
    return number if any(each.table == number for each in goal.routes) else None


def _address_statuses(
    interface: Interface, link: Link, config: Config, actual: Actual, goal: LinkGoal
) -> list[AddressStatus]:
    first, second = (_table(number, goal) for number in tables(link.ifindex, config.route_table_base))
    statuses: list[AddressStatus] = []
    of_services = [each.ifindex for each in actual.links if each.is_service_link]
    for position, address in enumerate(interface.addresses):
        kernel = actual.addresses.get((link.ifindex, address.ip))
        anchored = second is not None and interface.anchor is not None and address.ip in interface.anchor[0]
        statuses.append(
            {
                "address": str(address.ip),
                "prefix_length": address.network.prefixlen,
                "kernel_prefix_length": None if kernel is None else kernel.address.prefix,
                "public": [str(public) for public in interface.public] if position == 0 else [],
                "present": kernel is not None or any((each, address.ip) in actual.addresses for each in of_services),
                "owned": kernel is not None and kernel.owned,
                "excluded": within(single(address.ip), config.exclude_addresses),
                "table": second if anchored else first,
            }
        )
    return statuses
