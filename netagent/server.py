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
import time

from . import audit, policy, rtnetlink, sandbox, settings, transaction
from . import old_protocol as protocol
from .old_protocol import HEADER, MAX_FRAME, TYPE_CHECKING, UCRED, VERSION, Malformed, raise_if

if TYPE_CHECKING:
    from .shapes import Any, Iterator, Message

# A frame that has begun must be whole by then, and who falls silent so long, or does not read its answer, is let go.
_FRAME_SECONDS, _ANSWER_SECONDS = 5.0, 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
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

    def __init__(self, ledger: str, log: str, kernel: rtnetlink.Kernel) -> None:
        self._settings, self._kernel = settings.load(), kernel
        self._audit, self._transaction = audit.Audit(log), transaction.Transaction(kernel, ledger)
        self._peer: Message | None = None  # who is connected
        self._deadline = 0.0  # when the open transaction is taken back unless it has been confirmed
        self._requests_left, self._complaints_left = Bucket(20, 400), Bucket(1, 100)
        self._unlogged = 0  # refusals for which the log had no patience left
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # but while it waits
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # KeyboardInterrupt, as SIGINT
        signal.signal(signal.SIGHUP, lambda *_: self._reload())
        self._roll_back("netagent ended before the change was confirmed")

    def _handle(self, message: Message) -> Message:
        """Do one of protocol.REQUESTS: each has its method, and there is nothing else that a client can ask for."""
        if message["request"] in ("confirm", "rollback") and message["id"] != self._transaction.request:
            return self._refuse(message, "there is no such open transaction")
        try:
            return getattr(self, f"_on_{message['request']}")(message)  # type: ignore[no-any-return]
        except OSError as error:  # the audit log or the ledger cannot be written, or the kernel not be read
            self._roll_back(str(error))
            allow = {"allow": '[Netagent] AuditFailure="continue"'} if "audit" in str(error) else {}
            return self._refuse(message, str(error), **allow)

    def _on_hello(self, message: Message) -> Message:
        return {"verdict": "ok" if message["version"] == VERSION else "refused", "version": VERSION}

    def _on_status(self, message: Message) -> Message:
        log = self._audit
        return {"verdict": "ok", "open": self._transaction.request, "sequence": log.sequence, "head": log.head}

    def _view(self) -> policy.View:
        return policy.View(self._kernel, self._settings, settings.resolvers(), self._transaction.owned)

    def _on_apply(self, message: Message) -> Message:
        if self._transaction.request:
            return self._refuse(message, f"the transaction {self._transaction.request} is still open")
        ops, within, began, view = message["ops"], message["confirm_within"], time.monotonic(), self._view()
        try:
            undo = policy.check(ops, view)
        except policy.Refusal as refusal:
            why = dict(zip(("reason", "allow", "link"), refusal.args, strict=False))
            return self._refuse(message, position=view.position, **why)
        errnos, answer = self._transaction.apply(message["id"], ops, undo)
        done = [{**op, "errno": errno} for op, errno in zip(ops, errnos, strict=True)]
        self._log({**message, **answer, "duration_us": int((time.monotonic() - began) * 1e6), "ops": done})
        if answer["verdict"] == "applied" and not within:
            self._transaction.commit()
        self._deadline = began + within
        return answer

    def _on_flush(self, message: Message) -> Message:
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
        """Take back what is open, if anything is."""
        entry = {"request": "rollback", "id": self._transaction.request, "verdict": "rolled back", "reason": reason}
        if self._transaction.request:
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
            sandbox.say(reason)
            if must and self._settings.audit_failure == "refuse":
                raise OSError(reason) from None

    # The loop.

    def run(self, listener: socket.socket, fetcher_uid: int, idle: float) -> None:
        """Serve until SIGTERM or SIGINT, or until nobody comes for `idle` seconds."""
        try:
            while self._wait(listener, time.monotonic() + idle):
                sock = socket.socket(fileno=listener._accept()[0])  # type: ignore[attr-defined]  # accept()'s core
                try:
                    sock.settimeout(_ANSWER_SECONDS)
                    self._serve(sock, fetcher_uid)
                except OSError:
                    pass  # it hung up, or does not take its answer
                self._roll_back("the client went away unconfirmed")
                sock.close()
        except KeyboardInterrupt:
            self._roll_back("netagent was told to stop")

    def _serve(self, sock: socket.socket, fetcher_uid: int) -> None:
        pid, uid, gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        unit = settings.read(f"/proc/{pid}/cgroup").strip().rpartition("/")[2][:80]  # systemd's
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
            end = self._deadline if self._transaction.request else time.monotonic() + _FRAME_SECONDS
            heard = self._wait(sock, end)
            if self._transaction.request and time.monotonic() >= end:  # whatever else it had to say
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
        message: Message = protocol.decode(self._receive(sock, size, end))
        protocol.check_request(message)
        patient = self._requests_left.take(1 + len(message.get("ops", ())) // _OPS_A_TOKEN)
        raise_if(not patient, Malformed, "too many requests: 20 a second; {} operations count as one", _OPS_A_TOKEN)
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
        """Whether there is something to read by then. Signals are seen to here and nowhere else."""
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            left = None if end == float("inf") else max(0.0, end - time.monotonic())
            return bool(select.select([sock], [], [], left)[0])
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def _reload(self) -> None:
        try:
            self._audit.reopen()
            self._settings = settings.load()
        except (OSError, SystemExit) as error:
            sandbox.say(f"{error}; going on with what was open and set before")


def main() -> None:
    """Serve on the sockets that systemd passed, or `start` in its place (sd_listen_fds(3)): ours, and rtnetlink's."""
    passed = os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS")
    raise_if(passed != "2", SystemExit, "{}: started without the two sockets of its socket unit", sandbox.USER)
    runtime, logs = os.environ["RUNTIME_DIRECTORY"], os.environ["LOGS_DIRECTORY"]
    fetcher_uid, manager = pwd.getpwnam("cloud-network")[2], socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sandbox.enter([runtime, logs])
    server = Server(f"{runtime}/ledger", f"{logs}/audit.log", rtnetlink.Kernel(4))
    if told := os.environ.get("NOTIFY_SOCKET"):  # sd_notify(3)
        manager.sendto(b"READY=1", "\0" + told[1:] if told[0] == "@" else told)
    sandbox.say("ready")
    # It leaves after so long without a client: systemd starts it again for the next one.
    server.run(socket.socket(fileno=3), fetcher_uid, float(os.environ.get("IDLE_SECONDS", 60)))
