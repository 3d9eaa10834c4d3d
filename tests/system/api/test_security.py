"""Access control: browser pages read nothing, secrets are never served, and a non-loopback address gives a warning."""

import http.client
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_network.fetcher.state import StateDirectory

from . import browser
from .conftest import BIN, Server, free_port, unprivileged_user, wait_for

SECRETS = ["credentials", "user-data", "custom-data", "attributes"]


@pytest.mark.parametrize("secret", SECRETS)
def test_refused_secrets_name_the_command_for_root(server: Server, secret: str) -> None:
    answer = server.ask(f"/api/cloud/{secret}")
    assert (answer.status, answer.headers["Content-Type"]) == (403, "application/problem+json")
    assert "root" in answer.json["detail"] or "sudo cnctl show credentials" in answer.json["detail"]


def test_headers_name_no_version_and_allow_no_other_origin(server: Server) -> None:
    for path in ("/", "/metrics", "/openapi.json", "/api/v1/status", "/nowhere"):
        headers = server.ask(path).headers
        assert not any(character.isdigit() for character in headers["Server"])
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert "Set-Cookie" not in headers


@pytest.mark.parametrize(("listen", "warned"), [("127.0.0.1", False), ("[::1]", False), ("0.0.0.0", True)])
def test_public_listen_address_gives_a_warning(filled: StateDirectory, home: Path, listen: str, warned: bool) -> None:
    port = free_port()
    config, log = home / "listen.toml", home / "listen.log"
    config.write_text(f'[Network]\nListen = "{listen}:{port}"\n')
    with log.open("wb") as output:
        command = [str(BIN / "cloud-network-api"), "--config", str(config), "--state", filled.path]
        process = subprocess.Popen(command, stderr=output, cwd="/", **unprivileged_user())
    wait_for(lambda: "Booting worker" in log.read_text(), message="the worker to start")
    process.terminate()
    process.wait(30)
    warning = f'level=warning msg="{listen}:{port} is not loopback: every host that reaches it'
    assert (warning in log.read_text()) == warned


# --- a page in a browser on this host ---

READER = b"""<!DOCTYPE html><title>news</title><pre id=found></pre><script>
const request = new XMLHttpRequest();
request.open("GET", "%s/api/v1/status", false);
try { request.send(); found.textContent = request.status + " " + request.responseText; }
catch (error) { found.textContent = "error " + error; }
</script>"""


class Rebinding(socketserver.ThreadingTCPServer):
    """A server for evil.example that sends its own page for /, and then forwards requests to the API server.

    Each byte is forwarded unchanged, so the API server sees the same requests as after DNS rebinding.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, reader: bytes):
        self.target, self.reader, self.passed_on = port, reader, 0
        super().__init__(("127.0.0.2", 0), _Connection)


class _Connection(socketserver.BaseRequestHandler):
    server: Rebinding

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = self.request.recv(65536)
            if not more:
                return
            head += more
        if head.startswith(b"GET / "):
            fields = (
                f"Content-Type: text/html\r\nContent-Length: {len(self.server.reader)}\r\nConnection: close\r\n\r\n"
            )
            self.request.sendall(f"HTTP/1.1 200 OK\r\n{fields}".encode() + self.server.reader)
            return
        with socket.create_connection(("127.0.0.1", self.server.target), timeout=30) as onward:
            self.server.passed_on += 1
            onward.sendall(head.replace(b"Connection: keep-alive", b"Connection: close"))
            while content := onward.recv(65536):
                self.request.sendall(content)


@pytest.fixture
def rebinding_server(server: Server) -> Iterator[Rebinding]:
    found = Rebinding(server.port, READER % b"")
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def visit_page(rebinding_server: Rebinding, name: str, profile: Path) -> str:
    """Return what the page reads if the browser knows the server by this name."""
    port = rebinding_server.server_address[1]
    rules = f"--host-resolver-rules=MAP {name} 127.0.0.2"
    shown, _ = browser.load_page(f"http://{name}:{port}/", profile, rules)
    return shown


@browser.needs_chromium
def test_a_rebinding_page_reads_nothing(rebinding_server: Rebinding, tmp_path: Path) -> None:
    shown = visit_page(rebinding_server, "evil.example", tmp_path)
    assert rebinding_server.passed_on >= 1  # it did send the request to the API server …
    assert "421 {" in shown  # … which answered that the host is wrong
    assert "generation" not in shown


@browser.needs_chromium
def test_rebinding_page_reads_under_an_accepted_name(rebinding_server: Rebinding, tmp_path: Path) -> None:
    """Proof that the test above can fail: an address of loopback, which no page gets by rebinding, is accepted."""
    shown, _ = browser.load_page(f"http://127.0.0.2:{rebinding_server.server_address[1]}/", tmp_path)
    assert "200 {" in shown
    assert "generation" in shown


@browser.needs_chromium
def test_a_page_of_another_origin_reads_nothing(rebinding_server: Rebinding, server: Server, tmp_path: Path) -> None:
    """Not even with the server's own address: no CORS header allows it."""
    rebinding_server.reader = READER % f"http://127.0.0.1:{server.port}".encode()
    shown = visit_page(rebinding_server, "evil.example", tmp_path)
    assert "error NetworkError" in shown
    assert "generation" not in shown


# --- limits ---


def test_endless_request_is_ended(server: Server) -> None:
    for request in (
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            try:
                client.sendall(request)
                answer = client.recv(65536)
            except (BrokenPipeError, ConnectionResetError):
                continue
            assert answer[:10] in (b"", b"HTTP/1.1 4")


def test_query_is_bounded(server: Server) -> None:
    for limit in ("0", "-1", "1001", "9" * 500, "x", "", "1.5", "%C2%B2"):
        assert server.ask(f"/api/v1/audit?limit={limit}").status == 400, limit


def test_head_and_get_only(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/", body=b"x" * 10)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    connection.close()
