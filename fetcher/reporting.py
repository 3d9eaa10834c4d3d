"""Conditions, and the owner of status.json: turns the result of a pass into reports for operators and programs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypedDict

from cloud_network.fetcher.apply import Outcome
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.link_status import link_statuses
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.metadata.reading import Reading
from cloud_network.fetcher.network.matching import Matches
from cloud_network.fetcher.network.objects import Actual, Desired, HeldLink
from cloud_network.fetcher.network.plan import Plan, count_changes
from cloud_network.fetcher.state import StateDirectory, StateError, boot_id
from cloud_network.fetcher.status import RENEWAL_S, ConflictStatus, LastError, Status, new_status, rfc3339, uptime

logger = logging.getLogger(__name__)

Kind = Literal["metadata", "netagent", "kernel", "config", "detection", "no-cloud", "conflict", "fetcher"]
MAX_CONFLICTS = 1000
MAX_NOTICES = 256
"""Limit of the lists in status.json, to keep it below 4 MiB."""
_NOT_LISTENING = (
    "netagent is not running: nothing listens on its socket, and differences are not repaired. "
    "See: systemctl status cloud-network-netagent.socket cloud-network-netagent"
)
_CORRECT_IT = "Correct it; then: sudo systemctl restart cloud-network-netagent.socket"
_MAX_SHOWN = 5  # of a list in one message
_TIME_KEYS = ("at", "fetched_at", "attempted_at", "written_at", "since", "next_at", "metadata_seconds")
_VOLATILE_KEYS = (*_TIME_KEYS, "renew_by", "fetched_uptime", "compared_at", "run", "boot_id", "generation", "counters")


@dataclass(frozen=True, slots=True)
class Condition:
    """A present error. `serious`: that part cannot be processed at all."""

    kind: Kind
    message: str
    serious: bool = False
    transient: bool = False  # will most likely disappear without action
    leading: bool = False  # explains the others


_SLOW_CHANGE = Condition(
    "netagent", "a change takes seconds, because its gateways are slow to answer; other changes wait", transient=True
)
_SLOW_SERVER = Condition(
    "metadata",
    "the metadata server takes seconds to answer; until it does, the last metadata stays in force",
    transient=True,
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer of netagent."""

    verdict: str
    request: str | None
    reason: str | None
    ops: int

    @classmethod
    def of(cls, outcome: Outcome) -> Attempt:
        """Return the attempt with this outcome."""
        return cls(outcome.verdict, outcome.request, outcome.reason, outcome.ops)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The input of a comparison."""

    metadata: Instance
    instance: Instance  # the metadata with DHCP leases
    matches: Matches
    config: Config
    actual: Actual
    departed: frozenset[str] = frozenset()  # MACs of the metadata whose links have left this network namespace


@dataclass(frozen=True, slots=True)
class Comparison:
    """Actual and desired state at one moment, and the difference."""

    snapshot: Snapshot
    wanted: Desired
    changes: Plan  # everything that is missing
    feasible: Plan  # without changes that wait because of a conflict
    ops: Plan  # of these, what is not on hold: the operations to apply
    held: Mapping[int, HeldLink]  # the links on hold after a rollback, by ifindex


@dataclass(frozen=True, slots=True)
class PassReport:
    """The findings and actions of one pass."""

    reading: Reading | None = None
    needs_second_read: bool = False  # the metadata lists less than before; the next read decides
    kernel_error: str | None = None
    comparison: Comparison | None = None  # after the changes
    attempts: tuple[Attempt, ...] = ()
    netagent: Condition | None = None
    netagent_pending: bool = False  # something is left to apply, without a failure
    conflicts: tuple[ConflictStatus, ...] = ()
    open_conflicts: tuple[str, ...] = ()
    awaiting_removal: Mapping[str, float] = field(default_factory=dict)  # kept interfaces, with the seconds left
    repaired: int = 0
    read_first: bool = False  # a change waits for the metadata server
    retry_at: float = math.inf


class PlanAnswer(TypedDict):
    """The control socket's answer to `plan`."""

    metadata_error: str | None  # the plan then uses the previous metadata
    changes: list[str]  # in order, as `ip` commands
    withheld: list[str]
    held: list[str]  # links whose changes were rolled back, with reason and time of the next try
    unknown_macs: list[str]
    flushed: bool  # nothing is added until `sudo cnctl refresh`


@dataclass(frozen=True, slots=True)
class _Active:
    """An active condition."""

    condition: Condition
    error: LastError  # as it is published
    since: float  # time of the clock


class Conditions:
    """Active conditions, one of each kind. Logs each when it starts, changes and clears."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._active: dict[Kind, _Active] = {}  # the most recently reported one is the last

    def begin(self, condition: Condition, level: int | None = None) -> None:
        """Start a condition, or continue it. `level`: of the log line, also if the condition continues."""
        before = self._active.pop(condition.kind, None)
        repeated = level is None and before is not None and before.condition.message == condition.message
        level = level or (logging.WARNING if condition.transient else logging.ERROR)
        logger.log(logging.DEBUG if repeated else level, "%s: %s", condition.kind, condition.message)
        error: LastError = {"at": rfc3339(), "kind": condition.kind, "message": condition.message}
        self._active[condition.kind] = _Active(condition, error, before.since if before else self._clock())

    def clear(self, kind: Kind) -> None:
        """End a condition, if it is active."""
        before = self._active.pop(kind, None)
        if before is not None:
            logger.info("%s: recovered after %.0f s", kind, self._clock() - before.since)

    def has_kind(self, kind: Kind) -> bool:
        """Return True if a condition of this kind is active."""
        return kind in self._active

    def has(self, condition: Condition) -> bool:
        """Return True if this condition is active."""
        active = self._active.get(condition.kind)
        return active is not None and active.condition == condition

    def set(self, kind: Kind, condition: Condition | None) -> None:
        """Start a condition, or clear it if None."""
        if condition is None:
            self.clear(kind)
        else:
            self.begin(condition)

    @property
    def last(self) -> LastError | None:
        """The most recently reported condition. A serious one takes precedence, then one that explains the others, as
        one of the metadata does.
        """
        ordered = sorted(self._active.values(), key=_precedence)  # stable
        return ordered[-1].error if ordered else None

    @property
    def serious(self) -> bool:
        """True if any condition keeps the fetcher from working."""
        return any(each.condition.serious for each in self._active.values())


def _precedence(active: _Active) -> tuple[bool, bool]:
    condition = active.condition
    return condition.serious, condition.leading or condition.kind == "metadata"


class Reporter:
    """Owns status.json and writes the state files. Used by the daemon's main thread."""

    def __init__(self, state: StateDirectory, provider: str, run: str, config: Config) -> None:
        self._state, self._config, self._conditions = state, config, Conditions()
        self.status = new_status(provider, run, boot_id())
        self._failed_reads = 0
        self._notices = frozenset[str]()
        self._unknown: Mapping[str, str] = {}
        self._known = False
        self._file_error: str | None = None  # of the configuration file, which is then not in use
        self._unwritten = set[str]()  # the kinds of state files that could not be written
        before = _previous(state, self.status)
        self._published = _without_times(before)
        self.status["generation"], self.status["counters"] = before["generation"], before["counters"]
        self.status["fetched_at"], self.status["links"] = before["fetched_at"], before["links"]
        self.status["unknown_macs"] = before["unknown_macs"]
        if before["boot_id"] == self.status["boot_id"]:
            self.status["departed_macs"] = before["departed_macs"]

    def reconfigure(self, config: Config) -> None:
        """Continue with another configuration."""
        self._config = config

    def read_begins(self) -> None:
        """Record that a read of the metadata has started."""
        self.status["attempted_at"] = rfc3339()

    def record(self, report: PassReport) -> None:
        """Record the result of a pass, and write it."""
        if report.reading is not None:
            self._record_reading(report.reading, report)
        elif report.comparison is not None and not report.read_first and self._conditions.has(_SLOW_SERVER):
            self._conditions.clear("metadata")
        if self._conditions.has(_SLOW_CHANGE):
            self._conditions.clear("netagent")
        for attempt in report.attempts:
            self._record_attempt(attempt)
        self.status["counters"]["drift_repaired"] += report.repaired
        if report.kernel_error is not None:
            self._conditions.begin(Condition("kernel", report.kernel_error, serious=True))
        elif report.comparison is not None:
            self._conditions.clear("kernel")
            self._record_comparison(report.comparison, report)
        self._publish()

    def record_slow_server(self) -> None:
        """Report that the metadata server takes seconds to answer. If the read fails, that is logged as an error."""
        self._begin_temporarily(_SLOW_SERVER)

    def record_slow_change(self) -> None:
        """Report that a change takes seconds. This ends with the pass."""
        self._begin_temporarily(_SLOW_CHANGE)

    def _begin_temporarily(self, condition: Condition) -> None:
        """Report a condition during a pass, unless another one of its kind is reported."""
        if not self._conditions.has_kind(condition.kind):
            self._conditions.begin(condition, logging.INFO)
            self._publish()

    def record_netagent(self, listening: bool) -> None:
        """Record whether a process listens on netagent's socket. If not, that is an error until one does again."""
        if listening == self.status["netagent"]["listening"]:
            return
        self.status["netagent"]["listening"] = listening
        self._conditions.set("netagent", self._not_listening)
        self._publish()

    @property
    def _not_listening(self) -> Condition | None:
        if self.status["netagent"]["listening"] is not False:
            return None
        if self._file_error is None:
            return Condition("netagent", _NOT_LISTENING, serious=True)
        return Condition("netagent", f"netagent cannot start: {self._file_error}. {_CORRECT_IT}", serious=True)

    def record_configuration(self, error: str | None) -> None:
        """Record the error of a configuration file that is not in use, until the file is valid (None)."""
        if error is None and self._file_error is None:
            return
        self._file_error = error
        condition = self._file_condition
        if condition is None:
            self._conditions.clear("config")
        else:
            self._conditions.begin(condition, logging.ERROR)  # also at each further reload
        if self.status["netagent"]["listening"] is False:
            self._conditions.set("netagent", self._not_listening)
        self._publish()

    @property
    def _file_condition(self) -> Condition | None:
        if self._file_error is None:
            return None
        return Condition("config", f"{self._file_error}; continuing with the configuration in use")

    def record_end(self, reason: str) -> None:
        """Record the error that ends the fetcher, for `cnctl status` and doctor."""
        self._conditions.begin(Condition("fetcher", reason, serious=True))
        self._publish()

    def renew(self) -> None:
        """Write status.json with a new time of expiry."""
        self.status["written_at"], self.status["renew_by"] = rfc3339(), uptime() + RENEWAL_S
        self._try_to_write("status", partial(self._state.write_status, self.status))

    def summary(self, endpoint: str) -> str:
        """Return one line for systemd's STATUS=."""
        status, error = self.status, self.status["last_error"]
        links = status["links"].values()
        addresses, changes = sum(len(link["addresses"]) for link in links), sum(len(link["drift"]) for link in links)
        count = f"{len(links)} interface{'' if len(links) == 1 else 's'}, "
        count += f"{addresses} address{'' if addresses == 1 else 'es'}"
        if self._failed_reads and error is not None:
            attempt = f"{error['message']} (attempt {self._failed_reads})"
            waiting = f"waiting for metadata at {endpoint}"
            return f"{waiting}: {attempt}" if status["fetched_at"] is None else f"{count}; {attempt}"
        if status["state"] == "ok":
            return f"{count}, in agreement"
        reason = f"; {error['kind']}: {error['message']}" if error else ""
        if not reason and status["unknown_macs"]:
            reason = "; no link to configure for: " + ", ".join(status["unknown_macs"])
        return f"{count}, {count_changes(changes)} to make{reason}"

    # Parts of a report

    def _record_reading(self, reading: Reading, report: PassReport) -> None:
        counters = self.status["counters"]
        self.status["metadata_requests"], self.status["metadata_seconds"] = reading.requests, reading.seconds
        counters["metadata_requests"] += reading.requests
        if reading.error is not None:
            kept = self.status["fetched_at"]
            message = f"{reading.error}; nothing is removed" + (f", the state of {kept} is kept" if kept else "")
            self._conditions.begin(Condition("metadata", message, serious=True))
            kind = reading.error.kind
            counters["metadata_errors"][kind] = counters["metadata_errors"].get(kind, 0) + 1
            self._failed_reads += 1
            return
        self._failed_reads = 0
        if report.needs_second_read or reading.instance is None:
            return
        self._known = True
        self.status["fetched_at"], self.status["fetched_uptime"] = rfc3339(), uptime()
        self._conditions.set("metadata", _metadata_condition(reading.instance, report.awaiting_removal))

    def _record_attempt(self, attempt: Attempt) -> None:
        self.status["netagent"] = {
            "listening": self.status["netagent"]["listening"],
            "verdict": attempt.verdict,  # type: ignore[typeddict-item]  # netagent's verdicts are the schema's
            "request": attempt.request,
            "at": rfc3339(),
            "reason": attempt.reason,
            "ops": attempt.ops,
        }
        counts = self.status["counters"]["netagent_requests"]
        counts[attempt.verdict] = counts.get(attempt.verdict, 0) + 1

    def _record_comparison(self, found: Comparison, report: PassReport) -> None:
        snapshot, wanted = found.snapshot, found.wanted
        if report.netagent is not None or not report.netagent_pending:
            self._conditions.set("netagent", report.netagent or self._not_listening)
        self._conditions.set("config", self._file_condition or _withheld_condition(wanted))
        self._conditions.set("conflict", _conflict_condition(report.open_conflicts))
        self._log_notices(wanted)
        self._log_unknown(wanted)
        status = self.status
        status["conflicts"] = list(report.conflicts[:MAX_CONFLICTS])
        status["links"] = link_statuses(
            snapshot.instance, snapshot.matches, snapshot.config, snapshot.actual, wanted, found.changes
        )
        status["compared_at"] = rfc3339()
        status["unknown_macs"] = list(wanted.unknown_macs)
        status["departed_macs"] = sorted(snapshot.departed)
        unknown = [f"{mac}: {reason}" for mac, reason in wanted.unknown_macs.items()]
        status["notices"] = [*unknown, *wanted.notices][:MAX_NOTICES]
        self._try_to_write("documents", partial(self._write_documents, snapshot))
        if self._conditions.serious:
            return
        degraded = found.changes or self._conditions.last or status["unknown_macs"]
        status["state"] = "degraded" if degraded else "ok"

    def _log_notices(self, wanted: Desired) -> None:
        for notice in wanted.notices:
            if notice not in self._notices:
                logger.info("notice: %s", notice)
        self._notices = frozenset(wanted.notices)

    def _log_unknown(self, wanted: Desired) -> None:
        text = "metadata: interface %s: %s; until then, links that the metadata does not name stay as they are"
        for mac, reason in wanted.unknown_macs.items():
            if self._unknown.get(mac) != reason:
                logger.warning(text, mac, reason)
        self._unknown = wanted.unknown_macs

    # Files

    def _try_to_write(self, what: str, write: Callable[[], None]) -> None:
        """Write state files. If that fails, the network is still configured, and readers see that the state is old."""
        try:
            write()
        except OSError as error:
            if not self._unwritten:
                text = "state files: %s cannot be written: %s; the network is still configured. See: df %s"
                logger.error(text, self._state.path, error.strerror, self._state.path)
            self._unwritten.add(what)
            return
        if what in self._unwritten:
            self._unwritten.remove(what)
            if not self._unwritten:
                logger.info("state files: recovered")

    def _publish(self) -> None:
        """Write status.json. The generation rises when anything except times and counters has changed."""
        status = self.status
        status["last_error"], status["refresh_timer"] = self._conditions.last, self._config.refresh_timer
        if self._conditions.serious:
            status["state"] = "error"
        elif not self._known:
            status["state"] = "starting"
        elif self._conditions.last and status["state"] == "ok":
            status["state"] = "degraded"
        published = _without_times(status)
        status["generation"] += published != self._published
        self._published = published
        self.renew()

    def _write_documents(self, snapshot: Snapshot) -> None:
        """Write the cloud's own documents: of the instance, and of each interface that this host has."""
        state, instance = self._state, snapshot.instance
        documents = {
            snapshot.matches[each.mac].ifindex: each.document
            for each in instance.interfaces
            if each.mac in snapshot.matches
        }
        for ifindex in set(state.link_indexes()) - set(documents):
            state.remove_link(ifindex)
        for ifindex, document in documents.items():
            if _read_or_none(lambda at=ifindex: state.read_link(at)) != document:  # type: ignore[misc]
                state.write_link(ifindex, document)
        if _read_or_none(state.read_system) != instance.system:
            state.write_system(instance.system)
        for name, content in instance.identity.items():
            if _read_or_none(lambda at=name: state.read_identity(instance.provider, at)) != content:  # type: ignore[misc]
                state.write_identity(instance.provider, name, content)


def _metadata_condition(instance: Instance, awaiting_removal: Mapping[str, float]) -> Condition | None:
    if instance.problems:
        texts = first_of([problem.text for problem in instance.problems])
        return Condition("metadata", f"{texts}; that part is left out, and nothing is removed until it is understood")
    if awaiting_removal:
        leaving = [
            f"interface {mac}: no longer listed, but its link is up; removed at {rfc3339(seconds)} unless listed again"
            for mac, seconds in awaiting_removal.items()
        ]
        return Condition("metadata", first_of(leaving), transient=True)
    return None


def _withheld_condition(wanted: Desired) -> Condition | None:
    if not wanted.withheld:
        return None
    transient = all(each.transient for each in wanted.withheld)
    return Condition("config", f"left out: {first_of([each.text for each in wanted.withheld])}", transient=transient)


def _conflict_condition(conflicts: Sequence[str]) -> Condition | None:
    if not conflicts:
        return None
    return Condition(
        "conflict",
        f"reverted by another program: {first_of(conflicts)}. See /usr/share/doc/cloud-network/coexistence.md",
    )


def with_next_try(reason: str, seconds: float) -> str:
    """Return the reason with the time of the next try: a number of seconds would be logged again at each pass."""
    return f"{reason}; next try at {rfc3339(seconds)}"


def first_of(texts: Sequence[str]) -> str:
    """Return the first few texts, and the number of the others."""
    more = len(texts) - _MAX_SHOWN
    return "; ".join(texts[:_MAX_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _read_or_none(read: Callable[[], object]) -> object:
    """Return the content of a state file; None if it cannot be read, so that it is written again."""
    try:
        return read()
    except StateError:
        return None


def record_failed_start(state: StateDirectory, run: str, kind: Kind, error: Exception) -> None:
    """Write why a fetcher ends before its first pass; what an earlier one of this boot found remains, as last known."""
    status = new_status("", run, boot_id())
    before = _read_status(state)
    if before is not None and before["boot_id"] == status["boot_id"]:
        status = {**before, "run": run, "renew_by": status["renew_by"], "written_at": status["written_at"]}
    status["state"] = "error"
    status["last_error"] = {"at": rfc3339(), "kind": kind, "message": str(error)}
    state.write_status(status)


def _previous(state: StateDirectory, fresh: Status) -> Status:
    """Return the status that an earlier fetcher of this cloud wrote, or the fresh one."""
    before = _read_status(state)
    return before if before is not None and before["provider"] == fresh["provider"] else fresh


def _read_status(state: StateDirectory) -> Status | None:
    try:
        return deepcopy(state.read_status())
    except StateError as error:
        logger.warning("%s", error)
        return None


def _without_times(value: object) -> object:
    """Return a JSON value without the members that do not raise the generation."""
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in _VOLATILE_KEYS}
    return value
