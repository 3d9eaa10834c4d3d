"""The client of netagent: check, apply, and confirm or roll back.

Requests and answers are those of netagent/protocol.py; operations those of netagent/operations.py. A plan that is
larger than a request may be goes in parts, in its own order, each applied and confirmed before the next.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from cloud_network.fetcher.network.objects import Address, Route, Rule
from cloud_network.fetcher.network.plan import Change, LinkMtu, LinkUp, Plan, Verb
from cloud_network.netagent import protocol
from cloud_network.netagent.operations import (
    EVERYTHING,
    AddressAdd,
    AddressRemove,
    IPInterface,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from cloud_network.netagent.operations import LinkMtu as SetLinkMtu
from cloud_network.netagent.operations import LinkUp as SetLinkUp
from cloud_network.netagent.protocol import CheckAnswer, Code, Refused

_ANSWER_TIMEOUT_S = 30.0
_TIMEVAL = struct.Struct("@ll")  # struct timeval


class NetagentError(Exception):
    """netagent could not be reached, or hung up: nothing, or nothing that lasts, was changed."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """An operation that netagent refuses or that the kernel failed."""

    position: int  # in the plan
    reason: str
    link: int | None = None  # nothing at all may be done to this link
    transient: bool = False  # it may pass by itself, such as a router advertisement that has not been received yet


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a plan."""

    verdict: str  # confirmed, refused or rolled back
    request: str
    ops: int
    reason: str | None = None
    rejections: tuple[Rejection, ...] = ()


def to_operation(change: Change) -> Operation:
    """Return the operation that makes one change."""
    what, add = change.what, change.verb is Verb.ADD
    if isinstance(what, LinkUp):
        return SetLinkUp(what.ifindex)
    if isinstance(what, LinkMtu):
        return SetLinkMtu(what.ifindex, what.mtu)
    if isinstance(what, Address):
        return _address_operation(what, add)
    if isinstance(what, Route):
        kind = RouteReplace if add else RouteRemove
        return kind(what.table, what.ifindex, what.destination, what.gateway)
    return _rule_operation(what, add)


def _address_operation(address: Address, add: bool) -> Operation:
    interface: IPInterface = address.interface
    if add:
        return AddressAdd(address.ifindex, interface, address.connected)
    return AddressRemove(address.ifindex, interface)


def _rule_operation(rule: Rule, add: bool) -> Operation:
    kind = RuleAdd if add else RuleRemove
    selector = rule.selector or EVERYTHING[rule.version]
    return kind(rule.priority, selector, rule.to, rule.table, rule.suppress, rule.local)


class Netagent:
    """A connection to netagent for the length of one plan."""

    def __init__(self, path: str = protocol.SOCKET) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A blocking connect waits for a place in netagent's queue; with a timeout it would fail with EAGAIN at once.
        timeout = _TIMEVAL.pack(int(_ANSWER_TIMEOUT_S), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        try:
            self._socket.connect(path)
            if os.geteuid() == 0:
                credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, protocol.ROOT)
                self._socket.sendmsg([b"\0"], [credentials])
            answer = self._ask(protocol.Hello(protocol.VERSION).to_wire())
        except OSError as error:
            self.close()
            reason = error.strerror or str(error)
            raise NetagentError(f"{path}: {reason}; is cloud-network-netagent running?") from None
        except NetagentError:
            self.close()
            raise
        if answer.get("verdict") != protocol.Verdict.OK:
            self.close()
            raise NetagentError(f"it speaks version {answer.get('version')} of the protocol, we {protocol.VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. netagent rolls back what was applied and not confirmed."""
        self._socket.close()

    def check(self, plan: Plan) -> tuple[Rejection, ...]:
        """Return what netagent would refuse. Changes nothing; at most `protocol.MAX_REFUSALS` are named a part."""
        found: list[Rejection] = []
        for start, part in _parts(plan):
            answer = self._ask(protocol.Check(part).to_wire())
            if answer.get("verdict") != protocol.Verdict.OK:
                raise NetagentError(f"check: {_reason(answer)}")
            refusals = CheckAnswer.from_wire(answer).refusals
            found += [_rejection(refusal, start) for refusal in refusals]
        return tuple(found)

    def carry_out(self, plan: Plan, confirm_within_s: float, broken: Callable[[], str | None]) -> Result:
        """Apply `plan`. Roll back if `broken` then returns what the change has broken; else confirm."""
        result = Result(protocol.Verdict.CONFIRMED, "", 0)
        for start, part in _parts(plan):
            result = self._apply(part, max(1, round(confirm_within_s)), broken)
            if result.verdict != protocol.Verdict.CONFIRMED:
                moved = (replace(each, position=start + each.position) for each in result.rejections)
                return replace(result, rejections=tuple(moved))
        return result

    def flush(self) -> Result:
        """Remove everything that is owned. It is not confirmed: afterwards nothing of ours is left to answer by."""
        request = os.urandom(8).hex()
        answer = self._ask(protocol.Flush(request).to_wire())
        return Result(answer["verdict"], request, answer.get("done", 0), _reason_or_none(answer))

    def _apply(self, ops: tuple[Operation, ...], confirm_within_s: int, broken: Callable[[], str | None]) -> Result:
        request = os.urandom(8).hex()
        answer = self._ask(protocol.Apply(request, ops, confirm_within_s).to_wire())
        if answer["verdict"] != protocol.Verdict.APPLIED:
            return Result(answer["verdict"], request, len(ops), _reason(answer), _rejections(answer))
        if (reason := broken()) is not None:
            self._ask(protocol.Rollback(request).to_wire())
            return Result(protocol.Verdict.ROLLED_BACK, request, len(ops), reason)
        answer = self._ask(protocol.Confirm(request).to_wire())
        return Result(answer["verdict"], request, len(ops), answer.get("reason"))

    def _ask(self, message: protocol.Message) -> protocol.Message:
        try:
            self._socket.sendall(protocol.encode(message))
            (size,) = protocol.HEADER.unpack(self._receive(protocol.HEADER.size))
            answer = protocol.decode(self._receive(min(size, protocol.MAX_FRAME)))
        except (OSError, protocol.Malformed) as error:
            raise NetagentError(f"the connection to netagent failed: {error}") from None
        if not isinstance(answer, dict):
            raise NetagentError(f"netagent answered with a {type(answer).__name__} instead of a map")
        return answer

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise NetagentError("netagent closed the connection before its answer was complete")
            data += chunk
        return data


def _parts(plan: Plan) -> Sequence[tuple[int, tuple[Operation, ...]]]:
    """Return (position of the first, operations) of each request."""
    ops = tuple(to_operation(change) for change in plan)
    return [(start, ops[start : start + protocol.MAX_OPS]) for start in range(0, len(ops), protocol.MAX_OPS)]


def _rejection(refusal: Refused, start: int) -> Rejection:
    reason = refusal.reason + (f"; to allow it: {refusal.allow}" if refusal.allow else "")
    return Rejection(start + (refusal.position or 0), reason, refusal.link, refusal.code is Code.WAITING)


def _rejections(answer: protocol.Message) -> tuple[Rejection, ...]:
    """Return the operation that netagent refused, or every operation that the kernel failed."""
    errnos = answer.get("errnos")
    if errnos is not None:
        failed = ((position, errno) for position, errno in enumerate(errnos) if errno)
        return tuple(Rejection(position, f"the kernel answers: {os.strerror(errno)}") for position, errno in failed)
    if answer.get("position") is None:
        return ()
    return (_rejection(Refused.from_wire(answer), 0),)


def _reason(answer: protocol.Message) -> str:
    """Return the reason and the key that would allow it."""
    allow = f"; to allow it: {answer['allow']}" if answer.get("allow") else ""
    return f"{answer.get('reason', 'no reason given')}{allow}"


def _reason_or_none(answer: protocol.Message) -> str | None:
    return answer.get("reason")
