"""`cnctl status`: the health of the network on one screen, problems first."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cloud_network.api.cnctl import output
from cloud_network.api.cnctl.network import links
from cloud_network.api.cnctl.output import GREEN, RED, YELLOW, Exit, Row, ago, count, duration, safe
from cloud_network.api.cnctl.source import FETCHER_RUNNING, UNIT, Source, service_failure
from cloud_network.fetcher.state import Claim, Doubt
from cloud_network.fetcher.status import ConflictStatus, LinkStatus, Status, age, configured_addresses

COLOURS = {"ok": GREEN, "excluded": GREEN, "starting": YELLOW, "degraded": YELLOW, "drift": YELLOW}
HEALTHY = ("ok", "excluded")
MAX_DRIFT_LINES = 5
"""Number of changes shown for a link; the rest are counted."""
MAX_CONFLICTS = 3
"""Number of conflicts shown; the rest are counted."""
TITLE_WIDTH = 9
DOUBTS = {
    Doubt.NOT_RUNNING: "fetcher not running",
    Doubt.EARLIER_RUN: "fetcher starting",
    Doubt.EARLIER_BOOT: "state of an earlier boot",
    Doubt.NOT_RENEWED: "fetcher hangs",
}
NETAGENT_UNIT = "cloud-network-netagent"


def run(source: Source, as_json: bool) -> Exit:
    """Print the summary. Returns FAILED unless everything agrees and the state is current."""
    claim = source.claim()
    status, now = source.status_of(claim), time.time()
    stale = claim.stale(now)
    if as_json:
        output.show_json({**status, "stale": stale, "fetcher": str(claim.doubt or FETCHER_RUNNING)})
    else:
        _show(claim, status, now)
    if claim.doubt is Doubt.NOT_RUNNING or _has_no_state(status):
        return Exit.NO_STATE
    return Exit.OK if status["state"] == "ok" and not stale else Exit.FAILED


def _has_no_state(status: Status) -> bool:
    """Return True if the host has no known cloud, or its metadata has never been read."""
    return status["fetched_at"] is None and status["state"] in ("starting", "error")


def _show(claim: Claim, status: Status, now: float) -> None:
    limit = output.columns()
    known = "" if claim.doubt is None or status["fetched_at"] is None else "last known: "
    verdict = output.rows([(_state(claim, status, now), known + _verdict(status))], 0, limit)
    healthy = claim.doubt is None and not claim.stale(now)
    print(output.coloured(verdict, COLOURS.get(status["state"], RED) if healthy else RED))
    facts = output.rows([*_problems(claim, status, now), *_facts(status, now)], TITLE_WIDTH, limit)
    print(facts)
    if status["links"]:
        print()
        screen = output.height()
        rows_left = screen - len(verdict.splitlines()) - len(facts.splitlines()) - 4 if screen else None
        print("\n".join(_lines_that_fit(links(status), limit, rows_left)))


def _state(claim: Claim, status: Status, now: float) -> str:
    if claim.doubt is not None:
        return DOUBTS[claim.doubt]
    if status["fetched_at"] is None:
        return status["state"]
    return f"{status['state']}{', out of date' if claim.stale(now) else ''}"


def _verdict(status: Status) -> str:
    if status["fetched_at"] is None:
        return "the metadata has never been read"
    found = links(status)
    actual = sum(link["actual"] for link in found)
    desired = sum(link["desired"] for link in found)
    return f"{count(len(found), 'link')}, {actual} of {desired} addresses, routes and rules in place"


def _problems(claim: Claim, status: Status, now: float) -> Iterator[Row]:
    """Yield the problems, the cause first."""
    error, conflicts = status["last_error"], status["conflicts"]
    if error and not (error["kind"] == "conflict" and conflicts):  # else the conflicts have the same text
        yield "Error", f"{error['kind']}, {_since(error['at'], now)}: {error['message']}"
    if doubt := claim.explain_doubt(now):
        yield "Fetcher", f"{doubt}. See: systemctl status cloud-network-fetcher"
        if failure := service_failure(UNIT):
            yield "Service", failure
    is_down = status["netagent"]["listening"] is False or (error is not None and error["kind"] == "netagent")
    if is_down and (failure := service_failure(NETAGENT_UNIT)):
        yield "Service", failure
    for conflict in conflicts[:MAX_CONFLICTS]:
        yield "Conflict", conflict_words(conflict, status["state"], now)
    if len(conflicts) > MAX_CONFLICTS:
        yield "Conflicts", f"and {len(conflicts) - MAX_CONFLICTS} more: cnctl status --json"
    if conflicts:
        yield "See", "/usr/share/doc/cloud-network/coexistence.md"
    if status["unknown_macs"]:
        macs = " ".join(status["unknown_macs"])
        yield "Missing", f"no link to configure for these interfaces of the metadata: {macs}"


def _facts(status: Status, now: float) -> Iterator[Row]:
    netagent = status["netagent"]
    yield "Provider", status["provider"] or "not known"
    metadata = "never read"
    if status["fetched_at"]:
        period = f"every {status['refresh_timer']:g} s"
        metadata = f"read {_since(status['fetched_at'], now)}, {period}, generation {status['generation']}"
    yield "Metadata", metadata
    compared = status["compared_at"]
    yield "Kernel", f"compared {_since(compared, now)}" if compared else "never compared"
    text = "no request yet"
    if netagent["verdict"] != "none":
        text = netagent["verdict"] + (f", {count(netagent['ops'], 'change')}" if netagent["ops"] else "")
    if netagent["at"]:
        text += f", {_since(netagent['at'], now)}"
    if netagent["listening"] is False:
        text = f"not running; last answer: {text}"
    yield "Netagent", text + (f": {netagent['reason']}" if netagent["reason"] else "")
    for notice in status["notices"]:
        yield "Notice", notice


def conflict_words(conflict: ConflictStatus, state: str, now: float) -> str:
    """Return a conflict as text: the change, how often it was reverted, and the time of the next repair."""
    what = "not made"
    if conflict["times"]:
        period = duration(age(conflict["since"], now))
        what = f"another program reverted it {count(conflict['times'], 'time')} in {period}"
    by = f" ({conflict['by']})" if conflict["by"] else ""
    next_at = "; in place now" if state == "ok" else ""
    if conflict["next_at"]:
        next_at = f"; next repair in {max(0.0, -age(conflict['next_at'], now)):.0f} s"
    return f"{conflict['object']}: {what}{by}{next_at}"


def _since(at: str, now: float) -> str:
    return ago(age(at, now))


def _lines_that_fit(found: list[LinkStatus], limit: int, rows_left: int | None) -> list[str]:
    """Return the lines of the table. If they exceed `rows_left`, healthy links are left out, starting with the last."""
    lines = list(_table(found, limit))
    if rows_left is None or len(lines) <= rows_left:
        return lines
    unhealthy = [link for link in found if link["state"] not in HEALTHY]
    healthy = [link for link in found if link["state"] in HEALTHY]
    while healthy and len(lines) > rows_left:
        del healthy[-max(1, (len(lines) - rows_left) // 3) :]  # a row has at most a few lines
        lines = list(_table(sorted([*unhealthy, *healthy], key=lambda link: link["ifindex"]), limit))
    left_out = len(found) - len(unhealthy) - len(healthy)
    return [*lines, f"... and {count(left_out, 'healthy link')}: cnctl status network"]


def _table(found: list[LinkStatus], limit: int) -> Iterator[str]:
    """Yield a row for each link. Gateways that do not fit continue below it."""
    head = ("LINK", "STATE", "ADDRESSES", "TABLE", "MTU", "GATEWAY")
    cells = [tuple(safe(cell) for cell in _cells(link)) for link in found]
    widths = [max(len(row[column]) for row in (head, *cells)) for column in range(len(head))]
    yield from _row(head, widths, None, limit)
    for row, link in zip(cells, found, strict=True):
        yield from _row(row, widths, COLOURS.get(link["state"], RED), limit)
        for line in link["drift"][:MAX_DRIFT_LINES]:
            yield f"  {safe(line)}"
        if len(link["drift"]) > MAX_DRIFT_LINES:
            yield f"  ... and {len(link['drift']) - MAX_DRIFT_LINES} more: cnctl status --json"


def _row(row: tuple[str, ...], widths: list[int], colour: int | None, limit: int) -> Iterator[str]:
    *texts, gateways = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    used, gap = len("  ".join(texts)), "  "
    if colour:
        texts[1] = output.coloured(texts[1], colour)
    line = "  ".join(texts)
    for gateway in gateways.split():
        if used + len(gap) + len(gateway) > limit:
            yield line.rstrip()
            line, used, gap = "", 0, "  "
        line += gap + gateway
        used += len(gap) + len(gateway)
        gap = " "
    yield line.rstrip()


def _cells(link: LinkStatus) -> tuple[str, ...]:
    addresses = configured_addresses(link)
    present = sum(address["present"] for address in addresses)
    return (
        link["name"],
        link["state"],
        f"{present}/{len(addresses)}",
        str(link["table"] or "-"),
        str(link["mtu"]),
        " ".join(link["gateways"]) or "-",
    )
