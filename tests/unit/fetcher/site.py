"""A small metadata server on loopback: texts by their paths, a record of what was asked, tokens where wanted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site:
    """What is served can be changed at any time; a path that is not there is 404."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.statuses: dict[str, int] = {}  # path → the status that it answers with instead
        self.headers: dict[str, str] = {}  # without these a request is 403
        self.token_path = self.token_header = ""
        self.token_body = "{0}"
        self.token: str | None = None  # the valid one; requests without it are 401 when there is a token_path
        self.asked: list[str] = []
        self._issued = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16  # head and body in one packet

            def do_GET(self) -> None:
                site._answer(self)

            do_PUT = do_GET  # noqa: N815  # http.server's

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        self.asked.append(path if handler.command == "GET" else f"{handler.command} {path}")
        status, text = self._decide(handler.command, path, handler.headers)
        body = text.encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _decide(self, command: str, path: str, headers: Any) -> tuple[int, str]:
        if path in self.statuses:
            return self.statuses[path], "not now"
        if command == "PUT":
            if path != self.token_path:
                return 405, ""
            self._issued += 1
            self.token = f"token-{self._issued}"
            return 200, self.token_body.format(self.token)
        if any(headers.get(name) != value for name, value in self.headers.items()):
            return 403, ""
        if self.token_path and (self.token is None or self.token not in headers.get(self.token_header, "")):
            return 401, ""
        return (200, self.texts[path]) if path in self.texts else (404, "not there")

    def tree(self, root: str, tree: Mapping[str, Any]) -> None:
        """Serve nested mappings as EC2 does: directories list their names, those of directories with a slash."""
        self.texts[root] = "\n".join(f"{name}/" if isinstance(below, dict) else name for name, below in tree.items())
        for name, below in tree.items():
            if isinstance(below, dict):
                self.tree(f"{root}{name}/", below)
            else:
                self.texts[root + name] = below

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
