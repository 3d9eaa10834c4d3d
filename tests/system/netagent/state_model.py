"""The model of the state machine: snapshots by iproute2, predicted snapshots, and safety rules.

It is independent of netagent: iproute2 reads the kernel, and the safety rules are implemented a second time.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from tests.lab import Lab
from tests.system.netagent.wire import CONFIG, ifindex

Address = IPv4Address | IPv6Address
PROTOCOL, MAIN, LOCAL, BASE, PRIORITIES = 209, 254, 255, 9999, range(31000, 31030)
_TABLES = {"main": MAIN, "local": LOCAL, "default": 253}
# Destinations of the host's own packets: gateways, hosts of a container and of an operator, and the internet.
PROBES = ("10.0.1.1", "10.0.1.77", "172.17.0.9", "192.168.77.7", "8.8.8.8", "169.254.169.254", "10.66.0.1")

FOREIGN = [
    "link set eth0 up",
    "link add docker0 type bridge",
    "address add 172.17.0.1/16 dev docker0",
    "link set docker0 up",
    "link add spare type veth peer name spare1",
    "address change 10.0.1.10/24 brd + dev eth1 valid_lft 86400 preferred_lft 86400",
    "address add 10.0.2.50/32 dev eth0",
    "address add 10.0.3.50/32 dev spare",  # routes go with a link's last address: test_regressions.py
    "address add fd00:2::50/128 dev eth0 nodad",
    "route add 192.168.77.0/24 via 10.0.1.1",
    "route add default via 10.0.1.1 table 100",
    "route add local 10.55.0.0/24 dev eth1 table local",
    "rule add pref 31005 from 10.9.9.9 lookup main",
    "rule add pref 31000 from 10.9.9.8 lookup 100",
]
FOREIGN6 = ["route add fd00:9::/64 dev eth1 metric 7", "rule add pref 31010 from fd00:9::/64 lookup 100"]


def add_foreign_objects(lab: Lab) -> None:
    """Add objects of DHCP, an operator and a container network, which must not change, and a link that is down."""
    lab.write_config(CONFIG)
    lab.path("/etc/resolv.conf").write_text("nameserver 10.0.4.2\nnameserver fd00::53\n")
    lab.batch(FOREIGN)
    lab.batch([f"route add 10.66.0.0/24 via 10.0.1.1 table {9999 + ifindex(lab, 'eth1')} proto static"])
    for line in FOREIGN6:
        lab.run(["ip", "-6", *line.split()])


class LinkAddress(NamedTuple):
    """An address of a link, with its prefix length."""

    link: str
    address: Address
    prefix: int
    route: bool  # True if the kernel added its connected route


class Route(NamedTuple):
    table: int
    link: str
    destination: str
    gateway: Address | None
    kind: str


class Rule(NamedTuple):
    priority: int
    network: str
    to: bool
    table: int
    suppress: bool
    local: bool


@dataclass(frozen=True)
class Snapshot:
    """Everything that netagent could change: owned objects as values, foreign objects as text."""

    links: dict[str, tuple[bool, int]]  # up, MTU
    addresses: frozenset[LinkAddress]
    routes: frozenset[Route]
    rules: frozenset[Rule]
    foreign_addresses: tuple[str, ...]
    foreign_routes: tuple[str, ...]
    foreign_rules: tuple[str, ...]
    kernel_routes: frozenset[str]
    egress: tuple[str, ...]


def _ip(lab: Lab, family: str, *lines: str) -> list[list[dict[str, Any]]]:
    argv = ["nsenter", f"--target={lab.instance.pid}", "--net", "--", "ip", "-j", "-d", family, "-force", "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(lines), capture_output=True, text=True, check=False)
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def _text(each: dict[str, Any]) -> str:
    return json.dumps(each, sort_keys=True)


def snapshot(lab: Lab, owned: frozenset[LinkAddress] = frozenset()) -> Snapshot:
    """Return a snapshot of the kernel. iproute2 does not show IFA_PROTO, so `owned` lists the owned addresses."""
    egress = [f"route get {probe}" for probe in PROBES]
    links, addresses4, routes4, rules4, *got = _ip(
        lab, "-4", "link", "address", "route show table all", "rule", *egress
    )
    addresses6, routes6, rules6 = _ip(lab, "-6", "address", "route show table all", "rule")
    held: dict[LinkAddress, str] = {}
    for link in addresses4 + addresses6:
        for each in link.get("addr_info", ()):
            made = LinkAddress(
                link["ifname"], ip_address(each["local"]), each["prefixlen"], not each.get("noprefixroute")
            )
            kept = {key: each[key] for key in each.keys() - {"valid_life_time", "preferred_life_time", "tentative"}}
            held[made] = f"{link['ifname']} {_text(kept)}"
    kinds = ("unicast", "local", "broadcast", "anycast")
    routes = [each for each in routes4 + routes6 if each["type"] in kinds and not each["dst"].startswith("fe80:")]
    owned_routes = [each for each in routes if each["protocol"] == str(PROTOCOL)]
    made_by_kernel = {_text(each) for each in routes if each["protocol"] == "kernel"}
    others = {_text(each) for each in routes if each not in owned_routes} - made_by_kernel
    rules = [(each, "0.0.0.0/0") for each in rules4] + [(each, "::/0") for each in rules6]
    return Snapshot(
        links={link["ifname"]: ("UP" in link["flags"], link["mtu"]) for link in links},
        addresses=frozenset(held.keys() & owned),
        routes=frozenset(map(_route, owned_routes)),
        rules=frozenset(_rule(each, all_) for each, all_ in rules if each["protocol"] == str(PROTOCOL)),
        foreign_addresses=tuple(sorted(text for key, text in held.items() if key not in owned)),
        foreign_routes=tuple(sorted(others)),
        foreign_rules=tuple(_text(each) + all_ for each, all_ in rules if each["protocol"] != str(PROTOCOL)),
        kernel_routes=frozenset(made_by_kernel),
        egress=tuple(_text(answer[0]) for answer in got),
    )


def _route(each: dict[str, Any]) -> Route:
    family = 6 if "pref" in each else 4
    anywhere = "::/0" if family == 6 else "0.0.0.0/0"
    destination = str(ip_network(anywhere if each["dst"] == "default" else each["dst"]))
    gateway = ip_address(each["gateway"]) if "gateway" in each else None
    table = _TABLES.get(each["table"]) or int(each["table"])
    return Route(table, each["dev"], destination, gateway, each["type"])


def _rule(each: dict[str, Any], anywhere: str) -> Rule:
    side, length = ("dst", "dstlen") if "dst" in each else ("src", "srclen")
    network = (
        anywhere if each[side] == "all" else f"{each[side]}/{each.get(length, ip_address(each[side]).max_prefixlen)}"
    )
    table = _TABLES.get(each["table"]) or int(each["table"])
    flags = ("suppress_prefixlen" in each, each.get("iif") == "lo")
    return Rule(each["priority"], str(ip_network(network)), side == "dst", table, *flags)


NO_LINK = (False, 0)  # a refused operation may name an unknown link


def predict(before: Snapshot, ops: Iterable[dict[str, Any]], names: dict[int, str]) -> Snapshot:
    """Return the snapshot with the owned objects after `ops`, if all of them are applied."""
    links, addresses = dict(before.links), set(before.addresses)
    routes, rules = set(before.routes), set(before.rules)
    for op in ops:
        name, link = op["op"], names.get(op.get("link", 0), "")
        if name == "link_up":
            links[link] = (True, links.get(link, NO_LINK)[1])
        elif name == "link_mtu":
            links[link] = (links.get(link, NO_LINK)[0], op["mtu"])
        elif name == "address_add":
            addresses.add(LinkAddress(link, ip_address(op["address"]), op["prefix"], op["route"]))
        elif name == "address_remove":
            addresses -= {each for each in addresses if each[:2] == (link, ip_address(op["address"]))}
        elif name.startswith("route"):
            destination = str(ip_network((op["address"], op["prefix"]), strict=False))
            routes -= {each for each in routes if (each.table, each.destination) == (op["table"], destination)}
            if name == "route_replace":
                gateway = None if op["gateway"] is None else ip_address(op["gateway"])
                kind = "local" if op["table"] == LOCAL else "unicast"
                routes.add(Route(op["table"], link, destination, gateway, kind))
        else:
            network = str(ip_network((op["address"], op["prefix"]), strict=False))
            rule = Rule(op["priority"], network, op["to"], op["table"], op["suppress"], op["local"])
            (rules.add if name == "rule_add" else rules.discard)(rule)
    return replace(
        before, links=links, addresses=frozenset(addresses), routes=frozenset(routes), rules=frozenset(rules)
    )


def owned_state(state: Snapshot) -> tuple[object, ...]:
    return state.links, state.addresses, state.routes, state.rules


# Addresses that netagent must never add: of DHCP, routers, resolvers, metadata servers and the container bridge.
FORBIDDEN = [
    *map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "172.17.0.1")),
    *map(
        ip_network, ("10.0.1.1", "10.0.1.10", "10.0.4.2", "10.0.2.50", "10.0.3.50", "100.100.100.200", "168.63.129.16")
    ),
    *map(ip_network, ("::/64", "fe80::/10", "ff00::/8", "fd00:ec2::254", "fd00:2::50", "fd00::53")),
]
PRIVATE = [ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")]

OTHERS = {"eth0": "10.0.1.0/24", "eth1": "10.0.2.0/24"}  # the other link's subnet


# Source addresses of other programs, and their links.
HELD = {
    "10.0.1.10": "eth1",
    "10.0.2.50": "eth0",
    "10.0.3.50": "spare",
    "172.17.0.1": "docker0",
    "fd00:2::50": "eth0",
    "10.55.0.1": "eth1",
    "127.0.0.1": "lo",
}


def _conflicting_links(network: IPv4Network | IPv6Network) -> set[str]:
    """Return the links on which a rule for this network would also match a source of another link."""
    holders = {link for text, link in HELD.items() if ip_address(text) in network}
    return {link for link in ("eth0", "eth1", "spare") if holders - {link}}


def violations(state: Snapshot, names: dict[int, str]) -> list[str]:
    """Return violations of the safety rules: objects that no request may add to the kernel."""
    found = []
    gateways = {route.gateway for route in state.routes if route.gateway}
    holders: dict[Address, set[str]] = {}
    for held in state.addresses:
        holders.setdefault(held.address, set()).add(held.link)
        if any(held.address in network for network in FORBIDDEN):
            found.append(f"an address of another program: {held}")
        if not any(held.address in network for network in PRIVATE):
            found.append(f"a public address: {held}")
        if held.address in gateways:
            found.append(f"a gateway's address: {held}")
        if held.link not in ("eth0", "eth1", "spare"):
            found.append(f"a link that is not the cloud's: {held}")
    found += [f"{address} on two links" for address, links in holders.items() if len(links) > 1]
    for route in state.routes:
        network, own = (
            ip_network(route.destination),
            {BASE + index for index, name in names.items() if name == route.link},
        )
        if route.table == LOCAL:
            theirs = [other for other in FORBIDDEN if HELD.get(str(other.network_address)) != route.link]
            if (
                route.gateway
                or route.kind != "local"
                or any(network.overlaps(other) for other in theirs if other.version == network.version)
            ):
                found.append(f"a local route over another program's address: {route}")
            if any(gateway in network for gateway in gateways):
                found.append(f"a local route over a gateway: {route}")
        elif route.table not in own or route.link not in ("eth0", "eth1", "spare"):
            found.append(f"a route in a table that is not its link's: {route}")
        if route.gateway and route.gateway in holders:
            found.append(f"a gateway that is this host: {route}")
        if route.gateway and route.gateway in ip_network(OTHERS.get(route.link, "::/128")):
            found.append(f"a gateway of another link: {route}")
    mains = {
        ip_network(rule.network).version: rule.priority
        for rule in sorted(state.rules, reverse=True)
        if rule.table == MAIN
    }
    for rule in state.rules:
        network = ip_network(rule.network)
        if rule.table != MAIN and not rule.suppress and rule.priority <= mains.get(network.version, rule.priority):
            found.append(f"a rule before main's: {rule}")
        if rule.priority not in PRIORITIES:
            found.append(f"a rule outside the band: {rule}")
        if not network.prefixlen:
            if rule.table != MAIN or not rule.suppress or rule.to or rule.local:
                found.append(f"a rule that diverts everything: {rule}")
        elif names.get(rule.table - BASE) not in ("eth0", "eth1", "spare"):
            found.append(f"a rule into a table that is no link's: {rule}")
        elif (
            network.num_addresses == 1
            and names[rule.table - BASE] == "eth0"
            and network[0] in map(ip_address, ("10.0.1.10", "10.0.1.1"))
        ):
            found.append(f"a rule for another link's source: {rule}")
        elif network.num_addresses > 1 and names[rule.table - BASE] in _conflicting_links(network):
            found.append(f"a rule for a prefix with sources of another link: {rule}")
    return found
