"""gunicorn's threaded worker, made patient: a client that is slow costs a socket, never a thread.

gthread hands a connection to a thread at its first byte and lets the thread wait for the rest, so as many slow
clients as there are threads stop everybody. Here the main loop holds a connection until the whole head of its
request has arrived. It peeks (MSG_PEEK), and asks the kernel to wake it for more than it has seen (SO_RCVLOWAT),
so a client that sends byte by byte costs one wake-up a byte. Held for gunicorn 27, whose methods these override.
"""

import contextlib
import socket
import struct
import time
from functools import partial
from selectors import EVENT_READ
from typing import Any

from cloud_network.api import guard, problem
from gunicorn.http.errors import LimitRequestHeaders, ParseException
from gunicorn.workers.gthread import ThreadWorker

HEAD_LIMIT = 16384
"""Bytes of a request's head, at most; gunicorn's own limits for lines and fields lie within."""
HEAD_SECONDS = 10.0
"""How long a head may take to arrive."""
WAITING = 256
"""Connections whose head has not arrived; one more and the oldest is closed."""
SEND_SECONDS = 5
"""How long a client may leave its end full while an answer is sent."""


class PatientWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module."""

    def enqueue_req(self, conn: Any) -> None:
        """Give the connection to a thread if its request is all here, else wait for more. Runs in the main loop."""
        if not conn.data_ready:
            conn.data_ready = True
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        seen = getattr(conn, "seen", None)
        arrived = _peek(conn)
        if arrived == HEAD_LIMIT:
            self.handle_error(None, conn.sock, conn.client, LimitRequestHeaders(f"no end in {arrived} bytes"))
            self._finish(conn)
            return
        if arrived is not None and arrived != seen:
            self._wait(conn, arrived)
            return
        if seen is not None:
            conn.seen = None
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        super().enqueue_req(conn)

    def _wait(self, conn: Any, arrived: int) -> None:
        if getattr(conn, "seen", None) is None:
            conn.timeout = time.monotonic() + HEAD_SECONDS
        conn.seen = arrived
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, arrived + 1)
        if len(self.pending_conns) >= WAITING:
            self.pending_conns[0].timeout = 0.0
            self.murder_pending()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def finish_request(self, conn: Any, future: Any) -> None:
        """Put a kept-alive connection back, or close it without gunicorn's wait of up to 2 s in the main loop."""
        if not future.cancelled() and future.exception() is None and future.result():
            super().finish_request(conn, future)
            return
        self._finish(conn)

    def _finish(self, conn: Any) -> None:
        self.nr_conns -= 1
        _close(conn.sock)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer, and close when a body was announced: no route takes one, and a thread would wait for it."""
        if any(name in ("CONTENT-LENGTH", "TRANSFER-ENCODING") for name, _ in req.headers):
            req.force_close()
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what is not HTTP, or is beyond the limits, with a problem as well."""
        if not isinstance(exc, ParseException):
            self.log.error("a request failed", exc_info=exc)
        status = 400 if isinstance(exc, ParseException) else 500
        content = problem.encode(status, f"{type(exc).__name__}: {exc}"[:300] if status == 400 else "See the log.")
        headers = {"Connection": "close", "Content-Type": problem.MIMETYPE, "Content-Length": len(content)}
        head = "".join(f"{name}: {value}\r\n" for name, value in (headers | guard.HEADERS).items())
        phrase = "Bad Request" if status == 400 else "Internal Server Error"
        with contextlib.suppress(OSError):
            client.sendall(f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode() + content)


def _peek(conn: Any) -> int | None:
    """How many bytes of an unfinished head are here; None when there is nothing to wait for."""
    if conn.parser is not None and conn.parser.unreader.buf.getvalue():
        return None  # read ahead already
    try:
        head = conn.sock.recv(HEAD_LIMIT, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0
    except OSError:
        return None
    return None if not head or b"\r\n\r\n" in head else len(head)


def _close(sock: socket.socket) -> None:
    """Close without waiting; what the client has sent too much is read first, or a reset would eat the answer."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.setblocking(False)
        for _ in range(16):
            if not sock.recv(4096):
                break
    sock.close()
