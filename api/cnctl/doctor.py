"""`cnctl doctor ADDRESS`: the chain that a packet needs, link by link, up to the first that is broken.

The facts are the fetcher's state and what `ip -json` says, so any user may ask, and each step is a command that one can
repeat. What comes after the first broken link is not looked at: it would mostly be its consequence.
"""

from __future__ import annotations

import ipaddress
import sys
import time

from cloud_network.api import freshness
from cloud_network.api.cnctl import chain, layout
from cloud_network.api.cnctl.chain import Broken, Case
from cloud_network.api.cnctl.failure import OK, USAGE, WRONG, Failure
from cloud_network.api.cnctl.network import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from cloud_network.api.cnctl.source import Source
    from cloud_network.fetcher.status import LinkStatus, Status

STEPS = (
    ("interface", chain.interface),
    ("address", chain.address),
    ("rule", chain.rule),
    ("table", chain.table),
    ("gateway", chain.gateway),
    ("neighbour", chain.neighbour),
    ("rp_filter", chain.rp_filter),
    ("mtu", chain.mtu),
)
OUTSIDE = "On this host nothing is wrong. What is left: the cloud's firewall rules and routes, the client, the service."


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Look, print every step, and name the first broken link; WRONG if there is one."""
    asked, client = _ip(arguments.address), _ip(arguments.client) if arguments.client else None
    if client is not None and client.version != asked.version:
        raise Failure(USAGE, f"{client} and {asked} are of different IP versions")
    steps = _examine(source.status(), str(asked), str(client) if client else None)
    broken = next((step["step"] for step in steps if step["ok"] is False), None)
    if arguments.json:
        layout.show_json({"address": str(asked), "ok": broken is None, "broken": broken, "steps": steps})
    else:
        _show(str(asked), steps)
    return OK if broken is None else WRONG


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise Failure(USAGE, f"{layout.safe(text)} is not an IP address") from None


def _examine(status: Status, address: str, client: str | None) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    try:
        link, delegated = _listed(status, address)
        what = f"it, in {delegated}," if delegated else "it"
        found = f"{status['provider']} gives {what} to {link['name']} ({link['mac']}); read {_when(status)}"
        steps.append(_step("metadata", True, found))
        case = Case(address, client, link, delegated)
        for name, look in STEPS:
            steps.append(_step(name, True, look(case)))
    except Broken as broken:
        name = ("metadata", *(name for name, _ in STEPS))[len(steps)]
        steps.append(_step(name, False, broken.found, broken.look, broken.do))
    return steps + [_step(name, None, "") for name, _ in STEPS[max(0, len(steps) - 1) :]]


def _step(name: str, ok: bool | None, found: str, look: str | None = None, do: str | None = None) -> dict[str, Any]:
    return {"step": name, "ok": ok, "found": found, "look": look, "do": do}


def _listed(status: Status, address: str) -> tuple[LinkStatus, str | None]:
    for link in links(status):
        if any(entry["address"] == address for entry in link["addresses"]):
            return link, None
    if known := chain.range_of(address, links(status)):
        return known
    found = f"{status['provider']} does not give this instance {address}; read {_when(status)}"
    look, do = "cnctl status network", "give it to an interface in the cloud's console, then: sudo cnctl refresh"
    if status["unknown_macs"]:
        found += f"; it names interfaces that are not here: {' '.join(status['unknown_macs'])}"
        look, do = "cnctl status", f"if it is an address of theirs, the notices of cnctl status say why; else {do}"
    raise Broken(found, look, do)


def _when(status: Status) -> str:
    at = status["fetched_at"]
    if at is None:
        return "never yet"
    now = time.time()
    return f"{max(0.0, freshness.age(at, now)):.0f} s ago" + (", out of date" if freshness.stale(status, now) else "")


def _show(address: str, steps: list[dict[str, Any]]) -> None:
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    marks = {True: "✓", False: "✗", None: "·"} if utf8 else {True: "ok", False: "NO", None: "--"}
    for step in steps:
        mark = marks[step["ok"]]
        if step["ok"] is not None:
            mark = layout.coloured(mark, 32 if step["ok"] else 31)
        print(f"{mark} " + _wrapped(f"{step['step']:<10}  ", step["found"] or "not looked at", len(marks[True]) + 1))
        for label in ("look", "do"):
            if step[label]:
                print(_wrapped(" " * (len(marks[True]) + 13) + f"{label + ':':<6}", step[label], 0))
    broken = next((step for step in steps if step["ok"] is False), None)
    if broken:
        print(layout.coloured(f"{address}: the first broken link is {broken['step']}", 31))
    else:
        print(layout.coloured(f"{address}: every link holds", 32))
        print(_wrapped("", OUTSIDE, 0))


def _wrapped(head: str, text: str, before: int) -> str:
    """The text after its head; further lines below its beginning. `before`: what stands left of the head."""
    limit, indent = layout.columns(), before + len(head)
    lines, used = [head], indent
    for word in layout.safe(text).split(" "):
        if limit and used > indent and used + 1 + len(word) > limit:
            lines.append(" " * indent)
            used = indent
        lines[-1] += word if used == indent else f" {word}"
        used += len(word) + (used > indent)
    return "\n".join(lines)
