"""A small metadata server in this process: answers by path, and records the requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple

from cloud_network.fetcher.metadata.http import Client


class Answer(NamedTuple):
    status: int
    body: str
    headers: Mapping[str, str] = MappingProxyType({})


class Asked(NamedTuple):
    path: str
    headers: dict[str, str]


class Server:
    """`answer(path with query)` returns the answer; it may block."""

    def __init__(self, answer: Callable[[str], Answer]) -> None:
        self.answer, self.asked = answer, list[Asked]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append(Asked(self.path, {key.lower(): value for key, value in self.headers.items()}))
                status, body, headers = outer.answer(self.path)
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body.encode()))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.client = Client(f"127.0.0.1:{self._server.server_address[1]}")

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def close(self) -> None:
        self.client.close()
        self._server.shutdown()
        self._server.server_close()
