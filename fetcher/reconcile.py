"""One pass: read the metadata, compare with the kernel, have netagent make the difference, write down what is known.

Whatever fails is logged, kept in status.json and tried again; what was known before stays in force, and nothing is
removed on account of a failure. A read that would take something away is only believed when a second one agrees.
"""

from __future__ import annotations

import logging
import random
import time
from datetime import UTC, datetime
from typing import Literal

from cloud_network.fetcher import kernel, report
from cloud_network.fetcher.agent import Agent, AgentError
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.desired import desired, match_links
from cloud_network.fetcher.model import Instance, MetadataError
from cloud_network.fetcher.objects import Actual, Desired
from cloud_network.fetcher.plan import Plan, Verb, in_ip_syntax, plan
from cloud_network.fetcher.providers import Provider
from cloud_network.fetcher.state import StateDirectory
from cloud_network.fetcher.status import VERSION, LastError, NetagentStatus, Status

logger = logging.getLogger(__name__)

_FIRST_RETRY, _LONGEST_RETRY = 1.0, 60.0  # seconds; doubled each time, with jitter
_SHORTLY = 1.0  # seconds until the next pass when facts are left to read or the metadata lags behind
_CHASE = 30.0  # seconds for which metadata may lag behind an interface before it is left to the timer


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reconciler:
    """What is known between two passes."""

    def __init__(self, config: Config, provider: Provider, state: StateDirectory) -> None:
        self.config, self.provider, self.state = config, provider, state
        self.instance: Instance | None = None
        self._written: Instance | None = None
        self._failures = 0
        self.unlisted: set[int] = set()
        self._chase_until = 0.0
        previous = state.read_status()
        self._generation = previous["generation"] if previous else 0
        self._fetched_at: str | None = None
        self._attempted_at: str | None = None
        self._requests = 0
        self._last_error: LastError | None = None
        self._healthy = False
        self._netagent: NetagentStatus = {"verdict": "none", "request": None, "at": None, "reason": None, "ops": 0}

    def refresh(self) -> float:
        """Read the metadata and converge; seconds until it should be done again."""
        self._attempted_at = _now()
        before = self.provider.client.requests
        try:
            instance = self.provider.fetch()
            if self._would_remove(instance) and self.provider.fetch() != instance:
                raise MetadataError(
                    "changed", "two reads in a row differ: the metadata is changing, nothing is removed"
                )
        except MetadataError as error:
            self._requests = self.provider.client.requests - before
            self._failed("metadata", f"{error} (kept: the state of {self._fetched_at or 'before'})")
            self._write_status()
            return self._retry_in()
        self._requests = self.provider.client.requests - before
        self._fetched_at = _now()
        if instance != self.instance:
            self._generation += 1
        for problem in instance.problems:
            logger.error("metadata: %s; this interface is left as it is, and nothing is removed", problem)
        self.instance = instance
        if not self.converge():
            return self._retry_in()
        self._failures = 0
        return _SHORTLY if self.provider.unread or self.chasing else self.config.refresh_timer

    def converge(self) -> bool:
        """Make the kernel agree with the metadata that is known; whether it does now."""
        if self.instance is None:
            return False
        try:
            actual, wanted, changes = self._compare(self.instance)
            if changes:
                self._carry_out(changes, actual)
                actual, wanted, changes = self._compare(self.instance)
        except kernel.KernelError as error:
            self._failed("kernel", str(error))
            return False
        except AgentError as error:
            self._netagent = {"verdict": "unreachable", "request": None, "at": _now(), "reason": str(error), "ops": 0}
            self._failed("netagent", str(error))
        self._healthy = not changes and self.instance.complete
        self._note_unlisted(actual)
        self._write_links(actual)
        self._write_status(actual, wanted, changes)
        return not changes

    def _note_unlisted(self, actual: Actual) -> None:
        """Remember links that could be the cloud's and that the metadata does not name (yet: clouds lag by seconds)."""
        listed = {interface.mac for interface in self.instance.interfaces} if self.instance else set()
        kinds = (None, *self.config.allow_kinds)
        unlisted = {link.ifindex for link in actual.links if link.mac and link.mac not in listed and link.kind in kinds}
        if unlisted - self.unlisted:
            self._chase_until = time.monotonic() + _CHASE
        self.unlisted = unlisted

    @property
    def chasing(self) -> bool:
        """Whether a link has just appeared that the metadata ought to name soon."""
        return bool(self.unlisted) and time.monotonic() < self._chase_until

    def plan_now(self) -> list[str]:
        """What would be changed now, in `ip` syntax."""
        if self.instance is None:
            return []
        actual, _, changes = self._compare(self.instance)
        links = {link.ifindex: link for link in actual.links}
        return [in_ip_syntax(change, links) for change in changes]

    def _compare(self, instance: Instance) -> tuple[Actual, Desired, Plan]:
        actual = kernel.read()
        wanted = desired(instance, self.config, actual)
        excluded = frozenset(link.ifindex for link in actual.links if link.name in self.config.exclude)
        return actual, wanted, plan(wanted, actual, may_remove=instance.complete, excluded=excluded)

    def _would_remove(self, instance: Instance) -> bool:
        """Whether this read, if it is true, takes something away: then one read alone is no proof."""
        try:
            _, _, changes = self._compare(instance)
        except kernel.KernelError:
            return False
        return any(change.verb is Verb.REMOVE for change in changes)

    def _carry_out(self, changes: Plan, actual: Actual) -> None:
        links = {link.ifindex: link for link in actual.links}
        for change in changes:
            logger.debug("change: %s", in_ip_syntax(change, links))
        with Agent() as agent:
            verdict = agent.carry_out(changes, self.config.confirm_timeout, self.provider.answers)
        self._netagent = {
            "verdict": verdict.verdict,  # type: ignore[typeddict-item]  # netagent's words are the schema's
            "request": verdict.request,
            "at": _now(),
            "reason": verdict.reason,
            "ops": verdict.ops,
        }
        if verdict.verdict == "confirmed":
            logger.info("netagent: %d changes confirmed (request %s)", len(changes), verdict.request)
            self._last_error = None
        else:
            self._failed("netagent", f"{verdict.verdict}, request {verdict.request}: {verdict.reason}")

    def _failed(self, kind: Literal["metadata", "netagent", "kernel"], message: str) -> None:
        level = logging.ERROR if self._last_error is None or self._last_error["message"] != message else logging.DEBUG
        logger.log(level, "%s: %s", kind, message)
        self._last_error = {"at": _now(), "kind": kind, "message": message}
        self._healthy = False

    def _retry_in(self) -> float:
        self._failures += 1
        delay: float = min(_FIRST_RETRY * 2 ** min(self._failures - 1, 10), _LONGEST_RETRY, self.config.refresh_timer)
        return delay * random.uniform(0.75, 1.25)  # noqa: S311  # jitter, not a secret

    # What others read

    def _write_links(self, actual: Actual) -> None:
        instance = self.instance
        if instance is None:
            return
        found = match_links(instance, self.config, actual.links)
        documents = {found[each.mac].ifindex: each.document for each in instance.interfaces if each.mac in found}
        for ifindex in set(self.state.link_indexes()) - set(documents):
            self.state.remove_link(ifindex)
        for ifindex, document in documents.items():
            if self.state.read_link(ifindex) != document:
                self.state.write_link(ifindex, document)
        if self._written is None or self._written.system != instance.system:
            self.state.write_system(instance.system)
        if self._written is None or self._written.identity != instance.identity:
            for name, content in instance.identity.items():
                self.state.write_identity(instance.provider, name, content)
        self._written = instance

    def _write_status(self, actual: Actual | None = None, wanted: Desired | None = None, changes: Plan = ()) -> None:
        previous = self.state.read_status()
        links = previous["links"] if previous else {}
        unknown = previous["unknown_macs"] if previous else []
        if actual is not None and wanted is not None and self.instance is not None:
            links = report.link_statuses(self.instance, self.config, actual, wanted, changes)
            unknown = list(wanted.unknown_macs)
        healthy = self._healthy and not unknown
        status: Status = {
            "version": VERSION,
            "generation": self._generation,
            "provider": self.provider.name,
            "state": "ok" if healthy else "error" if self._fetched_at is None else "degraded",
            "fetched_at": self._fetched_at,
            "attempted_at": self._attempted_at,
            "written_at": _now(),
            "refresh_timer": self.config.refresh_timer,
            "last_error": self._last_error,
            "metadata_requests": self._requests,
            "netagent": self._netagent,
            "links": links,
            "unknown_macs": unknown,
        }
        self.state.write_status(status)
