"""The wire between a client and netagent: frames, msgpack limits, and every request and answer.

A frame is a 4-byte big-endian length and one msgpack map of at most MAX_FRAME bytes. Addresses are packed bytes and
links are interface indices: no name is looked up, and no text is parsed. The fetcher imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from struct import Struct
from typing import Any

import msgpack

from .operations import NUMBER_OF_PRIORITIES as NUMBER_OF_PRIORITIES
from .operations import PROTOCOL as PROTOCOL
from .operations import TABLE_LOCAL as TABLE_LOCAL
from .operations import TABLE_MAIN as TABLE_MAIN
from .operations import (
    Change,
    Fields,
    IPAddress,
    LinkMark,
    Operation,
    marks_from_wire,
    marks_to_wire,
    operation_from_wire,
)
from .operations import Malformed as Malformed
from .operations import Message as Message

VERSION = 4
SOCKET = "/run/cloud-network-netagent/netagent.sock"
MAX_FRAME = 1 << 20  # bytes
HAS_IFA_PROTO = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (5, 18)
"""True if this kernel stores PROTOCOL with owned addresses (Linux 5.18). Otherwise the ledger lists them."""
MAX_OPS = 4096  # operations in one request; that many are well below MAX_FRAME
MAX_CONFIRM = 600  # seconds
MAX_REFUSALS = 256  # in the answer to `check`
MAX_REMAINING = 256  # in an answer: operations that were not undone
HEADER = Struct(">I")
UCRED = Struct("=iII")  # struct ucred of linux/socket.h: pid, uid, gid
ROOT_CREDENTIALS = UCRED.pack(1, 0, 0)
"""Credentials that root sends (SCM_CREDENTIALS) with one byte before its first frame.

SO_PEERCRED shows uid 0 for root of any user namespace that maps it. But the kernel lets only a process with
CAP_SYS_ADMIN over this host's process numbers claim to be process 1 (net/core/scm.c), so these credentials
distinguish root of this host from root of a container.
"""
Decoded = Mapping[str, Any]
"""An answer as msgpack decodes it, of unchecked values."""


class Verdict(StrEnum):
    """The key `verdict` of every answer."""

    OK = "ok"
    APPLIED = "applied"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled back"


class Code(StrEnum):
    """Kinds of refusal that `check` reports."""

    REFUSED = "refused"  # by policy, until the host, the cloud or the configuration changes
    WAITING = "waiting"  # no router advertisement received on the link yet; may be accepted seconds later


@dataclass(frozen=True, slots=True)
class Hello:
    """Request a comparison of the wire versions."""

    version: int

    def to_wire(self) -> Message:
        """Return the map that is sent."""
        return {"request": "hello", "version": self.version}


@dataclass(frozen=True, slots=True)
class Check:
    """Request all refusals that `apply` would give for these operations. Changes nothing."""

    ops: tuple[Operation, ...]

    def to_wire(self) -> Message:
        """Return the map that is sent."""
        return {"request": "check", "ops": [op.to_wire() for op in self.ops]}


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply all operations or none; roll back unless confirmed within `confirm_within` seconds (0: not needed).

    The time begins with the arrival of the request.
    """

    id: str
    ops: tuple[Operation, ...]
    confirm_within: int

    def to_wire(self) -> Message:
        """Return the map that is sent."""
        ops = [op.to_wire() for op in self.ops]
        return {"request": "apply", "id": self.id, "ops": ops, "confirm_within": self.confirm_within}


@dataclass(frozen=True, slots=True)
class Confirm:
    """Keep the open transaction `id`."""

    id: str

    def to_wire(self) -> Message:
        """Return the map that is sent."""
        return {"request": "confirm", "id": self.id}


@dataclass(frozen=True, slots=True)
class Rollback:
    """Undo the open transaction `id`."""

    id: str

    def to_wire(self) -> Message:
        """Return the map that is sent."""
        return {"request": "rollback", "id": self.id}


@dataclass(frozen=True, slots=True)
class Flush:
    """Remove all owned objects that may be removed."""

    id: str

    def to_wire(self) -> Message:
        """Return the map that is sent."""
        return {"request": "flush", "id": self.id}


@dataclass(frozen=True, slots=True)
class Status:
    """Request the open transaction, the head of the audit log, and more: see StatusAnswer."""

    def to_wire(self) -> Message:
        """Return the map that is sent."""
        return {"request": "status"}


Request = Hello | Check | Apply | Confirm | Rollback | Flush | Status


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal: of one operation (`position` is set), or of a request as a whole."""

    reason: str
    position: int | None = None  # in the request
    code: Code = Code.REFUSED
    allow: str | None = None  # the configuration key and value that would allow it
    link: int | None = None  # set if nothing at all may be done to this link
    depends_on: int | None = None  # check: position of an earlier refused operation that this one builds on

    def to_wire(self) -> Message:
        """Return the answer that is sent."""
        return {"verdict": Verdict.REFUSED.value, **self.details()}

    def details(self) -> Message:
        """Return the keys of this refusal in the answer to `check`."""
        details = {
            "position": self.position,
            "code": self.code.value,
            "reason": self.reason,
            "allow": self.allow,
            "link": self.link,
            "depends_on": self.depends_on,
        }
        return _without_none(details)

    @classmethod
    def from_wire(cls, value: Decoded) -> Refused:
        """Read a refusal from an answer."""
        return cls(
            reason=value["reason"],
            position=value.get("position"),
            code=Code(value.get("code", Code.REFUSED)),
            allow=value.get("allow"),
            link=value.get("link"),
            depends_on=value.get("depends_on"),
        )


@dataclass(frozen=True, slots=True)
class HelloAnswer:
    """Answer to `hello`: netagent's version, and a verdict on the client's."""

    verdict: Verdict
    version: int

    def to_wire(self) -> Message:
        """Return the answer that is sent."""
        return {"verdict": self.verdict.value, "version": self.version}


@dataclass(frozen=True, slots=True)
class StatusAnswer:
    """The open transaction, the sequence number and hash of the last audit line, and the marks of the table.

    `marks` is None if ForwardedReplies= is off, and empty if the table is missing or incomplete. `owned` has the owned
    addresses, by link, if the kernel does not mark them (HAS_IFA_PROTO); otherwise it is empty.
    """

    open: str | None
    sequence: int
    head: str
    marks: tuple[LinkMark, ...] | None = None
    owned: frozenset[tuple[int, IPAddress]] = frozenset()

    def to_wire(self) -> Message:
        """Return the answer that is sent."""
        marks = None if self.marks is None else marks_to_wire(self.marks)
        owned: list[Message] = [
            {"link": link, "address": ip.packed} for link, ip in sorted(self.owned, key=str)[:MAX_OPS]
        ]
        where: Message = {"sequence": self.sequence, "head": self.head, "marks": marks, "owned": owned}
        return {"verdict": Verdict.OK.value, "open": self.open, **where}

    @classmethod
    def from_wire(cls, value: Decoded) -> StatusAnswer:
        """Read the answer to `status`. Raises Malformed."""
        marks = None
        if value.get("marks") is not None:
            marks = marks_from_wire(Fields("status", {"marks": value["marks"]}), "marks")
        owned = frozenset((each["link"], ip_address(each["address"])) for each in value.get("owned", ()))
        return cls(value["open"], value["sequence"], value["head"], marks, owned)


@dataclass(frozen=True, slots=True)
class CheckAnswer:
    """Every refusal that `apply` would meet: their number, and the first MAX_REFUSALS of them."""

    refused: int
    refusals: tuple[Refused, ...]

    def to_wire(self) -> Message:
        """Return the answer that is sent."""
        shown = [refusal.details() for refusal in self.refusals]
        return {"verdict": Verdict.OK.value, "refused": self.refused, "refusals": shown}

    @classmethod
    def from_wire(cls, value: Decoded) -> CheckAnswer:
        """Read the answer to `check`."""
        return cls(value["refused"], tuple(map(Refused.from_wire, value["refusals"])))


@dataclass(frozen=True, slots=True)
class Remaining:
    """An operation that a rollback or flush could not carry out."""

    op: Change
    reason: str
    errno: int | None = None

    def to_wire(self) -> Message:
        """Return the map of the operation with the reason."""
        return {**self.op.to_wire(), "reason": self.reason, "errno": self.errno}


def _not_undone(remaining: tuple[Remaining, ...]) -> Message:
    """Return the first MAX_REMAINING operations, and the number of the others. The audit log has all."""
    first = {"not_undone": [each.to_wire() for each in remaining[:MAX_REMAINING]]}
    more = len(remaining) - MAX_REMAINING
    return {**first, "not_undone_more": more} if more > 0 else first


@dataclass(frozen=True, slots=True)
class Done:
    """A request took effect: applied, confirmed, or rolled back on request. `remaining` is normally empty."""

    verdict: Verdict
    done: int | None = None  # operations (apply, flush)
    remaining: tuple[Remaining, ...] = ()

    def to_wire(self) -> Message:
        """Return the answer that is sent."""
        message = _without_none({"verdict": self.verdict.value, "done": self.done})
        return {**message, **_not_undone(self.remaining)} if self.remaining else message


@dataclass(frozen=True, slots=True)
class Failed:
    """The kernel refused an operation of `apply`, and everything was rolled back except `remaining`."""

    position: int  # of the first operation that failed
    errnos: tuple[int | None, ...]  # of every operation: 0 for done, None for not tried or not known
    reason: str
    remaining: tuple[Remaining, ...] = ()

    def to_wire(self) -> Message:
        """Return the answer that is sent."""
        return {
            "verdict": Verdict.ROLLED_BACK.value,
            "done": 0,
            "position": self.position,
            "errno": self.errnos[self.position],
            "errnos": list(self.errnos),
            "reason": self.reason,
            **_not_undone(self.remaining),
        }


Answer = Refused | HelloAnswer | StatusAnswer | CheckAnswer | Done | Failed


def _hello(fields: Fields) -> Request:
    return Hello(fields.integer("version", 1, 255))


def _check(fields: Fields) -> Request:
    return Check(_operations(fields))


def _apply(fields: Fields) -> Request:
    return Apply(_id(fields), _operations(fields), fields.integer("confirm_within", 0, MAX_CONFIRM))


def _confirm(fields: Fields) -> Request:
    return Confirm(_id(fields))


def _rollback(fields: Fields) -> Request:
    return Rollback(_id(fields))


def _flush(fields: Fields) -> Request:
    return Flush(_id(fields))


def _status(_: Fields) -> Request:
    return Status()


REQUESTS: Mapping[str, Callable[[Fields], Request]] = {
    "hello": _hello,
    "check": _check,
    "apply": _apply,
    "confirm": _confirm,
    "rollback": _rollback,
    "flush": _flush,
    "status": _status,
}


def request_from_wire(value: object) -> Request:
    """Decode a request. Raises Malformed for a missing, invalid or unknown key."""
    fields = Fields("request", value)
    name = fields.take("request", str)
    if name not in REQUESTS:
        raise Malformed(f"request.request: {name!r:.40} is not one of {', '.join(REQUESTS)}")
    request = REQUESTS[name](fields)
    fields.end()
    return request


def encode(message: Message) -> bytes:
    """Return the frame of a message."""
    body: bytes = msgpack.packb(message)
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Any:
    """Decode a frame's body. Sizes are checked before values are built. Raises Malformed."""
    limit = _ContainerLimit()
    try:
        return msgpack.unpackb(
            body,
            strict_map_key=True,
            list_hook=limit.count_list,
            object_hook=limit.count_map,
            max_str_len=1024,
            max_bin_len=16,
            max_array_len=MAX_OPS,
            max_map_len=16,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:  # UnicodeDecodeError is a ValueError
        raise Malformed(f"not msgpack: {str(error)[:120] or type(error).__name__}") from None


class _ContainerLimit:
    """Counts lists and maps while msgpack builds them: 1 MiB of empty maps would otherwise become 64 MiB."""

    def __init__(self) -> None:
        self._lists = 4  # the operations and the marks of three, or errnos, not_undone, marks and owned addresses
        self._maps = 2 * MAX_OPS + 1  # the message, its operations, and marks

    def count_list(self, value: list[Any]) -> list[Any]:
        """Count one list."""
        self._lists -= 1
        if self._lists < 0:
            raise ValueError("more lists than any message has")
        return value

    def count_map(self, value: dict[Any, Any]) -> dict[Any, Any]:
        """Count one map."""
        self._maps -= 1
        if self._maps < 0:
            raise ValueError("more maps than any message has")
        return value


def _operations(fields: Fields) -> tuple[Operation, ...]:
    values: list[object] = fields.take("ops", list)
    if not 1 <= len(values) <= MAX_OPS:
        raise Malformed(f"request.ops: {len(values)} operations are not in 1..{MAX_OPS}")
    return tuple(operation_from_wire(value, f"ops[{position}]") for position, value in enumerate(values))


def _id(fields: Fields) -> str:
    return fields.text("id", 64)


def _without_none(message: Message) -> Message:
    return {key: value for key, value in message.items() if value is not None}
