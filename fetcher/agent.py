"""The fetcher's end of the wire: a plan becomes requests to netagent, and its answers a verdict.

Requests and answers are those of netagent/protocol.py. A plan that is larger than a request may be goes in several,
in its own order, each applied and confirmed before the next.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from cloud_network.fetcher.metadata.model import EVERYTHING
from cloud_network.fetcher.network.objects import Address, Route
from cloud_network.fetcher.network.plan import Change, LinkMtu, LinkUp, Plan, Verb
from cloud_network.netagent import protocol

_ANSWER_SECONDS = 30.0


class AgentError(Exception):
    """netagent could not be reached, or hung up: nothing, or nothing that lasts, was changed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """netagent's last word on a plan: applied, confirmed, refused or rolled back."""

    verdict: str
    request: str
    ops: int
    reason: str | None = None
    position: int | None = None  # in the plan, of the operation that is the reason
    link: int | None = None  # to which nothing at all may be done, if that is the reason


def to_wire(change: Change) -> protocol.Op:
    """One change as netagent reads it."""
    what, add = change.what, change.verb is Verb.ADD
    if isinstance(what, LinkUp):
        return {"op": "link_up", "link": what.ifindex}
    if isinstance(what, LinkMtu):
        return {"op": "link_mtu", "link": what.ifindex, "mtu": what.mtu}
    if isinstance(what, Address):
        op: protocol.Op = {"link": what.ifindex, "address": what.address.packed, "prefix": what.prefix}
        return {"op": "address_add", **op, "route": what.connected} if add else {"op": "address_remove", **op}
    if isinstance(what, Route):
        return {
            "op": "route_replace" if add else "route_remove",
            "table": what.table,
            "link": what.ifindex,
            "address": what.destination.network_address.packed,
            "prefix": what.destination.prefixlen,
            "gateway": what.gateway.packed if what.gateway is not None else None,
        }
    selector = what.selector or EVERYTHING[what.version]
    return {
        "op": "rule_add" if add else "rule_remove",
        "priority": what.priority,
        "address": selector.network_address.packed,
        "prefix": selector.prefixlen,
        "to": what.to,
        "table": what.table,
        "suppress": what.suppress,
        "local": what.local,
    }


class Agent:
    """A connection to netagent for the length of one plan."""

    def __init__(self, path: str = protocol.SOCKET) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_ANSWER_SECONDS)
        try:
            self._socket.connect(path)
            if os.geteuid() == 0:
                credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, protocol.ROOT)
                self._socket.sendmsg([b"\0"], [credentials])
            answer = self._ask({"request": "hello", "version": protocol.VERSION})
        except OSError as error:
            self.close()
            raise AgentError(f"{path}: {error.strerror or error}; is cloud-network-netagent running?") from None
        if answer["verdict"] != "ok":
            self.close()
            raise AgentError(f"it speaks version {answer.get('version')} of the protocol, we {protocol.VERSION}")

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; what was applied and not confirmed is undone by netagent."""
        self._socket.close()

    def carry_out(self, plan: Plan, confirm_within: float, broken: Callable[[], str | None]) -> Verdict:
        """Have `plan` applied; rolled back if `broken` then says what it has broken, else confirmed."""
        ops = [to_wire(change) for change in plan]
        verdict = Verdict("confirmed", "", 0)
        for start in range(0, len(ops), protocol.MAX_OPS):
            part = ops[start : start + protocol.MAX_OPS]
            verdict = self._one(part, max(1, round(confirm_within)), broken)
            if verdict.verdict != "confirmed":
                return verdict if verdict.position is None else replace(verdict, position=start + verdict.position)
        return verdict

    def flush(self) -> Verdict:
        """Have everything taken away that is owned. It is not confirmed: nothing of ours is left to answer by."""
        request = os.urandom(8).hex()
        answer = self._ask({"request": "flush", "id": request})
        return Verdict(answer["verdict"], request, answer.get("done", 0), answer.get("reason"))

    def _one(self, ops: list[protocol.Op], confirm_within: int, broken: Callable[[], str | None]) -> Verdict:
        request = os.urandom(8).hex()
        answer = self._ask({"request": "apply", "id": request, "ops": ops, "confirm_within": confirm_within})
        if answer["verdict"] != "applied":
            place = answer.get("position"), answer.get("link")
            return Verdict(answer["verdict"], request, len(ops), _reason(answer), *place)
        if (reason := broken()) is not None:
            self._ask({"request": "rollback", "id": request})
            return Verdict("rolled back", request, len(ops), reason)
        answer = self._ask({"request": "confirm", "id": request})
        return Verdict(answer["verdict"], request, len(ops), answer.get("reason"))

    def _ask(self, message: protocol.Message) -> protocol.Message:
        try:
            self._socket.sendall(protocol.encode(message))
            (size,) = protocol.HEADER.unpack(self._exactly(protocol.HEADER.size))
            answer = protocol.decode(self._exactly(min(size, protocol.MAX_FRAME)))
        except (OSError, protocol.Malformed) as error:
            raise AgentError(f"it went away: {error}") from None
        if not isinstance(answer, dict):
            raise AgentError(f"it answers with no map, but {type(answer).__name__}")
        return answer

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise AgentError("it hung up in the middle of an answer")
            data += chunk
        return data


def _reason(answer: protocol.Message) -> str:
    """Why, and what an operator may set to allow it."""
    allow = f"; to allow it: {answer['allow']}" if answer.get("allow") else ""
    return f"{answer.get('reason', 'no reason given')}{allow}"
