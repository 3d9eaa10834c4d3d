"""Memory of refusals by netagent, the kernel or a gateway, and their duration. `desired` gets them as an argument.

A refusal by netagent's policy holds until the metadata, the configuration or the kernel change. Kernel refusals and
gateways that did not resolve are also tried again with backoff. A change that broke something is not repeated for
minutes to hours, unless the metadata of its interface changes, or the kernel changes so that only a part is needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cloud_network.fetcher import schedule
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance, Interface
from cloud_network.fetcher.network.objects import Actual, Cause, HeldLink, Object, Rejection, Rejections
from cloud_network.fetcher.network.plan import Plan, link_of
from cloud_network.fetcher.schedule import Backoff, Clock
from cloud_network.fetcher.status import rfc3339
from cloud_network.netagent.operations import Operation

_BACKOFFS_S = {
    Cause.KERNEL: (schedule.REJECTION_FIRST_S, schedule.REJECTION_LONGEST_S),
    Cause.GATEWAY: (schedule.REJECTION_FIRST_S, schedule.REJECTION_LONGEST_S),
    # Soon at first: the cloud may need seconds for a new link.
    Cause.ROLLED_BACK: (schedule.REJECTION_FIRST_S, schedule.HOLD_LONGEST_S),
}
"""First and longest delay of the causes that can disappear without a visible change."""


@dataclass(frozen=True, slots=True)
class _Basis:
    """The state in which the rejections were recorded."""

    instance: Instance
    config: Config
    actual: Actual


class RejectionTable:
    """The rejections in force."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._basis: _Basis | None = None
        self._policy: dict[Object, Rejection] = {}
        self._timed: dict[Object, tuple[Rejection, float]] = {}
        self._backoffs: dict[Object, Backoff] = {}
        self._recheck = Backoff(schedule.REJECTION_FIRST_S, schedule.REJECTION_LONGEST_S)
        self._recheck_at = math.inf

    def update(self, instance: Instance, config: Config, actual: Actual, *, kernel_changed: bool) -> Rejections:
        """Drop the rejections that no longer hold, and return the rest.

        With `kernel_changed`, the kernel has reported a change since the last pass. If `actual` does not show it
        (another program's route), refusals are checked again, with backoff.
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
        """Record rejections."""
        now = self._clock()
        delays = dict[Cause, float]()
        for rejected, rejection in found.items():
            if rejection.cause not in _BACKOFFS_S:
                self._policy[rejected] = rejection
                continue
            delay = self._backoffs.setdefault(rejected, Backoff(*_BACKOFFS_S[rejection.cause])).next_delay()
            delays[rejection.cause] = max(delay, delays.get(rejection.cause, 0.0))
        for rejected, rejection in found.items():  # those of one cause are tried again together
            if rejection.cause in _BACKOFFS_S:
                delay = delays[rejection.cause]
                self._timed[rejected] = _with_next_try(rejection, delay), now + delay

    def rebase(self, actual: Actual) -> None:
        """Compare with this state from now on: the pass has ended and has changed the kernel itself."""
        if self._basis is not None:
            self._basis = _Basis(self._basis.instance, self._basis.config, actual)

    def clear(self) -> None:
        """Forget everything: the configuration or the metadata is new, or root requested a retry."""
        self._policy.clear()
        self._timed.clear()
        self._backoffs.clear()
        self._recheck.reset()

    def reconfigured(self) -> None:
        """Forget everything after a start or reload, once now and once after NETAGENT_RELOAD_S."""
        self.clear()
        self._recheck_at = self._clock() + schedule.NETAGENT_RELOAD_S

    @property
    def due(self) -> float:
        """Time of the next retry; infinity if only a change can lift a rejection."""
        return min([self._recheck_at, *(due for _, due in self._timed.values())])


def _with_next_try(rejection: Rejection, delay: float) -> Rejection:
    """Add the time of the next try to the reason of a change that was rolled back."""
    if rejection.cause is not Cause.ROLLED_BACK:
        return rejection
    retry = "to retry now, run `sudo cnctl refresh --retry`"
    return replace(rejection, reason=f"{rejection.reason}; next try at {rfc3339(delay)}; {retry}")


@dataclass(frozen=True, slots=True)
class _Hold:
    """A link on which a change broke something."""

    ops: frozenset[Operation]
    interface: Interface | None  # the metadata that the operations are from
    reason: str
    due: float


class LinkHolds:
    """Links on which a change broke something: the same change waits 5 minutes, then longer, up to 6 hours."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._holds: dict[int, _Hold] = {}
        self._backoffs: dict[int, Backoff] = {}

    def hold(self, link: int, ops: Plan, interface: Interface | None, reason: str) -> None:
        """Hold back these operations while the link needs them all, and its interface's metadata stay the same."""
        if link not in self._backoffs:  # a retry is no load on a server: no jitter
            self._backoffs[link] = Backoff(schedule.HOLD_FIRST_S, schedule.HOLD_LONGEST_S, jitter=0)
        delay = self._backoffs[link].next_delay()
        self._holds[link] = _Hold(frozenset(ops), interface, reason, self._clock() + delay)

    def split(
        self, plan: Plan, interfaces: Mapping[int, Interface], table_base: int
    ) -> tuple[Plan, Mapping[int, HeldLink]]:
        """Return the plan without what is on hold, and the links on hold by ifindex.

        `interfaces` are those of the metadata by ifindex.
        """
        by_link: dict[int, set[Operation]] = {}
        for op in plan:
            by_link.setdefault(link_of(op, table_base), set()).add(op)
        now = self._clock()
        held = {
            link: HeldLink(hold.reason, hold.due - now)
            for link, hold in self._holds.items()
            if hold.due > now and hold.ops <= by_link.get(link, set()) and hold.interface == interfaces.get(link)
        }
        kept_back = {op for link in held for op in self._holds[link].ops}
        return tuple(op for op in plan if op not in kept_back), held

    def confirmed(self, link: int, ops: Plan) -> None:
        """Forget the link after its change was confirmed. Another change, beside what is on hold, proves nothing."""
        hold = self._holds.get(link)
        if hold is not None and hold.due > self._clock() and not hold.ops <= set(ops):
            return
        self._holds.pop(link, None)
        self._backoffs.pop(link, None)

    def clear(self) -> None:
        """Forget everything."""
        self._holds.clear()
        self._backoffs.clear()

    @property
    def due(self) -> float:
        """Time at which the next hold ends."""
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
        self._due = -math.inf
        self._refused = False  # and the kernel has not changed since

    @property
    def due(self) -> float:
        """The time of the next attempt; infinity if it waits for a change in the kernel."""
        return math.inf if self._refused else self._due

    def may_try(self, ops: Plan) -> bool:
        """Return False for a plan that failed recently, or was refused and nothing has changed since."""
        return ops != self._tried or self._clock() >= self.due

    def is_refused(self, ops: Plan) -> bool:
        """Return True for a plan that waits for a change in the kernel."""
        return self._refused and ops == self._tried

    def failed(self, ops: Plan, longest: float = math.inf, *, refused: bool = False) -> None:
        """Delay the next attempt of `ops`, by at most `longest` seconds; if refused, also until the kernel changes."""
        now = self._clock()
        if ops != self._tried or now > self._tried_at + self._FORGET:
            self._backoff.reset()
        self._tried, self._tried_at, self._refused = ops, now, refused
        self._due = now + self._backoff.next_delay(longest)

    def kernel_changed(self) -> None:
        """Let a refused plan be tried again after its delay."""
        self._refused = False

    def clear(self) -> None:
        """Forget the failure."""
        self._backoff.reset()
        self._tried, self._due, self._refused = (), -math.inf, False
