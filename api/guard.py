"""Who may ask, and what a browser may do with the answer.

The server listens on loopback, where every page in a browser on this host could reach it under a name of its own
that it lets resolve to 127.0.0.1 (DNS rebinding). A rebinding page must use a name; so names other than localhost
are refused, and addresses must be ones that this server is meant to have. Ports are not compared: an SSH tunnel
changes them.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import ip_address

from cloud_network.api.problem import Problem
from cloud_network.fetcher.config import Endpoint
from flask import Flask, Response, request

NAMES = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""On every answer. There is no CORS header: no other origin may read anything."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z.-]+))(?::[0-9]{1,5})?")


def hosts(listen: Sequence[Endpoint]) -> Callable[[str], bool]:
    """Whether a Host header is one of a server that listens there."""
    own = {endpoint.address for endpoint in listen}
    everywhere = any(address.is_unspecified for address in own)

    @lru_cache(maxsize=64)
    def allowed(host: str) -> bool:
        match = _HOST.fullmatch(host)
        if not match:
            return False
        name = match[1] or match[2]
        if name.lower() in NAMES:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or address in own or everywhere

    return lambda host: len(host) <= 255 and allowed(host)


def install(app: Flask, listen: Sequence[Endpoint], allowed: Callable[[str], bool]) -> None:
    """Refuse strange Host headers before any route, and put HEADERS on every answer, errors too."""

    there = " or ".join(f"http://{endpoint}/" for endpoint in listen) or "127.0.0.1"

    @app.before_request
    def _host() -> None:
        host = request.environ.get("HTTP_HOST", "")
        if not allowed(host):
            raise Problem(
                421,
                f"This server does not answer for the host {host[:255]!r}; ask for {there} or localhost.",
            )

    @app.after_request
    def _headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response
