"""A plan on its way through netagent: when it is tried, what it may not break, and what netagent said of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from enum import Enum

from cloud_network.fetcher.agent import Agent, AgentError
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.errors import Errors, now
from cloud_network.fetcher.fights import Fights
from cloud_network.fetcher.metadata.providers import Provider
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
        self._say(f"making {len(changes)} changes, the first: {in_ip_syntax(changes[0], links)}")
        gateways = Gateways(changes, wanted, actual, config.route_table_base)
        way = self._provider.client.interface
        try:
            with Agent() as agent:
                seconds = config.confirm_timeout
                verdict = agent.carry_out(changes, seconds, lambda: self._broken(way, gateways, links, seconds))
        except AgentError as error:
            self.note("unreachable", None, str(error), 0)
            self._errors.begin("netagent", str(error), serious=True)
            self.try_again = min(self.try_again, at + NETAGENT_AWAY)
            return Outcome.FAILED
        self.note(verdict.verdict, verdict.request, verdict.reason, verdict.ops)
        if verdict.verdict == "confirmed":
            logger.info("netagent: %d changes confirmed (request %s)", len(changes), verdict.request)
            if not self._fights.refusals:
                self._errors.end("netagent")
            self._fights.made(changes)
            self._tried, self.try_again = (), at  # patience is for what fails
            return Outcome.CONFIRMED
        at_fault = changes[verdict.position :][:1] if verdict.position is not None else ()
        reason = ": ".join((*(in_ip_syntax(change, links) for change in at_fault), str(verdict.reason)))
        if verdict.verdict != "refused" or not at_fault:
            self._errors.begin("netagent", f"{verdict.verdict}: {reason}", serious=False)
            return Outcome.FAILED
        if verdict.link is None:
            self._fights.refused(at_fault, reason)
        else:
            table = config.route_table_base + verdict.link
            self._fights.refused(of_link(changes, verdict.link, table), str(verdict.reason))
        return Outcome.LESS

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
