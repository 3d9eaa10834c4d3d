"""gunicorn's threaded worker, made patient: a client that is slow costs a socket, never a thread.

gthread hands a connection to a thread at its first byte and lets the thread wait for the rest, so as many slow
clients as there are threads stop everybody. Here the main loop holds a connection until the whole head of its
request has arrived. It peeks (MSG_PEEK), and asks the kernel to wake it for more than it has seen (SO_RCVLOWAT),
so a client that sends byte by byte costs one wake-up a byte. What of an answer the client's end has no room for goes
back to the main loop as well, which sends it as room is made. Held for gunicorn 27, whose methods these override.
"""

import contextlib
import os
import signal
import socket
import time
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, NamedTuple

from cloud_network.api import guard, problem
from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.gthread import ThreadWorker

HEAD_LIMIT = 16384
"""Bytes of a request's head, at most; gunicorn's own limits for lines and fields lie within."""
HEAD_SECONDS = 10.0
"""How long a head may take to arrive."""
WAITING = 256
"""Connections whose head has not arrived; one more and the oldest is closed."""
SEND_SECONDS = 30.0
"""How long a client may take to make room for an answer, when it has kept a thread from being done with it."""
SENDING = 64
"""Clients that an answer waits for; one more and the oldest is closed."""
STATUSES = {
    LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
}
"""Of what is not HTTP as we take it; all else that gunicorn's parser refuses is a 400 (RFC 9110, section 15)."""


class Outgoing:
    """A connection's socket for gunicorn to answer on: nothing waits here, `rest` is what there was no room for."""

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self.rest: list[memoryview] = []

    def sendall(self, content: bytes) -> None:
        """Send what can be sent at once."""
        sent = 0
        if not self.rest:
            with contextlib.suppress(BlockingIOError):
                sent = self._sock.send(content, socket.MSG_DONTWAIT)
        if sent < len(content):
            self.rest.append(memoryview(content)[sent:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Answering(NamedTuple):
    """What gunicorn needs of a connection for one answer."""

    sock: Outgoing
    client: Any
    server: Any


class PatientWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module."""

    idle_exit = 0.0
    """Seconds without a request or a connection after which the server ends; 0: never."""

    def __init__(self, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self._sending: list[Any] = []  # connections, the oldest first
        self._used = time.monotonic()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Do what there is to do, and have the master stop when there has been nothing for long enough."""
        super().wait_for_and_dispatch_events(timeout)
        now = time.monotonic()
        if self.nr_conns:
            self._used = now
        elif self.idle_exit and self.alive and now > self._used + self.idle_exit:
            self.log.info("No request for %g s: leaving the socket to systemd", self.idle_exit)
            self._used = now  # said once
            os.kill(self.ppid, signal.SIGTERM)

    def enqueue_req(self, conn: Any) -> None:
        """Give the connection to a thread if its request is all here, else wait for more. Runs in the main loop."""
        conn.data_ready = True
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
        if getattr(conn, "rest", None):
            self._send_later(conn)
            return
        if not future.cancelled() and future.exception() is None and future.result():
            super().finish_request(conn, future)
            return
        self._finish(conn)

    def _send_later(self, conn: Any) -> None:
        if len(self._sending) >= SENDING:
            self._stop_sending(self._sending[0])
        conn.timeout = time.monotonic() + SEND_SECONDS
        conn.sock.setblocking(False)
        self._sending.append(conn)
        self.poller.register(conn.sock, EVENT_WRITE, partial(self._send, conn))

    def _send(self, conn: Any, sock: socket.socket) -> None:
        try:
            while conn.rest:
                sent = sock.send(conn.rest[0])
                conn.rest[0] = conn.rest[0][sent:]
                if not conn.rest[0]:
                    conn.rest.pop(0)
        except BlockingIOError:
            return
        except OSError:
            pass  # the client went
        self._stop_sending(conn)

    def _stop_sending(self, conn: Any) -> None:
        self._sending.remove(conn)
        self.poller.unregister(conn.sock)
        self._finish(conn)

    def murder_pending(self) -> None:
        """Close those that take too long, with their request or with the answer."""
        super().murder_pending()
        now = time.monotonic()
        while self._sending and self._sending[0].timeout < now:
            self._stop_sending(self._sending[0])

    def _finish(self, conn: Any) -> None:
        self.nr_conns -= 1
        _close(conn.sock)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer, and close when a body was announced: no route takes one, and a thread would wait for it."""
        if any(name in ("CONTENT-LENGTH", "TRANSFER-ENCODING") for name, _ in req.headers):
            req.force_close()
        outgoing = Outgoing(conn.sock)
        keep = super().handle_request(req, Answering(outgoing, conn.client, conn.server))
        conn.rest = outgoing.rest
        return keep and not conn.rest

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what is not HTTP, or is beyond the limits, with a problem as well."""
        status, detail = HTTPStatus.BAD_REQUEST, f"{type(exc).__name__}: {exc}"[:300]
        if isinstance(exc, ParseException):
            status = STATUSES.get(type(exc), status)
        else:
            self.log.error("a request failed", exc_info=exc)
            status, detail = HTTPStatus.INTERNAL_SERVER_ERROR, "See the log: journalctl -u cloud-network-api."
        content = problem.encode(status, detail)
        headers = {"Connection": "close", "Content-Type": problem.MIMETYPE, "Content-Length": len(content)}
        head = "".join(f"{name}: {value}\r\n" for name, value in (headers | guard.HEADERS).items())
        with contextlib.suppress(OSError):
            client.send(f"HTTP/1.1 {status:d} {status.phrase}\r\n{head}\r\n".encode() + content, socket.MSG_DONTWAIT)


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
