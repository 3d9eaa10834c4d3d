"""The last step of `cnctl doctor ADDRESS:PORT`: a port that NAT publishes for a container, and the route of its
replies.

NAT rules are read from `iptables-save` and `nft --json list ruleset`, which only root may run. The container's address
is not found in rules that are spread over several chains, as those of kube-proxy. The kernel is asked for the route of
a packet that comes from the container: with the mark of ForwardedReplies="mark", if a rule for that exists.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cloud_network.api.cnctl.checks import REPAIR, Case, StepFailed, ask_ip, ipv4_setting

RELOAD = "sudo systemctl try-reload-or-restart cloud-network-netagent cloud-network-fetcher"


@dataclass(frozen=True, slots=True)
class Target:
    """A container's address and port."""

    address: str
    port: int | None


def check(case: Case, port: int) -> str | None:
    """Check that replies of a published port leave by the link of the address.

    Return None if not root: NAT rules are hidden.
    """
    if os.geteuid() != 0:
        return None
    targets = [each for each in _targets(case, port) if _dev(case, each.address) is not None]
    if not targets:
        return f"NAT publishes no port {port} of {case.address} on this host; a process on the host must listen"
    for target in targets:
        _check_return_route(case, target, port)
    named = ", ".join(dict.fromkeys(each.address for each in targets))
    return f"published by {named}, whose replies to {case.client} leave by {case.dev}"


def _targets(case: Case, port: int) -> list[Target]:
    command = ["iptables-save", "-t", "nat"] if case.version == 4 else ["ip6tables-save", "-t", "nat"]
    found = list(in_iptables(_output(command), case.address, port))
    with contextlib.suppress(ValueError):
        found += in_nftables(json.loads(_output(["nft", "--json", "list", "ruleset"]) or "{}"), case.address, port)
    versions = ((each, ipaddress.ip_address(each.address).version) for each in found)
    return list(dict.fromkeys(each for each, version in versions if version == case.version))


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""


def in_iptables(text: str, address: str, port: int) -> Iterator[Target]:
    """Yield the targets of DNAT rules in the output of iptables-save(8)."""
    for line in text.splitlines():
        target = re.search(r"-j DNAT --to-destination \[?([0-9a-fA-F.:]+?)\]?(?::([0-9]+))?(?: |$)", line)
        own = re.search(r"(?<!! )-d (\S+)", line)
        if target and re.search(rf"--dport {port}(?: |$)", line) and (own is None or _holds(own[1], address)):
            yield Target(target[1], int(target[2]) if target[2] else None)


def _holds(network: str, address: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)


def in_nftables(ruleset: Any, address: str, port: int) -> Iterator[Target]:
    """Yield the targets of dnat statements in the output of `nft --json list ruleset`: libnftables-json(5)."""
    for entry in ruleset.get("nftables", ()):
        statements = entry.get("rule", {}).get("expr", ())
        matches = [each["match"] for each in statements if "match" in each]
        dnat: dict[str, Any] = next((each["dnat"] for each in statements if each.get("dnat")), {})
        ports = [each["right"] for each in matches if _field(each) == "dport"]
        addresses = [each["right"] for each in matches if _field(each) == "daddr"]
        if isinstance(dnat.get("addr"), str) and port in ports and all(each == address for each in addresses):
            yield Target(dnat["addr"], dnat["port"] if isinstance(dnat.get("port"), int) else None)


def _field(match: Any) -> str | None:
    left = match.get("left", {})
    payload = left.get("payload", {}) if isinstance(left, dict) and match.get("op") == "==" else {}
    return payload.get("field") if isinstance(payload, dict) else None


def _dev(case: Case, container: str) -> str | None:
    """Return the link that leads to a container; None if the address is this host's."""
    found = ask_ip(f"ip {case.flag} route get {container}")
    return found[0].get("dev") if found and found[0].get("type", "unicast") == "unicast" else None


def _check_return_route(case: Case, target: Target, port: int) -> None:
    mark = _mark(case)
    marked = f" mark {mark}" if mark else ""
    look = f"ip {case.flag} route get {case.client} from {target.address} iif {_dev(case, target.address)}{marked}"
    what = f"port {port} is published by {target.address}, but this host forwards nothing from there to {case.client}"
    forwarding = "net.ipv4.ip_forward" if case.version == 4 else "net.ipv6.conf.all.forwarding"
    route = ask_ip(look, missing=what, do=f"sudo sysctl {forwarding}=1")[0]
    if route.get("dev") != case.dev:
        found = f"port {port} is published by {target.address}, whose replies to {case.client} leave by "
        found += f"{route.get('dev')}, not by {case.dev}; the cloud drops them"
        do = f'set [Network] ForwardedReplies="mark" in cloud-network.toml, then: {RELOAD}'
        raise StepFailed(found, look, REPAIR if mark else do)
    if mark and not _output(["nft", "list", "table", "inet", "cloud_network"]):
        raise StepFailed(
            "the nftables table inet cloud_network, which marks connections, is missing", "sudo nft list tables"
        )
    if case.version == 4 and _drops(case.dev) and _is_asymmetric(case, target):
        found = (
            f"rp_filter=1: what {case.client} sends to {case.dev} is dropped, as it is forwarded to {target.address}"
        )
        do = "sudo sysctl net.ipv4.conf.all.src_valid_mark=1"
        raise StepFailed(found, f"sysctl net/ipv4/conf/{case.dev}/rp_filter net.ipv4.conf.all.src_valid_mark", do)


def _mark(case: Case) -> str | None:
    """Return the value of MARK/MASK in the rules for the link's table."""
    table = str(case.link["table"])
    for entry in ask_ip(f"ip {case.flag} rule show"):
        if entry.get("table") == table and "fwmark" in entry and "suppress_prefixlen" not in entry:
            return str(entry["fwmark"])
    return None


def _drops(dev: str) -> bool:
    return ipv4_setting(dev, "rp_filter") == 1 and not ipv4_setting(dev, "src_valid_mark")


def _is_asymmetric(case: Case, target: Target) -> bool:
    """Return True if replies without a mark do not leave by the link: that is the route that rp_filter checks."""
    found = ask_ip(f"ip {case.flag} route get {case.client} from {target.address} iif {_dev(case, target.address)}")
    return bool(found) and found[0].get("dev") != case.dev
