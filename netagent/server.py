"""The socket, the loop, and the one table of what a client can ask for.

Single-threaded: one request is answered before the next is read, so there is never more than one change under way.
"""

from __future__ import annotations

import _signal as signal  # `signal` wraps it in enums: 3 ms of start-up
import _socket as socket
import os
import select
import sys
import time
from struct import Struct

from . import policy, sandbox, transaction
from . import settings as operator
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
_ANSWER_SECONDS = 1.0  # who does not read its answer is dropped


class Client:
    """One connection: who it is, and what of its next frame has arrived."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket, self.fd = sock, sock.fileno()
        self.pid, self.uid, self.gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        self.unit: str | None = None  # the systemd unit, where /proc shows us the peer
        try:
            with open(f"/proc/{self.pid}/cgroup") as file:
                self.unit = file.read().strip().rpartition("/")[2][:80] or None
        except OSError:
            pass
        self.buffer = bytearray()
        self.deadline: float | None = None  # of the frame that has begun

    def read(self) -> bool:
        """Take what has arrived; False when the client hung up."""
        data = self.socket.recv(1 << 16)
        if data and self.deadline is None:
            self.deadline = time.monotonic() + _FRAME_SECONDS
        self.buffer += data
        return bool(data)

    def frame(self) -> bytes | None:
        """The next whole frame's body, or None; Malformed for one that is too large."""
        (size,) = HEADER.unpack_from(self.buffer) if len(self.buffer) >= HEADER.size else (MAX_FRAME,)
        if size > MAX_FRAME:
            raise Malformed(f"a frame of {size} bytes: the limit is {MAX_FRAME}")
        end = HEADER.size + size
        if len(self.buffer) < end:
            return None
        body = bytes(self.buffer[HEADER.size : end])
        del self.buffer[:end]
        self.deadline = time.monotonic() + _FRAME_SECONDS if self.buffer else None
        return body


class Server:
    """The state of the one loop."""

    def __init__(self, listener: socket.socket, runtime: str, fetcher_uid: int, log: str) -> None:
        self._settings = operator.load()
        self._kernel, self._audit = Kernel(), Audit(log)
        self._ledger = Ledger(os.path.join(runtime, "ledger"))
        self._transaction = transaction.Transaction(self._kernel, self._ledger)
        self._listener, self._fetcher_uid = listener, fetcher_uid
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._clients: dict[int, Client] = {}
        self._owner: Client | None = None  # of the open transaction,
        self._ops: list[Op] = []  # its operations,
        self._deadline = 0.0  # and when it is taken back unless it has been confirmed
        self._stop = False
        # What a client may ask for: all of it.
        self._handlers: dict[str, Callable[[Client, Message], Message]] = {
            "hello": lambda _, message: {
                "verdict": "ok" if message["version"] == VERSION else "refused",
                "version": VERSION,
            },
            "apply": self._apply,
            "confirm": self._confirm,
            "rollback": self._rollback,
            "flush": self._flush,
            "status": self._status,
        }
        if self._ledger.request is not None:
            self._roll_back("netagent ended before the change was confirmed")

    def _status(self, client: Client, message: Message) -> Message:
        audit = self._audit
        return {"verdict": "ok", "open": self._ledger.request, "sequence": audit.sequence, "head": audit.head}

    def _view(self) -> policy.View:
        self._settings.resolvers = operator.resolvers()
        return policy.View(self._kernel, self._settings, self._ledger.owned)

    def _apply(self, client: Client, message: Message) -> Message:
        if self._ledger.request is not None:
            return self._refuse(client, message, f"the transaction {self._ledger.request} is still open")
        try:
            undo = policy.check(message["ops"], self._view())
        except policy.Refusal as refusal:
            more = {"allow": refusal.allow} if refusal.allow else {}
            return self._refuse(client, message, refusal.reason, position=refusal.position, **more)
        return self._change(client, message, message["ops"], undo, message["confirm_within"])

    def _flush(self, client: Client, message: Message) -> Message:
        if self._ledger.request is not None:
            self._roll_back("a flush was asked for", client)
        view = self._view()
        ops, undo = [], []
        for op in transaction.owned_ops(self._kernel, view):
            try:
                undo += policy.check([op], view)
                ops.append(op)
            except policy.Refusal as refusal:  # on an excluded link, or taking somebody else's along
                self._refuse(client, {**message, "ops": [op]}, refusal.reason)
        return self._change(client, message, ops, undo, 0)

    def _change(self, client: Client, message: Message, ops: list[Op], undo: list[Op], within: int) -> Message:
        began = time.monotonic()
        try:
            outcome = self._transaction.apply(message["id"], ops, undo)
        except OSError as error:  # the ledger could not be written: the kernel has not been touched
            return self._refuse(client, message, f"the ledger cannot be written: {error}")
        answer: Message = {"verdict": "applied" if outcome.failed is None else "rolled back", "done": len(ops)}
        if outcome.failed is not None:
            errno = outcome.results[outcome.failed]
            reason = os.strerror(errno) if errno else "the kernel could not be asked"
            answer |= {"done": 0, "position": outcome.failed, "errno": errno, "reason": reason}
        if outcome.not_undone:
            answer["not_undone"] = [{**op, "errno": errno} for op, errno in outcome.not_undone]
        entry = {"request": message["request"], "id": message["id"], **answer, "confirm_within": within}
        entry["duration_us"] = int((time.monotonic() - began) * 1e6)
        entry["ops"] = [{**op, "errno": errno} for op, errno in zip(ops, outcome.results, strict=True)]
        try:
            self._log(client, entry)
        except OSError as error:
            self._transaction.undo()
            reason = f"the audit log cannot be written: {error}"
            return {"verdict": "refused", "reason": reason, "allow": '[Netagent] AuditFailure="continue"'}
        if outcome.failed is None and within:
            self._owner, self._ops, self._deadline = client, ops, began + within
        elif outcome.failed is None:
            self._transaction.commit(ops)
        return answer

    def _confirm(self, client: Client, message: Message) -> Message:
        if self._owner is not client or self._ledger.request != message["id"]:
            return self._refuse(client, message, "this client has no such open transaction")
        self._log(client, {**message, "verdict": "confirmed"})
        self._transaction.commit(self._ops)
        self._owner = None
        return {"verdict": "confirmed"}

    def _rollback(self, client: Client, message: Message) -> Message:
        if self._owner is not client or self._ledger.request != message["id"]:
            return self._refuse(client, message, "this client has no such open transaction")
        self._roll_back("asked for", client)
        return {"verdict": "rolled back"}

    def _refuse(self, client: Client, message: Message, reason: str, **more: Any) -> Message:
        answer = {"verdict": "refused", "reason": reason, **more}
        self._log(client, {**message, **answer})
        return answer

    def _roll_back(self, reason: str, client: Client | None = None) -> None:
        entry: dict[str, Any] = {"request": "rollback", "id": self._ledger.request, "verdict": "rolled back"}
        self._owner = None
        stayed = [{**op, "errno": errno} for op, errno in self._transaction.undo()]
        self._log(client, {**entry, "reason": reason, **({"not_undone": stayed} if stayed else {})}, must=False)

    def _log(self, client: Client | None, entry: dict[str, Any], *, must: bool = True) -> None:
        """Write an audit line; OSError if it cannot be, and it `must`, and AuditFailure= says that this matters."""
        peer = {"pid": client.pid, "uid": client.uid, "gid": client.gid, "unit": client.unit} if client else None
        try:
            self._audit.write({"peer": peer, **entry})
        except OSError as error:
            _say(f"the audit log cannot be written: {error}")
            if must and self._settings.audit_failure == "refuse":
                raise

    # The loop.

    def _accept(self) -> None:
        fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept() wraps
        client = Client(socket.socket(fileno=fd))
        client.socket.settimeout(_ANSWER_SECONDS)
        reason = None
        if client.uid not in (self._fetcher_uid, 0):
            reason = f"uid {client.uid} may not connect"
        elif len(self._clients) >= _MAX_CONNECTIONS:
            reason = f"{_MAX_CONNECTIONS} clients are connected already"
        if reason is not None:
            self._log(client, {"request": "connect", "verdict": "refused", "reason": reason}, must=False)
            client.socket.close()
            return
        self._clients[fd] = client
        self._poll.register(fd, select.POLLIN)

    def _drop(self, client: Client, last_word: bytes = b"") -> None:
        self._poll.unregister(client.fd)
        del self._clients[client.fd]
        try:
            if last_word:
                client.socket.sendall(last_word)
        except OSError as error:
            _say(f"client {client.pid}: {error}")
        client.socket.close()
        if self._owner is client:
            self._roll_back("the client went away before it confirmed", client)

    def _serve(self, client: Client) -> None:
        try:
            if not client.read():
                self._drop(client)
                return
            while (body := client.frame()) is not None:
                message = decode(body)
                check_request(message)
                client.socket.sendall(encode(self._handlers[message["request"]](client, message)))
        except Malformed as error:
            self._log(client, {"request": None, "verdict": "refused", "reason": str(error)}, must=False)
            self._drop(client, encode({"verdict": "refused", "reason": str(error)}))
        except OSError as error:
            _say(f"client {client.pid}: {error}")
            self._drop(client)

    def _expire(self) -> float:
        """Do what is due; milliseconds until something else will be, or -1."""
        now = time.monotonic()
        if self._owner is not None and now >= self._deadline:
            self._roll_back("not confirmed in time", self._owner)
        for client in list(self._clients.values()):
            if client.deadline is not None and now >= client.deadline:
                reason = "a frame did not arrive in time"
                self._log(client, {"request": None, "verdict": "refused", "reason": reason}, must=False)
                self._drop(client)
        due = [client.deadline for client in self._clients.values() if client.deadline is not None]
        due += [self._deadline] if self._owner is not None else []
        return max(0.0, min(due) - now) * 1000 + 1 if due else -1

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reads the settings and opens the audit log anew."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the number arrives in the pipe
        self._poll.register(read, select.POLLIN)
        while not self._stop:
            for fd, _ in self._poll.poll(self._expire()):
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._clients:
                    self._serve(self._clients[fd])
                elif fd == read:
                    self._signal(os.read(read, 64))
        if self._ledger.request is not None:
            self._roll_back("netagent was told to stop")

    def _signal(self, numbers: bytes) -> None:
        self._stop = signal.SIGTERM in numbers or signal.SIGINT in numbers
        if signal.SIGHUP in numbers:
            try:
                self._audit.reopen()
                self._settings = operator.load()
            except (OSError, SystemExit) as error:
                _say(f"{error}; going on with what was open and set before")


def _say(text: str) -> None:
    print(f"cloud-network-netagent: {text}", file=sys.stderr, flush=True)


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
        asked = sys.argv[1] in ("-h", "--help")
        print(sys.modules["cloud_network.netagent"].__doc__ if asked else "usage: cloud-network-netagent [--help]")
        raise SystemExit(0 if asked else 2)
    uid, gid = sandbox.user_id(sandbox.USER)
    fetcher_uid, _ = sandbox.user_id(FETCHER)
    runtime = os.path.dirname(SOCKET)
    sandbox.own_directory(runtime, uid, gid)
    sandbox.own_directory(os.path.dirname(AUDIT), uid, gid)
    listener = _listen(SOCKET)
    sandbox.enter(uid, gid, [runtime, os.path.dirname(AUDIT)])
    server = Server(listener, runtime, fetcher_uid, AUDIT)
    _notify(b"READY=1")
    _say("ready")
    server.run()
    _notify(b"STOPPING=1")
