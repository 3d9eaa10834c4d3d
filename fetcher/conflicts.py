"""Changes that another program keeps reverting: repaired at once at first, then with backoff, and reported."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from cloud_network.fetcher import schedule
from cloud_network.fetcher.network.objects import Actual, Cause, Rejection, Rejections
from cloud_network.fetcher.network.plan import Plan, added_object, in_ip_syntax, is_removal
from cloud_network.fetcher.schedule import Backoff, Clock
from cloud_network.fetcher.status import ConflictStatus, rfc3339
from cloud_network.netagent.operations import (
    AddressAdd,
    AddressRemove,
    ForwardedReplies,
    LinkMtu,
    LinkUp,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)

TOLERATED_REPAIRS = 5
"""Number of times that a change is made before it counts as a conflict and waits."""


@dataclass(slots=True)
class _Record:
    """One change that was made; times are on the tracker's clock."""

    times: int = 0
    made_at: float = 0.0
    due: float = 0.0
    since: str = field(default_factory=rfc3339)
    by: str | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(schedule.CONFLICT_FIRST_S, schedule.CONFLICT_LONGEST_S))


class ConflictTracker:
    """Counts how often each change was made, and delays those that are reverted repeatedly."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[Operation, _Record] = {}
        self._latest: dict[Hashable, Operation] = {}  # the latest change to each object

    def count_confirmed(self, plan: Plan) -> None:
        """Count confirmed changes. A change that the fetcher itself reverts is no conflict."""
        now = self._clock()
        for op in plan:
            before = self._latest.get(_object_key(op))
            if before is not None and before != op:
                self._records.pop(before, None)
            self._latest[_object_key(op)] = op
            record = self._records.setdefault(op, _Record())
            record.times, record.made_at = record.times + 1, now
            if record.times >= TOLERATED_REPAIRS:
                record.due = now + record.backoff.next_delay()

    def observe(self, plan: Plan, actual: Actual) -> None:
        """Record which program reverted the changes of `plan`, and forget the changes that have lasted."""
        now, planned = self._clock(), set(plan)
        for op in [op for op, record in self._records.items() if self._has_lasted(record, now) and op not in planned]:
            del self._records[op]
            self._latest.pop(_object_key(op), None)
        for op in planned & self._records.keys():
            record = self._records[op]
            if record.times > 1:
                record.by = _link_with_address(op, actual) or record.by

    @staticmethod
    def _has_lasted(record: _Record, now: float) -> bool:
        forgotten_after = max(schedule.CONFLICT_FORGOTTEN_S, 2 * (record.due - record.made_at))
        return now > record.made_at + forgotten_after

    @property
    def rejections(self) -> Rejections:
        """The objects that must wait for their next repair."""
        waiting = (added_object(op) for op in self._waiting() if not is_removal(op))
        return {each: Rejection("another program removes it", Cause.CONFLICT) for each in waiting if each is not None}

    def without_waiting(self, plan: Plan) -> Plan:
        """Return the plan without the removals that must wait."""
        waiting = {op for op in self._waiting() if is_removal(op)}
        return tuple(op for op in plan if op not in waiting)

    @property
    def due(self) -> float:
        """The end of the next wait; infinity if nothing waits."""
        return min((self._records[op].due for op in self._waiting()), default=math.inf)

    def statuses(self, plan: Plan, actual: Actual) -> tuple[list[ConflictStatus], list[str]]:
        """Return all conflicts for status.json, and as text those that are not repaired now."""
        links, now, planned = {link.ifindex: link for link in actual.links}, self._clock(), set(plan)
        statuses, open_now = list[ConflictStatus](), list[str]()
        for op, record in self._records.items():
            if record.times < TOLERATED_REPAIRS:
                continue
            wait = record.due - now
            text = in_ip_syntax(op, links)
            next_at = rfc3339(wait) if wait > 0 else None
            statuses.append(
                {"object": text, "times": record.times, "since": record.since, "next_at": next_at, "by": record.by}
            )
            if op in planned or wait > 0:
                by = f" ({record.by})" if record.by else ""
                when = f"; next repair at {next_at}" if next_at else ""
                open_now.append(f"{text}{by}, {record.times} times since {record.since}{when}")
        return statuses, open_now

    def _waiting(self) -> Iterator[Operation]:
        now = self._clock()
        return (op for op, record in self._records.items() if record.due > now)


def _object_key(op: Operation) -> Hashable:
    """Return a key that identifies the object of an operation, the same for its addition and removal."""
    match op:
        case LinkUp(link) | LinkMtu(link, _):
            return op.NAME, link
        case AddressAdd() | AddressRemove():
            return "address", op.link, op.interface
        case RouteReplace() | RouteRemove():
            return "route", op.table, op.destination
        case RuleAdd() | RuleRemove():
            return "rule", op.priority, op.selector, op.to, op.table, op.suppress, op.mark
        case ForwardedReplies():
            return (op.NAME,)


def _link_with_address(op: Operation, actual: Actual) -> str | None:
    """Return the name of another link that has the address."""
    if not isinstance(op, AddressAdd):
        return None
    names: Mapping[int, str] = {link.ifindex: link.name for link in actual.links}
    for ifindex, address in actual.addresses:
        if address == op.interface.ip and ifindex != op.link:
            return f"{names.get(ifindex, ifindex)} has it"
    return None
