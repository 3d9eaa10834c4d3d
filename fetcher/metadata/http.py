"""One connection to a metadata server: pinned to its address, bounded in time and size, never proxied or redirected.

What can go wrong is a MetadataError of a kind: `unreachable`, `timeout`, `truncated`, `too large`, `invalid`; and
`status`, for those who cannot use an answer.
"""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from cloud_network.fetcher.metadata import http1
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.ways import ways

MAX_BODY = 1 << 20  # bytes; GCP's whole document for a large instance is a few hundred KiB
_CONNECT, _READ = 2.0, 5.0  # seconds: to connect, and for the next bytes; a whole answer has twice as long
_CONNECT_ELSEWHERE = 1.0  # by a way that is not the usual one: there may be many
_MOST = MAX_BODY + (1 << 18)  # bytes of a whole answer, with heads, the sizes of chunks, and what follows them
_PORT = 80
_HEADERS = {"User-Agent": "cloud-network", "Accept": "*/*", "Accept-Encoding": "identity"}
_PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body arrived whole."""

    status: int
    body: bytes
    headers: Mapping[str, str]  # by their names in lower case

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
        return MetadataError("status", f"{path}: HTTP {self.status}", _seconds(self.headers.get("retry-after", "")))


class _NoWayError(MetadataError):
    """Nobody could be reached; nothing was sent."""


class _Connection:
    """A socket to one endpoint, kept from one request to the next where the server keeps it too."""

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain
        self._stream = http1.Stream(self._receive)
        self._pause, self._deadline, self._room = _READ, math.inf, _MOST

    def _receive(self) -> bytes:
        """Waits `_pause` seconds for the next bytes, until `_deadline`, for `_room` bytes, however an answer drips."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(min(left, self._pause))
        piece = self._socket.recv(1 << 16)
        self._room -= len(piece)
        if self._room < 0:
            raise MetadataError("too large", f"the answer is longer than {MAX_BODY} bytes")
        return piece

    def ask(self, request: bytes, pause: float) -> http1.Head:
        """Send a request and read the head of its answer."""
        self._socket.settimeout(pause)
        self._socket.sendall(request)
        self._pause, self._deadline, self._room = pause, time.monotonic() + 2 * pause, _MOST
        return http1.read_head(self._stream)

    def body(self, head: http1.Head) -> bytes:
        """All that follows the head."""
        return http1.read_body(self._stream, head, MAX_BODY)

    def is_quiet(self) -> bool:
        """Whether it is still there, and nothing has come that nobody asked for."""
        if self._stream.rest:
            return False
        self._socket.setblocking(False)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """For good."""
        self._socket.close()


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
        request = http1.request(method, path, {"Host": self.endpoint, **_HEADERS, **(headers or {})})
        connection, self._connection = self._connection, None
        try:
            if connection is not None and not connection.is_quiet():
                connection.close()
                connection = None
            connection = connection or self._connect()
            head = connection.ask(request, seconds)
            response = Response(head.status, _body(connection, head, path), head.fields)
            if head.lasts:
                self._connection = connection
        except MetadataError as error:
            raise type(error)(error.kind, f"{method} {url}: {error}") from None
        except TimeoutError:
            raise MetadataError("timeout", f"{method} {url}: no answer in time") from None
        except (OSError, http1.NoAnswerError) as error:
            raise MetadataError("unreachable", f"{method} {url}: {_shortly(error)}") from None
        finally:
            if self._connection is None and connection is not None:
                connection.close()
        return response

    def _connect(self) -> _Connection:
        """By the way that led there last, or by another; the error is the first one's."""
        first: OSError | None = None
        place = urlsplit(f"//{self.endpoint}")
        host = place.hostname or self.endpoint
        found = ways(ip_address(host), self.kinds)
        for way in sorted(found, key=lambda each: each != self.way):
            plain = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            try:
                if way:
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, way.encode())
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.settimeout(_CONNECT_ELSEWHERE if first else _CONNECT)
                plain.connect((host, place.port or _PORT))
            except OSError as error:
                plain.close()
                first = first or error
            else:
                self.way = way
                return _Connection(plain)
        if isinstance(first, TimeoutError):
            raise _NoWayError("timeout", "no answer in time")
        raise _NoWayError("unreachable", str(first or "no route but into a tunnel, and no link of the cloud's is up"))

    def close(self) -> None:
        """Let the connection go: the next request makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _body(connection: _Connection, head: http1.Head, path: str) -> bytes:
    """All of it, or MetadataError: the head came, and the server was there."""
    try:
        return connection.body(head)
    except TimeoutError:
        raise MetadataError("timeout", f"{path}: the answer was not whole in time") from None
    except http1.TooLargeError:
        raise MetadataError("too large", f"{path}: the answer is longer than {MAX_BODY} bytes") from None
    except (OSError, http1.NoBodyError) as error:
        raise MetadataError("truncated", f"{path}: {_shortly(error)}") from None


def _seconds(text: str) -> float:
    """Retry-After: a number of seconds, or a date."""
    if text.strip().isascii() and text.strip().isdecimal():
        return float(text[:9])
    if not text.strip():
        return 0.0
    from email.utils import parsedate_to_datetime  # its import costs more than an answer, and servers seldom say when

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _shortly(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__
