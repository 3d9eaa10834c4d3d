"""Where cnctl gets the state: asks the REST server, and reads the files itself, saying so, when that is down.

The request is HTTP/1.0 over a socket: http.client costs more start-up than all of cnctl may take.
"""

from __future__ import annotations

import json
import socket
import sys
import time

from cloud_network.api import freshness
from cloud_network.api.cnctl.failure import UNREACHABLE, WRONG, Failure
from cloud_network.api.cnctl.layout import safe
from cloud_network.fetcher import keyfile
from cloud_network.fetcher.state import StateDirectory, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloud_network.api.answers import DatedStatus
    from cloud_network.fetcher.state import Document

VERSION = 1
"""Of status.json; fetcher/status.py has it too, and costs the import of typing."""
LISTEN = "127.0.0.1:5209"
TIMEOUT = 2.0
"""Seconds for the whole of one answer."""


class Source:
    """The state of one fetcher. Methods raise Failure when there is nothing to be had, with what to do."""

    def __init__(self, config: str, state: str):
        self.files = StateDirectory(state)
        self._config = config
        self._address = ""
        self._elsewhere = self._down = False

    def status(self) -> DatedStatus:
        """Return what the fetcher believes, and whether that is out of date."""
        found = self._get("/api/v1/status", self.files.status_path, self.files.read_status)
        if found.get("version") != VERSION:
            raise Failure(
                WRONG,
                f"the status is of version {safe(found.get('version'))}, and this cnctl knows {VERSION}: it and the "
                "fetcher are not of one release. Upgrade both; then systemctl restart cloud-network-fetcher",
            )
        if "stale" not in found:  # from the file, or of a server before this key
            found["stale"] = freshness.stale(found, time.time())
        dated: DatedStatus = found
        return dated

    def system(self) -> Document:
        """Return what the metadata says of the instance."""
        found: Document = self._get("/api/cloud/system", self.files.system_path, self.files.read_system)
        return found

    def _get(self, route: str, path: str, read: Any) -> Any:
        while not self._down:
            self._address = self._address or listening(self._config)
            try:
                return _answer(*request(self._address, route))
            except (OSError, ValueError, OverflowError, EOFError) as error:
                self._gone(getattr(error, "strerror", None) or str(error))
        try:
            found = read()
        except StateError as error:
            raise Failure(WRONG, str(error)) from error
        if found is None:
            raise Failure(
                UNREACHABLE,
                f"there is no {path}: the fetcher writes it after the first complete answer of the metadata server.\n"
                "Is it running?    systemctl status cloud-network-fetcher\n"
                "What does it say? journalctl -u cloud-network-fetcher",
            )
        return found

    def _gone(self, reason: str) -> None:
        """It is not where `Listen=` says: systemd may have it listen elsewhere, or else it is down."""
        from cloud_network.fetcher import systemd

        there = [] if self._elsewhere else systemd.listening()
        self._elsewhere = True
        if there and self._address not in there:
            note(f"[Network] Listen = {self._address} does not count: systemd listens on {', '.join(there)}")
            self._address = there[0]
            return
        self._down = True
        note(f"the REST server at {self._address} does not answer ({reason}); reading {self.files.path} instead")


def say_if_stale(status: DatedStatus) -> None:
    """What is shown may not be so any more."""
    if status["stale"]:
        note(f"this is out of date: the metadata was last read {status['fetched_at'] or 'never'}. See: cnctl status")


def note(text: str) -> None:
    """Say something that is not the answer."""
    print(f"cnctl: {safe(text)}", file=sys.stderr)


def listening(config: str) -> str:
    """Where the REST server listens: `Listen=` of the file, else the default. Mistakes are the daemons' to report."""
    try:
        with open(config, encoding="utf-8") as file:  # noqa: PTH123  # pathlib would cost more than the reading
            entries, _ = keyfile.read(file.read())
    except (OSError, ValueError):
        return LISTEN
    found = [text for _, section, key, text in entries if (section, key) == ("Network", "Listen")]
    return found[0] if found else LISTEN


def request(address: str, route: str) -> tuple[int, bytes]:
    """GET the route; return status and body. Raises OSError, ValueError, OverflowError or EOFError else."""
    host, _, port = address.rpartition(":")
    bare = host.strip("[]")
    until = time.monotonic() + TIMEOUT
    with socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect((bare, int(port)))  # Linux takes 0.0.0.0 and :: for itself
        connection.sendall(f"GET {route} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
        received = bytearray()
        while chunk := connection.recv(1 << 16):
            received += chunk
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            connection.settimeout(left)
    head, separator, body = bytes(received).partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    if not separator or not first.startswith(b"HTTP/1."):
        raise ValueError("what answers is not HTTP")
    for field in fields:
        name, _, value = field.partition(b":")
        if name.lower() == b"content-length" and int(value) != len(body):
            raise EOFError("the answer was cut off")
    return int(first.partition(b" ")[2][:3]), body


def _answer(status: int, body: bytes) -> dict[str, Any]:
    answer = json.loads(body)
    if not isinstance(answer, dict):
        raise ValueError("what answers is not cloud-network-api")
    if status == 200:
        return answer
    if "detail" in answer and "title" in answer:
        raise Failure(UNREACHABLE if status == 503 else WRONG, safe(answer["detail"]))
    raise ValueError(f"what answers is not cloud-network-api: status {status}")
