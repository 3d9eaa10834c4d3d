"""`cnctl status`: is my network right? On one screen, what is wrong first."""

from __future__ import annotations

import time

from cloud_network.api import freshness
from cloud_network.api.cnctl import layout
from cloud_network.api.cnctl.failure import OK, WRONG
from cloud_network.api.cnctl.network import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cloud_network.api.cnctl.layout import Row
    from cloud_network.api.cnctl.source import Source
    from cloud_network.fetcher.status import FightStatus, LinkStatus, Status

RED, GREEN, YELLOW = 31, 32, 33
COLOURS = {"ok": GREEN, "excluded": GREEN, "starting": YELLOW, "degraded": YELLOW, "drift": YELLOW}
DRIFT_LINES = 5
"""Of a link's differences; the rest are counted."""
FIGHTS = 3
"""Changes that somebody else undoes; the rest are counted."""


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Print the summary; WRONG unless all is well and known to be so."""
    status, now = source.status(), time.time()
    stale = status["stale"]
    if arguments.json:
        layout.show_json(status)
    else:
        limit = layout.columns()
        state = f"{layout.safe(status['state'])}{', but out of date' if stale else ''}"
        verdict = layout.rows([(state, _verdict(status))], 0, limit)
        print(layout.coloured(verdict, RED if stale else COLOURS.get(status["state"], RED)))
        print(layout.rows(_facts(status, now), 9, limit))
        if status["links"]:
            print()
            print("\n".join(_table(links(status), limit)))
    return OK if status["state"] == "ok" and not stale else WRONG


def _verdict(status: Status) -> str:
    found = links(status)
    count = f"{len(found)} link{'' if len(found) == 1 else 's'}"
    right = sum(link["actual"] for link in found)
    wanted = sum(link["desired"] for link in found)
    return f"{count}, {right} of {wanted} addresses, routes and rules in place"


def _facts(status: Status, now: float) -> Iterator[Row]:
    fetched, netagent, error = status["fetched_at"], status["netagent"], status["last_error"]
    yield "Provider", status["provider"]
    yield (
        "Metadata",
        f"read {_ago(fetched, now)}, every {status['refresh_timer']:g} s, generation {status['generation']}"
        if fetched
        else "never read yet",
    )
    said = f"{netagent['verdict']}, {netagent['ops']} changes"
    said += f", {_ago(netagent['at'], now)}" if netagent["at"] else ""
    yield "Netagent", (said + (f": {netagent['reason']}" if netagent["reason"] else "")).split(" ")
    if error:
        yield "Error", f"{error['kind']}, {_ago(error['at'], now)}: {error['message']}".split(" ")
    fights = status.get("fights", [])  # a fetcher before this one had none
    for fight in fights[:FIGHTS]:
        yield "Fight", _fight(fight, now).split(" ")
    if len(fights) > FIGHTS:
        yield "Fights", f"and {len(fights) - FIGHTS} more: cnctl status --json"
    if status["unknown_macs"]:
        yield "Not here", ["the metadata names links that this host lacks:", *status["unknown_macs"]]
    for notice in status.get("notices", ()):  # a fetcher before this one had none
        yield "Notice", notice.split()


def _fight(fight: FightStatus, now: float) -> str:
    made = (
        f"made {fight['times']} times since {_ago(fight['since'], now)}, and undone" if fight["times"] else "not made"
    )
    who = f": {fight['by']}" if fight["by"] else ""
    again = f"; again in {max(0.0, -freshness.age(fight['next_at'], now)):.0f} s" if fight["next_at"] else ""
    return f"{fight['object']}: {made}{who}{again}"


def _ago(at: str, now: float) -> str:
    seconds = max(0.0, freshness.age(at, now))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _table(found: list[LinkStatus], limit: int | None) -> Iterator[str]:
    """A row a link; gateways for which there is no room stand below it."""
    head = ("LINK", "STATE", "ADDRESSES", "TABLE", "MTU", "GATEWAY")
    cells = [tuple(layout.safe(cell) for cell in _cells(link)) for link in found]
    widths = [max(len(row[column]) for row in (head, *cells)) for column in range(len(head))]
    for row, link in zip((head, *cells), (None, *found), strict=True):
        *texts, gateways = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        used, gap = len("  ".join(texts)), "  "
        if link:
            texts[1] = layout.coloured(texts[1], COLOURS.get(link["state"], RED))
        line = "  ".join(texts)
        for gateway in gateways.split():
            if limit and used + len(gap) + len(gateway) > limit:
                yield line.rstrip()
                line, used, gap = "", 0, "  "
            line += gap + gateway
            used += len(gap) + len(gateway)
            gap = " "
        yield line.rstrip()
        for line in link["drift"][:DRIFT_LINES] if link else ():
            yield f"  {layout.safe(line)}"
        if link and len(link["drift"]) > DRIFT_LINES:
            yield f"  … and {len(link['drift']) - DRIFT_LINES} more: cnctl status --json"


def _cells(link: LinkStatus) -> tuple[str, ...]:
    present = sum(address["present"] for address in link["addresses"])
    return (
        link["name"],
        link["state"],
        f"{present}/{len(link['addresses'])}",
        str(link["table"] or "-"),
        str(link["mtu"]),
        " ".join(link["gateways"]) or "-",
    )
