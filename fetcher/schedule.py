"""Delays between attempts at something that fails."""

from __future__ import annotations

import math
import random


class Backoff:
    """Exponential backoff with jitter, in seconds.

    The jitter of 25 % spreads out the requests of many instances that fail at the same time, for example when the
    metadata service of a zone is down.
    """

    def __init__(self, initial: float, maximum: float) -> None:
        self._initial, self._maximum = initial, maximum
        self._next = initial

    def next_delay(self, limit: float = math.inf) -> float:
        """Return the delay before the next attempt and double the one after it.

        `limit` bounds the delay before the jitter is applied.
        """
        delay = min(self._next, self._maximum, limit)
        self._next = min(2 * self._next, self._maximum)
        return delay * random.uniform(0.75, 1.25)  # noqa: S311  # not used for a secret

    def reset(self) -> None:
        """Start again from the initial delay after a success."""
        self._next = self._initial
