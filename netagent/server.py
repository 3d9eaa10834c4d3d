"""The socket, the loop, and the one table of what a client can ask for.

One thread, one client at a time: a connection is served until it ends or falls silent, and the next one waits. So an
open transaction is always that of the client who is connected, and there is never more than one change under way.
What a client can make netagent do, hold or write down is bounded: requests, time, memory, audit lines.
"""

from __future__ import annotations

import _signal as signal  # `signal` wraps it in enums: 3 ms of start-up
import _socket as socket
import os
import pwd
import select
import sys
import time

from . import policy, protocol, sandbox, transaction
from . import settings as operator
from .audit import Audit
from .ledger import Ledger
from .protocol import HEADER, MAX_FRAME, TYPE_CHECKING, UCRED, VERSION, Malformed, raise_if
from .rtnetlink import Kernel

if TYPE_CHECKING:
    from .shapes import Any, Iterator, Message

FETCHER = "cloud-network"
# A frame that has begun must be whole by then, and who falls silent so long, or does not read its answer, is let go.
_FRAME_SECONDS, _ANSWER_SECONDS = 5.0, 1.0
_OPS_A_TOKEN = 64  # a request costs one token, and one more for so many operations
_CREDENTIALS = socket.CMSG_LEN(UCRED.size)  # room for SCM_CREDENTIALS, and for no file that somebody hands over


class Bucket:
    """A token bucket: `rate` tokens a second come in, and at most `size` stay."""

    def __init__(self, rate: float, size: float) -> None:
        self._rate, self._size, self._left, self._at = rate, size, size, time.monotonic()

    def take(self, tokens: int = 1) -> bool:
        """Whether there were so many; then they are gone."""
        now = time.monotonic()
        left = min(self._size, self._left + (now - self._at) * self._rate)
        self._left, self._at = left - tokens if left >= tokens else left, now
        return left >= tokens


class Server:
    """The state of the one loop."""

    def __init__(self, ledger: str, log: str, rtnetlink: int | None) -> None:
        self._settings, self._kernel = operator.load(), Kernel(rtnetlink)
        self._audit, self._ledger = Audit(log), Ledger(ledger)
        self._transaction = transaction.Transaction(self._kernel, self._ledger)
        self._peer: Message | None = None  # who is connected
        self._deadline = 0.0  # when the open transaction is taken back unless it has been confirmed
        self._requests_left, self._complaints_left = Bucket(20, 400), Bucket(1, 100)
        self._unlogged, self._stop = 0, False  # refusals for which the log had no patience left; whether to end
        self._signals, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the number arrives in the pipe
        if self._ledger.request:
            self._roll_back("netagent ended before the change was confirmed")

    def _handle(self, message: Message) -> Message:
        """Do one of protocol.REQUESTS: each has its method, and there is nothing else that a client can ask for."""
        if message["request"] in ("confirm", "rollback") and message["id"] != self._ledger.request:
            return self._refuse(message, "there is no such open transaction")
        try:
            answer: Message = getattr(self, f"_on_{message['request']}")(message)
            return answer
        except OSError as error:  # the audit log or the ledger cannot be written, or the kernel not be read
            if self._ledger.request:
                self._roll_back(str(error))
            allow = {"allow": '[Netagent] AuditFailure="continue"'} if "audit" in str(error) else {}
            return self._refuse(message, str(error), **allow)

    def _on_hello(self, message: Message) -> Message:
        return {"verdict": "ok" if message["version"] == VERSION else "refused", "version": VERSION}

    def _on_status(self, message: Message) -> Message:
        audit = self._audit
        return {"verdict": "ok", "open": self._ledger.request, "sequence": audit.sequence, "head": audit.head}

    def _view(self) -> policy.View:
        return policy.View(self._kernel, self._settings, operator.resolvers(), self._ledger.owned)

    def _on_apply(self, message: Message) -> Message:
        if self._ledger.request:
            return self._refuse(message, f"the transaction {self._ledger.request} is still open")
        ops, within, began, view = message["ops"], message["confirm_within"], time.monotonic(), self._view()
        try:
            undo = policy.check(ops, view)
        except policy.Refusal as refusal:
            why = dict(zip(("reason", "allow", "link"), refusal.args, strict=False))
            return self._refuse(message, position=view.position, **why)
        errnos, failed, stayed = self._transaction.apply(message["id"], ops, undo)
        answer: Message = {"verdict": "applied", "done": len(ops)}
        if failed is not None:
            errno = errnos[failed]
            answer = {"verdict": "rolled back", "done": 0, "position": failed, "errno": errno, "not_undone": stayed}
            answer["reason"] = os.strerror(errno) if errno else "the kernel could not be asked"
        done = [{**op, "errno": errno} for op, errno in zip(ops, errnos, strict=True)]
        self._log({**message, **answer, "duration_us": int((time.monotonic() - began) * 1e6), "ops": done})
        if failed is None and not within:
            self._transaction.commit()
        self._deadline = began + within
        return answer

    def _on_flush(self, message: Message) -> Message:
        if self._ledger.request:
            self._roll_back("a flush was asked for")
        return self._on_apply({**message, "ops": transaction.owned_ops(self._view()), "confirm_within": 0})

    def _on_confirm(self, message: Message) -> Message:
        self._log({**message, "verdict": "confirmed"})
        self._transaction.commit()
        return {"verdict": "confirmed"}

    def _on_rollback(self, message: Message) -> Message:
        self._roll_back("asked for")
        return {"verdict": "rolled back"}

    def _roll_back(self, reason: str) -> None:
        entry = {"request": "rollback", "id": self._ledger.request, "verdict": "rolled back", "reason": reason}
        self._log({**entry, "not_undone": self._transaction.undo()}, must=False)

    def _refuse(self, message: Message, reason: str, **more: Any) -> Message:
        """Refuse, and write it down; a flood of refusals is counted in the next line that is written."""
        answer = {"verdict": "refused", "reason": reason, **more}
        if self._complaints_left.take():
            self._log({**message, **answer}, must=False)
        else:
            self._unlogged += 1
        return answer

    def _log(self, entry: dict[str, Any], *, must: bool = True) -> None:
        """Write an audit line; OSError if it cannot be, and it `must`, and AuditFailure= says that this matters."""
        more = {"refusals_not_logged": self._unlogged} if self._unlogged else {}
        try:
            self._audit.write({"peer": self._peer, **entry, **more})
            self._unlogged = 0
        except OSError as error:
            reason = f"the audit log cannot be written: {error}"
            _say(reason)
            if must and self._settings.audit_failure == "refuse":
                raise OSError(reason) from None

    # The loop.

    def run(self, listener: socket.socket, fetcher_uid: int, idle: float) -> None:
        """Serve until SIGTERM or SIGINT, or until nobody comes for `idle` seconds."""
        while self._wait(listener, time.monotonic() + idle):
            sock = socket.socket(fileno=listener._accept()[0])  # type: ignore[attr-defined]  # socket.accept()'s core
            try:
                sock.settimeout(_ANSWER_SECONDS)
                self._serve(sock, fetcher_uid)
            except OSError:
                pass  # it hung up, or does not take its answer
            if self._ledger.request:
                self._roll_back("netagent was told to stop" if self._stop else "the client went away unconfirmed")
            sock.close()
            self._peer = None

    def _serve(self, sock: socket.socket, fetcher_uid: int) -> None:
        pid, uid, gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        unit = operator.read(f"/proc/{pid}/cgroup").strip().rpartition("/")[2][:80]  # systemd's
        self._peer = {"pid": pid, "uid": uid, "gid": gid, "unit": unit or None}
        if uid != fetcher_uid and not (uid == 0 and self._is_root(sock)):
            where = "" if uid else " from a container or another user namespace"
            self._refuse({"request": "connect"}, f"uid {uid} may not connect{where}")
            return
        try:
            for message in self._requests(sock):
                sock.sendall(protocol.encode(self._handle(message)))
        except Malformed as error:
            sock.sendall(protocol.encode(self._refuse({"request": None}, str(error))))

    def _is_root(self, sock: socket.socket) -> bool:
        """Whether uid 0 is root of this host and not a container's: its first byte must come with protocol.ROOT, and
        the kernel lets nobody without CAP_SYS_ADMIN over our process numbers claim to be process 1 (net/core/scm.c)."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        found = sock.recvmsg(1, _CREDENTIALS)[1] if self._wait(sock, time.monotonic() + _FRAME_SECONDS) else []
        return [data for _, _, data in found] == [protocol.ROOT]

    def _requests(self, sock: socket.socket) -> Iterator[Message]:
        """What the client asks for, until it hangs up or falls silent, or we are to stop."""
        while True:
            end = self._deadline if self._ledger.request else time.monotonic() + _FRAME_SECONDS
            heard = self._wait(sock, end)
            if self._ledger.request and time.monotonic() >= end:  # whatever else it had to say
                self._roll_back("not confirmed in time")
            elif heard:
                yield self._request(sock)
            else:
                return

    def _request(self, sock: socket.socket) -> Message:
        """The next request; Malformed says what is wrong with it."""
        end = time.monotonic() + _FRAME_SECONDS
        (size,) = HEADER.unpack(self._receive(sock, HEADER.size, end))
        raise_if(size > MAX_FRAME, Malformed, "a frame of {} bytes: the limit is {}", size, MAX_FRAME)
        message = protocol.decode(self._receive(sock, size, end))
        protocol.check_request(message)
        patient = self._requests_left.take(1 + len(message.get("ops", ())) // _OPS_A_TOKEN)
        too_many = "too many requests: 20 a second, and one less for each {} operations"
        raise_if(not patient, Malformed, too_many, _OPS_A_TOKEN)
        return message

    def _receive(self, sock: socket.socket, size: int, end: float) -> bytes:
        data = b""
        while len(data) < size:
            raise_if(not self._wait(sock, end), Malformed, "a frame did not arrive in time")
            chunk = sock.recv(size - len(data))
            raise_if(not chunk, ConnectionError, "hung up")
            data += chunk
        return data

    def _wait(self, sock: socket.socket, end: float) -> bool:
        """Whether there is something to read by then; signals are seen to meanwhile, and SIGTERM ends the wait."""
        while not self._stop:
            left = min(max(0.0, end - time.monotonic()), 3600.0)
            ready, _, _ = select.select([sock.fileno(), self._signals], [], [], left)
            if self._signals in ready:
                numbers = os.read(self._signals, 64)
                self._stop = signal.SIGTERM in numbers or signal.SIGINT in numbers
                if signal.SIGHUP in numbers:
                    self._reload()
            elif ready or not left:
                return bool(ready)
        return False

    def _reload(self) -> None:
        try:
            self._audit.reopen()
            self._settings = operator.load()
        except (OSError, SystemExit) as error:
            _say(f"{error}; going on with what was open and set before")


def _say(text: str) -> None:
    print(f"cloud-network-netagent: {text}", file=sys.stderr, flush=True)


def _notify(state: bytes) -> None:
    """sd_notify(3): tell systemd, where there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        where = "\0" + path[1:] if path[0] == "@" else path
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).sendto(state, where)


def main() -> None:
    """Serve on what systemd passed, or `start` in its place: the socket, and perhaps one of rtnetlink."""
    passed = os.environ.get("LISTEN_FDS") if os.environ.get("LISTEN_PID") == str(os.getpid()) else None
    raise_if(passed not in ("1", "2"), SystemExit, "{}: no socket was passed (LISTEN_FDS=)", sandbox.USER)
    fetcher_uid, runtime, logs = pwd.getpwnam(FETCHER)[2], os.environ["RUNTIME_DIRECTORY"], os.environ["LOGS_DIRECTORY"]
    sandbox.enter([runtime, logs])
    server = Server(f"{runtime}/ledger", f"{logs}/audit.log", 4 if passed == "2" else None)
    _notify(b"READY=1")
    _say("ready")
    # It leaves after so long without a client: systemd starts it again for the next one.
    server.run(socket.socket(fileno=3), fetcher_uid, float(os.environ.get("IDLE_SECONDS", 60)))
    _notify(b"STOPPING=1")
