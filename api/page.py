"""`GET /`: one page for a person, without script: what is wrong first, then every link, then the last changes.

All of it is metadata's or the audit log's words, which may be hostile: Jinja2 escapes each of them, and the policy
(Content-Security-Policy) lets a browser use nothing but the one style sheet in the page, named by its digest.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cloud_network.api.audit import Tail
from cloud_network.fetcher.status import LinkStatus, Status
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

MIMETYPE = "text/html; charset=utf-8"
LAST = 12
"""Lines of the audit log that are shown."""
OPEN = 16
"""Addresses of a link that are shown without being asked for."""

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = (_TEMPLATES / "page.css").read_text()
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Way(NamedTuple):
    """How a reply leaves: one gateway, or none."""

    gateway: str
    shown: str
    top: int  # of its row in the drawing


class Change(NamedTuple):
    """One line of the audit log, for a person."""

    time: str
    who: str
    what: str
    verdict: str
    reason: str


def render(status: Status, stale: bool, tail: Tail | None) -> bytes:
    """The page of one state; `tail` is None when there is no audit log that can be read."""
    links = sorted(status["links"].values(), key=lambda link: (link["state"] in ("ok", "excluded"), link["ifindex"]))
    return _page(
        status=status,
        wrong=list(_wrong(status, stale)),
        links=[(link, _ways(link), _addresses(link), _absent(link)) for link in links],
        right=sum(link["actual"] for link in links),
        wanted=sum(link["desired"] for link in links),
        changes=None if tail is None else [_change(entry) for entry in reversed(tail.entries)],
        broken=tail.broken if tail else 0,
    )


def render_nothing(why: str) -> bytes:
    """The page while there is no state to show."""
    wrong = [("Nothing is known", why)]
    return _page(status=None, wrong=wrong, links=[], right=0, wanted=0, changes=None, broken=0)


def _page(**what: object) -> bytes:
    text = _template().render(style=Markup(_STYLE), unfolded=OPEN, **what)  # noqa: S704  # our own file
    return text.encode(errors="replace")


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _wrong(status: Status, stale: bool) -> Iterator[tuple[str, str]]:
    """(What, why and since when), the most telling first."""
    error, netagent = status["last_error"], status["netagent"]
    if stale:
        since = f"last read {status['fetched_at']}" if status["fetched_at"] else "never read yet"
        yield "The metadata is out of date", f"{since}; it should be every {status['refresh_timer']:g} s"
    if error:
        yield error["kind"].capitalize(), f"{error['message']} ({error['at']})"
    if netagent["verdict"] in ("refused", "rolled back", "unreachable") and (not error or error["kind"] != "netagent"):
        yield "Netagent", f"{netagent['verdict']}: {netagent['reason']} ({netagent['at']})"
    for link in sorted(status["links"].values(), key=lambda link: link["ifindex"]):
        if link["state"] == "missing":
            yield link["name"], "the metadata names it, and it is gone from this host"
        elif link["state"] == "drift":
            yield link["name"], f"{link['actual']} of {link['desired']} addresses, routes and rules are in place"
    for fight in status.get("fights", ()):  # a fetcher before this key had none
        by = f" by: {fight['by']}" if fight["by"] else ""
        yield "Undone again and again", f"{fight['object']}, made {fight['times']} times since {fight['since']}{by}"
    if status["unknown_macs"]:
        yield "Not on this host", f"the metadata names links with the MAC {', '.join(status['unknown_macs'])}"
    if status["state"] == "starting":
        yield "Starting", "the metadata has not been read by this fetcher yet"


def _ways(link: LinkStatus) -> list[Way]:
    gateways = link["gateways"] or [""]
    return [
        Way(each, each if len(each) <= 26 else f"{each[:25]}…", 8 + 52 * number) for number, each in enumerate(gateways)
    ]


def _addresses(link: LinkStatus) -> list[Any]:
    """Those that are missing first."""
    return sorted(link["addresses"], key=lambda address: address["present"])


def _absent(link: LinkStatus) -> int:
    """How many addresses should be there and are not."""
    return 0 if link["state"] == "excluded" else sum(not address["present"] for address in link["addresses"])


def _change(entry: dict[str, Any]) -> Change:
    peer = entry.get("peer")
    peer = peer if isinstance(peer, dict) else {}
    who = peer.get("unit") or (f"uid {peer['uid']}" if "uid" in peer else "netagent")
    return Change(
        time=_short(entry.get("time", "?"), 19),
        who=_short(who).removesuffix(".service"),
        what=_short(entry.get("request") or "malformed") + _ops(entry.get("ops")),
        verdict=_short(entry.get("verdict", "?")),
        reason=_short(entry.get("reason") or "", 300),
    )


def _ops(ops: object) -> str:
    if not isinstance(ops, list) or not ops:
        return ""
    kinds = Counter(_short(op.get("op", "?")) if isinstance(op, dict) else "?" for op in ops)
    shown = ", ".join(f"{count} × {kind.replace('_', ' ')}" for kind, count in kinds.most_common(6))
    return f": {shown}"


def _short(value: object, most: int = 60) -> str:
    text = str(value)
    return text if len(text) <= most else text[:most] + ("" if most == 19 else "…")
