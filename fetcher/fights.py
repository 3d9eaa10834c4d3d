"""What cannot be done, or does not last, is held back and named, so that it does not hold up the rest.

An object that somebody else takes away, or puts back, again and again is repaired at once, then less and less often; it
is forgotten when it has been left in peace. A change that netagent refuses, which is of the whole request, is left out
of the next one, and tried again after a time that doubles as well.
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
from cloud_network.fetcher.patience import Patience
from cloud_network.fetcher.status import ConflictStatus

logger = logging.getLogger(__name__)

_TOLERATED = 5  # times that an object is put in place without a pause …
_FIRST, _LONGEST = 1.0, 300.0  # … and seconds, from the first pause to the longest, after that
_QUIET = 120.0  # seconds in peace after which an object is forgotten
# include/uapi/linux/rtnetlink.h, and iproute2's etc/iproute2/rt_protos; the kernel does not say more about who it was
_PROTOCOLS = {2: "kernel", 3: "boot (ip)", 4: "static (networkd, ip)", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp"}


@dataclass(slots=True)
class _Record:
    """What has happened to one change. Times are time.monotonic's."""

    times: int = 0
    made_at: float = 0.0
    due: float = 0.0
    since: str = field(default_factory=now)
    by: str | None = None
    patience: Patience = field(default_factory=lambda: Patience(_FIRST, _LONGEST))


@dataclass(slots=True)
class _Refusal:
    reason: str = ""
    due: float = 0.0
    patience: Patience = field(default_factory=lambda: Patience(_FIRST, _LONGEST))


class Fights:
    """How often each change was made, and which have to wait."""

    def __init__(self) -> None:
        self._records: dict[Change, _Record] = {}
        self._taken: dict[Change, str] = {}  # held back because somebody else's stands in its place
        self._refused: dict[Change, _Refusal] = {}
        self._pauses: dict[Change, float] = {}

    def made(self, plan: Plan) -> None:
        """These were made and confirmed. What we ourselves take back is nobody's fight."""
        at = time.monotonic()
        for change in plan:
            inverse = Change(Verb.REMOVE if change.verb is Verb.ADD else Verb.ADD, change.what)
            self._records.pop(inverse, None)
            record = self._records.setdefault(change, _Record())
            record.times, record.made_at = record.times + 1, at
            if record.times >= _TOLERATED:
                record.due = at + record.patience.longer()

    def refused(self, plan: Plan, reason: str, *, transient: bool = False) -> None:
        """Hold these back, which netagent refuses: they are tried again together, soon if the reason may pass."""
        refusals = [self._refused.setdefault(change, _Refusal()) for change in plan]
        if transient:
            for refusal in refusals:
                refusal.patience.reset()
        due = time.monotonic() + max(refusal.patience.longer() for refusal in refusals)
        for refusal in refusals:
            refusal.reason, refusal.due = reason, due

    def hurry(self) -> None:
        """Somebody asks, or the configuration is another: what was refused may be allowed now."""
        self._refused.clear()

    @property
    def refusals(self) -> list[str]:
        """Why something is left out that netagent refused, each reason once."""
        return list(dict.fromkeys(each.reason for each in self._refused.values()))

    def allowed(self, plan: Plan, actual: Actual) -> Plan:
        """What of a plan may be made now: without what is fought over and has to wait, and what needs that."""
        at = time.monotonic()
        self._forget(plan, at)
        self._taken = {change: by for change in plan if (by := _taken(change, actual))}
        self._refused = {change: self._refused[change] for change in plan if change in self._refused}
        self._pauses = {change: due for change in plan if (due := self._due(change)) > at}
        for change in plan:
            record = self._records.get(change)
            if record is not None and record.times > 1:
                record.by = self._taken.get(change) or _who(change, actual) or record.by
        held = {*self._taken, *self._pauses}
        left = tuple(change for change in plan if change not in held and not _needs(change, held))
        return tuple(change for change in left if not _stands_for_nothing(change, left, actual)) if held else left

    @property
    def due(self) -> float:
        """When the next pause ends: something may be tried again, or was left in peace. Infinity if there is none."""
        at = time.monotonic()
        return min(
            (*self._pauses.values(), *(each.due for each in self._records.values() if each.due > at)), default=inf
        )

    def taken(self, actual: Actual) -> set[str]:
        """What cannot be made as long as somebody else's is in its place, in `ip` syntax."""
        links = {link.ifindex: link for link in actual.links}
        return {in_ip_syntax(change, links) for change in self._taken}

    def statuses(self, actual: Actual) -> list[ConflictStatus]:
        """The fights, as status.json has them."""
        links = {link.ifindex: link for link in actual.links}
        return [
            {"object": in_ip_syntax(change, links), "times": times, "since": since, "next_at": next_at, "by": by}
            for change, times, since, next_at, by in self._fights()
        ]

    def _fights(self) -> Iterator[tuple[Change, int, str, str | None, str | None]]:
        for change, record in self._records.items():
            if record.times >= _TOLERATED:
                yield change, record.times, record.since, _at(record.due), record.by
        for change, by in self._taken.items():
            if change not in self._records or self._records[change].times < _TOLERATED:
                record = self._records.get(change) or _Record()
                yield change, record.times, record.since, None, by

    def _due(self, change: Change) -> float:
        record, refusal = self._records.get(change), self._refused.get(change)
        return max(record.due if record is not None else 0.0, refusal.due if refusal is not None else 0.0)

    def _forget(self, plan: Plan, at: float) -> None:
        # By its time first, which is cheap: there may be thousands of records.
        quiet = {change for change, record in self._records.items() if at > record.made_at + _QUIET}
        for change in quiet.difference(plan):
            record = self._records[change]
            if at > record.made_at + 2 * (record.due - record.made_at):
                del self._records[change]


def _at(due: float) -> str | None:
    left = due - time.monotonic()
    return (datetime.now(UTC) + timedelta(seconds=left)).strftime(RFC3339) if left > 0 else None


def _taken(change: Change, actual: Actual) -> str | None:
    """Whose route stands where ours shall be: it is not ours to replace, and netagent refuses the whole request."""
    if change.verb is Verb.REMOVE or not isinstance(change.what, Route):
        return None
    place = (change.what.table, change.what.destination)
    protocol = actual.foreign.get(place)
    if protocol is None or any((route.table, route.destination) == place for route in actual.routes):
        return None
    return f"a route of protocol {_PROTOCOLS.get(protocol, protocol)} in its place"


def _who(change: Change, actual: Actual) -> str | None:
    """Who has it instead, as far as the kernel says."""
    if change.verb is Verb.ADD and isinstance(change.what, Address):
        names = {link.ifindex: link.name for link in actual.links}
        for ifindex, address in actual.addresses:
            if address == change.what.address and ifindex != change.what.ifindex:
                return f"{names.get(ifindex, ifindex)} has it"
    return None


def _needs(change: Change, held: set[Change]) -> bool:
    """Whether a change cannot be made without one that is held back."""
    if change.verb is Verb.REMOVE:
        return False
    return any(other.verb is Verb.ADD and _leans_on(change.what, other.what) for other in held)


def _stands_for_nothing(change: Change, plan: Plan, actual: Actual) -> bool:
    """Whether it is a rule for a prefix in which nobody has an address, nor gets one by `plan`: netagent refuses it."""
    rule = change.what
    if change.verb is Verb.REMOVE or not isinstance(rule, Rule) or not rule.local or rule.selector is None:
        return False
    added = (each.what.address for each in plan if each.verb is Verb.ADD and isinstance(each.what, Address))
    there = (address for _, address in actual.addresses)
    return not any(each in rule.selector for each in (*added, *there) if each.version == rule.version)


def _leans_on(what: object, on: object) -> bool:
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
