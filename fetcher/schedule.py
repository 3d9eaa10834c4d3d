"""Every deadline of the daemon: when the metadata are read and the kernel is compared next, and how long to wait after
a failure. Times are seconds of an injected monotonic clock.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from cloud_network.fetcher.config import Config, ForwardedReplies
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import ARPHRD_ETHER, Actual
from cloud_network.netagent.claims import is_excluded

Clock = Callable[[], float]

PASS_DEADLINE = 900.0
"""A pass that takes longer hangs: the daemon ends, and systemd starts it again."""
READ_DEADLINE = 120.0
"""The longest read of the whole metadata, however many requests it takes."""
NETAGENT_RETRY = 5.0
"""Until netagent is asked again after it could not be reached: a restart takes less."""
MARKS_CHECK = 10.0
"""Between two looks at netagent's nftables table: there are no events about it that the fetcher could read."""
_FIRST_READ_RETRY, _LONGEST_READ_RETRY = 1.0, 60.0
_PROOF = 0.4  # until the second read that a removal needs
_SETTLE = 0.05  # a burst of kernel events is given so long to end
_PACE = 0.5  # between two comparisons or two reads on account of events
_UNANSWERED = 5.0  # after a read that nothing answered, until an event in the kernel is a reason for the next
_CHASE_FIRST, _CHASE = 1.0, 30.0  # see InterfaceMismatch


class Backoff:
    """Exponential backoff with jitter, in seconds: a thousand instances must not try in step."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def next_delay(self, limit: float = math.inf) -> float:
        """Return the delay before the next attempt, at most about `limit`, and double the one after it."""
        delay = min(self._next, self._longest, limit)
        self._next = min(2 * self._next, self._longest)
        return delay * random.uniform(0.75, 1.25)  # noqa: S311  # jitter, not a secret

    def reset(self) -> None:
        """Start again from the initial delay after a success."""
        self._next = self._first


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a read of the metadata means for the next one."""

    complete: bool = False  # everything was understood
    failed: bool = False
    unanswered: bool = False  # no server answered: it may be the network that is not up yet
    retry_after: float = 0.0  # seconds for which the server asks to be left alone
    unread_facts: bool = False  # facts that are only shown are still to be read
    needs_proof: bool = False  # it lists less than before for the first time


class Schedule:
    """The two deadlines: `refresh_due` for a read of the metadata, `compare_due` for a comparison with the kernel.

    Each is the earlier of two: a timer, which the end of a pass sets, and a reason, such as an event. A reason that
    arrives while a pass runs is for the next one, so only the beginning of a pass forgets it.
    """

    def __init__(self, config: Config, clock: Clock = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._refresh_timer = self._compare_timer = math.inf
        self._refresh_reason, self._compare_reason = -math.inf, math.inf
        self._read_retry = Backoff(_FIRST_READ_RETRY, _LONGEST_READ_RETRY)
        self._read_at = self._quiet_until = -math.inf
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
        """Compare soon. Let a burst of events end first, and do not let a storm keep the daemon busy."""
        settled = self._clock() + _SETTLE
        self._compare_reason = min(self._compare_reason, max(settled, self._last_event_check + _PACE))
        self._refresh_reason = min(self._refresh_reason, max(settled, self._unanswered_at + _UNANSWERED))

    def on_metadata_change(self) -> None:
        """Read the metadata now, unless that has just been done or the server asked to be left alone."""
        self._read_at_the_earliest(self._clock())

    def on_configuration(self, config: Config) -> None:
        """Go on with another configuration, at once."""
        self._config = config
        self.on_request()
        self._refresh_reason = self._clock()

    def on_request(self) -> None:
        """Forget how often reading has failed: root asks."""
        self._read_retry.reset()

    # Passes

    def read_begins(self) -> None:
        """Set the next read in case this one does not end as expected."""
        self._read_at = self._clock()
        self._refresh_reason = math.inf
        self._refresh_timer = self._read_at + self._read_retry.next_delay(self._config.refresh_timer)

    def read_ended(self, result: ReadResult) -> None:
        """Set the next read after this result."""
        now, self._has_read = self._clock(), True
        self._failed = result.failed
        self._unanswered_at = now if result.unanswered else math.inf
        if result.failed:
            longest = max(_LONGEST_READ_RETRY, self._config.refresh_timer)
            self._quiet_until = now + min(result.retry_after, longest)
            self._refresh_timer = max(self._refresh_timer, self._quiet_until)
        elif result.needs_proof:
            self._refresh_timer = min(self._refresh_timer, self._read_at + _PROOF)
        elif result.complete:
            self._read_retry.reset()
            self._refresh_timer = now + (_FIRST_READ_RETRY if result.unread_facts else self._config.refresh_timer)

    def compare_begins(self, *, on_event: bool) -> None:
        """Set the next comparison in case this one does not end as expected."""
        self._compared_at = self._clock()
        if on_event:
            self._last_event_check = self._compared_at
        self._compare_reason = math.inf
        self._compare_timer = self._compared_at + NETAGENT_RETRY

    def compare_ended(self, retry_at: float) -> None:
        """Compare again at `retry_at` (infinity: when something happens), but not at once."""
        if self._config.forwarded_replies is ForwardedReplies.MARK:
            retry_at = min(retry_at, self._clock() + MARKS_CHECK)
        self._compare_timer = max(retry_at, self._compared_at + _PACE)

    def read_for_links(self, instance: Instance, actual: Actual) -> None:
        """Read the metadata soon if this host has a link that they do not name, or lacks one."""
        due = self._mismatch.read_due(instance, self._config, actual, self._clock())
        if not self._failed:
            self._read_at_the_earliest(due)

    def read_within(self, seconds: float) -> None:
        """Read the metadata at the latest after so many seconds: an interface that is missing may be proven gone."""
        self._refresh_reason = min(self._refresh_reason, self._clock() + seconds)

    def read_before_change(self) -> None:
        """Read the metadata now: a change could not be confirmed, because the server does not answer."""
        if not self._failed:
            self._refresh_reason = self._clock()

    def _read_at_the_earliest(self, time: float) -> None:
        """Read at `time`, but not right after the last read, and not while the server asks to be left alone."""
        self._refresh_reason = min(self._refresh_reason, max(time, self._read_at + _PACE, self._quiet_until))


class InterfaceMismatch:
    """Tracks interfaces that only the host or only the metadata has. Clouds update one seconds before the other."""

    def __init__(self) -> None:
        self._odd: set[int | str] = set()
        self._since = -math.inf

    def read_due(self, instance: Instance, config: Config, actual: Actual, now: float) -> float:
        """Return when to read the metadata on this account: at once for a new mismatch, then less and less often."""
        listed = {interface.mac for interface in instance.interfaces}
        kinds = (None, *config.allow_kinds)
        odd: set[int | str] = {
            link.ifindex
            for link in actual.links
            if link.hardware == ARPHRD_ETHER
            and link.mac
            and link.mac not in listed
            and link.kind in kinds
            and not is_excluded(config.exclude, link.name, link.mac)
        }
        odd |= listed - {link.mac for link in actual.links} - set(config.exclude)
        new, self._odd = odd - self._odd, odd
        if new:
            self._since = now
            return now
        if not odd or now >= self._since + _CHASE:
            return math.inf
        return now + max(_CHASE_FIRST, (now - self._since) / 2)
