"""HTTP to a metadata server with requests: pinned to an address, bounded in time and size, no proxy, no redirect.

Errors are MetadataErrors of kind `unreachable`, `timeout`, `truncated`, `too large` or `invalid`, and `status` for
callers that cannot use the response's status.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import RemoteDisconnected
from http.cookiejar import DefaultCookiePolicy
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from cloud_network.fetcher.metadata.egress import egress_interfaces, obstacle
from cloud_network.fetcher.metadata.model import MetadataError
from requests.adapters import HTTPAdapter

MAX_BODY_BYTES = 1 << 20  # GCP's whole document for a large instance is a few hundred KiB
READ_TIMEOUT_S = 5.0  # for the next bytes; a whole answer may take twice as long
_CONNECT_TIMEOUT_S = 2.0
_FURTHER_CONNECT_TIMEOUT_S = 1.0  # through another link than the usual one: there may be many
_CHUNK_BYTES = 1 << 16
_HEADERS = {"User-Agent": "cloud-network", "Accept": "*/*", "Accept-Encoding": "identity"}
_HTML = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response."""

    status: int
    body: bytes
    headers: Mapping[str, str]  # names in lower case

    def text(self, path: str) -> str:
        """Return the body as text, in the charset of Content-Type or UTF-8.

        Raises MetadataError if it is not text, or is an HTML page from a proxy or a captive portal.
        """
        if self.body.lstrip()[:20].lower().startswith(_HTML):
            raise MetadataError("invalid", f"{path}: the answer is an HTML page, not metadata")
        content_type = Message()
        content_type["content-type"] = self.headers.get("content-type", "")
        charset = content_type.get_content_charset("utf-8")
        try:
            return self.body.decode(charset)
        except (LookupError, ValueError):  # UnicodeError is a ValueError
            raise MetadataError("invalid", f"{path}: the answer is not text in {charset}") from None

    def error(self, path: str) -> MetadataError:
        """Return the error for an unusable status, with the server's Retry-After (RFC 9110, 10.2.3)."""
        retry_after = _retry_after(self.headers.get("retry-after", ""))
        return MetadataError("status", f"{path}: HTTP {self.status}", retry_after, self.status)


class _NotConnectedError(MetadataError):
    """No connection was established; nothing was sent."""


class _Session(requests.Session):
    """A session that finds no redirect: even if it must not follow one, requests would read its body without bounds."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """See requests."""
        return None


class _BoundAdapter(HTTPAdapter):
    """An HTTPAdapter whose connections leave through one interface and report their socket.

    SO_BINDTODEVICE (socket(7)) needs no privilege since Linux 5.7.
    """

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self._options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        if interface:
            self._options.append((socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode()))  # type: ignore[arg-type]
        self.socket: socket.socket | None = None  # of the latest connection
        self._expired = threading.Event()
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        """Make the pool whose connections report to this adapter (called by HTTPAdapter)."""
        super().init_poolmanager(connections, maxsize, block, socket_options=self._options, **more)
        adapter = self

        class Connection(urllib3.connection.HTTPConnection):
            def connect(self) -> None:
                adapter.socket = None
                super().connect()
                adapter.register(self.sock)

        class Pool(urllib3.HTTPConnectionPool):
            ConnectionCls = Connection

        self.poolmanager.pool_classes_by_scheme = {"http": Pool}

    def register(self, connected: socket.socket) -> None:
        """Store the socket of a new connection; shut it down if the deadline passed while it was being established."""
        self.socket = connected
        if self._expired.is_set():
            self._shut_down()

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Shut the connection down after `seconds`. The event is set if that happened.

        A server that sends one byte at a time defeats every timeout that restarts with each byte.
        """
        expired = self._expired = threading.Event()
        timer = threading.Timer(seconds, self._expire, (expired,))
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()

    def _expire(self, expired: threading.Event) -> None:
        expired.set()
        if expired is self._expired:  # else the next request has started
            self._shut_down()

    def _shut_down(self) -> None:
        if self.socket is not None:
            with suppress(OSError):  # closed already
                self.socket.shutdown(socket.SHUT_RDWR)


class Client:
    """Requests to a metadata server over one kept connection, for one thread.

    An endpoint is an address with an optional port (`[...]` around IPv6), never a name, because anyone could resolve
    it. A second endpoint is used while the first cannot be reached.
    """

    def __init__(self, *endpoints: str) -> None:
        for endpoint in endpoints:
            ip_address(urlsplit(f"//{endpoint}").hostname or endpoint)  # ValueError for a name
        self._endpoints = deque(endpoints)
        self.kinds: tuple[str, ...] = ()  # AllowKinds=: link kinds of the cloud besides None
        self.requests = 0
        self.unbounded = ""  # path of an answer without a length, which may be incomplete
        self.interface = ""  # through which the server was reached last; "": not bound
        self._slowest_answer = 0.0  # seconds that an answer took since `until` began
        self._sent_at: float | None = None  # time.monotonic() of the request without an answer
        self._until = math.inf  # time.monotonic() at which all requests end
        self._session: requests.Session | None = None
        self._adapter = _BoundAdapter("")

    def clone(self) -> Client:
        """Return a client for the same endpoints with its own connection, for another thread."""
        other = Client(*self._endpoints)
        other.kinds, other.interface = self.kinds, self.interface
        return other

    @property
    def endpoint(self) -> str:
        """The endpoint that the next request goes to first."""
        return self._endpoints[0]

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """End every request in the block at `deadline` (of time.monotonic), with an error of kind timeout."""
        self._until, self._slowest_answer = deadline, 0.0
        try:
            yield
        finally:
            self._until, self._slowest_answer = math.inf, 0.0

    @property
    def slowest_answer(self) -> float:
        """Seconds that the slowest answer in the present `until` block has taken, or takes already; 0 outside."""
        sent_at = self._sent_at
        return max(self._slowest_answer, 0.0 if sent_at is None else time.monotonic() - sent_at)

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, seconds: float | None = None
    ) -> Response:
        """Return the response with any status. Raises MetadataError if no complete response arrives in time.

        `seconds` is the time for the next bytes (READ_TIMEOUT_S if None); the whole answer may take twice as long.
        """
        seconds = READ_TIMEOUT_S if seconds is None else seconds
        self.requests += 1
        first: MetadataError | None = None
        for _ in range(len(self._endpoints)):
            try:
                return self._request(method, path, headers or {}, seconds)
            except _NotConnectedError as error:
                first = first or error
                self.close()
                self._endpoints.rotate(-1)
        raise first or ValueError("no endpoint")

    def _request(self, method: str, path: str, headers: Mapping[str, str], seconds: float) -> Response:
        """Send over the kept session. If it cannot connect, try each possible interface."""
        if self._session is not None:
            try:
                return self._exchange(method, path, headers, seconds, _CONNECT_TIMEOUT_S)
            except _NotConnectedError:
                self.close()
        return self._request_by_any(method, path, headers, seconds)

    def _request_by_any(self, method: str, path: str, headers: Mapping[str, str], seconds: float) -> Response:
        """Connect through the interface that worked last, or another. Raises the error of the first."""
        interfaces = sorted(
            egress_interfaces(ip_address(self._host), self.kinds), key=lambda interface: interface != self.interface
        )
        first: _NotConnectedError | None = None
        for interface in interfaces:
            self._open(interface)
            try:
                timeout = _FURTHER_CONNECT_TIMEOUT_S if first else _CONNECT_TIMEOUT_S
                response = self._exchange(method, path, headers, seconds, timeout)
            except _NotConnectedError as error:
                first = first or error
                self.close()
            else:
                self.interface = interface
                return response
        url = f"http://{self.endpoint}{path}"
        reason = "no route: no Ethernet link is up that is hardware or of a kind in [Netagent] AllowKinds="
        raise first or _NotConnectedError("unreachable", f"{method} {url}: {reason}")

    def _open(self, interface: str) -> None:
        self._session, self._adapter = _Session(), _BoundAdapter(interface)
        self._session.trust_env = False
        self._session.headers.clear()
        self._session.headers.update(_HEADERS)
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.mount("http://", self._adapter)

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], seconds: float, connect_timeout: float
    ) -> Response:
        """Send one request and read the complete response. The connection is closed after any error."""
        url = f"http://{self.endpoint}{path}"
        assert self._session is not None, "_open comes first"
        left = self._until - time.monotonic()
        if left <= 0:
            raise MetadataError("timeout", f"{method} {url}: not sent: the time limit of the whole read has passed")
        self._sent_at = time.monotonic()
        try:
            with self._adapter.deadline(min(2 * seconds, left)) as expired:
                answer = self._session.request(
                    method, url, headers=dict(headers), timeout=(min(connect_timeout, left), min(seconds, left)),
                    stream=True, allow_redirects=False,
                )  # fmt: skip
                if not answer.raw.chunked and answer.raw.length_remaining is None:
                    self.unbounded = path
                with answer:
                    body = _read_body(answer, url, expired)
        except MetadataError:
            self.close()
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            connected = self._adapter.socket is not None
            self.close()
            kind = "timeout" if expired.is_set() or _is_timeout(error) else "unreachable"
            text = self._timeout_reason() if kind == "timeout" else _reason(error)
            made = MetadataError if connected else _NotConnectedError
            raise made(kind, f"{method} {url}: {text}") from None
        finally:
            self._slowest_answer, self._sent_at = self.slowest_answer, None
        return Response(answer.status_code, body, {name.lower(): value for name, value in answer.headers.items()})

    def _timeout_reason(self) -> str:
        cause = obstacle(ip_address(self._host), self._adapter.interface)
        if not cause:
            return "no answer in time"
        return f"no answer in time; {cause}; see /usr/share/doc/cloud-network/coexistence.md"

    @property
    def _host(self) -> str:
        return urlsplit(f"//{self.endpoint}").hostname or self.endpoint

    def close(self) -> None:
        """Close the connection. The next request opens a new one."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _read_body(answer: requests.Response, url: str, expired: threading.Event) -> bytes:
    """Return the complete body as it was sent. Raises MetadataError of kind timeout, truncated or too large."""
    body = bytearray()
    try:
        for piece in answer.raw.stream(_CHUNK_BYTES, decode_content=False):
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise MetadataError("too large", f"{url}: the answer is longer than {MAX_BODY_BYTES} bytes")
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        if expired.is_set() or isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise MetadataError("timeout", f"{url}: the answer was incomplete at the time limit") from None
        raise MetadataError("truncated", f"{url}: {_reason(error)}") from None
    if expired.is_set():
        raise MetadataError("timeout", f"{url}: the answer was incomplete at the time limit")
    return bytes(body)


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError)


def _reason(error: Exception) -> str:
    """Return the system's error text, or else the library's, shortened."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, RemoteDisconnected):
            return "the server closed the connection without an answer"
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error)[:200] or type(error).__name__


def _retry_after(text: str) -> float:
    """Return Retry-After in seconds: a number of seconds or a date. 0 for anything else."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
