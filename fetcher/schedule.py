"""All deadlines of the daemon: the next read of the metadata, the next comparison with the kernel, and backoffs.

Times are seconds on an injected monotonic clock. Time limits of one exchange or one object are with the code that they
bound: of a metadata request (`metadata.http`, `metadata.base`), of an answer of netagent (`apply`) or to a command
(`control`), of a probe (`gateways`), of a missing interface (`metadata.reading`) or link (`network.presence`), of a
refusal (`rejections`), and of status.json (`status`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from cloud_network.fetcher.config import Config, ForwardedRepliesMode
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import ARPHRD_ETHER, Actual
from cloud_network.netagent.claims import is_excluded

Clock = Callable[[], float]

READ_DEADLINE_S = 120.0
"""Time limit for one read of the whole metadata, for all requests together."""
CHANGE_DEADLINE_S = 30.0
"""Time limit for the rest of a pass. It then ends after the link in progress, and the next pass continues."""
PASS_DEADLINE_S = 900.0
"""A read, or the rest of a pass, that has not ended by then is hung: the daemon exits, and systemd starts it again."""
COMMAND_READ_S = 20.0
"""Time limit for the read of the metadata by the commands `plan` and `credentials`."""
NETAGENT_RETRY_S = 5.0
"""Delay before netagent is contacted again after a failed connection. A restart of netagent takes less."""
MARKS_CHECK_S = 10.0
"""Interval between two reads of netagent's nftables table: the fetcher can receive no events about it."""
LONGEST_WAIT_S = 3600.0
"""Longest wait for an event: a selector accepts no infinity."""
SLOW_READ_S, SLOW_ANSWER_S, SLOW_CHANGE_S = 2.0, 1.0, 2.0
"""A read of the metadata, one answer and a change that take longer are reported before they have ended."""
LOOK_VALID_S = 10.0
"""Time after which the kernel is read again although it reports no change: sysctls and neighbours send no event."""
STOP_S = 5.0
"""Time for a running pass to end after SIGTERM. netagent rolls back what is not confirmed."""
NETAGENT_START_S = 2.0
"""Time for netagent to listen if it is started at the same time, without socket activation."""
NETAGENT_RELOAD_S = 5.0
"""Time after a start or reload in which netagent reads its configuration, too. Refusals are checked again after it."""
PASS_POLL_S = 0.25
"""Interval between two checks of a running pass."""
EVENTS_RETRY_S = 1.0
"""Delay before events are subscribed to again after a failure."""
WATCH_FIRST_S, WATCH_LONGEST_S = 0.1, 300.0
"""Backoff between two waits for a change of the metadata."""
WATCH_BUSIEST_S, WATCH_CALM_S = 5.0, 10.0
"""Delay between two such waits while the metadata changes continuously, and the time without a change that ends it."""
REJECTION_FIRST_S, REJECTION_LONGEST_S = 1.0, 300.0
"""Backoff of an operation that the kernel refuses, and of a gateway that does not resolve."""
HOLD_FIRST_S, HOLD_LONGEST_S = 300.0, 6 * 3600.0
"""Backoff of a change that was rolled back because it broke something."""
CONFLICT_FIRST_S, CONFLICT_LONGEST_S = 1.0, 300.0
"""Backoff of a change that another program keeps reverting."""
CONFLICT_FORGOTTEN_S = 120.0
"""Time without a repair after which such a change is forgotten."""
GATEWAY_S, NEW_LINK_GATEWAY_S = 1.0, 3.0
"""Time for a new gateway to resolve: on a link in use, and on one without an address, which may just have come up."""
GATEWAY_BEFORE_CHANGE_S, GATEWAY_AFTER_CHANGE_S = 0.5, 6.0
"""Time for a gateway in use to resolve before a change, and after it: a new MTU resets some network cards."""
_FIRST_READ_RETRY_S, _LONGEST_READ_RETRY_S = 1.0, 60.0
_PROOF_DELAY_S = 0.4  # before the second read that a removal needs
_DEBOUNCE_S = 0.05  # a burst of kernel events has this time to end
_MIN_INTERVAL_S = 0.5  # between two comparisons or two reads because of events
_UNANSWERED_DELAY_S = 5.0  # after a read without any answer, before a kernel event may cause the next read
_MISMATCH_FIRST_S, _MISMATCH_LONGEST_S = 1.0, 30.0  # see InterfaceMismatch


class Backoff:
    """Exponential backoff in seconds. Each delay varies by up to `jitter` of it: instances must not retry in step."""

    def __init__(self, first: float, longest: float, jitter: float = 0.25) -> None:
        self._first, self._longest, self._jitter = first, longest, jitter
        self._next = first

    def next_delay(self, limit: float = math.inf) -> float:
        """Return the delay before the next attempt, at most about `limit`, and double the one after it."""
        delay = min(self._next, self._longest, limit)
        self._next = min(2 * self._next, self._longest)
        return delay * random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311  # jitter, not a secret

    def reset(self) -> None:
        """Start again from the initial delay after a success."""
        self._next = self._first


class Deadline:
    """The end of the time for one pass."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def has_passed(self) -> bool:
        """True from the deadline on."""
        return self._clock() >= self._end


def change_deadline() -> Deadline:
    """Return the deadline for the part of a pass after the read, which begins now."""
    return Deadline(CHANGE_DEADLINE_S)


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The result of a read of the metadata, as far as it affects the next read."""

    complete: bool = False  # everything was understood
    failed: bool = False
    unanswered: bool = False  # no server answered: the network may not be up yet
    retry_after: float = 0.0  # seconds that the server asks the client to wait
    unread_facts: bool = False  # facts for display are still to be read
    needs_second_read: bool = False  # the metadata lists less than before, for the first time


class Schedule:
    """The two deadlines: `refresh_due` for a read of the metadata, `compare_due` for a comparison with the kernel.

    Each is the earlier of two: a timer, set at the end of a pass, and a reason, such as an event. A reason that arrives
    during a pass applies to the next one, so only the start of a pass clears it.
    """

    def __init__(self, config: Config, clock: Clock = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._refresh_timer = self._compare_timer = math.inf
        self._refresh_reason, self._compare_reason = -math.inf, math.inf
        self._read_retry = Backoff(_FIRST_READ_RETRY_S, _LONGEST_READ_RETRY_S)
        self._read_at = self._quiet_until = -math.inf
        self._read_delay = 0.0
        self._unanswered_at = math.inf
        self._last_event_check = self._compared_at = -math.inf
        self._mismatch = InterfaceMismatch()
        self._failed = self._has_read = False

    @property
    def is_first_read(self) -> bool:
        """True until a read of the metadata has ended."""
        return not self._has_read

    @property
    def refresh_due(self) -> float:
        """The time of the next read of the metadata."""
        return min(self._refresh_timer, self._refresh_reason)

    @property
    def compare_due(self) -> float:
        """The time of the next comparison."""
        return min(self._compare_timer, self._compare_reason)

    @property
    def due(self) -> float:
        """The time of the next pass."""
        return min(self.refresh_due, self.compare_due)

    # Reasons for a pass

    def on_kernel_event(self) -> None:
        """Compare soon: after the end of a burst of events, and at a limited rate."""
        settled = self._clock() + _DEBOUNCE_S
        self._compare_reason = min(self._compare_reason, max(settled, self._last_event_check + _MIN_INTERVAL_S))
        self._refresh_reason = min(self._refresh_reason, max(settled, self._unanswered_at + _UNANSWERED_DELAY_S))

    def on_metadata_change(self) -> None:
        """Read the metadata now, unless that was just done or the server asked the client to wait."""
        self._read_at_the_earliest(self._clock())

    def on_configuration(self, config: Config) -> None:
        """Continue with another configuration, at once."""
        self._config = config
        self.on_request()
        self._refresh_reason = self._clock()

    def on_request(self) -> None:
        """Reset the backoff of reads, on root's request."""
        self._read_retry.reset()

    # Passes

    def read_begins(self) -> None:
        """Schedule the next read in case this one does not end normally."""
        self._read_at = self._clock()
        self._refresh_reason = math.inf
        self._read_delay = self._read_retry.next_delay(self._config.refresh_timer)
        self._refresh_timer = self._read_at + self._read_delay

    def read_ended(self, result: ReadResult) -> None:
        """Schedule the next read according to this result."""
        now, self._has_read = self._clock(), True
        self._failed = result.failed
        self._unanswered_at = now if result.unanswered else math.inf
        if result.failed:
            longest = max(_LONGEST_READ_RETRY_S, self._config.refresh_timer)
            self._quiet_until = now + min(result.retry_after, longest)
            # Counted from the end: comparisons run between reads that take long and fail.
            self._refresh_timer = max(now + self._read_delay, self._quiet_until)
        elif result.needs_second_read:
            self._refresh_timer = min(self._refresh_timer, self._read_at + _PROOF_DELAY_S)
        elif result.complete:
            self._read_retry.reset()
            self._refresh_timer = now + (_FIRST_READ_RETRY_S if result.unread_facts else self._config.refresh_timer)

    def compare_begins(self, *, on_event: bool) -> None:
        """Schedule the next comparison in case this one does not end normally."""
        self._compared_at = self._clock()
        if on_event:
            self._last_event_check = self._compared_at
        self._compare_reason = math.inf
        self._compare_timer = self._compared_at + NETAGENT_RETRY_S

    def compare_ended(self, retry_at: float) -> None:
        """Compare again at `retry_at` (infinity: only after an event), but not at once."""
        if self._config.forwarded_replies is ForwardedRepliesMode.MARK:
            retry_at = min(retry_at, self._clock() + MARKS_CHECK_S)
        self._compare_timer = max(retry_at, self._compared_at + _MIN_INTERVAL_S)

    def read_for_links(self, instance: Instance, actual: Actual) -> None:
        """Read soon if this host has a link that the metadata does not name, or lacks one that it names."""
        due = self._mismatch.read_due(instance, self._config, actual, self._clock())
        if not self._failed:
            self._read_at_the_earliest(due)

    def read_within(self, seconds: float) -> None:
        """Read the metadata within this time: a missing interface may then be proven absent."""
        self._refresh_reason = min(self._refresh_reason, self._clock() + seconds)

    def read_before_change(self) -> None:
        """Read the metadata now: a change could not be confirmed, because the server does not answer."""
        if not self._failed:
            self._refresh_reason = self._clock()

    def _read_at_the_earliest(self, time: float) -> None:
        """Read at `time`, but not right after the last read, and not while the server asks the client to wait."""
        self._refresh_reason = min(self._refresh_reason, max(time, self._read_at + _MIN_INTERVAL_S, self._quiet_until))


class InterfaceMismatch:
    """Tracks interfaces that only the host or only the metadata has.

    Clouds update one of them a few seconds before the other.
    """

    def __init__(self) -> None:
        self._mismatches: set[int | str] = set()
        self._since = -math.inf

    def read_due(self, instance: Instance, config: Config, actual: Actual, now: float) -> float:
        """Return the time of the next read because of mismatches: at once for a new one, then with growing delays."""
        listed = {interface.mac for interface in instance.interfaces}
        kinds = (None, *config.allow_kinds)
        mismatches: set[int | str] = {
            link.ifindex
            for link in actual.links
            if link.hardware == ARPHRD_ETHER
            and link.mac
            and link.mac not in listed
            and link.kind in kinds
            and not is_excluded(config.exclude, link.name, link.mac)
        }
        mismatches |= listed - {link.mac for link in actual.links} - set(config.exclude)
        new, self._mismatches = mismatches - self._mismatches, mismatches
        if new:
            self._since = now
            return now
        if not mismatches or now >= self._since + _MISMATCH_LONGEST_S:
            return math.inf
        return now + max(_MISMATCH_FIRST_S, (now - self._since) / 2)
