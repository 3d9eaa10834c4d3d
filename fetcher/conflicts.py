"""Objects that another program keeps reverting, and changes that netagent refuses: backoff and report.

An object that another program reverts again and again is repaired at once a few times, then less and less often. It is
forgotten after it has not been reverted for a while. A change that netagent refuses, which is a refusal of the whole
request, is left out of the next request and tried again with the same kind of backoff. The other changes do not wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf

from cloud_network.fetcher.errors import RFC3339, now
from cloud_network.fetcher.network.objects import Actual, Address, Route, Rule
from cloud_network.fetcher.network.plan import Change, LinkUp, Plan, Verb, in_ip_syntax
from cloud_network.fetcher.schedule import Backoff
from cloud_network.fetcher.status import ConflictStatus

logger = logging.getLogger(__name__)

_TOLERATED = 5  # repairs of an object without a delay …
_INITIAL, _MAXIMUM = 1.0, 300.0  # … and seconds of backoff after them
_QUIET = 120.0  # seconds without a repair after which an object is forgotten
# include/uapi/linux/rtnetlink.h, and iproute2's etc/iproute2/rt_protos: all that the kernel tells about the program
_PROTOCOLS = {2: "kernel", 3: "boot (ip)", 4: "static (networkd, ip)", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp"}


@dataclass(slots=True)
class _Record:
    """The repairs of one object. Times are those of time.monotonic."""

    times: int = 0
    made_at: float = 0.0
    due: float = 0.0
    since: str = field(default_factory=now)
    by: str | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(_INITIAL, _MAXIMUM))


@dataclass(slots=True)
class _Refusal:
    """The refusal of one change by netagent."""

    reason: str = ""
    due: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(_INITIAL, _MAXIMUM))


class ConflictTracker:
    """Counts how often each change was made, and decides which have to wait."""

    def __init__(self) -> None:
        self._records: dict[Change, _Record] = {}
        self._blocked: dict[Change, str] = {}  # not possible while another program's object is in its place
        self._refused: dict[Change, _Refusal] = {}
        self._pauses: dict[Change, float] = {}

    def record(self, plan: Plan) -> None:
        """Count changes that were made and confirmed. A change that reverts one of ours is not a conflict."""
        at = time.monotonic()
        for change in plan:
            inverse = Change(Verb.REMOVE if change.verb is Verb.ADD else Verb.ADD, change.what)
            self._records.pop(inverse, None)
            record = self._records.setdefault(change, _Record())
            record.times, record.made_at = record.times + 1, at
            if record.times >= _TOLERATED:
                record.due = at + record.backoff.next_delay()

    def refuse(self, plan: Plan, reason: str, *, transient: bool = False) -> None:
        """Record that netagent refuses these changes. They are tried again together, soon if the reason may pass."""
        refusals = [self._refused.setdefault(change, _Refusal()) for change in plan]
        if transient:
            for refusal in refusals:
                refusal.backoff.reset()
        due = time.monotonic() + max(refusal.backoff.next_delay() for refusal in refusals)
        for refusal in refusals:
            refusal.reason, refusal.due = reason, due

    def reset_refusals(self) -> None:
        """Try refused changes again: a refresh was requested, or the configuration changed."""
        self._refused.clear()

    @property
    def refusals(self) -> list[str]:
        """The reasons of netagent's refusals, each once."""
        return list(dict.fromkeys(each.reason for each in self._refused.values()))

    def allowed(self, plan: Plan, actual: Actual) -> Plan:
        """Return the changes that may be made now: without those that have to wait, and those that need them."""
        at = time.monotonic()
        self._forget(plan, at)
        self._blocked = {change: by for change in plan if (by := _blocked_by(change, actual))}
        self._refused = {change: self._refused[change] for change in plan if change in self._refused}
        self._pauses = {change: due for change in plan if (due := self._due(change)) > at}
        for change in plan:
            record = self._records.get(change)
            if record is not None and record.times > 1:
                record.by = self._blocked.get(change) or _holder(change, actual) or record.by
        held = {*self._blocked, *self._pauses}
        possible = tuple(change for change in plan if change not in held and not _needs(change, held))
        if not held:
            return possible
        return tuple(change for change in possible if not _matches_no_address(change, possible, actual))

    @property
    def due(self) -> float:
        """The end of the next pause, when something may be tried again or forgotten; infinity if there is none."""
        at = time.monotonic()
        return min(
            (*self._pauses.values(), *(each.due for each in self._records.values() if each.due > at)), default=inf
        )

    def blocked(self, actual: Actual) -> set[str]:
        """Return the changes for which another program's object is in the way, in `ip` syntax."""
        links = {link.ifindex: link for link in actual.links}
        return {in_ip_syntax(change, links) for change in self._blocked}

    def statuses(self, actual: Actual) -> list[ConflictStatus]:
        """Return the conflicts, in the form of status.json."""
        links = {link.ifindex: link for link in actual.links}
        return [
            {"object": in_ip_syntax(change, links), "times": times, "since": since, "next_at": next_at, "by": by}
            for change, times, since, next_at, by in self._conflicts()
        ]

    def _conflicts(self) -> Iterator[tuple[Change, int, str, str | None, str | None]]:
        for change, record in self._records.items():
            if record.times >= _TOLERATED:
                yield change, record.times, record.since, _at(record.due), record.by
        for change, by in self._blocked.items():
            if change not in self._records or self._records[change].times < _TOLERATED:
                record = self._records.get(change) or _Record()
                yield change, record.times, record.since, None, by

    def _due(self, change: Change) -> float:
        record, refusal = self._records.get(change), self._refused.get(change)
        return max(record.due if record is not None else 0.0, refusal.due if refusal is not None else 0.0)

    def _forget(self, plan: Plan, at: float) -> None:
        # The time first: comparing it is cheap, and there may be thousands of records.
        quiet = {change for change, record in self._records.items() if at > record.made_at + _QUIET}
        for change in quiet.difference(plan):
            record = self._records[change]
            if at > record.made_at + 2 * (record.due - record.made_at):
                del self._records[change]


def _at(due: float) -> str | None:
    seconds = due - time.monotonic()
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime(RFC3339) if seconds > 0 else None


def _blocked_by(change: Change, actual: Actual) -> str | None:
    """Return the foreign route in the place of ours: netagent does not replace it and refuses the whole request."""
    if change.verb is Verb.REMOVE or not isinstance(change.what, Route):
        return None
    place = (change.what.table, change.what.destination)
    protocol = actual.foreign.get(place)
    if protocol is None or any((route.table, route.destination) == place for route in actual.routes):
        return None
    return f"a route of protocol {_PROTOCOLS.get(protocol, protocol)} in its place"


def _holder(change: Change, actual: Actual) -> str | None:
    """Return the other link that has the address of a change, if there is one."""
    if change.verb is Verb.ADD and isinstance(change.what, Address):
        names = {link.ifindex: link.name for link in actual.links}
        for ifindex, address in actual.addresses:
            if address == change.what.address and ifindex != change.what.ifindex:
                return f"{names.get(ifindex, ifindex)} has it"
    return None


def _needs(change: Change, held: set[Change]) -> bool:
    """Return True if a change cannot be made without one of `held`."""
    if change.verb is Verb.REMOVE:
        return False
    return any(other.verb is Verb.ADD and _depends_on(change.what, other.what) for other in held)


def _matches_no_address(change: Change, plan: Plan, actual: Actual) -> bool:
    """Return True for a rule for a prefix in which no link has or gets an address: netagent refuses it."""
    rule = change.what
    if change.verb is Verb.REMOVE or not isinstance(rule, Rule) or not rule.local or rule.selector is None:
        return False
    added = (each.what.address for each in plan if each.verb is Verb.ADD and isinstance(each.what, Address))
    there = (address for _, address in actual.addresses)
    return not any(each in rule.selector for each in (*added, *there) if each.version == rule.version)


def _depends_on(what: object, on: object) -> bool:
    if isinstance(on, LinkUp):
        return getattr(what, "ifindex", None) == on.ifindex
    if isinstance(on, Address):
        if isinstance(what, Rule):
            return what.selector is not None and what.selector.network_address == on.address
        single = on.prefix == on.address.max_prefixlen
        return isinstance(what, Route) and what.ifindex == on.ifindex and what.gateway is not None and not single
    if isinstance(on, Route) and on.gateway is None and isinstance(what, Route):
        return what.table == on.table and what.gateway is not None and what.gateway in on.destination
    return False
