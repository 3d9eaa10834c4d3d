"""Application of a plan by netagent: when it is tried, the checks before it is confirmed, and its outcome."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from enum import Enum

from cloud_network.fetcher.apply import Netagent, NetagentError, Rejection, Result
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.conflicts import ConflictTracker
from cloud_network.fetcher.errors import Errors, now
from cloud_network.fetcher.metadata.providers import Provider
from cloud_network.fetcher.network.objects import Actual, Desired, Link
from cloud_network.fetcher.network.plan import Plan, in_ip_syntax, of_link
from cloud_network.fetcher.probe import Gateways
from cloud_network.fetcher.schedule import Backoff
from cloud_network.fetcher.status import NetagentStatus, Status

logger = logging.getLogger(__name__)

NETAGENT_AWAY = 5.0  # seconds until the next attempt to connect; a restart takes less
_INITIAL, _MAXIMUM = 1.0, 60.0  # seconds until a failed plan is tried again
_FORGET = 120.0  # seconds after which an equal plan counts as a new one


class Outcome(Enum):
    """The outcome of a plan."""

    CONFIRMED = "confirmed"
    LESS = "less"  # a part was refused; the rest can be tried without it
    FAILED = "failed"


class Changes:
    """Applies plans. Remembers the last one and the time (of time.monotonic) at which it may be tried again."""

    def __init__(
        self,
        provider: Provider,
        status: Status,
        errors: Errors,
        conflicts: ConflictTracker,
        notify: Callable[[str], None],
    ) -> None:
        self._provider, self._status, self._errors = provider, status, errors
        self._conflicts, self._notify = conflicts, notify
        self._retry = Backoff(_INITIAL, _MAXIMUM)
        self._tried: Plan = ()
        self._tried_at, self.try_again = -math.inf, -math.inf

    def reset(self) -> None:
        """Try the next plan at once: a refresh was requested, or the configuration changed."""
        self._retry.reset()
        self._tried = ()

    def is_time_for(self, changes: Plan) -> bool:
        """Return True if `changes` may be tried now: they have not just failed, or their backoff has ended."""
        return changes != self._tried or time.monotonic() >= self.try_again

    def carry_out(self, changes: Plan, wanted: Desired, actual: Actual, config: Config) -> Outcome:
        """Have netagent apply the changes, and confirm them if the network still works."""
        at = time.monotonic()
        if changes != self._tried or at > self._tried_at + _FORGET:
            self._retry.reset()
        self._tried, self._tried_at, self.try_again = changes, at, at + self._retry.next_delay()
        links = {link.ifindex: link for link in actual.links}
        if logger.isEnabledFor(logging.DEBUG):  # formatting every change is slow
            for change in changes:
                logger.debug("change: %s", in_ip_syntax(change, links))
        self._notify(f"applying {len(changes)} changes, the first: {in_ip_syntax(changes[0], links)}")
        interface = self._provider.client.interface
        try:
            with Netagent() as netagent:
                rejections = netagent.check(changes)
                if rejections:
                    self._hold_back(rejections, changes, links, config)
                    return Outcome.LESS
                gateways = Gateways(changes, wanted, actual, config.route_table_base)
                seconds = config.confirm_timeout
                result = netagent.carry_out(changes, seconds, lambda: self._broken(interface, gateways, links, seconds))
        except NetagentError as error:
            self.note("unreachable", None, str(error), 0)
            self._errors.begin("netagent", str(error), serious=True)
            self.try_again = min(self.try_again, at + NETAGENT_AWAY)
            return Outcome.FAILED
        self.note(result.verdict, result.request, result.reason, result.ops)
        if result.verdict == "confirmed":
            logger.info("netagent: %d changes confirmed (request %s)", len(changes), result.request)
            if not self._conflicts.refusals:
                self._errors.end("netagent")
            self._conflicts.record(changes)
            self._tried, self.try_again = (), at
            return Outcome.CONFIRMED
        return self._failed(result, changes, links, config)

    def _failed(self, result: Result, changes: Plan, links: dict[int, Link], config: Config) -> Outcome:
        """Hold back what the kernel or netagent did not accept; the rest may go without it."""
        if result.rejections:
            self._hold_back(result.rejections, changes, links, config)
            return Outcome.LESS
        self._errors.begin("netagent", f"{result.verdict}: {result.reason}", serious=False)
        return Outcome.FAILED

    def _hold_back(
        self, rejections: tuple[Rejection, ...], changes: Plan, links: dict[int, Link], config: Config
    ) -> None:
        """Leave the rejected changes out of the plans to come, for a time that grows with each rejection."""
        whole_links = {each.link: each.reason for each in rejections if each.link is not None}
        for link, reason in whole_links.items():
            self._conflicts.refuse(of_link(changes, link, config.route_table_base + link), reason)
        for rejection in rejections:
            if rejection.link is None:
                change = changes[rejection.position]
                reason = f"{in_ip_syntax(change, links)}: {rejection.reason}"
                self._conflicts.refuse((change,), reason, transient=rejection.transient)

    def _broken(self, interface: str, gateways: Gateways, links: dict[int, Link], seconds: float) -> str | None:
        """Return what a change has broken, before it is confirmed; None if nothing.

        `interface` is the one by which the metadata server answered before the change.
        """
        client = self._provider.client
        if not self._provider.answers():
            return "the metadata server did not answer after the change"
        if client.interface != interface:
            before, after = _by(interface), _by(client.interface)
            text = f"the metadata server answered by {before} before the change, and only by {after} after it"
            client.close()
            client.interface = interface  # the first to be tried after the rollback
            return text
        if lost := gateways.cut_off(seconds / 3):
            named = " and ".join(f"{each.address} on {links[each.ifindex].name}" for each in lost)
            return f"the gateway {named} did not resolve after the change, where one did before"
        return None

    def note(self, verdict: str, request: str | None, reason: str | None, ops: int) -> None:
        """Record netagent's last verdict, for status.json and the metrics."""
        said: NetagentStatus = {
            "verdict": verdict,  # type: ignore[typeddict-item]  # netagent's verdicts are those of the schema
            "request": request,
            "at": now(),
            "reason": reason,
            "ops": ops,
        }
        self._status["netagent"] = said
        count(self._status["counters"]["netagent_requests"], verdict)


def count(counts: dict[str, int], kind: str) -> None:
    """Add one to the count of `kind`."""
    counts[kind] = counts.get(kind, 0) + 1


def _by(interface: str) -> str:
    return interface or "the host's routing"
