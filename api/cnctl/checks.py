"""The steps of `cnctl doctor`: one function each, which returns a description of the result or raises StepFailed.

Sources: ip-address(8), ip-rule(8), ip-route(8), ip-neighbour(8) for `-json`; linux/neighbour.h for the states; the
kernel's Documentation/networking/ip-sysctl.rst for rp_filter (the larger of `all` and the link's counts).
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from cloud_network.api.cnctl.output import Exit, Failure, safe
from cloud_network.fetcher.status import LinkStatus, absent_addresses

REPAIR = "sudo cnctl refresh"
LEFT_OUT = "read in cnctl status why cloud-network leaves it out"
EXAMPLE_CLIENT = {4: "192.0.2.1", 6: "2001:db8::1"}
"""Default client: an address from the documentation prefixes (RFC 5737, RFC 3849)."""
CLOUD_CLIENTS = {
    "azure": ("168.63.129.16", "169.254.169.254"),
    "gcp": ("35.191.0.1", "130.211.0.1", "169.254.169.254"),
}
"""Sources inside the cloud: load balancers' health probes and the metadata server.

https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16,
https://cloud.google.com/load-balancing/docs/health-check-concepts (35.191.0.0/16, 130.211.0.0/22)
"""
MIN_MTU = {4: 576, 6: 1280}
"""Smallest MTU. IPv4: the datagram that every host must accept (RFC 791); IPv6: the minimum link MTU (RFC 8200)."""
RESOLVED = {"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT", "NOARP"}
RESOLVE_TIMEOUT_S = 4.0
"""Seconds to wait for a neighbour's answer. The kernel asks three times, one second apart."""
DISCARD_PORT = 9


class StepFailed(Exception):
    """A step failed: the result, the command that shows it, and the next command to run."""

    def __init__(self, found: str, look: str, do: str = REPAIR):
        super().__init__(found)
        self.found, self.look, self.do = found, look, do


class Case:
    """One address, the client that connects to it, and the link to which the metadata assigns it."""

    def __init__(self, address: str, client: str | None, link: LinkStatus, provider: str, delegated: str | None = None):
        self.address, self.link, self.dev = address, link, link["name"]
        self.version = ipaddress.ip_address(address).version
        self.bits = 32 if self.version == 4 else 128
        self.flag = f"-{self.version}"
        self.client = client or EXAMPLE_CLIENT[self.version]
        cloud = CLOUD_CLIENTS.get(provider, ()) if client is None and self.version == 4 else ()
        self.clients = (self.client, *cloud)
        self.delegated = delegated  # the range that the address is one of, where it is
        listed = [entry for entry in link["addresses"] if entry["address"] == address]
        self.table = listed[0]["table"] if listed else link["table"]
        self.excluded = any(entry["excluded"] for entry in listed)
        self.gateways: list[str] = []  # of the default route that replies take


def range_of(address: str, links: list[LinkStatus]) -> tuple[LinkStatus, str] | None:
    """Return the link that has a delegated range with this address, and the range. Reads the owned rules and routes."""
    wanted = ipaddress.ip_address(address)
    flag = f"-{wanted.version}"
    found = [(route["dst"], "dev", route.get("dev")) for route in ask_ip(f"ip {flag} route show table local proto 209")]
    found += [
        (f"{entry['src']}/{entry.get('srclen', wanted.max_prefixlen)}", "table", entry.get("table"))
        for entry in ask_ip(f"ip {flag} rule show")
        if entry["src"] != "all" and "iif" not in entry  # a rule with `iif lo` is for addresses, not for a range
    ]
    for network, kind, value in found:
        if wanted in ipaddress.ip_network(network, strict=False):
            for link in links:
                if value == (link["name"] if kind == "dev" else str(link["table"])):
                    return link, str(ipaddress.ip_network(network, strict=False))
    return None


def interface(case: Case) -> str:
    """Check that the link exists, is managed, is up, and has a carrier."""
    look = f"ip link show dev {case.dev}"
    if case.link["state"] == "excluded":
        raise StepFailed(f"{case.dev} is excluded by Exclude= or its kind", look, "remove it from Exclude=")
    found = ask_ip(look, missing=f"{case.dev} does not exist: it was detached or renamed")[0]
    if found.get("address", "").lower() != case.link["mac"].lower():
        raise StepFailed(f"{case.dev} is now another interface: its MAC is {found.get('address')}", look)
    if "UP" not in found["flags"]:
        raise StepFailed(f"{case.dev} is down", look)
    if "LOWER_UP" not in found["flags"]:
        raise StepFailed(
            f"{case.dev} is up, but has no carrier", look, "check in the cloud's console that it is attached"
        )
    return f"{case.dev} is up, with carrier"


def address(case: Case) -> str:
    """Check that the address is on this link and usable."""
    if case.delegated:
        return f"in the range {case.delegated}, delegated to {case.dev}"
    look = f"ip {case.flag} address show to {case.address}"
    owners = {link["ifname"]: info for link in ask_ip(look) for info in link["addr_info"] if info}
    if not owners and case.excluded:
        found = f"no link has {case.address}: ExcludeAddresses= leaves it to another program"
        raise StepFailed(found, look, "to let cloud-network configure it, remove it from [Network] ExcludeAddresses=")
    if not owners:
        left_out = not case.link["drift"] and case.address in [each["address"] for each in absent_addresses(case.link)]
        raise StepFailed(f"no link has {case.address}", look, LEFT_OUT if left_out else REPAIR)
    if case.dev not in owners:
        other = next(iter(owners))
        raise StepFailed(
            f"it is on {other}, and should be on {case.dev}",
            look,
            f"sudo ip address del {case.address}/{owners[other]['prefixlen']} dev {other}; then: {REPAIR}",
        )
    for flag in ("dadfailed", "tentative"):
        if owners[case.dev].get(flag):
            raise StepFailed(f"it is on {case.dev}, but {flag}: another host may have it", look, "see `journalctl -k`")
    more = f", and on {' '.join(name for name in owners if name != case.dev)}" if len(owners) > 1 else ""
    return f"{case.address}/{owners[case.dev]['prefixlen']} is on {case.dev}{more}"


def rule(case: Case) -> str:
    """Check the three rules that send replies from the address to its link's table."""
    table = case.table
    if table is None:
        return "none needed: the link has no table of its own"
    look = f"ip {case.flag} rule show"
    rules = ask_ip(look)
    source = case.delegated or case.address
    own = [entry for entry in rules if entry.get("table") == str(table) and _covers(entry, _network(source))]
    if not any("suppress_prefixlen" in entry for entry in own):
        what = f"no rule `from {source} lookup {table} suppress_prefixlength 0`, nor for a prefix around it"
        raise StepFailed(what, f"{look} table {table}")
    if not any(entry["src"] == "all" and "suppress_prefixlen" in entry and entry["table"] == "main" for entry in rules):
        raise StepFailed("no rule `from all lookup main suppress_prefixlength 0`", f"{look} table main")
    if all("suppress_prefixlen" in entry for entry in own):
        raise StepFailed(f"no rule `from {source} lookup {table}`, nor for a prefix around it", f"{look} table {table}")
    return f"replies from {source} use table {table}"


def _covers(entry: dict[str, Any], source: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Return True if the rule matches this source, or packets of this host from a prefix that contains it."""
    if entry["src"] == "all":
        return False
    own = _network(f"{entry['src']}/{entry['srclen']}" if "srclen" in entry else entry["src"])
    return own == source or (entry.get("iif") == "lo" and source.subnet_of(own))  # type: ignore[arg-type]


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


def table(case: Case) -> str:
    """Check that the table has a default route through this link, and that replies use it."""
    name = case.table or "main"
    look = f"ip {case.flag} route show table {name}"
    routes = [route for route in ask_ip(look) if route.get("dev") == case.dev]
    defaults = [route for route in routes if route["dst"] == "default"]
    if not defaults:
        raise StepFailed(f"table {name} has no default route through {case.dev}", look)
    case.gateways = [route["gateway"] for route in defaults if "gateway" in route]
    if _is_strict(case):  # a strict rp_filter drops the packet before there is a reply
        return f"table {name}: default through {case.dev}"
    for client in case.clients:
        _check_return_route(case, client)
    return f"table {name}: default through {case.dev}; replies to {', '.join(case.clients)} use it"


def _check_return_route(case: Case, client: str) -> None:
    if case.delegated and not ask_ip(f"ip {case.flag} address show to {case.address}") and not _is_local(case.address):
        return  # a container has the address: this host's own routing does not show where its replies go
    look = f"ip {case.flag} route get {client} from {case.address}"
    route = ask_ip(look, missing=f"no route leads from {case.address} to {client}")[0]
    if route.get("dev") != case.dev:
        by = f"{route.get('dev')} (table {route.get('table', 'main')})"
        do = "find the rule or the more specific route that decides this: ip rule show; ip route show table main"
        raise StepFailed(f"replies to {client} leave by {by}, not by {case.dev}", look, do)


def _is_local(address: str) -> bool:
    found = ask_ip(f"ip route get {address}")
    return bool(found) and found[0].get("type") == "local"


def gateway(case: Case) -> str:
    """Check that the gateway of the default route is the one that the cloud documents."""
    name = case.table or "main"
    look = f"ip {case.flag} route show default table {name}"
    wanted = [text for text in case.link["gateways"] if ipaddress.ip_address(text).version == case.version]
    if not case.gateways:
        raise StepFailed(f"the default route in table {name} has no gateway", look)
    if wanted and not set(wanted) & set(case.gateways):
        do = f"sudo ip {case.flag} route del default via {case.gateways[0]} dev {case.dev} table {name}; then: {REPAIR}"
        raise StepFailed(f"the gateway is {case.gateways[0]}, and should be {' or '.join(wanted)}", look, do)
    return case.gateways[0]


def neighbour(case: Case) -> str:
    """Check that the gateway answers ARP or NDP. A datagram from the address to it makes the kernel ask."""
    look = f"ip -s neigh show to {case.gateways[0]} dev {case.dev}"
    until = time.monotonic() + RESOLVE_TIMEOUT_S
    state, asked = _neighbour(look), False
    while state is None or not state["state"] or not RESOLVED & set(state["state"]):
        if not asked:
            _send(case)
            asked = True
        elif time.monotonic() > until or (state and "FAILED" in state["state"]):
            found = state["state"][0] if state and state["state"] else "not known"
            do = f"check the subnet of {case.dev} in the cloud's console; sudo tcpdump -ni {case.dev} arp"
            raise StepFailed(f"{case.gateways[0]} does not answer on {case.dev}: {found}", look, do)
        time.sleep(0.05)
        state = _neighbour(look)
    return f"{case.gateways[0]} is at {state.get('lladdr', '-')} ({state['state'][0].lower()})"


def _neighbour(look: str) -> dict[str, Any] | None:
    return next((entry for entry in ask_ip(look) if entry), None)


def _send(case: Case) -> None:
    """Send an empty datagram to the gateway's discard port. A failure appears in the neighbour's state."""
    family = socket.AF_INET if case.version == 4 else socket.AF_INET6
    gateway: tuple[Any, ...] = (case.gateways[0], DISCARD_PORT)
    if case.version == 6:
        gateway = (*gateway, 0, case.link["ifindex"])
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        with contextlib.suppress(OSError):  # the address can belong to a container
            sender.bind((case.address, 0))
        with contextlib.suppress(OSError):
            sender.sendto(b"", gateway)


def rp_filter(case: Case) -> str:
    """Check that rp_filter does not drop packets to this link."""
    if case.version == 6:
        return "not applicable to IPv6"
    if not _is_strict(case):
        return "off or loose"
    look = f"ip route get {case.address} from {case.client} iif {case.dev}"
    do = f"sudo sysctl net.ipv4.conf.all.rp_filter=2 net/ipv4/conf/{case.dev}/rp_filter=2 (loose), or correct the route"
    what = f"strict: packets from {case.client} to {case.dev} are dropped: their return route is not through {case.dev}"
    ask_ip(look, missing=what, do=do)
    return f"strict, and the return route to {case.client} is through {case.dev}"


def _is_strict(case: Case) -> bool:
    """Return True for strict reverse-path filtering (1 is strict, 2 is loose). IPv6 has no such setting."""
    return case.version == 4 and ipv4_setting(case.dev, "rp_filter") == 1


def ipv4_setting(dev: str, name: str) -> int:
    """Return a setting of net.ipv4.conf of which the larger of the link's and that of `all` applies (ip-sysctl.rst)."""
    return max(int(Path("/proc/sys/net/ipv4/conf", link, name).read_text()) for link in ("all", dev))


def mtu(case: Case) -> str:
    """Check that the link's MTU is the one from the metadata, and not smaller than the protocol needs."""
    look = f"ip link show dev {case.dev}"
    is_now = ask_ip(look)[0]["mtu"]
    prefix = f"ip link set {case.dev} mtu "
    wanted = next((int(line[len(prefix) :]) for line in case.link["drift"] if line.startswith(prefix)), None)
    wanted = wanted or case.link["mtu"]
    if is_now != wanted:
        raise StepFailed(f"{case.dev} has an MTU of {is_now}, and should have {wanted}", look, f"sudo {prefix}{wanted}")
    if is_now < MIN_MTU[case.version]:
        raise StepFailed(f"{case.dev} has an MTU of {is_now}; IPv{case.version} needs {MIN_MTU[case.version]}", look)
    return str(is_now)


def ask_ip(command: str, missing: str | None = None, do: str = REPAIR) -> list[dict[str, Any]]:
    """Run the command with -json. If it fails, raise StepFailed with `missing`; if that is None, return nothing."""
    try:
        words = command.split()
        ended = subprocess.run(["ip", "-json", *words[1:]], capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError:
        raise Failure(Exit.FAILED, "the command `ip` is missing: install iproute2") from None
    except subprocess.TimeoutExpired:
        raise Failure(Exit.FAILED, f"`{safe(command)}` did not end in time") from None
    except ValueError:  # a null character or a surrogate in a name: an unprivileged process writes the state
        raise Failure(Exit.FAILED, f"`{safe(command)}` is no command that can be run") from None
    if ended.returncode:
        if missing:
            raise StepFailed(missing, command, do)
        return []
    try:
        found = json.loads(ended.stdout or "[]")
    except ValueError:
        raise Failure(Exit.FAILED, f"`{command}` prints no JSON: iproute2 is too old") from None
    return [entry for entry in found if entry]
