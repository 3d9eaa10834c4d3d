"""One connection to a metadata server: pinned to its address, bounded in time and size, never proxied or redirected.

Everything that can go wrong is a MetadataError of a kind: `unreachable`, `timeout`, `status`, `truncated`, `too large`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import requests
from cloud_network.fetcher.model import MetadataError
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, IncompleteRead, ReadTimeoutError

MAX_BODY = 1 << 20  # bytes; GCP's whole document for a large instance is a few hundred KiB
_CONNECT, _READ, _WHOLE = 2.0, 5.0, 10.0  # seconds: to connect, between two reads, for a whole answer
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body arrived whole."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def text(self, path: str) -> str:
        """The body as text; MetadataError when it is none."""
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            raise MetadataError("invalid", f"{path}: the answer is not UTF-8 text") from None


class Client:
    """A kept-alive HTTP connection to one metadata endpoint, with a count of what it was asked."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests = 0
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, no .netrc: the address is link-local, nobody else may see the token
        self._session.headers.update({"User-Agent": "cloud-network", "Accept-Encoding": "identity"})
        self._session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=1))

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Response:
        """The answer, whatever its status; MetadataError when none arrived whole."""
        self.requests += 1
        url = f"http://{self.endpoint}{path}"
        began = time.monotonic()
        try:
            with self._session.request(
                method, url, headers=headers, timeout=(_CONNECT, _READ), allow_redirects=False, stream=True
            ) as response:
                body = self._body(response, path, began + _WHOLE)
                return Response(response.status_code, body, response.headers)
        except requests.Timeout:
            raise MetadataError("timeout", f"{method} {url}: no answer in time") from None
        except requests.RequestException as error:
            raise MetadataError("unreachable", f"{method} {url}: {_shortly(error)}") from None

    def _body(self, response: requests.Response, path: str, deadline: float) -> bytes:
        """Read what is there as it comes: a server that drips does not get more time than one that does not."""
        body = bytearray()
        try:
            while chunk := response.raw.read1(_CHUNK):
                body += chunk
                if len(body) > MAX_BODY:
                    raise MetadataError("too large", f"{path}: the answer is longer than {MAX_BODY} bytes")
                if time.monotonic() > deadline:
                    raise MetadataError("timeout", f"{path}: the answer was not whole after {_WHOLE:.0f} s")
        except ReadTimeoutError:
            raise MetadataError("timeout", f"{path}: the answer stopped in the middle") from None
        except IncompleteRead:
            raise MetadataError("truncated", f"{path}: the answer ended early, after {len(body)} bytes") from None
        except HTTPError as error:
            raise MetadataError("truncated", f"{path}: {_shortly(error)}") from None
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != len(body):
            raise MetadataError("truncated", f"{path}: {len(body)} of {length} bytes arrived")
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
