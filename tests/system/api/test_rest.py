"""The REST server: a real gunicorn, real files, and the responses to good and bad clients."""

import http.client
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.state import StateDirectory
from cloud_network.fetcher.status import uptime

from .conftest import SYSTEM, Server, audit_line, link, now, status, two_links, wait_for

ROUTES = [
    "/api/cloud/system",
    "/api/cloud/network",
    "/api/cloud/dynamicinstanceidentity/document",
    "/api/cloud/dynamicinstanceidentity/pkcs7",
    "/api/v1/status",
    "/api/v1/links",
    "/api/v1/links/eth0",
    "/api/v1/health",
]
SECURITY = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def problem(answer: Any, code: int) -> str:
    """Check that the answer is an RFC 9457 problem, and return its detail."""
    assert (answer.status, answer.headers["Content-Type"]) == (code, "application/problem+json")
    assert answer.json["status"] == code
    assert answer.json["type"] == "about:blank"
    assert answer.json["title"] == http.client.responses[code]
    detail: str = answer.json["detail"]
    return detail


# --- responses ---


def test_the_originals_routes_answer_as_the_original(server: Server, filled: StateDirectory) -> None:
    assert server.ask("/api/cloud/system").json == SYSTEM
    assert server.ask("/api/cloud/network").json == {
        "00:0c:29:5f:d1:02": {"mac": "00:0c:29:5f:d1:02", "local-ipv4s": "10.0.0.4\n10.0.0.6\n10.0.0.7"},
        "00:0c:29:5f:d1:0a": {"mac": "00:0c:29:5f:d1:0a", "local-ipv4s": "10.0.8.5"},
    }
    identity = "/api/cloud/dynamicinstanceidentity"
    assert server.ask(f"{identity}/document").json == {"region": "us-west-2"}
    assert server.ask(f"{identity}/pkcs7").json == filled.read_identity("aws", "pkcs7").decode()  # type: ignore[union-attr]


def test_v1_routes_answer_from_the_status(server: Server, filled: StateDirectory) -> None:
    known = filled.read_status()
    assert known
    assert server.ask("/api/v1/status").json == {**known, "stale": False, "fetcher": "running"}
    links = server.ask("/api/v1/links").json
    assert links == {
        "generation": 7,
        "fetched_at": known["fetched_at"],
        "stale": False,
        "fetcher": "running",
        "links": [known["links"]["2"], known["links"]["10"]],
    }
    dates = {"generation": 7, "fetched_at": known["fetched_at"], "stale": False, "fetcher": "running"}
    assert server.ask("/api/v1/links/eth1").json == {**known["links"]["10"], **dates}
    assert server.ask("/api/v1/health").json == {
        "state": "ok",
        "stale": False,
        "fetcher": "running",
        "generation": 7,
        "fetched_at": known["fetched_at"],
    }


def test_every_response_has_its_date_and_staleness(server: Server, filled: StateDirectory) -> None:
    """In the body of /api/v1, in headers elsewhere. A response becomes stale without a write."""

    def dates(route: str) -> tuple[object, ...]:
        answer = server.ask(route)
        if route.startswith("/api/v1"):
            return tuple(answer.json[key] for key in ("generation", "fetched_at", "stale"))
        generation, at, stale = (
            answer.headers[f"Cloud-Network-{name}"] for name in ("Generation", "Fetched-At", "Stale")
        )
        return int(generation), at, {"true": True, "false": False}[stale]

    at = now(45)  # two refreshes of 10 s and half a minute are not over yet
    filled.write_status(two_links() | {"fetched_at": at, "refresh_timer": 10.0})
    assert {dates(route) for route in ROUTES} == {(7, at, False)}
    etags = {route: server.ask(route).headers["ETag"] for route in ROUTES}
    wait_for(lambda: dates("/api/v1/status") == (7, at, True), message="the status to become stale")
    assert {dates(route) for route in ROUTES} == {(7, at, True)}
    for route, etag in etags.items():
        answer = server.ask(route, If_None_Match=etag)
        assert (answer.status == 304) == route.startswith("/api/cloud")
        if answer.status == 304:
            assert answer.headers["Cloud-Network-Stale"] == "true"


@pytest.mark.parametrize("route", ROUTES)
def test_head_is_get_without_the_body(server: Server, route: str) -> None:
    got, headed = server.ask(route), server.ask(route, "HEAD")
    assert (headed.status, headed.content) == (200, b"")
    for name in ("ETag", "Content-Length", "Content-Type"):
        assert got.headers[name] == headed.headers[name]


@pytest.mark.parametrize("route", ROUTES)
def test_an_etag_saves_the_body_until_the_state_changes(server: Server, filled: StateDirectory, route: str) -> None:
    first = server.ask(route)
    etag = first.headers["ETag"]
    assert etag.startswith('"')
    for given in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = server.ask(route, If_None_Match=given)
        assert (again.status, again.content, again.headers["ETag"]) == (304, b"", etag), given
    assert server.ask(route, If_None_Match='"other"').content == first.content
    filled.write_system({"new": "yes"})
    filled.write_link(2, {"mac": "00:0c:29:5f:d1:02"})
    changed = two_links()
    changed["generation"] = 8
    changed["links"]["2"]["mtu"] = 1500
    filled.write_status(changed)
    filled.write_identity("aws", "document", b"{}")
    filled.write_identity("aws", "pkcs7", b"new")
    after = server.ask(route, If_None_Match=etag)
    assert after.status == 200
    assert after.content != first.content


def test_the_answer_follows_every_write_at_once(server: Server, filled: StateDirectory) -> None:
    for number in range(200):  # same size, often within one tick of the kernel's clock
        filled.write_system({"n": number + 1000})
        assert server.ask("/api/cloud/system").json == {"n": number + 1000}


def test_links_that_come_and_go_are_followed(server: Server, filled: StateDirectory) -> None:
    filled.write_link(11, {"mac": "aa"})
    assert "aa" in server.ask("/api/cloud/network").json
    filled.remove_link(11)
    assert "aa" not in server.ask("/api/cloud/network").json


def test_partly_written_state_is_never_served(server: Server, filled: StateDirectory) -> None:
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            filled.write_system({"first": number, "filling": "x" * (number * 7919 % 300_000), "last": number})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            answer = server.ask("/api/cloud/system")
            if "first" in answer.json:
                assert answer.json["first"] == answer.json["last"]
            assert int(answer.headers["Content-Length"]) == len(answer.content)
    finally:
        done.set()
        writer.join()


# --- refused requests ---


@pytest.mark.parametrize("path", [*ROUTES, "/nowhere", "/api/cloud/credentials"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_every_answer_has_the_security_headers_and_no_cors(server: Server, path: str, method: str) -> None:
    answer = server.ask(path, method, Origin="http://evil.example")
    assert {name: answer.headers[name] for name in SECURITY} == SECURITY
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_written(server: Server, method: str) -> None:
    answer = server.ask("/api/v1/status", method)
    assert f"{method} is not supported for /api/v1/status" in problem(answer, 405)
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/api", "/api/v1/status/", "/api//v1/status", "/api/v1/audits", "/%1b[2J"])
def test_unknown_path_is_a_404_that_names_the_routes(server: Server, path: str) -> None:
    answer = server.ask(path)
    assert "/api/cloud/system" in problem(answer, 404)
    assert b"\x1b" not in answer.content


def test_an_unknown_link_is_a_404_that_names_the_links(server: Server) -> None:
    assert "names no link 'eth9' of this host; it names: eth0, eth1" in problem(server.ask("/api/v1/links/eth9"), 404)


def test_an_unknown_part_of_the_identity_is_a_404(server: Server) -> None:
    base = "/api/cloud/dynamicinstanceidentity"
    problem(server.ask(f"{base}/..%2fsystem"), 404)
    assert "accepted: document, pkcs7" in problem(server.ask(f"{base}/secret"), 404)
    assert "aws gives this instance no signature" in problem(server.ask(f"{base}/signature"), 404)


def test_refused_credentials_name_the_command(server: Server) -> None:
    assert "sudo cnctl show credentials" in problem(server.ask("/api/cloud/credentials"), 403)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9", "127.9.9.9", "[::1]", "[::1]:5209", "ip6-localhost"],
)
def test_hosts_of_this_machine_are_answered(server: Server, host: str) -> None:
    assert server.ask("/api/v1/status", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.4", "0.0.0.0", "[::]", "[fe80::1]",
        "localhost:x", "local host", "localhost,evil.example", "127.0.0.1@evil.example", "2130706433", "x" * 300, "",
    ],
)  # fmt: skip
def test_other_hosts_are_refused(server: Server, host: str) -> None:
    for path in ("/api/v1/status", "/nowhere"):
        assert "does not answer for the host" in problem(server.ask(path, Host=host), 421)


def test_a_request_without_a_host_is_refused(server: Server) -> None:
    assert server.raw(b"GET /api/v1/status HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 421")


def test_headers_cannot_replace_the_path(server: Server) -> None:
    fields = b"Host: localhost\r\nPATH_INFO: /api/v1/status\r\nSCRIPT_NAME: /x\r\n"
    for path in (b"/nowhere", b"/x/api/v1/status"):
        assert server.raw(b"GET " + path + b" HTTP/1.0\r\n" + fields + b"\r\n").startswith(b"HTTP/1.0 404")


HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        HEAD + b"bad header\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(60)) + b"\r\n",
        HEAD + b"X: " + b"y" * 5000 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: nonsense\r\n\r\n",
    ],
)
def test_malformed_or_too_long_request_is_refused(server: Server, request_bytes: bytes) -> None:
    answer = server.raw(request_bytes)
    assert re.match(rb"HTTP/1.1 [45]\d\d ", answer)
    assert b"Connection: close\r\n" in answer


# --- little or no state ---


@pytest.mark.parametrize("route", ROUTES)
def test_without_state_every_route_names_the_reason(state: StateDirectory, session_server: Server, route: str) -> None:
    answer = session_server.ask(route)
    assert "The metadata has never been read." in problem(answer, 503)
    assert "journalctl -u cloud-network-fetcher" in problem(answer, 503)
    assert answer.headers["Retry-After"] == "5"


BROKEN = json.dumps(status() | {"links": {"2": {"name": "eth0"}}}).encode()


@pytest.mark.parametrize("content", [b"{half", b"[]", b"{}", b"\xff", BROKEN])
def test_broken_status_is_a_503_with_the_reason(server: Server, filled: StateDirectory, content: bytes) -> None:
    Path(filled.status_path).write_bytes(content)
    for route in ("/api/v1/links", "/api/v1/health", "/api/v1/links/eth0", "/api/cloud/system"):
        assert f"The state cannot be read: {filled.status_path}" in problem(server.ask(route), 503)


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"state": "ok"}, 200, None),
        ({"state": "degraded"}, 200, None),
        ({"state": "starting", "fetched_at": None}, 503, "State: starting. The metadata has never been read."),
        ({"state": "ok", "fetched_at": now(700)}, 503, "State: ok. The metadata is out of date: last read at"),
        (
            {"state": "error", "last_error": {"at": now(), "kind": "netagent", "message": "no socket"}},
            503,
            "State: error. Last error, at",
        ),
    ],
)
def test_health_is_200_unless_the_state_is_error_or_old(
    server: Server, state: StateDirectory, changes: dict[str, Any], code: int, expected: str | None
) -> None:
    state.write_status(status(link(2, "eth0", []), **changes))
    answer = server.ask("/api/v1/health")
    assert answer.status == code
    assert answer.json["state"] == changes["state"]
    assert answer.json["generation"] == 7
    if expected:
        assert expected in problem(answer, 503)


# --- the audit log ---


def test_audit_returns_the_last_lines_the_newest_last(server: Server, home: Path) -> None:
    log = home / "audit.log"
    log.write_text("".join(audit_line(number) for number in range(1, 201)))
    answer = server.ask("/api/v1/audit").json
    assert (answer["log"], answer["broken"]) == (str(log), 0)
    assert [entry["seq"] for entry in answer["entries"]] == list(range(151, 201))
    assert answer["entries"][-1] == json.loads(audit_line(200))
    assert [entry["seq"] for entry in server.ask("/api/v1/audit?limit=3").json["entries"]] == [198, 199, 200]
    assert len(server.ask("/api/v1/audit?limit=1000").json["entries"]) == 200
    with log.open("a") as file:
        file.write(audit_line(201))
    assert server.ask("/api/v1/audit?limit=1").json["entries"][0]["seq"] == 201


def test_audit_reads_long_lines_and_rotated_files(server: Server, home: Path) -> None:
    long = [audit_line(number, reason="x" * 30_000) for number in range(1, 11)]
    (home / "audit.log.1").write_text("".join(long[:8]))
    (home / "audit.log").write_text("".join(long[8:]))
    for limit in (1, 2, 3, 9, 10):
        entries = server.ask(f"/api/v1/audit?limit={limit}").json["entries"]
        assert [entry["seq"] for entry in entries] == list(range(11 - limit, 11))


def test_invalid_log_line_is_counted_and_left_out(server: Server, home: Path) -> None:
    (home / "audit.log").write_text(audit_line(1) + "[]\n{half\n" + '{"n": NaN}\n' + audit_line(2) + '{"seq": 3')
    answer = server.ask("/api/v1/audit").json
    assert [entry["seq"] for entry in answer["entries"]] == [1, 2]  # the third is still being written
    assert answer["broken"] == 3


def test_missing_audit_log_is_reported(server: Server) -> None:
    assert "audit.log does not exist: netagent has had no request yet" in problem(server.ask("/api/v1/audit"), 503)


def test_invalid_limit_is_a_400(server: Server) -> None:
    assert "limit='many' is not accepted; accepted: a number from 1 to 1000" in problem(
        server.ask("/api/v1/audit?limit=many"), 400
    )


def test_one_audit_request_reads_a_bounded_part_of_the_log(server: Server, home: Path) -> None:
    (home / "audit.log").write_text("".join(audit_line(number, reason="x" * 100_000) for number in range(1, 51)))
    answer = server.ask("/api/v1/audit?limit=50")
    assert len(answer.content) < 600_000
    assert [entry["seq"] for entry in answer.json["entries"]] == list(range(46, 51))


# --- a fetcher that has ended, hangs, or was compromised ---


def test_stopped_fetcher_is_reported_by_every_route(server: Server, filled: StateDirectory) -> None:
    Path(filled.lock_path).unlink()
    health = server.ask("/api/v1/health")
    assert "The fetcher is not running" in problem(health, 503)
    assert (health.json["fetcher"], health.json["state"]) == ("not running", "unknown")
    for route in ("/api/v1/status", "/api/v1/links", "/api/v1/links/eth0"):
        assert (server.ask(route).json["fetcher"], server.ask(route).json["stale"]) == ("not running", True)
    assert server.ask("/api/cloud/system").headers["Cloud-Network-Fetcher"] == "not running"
    assert "fetcher is not running" in server.ask("/").content.decode()
    assert b'cloud_network_state{state="unknown"} 1.0' in server.ask("/metrics").content


@pytest.mark.parametrize(
    ("changes", "fetcher"),
    [
        ({"run": "fedcba9876543210"}, "earlier run"),
        ({"compared_at": None}, "earlier run"),
        ({"boot_id": "f" * 32}, "earlier boot"),
        ({"renew_by": uptime() - 10}, "not renewed"),
    ],
)
def test_old_or_unrenewed_state_is_not_healthy(
    server: Server, filled: StateDirectory, changes: dict[str, Any], fetcher: str
) -> None:
    filled.write_status(status(**changes))
    health = server.ask("/api/v1/health")
    assert (health.status, health.json["fetcher"]) == (503, fetcher)


def test_fifo_and_endless_link_do_not_stop_the_server(server: Server, filled: StateDirectory) -> None:
    Path(filled.status_path).unlink()
    os.mkfifo(filled.status_path)
    assert "not a regular file" in problem(server.ask("/api/v1/status"), 503)
    Path(filled.status_path).unlink()
    Path(filled.status_path).symlink_to("/dev/zero")
    assert "cannot be read" in problem(server.ask("/api/v1/status"), 503)
    assert server.ask("/metrics").status == 200


def test_deeply_nested_identity_is_passed_on_as_text(server: Server, filled: StateDirectory) -> None:
    content = '{"a":' * 100_000
    filled.write_identity("aws", "document", content.encode())
    assert server.ask("/api/cloud/dynamicinstanceidentity/document").json == content


def test_signature_is_unknown_before_the_first_answer(server: Server, state: StateDirectory) -> None:
    state.write_status(status(state="starting", fetched_at=None))
    assert "has never been read" in problem(server.ask("/api/cloud/dynamicinstanceidentity/signature"), 503)


def test_never_read_metadata_says_why(server: Server, filled: StateDirectory) -> None:
    Path(filled.system_path).unlink()
    error = {"at": now(), "kind": "config", "message": "no known cloud"}
    filled.write_status(status(state="error", provider="", fetched_at=None, last_error=error))
    for route in ("/api/cloud/system", "/api/cloud/dynamicinstanceidentity/document"):
        assert "never been read. Last error, at" in problem(server.ask(route), 503)
        assert "no known cloud" in problem(server.ask(route), 503)
