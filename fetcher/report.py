"""The parts of status.json that describe links and the current activity (docs/status.schema.json). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Interface
from cloud_network.fetcher.network.objects import Actual, Desired, Link, LinkGoal, LinkSettings, Rule
from cloud_network.fetcher.network.plan import Plan, in_ip_syntax
from cloud_network.fetcher.status import AddressStatus, LinkStatus, Status

_NO_GOAL = LinkGoal(LinkSettings(0, None), (), (), ())  # of an excluded link
_SHOWN = 5  # entries of a list in one message


def link_statuses(desired: Desired, config: Config, actual: Actual, plan: Plan) -> dict[str, LinkStatus]:
    """Return {ifindex: status} of every link that the metadata name; `plan` is what is still to be changed."""
    goals = {goal.settings.ifindex: goal for goal in desired.links}
    drift = _drift(plan, actual, config)
    return {
        str(link.ifindex): _link_status(
            interface, link, config, actual, goals.get(link.ifindex, _NO_GOAL), drift[link.ifindex]
        )
        for interface, link in desired.matches
    }


def _drift(plan: Plan, actual: Actual, config: Config) -> defaultdict[int, list[str]]:
    """Return {ifindex: changes still to be made}, in `ip` syntax."""
    names = {link.ifindex: link for link in actual.links}
    drift = defaultdict[int, list[str]](list)
    for change in plan:
        what, text = change.what, in_ip_syntax(change, names)
        if not isinstance(what, Rule):
            drift[what.ifindex].append(text)
        elif what.selector is not None:
            drift[what.table - config.route_table_base].append(text)
        else:  # the rule without a selector concerns every link
            for ifindex in names:
                drift[ifindex].append(text)
    return drift


def the_first(texts: Sequence[str]) -> str:
    """Return the first few texts and the number of the others: a block of addresses is too long for a message."""
    more = len(texts) - _SHOWN
    return "; ".join(texts[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def doing(status: Status, endpoint: str, failed_reads: int) -> str:
    """Return the current activity in one line, for systemd's STATUS=."""
    links, error = status["links"].values(), status["last_error"]
    addresses = sum(len(link["addresses"]) for link in links)
    count = f"{len(links)} interface{'' if len(links) == 1 else 's'}, {addresses} addresses"
    left = sum(len(link["drift"]) for link in links)
    if failed_reads and error is not None:
        attempt = f"{error['message']} (attempt {failed_reads})"
        return (
            f"waiting for metadata at {endpoint}: {attempt}" if status["fetched_at"] is None else f"{count}; {attempt}"
        )
    if status["state"] == "ok":
        return f"{count}, in agreement"
    why = f"{error['kind']}: {error['message']}" if error else ""
    if status["unknown_macs"]:
        why = why or "not here: " + ", ".join(status["unknown_macs"])
    return f"{count}, {left} changes to make" + (f"; {why}" if why else "")


def _link_status(
    interface: Interface, link: Link, config: Config, actual: Actual, goal: LinkGoal, drift: Sequence[str]
) -> LinkStatus:
    table = config.route_table_base + link.ifindex
    addresses, routes, rules = goal.addresses, goal.routes, goal.rules
    present = sum((link.ifindex, address.address) in actual.addresses for address in addresses)
    present += sum(route in actual.routes for route in routes) + sum(rule in actual.rules for rule in rules)
    excluded = link.name in config.exclude
    return {
        "name": link.name,
        "mac": link.mac,
        "ifindex": link.ifindex,
        "device_number": interface.device_number,
        "state": "excluded" if excluded else "drift" if drift else "ok",
        "mtu": link.mtu,
        "table": table if any(route.table == table for route in routes) else None,
        "gateways": list(
            dict.fromkeys(str(route.gateway) for route in routes if route.gateway and route.destination.prefixlen == 0)
        ),
        "subnets": [str(subnet) for subnet in interface.subnets],
        "addresses": _address_statuses(interface, link, actual),
        "ranges": [str(network) for network in interface.ranges],
        "desired": len(addresses) + len(routes) + len(rules),
        "actual": present,
        "drift": list(drift),
    }


def _address_statuses(interface: Interface, link: Link, actual: Actual) -> list[AddressStatus]:
    statuses: list[AddressStatus] = []
    for position, address in enumerate(interface.addresses):
        kernel = actual.addresses.get((link.ifindex, address.ip))
        statuses.append(
            {
                "address": str(address.ip),
                "prefix_length": address.network.prefixlen,
                "kernel_prefix_length": None if kernel is None else kernel.address.prefix,
                "public": [str(public) for public in interface.public] if position == 0 else [],
                "present": kernel is not None,
                "owned": kernel is not None and kernel.owned,
            }
        )
    return statuses
