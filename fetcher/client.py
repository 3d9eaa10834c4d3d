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
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import requests
from cloud_network.fetcher.model import MetadataError
from cloud_network.fetcher.ways import ways
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

MAX_BODY = 1 << 20  # bytes; GCP's whole document for a large instance is a few hundred KiB
_CONNECT, _READ = 2.0, 5.0  # seconds: to connect, and for the next bytes; a whole answer has twice as long
_CONNECT_ELSEWHERE = 1.0  # by a way that is not the usual one: there may be many
_CHUNK = 1 << 16
_PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body arrived whole."""

    status: int
    body: bytes
    headers: Mapping[str, str]

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
    """Waits `pause` seconds for the next bytes and no longer than until `deadline`, however head and body drip in."""

    pause, deadline = _READ, math.inf

    def recv_into(self, *arguments: Any) -> int:
        """See socket.recv_into: http.client reads by nothing else."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(min(left, self.pause))
        return super().recv_into(*arguments)


class _NoWayError(MetadataError):
    """Nobody could be reached; nothing was sent."""


class _Connection(HTTPConnection):
    def __init__(self, connect: Callable[[str, int], _Socket], *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._connect = connect

    def _new_conn(self) -> socket.socket:
        return self._connect(self.host.strip("[]"), self.port or 80)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
        if isinstance(self.sock, _Socket):
            self.sock.pause = self.timeout or _READ  # by now what the request was given for reading
            self.sock.deadline = time.monotonic() + 2 * self.sock.pause
        return super().getresponse()


class _Pool(HTTPConnectionPool):
    def __init__(self, connect: Callable[[str, int], _Socket], *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.ConnectionCls = partial(_Connection, connect)  # type: ignore[assignment]  # it is only called


class _Adapter(HTTPAdapter):
    def __init__(self, connect: Callable[[str, int], _Socket]) -> None:
        self._connect = connect
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": partial(_Pool, self._connect)}


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
        self._way = ""  # the last that led to the server
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, no .netrc: the address is link-local, nobody else may see the token
        self._session.headers.update({"User-Agent": "cloud-network", "Accept-Encoding": "identity"})
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session.mount("http://", _Adapter(self._connect))

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
                self._endpoints.rotate(-1)
        raise nobody or ValueError("no endpoint")

    def _request(self, method: str, path: str, headers: Mapping[str, str] | None, seconds: float) -> Response:
        url = f"http://{self.endpoint}{path}"
        try:
            with self._session.request(
                method, url, headers=headers, timeout=(_CONNECT, seconds), allow_redirects=False, stream=True
            ) as response:
                return Response(response.status_code, self._body(response, path), response.headers)
        except _NoWayError as error:
            raise _NoWayError(error.kind, f"{method} {url}: {error}") from None
        except requests.Timeout:
            raise MetadataError("timeout", f"{method} {url}: no answer in time") from None
        except requests.RequestException as error:
            raise MetadataError("unreachable", f"{method} {url}: {_shortly(error)}") from None
        except ValueError as error:  # requests reads where a redirect leads to, though it is not followed
            raise MetadataError("invalid", f"{method} {url}: {_shortly(error)}") from None

    def _connect(self, host: str, port: int) -> _Socket:
        """By the way that led there last, or by another; the error is the first one's."""
        first: OSError | None = None
        found = ways(ip_address(host), self.kinds)
        for way in sorted(found, key=lambda each: each != self._way):
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
                self._way = way
                return plain
        if isinstance(first, TimeoutError):
            raise _NoWayError("timeout", "no answer in time")
        raise _NoWayError("unreachable", str(first or "no route but into a tunnel, and no link of the cloud's is up"))

    def _body(self, response: requests.Response, path: str) -> bytes:
        """All of it: urllib3 raises when fewer bytes arrive than Content-Length or the chunks promise."""
        body = bytearray()
        try:
            while chunk := response.raw.read1(_CHUNK):
                body += chunk
                if len(body) > MAX_BODY:
                    raise MetadataError("too large", f"{path}: the answer is longer than {MAX_BODY} bytes")
        except ReadTimeoutError:
            raise MetadataError("timeout", f"{path}: the answer was not whole in time") from None
        except HTTPError as error:
            raise MetadataError("truncated", f"{path}: after {len(body)} bytes: {_shortly(error)}") from None
        return bytes(body)

    def close(self) -> None:
        """Let the connection go: the next request makes a new one."""
        self._session.close()


def _seconds(text: str) -> float:
    """Retry-After: a number of seconds, or a date."""
    if text.strip().isascii() and text.strip().isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _shortly(error: Exception) -> str:
    """The innermost reason of requests' nested errors."""
    reason: BaseException = error
    while (inner := reason.__cause__ or reason.__context__ or getattr(reason, "reason", None)) is not None:
        if not isinstance(inner, BaseException):
            break
        reason = inner
    return str(reason)[:200] or type(reason).__name__
