"""One pass: read the metadata, compare with the kernel, have netagent apply the difference, write the state files.

A failure is logged, shown in status.json and retried. The state known before stays in force, and a failure removes
nothing. A removal needs two reads of the metadata that agree. The time of the next attempt is set before a step begins,
so that a step that ends unexpectedly is repeated.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress

from cloud_network.fetcher import report
from cloud_network.fetcher.apply import Netagent
from cloud_network.fetcher.changes import NETAGENT_AWAY, Changes, Outcome, count
from cloud_network.fetcher.config import Config, Purge
from cloud_network.fetcher.conflicts import ConflictTracker
from cloud_network.fetcher.errors import Errors, now
from cloud_network.fetcher.flush import FLUSHED, FlushAnswer, flush_answer
from cloud_network.fetcher.lookahead import PlanAnswer, look_ahead
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers import Provider, Waiting
from cloud_network.fetcher.mismatch import InterfaceMismatch
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.desired import desired
from cloud_network.fetcher.network.objects import Actual, Desired
from cloud_network.fetcher.network.plan import Plan, Verb, plan
from cloud_network.fetcher.publish import Publisher
from cloud_network.fetcher.schedule import Backoff
from cloud_network.fetcher.state import StateDirectory
from cloud_network.fetcher.status import Status

logger = logging.getLogger(__name__)

_SHORTLY = 1.0  # seconds until the next read if facts are left to read, or the last read failed …
_PROOF = 0.4  # … and if a removal waits for confirmation
_SETTLE = 0.05  # seconds to debounce kernel events …
_PACE = 0.5  # … and between two reads of the kernel because of events
_LONGEST_RETRY = 60.0
_UNANSWERED = 5.0  # seconds after a read without an answer until a kernel event is a reason for the next one
_REFUSALS = 5  # refusals by netagent in one pass, before the rest of the plan waits for the next one


Compared = tuple[Actual, Desired, Plan]


class Reconciler:
    """The state between two passes, and the times (of time.monotonic) at which the next ones are due."""

    def __init__(
        self,
        config: Config,
        provider: Provider,
        state: StateDirectory,
        say: Callable[[str], None] = lambda _: None,
        news: Callable[[], bool] | None = None,
        run: str = "",
    ) -> None:
        self.provider = provider
        self.succeeded = False  # True after the first pass that left nothing to do
        self._say = say  # receives the current activity, for systemd
        self._news = news  # returns True if kernel events arrived since the last call; None without events
        self._failed_reads = 0
        self.refresh_due, self.compare_due = 0.0, math.inf
        self._config = config
        provider.client.kinds = config.allow_kinds
        self._errors = Errors()
        self._publisher = Publisher(state, provider.name, run)
        self._instance: Instance | None = None
        self._unread = False  # True if the last read failed …
        self._unanswered_at = math.inf  # … and when, if there was no answer
        self._read_at = -math.inf  # the start of the last read
        self._put_off = -math.inf  # the end of the server's Retry-After
        self._unproven: Instance | None = None  # a read that would remove something, until a second one confirms it
        self._read_retry = Backoff(_SHORTLY, _LONGEST_RETRY)
        self._conflicts, self._kernel = ConflictTracker(), kernel.Reader()
        self._changes = Changes(provider, self._publisher.status, self._errors, self._conflicts, say)
        self._compared_at = self._last_event_check = -math.inf  # the last comparison; the last one caused by an event
        self._actual: Actual | None = None  # the last read of the kernel, until an event arrives
        self._agreed: tuple[Instance, Config] | None = None  # the last state without drift
        self._mismatch = InterfaceMismatch()
        self._logged_notices: tuple[str, ...] = ()
        self._flushed = False  # then nothing is changed until refresh_now

    # Events

    def noticed(self) -> None:
        """Schedule a comparison after a kernel event, debounced and at a limited rate.

        If the last read of the metadata had no answer, the network may be up now, so it is repeated as well.
        """
        self._actual = None
        settled = time.monotonic() + _SETTLE
        self.compare_due = min(self.compare_due, max(settled, self._last_event_check + _PACE))
        self.refresh_due = min(self.refresh_due, max(settled, self._unanswered_at + _UNANSWERED))

    def changed(self) -> None:
        """Schedule a read of the metadata, which may have changed, within the limits of its rate and Retry-After."""
        self.refresh_due = min(self.refresh_due, max(time.monotonic(), self._read_at + _PACE, self._put_off))

    def reconfigure(self, config: Config) -> None:
        """Use another configuration, at once."""
        self._config = config
        self.provider.client.kinds = config.allow_kinds
        self._reset_backoff()
        self.refresh_due = 0.0

    def refresh_now(self) -> Status:
        """Refresh on request, with the second read that a removal needs and without backoff. Return the status."""
        self._flushed = False
        self._reset_backoff()
        self.refresh()
        if self._unproven is not None:
            self.refresh()
        return self._publisher.status

    def _reset_backoff(self) -> None:
        self._read_retry.reset()
        self._changes.reset()
        self._conflicts.reset_refusals()

    def plan_now(self) -> PlanAnswer:
        """Return what a refresh would change. Changes nothing and does not store what it reads."""
        answer = look_ahead(self.provider, self._instance, self._compare, flushed=self._flushed)
        if isinstance(self.provider, Waiting):
            self.changed()  # the provider reports a change once, and this read may have been it
        return answer

    def flush(self) -> FlushAnswer:
        """Have netagent remove everything that is owned. Nothing is added again before refresh_now."""
        with Netagent() as netagent:
            verdict = netagent.flush()
        self._changes.note(verdict.verdict, verdict.request, verdict.reason, verdict.ops)
        answer = flush_answer(verdict)
        self._flushed = True
        self.converge()
        return answer

    def renew(self) -> None:
        """Write status.json again: the loop runs."""
        self._publisher.renew()

    def stop(self) -> None:
        """Flush if Purge= asks for it, before the process ends."""
        if self._config.purge is Purge.ON_STOP:
            logger.info("Purge: removed %d addresses, routes and rules", self.flush()["removed"])

    # The two passes

    def refresh(self) -> None:
        """Read the metadata and converge."""
        self._read_at = time.monotonic()
        self.refresh_due = self._read_at + self._read_retry.next_delay(self._config.refresh_timer)
        self._publisher.status["attempted_at"] = now()
        if self._failed_reads == 0:
            self._say(f"reading the metadata at {self.provider.client.endpoint}")
        self._actual = None  # read it once per refresh, even without an event
        if self._news is not None:
            with suppress(kernel.KernelError):  # converging reports it
                self._look()
        before = self.provider.client.requests
        try:
            instance = self.provider.fetch().with_what_was_known(self._instance)
        except MetadataError as error:
            kept = self._publisher.status["fetched_at"]
            message = f"{error}; nothing is removed" + (f", the state of {kept} is kept" if kept else "")
            self._errors.begin("metadata", message, serious=True)
            count(self._publisher.status["counters"]["metadata_errors"], error.kind)
            asked = min(error.retry_after, max(_LONGEST_RETRY, self._config.refresh_timer))
            self._put_off = time.monotonic() + asked
            self.refresh_due = max(self.refresh_due, self._put_off)
            self._unread = True
            self._unanswered_at = time.monotonic() if error.kind in ("unreachable", "timeout") else math.inf
            self._failed_reads += 1
            self._write_status()
            return
        finally:
            spent = self.provider.client.requests - before
            self._publisher.status["metadata_requests"] = spent
            self._publisher.status["metadata_seconds"] = round(time.monotonic() - self._read_at, 4)
            self._publisher.status["counters"]["metadata_requests"] += spent
        self._unread, self._unanswered_at, self._failed_reads = False, math.inf, 0
        compared = self._look_ahead(instance)
        if instance != self._unproven and compared is not None and _takes_away(compared[2]):
            logger.info("metadata: objects of ours are no longer listed; confirming before removal")
            if self._unproven is None:  # the first such read; if the next ones differ too, the backoff applies
                self.refresh_due = min(self.refresh_due, self._read_at + _PROOF)
            self._unproven = instance
            self._write_status()
            return
        self._accept(instance)
        self._converge(compared)

    def converge(self) -> None:
        """Make the kernel agree with the metadata that is known."""
        self._converge(None)

    def _accept(self, instance: Instance) -> None:
        self._unproven = None
        self._instance = instance
        self._publisher.status["fetched_at"] = now()
        if instance.problems:
            texts = "; ".join(problem.text for problem in instance.problems)
            text = f"{texts}; what is of such an interface stays as it is, and nothing is removed"
            self._errors.begin("metadata", text, serious=False)
            return
        self._errors.end("metadata")
        self._read_retry.reset()
        seconds = _SHORTLY if self.provider.unread else self._config.refresh_timer
        self.refresh_due = time.monotonic() + seconds

    def _converge(self, compared: Compared | None) -> None:
        """Apply the difference just computed after a read of the metadata; without one, compare first."""
        self._compared_at = time.monotonic()
        if compared is None:
            self._last_event_check = self._compared_at
        self.compare_due = self._compared_at + NETAGENT_AWAY
        if self._instance is None:
            self.compare_due = math.inf
            return
        try:
            actual, wanted, changes = compared or self._compare(self._instance)
            possible, tried = () if self._flushed else self._conflicts.allowed(changes, actual), False
            if (
                possible
                and self._changes.is_time_for(possible)
                and self._could_be_confirmed(fresh=compared is not None)
            ):
                tried = True
                for _ in range(_REFUSALS):
                    outcome, self._actual = self._changes.carry_out(possible, wanted, actual, self._config), None
                    if outcome is Outcome.CONFIRMED and self._agreed == (self._instance, self._config):
                        self._publisher.status["counters"]["drift_repaired"] += len(possible)
                    actual, wanted, changes = self._compare(self._instance)
                    possible = self._conflicts.allowed(changes, actual)
                    if outcome is not Outcome.LESS or not possible:
                        break
        except kernel.KernelError as error:
            self._errors.begin("kernel", str(error), serious=True)
            self._write_status()
            return
        self._errors.end("kernel")
        self.compare_due = math.inf if self._flushed else self._conflicts.due
        if possible and (tried or self._changes.try_again > self._compared_at):
            self.compare_due = min(self.compare_due, max(self._changes.try_again, self._compared_at + _PACE))
        if not possible and not self._flushed:
            self.succeeded = True
            self._agreed = self._instance, self._config
        if self._flushed:
            self._errors.begin("netagent", FLUSHED, serious=False)
        elif refusals := self._conflicts.refusals:
            self._errors.begin("netagent", f"refused: {report.the_first(refusals)}", serious=False)
        elif not possible:
            self._errors.end("netagent")
        self._report_conflicts(actual)
        self._report_withheld(wanted)
        self._mismatch.log_missing(wanted, actual, self._config)
        self._log_notices(wanted)
        self._read_for_links(self._instance, actual)
        self._publisher.documents(self._instance, wanted)
        self._write_status(actual, wanted, changes)

    def _compare(self, instance: Instance) -> Compared:
        actual = self._look()
        wanted = desired(instance, self._config, actual)
        return actual, wanted, plan(wanted, actual, may_remove=instance.complete)

    def _look(self) -> Actual:
        """Return the state of the kernel, read again after an event and once per refresh."""
        if self._news is None or self._news():
            self.noticed()
        if self._actual is None:
            self._actual = self._kernel.read()
        return self._actual

    def _look_ahead(self, instance: Instance) -> Compared | None:
        """Return the comparison with a read of the metadata; None if the kernel cannot be read."""
        try:
            return self._compare(instance)
        except kernel.KernelError:
            return None  # converging reports it

    # Changing the kernel

    def _could_be_confirmed(self, *, fresh: bool) -> bool:
        """Return True if the metadata server answers: without it, a change would be made and rolled back.

        If it does not answer, a refresh is due. The refresh reports the error, or makes this change.
        """
        if fresh or (not self._unread and self.provider.answers()):
            return True
        if not self._unread:
            self.refresh_due = 0.0
        return False

    def _report_withheld(self, wanted: Desired) -> None:
        if not wanted.withheld:
            self._errors.end("config")
            return
        passes = wanted.transient.issuperset(wanted.withheld)
        self._errors.begin("config", f"left out: {report.the_first(wanted.withheld)}", serious=False, passes=passes)

    def _report_conflicts(self, actual: Actual) -> None:
        conflicts = self._conflicts.statuses(actual)
        self._publisher.status["conflicts"] = conflicts
        blocked = self._conflicts.blocked(actual)
        active = [each for each in conflicts if each["next_at"] or each["object"] in blocked]
        if not active:
            self._errors.end("conflict")
            return
        texts = [each["object"] + (f" ({each['by']})" if each["by"] else "") for each in active]
        text = f"reverted or blocked by another program: {report.the_first(texts)}"
        self._errors.begin("conflict", text + "; retried less and less often: see docs/coexistence.md", serious=False)

    def _read_for_links(self, instance: Instance, actual: Actual) -> None:
        """Read the metadata soon if the host has a link that they do not name, or lacks one that they do."""
        due = self._mismatch.next_read(instance, self._config, actual, time.monotonic())
        if not self._unread:
            self.refresh_due = min(self.refresh_due, max(due, self._read_at + _PACE, self._put_off))

    def _log_notices(self, wanted: Desired) -> None:
        """Log new notices. They describe limitations, and do not degrade the state."""
        for notice in wanted.notices:
            if notice not in self._logged_notices:
                logger.info("notice: %s", notice)
        self._logged_notices = wanted.notices

    # Status

    def _write_status(self, actual: Actual | None = None, wanted: Desired | None = None, changes: Plan = ()) -> None:
        status = self._publisher.status
        if actual is not None and wanted is not None and self._instance is not None:
            status["links"] = report.link_statuses(wanted, self._config, actual, changes)
            status["compared_at"] = now()
            status["unknown_macs"] = list(wanted.unknown_macs)
            status["notices"] = [*wanted.notices, *self._mismatch.notices]
        if self._errors.serious:
            status["state"] = "error"
        elif self._instance is None:
            status["state"] = "starting"
        else:
            status["state"] = "degraded" if changes or self._errors.last or status["unknown_macs"] else "ok"
        status["last_error"] = self._errors.last
        status["refresh_timer"] = self._config.refresh_timer
        self._publisher.publish()
        self._say(report.doing(status, self.provider.client.endpoint, self._failed_reads))


def _takes_away(changes: Plan) -> bool:
    """Return True if the changes remove something: one read of the metadata is no proof for that."""
    return any(change.verb is Verb.REMOVE for change in changes)
