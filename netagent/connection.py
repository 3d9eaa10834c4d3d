"""Client connections: authentication, and frames with deadlines.

Only the fetcher's uid and root of this host are served. Every wait that a client can cause is bounded.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from .operations import Malformed
from .protocol import HEADER, MAX_FRAME, ROOT_CREDENTIALS, UCRED, Message

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FRAME_SECONDS = 5.0
"""Limit for a frame from its first to its last byte, and for a client's silence between requests."""
ANSWER_SECONDS = 1.0
LIFETIME_SECONDS = 900.0
"""Lifetime of a connection; longer than the longest ConfirmTimeout=, 600 s."""
CLOSE_SECONDS = 1.0
"""Limit for closing files that a client passed (SCM_RIGHTS): see bounded_close."""
ROOT_SECONDS = 1.0
"""Limit for root to send its credentials after connecting. Meanwhile other clients are served."""
MAX_WAITING = 16  # connections of uid 0 without credentials yet
_CREDENTIALS_SPACE = socket.CMSG_LEN(UCRED.size)  # for SCM_CREDENTIALS; passed files would not fit


class HungUp(Exception):
    """The client closed the connection, or its process ended."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected (SO_PEERCRED), with the fields of the audit log."""

    pid: int
    uid: int
    gid: int
    unit: str | None  # systemd unit: the last part of the cgroup; None in netagent's own unit (ProtectProc=invisible)

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        """Return the peer of a connected socket."""
        pid, uid, gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        try:
            cgroup = Path(f"/proc/{pid}/cgroup").read_text(errors="replace").strip()
        except OSError:
            cgroup = ""
        return cls(pid, uid, gid, cgroup.rpartition("/")[2][:80] or None)

    @property
    def has_uid_0(self) -> bool:
        """True for uid 0."""
        return self.uid == 0

    def to_log(self) -> Message:
        """Return the map for the audit log."""
        return {"pid": self.pid, "uid": self.uid, "gid": self.gid, "unit": self.unit}


def signals_delivered() -> contextlib.AbstractContextManager[None]:
    """Deliver SIGTERM, SIGINT and SIGHUP inside this block; the server blocks them everywhere else."""
    return _signal_mask(signal.SIG_UNBLOCK)


def signals_blocked() -> contextlib.AbstractContextManager[None]:
    """Block SIGTERM, SIGINT and SIGHUP in a handler. Otherwise Python would run the next handler inside it."""
    return _signal_mask(signal.SIG_BLOCK)


@contextlib.contextmanager
def _signal_mask(how: int) -> Iterator[None]:
    """Block or unblock SIGNALS inside this block. Even the call that unblocks them may run a handler that raises."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(how, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def bounded_close() -> Iterator[None]:
    """Interrupt system calls in this block every CLOSE_SECONDS.

    A client may pass open files although netagent accepts none. The kernel closes them in this process, when the data
    is read or the connection is closed. To close the last reference to a TCP socket with SO_LINGER, it waits for the
    socket's peer as long as the client has set; only a signal ends that wait. The server has a handler for SIGALRM.
    """
    signal.setitimer(signal.ITIMER_REAL, CLOSE_SECONDS, CLOSE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def close(sock: socket.socket) -> None:
    """Close a connection, and with it the passed files that were not read."""
    with bounded_close():
        sock.close()


def wait(files: Sequence[int], end: float) -> list[int]:
    """Return the descriptors that are readable (or closed by the peer) by `end`, a time of the monotonic clock."""
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    timeout = None if end == float("inf") else max(0, int((end - monotonic()) * 1000) + 1)
    with signals_delivered():
        return [file for file, _ in poll.poll(timeout)]


class Connection:
    """A client that is being served."""

    def __init__(self, sock: socket.socket, peer: Peer, pidfd: int) -> None:
        self._socket, self.peer = sock, peer
        self._peer_pidfd = pidfd  # readable when the peer's process has ended
        self.expires = monotonic() + LIFETIME_SECONDS
        sock.settimeout(ANSWER_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        close(self._socket)
        os.close(self._peer_pidfd)

    def readable(self, end: float) -> bool:
        """Wait for data; return False at `end`. Raises HungUp when the peer's process has ended.

        If a process passes its socket to another process, the connection still ends with the first one. Data that
        arrives after the connection has expired is not read.
        """
        if monotonic() >= self.expires:
            return False
        ready = wait([self._socket.fileno(), self._peer_pidfd], min(end, self.expires))
        if self._peer_pidfd in ready:
            raise HungUp
        return bool(ready)

    def receive(self, readable: Callable[[float], bool]) -> bytes:
        """Return the body of the next frame. Raises Malformed if it is too long or does not arrive in time."""
        end = monotonic() + FRAME_SECONDS
        (size,) = HEADER.unpack(self._exactly(HEADER.size, end, readable))
        if size > MAX_FRAME:
            raise Malformed(f"a frame of {size} bytes: the limit is {MAX_FRAME}")
        return self._exactly(size, end, readable)

    def _exactly(self, size: int, end: float, readable: Callable[[float], bool]) -> bytes:
        data = b""
        while len(data) < size:
            if monotonic() >= end or not readable(end):
                raise Malformed("a frame did not arrive in time")
            with bounded_close():
                chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise HungUp
            data += chunk
        return data

    def send(self, frame: bytes) -> None:
        """Send an answer. Raises OSError if the client does not take it within ANSWER_SECONDS."""
        self._socket.sendall(frame)


@dataclass(slots=True)
class WaitingRoot:
    """A connection of uid 0 that has not sent credentials yet."""

    sock: socket.socket
    peer: Peer
    end: float


class Listener:
    """Accepts connections, and returns those of the fetcher and of root of this host."""

    def __init__(self, sock: socket.socket, fetcher_uid: int, refuse: Callable[[Peer, str], None]) -> None:
        self._socket, self._fetcher_uid, self._refuse = sock, fetcher_uid, refuse
        self._waiting: list[WaitingRoot] = []
        sock.setblocking(False)

    def next(self, idle_end: float) -> Connection | None:
        """Return the next client to serve, or None if no client comes by `idle_end`."""
        while True:
            end = min([idle_end, *(each.end for each in self._waiting)])
            ready = wait([self._socket.fileno(), *(each.sock.fileno() for each in self._waiting)], end)
            connection = self._authenticated(ready)
            if connection is None and self._socket.fileno() in ready:
                connection = self._accept()
            if connection is not None:
                return connection
            if not self._waiting and monotonic() >= idle_end:
                return None

    def _accept(self) -> Connection | None:
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return None  # the client has disconnected already
        try:
            peer = Peer.of(sock)
            if peer.uid == self._fetcher_uid:
                return self._open(sock, peer)
            if not peer.has_uid_0:
                self._reject(sock, peer, f"uid {peer.uid} may not connect")
                return None
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except OSError:
            close(sock)
            return None
        if len(self._waiting) >= MAX_WAITING:
            oldest = self._waiting.pop(0)
            self._reject(oldest.sock, oldest.peer, "too many connections of uid 0 without credentials")
        self._waiting.append(WaitingRoot(sock, peer, monotonic() + ROOT_SECONDS))
        return None

    def _authenticated(self, ready: Sequence[int]) -> Connection | None:
        """Return a connection of uid 0 that has sent protocol.ROOT_CREDENTIALS; reject those that have not."""
        now = monotonic()
        for each in list(self._waiting):
            if each.sock.fileno() not in ready and now < each.end:
                continue
            self._waiting.remove(each)
            if each.sock.fileno() not in ready:
                self._reject(each.sock, each.peer, f"uid 0 sent no credentials within {ROOT_SECONDS:.0f} s")
            elif _sent_root_credentials(each.sock):
                return self._open(each.sock, each.peer)
            else:
                self._reject(each.sock, each.peer, "uid 0 may not connect from a container or another user namespace")
        return None

    def _open(self, sock: socket.socket, peer: Peer) -> Connection | None:
        try:
            return Connection(sock, peer, os.pidfd_open(peer.pid))
        except (OSError, ValueError):  # ESRCH: it has ended. EINVAL: pid 0, of another pid namespace
            close(sock)
            return None

    def _reject(self, sock: socket.socket, peer: Peer, reason: str) -> None:
        self._refuse(peer, reason)
        close(sock)


def _sent_root_credentials(sock: socket.socket) -> bool:
    """Return True if the first byte came with protocol.ROOT_CREDENTIALS. The kernel closes files passed with it."""
    try:
        with bounded_close():
            _, ancillary, _, _ = sock.recvmsg(1, _CREDENTIALS_SPACE, socket.MSG_DONTWAIT)
    except OSError:
        return False
    return ancillary == [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ROOT_CREDENTIALS)]
