"""`cnctl doctor [ADDRESS[:PORT]]`: check the steps that a packet needs, up to the first that fails.

The sources are the fetcher's state and the output of `ip -json`, so every user may run it, and every step is a command
that can be repeated. Steps after the first failure are not checked: most would fail as its consequence. The exception
is a fetcher that does not run: the address may be complete in spite of it. Without an address, the daemons, the
metadata and the first address of every link are checked.
"""

from __future__ import annotations

import ipaddress
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from cloud_network.api.cnctl import checks, output, published
from cloud_network.api.cnctl.checks import Case, StepFailed
from cloud_network.api.cnctl.network import links
from cloud_network.api.cnctl.output import GREEN, RED, Exit, Failure, ago, coloured, count, safe, wrapped
from cloud_network.api.cnctl.source import RESTART, Source, never_read
from cloud_network.api.cnctl.status import conflict_words
from cloud_network.fetcher.state import Claim
from cloud_network.fetcher.status import LinkStatus, Status, absent_addresses, age, configured_addresses

STEPS = (
    ("interface", checks.interface),
    ("address", checks.address),
    ("rule", checks.rule),
    ("table", checks.table),
    ("gateway", checks.gateway),
    ("neighbour", checks.neighbour),
    ("rp_filter", checks.rp_filter),
    ("mtu", checks.mtu),
)
UNREPAIRED = "If the command does not help, run cnctl status: it shows what cloud-network leaves out, and why."
OUTSIDE = "This host is OK. Check next: the cloud's firewall rules and routes, the client, the service."
LOG = "journalctl -u cloud-network-fetcher"
CONFIGURATION = "/etc/cloud-network/cloud-network.toml"
NETAGENT_LOG = "journalctl -u cloud-network-netagent"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its result (None: not checked), a description, the command that shows it, and what to run next."""

    step: str
    ok: bool | None
    found: str
    look: str | None = None
    do: str | None = None


def run(address: str | None, client: str | None, source: Source, as_json: bool) -> Exit:
    """Check and print every step, and name the first that fails. Returns FAILED if one fails."""
    text, port = _split_port(address) if address else (None, None)
    asked = _address(text) if text else None
    other = _address(client) if client else None
    if other is not None and (asked is None or other.version != asked.version):
        raise Failure(Exit.USAGE, "--from needs an ADDRESS of the same IP version")
    if asked is None:
        steps = list(_host(source))
    else:
        claim = source.claim()
        steps = _steps(claim, source.status_of(claim), str(asked), str(other) if other else None, port)
    broken = next((step.step for step in steps if step.ok is False), None)
    if as_json:
        listed = [asdict(step) for step in steps]
        output.show_json(
            {"address": str(asked) if asked else None, "ok": broken is None, "broken": broken, "steps": listed}
        )
    else:
        _show(str(asked) if asked else "host", steps, broken)
    return Exit.OK if broken is None else Exit.FAILED


def _split_port(text: str) -> tuple[str, int | None]:
    """Return the address and the port of ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT."""
    match = re.fullmatch(r"([0-9.]+|\[[^]]*\]):([0-9]{1,5})", text)
    if match is None:
        return text, None
    if not 1 <= int(match[2]) <= 65535:
        raise Failure(Exit.USAGE, f"port {match[2]} is not in 1..65535")
    return match[1].strip("[]"), int(match[2])


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise Failure(Exit.USAGE, f"{safe(text)} is not an IP address") from None


def _host(source: Source) -> Iterator[Step]:
    """Check the daemons, the metadata, and the first address of every managed link."""
    now, api_error = time.time(), source.find_api_error()
    claim, unreadable = source.find_claim()
    status = claim.status
    yield Step("fetcher", False, unreadable, LOG, RESTART) if unreadable else _fetcher(claim, now)
    if status is None:
        yield Step("metadata", False, "never read", LOG)
    else:
        yield _metadata(claim, status)
        yield _netagent(status)
        error = status["last_error"]
        if claim.doubt is None and error is not None and error["kind"] in ("config", "kernel"):
            do = f"correct the cause; then: {published.RELOAD}" if error["kind"] == "config" else LOG
            yield Step(error["kind"], False, error["message"], "cnctl status", do)
    if api_error:
        look, do = "systemctl status cloud-network-api.socket", "sudo systemctl restart cloud-network-api.socket"
        yield Step("api", False, api_error, look, do)
    else:
        yield Step("api", True, "answers")
    if status is not None:
        yield from _conflicts(status, now)
        yield from _missing_interfaces(status)
        for link in links(status):
            if link["state"] != "excluded":
                yield _link(link, status["provider"])


def _fetcher(claim: Claim, now: float) -> Step:
    if doubt := claim.explain_doubt(now):
        error = claim.status["last_error"] if claim.status and _correction(claim.status) else None
        found = f"{doubt}: {error['message']}" if error else doubt
        return Step("fetcher", False, found, LOG, _restart(claim.status))
    return Step("fetcher", True, "running")


def _netagent(status: Status) -> Step:
    netagent, error = status["netagent"], status["last_error"]
    reason = error["message"] if error is not None and error["kind"] == "netagent" else None
    if netagent["listening"] is False:
        do = "sudo systemctl restart cloud-network-netagent.socket"
        return Step("netagent", False, reason or "not running: nothing listens on its socket", NETAGENT_LOG, do)
    if reason:
        return Step("netagent", False, reason, "cnctl audit", "sudo cnctl plan")
    if netagent["verdict"] in ("refused", "rolled back", "unreachable"):
        found = f"{netagent['verdict']}: {netagent['reason']}"
        return Step("netagent", False, found, "cnctl audit", "sudo cnctl plan")
    asked = netagent["verdict"] != "none"
    return Step("netagent", True, f"last request {netagent['verdict']}" if asked else "no request yet")


def _conflicts(status: Status, now: float) -> Iterator[Step]:
    for conflict in status["conflicts"]:
        found = conflict_words(conflict, status["state"], now)
        if status["state"] == "ok":
            yield Step("conflict", True, found)
        else:
            yield Step("conflict", False, found, "cnctl status", "see /usr/share/doc/cloud-network/coexistence.md")


def _missing_interfaces(status: Status) -> Iterator[Step]:
    """Report the interfaces of the metadata that have no link of this host."""
    for mac in status["unknown_macs"]:
        found = next((text for text in status["notices"] if text.startswith(mac)), f"{mac}: not on this host")
        key = "set that key; or, " if "[Netagent]" in found else ""
        do = f'{key}if the interface is not for this host, set [Network] Exclude="{mac}"'
        yield Step("interface", False, found, "ip link", do)


_CORRECTIONS = {
    "config": f"correct {CONFIGURATION}",
    "detection": f"set [Network] Provider= in {CONFIGURATION}",
    "no-cloud": f"if this machine is in a supported cloud, set [Network] Provider= in {CONFIGURATION}",
}
"""Corrections that are needed before a restart of a fetcher that ended with an error, by the error's kind."""


def _correction(status: Status | None) -> str | None:
    """Return the correction that must precede a restart; None if a restart alone may help."""
    if status is None or status["last_error"] is None:
        return None
    return _CORRECTIONS.get(status["last_error"]["kind"])


def _restart(status: Status | None) -> str:
    """Return the command that starts the fetcher, after the correction that it needs."""
    correction = _correction(status)
    return f"{correction}; then: {RESTART}" if correction else RESTART


def _metadata(claim: Claim, status: Status) -> Step:
    if status["fetched_at"] is None:
        if claim.doubt is not None and _correction(status):  # the fetcher's step has the reason
            return Step("metadata", False, "never read")
        do = _restart(status) if _correction(status) else "check the route to the metadata server"
        return Step("metadata", False, never_read(status), LOG, do)
    error = status["last_error"]
    if claim.doubt is None and (claim.is_stale() or (error is not None and error["kind"] == "metadata")):
        found = f"out of date, read {_read(status)}" if claim.is_stale() else f"read {_read(status)}"
        reason = f": {error['message']}" if error else ""
        return Step("metadata", False, f"{found}{reason}", LOG, checks.REPAIR)
    return Step("metadata", True, f"{status['provider']}, read {_read(status)}")


def _link(link: LinkStatus, provider: str) -> Step:
    name = link["name"]
    if not link["addresses"]:
        return Step(name, link["state"] == "ok", "the metadata gives it no address")
    addresses = [entry["address"] for entry in configured_addresses(link)]
    if not addresses:
        return Step(name, link["state"] == "ok", "ExcludeAddresses= contains all its addresses")
    absent = absent_addresses(link)
    if absent and not link["drift"]:
        found = f"{count(len(absent), 'address')} left out, the first is {absent[0]['address']}"
        return Step(name, False, found, "cnctl status", checks.LEFT_OUT)
    case = Case(addresses[0], None, link, provider)
    try:
        for _, check in STEPS:
            check(case)
    except StepFailed as failed:
        return Step(name, False, failed.found, failed.look, failed.do)
    if link["drift"]:
        return Step(name, False, f"{count(len(link['drift']), 'change')} missing", "cnctl status", checks.REPAIR)
    return Step(name, True, f"{case.address} and its route: OK; {count(len(addresses), 'address')}")


def _steps(claim: Claim, status: Status, address: str, client: str | None, port: int | None) -> list[Step]:
    names = ["fetcher", "metadata", *(name for name, _ in STEPS), *(["published"] if port is not None else [])]
    steps = [_fetcher(claim, time.time())]
    try:
        link, delegated = _listed(status, address)
        part = f", in {delegated}," if delegated else ""
        found = f"{status['provider']} gives it{part} to {link['name']} ({link['mac']}); read {_read(status)}"
        steps.append(Step("metadata", True, found))
        case = Case(address, client, link, status["provider"], delegated)
        for name, check in STEPS:
            steps.append(Step(name, True, check(case)))
        if port is not None:
            replies = published.check(case, port)
            unseen = "not checked: only root sees NAT rules; run it with sudo"
            steps.append(Step("published", None if replies is None else True, replies or unseen))
    except StepFailed as failed:
        steps.append(Step(names[len(steps)], False, failed.found, failed.look, failed.do))
    return steps + [Step(name, None, "") for name in names[len(steps) :]]


def _listed(status: Status, address: str) -> tuple[LinkStatus, str | None]:
    """Return the link to which the metadata assigns the address, and the delegated range that contains it."""
    if status["fetched_at"] is None:
        raise StepFailed(never_read(status), "cnctl status", LOG)
    for link in links(status):
        if any(entry["address"] == address for entry in link["addresses"]):
            return link, None
    if known := checks.range_of(address, links(status)):
        return known
    found = f"{status['provider']} does not give this instance {address}; read {_read(status)}"
    look, do = "cnctl status network", "assign it to an interface in the cloud's console, then: sudo cnctl refresh"
    if status["unknown_macs"]:
        found += f"; no link to configure for these interfaces: {' '.join(status['unknown_macs'])}"
        look, do = "cnctl status", f"if one of these has the address, see the notices of cnctl status; else {do}"
    raise StepFailed(found, look, do)


def _read(status: Status) -> str:
    at = status["fetched_at"]
    return "never" if at is None else ago(age(at, time.time()))


def _next_lines(step: Step) -> Iterator[tuple[str, str]]:
    """Yield the commands to run next, each with its label."""
    if step.look:
        yield "look:", step.look
    if step.do:
        first, *others = re.split(r"[;,] then: ", step.do)
        yield "do:", first
        for each in others:
            yield "then:", each


def _show(subject: str, steps: list[Step], broken: str | None) -> None:
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    marks = {True: "✓", False: "✗", None: "·"} if utf8 else {True: "ok", False: "NO", None: "--"}
    indent = len(marks[True]) + 1
    for step in steps:
        mark = marks[step.ok]
        if step.ok is not None:
            mark = coloured(mark, GREEN if step.ok else RED)
        print(f"{mark} " + wrapped(f"{safe(step.step):<10}  ", step.found or "not checked", indent))
        for label, text in _next_lines(step):
            head = " " * (indent + 12) + f"{label:<6}"
            is_command = label == "look:" or text.startswith("sudo ")
            print(head + safe(text) if is_command else wrapped(head, text, 0))  # no line break in a command: copy it
    if broken:
        print(coloured(f"{subject}: the first failed step is {safe(broken)}", RED))
        if any(step.do == checks.REPAIR for step in steps if step.ok is False):
            print(wrapped("", UNREPAIRED, 0))
        return
    if subject == "host":
        print(coloured(f"host: {count(len(steps), 'check')} passed", GREEN))
        return
    print(coloured(f"{subject}: every step passed", GREEN))
    print(wrapped("", OUTSIDE, 0))
