"""What netagent, the kernel or a gateway has refused, and how long that holds: the memory behind `desired`'s argument.

A refusal by netagent's policy holds until the metadata, the configuration or the kernel change. What the kernel refused
and gateways that did not resolve are tried again with backoff, too. A link on which a change broke something is left
alone for minutes to hours, unless the change that it needs becomes another one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import Actual, Cause, Object, Rejection, Rejections
from cloud_network.fetcher.network.plan import Plan, link_of
from cloud_network.fetcher.schedule import Backoff, Clock
from cloud_network.netagent.operations import Operation

_RETRY_FIRST, _RETRY_LONGEST = 1.0, 300.0
_HOLD_FIRST, _HOLD_LONGEST = 300.0, 6 * 3600.0
_TIMED = frozenset({Cause.KERNEL, Cause.GATEWAY})
"""Causes that may pass without a change that we see."""


@dataclass(frozen=True, slots=True)
class _Basis:
    """What the rejections were found against."""

    instance: Instance
    config: Config
    actual: Actual


class RejectionTable:
    """Rejections that hold now."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._basis: _Basis | None = None
        self._policy: dict[Object, Rejection] = {}
        self._timed: dict[Object, tuple[Rejection, float]] = {}
        self._backoffs: dict[Object, Backoff] = {}
        self._recheck = Backoff(_RETRY_FIRST, _RETRY_LONGEST)
        self._recheck_at = math.inf

    def update(self, instance: Instance, config: Config, actual: Actual, *, kernel_changed: bool) -> Rejections:
        """Drop what no longer holds and return the rest.

        With `kernel_changed`, the kernel has reported a change since the last pass. If `actual` does not show it
        (another program's route), refusals are checked again, less and less often.
        """
        now, basis, found = self._clock(), self._basis, _Basis(instance, config, actual)
        if basis is None or (basis.instance, basis.config) != (instance, config):
            self.clear()
        elif self._policy and basis.actual != actual:
            self._policy.clear()
            self._recheck.reset()
        elif self._policy and kernel_changed:
            self._recheck_at = min(self._recheck_at, now + self._recheck.next_delay())
        if now >= self._recheck_at:
            self._policy.clear()
            self._recheck_at = math.inf
        self._timed = {each: (why, due) for each, (why, due) in self._timed.items() if due > now}
        self._basis = found
        return self.current

    @property
    def current(self) -> Rejections:
        """All rejections."""
        return {**self._policy, **{each: rejection for each, (rejection, _) in self._timed.items()}}

    def add(self, found: Rejections) -> None:
        """Remember rejections."""
        now = self._clock()
        delays = dict[Cause, float]()
        for rejected, rejection in found.items():
            if rejection.cause not in _TIMED:
                self._policy[rejected] = rejection
                continue
            delay = self._backoffs.setdefault(rejected, Backoff(_RETRY_FIRST, _RETRY_LONGEST)).next_delay()
            delays[rejection.cause] = max(delay, delays.get(rejection.cause, 0.0))
        for rejected, rejection in found.items():  # those of one cause are tried again together
            if rejection.cause in _TIMED:
                self._timed[rejected] = rejection, now + delays[rejection.cause]

    def settle(self, actual: Actual) -> None:
        """Hold the rejections against this state: the pass has ended, and has changed the kernel itself."""
        if self._basis is not None:
            self._basis = _Basis(self._basis.instance, self._basis.config, actual)

    def clear(self) -> None:
        """Forget everything: the configuration or the metadata are new, or root asks for another try."""
        self._policy.clear()
        self._timed.clear()
        self._backoffs.clear()
        self._recheck.reset()
        self._recheck_at = math.inf

    @property
    def due(self) -> float:
        """When something may be tried again; infinity if that needs a change."""
        return min((due for _, due in self._timed.values()), default=self._recheck_at)


@dataclass(frozen=True, slots=True)
class _Hold:
    """A link on which a change broke something."""

    ops: frozenset[Operation]
    reason: str
    due: float


class LinkHolds:
    """Links on which a change broke something: the same change waits 5 minutes, then longer, up to 6 hours."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._holds: dict[int, _Hold] = {}
        self._backoffs: dict[int, Backoff] = {}

    def hold(self, link: int, ops: Plan, reason: str) -> None:
        """Leave the link alone as long as it needs these operations."""
        delay = self._backoffs.setdefault(link, Backoff(_HOLD_FIRST, _HOLD_LONGEST)).next_delay()
        self._holds[link] = _Hold(frozenset(ops), reason, self._clock() + delay)

    def split(self, plan: Plan, table_base: int) -> tuple[Plan, Mapping[int, tuple[str, float]]]:
        """Return the plan without the links on hold, and {ifindex: (reason, seconds left)} of these."""
        by_link: dict[int, set[Operation]] = {}
        for op in plan:
            by_link.setdefault(link_of(op, table_base), set()).add(op)
        now = self._clock()
        held = {
            link: (hold.reason, hold.due - now)
            for link, hold in self._holds.items()
            if hold.due > now and frozenset(by_link.get(link, ())) == hold.ops
        }
        return tuple(op for op in plan if link_of(op, table_base) not in held), held

    def confirmed(self, link: int) -> None:
        """Forget the link: a change on it was confirmed."""
        self._holds.pop(link, None)
        self._backoffs.pop(link, None)

    def clear(self) -> None:
        """Forget everything."""
        self._holds.clear()
        self._backoffs.clear()

    @property
    def due(self) -> float:
        """When the next link may be tried again."""
        now = self._clock()
        return min((hold.due for hold in self._holds.values() if hold.due > now), default=math.inf)


class PlanRetry:
    """Backoff for a plan that failed as a whole: netagent did not answer, or it could not be confirmed."""

    _FIRST, _LONGEST = 1.0, 60.0
    _FORGET = 120.0  # seconds after which the same plan is a new one

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._backoff = Backoff(self._FIRST, self._LONGEST)
        self._tried: Plan = ()
        self._tried_at = -math.inf
        self.due = -math.inf

    def may_try(self, ops: Plan) -> bool:
        """Return True for a plan that has not just failed."""
        return ops != self._tried or self._clock() >= self.due

    def failed(self, ops: Plan, longest: float = math.inf) -> None:
        """Wait before `ops` are tried again, at most `longest` seconds."""
        now = self._clock()
        if ops != self._tried or now > self._tried_at + self._FORGET:
            self._backoff.reset()
        self._tried, self._tried_at = ops, now
        self.due = now + self._backoff.next_delay(longest)

    def clear(self) -> None:
        """Forget the failure."""
        self._backoff.reset()
        self._tried, self.due = (), -math.inf
