"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random


class Patience:
    """Seconds that double from one failure to the next, with jitter: a thousand instances must not try in step."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def longer(self, limit: float = float("inf")) -> float:
        """The time to wait now; never (much) more than `limit`."""
        delay = min(self._next, self._longest, limit)
        self._next = min(2 * self._next, self._longest)
        return delay * random.uniform(0.75, 1.25)  # noqa: S311  # jitter, not a secret

    def reset(self) -> None:
        """It went well: the next failure waits shortly again."""
        self._next = self._first
