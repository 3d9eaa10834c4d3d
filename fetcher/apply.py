"""Client of netagent: check a plan, apply it link by link, and confirm each link's change or roll it back.

Links are independent unless an address or rule moves between them, so a change that breaks something is rolled back
alone. LinkRole gives the order: of the links in use, the one with the metadata connection and the default route is
last.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from ipaddress import ip_address
from typing import TypeVar

from cloud_network.fetcher.network.plan import COMMON, Plan, is_removal, link_of
from cloud_network.fetcher.network.rules import Interval, IntervalIndex
from cloud_network.netagent import protocol
from cloud_network.netagent.operations import (
    AddressAdd,
    AddressRemove,
    ForwardedReplies,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from cloud_network.netagent.protocol import (
    MAX_FRAME,
    TABLE_LOCAL,
    Apply,
    Check,
    CheckAnswer,
    Confirm,
    Decoded,
    Flush,
    Hello,
    Malformed,
    Refused,
    Request,
    Rollback,
    Status,
    StatusAnswer,
    Verdict,
)

Answer = TypeVar("Answer")

_ANSWER_TIMEOUT_S = 30
_MAX_SHOWN = 3  # of the operations that could not be undone, in the reason of a rollback
_TIMEVAL = struct.Struct("@ll")  # struct timeval


def is_listening(path: str = protocol.SOCKET) -> bool:
    """Return True if a process listens on netagent's socket: netagent, or systemd in its place.

    A stream connection would make systemd start netagent, which exits when idle. A datagram socket cannot connect to
    it: connect(2) fails with EPROTOTYPE if a process listens (unix(7)), and with ECONNREFUSED if none does.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(path) == errno.EPROTOTYPE


class NetagentError(Exception):
    """netagent could not be reached or closed the connection. Nothing was changed, or the change is rolled back."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The final answer of netagent to one request."""

    verdict: str  # applied, confirmed, refused, rolled back
    request: str = ""
    ops: int = 0
    reason: str | None = None
    refused: Refused | None = None
    errnos: tuple[int | None, ...] = ()  # of each operation, if the kernel refused one
    remaining: tuple[str, ...] = ()  # what could not be undone or removed, each with the reason


class Netagent:
    """A connection to netagent for one pass."""

    def __init__(self, path: str = protocol.SOCKET) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Timeouts of the kernel: a socket with Python's timeout would fail with EAGAIN while netagent's queue is full.
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(_ANSWER_TIMEOUT_S, 0))
        try:
            self._socket.connect(path)
            if os.geteuid() == 0:
                self._socket.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, protocol.ROOT_CREDENTIALS)])
            version, is_same = self._ask(Hello(protocol.VERSION), _version)
        except OSError as error:
            self.close()
            reason = f"{error.strerror or error}. See: systemctl status cloud-network-netagent.socket"
            raise NetagentError(f"{path}: {reason}") from None
        except NetagentError:
            self.close()
            raise
        if not is_same:
            self.close()
            raise NetagentError(
                f"netagent uses version {version} of the protocol, this fetcher {protocol.VERSION}; "
                "install one release, then: systemctl restart cloud-network-netagent cloud-network-fetcher"
            )

    def __enter__(self) -> Netagent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. netagent rolls back what was applied and not confirmed."""
        self._socket.close()

    def status(self) -> StatusAnswer:
        """Return netagent's status, with the kernel state that only netagent can read."""
        return self._ask(Status(), StatusAnswer.from_wire)

    def check(self, ops: Plan) -> CheckAnswer:
        """Return the operations that `apply` would refuse, of at most MAX_OPS."""
        return self._ask(Check(ops), _checked)

    def apply(self, ops: Plan, confirm_within: float) -> Outcome:
        """Apply at most MAX_OPS operations. They are rolled back unless `confirm` follows within the time."""
        request = os.urandom(8).hex()
        wanted = Apply(request, ops, max(1, round(confirm_within)))
        return self._ask(wanted, partial(_outcome, request=request, ops=len(ops)))

    def confirm(self, applied: Outcome) -> Outcome:
        """Keep the applied change."""
        return self._ask(Confirm(applied.request), partial(_outcome, request=applied.request, ops=applied.ops))

    def roll_back(self, applied: Outcome, reason: str) -> Outcome:
        """Undo the applied change."""
        left = self._ask(Rollback(applied.request), _not_undone)
        if left:
            reason = f"{reason}; not undone: {'; '.join(left[:_MAX_SHOWN])} (all: cnctl audit)"
        return Outcome(Verdict.ROLLED_BACK.value, applied.request, applied.ops, reason)

    def flush(self) -> Outcome:
        """Remove everything that is owned. A flush is neither confirmed nor rolled back."""
        request = os.urandom(8).hex()
        return self._ask(Flush(request), partial(_outcome, request=request))

    def _ask(self, request: Request, read: Callable[[Decoded], Answer]) -> Answer:
        """Send a request and return what `read` makes of the answer. Raises NetagentError."""
        try:
            self._socket.sendall(protocol.encode(request.to_wire()))
            (size,) = protocol.HEADER.unpack(self._receive(protocol.HEADER.size))
            answer = protocol.decode(self._receive(min(size, MAX_FRAME)))
        except BlockingIOError:
            text = (
                f"netagent did not answer within {_ANSWER_TIMEOUT_S:g} s. See: systemctl status cloud-network-netagent"
            )
            raise NetagentError(text) from None
        except (OSError, Malformed) as error:
            raise NetagentError(f"netagent does not answer: {error}") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("verdict"), str):
            raise NetagentError("netagent's answer has no verdict")
        try:
            return read(answer)
        except (KeyError, TypeError, ValueError, Malformed) as error:
            raise NetagentError(f"netagent's answer cannot be read: {error!r}") from None

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise NetagentError("netagent closed the connection in the middle of an answer")
            data += chunk
        return bytes(data)


def _version(answer: Decoded) -> tuple[int | None, bool]:
    """Return netagent's version of the protocol, and True if it is the fetcher's."""
    return answer.get("version"), answer["verdict"] == Verdict.OK


def _checked(answer: Decoded) -> CheckAnswer:
    if answer["verdict"] != Verdict.OK:  # the request itself is refused
        return CheckAnswer(1, (Refused.from_wire(answer),))
    return CheckAnswer.from_wire(answer)


def _outcome(answer: Decoded, request: str, ops: int | None = None) -> Outcome:
    """Return an answer to `apply`, `confirm` or `flush`. `ops`: number of operations, if it is not in the answer."""
    return Outcome(
        verdict=answer["verdict"],
        request=request,
        ops=int(answer.get("done") or 0) if ops is None else ops,
        reason=_reason(answer),
        refused=Refused.from_wire(answer) if answer["verdict"] == Verdict.REFUSED else None,
        errnos=tuple(answer.get("errnos", ())),
        remaining=_not_undone(answer),
    )


def _reason(answer: Decoded) -> str | None:
    """Return the reason in an answer, with the configuration key that would allow the operation."""
    if answer.get("reason") is None:
        return None
    return _with_key(answer["reason"], answer.get("allow"))


def _not_undone(answer: Decoded) -> tuple[str, ...]:
    """Return a text for each operation that a rollback or flush could not carry out."""
    left = [f"{_described(each)}: {each['reason']}" for each in answer.get("not_undone", ())]
    more = answer.get("not_undone_more")
    return (*left, f"and {more} more") if more else tuple(left)


def _described(op: Decoded) -> str:
    """Return the operation of an answer, such as `address_remove 10.0.1.5/32 on eth1`."""
    words = [str(op["op"])]
    if "address" in op:
        words.append(f"{ip_address(op['address'])}/{op['prefix']}")
    if "table" in op:
        words.append(f"in table {op['table']}")
    if "link" in op:
        words.append(f"on {_link_name(op['link'])}")
    return " ".join(words)


def _link_name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"link {ifindex}, which is gone"


def explain(refused: Refused) -> str:
    """Return the text of a refusal: the reason, and the configuration key that would allow the operation."""
    return _with_key(refused.reason, refused.allow)


def _with_key(reason: str, allow: str | None) -> str:
    return f"{reason}; to allow it, set {allow}" if allow else reason


def transact(agent: Netagent, ops: Plan, confirm_within: float, failure: Callable[[], str | None]) -> Outcome:
    """Apply at most MAX_OPS operations and confirm them, or roll them back if `failure` returns a reason."""
    outcome = agent.apply(ops, confirm_within)
    if outcome.verdict != Verdict.APPLIED:
        return outcome
    reason = failure()
    return agent.confirm(outcome) if reason is None else agent.roll_back(outcome, reason)


# Links


class LinkRole(IntEnum):
    """The order in which links are changed.

    A link's first address adds the route to its subnet to the table main. Connections of other links to hosts in that
    subnet then use that route, and the cloud drops their packets, unless their own link's table has the subnet by then.
    One such packet costs 3 s: the kernel retransmits only after ARP has failed. Therefore new links come after links in
    use, and links that are given up come before them.
    """

    GIVEN_UP = 0
    SECONDARY = 1
    PRIMARY = 2
    NEW = 3


def components(
    plan: Plan, table_base: int, role: Callable[[Collection[int]], LinkRole] = lambda _: LinkRole.SECONDARY
) -> list[Plan]:
    """Split a plan by link, ordered by the `role` of each part's links.

    Links stay together if an address moves between them or their rules depend on each other's addresses. Rules that
    belong to no link, which the rules of all links need, are added with the first part and removed in a part of their
    own at the end. The table of marks comes first, or with the last link if the plan has it after the removal of rules.
    """
    links = dict.fromkeys(link_of(op, table_base) for op in plan)
    links.pop(COMMON, None)
    head = dict(zip(links, links, strict=True))

    def find(link: int) -> int:
        while head[link] != link:
            link = head[link]
        return link

    for one, other in _coupled(plan, table_base):
        head[find(one)] = find(other)
    parts: dict[int, list[Operation]] = {find(link): [] for link in links}
    common = [op for op in plan if link_of(op, table_base) == COMMON]
    for op in plan:
        if (link := link_of(op, table_base)) != COMMON:
            parts[find(link)].append(op)
    if not parts:
        return [tuple(common)] if common else []
    split = sorted(parts.values(), key=lambda part: role({link_of(op, table_base) for op in part}))
    removed = _last_removals(plan)
    last_table = [op for op in plan[removed:] if isinstance(op, ForwardedReplies)]
    first_table = [op for op in plan[:removed] if isinstance(op, ForwardedReplies)]
    rules = [op for op in common if not isinstance(op, ForwardedReplies)]
    split[0] = [*first_table, *_with_common(split[0], [op for op in rules if not is_removal(op)])]
    split[-1] += last_table
    removals = tuple(op for op in rules if is_removal(op))
    return [*(tuple(part) for part in split), *([removals] if removals else [])]


def _last_removals(plan: Plan) -> int:
    """Return the position of the removals of rules that end the plan, except for those before their address leaves."""
    others = [at for at, op in enumerate(plan) if not isinstance(op, RuleAdd | RuleRemove | ForwardedReplies)]
    after = others[-1] if others else 0
    return next((at for at, op in enumerate(plan) if at >= after and isinstance(op, RuleRemove)), len(plan))


def _with_common(ops: list[Operation], common: list[Operation]) -> list[Operation]:
    """Insert the rules that belong to no link before the removals of rules, which come last."""
    at = next((at for at, op in enumerate(ops) if isinstance(op, RuleAdd | RuleRemove)), len(ops))
    return ops[:at] + common + ops[at:]


def _coupled(plan: Plan, table_base: int) -> Iterable[tuple[int, int]]:
    """Yield pairs of links that must be changed together."""
    changes = list[Interval]()
    for op in plan:
        if isinstance(op, AddressAdd | AddressRemove):
            changes.append(Interval.of_address(op.interface.ip, op.link))
        elif isinstance(op, RouteReplace | RouteRemove) and op.table == TABLE_LOCAL:
            changes.append(Interval.of_network(op.destination, op.link))
    index = IntervalIndex(changes)
    for change in changes:
        yield from ((change.link, each.link) for each in index.overlapping(change) if each.link != change.link)
    for op in plan:
        if isinstance(op, RuleAdd | RuleRemove) and op.selector.prefixlen:
            link = link_of(op, table_base)
            near = index.overlapping(Interval.of_network(op.selector))
            yield from ((link, each.link) for each in near if each.link != link)
