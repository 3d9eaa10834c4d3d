"""A plan on its way through netagent: when it is tried, what it may not break, and what netagent said of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from enum import Enum

from cloud_network.fetcher.apply import Netagent, NetagentError, Rejection, Result
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.errors import Errors, now
from cloud_network.fetcher.fights import Fights
from cloud_network.fetcher.metadata.base import Provider
from cloud_network.fetcher.network.objects import Actual, Desired, Link
from cloud_network.fetcher.network.plan import Plan, in_ip_syntax, of_link
from cloud_network.fetcher.patience import Patience
from cloud_network.fetcher.probe import Gateways
from cloud_network.fetcher.status import NetagentStatus, Status

logger = logging.getLogger(__name__)

NETAGENT_AWAY = 5.0  # seconds until it is asked again: a restart takes less, and asking costs nothing
_FIRST, _LONGEST = 1.0, 60.0  # seconds until a plan that failed is tried again
_FORGET = 120.0  # a plan that comes up again after so long is a new one


class Outcome(Enum):
    """What became of a plan."""

    CONFIRMED = "confirmed"
    LESS = "less"  # something of it was refused: the rest may go without
    FAILED = "failed"


class Changes:
    """What has been tried, and when it may be again (in time.monotonic's seconds)."""

    def __init__(
        self, provider: Provider, status: Status, errors: Errors, fights: Fights, say: Callable[[str], None]
    ) -> None:
        self._provider, self._status, self._errors, self._fights, self._say = provider, status, errors, fights, say
        self._retry = Patience(_FIRST, _LONGEST)
        self._tried: Plan = ()
        self._tried_at, self.try_again = -math.inf, -math.inf

    def hurry(self) -> None:
        """Somebody asks, or the configuration is another."""
        self._retry.reset()
        self._tried = ()

    def is_time_for(self, changes: Plan) -> bool:
        """A plan that has just been refused, taken back or undone waits, longer each time; another one does not."""
        return changes != self._tried or time.monotonic() >= self.try_again

    def carry_out(self, changes: Plan, wanted: Desired, actual: Actual, config: Config) -> Outcome:
        """Have them made, and confirm them if they broke nothing."""
        at = time.monotonic()
        if changes != self._tried or at > self._tried_at + _FORGET:
            self._retry.reset()
        self._tried, self._tried_at, self.try_again = changes, at, at + self._retry.longer()
        links = {link.ifindex: link for link in actual.links}
        if logger.isEnabledFor(logging.DEBUG):  # thousands are put into words for nobody, else
            for change in changes:
                logger.debug("change: %s", in_ip_syntax(change, links))
        self._say(f"applying {len(changes)} changes, the first: {in_ip_syntax(changes[0], links)}")
        way = self._provider.client.interface
        try:
            with Netagent() as netagent:
                rejections = netagent.check(changes)
                if rejections:
                    self._hold_back(rejections, changes, links, config)
                    return Outcome.LESS
                gateways = Gateways(changes, wanted, actual, config.route_table_base)
                seconds = config.confirm_timeout
                result = netagent.carry_out(changes, seconds, lambda: self._broken(way, gateways, links, seconds))
        except NetagentError as error:
            self.note("unreachable", None, str(error), 0)
            self._errors.begin("netagent", str(error), serious=True)
            self.try_again = min(self.try_again, at + NETAGENT_AWAY)
            return Outcome.FAILED
        self.note(result.verdict, result.request, result.reason, result.ops)
        if result.verdict == "confirmed":
            logger.info("netagent: %d changes confirmed (request %s)", len(changes), result.request)
            if not self._fights.refusals:
                self._errors.end("netagent")
            self._fights.made(changes)
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
            self._fights.refused(of_link(changes, link, config.route_table_base + link), reason)
        for rejection in rejections:
            if rejection.link is None:
                change = changes[rejection.position]
                reason = f"{in_ip_syntax(change, links)}: {rejection.reason}"
                self._fights.refused((change,), reason, transient=rejection.transient)

    def _broken(self, way: str, gateways: Gateways, links: dict[int, Link], seconds: float) -> str | None:
        """What a change has broken, asked between its making and its confirmation. `way`: the client's, before it."""
        client = self._provider.client
        if not self._provider.answers():
            return "the metadata server did not answer after the change"
        if client.interface != way:
            before, after = _by(way), _by(client.interface)
            text = f"the metadata server answered by {before} before the change, and only by {after} after it"
            client.close()
            client.interface = way  # it is the first to be tried when that has been taken back
            return text
        if lost := gateways.cut_off(seconds / 3):
            named = " and ".join(f"{each.address} on {links[each.ifindex].name}" for each in lost)
            return f"the gateway {named} did not resolve after the change, where one did before"
        return None

    def note(self, verdict: str, request: str | None, reason: str | None, ops: int) -> None:
        """netagent's last word, for status.json and the metrics."""
        said: NetagentStatus = {
            "verdict": verdict,  # type: ignore[typeddict-item]  # netagent's words are the schema's
            "request": request,
            "at": now(),
            "reason": reason,
            "ops": ops,
        }
        self._status["netagent"] = said
        count(self._status["counters"]["netagent_requests"], verdict)


def count(counts: dict[str, int], kind: str) -> None:
    """One more of that kind."""
    counts[kind] = counts.get(kind, 0) + 1


def _by(way: str) -> str:
    return way or "the host's routing"
