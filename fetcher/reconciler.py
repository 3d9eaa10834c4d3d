"""One pass: compare the metadata with the kernel, let netagent apply the difference, and report. No clocks.

A failure is reported and tried again later. The previous metadata stays in force, and a failure removes nothing. The
daemon decides when a pass runs; passes run one after the other in a separate thread.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from cloud_network.fetcher.apply import LinkRole, Netagent, NetagentError, Outcome, components, explain, transact
from cloud_network.fetcher.config import Config, ForwardedRepliesMode
from cloud_network.fetcher.confirm import SILENT_GATEWAY, Confirmation, rejections_of_failure, rejections_of_refusals
from cloud_network.fetcher.conflicts import ConflictTracker
from cloud_network.fetcher.gateways import new_gateways, unresolved_gateways
from cloud_network.fetcher.metadata.base import Provider
from cloud_network.fetcher.metadata.model import Instance, Interface, IPAddress, MetadataError
from cloud_network.fetcher.metadata.reading import Reading, RemovalProof
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.desired import desired
from cloud_network.fetcher.network.marks import reverse_path
from cloud_network.fetcher.network.matching import managed, match_links, with_leases, without_absent_vlans
from cloud_network.fetcher.network.objects import (
    Actual,
    Desired,
    Rejections,
)
from cloud_network.fetcher.network.plan import (
    COMMON,
    Plan,
    count_changes,
    in_ip_syntax,
    is_removal,
    link_of,
    plan,
    summary,
)
from cloud_network.fetcher.network.presence import Look, Presence
from cloud_network.fetcher.rejections import LinkHolds, PlanRetry, RejectionTable
from cloud_network.fetcher.reporting import (
    Attempt,
    Comparison,
    Condition,
    PassReport,
    PlanAnswer,
    Snapshot,
    first_of,
    with_next_try,
)
from cloud_network.fetcher.schedule import CHANGE_DEADLINE_S, NETAGENT_RETRY_S, Deadline, change_deadline
from cloud_network.netagent import protocol
from cloud_network.netagent.operations import LinkMark
from cloud_network.netagent.protocol import MAX_OPS, Refused, StatusAnswer, Verdict

logger = logging.getLogger(__name__)

MAX_CHECK_ROUNDS = 3
"""Number of times that a pass plans again because of refusals by `check`; then it leaves out those operations."""
MAX_ROUNDS = 12
"""Number of times that a pass plans again for any reason; the rest waits for the next pass."""
FLUSHED = "flushed on request; nothing is added until `sudo cnctl refresh`, or until the fetcher restarts"


@dataclass(frozen=True, slots=True)
class Memory:
    """State that outlasts a pass, each part with its own clock: objects and links to leave out, and for how long."""

    conflicts: ConflictTracker
    rejections: RejectionTable
    holds: LinkHolds
    retry: PlanRetry
    proof: RemovalProof
    presence: Presence = field(default_factory=Presence)

    @classmethod
    def new(cls, departed: Iterable[str] = ()) -> Memory:
        """Return an empty memory, except for the MACs of links that have left this host."""
        presence = Presence(departed=departed)
        return cls(ConflictTracker(), RejectionTable(), LinkHolds(), PlanRetry(), RemovalProof(), presence)


@dataclass(slots=True)
class _PassResults:
    """Results of the current pass."""

    deadline: Deadline
    attempts: list[Attempt] = field(default_factory=list)
    repaired: int = 0
    failure: str | None = None  # of netagent, or of a change that was rolled back
    unreachable: bool = False
    refused: str | None = None  # the reason why netagent does not remove something
    out_of_time: bool = False  # the next pass continues

    def must_stop(self) -> bool:
        """Return True if the deadline has passed. Ask after a check or a link, so that each pass progresses."""
        self.out_of_time = self.deadline.has_passed
        return self.out_of_time


@dataclass(frozen=True, slots=True)
class _Owned:
    """Netagent's answer: the owned addresses. Before Linux 5.18 the kernel does not mark them.

    It holds until the kernel reports a change, or has other addresses.
    """

    places: frozenset[tuple[int, IPAddress]]
    actual: Actual  # at the time of the query

    def holds_for(self, actual: Actual) -> bool:
        """Return True if the kernel has the same addresses as at the time of the query."""
        return (self.actual.addresses, self.actual.further) == (actual.addresses, actual.further)


class Reconciler:
    """Runs passes. Used by one thread."""

    def __init__(
        self,
        config: Config,
        provider: Provider,
        memory: Memory | None = None,
        status: Callable[[str], None] = lambda _: None,
        socket: str = protocol.SOCKET,
        deadline: Callable[[], Deadline] = change_deadline,
    ) -> None:
        self._socket, self._deadline = socket, deadline
        self._config, self._provider, self._memory, self._status = config, provider, memory or Memory.new(), status
        self._memory.rejections.reconfigured()
        self._known: Instance | None = None
        self._agreed: tuple[Instance, Config] | None = None  # the state that the kernel last agreed with
        self._accepted_all = False  # nothing of it had been refused
        self._flushed = False
        self._server_ok = False  # the last read of the metadata succeeded
        self._owned: _Owned | None = None  # before Linux 5.18
        self._marks: tuple[LinkMark, ...] | None = None  # of netagent's nftables table, at the last query
        self._marks_unknown: str | None = None  # the error of that query

    # Interface for the daemon

    def reconfigure(self, config: Config) -> None:
        """Continue with another configuration."""
        self._config = config
        self.retry()
        self._memory.rejections.reconfigured()

    def retry(self) -> None:
        """Forget refusals and rollbacks, on root's request."""
        self._memory.rejections.clear()
        self._memory.holds.clear()
        self._memory.retry.clear()

    def resume(self) -> None:
        """Change the network again after a flush."""
        self._flushed = False

    def look(self) -> Look | None:
        """Read the kernel before the metadata, so that little is left to do after the answer. None after an error."""
        with suppress(kernel.KernelError):
            return self._look()
        return None

    def refresh(self, reading: Reading, *, kernel_changed: bool, seen: Look | None = None) -> PassReport:
        """Act on a read of the metadata. `seen`: the kernel's state, if it was read before and has not changed."""
        self._server_ok = reading.error is None
        if reading.instance is None:
            return PassReport(reading=reading)
        instance, deadline = reading.instance.with_known(self._known), self._deadline()
        try:
            comparison = self._compare(instance, proof=True, kernel_changed=kernel_changed, seen=seen)
        except kernel.KernelError as error:
            return PassReport(reading=reading, kernel_error=str(error))
        is_refused = self._memory.retry.is_refused(comparison.ops)
        removals = () if is_refused else tuple(filter(is_removal, comparison.changes))
        if not self._memory.proof.accept(comparison.snapshot.metadata, removes=bool(removals)):
            logger.info("metadata: confirming with a second read before removal: %s", summary(removals))
            return PassReport(reading=reading, needs_second_read=True)
        self._known = comparison.snapshot.metadata
        return replace(self._converge(comparison, deadline, fresh=True), reading=reading)

    def compare(self, *, kernel_changed: bool, may_change: bool = True) -> PassReport:
        """Make the kernel agree with the known metadata, or only report the differences."""
        if self._known is None:
            return PassReport()
        deadline = self._deadline()
        try:
            comparison = self._compare(self._known, kernel_changed=kernel_changed)
        except kernel.KernelError as error:
            return PassReport(kernel_error=str(error))
        if may_change:
            return self._converge(comparison, deadline, fresh=False)
        return self._report(comparison, _PassResults(deadline), read_first=True)

    def planned_changes(self, reading: Reading) -> PlanAnswer:
        """Return the changes that a refresh would make, and make none. Raises MetadataError or KernelError."""
        problem = str(reading.error) if reading.error is not None else None
        instance = self._known
        if reading.instance is not None:
            instance = reading.instance.with_known(self._known)
            problem = "; ".join(each.text for each in instance.problems) or None
        if instance is None:
            raise reading.error or MetadataError("unread", "the metadata has not been read yet")
        comparison = self._plan(self._snapshot(instance, self._read(instance)))  # the refusals in force stay
        links = {link.ifindex: link for link in comparison.snapshot.actual.links}
        return {
            "metadata_error": problem,
            "changes": [in_ip_syntax(op, links) for op in comparison.changes],
            "withheld": [each.text for each in comparison.wanted.withheld],
            "held": _held_texts(comparison),
            "unknown_macs": list(comparison.wanted.unknown_macs),
            "flushed": self._flushed,
        }

    def flush(self) -> tuple[Outcome, PassReport]:
        """Remove everything that is owned, and change nothing until `resume`. Raises NetagentError."""
        with Netagent(self._socket) as agent:
            outcome = agent.flush()
        attempt = Attempt.of(outcome)
        if outcome.verdict == Verdict.APPLIED:
            self._flushed = True
        report = self.compare(kernel_changed=False)
        return outcome, replace(report, attempts=(attempt, *report.attempts))

    # Comparing

    def _look(self) -> Look:
        finished = self._memory.presence.finished()  # before the links are read, see there
        return Look(kernel.read(), finished)

    def _read(self, metadata: Instance, agent: Netagent | None = None, seen: Look | None = None) -> Actual:
        """Read the kernel, unless it is `seen`, and ask netagent for what only it can read. Raises KernelError."""
        look, macs = seen or self._look(), {each.mac for each in metadata.interfaces}
        actual = self._memory.presence.observe(look.actual, macs, look.finished)
        with_marks = self._config.forwarded_replies is not ForwardedRepliesMode.OFF
        if protocol.HAS_IFA_PROTO and not with_marks:
            return actual
        if agent is None and not with_marks and self._owned is not None and self._owned.holds_for(actual):
            return actual.with_owned(self._owned.places)
        self._marks_unknown = None
        try:
            answer = self._ask_status() if agent is None else agent.status()
            self._owned = _Owned(answer.owned, actual)
            actual, self._marks = actual.with_owned(answer.owned), answer.marks
        except NetagentError as error:
            self._marks_unknown = str(error) if with_marks else None
        if not with_marks:
            return actual
        filters = {link.ifindex: reverse_path(link.name) for link in actual.links}
        return replace(actual, marks=self._marks, reverse_path=filters)

    def _ask_status(self) -> StatusAnswer:
        with Netagent(self._socket) as agent:
            return agent.status()

    def _compare_again(self, comparison: Comparison, agent: Netagent | None = None) -> Comparison:
        """Compare after the fetcher's own changes, which do not clear refusals. Raises KernelError."""
        snapshot = self._snapshot(comparison.snapshot.metadata, self._read(comparison.snapshot.metadata, agent))
        self._memory.rejections.rebase(snapshot.actual)
        return self._plan(snapshot)

    def _compare(
        self, metadata: Instance, *, proof: bool = False, kernel_changed: bool = False, seen: Look | None = None
    ) -> Comparison:
        """Read the kernel, unless it is `seen`, and compare. Raises KernelError."""
        if kernel_changed:
            self._owned = None  # netagent may have removed an address for root, and another program added it again
        actual = self._read(metadata, seen=seen)
        if proof:
            links = {link.mac: False for link in actual.links} | {link.mac: True for link in actual.links if link.up}
            elsewhere = self._memory.presence.departed | set(self._config.exclude)
            metadata = self._memory.proof.keep_missing(metadata, self._known, links, elsewhere)
            metadata = self._memory.proof.keep_unlisted(metadata, links, actual.configured_macs)
        snapshot = self._snapshot(metadata, actual)
        self._memory.rejections.update(snapshot.instance, self._config, actual, kernel_changed=kernel_changed)
        if kernel_changed:
            self._memory.retry.kernel_changed()
        return self._plan(snapshot)

    def _snapshot(self, metadata: Instance, actual: Actual) -> Snapshot:
        matches = match_links(metadata, self._config, actual.links)
        present = without_absent_vlans(metadata, matches)
        leased = with_leases(present, matches, actual)
        return Snapshot(metadata, leased, matches, self._config, actual, self._memory.presence.departed)

    def _plan(self, snapshot: Snapshot) -> Comparison:
        """Plan with the current rejections."""
        rejections, waiting = self._memory.rejections.current, self._memory.conflicts.rejections
        wanted, changes = _difference(snapshot, rejections)
        possible = _difference(snapshot, {**rejections, **waiting})[1] if waiting else changes
        feasible = self._memory.conflicts.without_waiting(possible)
        ops, held = self._memory.holds.split(feasible, _interfaces(snapshot), self._config.route_table_base)
        return Comparison(snapshot, wanted, changes, feasible, ops, held)

    # Changing

    def _converge(self, comparison: Comparison, deadline: Deadline, *, fresh: bool) -> PassReport:
        memory, results = self._memory, _PassResults(deadline)
        try:
            memory.conflicts.observe(comparison.changes, comparison.snapshot.actual)
            read_first = False
            if comparison.ops and not self._flushed and memory.retry.may_try(comparison.ops):
                read_first = not self._can_confirm(fresh)
                if not read_first:
                    comparison = self._apply(comparison, results)
        except kernel.KernelError as error:
            return PassReport(kernel_error=str(error), attempts=tuple(results.attempts))
        return self._report(comparison, results, read_first)

    def _can_confirm(self, fresh: bool) -> bool:
        """Return False if the metadata server does not answer: every change would be rolled back."""
        if fresh or (self._server_ok and self._provider.is_reachable()):
            return True
        self._server_ok = False
        return False

    def _apply(self, comparison: Comparison, results: _PassResults) -> Comparison:
        """Let netagent apply the plan, planning again after each refusal. Returns the state afterwards."""
        self._status(f"applying {summary(comparison.ops)}")
        try:
            with Netagent(self._socket) as agent:
                for number in range(MAX_ROUNDS):
                    check_first = number > 0 or not self._is_repair(comparison.ops)
                    comparison, checked = self._accepted_plan(agent, comparison, results, check_first=check_first)
                    if checked:
                        logger.info("applying %s", summary(checked))
                    again = bool(checked) and self._apply_links(agent, comparison, checked, results)
                    comparison = self._compare_again(comparison, agent)
                    if not again or results.must_stop():
                        break
        except NetagentError as error:
            results.attempts.append(Attempt("unreachable", None, str(error), 0))
            results.failure, results.unreachable = str(error), True
            comparison = self._compare_again(comparison)
        if results.out_of_time or (results.failure is None and results.refused is None):
            self._memory.retry.clear()
        else:
            left = comparison.ops
            longest = NETAGENT_RETRY_S if results.unreachable else math.inf
            refused = results.failure is None and all(map(is_removal, left))
            self._memory.retry.failed(left, longest, refused=refused)
        return comparison

    def _is_repair(self, ops: Plan) -> bool:
        """Return True if the operations only restore what netagent has accepted before."""
        agreed = self._agreed == (self._known, self._config) and self._accepted_all
        return agreed and not any(map(is_removal, ops))

    def _accepted_plan(
        self, agent: Netagent, comparison: Comparison, results: _PassResults, *, check_first: bool
    ) -> tuple[Comparison, Plan]:
        """Return a plan of at most MAX_OPS operations that netagent accepts; refusals become rejections of the goal.

        Without `check_first`, only gateways are probed: `apply` checks the plan, too.
        """
        for _ in range(MAX_CHECK_ROUNDS):
            ops = self._next_part(comparison)
            found, refusals = self._silent_gateways(ops, comparison), tuple[Refused, ...]()
            if not found and ops and check_first:
                refusals = agent.check(ops).refusals
                found = rejections_of_refusals(refusals, ops)
            if not found:
                return comparison, _without_refused(ops, refusals, results)
            self._memory.rejections.add(found)
            comparison = self._plan(comparison.snapshot)
            if results.must_stop():
                return comparison, ()
        ops = self._next_part(comparison)
        return comparison, _without_refused(ops, agent.check(ops).refusals if ops else (), results)

    def _next_part(self, comparison: Comparison) -> Plan:
        """Return the operations to apply next: whole links, as many as fit into one request."""
        base, ops = self._config.route_table_base, comparison.ops
        if len(ops) <= MAX_OPS:
            return ops
        taken: list[Plan] = []
        for part in components(ops, base, partial(self._role, comparison)):
            if taken and sum(map(len, taken)) + len(part) > MAX_OPS:
                break
            taken.append(part)
        return tuple(op for part in taken for op in part)[:MAX_OPS]

    def _silent_gateways(self, ops: Plan, comparison: Comparison) -> Rejections:
        """Probe each gateway that gets its first route."""
        actual = comparison.snapshot.actual
        silent = unresolved_gateways(new_gateways(ops, actual), comparison.wanted.addresses, actual)
        return dict.fromkeys(silent, SILENT_GATEWAY)

    def _apply_links(self, agent: Netagent, comparison: Comparison, ops: Plan, results: _PassResults) -> bool:
        """Apply the plan link by link.

        Return True if the pass must plan again: an object was rejected, or there is more to do. Stops between two links
        if the time of the pass has passed.
        """
        base = self._config.route_table_base
        again = len(comparison.feasible) > MAX_OPS
        for number, part in enumerate(components(ops, base, partial(self._role, comparison))):
            if number and results.must_stop():
                return True
            outcome, check = self._transact(agent, comparison, part, results)
            if _is_refused_removal(outcome, part):
                part = _without_refused(part, agent.check(part).refusals, results)
                if not part:
                    continue
                outcome, check = self._transact(agent, comparison, part, results)
            if outcome.verdict == Verdict.CONFIRMED:
                self._count_confirmed(part, results)
                continue
            found = rejections_of_failure(outcome, part, check)
            if found:
                self._memory.rejections.add(found)
            elif outcome.verdict == Verdict.ROLLED_BACK and check.is_cause:
                self._hold(part, comparison, check.reason or "")
            else:
                results.failure = f"{outcome.verdict}: {outcome.reason}"
                return False  # the other links' changes could not be confirmed either
            again = True
            if any(link_of(op, base) == COMMON for op in part):
                break  # the other links' rules need the rules that belong to no link: plan them with another part
        return again

    def _transact(
        self, agent: Netagent, comparison: Comparison, ops: Plan, results: _PassResults
    ) -> tuple[Outcome, Confirmation]:
        """Apply and confirm changes of one link, or roll them back."""
        check = Confirmation(self._provider, comparison, ops, self._config)
        outcome = transact(agent, ops, self._config.confirm_timeout, check.failure)
        results.attempts.append(Attempt.of(outcome))
        return outcome, check

    def _count_confirmed(self, ops: Plan, results: _PassResults) -> None:
        logger.info("netagent: %s confirmed", count_changes(len(ops)))
        self._memory.conflicts.count_confirmed(ops)
        for link in {link_of(op, self._config.route_table_base) for op in ops}:
            self._memory.holds.confirmed(link, ops)
        if self._agreed == (self._known, self._config):
            results.repaired += len(ops)

    def _hold(self, part: Plan, comparison: Comparison, reason: str) -> None:
        """Put the links of a change that broke something on hold; rules of no link only if they were all of it.

        All that a link needs now is held back, also what netagent refuses.
        """
        base, interfaces = self._config.route_table_base, _interfaces(comparison.snapshot)
        links = {link_of(op, base) for op in part}
        for link in links - {COMMON} or links:
            ops = tuple(op for op in comparison.feasible if link_of(op, base) == link)
            self._memory.holds.hold(link, ops, interfaces.get(link), reason)

    def _role(self, comparison: Comparison, links: Collection[int]) -> LinkRole:
        """Return the role of links that are changed together. The link of the metadata connection is primary, too."""
        snapshot, egress = comparison.snapshot, self._provider.client.interface
        first = {link.ifindex for _, link in managed(snapshot.instance, snapshot.matches, snapshot.config)[:1]}
        first |= {link.ifindex for link in snapshot.actual.links if link.name == egress}
        if first & set(links):
            return LinkRole.PRIMARY
        if not {goal.settings.ifindex for goal in comparison.wanted.links} & set(links):
            return LinkRole.GIVEN_UP
        used = {ifindex for ifindex, address in snapshot.actual.addresses if not address.is_link_local}
        return LinkRole.SECONDARY if used >= set(links) else LinkRole.NEW

    # Reporting

    def _report(self, comparison: Comparison, results: _PassResults, read_first: bool) -> PassReport:
        memory, config, ops = self._memory, self._config, comparison.ops
        if not ops and not comparison.held and not self._flushed and self._known is not None:
            self._agreed = self._known, config
            self._accepted_all = not memory.rejections.current
        conflicts, open_conflicts = memory.conflicts.statuses(comparison.changes, comparison.snapshot.actual)
        retry_at = min(memory.conflicts.due, memory.rejections.due, memory.holds.due, memory.presence.due)
        if results.out_of_time:
            retry_at = -math.inf
        if ops and not self._flushed and not read_first:
            retry_at = min(retry_at, memory.retry.due)
        condition = self._netagent_condition(comparison, results)
        return PassReport(
            comparison=comparison,
            attempts=tuple(results.attempts),
            netagent=condition,
            netagent_pending=condition is None and bool(ops),
            conflicts=tuple(conflicts),
            open_conflicts=tuple(open_conflicts),
            awaiting_removal=memory.proof.awaiting_removal,
            repaired=results.repaired,
            read_first=read_first,
            retry_at=retry_at,
        )

    def _netagent_condition(self, comparison: Comparison, results: _PassResults) -> Condition | None:
        """Return the reason why netagent has not made every change, if there is one."""
        if self._flushed:
            return Condition("netagent", FLUSHED, leading=True)
        if results.failure is not None:
            return Condition("netagent", results.failure, serious=results.unreachable)
        if results.out_of_time and comparison.ops:
            reason = f"the time limit of a pass ({CHANGE_DEADLINE_S:g} s) has passed"
            return Condition(
                "netagent", f"{reason}; the next pass continues with {summary(comparison.ops)}", transient=True
            )
        if results.refused is not None:
            return Condition("netagent", f"refused: {results.refused}; other changes are applied")
        if comparison.held:
            hint = "to retry now, run `sudo cnctl refresh --retry`"
            return Condition("netagent", f"change rolled back: {first_of(_held_texts(comparison))}; {hint}")
        if self._marks_unknown is not None:
            return Condition(
                "netagent", f"the state of the nftables table cloud_network is unknown: {self._marks_unknown}"
            )
        return None


def _interfaces(snapshot: Snapshot) -> dict[int, Interface]:
    """Return the metadata's interfaces that are configured, by ifindex."""
    pairs = managed(snapshot.metadata, snapshot.matches, snapshot.config)
    return {link.ifindex: interface for interface, link in pairs}


def _held_texts(comparison: Comparison) -> list[str]:
    """Return each link on hold with the reason and the time of the next try."""
    names = {COMMON: "rules of no link"} | {link.ifindex: link.name for link in comparison.snapshot.actual.links}
    return [
        with_next_try(f"{names.get(link, f'link {link}, which is gone')}: {held.reason}", held.seconds_left)
        for link, held in comparison.held.items()
    ]


def _is_refused_removal(outcome: Outcome, ops: Plan) -> bool:
    """Return True if netagent refuses a removal that it has accepted together with the changes of other links."""
    refused = outcome.refused
    return refused is not None and refused.position is not None and is_removal(ops[refused.position])


def _without_refused(ops: Plan, refusals: Iterable[Refused], results: _PassResults) -> Plan:
    """Return the operations that netagent accepts. A refused removal is no object of the goal; it is tried again."""
    positions = {each.position: each for each in refusals if each.position is not None}
    if positions:
        results.refused = explain(positions[min(positions)])
    return tuple(op for at, op in enumerate(ops) if at not in positions)


def _difference(snapshot: Snapshot, rejections: Rejections) -> tuple[Desired, Plan]:
    wanted = desired(
        snapshot.instance, snapshot.matches, snapshot.config, snapshot.actual, rejections, snapshot.departed
    )
    return wanted, plan(wanted, snapshot.actual, may_remove=snapshot.metadata.may_remove)
