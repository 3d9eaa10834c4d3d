"""`GET /`: the content of the page, and the escaping of hostile metadata."""

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.state import StateDirectory

from . import browser
from .conftest import Answer, CommandResult, Server, address, audit_line, link, now, status

HOSTILE = "</style></title><script>document.title='owned'</script><img src=x onerror=document.title='owned'>\"'&{{7*7}}"


class ParsedPage(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, frozenset[str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, frozenset(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parse_page(answer: Answer, code: int = 200) -> ParsedPage:
    assert (answer.status, answer.headers["Content-Type"]) == (code, "text/html; charset=utf-8")
    return ParsedPage(answer.content.decode())


def text(answer: Answer, code: int = 200) -> str:
    return " ".join(parse_page(answer, code).text.split())


def test_healthy_page_shows_every_link(server: Server, home: Path) -> None:
    (home / "audit.log").write_text(audit_line(1) + audit_line(2, verdict="refused", reason="not allowed"))
    shown = text(server.ask("/"))
    assert "✓ Healthy: 2 interfaces, 4 addresses" in shown
    for part in ("eth0", "table 10001", "10.0.0.1", "10.0.0.4/24 public 104.42.20.194", "eth1", "table 10009"):
        assert part in shown
    assert "2026-01-02T03:04:02 refused apply: 2 × rule add, 1 × address add not allowed" in shown
    assert shown.index("03:04:02") < shown.index("03:04:01")  # the newest first


def test_problems_come_first(server: Server, state: StateDirectory) -> None:
    two = [address("10.0.0.4"), address("10.0.0.5", present=False)]
    state.write_status(
        status(
            link(2, "eth0", [address("10.0.9.4")]),
            link(3, "eth1", two, state="drift", drift=["ip address add 10.0.0.5/32 dev eth1"], actual=30),
            link(4, "eth2", [], state="missing"),
            state="error",
            fetched_at=now(4000),
            last_error={"at": now(), "kind": "metadata", "message": "no answer in time"},
            netagent={
                "listening": True,
                "verdict": "refused",
                "request": "r",
                "at": now(),
                "reason": "outside AllowAddresses=",
                "ops": 1,
            },
            unknown_macs=["02:00:00:00:00:07"],
            conflicts=[{"object": "ip rule add 7", "times": 9, "since": now(60), "next_at": None, "by": "eth9"}],
            notices=["eth3 is a vlan"],
        )
    )
    shown = text(server.ask("/"))
    parts = ["✗ 7 problems", "no answer in time", "out of date", "outside AllowAddresses=", "30 of 31"]
    parts += ["eth2: named by the metadata", "ip rule add 7: reverted 9 times by another program (eth9)"]
    parts += ["02:00:00:00:00:07", "eth3 is a vlan", "1 change needed", "ip address add 10.0.0.5/32"]
    parts += ["2 addresses, 1 missing", "✗ 10.0.0.5/24", "Missing on this host.", "10.0.9.4/24"]
    positions = [shown.find(part) for part in parts]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_excluded_address_is_not_missing(
    server: Server, state: StateDirectory, cnctl: Callable[..., CommandResult]
) -> None:
    excluded = address("10.0.0.5", present=False, excluded=True)
    state.write_status(status(link(2, "eth0", [address("10.0.0.4"), excluded])))
    shown = text(server.ask("/"))
    assert "✓ Healthy: 1 interface, 2 addresses" in shown
    assert "10.0.0.5/24 excluded" in shown
    assert "missing" not in shown
    assert "  1/1  " in cnctl("status", server=server).out
    assert "10.0.0.4/24 10.0.0.5/24 (excluded)" in cnctl("status", "network", server=server).out
    metrics = server.ask("/metrics").content.decode()
    assert 'cloud_network_addresses{link="eth0",state="desired"} 1.0' in metrics
    assert 'cloud_network_addresses{link="eth0",state="actual"} 1.0' in metrics


def test_page_changes_with_the_state_and_the_log(server: Server, filled: StateDirectory, home: Path) -> None:
    assert "No audit log" in text(server.ask("/"))
    (home / "audit.log").write_text(audit_line(1))
    assert "03:04:01" in text(server.ask("/"))
    with (home / "audit.log").open("a") as log:
        log.write(audit_line(2) + "not json\n")
    assert "03:04:02" in text(server.ask("/"))
    assert "1 of the last lines cannot be read" in text(server.ask("/"))
    filled.write_status(status(link(2, "other", [])))
    assert "other" in text(server.ask("/"))


def test_page_without_state_gives_the_reason(state: StateDirectory, session_server: Server) -> None:
    assert "systemctl status cloud-network-fetcher" in text(session_server.ask("/"), 503)


def test_large_instance_is_complete_and_folded(server: Server, state: StateDirectory) -> None:
    links = [link(n, f"eth{n}", [address(f"10.{n}.0.{k}") for k in range(4, 54)]) for n in range(2, 17)]
    state.write_status(status(*links))
    page = parse_page(server.ask("/"))
    assert page.text.count("/24") == 15 * 51  # including each link's subnet
    folded = [attributes for tag, attributes in page.elements if tag == "details"]
    assert folded == [frozenset()] * 15


def hostile_state(hostile: str) -> Any:
    """Return a status and a line of the audit log with the text at every possible place."""
    where: Any = address(hostile, hostile)
    changes: Any = {"mac": hostile, "gateways": [hostile], "subnets": [hostile], "drift": [hostile], "state": "drift"}
    found = status(
        link(2, hostile, [where, where], **changes),
        provider=hostile,
        state="error",
        last_error={"at": now(), "kind": "kernel", "message": hostile},
        netagent={
            "listening": True,
            "verdict": "refused",
            "request": hostile,
            "at": now(),
            "reason": hostile,
            "ops": 1,
        },
        unknown_macs=[hostile],
        notices=[hostile],
        conflicts=[{"object": hostile, "times": 5, "since": now(), "next_at": now(), "by": hostile}],
    )
    found["links"]["2"]["ranges"] = [hostile]
    peer = {"unit": hostile, "uid": hostile}
    line = audit_line(
        1, peer=peer, time=hostile, request=hostile, verdict=hostile, reason=hostile, ops=[{"op": hostile}]
    )
    return found, line + audit_line(2, peer=hostile, ops=hostile, reason=[hostile]) + audit_line(3, ops=[hostile])


def test_hostile_metadata_is_shown_as_text(server: Server, state: StateDirectory, home: Path) -> None:
    pages = []
    for what in ("x" * len(HOSTILE), HOSTILE):  # of one length: long texts are set smaller
        found, lines = hostile_state(what)
        state.write_status(found)
        (home / "audit.log").write_text(lines)
        pages.append(parse_page(server.ask("/")))
    harmless, hostile = pages
    assert hostile.elements == harmless.elements
    assert {tag for tag, _ in hostile.elements} & {"script", "img", "iframe", "object", "link", "form"} == set()
    assert not [name for _, names in hostile.elements for name in names if name.startswith("on") or name == "style"]
    assert "{{7*7}}" in hostile.text


def test_content_policy_allows_only_the_style_sheet(server: Server) -> None:
    answer = server.ask("/")
    style = re.search(r"<style>(.*)</style>", answer.content.decode(), re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers.get_all("Content-Security-Policy") == [answer.headers["Content-Security-Policy"]]


@browser.needs_chromium
@pytest.mark.parametrize("what", ["harmless", HOSTILE])
def test_browser_shows_the_page_without_errors(
    server: Server, state: StateDirectory, home: Path, tmp_path: Path, what: str
) -> None:
    found, lines = hostile_state(what)
    state.write_status(found)
    (home / "audit.log").write_text(lines)
    shown, console = browser.load_page(f"http://127.0.0.1:{server.port}/", tmp_path)
    assert "<title>Problems · cloud-network</title>" in shown
    assert shown.count("<svg") == 1
    assert console == ""


def test_conflict_over_an_object_in_place_is_a_notice(server: Server, state: StateDirectory) -> None:
    conflict = {"object": "ip x", "times": 7, "since": now(60), "next_at": None, "by": None}
    error = {"at": now(), "kind": "conflict", "message": "reverted by another program: ip x"}
    state.write_status(status(link(2, "eth0", []), conflicts=[conflict]))
    shown = text(server.ask("/"))
    assert "✓ Healthy" in shown
    assert "Conflict: in place now; ip x: reverted 7 times by another program" in shown
    state.write_status(status(link(2, "eth0", []), state="degraded", last_error=error, conflicts=[conflict]))
    shown = text(server.ask("/"))
    assert "✗ 1 problem" in shown
    assert shown.count("ip x") == 1


def test_states_of_links_are_last_known_without_a_fetcher(server: Server, state: StateDirectory) -> None:
    state.write_status(status(link(2, "eth0", [address("10.0.0.4")])))
    assert "last known" not in text(server.ask("/"))
    Path(state.lock_path).unlink()
    shown = text(server.ask("/"))
    assert "Fetcher: the fetcher is not running; last state written" in shown
    assert "eth0 last known: ok" in shown
