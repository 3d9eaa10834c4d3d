"""The server loop: one client at a time, one handler per request, and the state that is kept between requests.

A connection is served until it ends, is silent for too long or expires; other connections wait. So an open transaction
always belongs to the connected client. Requests, time, memory and audit lines are bounded.
"""

from __future__ import annotations

import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

from . import protocol, request_policy, sandbox, settings
from .audit import MARKS_PER_OP, OPS_PER_LINE, Audit, cost
from .connection import FRAME_SECONDS, SIGNALS, Connection, HungUp, Listener, Peer, signals_blocked
from .flush import flush_operations
from .kernel import DumpError, Kernel
from .keys import AuditFailure
from .ledger import Ledger
from .operations import ForwardedReplies, IPAddress, Malformed, Operation
from .protocol import (
    MAX_REFUSALS,
    Answer,
    Apply,
    Check,
    CheckAnswer,
    Confirm,
    Done,
    Failed,
    Flush,
    Hello,
    HelloAnswer,
    Message,
    Refused,
    Remaining,
    Request,
    Rollback,
    Status,
    StatusAnswer,
    Verdict,
)
from .rate_limit import TokenBucket
from .transaction import Plan, Transaction
from .view import OutsideState, Snapshot, View

OPS_PER_TOKEN = 64  # operations per token of `requests`; each request costs one token more
BYTES_PER_TOKEN = 1 << 14  # bytes per token, if that is more: MAX_FRAME costs as much as MAX_OPS
AUDIT_FAILURE = '[Netagent] AuditFailure="continue"'


class Stop(Exception):
    """SIGTERM or SIGINT arrived."""


class AuditError(OSError):
    """A required audit line could not be written."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Budgets of all clients together. At these rates, the log (144 MiB) holds about 16 hours."""

    requests: TokenBucket
    refusal_lines: TokenBucket
    refusal_bytes: TokenBucket
    change_bytes: TokenBucket

    @classmethod
    def default(cls) -> Budgets:
        """Return the budgets of docs/policy.md, all full."""
        return cls(
            requests=TokenBucket(rate=20, size=400),
            refusal_lines=TokenBucket(rate=1, size=100),
            refusal_bytes=TokenBucket(rate=512, size=4 << 20),
            change_bytes=TokenBucket(rate=2048, size=32 << 20),
        )

    @property
    def are_full(self) -> bool:
        """True if a restart would give clients no additional budget."""
        return all(each.is_full for each in (self.requests, self.refusal_lines, self.refusal_bytes, self.change_bytes))


class Server:
    """Serves clients of one listening socket."""

    def __init__(
        self,
        kernel: Kernel,
        ledger: Ledger,
        audit: Audit,
        config: Path = settings.PATH,
        budgets: Budgets | None = None,
    ) -> None:
        self._kernel, self._ledger, self._audit, self._config = kernel, ledger, audit, config
        self._settings = settings.load(config)
        self._kernel.mark_mask = self._settings.mark_mask
        self._transaction = Transaction(kernel, ledger, self._view)
        self._budgets = budgets or Budgets.default()
        self._peer: Peer | None = None
        self._is_activated = False  # True if systemd starts netagent for the next client
        self._deadline = 0.0  # time of the rollback of the open transaction, unless it is confirmed
        self._counts = Counter[str]()  # for the next audit line, by key
        self._warnings: tuple[str, ...] = ()  # about resolver files
        self._handlers: Mapping[type[Request], Callable[[Any], Answer]] = {
            Hello: self._hello,
            Check: self._check,
            Apply: self._apply,
            Confirm: self._confirm,
            Rollback: self._rollback,
            Flush: self._flush,
            Status: self._status,
        }

    # Requests.

    def _hello(self, request: Hello) -> Answer:
        same = request.version == protocol.VERSION
        return HelloAnswer(Verdict.OK if same else Verdict.REFUSED, protocol.VERSION)

    def _status(self, _: Status) -> Answer:
        marks = self._kernel.marks() if self._settings.sets_marks else None
        owned = frozenset() if protocol.HAS_IFA_PROTO else self._ledger.entry.owned
        return StatusAnswer(self._transaction.open_id, self._audit.sequence, self._audit.head, marks, owned)

    def _check(self, request: Check) -> Answer:
        self._counts["checks"] += 1
        refusals = request_policy.check_for_report(request.ops, self._view())
        return CheckAnswer(len(refusals), tuple(refusals[:MAX_REFUSALS]))

    def _apply(self, request: Apply) -> Answer:
        began = monotonic()
        if self._transaction.open_id is not None:
            return self._refuse(request, Refused(f"the transaction {self._transaction.open_id} is still open"))
        try:
            plan = self._accepted(request.ops)
        except request_policy.Rejected as rejected:
            return self._refuse(request, rejected.refused)
        if not self._take_change_budget(_bulk(request.ops)):
            return self._over_budget(request)
        outcome = self._transaction.apply(request.id, plan)
        answer: Answer = Done(Verdict.APPLIED, len(request.ops))
        if outcome.failed is not None:
            answer = Failed(outcome.failed, outcome.errnos, outcome.reason, outcome.remaining)
            self._budgets.change_bytes.spend(cost(2 * len(outcome.remaining)))
        self._log_change(request, answer, request.ops, outcome.errnos, began)
        if outcome.failed is None and not request.confirm_within:
            self._transaction.commit()
        self._deadline = began + request.confirm_within
        return answer

    def _accepted(self, ops: Sequence[Operation]) -> Plan:
        """Return the plan for operations. Raises Rejected. The view is not kept: a rollback needs the memory again."""
        view = self._view()
        inverses = request_policy.check_for_apply(ops, view)
        return Plan(tuple(ops), tuple(inverses), tuple(view.lost_routes), tuple(view.links.all()))

    def _confirm(self, request: Confirm) -> Answer:
        if request.id != self._transaction.open_id:
            return self._refuse(request, Refused("there is no such open transaction"))
        answer = Done(Verdict.CONFIRMED)
        self._budgets.change_bytes.spend(cost(0))
        self._log({**request.to_wire(), **answer.to_wire()})
        self._transaction.commit()
        return answer

    def _rollback(self, request: Rollback) -> Answer:
        if request.id != self._transaction.open_id:
            return self._refuse(request, Refused("there is no such open transaction"))
        return Done(Verdict.ROLLED_BACK, remaining=self._roll_back_open("requested"))

    def _flush(self, request: Flush) -> Answer:
        """Remove the owned objects in parts, each with its audit line. A flush is not rolled back."""
        self._roll_back_open("a flush was requested")
        ops, remaining = flush_operations(self._view())
        if not self._take_change_budget(_bulk(ops) + 2 * len(remaining)):
            return self._over_budget(request)
        started = {**request.to_wire(), "verdict": "started", "removals": len(ops)}
        self._log(started, remaining=remaining)
        parts = [ops[start : start + OPS_PER_LINE] for start in range(0, len(ops), OPS_PER_LINE)] or [[]]
        done = 0
        for number, part in enumerate(parts, 1):
            began = monotonic()
            errnos, failed = self._transaction.remove(part)
            done += errnos.count(0)
            remaining += failed
            numbered = {"part": number, "parts": len(parts)} if len(parts) > 1 else {}
            self._log_change(request, Done(Verdict.APPLIED, errnos.count(0)), part, errnos, began, numbered)
        return Done(Verdict.APPLIED, done, tuple(remaining))

    def _view(self) -> View:
        kernel, entry = self._kernel, self._ledger.entry
        snapshot = Snapshot(
            links=tuple(kernel.links()),
            addresses=tuple(kernel.addresses()),
            routes=tuple(kernel.routes()),
            rules=tuple(kernel.rules()),
            routers=kernel.routers(),
            static_neighbours=kernel.static_neighbours(),
            marks=kernel.marks() if self._settings.sets_marks else None,
            nexthops=tuple(kernel.hops_of_nexthop_objects()),
        )
        for version in snapshot.incomplete_families():
            reason = "table local is empty, or a route with over 1,000 next hops ends the list; remove that route"
            raise DumpError(f"the kernel does not list all IPv{version} routes: {reason}")
        owned = None if protocol.HAS_IFA_PROTO else entry.owned
        outside = OutsideState(self._resolvers(), owned, frozenset(entry.gateways))
        return View(snapshot, self._settings, outside)

    def _resolvers(self) -> frozenset[IPAddress]:
        """Return the host's name servers. Report files that cannot be read, once."""
        found, warnings = settings.resolvers()
        for warning in warnings:
            if warning not in self._warnings:
                sandbox.log(warning)
        self._warnings = warnings
        return found

    def _roll_back_open(self, reason: str, *, was_logged: bool = True) -> tuple[Remaining, ...]:
        """Undo the open transaction, if there is one. Returns the operations that could not be undone.

        Unless the change `was_logged`, the line has the operations that undo it.
        """
        request, undo = self._transaction.open_id, self._ledger.entry.undo
        if request is None:
            return ()
        remaining = self._transaction.roll_back()
        self._budgets.change_bytes.spend(cost(2 * len(remaining)))
        entry = {"request": "rollback", "id": request, "reason": reason, "verdict": Verdict.ROLLED_BACK.value}
        self._log(entry, [] if was_logged else [op.to_wire() for op in undo], remaining, must=False)
        return remaining

    def _roll_back_overdue(self) -> None:
        if self._transaction.open_id is not None and monotonic() >= self._deadline:
            self._roll_back_open("not confirmed in time")

    # The audit log.

    def _take_change_budget(self, ops: int) -> bool:
        """Take the audit bytes of a change from the budget. Root is exempt: its flush must always work."""
        return self._budgets.change_bytes.take(cost(ops)) or self._serves_root

    @property
    def _serves_root(self) -> bool:
        return self._peer is not None and self._peer.has_uid_0

    def _over_budget(self, request: Request) -> Answer:
        reason = "too many changes: the audit log would lose its history. 2 KiB of audit lines per second are accepted"
        return self._refuse(request, Refused(reason))

    def _refuse(self, request: Request | str, refused: Refused) -> Refused:
        """Log a refusal and return it. Refusals over the budget are counted in the next line."""
        ops: Sequence[Operation] = request.ops if isinstance(request, Apply) else ()
        message = {"request": request} if isinstance(request, str) else _without_ops(request)
        budgets = self._budgets
        if budgets.refusal_lines.take() and budgets.refusal_bytes.take(cost(_bulk(ops))):
            self._log({**message, **refused.to_wire()}, [op.to_wire() for op in ops], must=False)
        else:
            self._counts["refusals_not_logged"] += 1
        return refused

    def _log_change(
        self,
        request: Request,
        answer: Answer,
        ops: Sequence[Operation],
        errnos: Sequence[int | None],
        began: float,
        more: Message | None = None,
    ) -> None:
        """Log a change with the errno of each operation."""
        logged_separately = ("errnos", "not_undone", "not_undone_more")
        fields = {key: value for key, value in answer.to_wire().items() if key not in logged_separately}
        remaining = answer.remaining if isinstance(answer, Failed) else None
        done = [{**op.to_wire(), "errno": errno} for op, errno in zip(ops, errnos, strict=True)]
        duration = {"duration_us": int((monotonic() - began) * 1e6)}
        self._log({**_without_ops(request), **fields, **duration, **(more or {})}, done, remaining)

    def _log(
        self,
        entry: Message,
        ops: Sequence[Message] = (),
        remaining: Sequence[Remaining] | None = None,
        *,
        must: bool = True,
    ) -> None:
        """Write audit lines. Raises AuditError if that fails, unless `must` is False or AuditFailure= is `continue`."""
        peer = None if self._peer is None else self._peer.to_log()
        try:
            not_undone = None if remaining is None else [each.to_wire() for each in remaining]
            self._audit.write({"peer": peer, **entry}, ops, not_undone, self._counts)
        except OSError as error:
            self._counts["entries_not_written"] += 1
            reason = f"the audit log cannot be written: {error}"
            sandbox.log(reason)
            if must and self._settings.audit_failure is AuditFailure.REFUSE:
                raise AuditError(reason) from None

    # The loop.

    def start(self) -> None:
        """Install signal handlers, report damaged files and roll back an open transaction of an earlier netagent.

        Raises OSError.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        signal.signal(signal.SIGHUP, self._reload)
        signal.signal(signal.SIGALRM, _interrupt)
        for damage in (self._audit.damage, self._ledger.damage):
            if damage is not None:
                sandbox.log(damage)
                self._log({"request": "start", "verdict": "damaged", "reason": damage}, must=False)
        self._resolvers()
        self._roll_back_open("netagent ended before the change was confirmed", was_logged=False)
        self._settle_netfilter()

    def _settle_netfilter(self) -> None:
        """Without ForwardedReplies="mark", remove the table if it may exist, and close the socket to nfnetlink."""
        kernel = self._kernel
        kernel.mark_mask = self._settings.mark_mask
        if self._settings.sets_marks:
            if kernel.netfilter is None and self._is_activated:
                sandbox.log('ForwardedReplies="mark": ending, to be started again with a socket to nfnetlink')
                raise Stop
            if kernel.netfilter is None:
                sandbox.log('ForwardedReplies="mark" needs a restart: there is no socket to nfnetlink')
            return
        if kernel.netfilter is None:
            return
        if self._ledger.entry.may_have_table:
            op = ForwardedReplies(())
            errno = self._transaction.remove_table()
            entry = {"peer": None, "request": "settings", "verdict": "applied", "reason": "ForwardedReplies= is off"}
            self._log(entry, [{**op.to_wire(), "errno": errno}], must=False)
        kernel.netfilter.close()
        kernel.netfilter = None

    def run(self, listener_socket: socket.socket, fetcher_uid: int, idle: float) -> None:
        """Serve until SIGTERM or SIGINT, or until no client has come for `idle` seconds and all budgets are full."""
        self._is_activated = idle < float("inf")
        listener = Listener(listener_socket, fetcher_uid, self._refuse_peer)
        try:
            while True:
                connection = listener.next(monotonic() + idle)
                if connection is not None:
                    self._serve(connection)
                elif self._budgets.are_full:
                    break
        except Stop:
            self._roll_back_open("netagent was stopped")
        if self._counts:  # the next line would be of another process
            self._peer = None
            self._log({"request": "stop", "verdict": "stopped"}, must=False)

    def _refuse_peer(self, peer: Peer, reason: str) -> None:
        self._peer = peer
        self._refuse("connect", Refused(reason))
        self._peer = None

    def _serve(self, connection: Connection) -> None:
        """Serve a client until its connection ends, and roll back its open transaction."""
        self._peer = connection.peer
        try:
            self._answer_requests(connection)
        except (HungUp, OSError):
            pass  # the client has disconnected, or does not read the answer
        finally:
            connection.close()
        self._roll_back_open("the connection ended before the change was confirmed")
        self._peer = None

    def _answer_requests(self, connection: Connection) -> None:
        try:
            while self._has_request(connection):
                body = connection.receive(lambda end: self._readable(connection, end))
                request = self._decoded(body)
                self._roll_back_overdue()
                connection.send(protocol.encode(self._handle(request).to_wire()))
        except Malformed as error:
            connection.send(protocol.encode(self._refuse("malformed", Refused(str(error))).to_wire()))

    def _has_request(self, connection: Connection) -> bool:
        """Wait for a request: as long as a transaction is open, and then for FRAME_SECONDS."""
        while True:
            is_open = self._transaction.open_id is not None
            if self._readable(connection, self._deadline if is_open else monotonic() + FRAME_SECONDS):
                return True
            if not is_open or monotonic() >= connection.expires:
                return False

    def _readable(self, connection: Connection, end: float) -> bool:
        """Wait for data until `end`. Meanwhile, roll back the open transaction when it is overdue."""
        while True:
            is_open = self._transaction.open_id is not None
            found = connection.readable(min(end, self._deadline) if is_open else end)
            self._roll_back_overdue()
            if found:
                return True
            if monotonic() >= min(end, connection.expires):
                return False

    def _decoded(self, body: bytes) -> Request:
        """Decode a request, and take tokens for its bytes and then its operations. Raises Malformed."""
        tokens = len(body) // BYTES_PER_TOKEN
        self._take_requests(1 + tokens)
        request = protocol.request_from_wire(protocol.decode(body))
        ops = len(request.ops) if isinstance(request, Apply | Check) else 0
        self._take_requests(max(0, ops // OPS_PER_TOKEN - tokens))
        return request

    def _take_requests(self, tokens: int) -> None:
        """Take tokens from the budget of requests. Raises Malformed if there are too few. Root is exempt."""
        if not self._serves_root and not self._budgets.requests.take(tokens):
            raise Malformed(f"too many requests: 20 a second; {OPS_PER_TOKEN} operations or 16 KiB count as one")

    def _handle(self, request: Request) -> Answer:
        """Answer a request. If the log or ledger cannot be written, or the kernel not read, refuse and roll back."""
        try:
            return self._handlers[type(request)](request)
        except MemoryError:
            refused = Refused("netagent has too little memory for the addresses, routes and rules of this host")
        except OSError as error:
            refused = Refused(str(error), allow=AUDIT_FAILURE if isinstance(error, AuditError) else None)
        if isinstance(request, Apply | Confirm | Rollback | Flush):  # the others change nothing
            self._roll_back_open(refused.reason)
        return self._refuse(request, refused)

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGHUP: open the log again and read the settings. If that fails, keep those in use."""
        with signals_blocked():  # otherwise older settings could replace those of a second reload inside this one
            try:
                self._audit.reopen()
                new = settings.load(self._config)
                if new.mark_mask != self._settings.mark_mask:
                    self._roll_back_open("MarkMask= has changed")  # the table's earlier marks need the earlier mask
                self._settings = new
                self._settle_netfilter()
            except (OSError, settings.SettingsError) as error:
                sandbox.log(f"reload failed: {error}; continuing with the log and the settings in use")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the signal itself ends a wait in the kernel (connection.bounded_close)."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stop


def _without_ops(request: Request) -> Message:
    if isinstance(request, Apply | Check):
        request = replace(request, ops=())
    return {key: value for key, value in request.to_wire().items() if key != "ops"}


def _bulk(ops: Sequence[Operation]) -> int:
    """Return the number of operations for `cost`; marks count as some, for their bytes in the log."""
    return len(ops) + sum(len(op.marks) // MARKS_PER_OP for op in ops if isinstance(op, ForwardedReplies))
