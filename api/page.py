"""`GET /`: the values for one page without scripts: problems first, then links, then the last changes.

Metadata and the audit log can be hostile: Jinja2 escapes every value, and the Content-Security-Policy allows only the
style sheet in the page, by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cloud_network.api.audit_log import Tail, peer_name
from cloud_network.fetcher.state import Claim
from cloud_network.fetcher.status import ConflictStatus, LinkStatus, Status, absent_addresses
from markupsafe import Markup

CONTENT_TYPE = "text/html; charset=utf-8"
MAX_CHANGES = 12
"""Number of audit log lines shown."""
MAX_OPEN_ADDRESSES = 16
"""Number of a link's addresses shown without a click."""
STYLE = Markup((Path(__file__).parent / "templates/page.css").read_text())  # noqa: S704  # a file of this package
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_HEALTHY = ("ok", "excluded")
_MAX_GATEWAY_WIDTH = 26
_ROW = 52
"""Height of a gateway's row in the drawing."""


class Finding(NamedTuple):
    """One problem: its subject, a description, and its start time if known."""

    subject: str
    reason: str
    at: str = ""


class Egress(NamedTuple):
    """One gateway in the drawing of a link, or "" for none."""

    gateway: str
    label: str
    top: int


class Change(NamedTuple):
    """One line of the audit log, as text."""

    time: str
    peer: str
    request: str
    verdict: str
    reason: str


def build(claim: Claim | None, unreadable: str | None, tail: Tail | None, now: float) -> dict[str, Any]:
    """Return the values for the template. `tail` is None if the audit log cannot be read."""
    status = claim.status if claim else None
    links = sorted(status["links"].values() if status else (), key=lambda link: link["ifindex"])
    links.sort(key=lambda link: link["state"] in _HEALTHY)
    return {
        "status": status,
        "current": claim is not None and claim.doubt is None,
        "problems": list(_problems(claim, unreadable, now)),
        "notices": list(_notices(status)) if status else [],
        "links": [(link, _egress(link), _addresses(link), _missing(link)) for link in links],
        "addresses": sum(len(link["addresses"]) for link in links),
        "actual": sum(link["actual"] for link in links),
        "desired": sum(link["desired"] for link in links),
        "changes": None if tail is None else [_change(entry) for entry in reversed(tail.entries)],
        "broken": tail.broken if tail else 0,
        "open_addresses": MAX_OPEN_ADDRESSES,
    }


def _problems(claim: Claim | None, unreadable: str | None, now: float) -> Iterator[Finding]:
    """Yield the problems, the most important first."""
    if claim is None:
        yield Finding("State", f"cannot be read: {unreadable}")
        return
    if doubt := claim.explain_doubt(now):
        yield Finding("Fetcher", f"{doubt}. See: systemctl status cloud-network-fetcher")
    if claim.status is None:
        yield Finding("Metadata", "never read")
        return
    yield from _metadata_problems(claim.status, claim.doubt is None and claim.stale(now))
    yield from _netagent_problems(claim.status)
    yield from _link_problems(claim.status)


def _metadata_problems(status: Status, stale: bool) -> Iterator[Finding]:
    error = status["last_error"]
    if error and not (error["kind"] == "conflict" and status["conflicts"]):  # else the conflicts have the same text
        yield Finding(error["kind"].capitalize(), error["message"], error["at"])
    elif status["fetched_at"] is None:
        yield Finding("Metadata", "never read")
    if status["fetched_at"] is not None and stale:
        expected = f"expected every {status['refresh_timer']:g} s"
        yield Finding("Metadata", f"out of date: {expected}, last read", status["fetched_at"])


def _netagent_problems(status: Status) -> Iterator[Finding]:
    error, netagent = status["last_error"], status["netagent"]
    named = error is not None and error["kind"] == "netagent"
    if netagent["verdict"] in ("refused", "rolled back", "unreachable") and not named:
        yield Finding("Netagent", f"{netagent['verdict']}: {netagent['reason']}", netagent["at"] or "")


def _link_problems(status: Status) -> Iterator[Finding]:
    for link in sorted(status["links"].values(), key=lambda link: link["ifindex"]):
        if link["state"] == "missing":
            yield Finding(link["name"], "named by the metadata, missing on this host")
        elif link["state"] == "drift":
            yield Finding(link["name"], _drift(link))
    if status["state"] != "ok":
        for conflict in status["conflicts"]:
            yield Finding("Conflict", _conflict(conflict), conflict["since"])
    if status["unknown_macs"]:
        yield Finding("Interfaces", f"no link to configure for: {', '.join(status['unknown_macs'])}")


def _drift(link: LinkStatus) -> str:
    if link["drift"]:
        return f"{link['actual']} of {link['desired']} addresses, routes and rules in place"
    absent = ", ".join(address["address"] for address in absent_addresses(link))
    return f"not configured: {absent}"  # left out: the reason is an error or a notice


def _conflict(conflict: ConflictStatus) -> str:
    by = f" ({conflict['by']})" if conflict["by"] else ""
    times = "once" if conflict["times"] == 1 else f"{conflict['times']} times"
    what = f"reverted {times} by another program" if conflict["times"] else "not made"
    return f"{conflict['object']}: {what}{by}, since"


def _notices(status: Status) -> Iterator[Finding]:
    """Yield facts that need no action, including conflicts over objects that are in place now."""
    if status["state"] == "ok":
        for conflict in status["conflicts"]:
            yield Finding("Conflict", f"in place now; {_conflict(conflict)}", conflict["since"])
    for notice in status["notices"]:
        yield Finding("Notice", notice)


def _egress(link: LinkStatus) -> list[Egress]:
    return [
        Egress(gateway, _shortened(gateway, _MAX_GATEWAY_WIDTH), 8 + _ROW * number)
        for number, gateway in enumerate(link["gateways"] or [""])
    ]


def _addresses(link: LinkStatus) -> list[Any]:
    """Return the addresses: missing ones first, excluded ones last."""
    return sorted(link["addresses"], key=lambda address: (address["excluded"], address["present"]))


def _missing(link: LinkStatus) -> int:
    """Return the number of desired addresses that are not on the link."""
    if link["state"] == "excluded":
        return 0
    return len(absent_addresses(link))


def _change(entry: dict[str, Any]) -> Change:
    return Change(
        time=str(entry.get("time", "?"))[:19],
        peer=_shortened(peer_name(entry)).removesuffix(".service"),
        request=_shortened(entry.get("request") or "malformed") + _operations(entry.get("ops")),
        verdict=_shortened(entry.get("verdict", "?")),
        reason=_shortened(entry.get("reason") or "", 300),
    )


def _operations(ops: object) -> str:
    if not isinstance(ops, list) or not ops:
        return ""
    kinds = Counter(_shortened(op.get("op", "?")) if isinstance(op, dict) else "?" for op in ops)
    return ": " + ", ".join(f"{count} × {kind.replace('_', ' ')}" for kind, count in kinds.most_common(6))


def _shortened(value: object, limit: int = 60) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
