"""One connection to a metadata server: pinned to its address, bounded in time and size, never proxied or redirected.

What can go wrong is a MetadataError of a kind: `unreachable`, `timeout`, `truncated`, `too large`, `invalid`.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from cloud_network.fetcher.model import MetadataError
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

MAX_BODY = 1 << 20  # bytes; GCP's whole document for a large instance is a few hundred KiB
_CONNECT, _READ = 2.0, 5.0  # seconds: to connect, and for the next bytes; a whole answer has twice as long
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


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        plain = super()._new_conn()
        return _Socket(plain.family, plain.type, plain.proto, fileno=plain.detach())

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
        if isinstance(self.sock, _Socket):
            self.sock.pause = self.timeout or _READ  # by now what the request was given for reading
            self.sock.deadline = time.monotonic() + 2 * self.sock.pause
        return super().getresponse()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool}


class Client:
    """A kept-alive HTTP connection to one metadata endpoint, with a count of what it was asked."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests = 0
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, no .netrc: the address is link-local, nobody else may see the token
        self._session.headers.update({"User-Agent": "cloud-network", "Accept-Encoding": "identity"})
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session.mount("http://", _Adapter(pool_connections=1, pool_maxsize=1))

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, seconds: float = _READ
    ) -> Response:
        """The answer, whatever its status; MetadataError when none arrived whole, or too slowly."""
        self.requests += 1
        url = f"http://{self.endpoint}{path}"
        try:
            with self._session.request(
                method, url, headers=headers, timeout=(_CONNECT, seconds), allow_redirects=False, stream=True
            ) as response:
                return Response(response.status_code, self._body(response, path), response.headers)
        except requests.Timeout:
            raise MetadataError("timeout", f"{method} {url}: no answer in time") from None
        except requests.RequestException as error:
            raise MetadataError("unreachable", f"{method} {url}: {_shortly(error)}") from None

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


def _shortly(error: Exception) -> str:
    """The innermost reason of requests' nested errors."""
    reason: BaseException = error
    while (inner := reason.__cause__ or reason.__context__ or getattr(reason, "reason", None)) is not None:
        if not isinstance(inner, BaseException):
            break
        reason = inner
    return str(reason)[:200] or type(reason).__name__
