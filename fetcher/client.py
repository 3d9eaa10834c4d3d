"""One connection to a metadata server: pinned to its address, bounded in time and size, never proxied or redirected.

What can go wrong is a MetadataError of a kind: `unreachable`, `timeout`, `truncated`, `too large`, `invalid`; and
`status`, for those who cannot use an answer.
"""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from cloud_network.fetcher.model import MetadataError
from cloud_network.fetcher.ways import ways

MAX_BODY = 1 << 20  # bytes; GCP's whole document for a large instance is a few hundred KiB
_CONNECT, _READ = 2.0, 5.0  # seconds: to connect, and for the next bytes; a whole answer has twice as long
_CONNECT_ELSEWHERE = 1.0  # by a way that is not the usual one: there may be many
_MOST = MAX_BODY + (1 << 18)  # bytes of a whole answer: http.client takes heads of any number of lines, and trailers
_HEADERS = {"User-Agent": "cloud-network", "Accept": "*/*", "Accept-Encoding": "identity"}
_PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body arrived whole."""

    status: int
    body: bytes
    headers: Mapping[str, str] | HTTPMessage

    def text(self, path: str) -> str:
        """The body as text; MetadataError when it is none, or a page that a proxy or portal put in its place."""
        if self.body.lstrip()[:20].lower().startswith(_PAGE):
            raise MetadataError("invalid", f"{path}: the answer is an HTML page, not metadata")
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            raise MetadataError("invalid", f"{path}: the answer is not UTF-8 text") from None

    def error(self, path: str) -> MetadataError:
        """What an answer that cannot be used for its status means; with the server's Retry-After (RFC 9110, 10.2.3)."""
        return MetadataError("status", f"{path}: HTTP {self.status}", _seconds(self.headers.get("Retry-After", "")))


class _Socket(socket.socket):
    """Waits `pause` seconds for the next bytes, until `deadline` and for `room` bytes, however an answer drips in."""

    pause, deadline, room = _READ, math.inf, _MOST

    def recv_into(self, *arguments: Any) -> int:
        """See socket.recv_into: http.client reads by nothing else."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(min(left, self.pause))
        size = super().recv_into(*arguments)
        self.room -= size
        if self.room < 0:
            raise MetadataError("too large", f"the answer is longer than {MAX_BODY} bytes")
        return size

    def is_quiet(self) -> bool:
        """Whether a kept connection is still there, and nothing has come that nobody asked for."""
        self.setblocking(False)
        try:
            self.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class _NoWayError(MetadataError):
    """Nobody could be reached; nothing was sent."""


class _Connection(HTTPConnection):
    """HTTPConnection to one endpoint, by a socket that `connect` finds a way for."""

    sock: _Socket | None

    def __init__(self, endpoint: str, connect: Callable[[str, int], _Socket]) -> None:
        super().__init__(endpoint, timeout=_CONNECT)
        self._connect = connect

    def connect(self) -> None:
        """See HTTPConnection.connect."""
        self.sock = self._connect(self.host, self.port)

    def ask(self, method: str, path: str, headers: Mapping[str, str], pause: float) -> HTTPResponse:
        """Send a request and read the head of its answer."""
        if self.sock is None or not self.sock.is_quiet():
            self.close()
            self.connect()
        assert self.sock is not None
        self.sock.settimeout(pause)
        self.sock.pause, self.sock.deadline, self.sock.room = pause, math.inf, _MOST
        self.request(method, path, headers=headers)
        self.sock.deadline = time.monotonic() + 2 * pause
        return self.getresponse()


class Client:
    """A kept-alive HTTP connection to a metadata endpoint, with a count of what it was asked.

    An endpoint is an address, `[…]` around an IPv6 one, and perhaps a port; never a name, which anybody might resolve.
    Where a second one is given, it serves when the first cannot be reached, and so on in turn.
    """

    def __init__(self, *endpoints: str) -> None:
        for endpoint in endpoints:
            ip_address(urlsplit(f"//{endpoint}").hostname or endpoint)  # ValueError for a name
        self._endpoints = deque(endpoints)
        self.kinds: tuple[str, ...] = ()  # rtnetlink's, of links that count as the cloud's: [Netagent] AllowKinds=
        self.requests = 0
        self.way = ""  # the last that led to the server: a link that was asked by, or "" for the host's routing
        self._connection: _Connection | None = None

    def another(self) -> Client:
        """One to the same endpoints, with a connection of its own."""
        return Client(*self._endpoints)

    @property
    def endpoint(self) -> str:
        """Where the next request goes to first."""
        return self._endpoints[0]

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, seconds: float = _READ
    ) -> Response:
        """The answer, whatever its status; MetadataError when none arrived whole, or too slowly."""
        self.requests += 1
        nobody: MetadataError | None = None
        for _ in range(len(self._endpoints)):
            try:
                return self._request(method, path, headers, seconds)
            except _NoWayError as error:
                nobody = nobody or error
                self.close()
                self._endpoints.rotate(-1)
        raise nobody or ValueError("no endpoint")

    def _request(self, method: str, path: str, headers: Mapping[str, str] | None, seconds: float) -> Response:
        """Over the kept connection; one on which anything went wrong is not kept."""
        url = f"http://{self.endpoint}{path}"
        connection, self._connection = self._connection or _Connection(self.endpoint, self._connect), None
        try:
            answer = connection.ask(method, path, _HEADERS | dict(headers or {}), seconds)
            response = Response(answer.status, _body(answer, path), answer.headers)
            self._connection = connection
        except MetadataError as error:
            raise type(error)(error.kind, f"{method} {url}: {error}") from None
        except TimeoutError:
            raise MetadataError("timeout", f"{method} {url}: no answer in time") from None
        except (OSError, HTTPException) as error:
            raise MetadataError("unreachable", f"{method} {url}: {_shortly(error)}") from None
        finally:
            if self._connection is None:
                connection.close()
        return response

    def _connect(self, host: str, port: int) -> _Socket:
        """By the way that led there last, or by another; the error is the first one's."""
        first: OSError | None = None
        found = ways(ip_address(host), self.kinds)
        for way in sorted(found, key=lambda each: each != self.way):
            plain = _Socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            try:
                if way:
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, way.encode())
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.settimeout(_CONNECT_ELSEWHERE if first else _CONNECT)
                plain.connect((host, port))
            except OSError as error:
                plain.close()
                first = first or error
            else:
                self.way = way
                return plain
        if isinstance(first, TimeoutError):
            raise _NoWayError("timeout", "no answer in time")
        raise _NoWayError("unreachable", str(first or "no route but into a tunnel, and no link of the cloud's is up"))

    def close(self) -> None:
        """Let the connection go: the next request makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _body(answer: HTTPResponse, path: str) -> bytes:
    """All of it, or MetadataError: http.client says nothing when fewer bytes arrive than Content-Length promises."""
    try:
        body = answer.read(MAX_BODY + 1)
    except TimeoutError:
        raise MetadataError("timeout", f"{path}: the answer was not whole in time") from None
    except IncompleteRead as error:
        raise MetadataError("truncated", f"{path}: after {len(error.partial)} bytes: no end of it") from None
    except (OSError, HTTPException) as error:
        raise MetadataError("truncated", f"{path}: {_shortly(error)}") from None
    if len(body) > MAX_BODY:
        raise MetadataError("too large", f"{path}: the answer is longer than {MAX_BODY} bytes")
    if answer.length:
        raise MetadataError("truncated", f"{path}: after {len(body)} bytes, of {len(body) + answer.length}")
    return body


def _seconds(text: str) -> float:
    """Retry-After: a number of seconds, or a date."""
    if text.strip().isascii() and text.strip().isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _shortly(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__
