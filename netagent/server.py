"""The socket, the loop, and the one table of what a client can ask for.

Single-threaded: one request is answered before the next is read, so there is never more than one change under way.
"""

from __future__ import annotations

import _socket as socket
import os
import select
import signal
import sys
import time
from struct import Struct

from . import policy, sandbox, settings, transaction
from .audit import Audit
from .ledger import Ledger
from .protocol import HEADER, MAX_FRAME, SOCKET, VERSION, Malformed, check_request, decode, encode
from .rtnetlink import Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .protocol import Message, Op

FETCHER = "cloud-network"
AUDIT = "/var/log/cloud-network/audit.log"
UCRED = Struct("=iII")  # struct ucred of linux/socket.h: pid, uid, gid
_MAX_CONNECTIONS = 4
_FRAME_SECONDS = 5.0  # a frame that has begun must be whole by then
_READ = 1 << 16


class Connection:
    """One client: who it is, and what of its next frame has arrived."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.pid, self.uid, self.gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        self.unit = _unit(self.pid)
        self.buffer = bytearray()
        self.began = 0.0

    def describe(self) -> dict[str, Any]:
        """The peer as the audit log names it."""
        return {"pid": self.pid, "uid": self.uid, "gid": self.gid, "unit": self.unit}

    def frame(self) -> bytes | None:
        """The next whole frame's body, or None; Malformed for one that is too large."""
        if len(self.buffer) < HEADER.size:
            return None
        (size,) = HEADER.unpack_from(self.buffer)
        if size > MAX_FRAME:
            raise Malformed(f"a frame of {size} bytes: the limit is {MAX_FRAME}")
        if len(self.buffer) < HEADER.size + size:
            return None
        body = bytes(self.buffer[HEADER.size : HEADER.size + size])
        del self.buffer[: HEADER.size + size]
        self.began = time.monotonic()
        return body


def _unit(pid: int) -> str | None:
    """The systemd unit of a process, where /proc shows it to us."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            return file.read().strip().rpartition("/")[2][:80] or None
    except OSError:
        return None


class Server:
    """The state of the one loop."""

    def __init__(self, listener: socket.socket, runtime: str, fetcher_uid: int, log: str) -> None:
        self.settings = settings.load()
        self.kernel = Kernel()
        self.audit = Audit(log)
        self.ledger = Ledger(os.path.join(runtime, "ledger"))
        self.transaction = transaction.Transaction(self.kernel, self.ledger)
        self._listener, self._fetcher_uid = listener, fetcher_uid
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._connections: dict[int, Connection] = {}
        self._owner: int | None = None  # fd of the client whose transaction is open
        self._deadline = 0.0
        self._stop = False
        if self.ledger.request is not None:
            self._roll_back("netagent ended before the change was confirmed")

    # What a client may ask for: all of it.
    def _handlers(self) -> dict[str, Callable[[Connection, Message], Message]]:
        return {
            "hello": self._hello,
            "apply": self._apply,
            "confirm": self._confirm,
            "rollback": self._rollback,
            "flush": self._flush,
            "status": self._status,
        }

    def _hello(self, client: Connection, message: Message) -> Message:
        return {"verdict": "ok" if message["version"] == VERSION else "refused", "version": VERSION}

    def _status(self, client: Connection, message: Message) -> Message:
        return {
            "verdict": "ok",
            "open": self.ledger.request,
            "sequence": self.audit.sequence,
            "head": self.audit.head,
        }

    def _apply(self, client: Connection, message: Message) -> Message:
        if self.ledger.request is not None:
            return self._refused(client, message, f"the transaction {self.ledger.request} is still open")
        self.settings.resolvers = settings.resolvers()
        ops: list[Op] = message["ops"]
        view = policy.View(self.kernel, self.settings, self.ledger.owned)
        try:
            undo = policy.check(ops, view)
        except policy.Refusal as refusal:
            return self._refused(client, message, refusal.reason, position=refusal.position, allow=refusal.allow)
        return self._change(client, message, ops, undo)

    def _flush(self, client: Connection, message: Message) -> Message:
        if self.ledger.request is not None:
            self._roll_back("a flush was asked for")
        view = policy.View(self.kernel, self.settings, self.ledger.owned)
        ops = transaction.owned_ops(self.kernel, view)
        undo = policy.check(ops, view)
        return self._change(client, {**message, "ops": ops, "confirm_within": 0}, ops, undo)

    def _change(self, client: Connection, message: Message, ops: list[Op], undo: list[Op]) -> Message:
        began = time.monotonic()
        outcome = self.transaction.apply(message["id"], ops, undo)
        within = message["confirm_within"]
        answer: Message = {"verdict": "applied" if outcome.failed is None else "rolled back", "ops": len(ops)}
        if outcome.failed is not None:
            errno = outcome.results[outcome.failed]
            reason = os.strerror(errno) if errno else "the kernel could not be asked"
            answer.update(position=outcome.failed, errno=errno, reason=reason)
        if outcome.not_undone:
            answer["not_undone"] = [{**op, "errno": errno} for op, errno in outcome.not_undone]
        logged = [{**op, "errno": errno} for op, errno in zip(ops, outcome.results, strict=True)]
        entry = {
            "request": message["request"], "id": message["id"], **answer, "ops": logged,
            "confirm_within": within, "duration_us": int((time.monotonic() - began) * 1e6),
        }  # fmt: skip
        try:
            self._log(client, entry)
        except OSError as error:
            self.transaction.undo()
            return {
                "verdict": "refused",
                "reason": f"the audit log cannot be written: {error}",
                "allow": "[Netagent] AuditFailure=continue",
            }
        if outcome.failed is None:
            if within:
                self._owner, self._deadline, self._open_ops = client.socket.fileno(), began + within, ops
            else:
                self.transaction.commit(ops)
        return answer

    def _confirm(self, client: Connection, message: Message) -> Message:
        if self.ledger.request != message["id"] or self._owner != client.socket.fileno():
            return self._refused(client, message, "there is no such open transaction of this client")
        self._log(client, {"request": "confirm", "id": message["id"], "verdict": "confirmed"})
        self.transaction.commit(self._open_ops)
        self._owner = None
        return {"verdict": "confirmed"}

    def _rollback(self, client: Connection, message: Message) -> Message:
        if self.ledger.request != message["id"] or self._owner != client.socket.fileno():
            return self._refused(client, message, "there is no such open transaction of this client")
        self._roll_back("asked for", client)
        return {"verdict": "rolled back"}

    def _refused(self, client: Connection, message: Message, reason: str, **more: Any) -> Message:
        answer = {
            "verdict": "refused",
            "reason": reason,
            **{key: value for key, value in more.items() if value is not None},
        }
        self._log(client, {**message, **answer})
        return answer

    def _roll_back(self, reason: str, client: Connection | None = None) -> None:
        request = self.ledger.request
        stayed = self.transaction.undo()
        self._owner = None
        entry: dict[str, Any] = {
            "request": "rollback",
            "id": request,
            "verdict": "rolled back",
            "reason": reason,
        }
        if stayed:
            entry["not_undone"] = [{**op, "errno": errno} for op, errno in stayed]
        self._log(client, entry)

    def _log(self, client: Connection | None, entry: dict[str, Any]) -> None:
        """Write an audit line; OSError if it cannot be written and AuditFailure= says that this matters."""
        try:
            self.audit.write({"peer": client.describe() if client else None, **entry})
        except OSError as error:
            print(
                f"cloud-network-netagent: the audit log cannot be written: {error}",
                file=sys.stderr,
                flush=True,
            )
            if self.settings.audit_failure == "refuse":
                raise

    # The loop.
    def _accept(self) -> None:
        fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept() wraps
        client = Connection(socket.socket(fileno=fd))
        client.socket.settimeout(1.0)  # for answers: who does not read them is dropped
        reason = None
        if client.uid not in (self._fetcher_uid, 0):
            reason = f"uid {client.uid} may not connect"
        elif len(self._connections) >= _MAX_CONNECTIONS:
            reason = f"{_MAX_CONNECTIONS} clients are connected already"
        if reason is not None:
            self._log(client, {"request": "connect", "verdict": "refused", "reason": reason})
            client.socket.close()
            return
        self._connections[fd] = client
        self._poll.register(fd, select.POLLIN)

    def _drop(self, client: Connection) -> None:
        fd = client.socket.fileno()
        if self._owner == fd:
            self._roll_back("the client went away before it confirmed", client)
        self._poll.unregister(fd)
        del self._connections[fd]
        client.socket.close()

    def _serve(self, client: Connection) -> None:
        try:
            data = client.socket.recv(_READ)
            if not data:
                self._drop(client)
                return
            if not client.buffer:
                client.began = time.monotonic()
            client.buffer += data
            while (body := client.frame()) is not None:
                message = decode(body)
                check_request(message)
                client.socket.sendall(encode(self._handlers()[message["request"]](client, message)))
        except Malformed as error:
            self._log(client, {"request": None, "verdict": "refused", "reason": str(error)})
            client.socket.sendall(encode({"verdict": "refused", "reason": str(error)}))
            self._drop(client)
        except OSError as error:
            print(f"cloud-network-netagent: client {client.pid}: {error}", file=sys.stderr, flush=True)
            self._drop(client)

    def _expire(self) -> float:
        """Do what is due; milliseconds until something else will be."""
        now = time.monotonic()
        if self._owner is not None and now >= self._deadline:
            self._roll_back("not confirmed in time", self._connections.get(self._owner))
        due = [self._deadline] if self._owner is not None else []
        for client in list(self._connections.values()):
            if client.buffer:
                if now >= client.began + _FRAME_SECONDS:
                    self._log(
                        client,
                        {"request": None, "verdict": "refused", "reason": "a frame did not arrive in time"},
                    )
                    self._drop(client)
                else:
                    due.append(client.began + _FRAME_SECONDS)
        return max(0.0, min(due) - now) * 1000 + 1 if due else -1

    def stop(self, *_: object) -> None:
        """End the loop; an open transaction is taken back first."""
        self._stop = True

    def run(self) -> None:
        """Serve until told to stop."""
        while not self._stop:
            for fd, _ in self._poll.poll(self._expire()):
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._connections:
                    self._serve(self._connections[fd])
                else:  # the wake-up pipe
                    os.read(fd, 64)
        if self.ledger.request is not None:
            self._roll_back("netagent was told to stop")

    def watch_signals(self) -> None:
        """SIGTERM and SIGINT stop the loop, SIGHUP reads the settings and opens the audit log anew."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write)
        self._poll.register(read, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        signal.signal(signal.SIGHUP, self._reload)

    def _reload(self, *_: object) -> None:
        try:
            self.settings = settings.load()
        except SystemExit as error:
            print(f"{error}; going on with the settings from before", file=sys.stderr, flush=True)
        self.audit.reopen()


def _listen(path: str) -> socket.socket:
    """The socket that systemd passed, or our own at `path`. Anyone may connect: who it is decides, and is logged."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=3)
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(path)
    os.chmod(path, 0o666)  # noqa: S103  # a refusal is audited, so strangers must get as far as that
    listener.listen(8)
    return listener


def _notify(state: bytes) -> None:
    """sd_notify(3): tell systemd, where there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        notifier = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        notifier.sendto(state, "\0" + path[1:] if path[0] == "@" else path)
        notifier.close()


def main() -> None:
    """Entry point of cloud-network-netagent: no options, no privilege but CAP_NET_ADMIN."""
    if len(sys.argv) > 1:
        print(__doc__ if sys.argv[1] in ("-h", "--help") else "usage: cloud-network-netagent", file=sys.stderr)
        raise SystemExit(0 if sys.argv[1] in ("-h", "--help") else 2)
    uid, gid = sandbox.user_id(sandbox.USER)
    fetcher_uid, _ = sandbox.user_id(FETCHER)
    runtime = os.path.dirname(SOCKET)
    sandbox.own_directory(runtime, uid, gid)
    sandbox.own_directory(os.path.dirname(AUDIT), uid, gid)
    listener = _listen(SOCKET)
    sandbox.enter(uid, gid)
    server = Server(listener, runtime, fetcher_uid, AUDIT)
    server.watch_signals()
    _notify(b"READY=1")
    print("cloud-network-netagent: ready", file=sys.stderr, flush=True)
    server.run()
    _notify(b"STOPPING=1")
