"""Token bucket: bounds the requests of clients, and the bytes that they add to the audit log, per second."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class TokenBucket:
    """Gains `rate` tokens per second and holds at most `size`; starts full."""

    def __init__(self, rate: float, size: float, clock: Callable[[], float] = monotonic) -> None:
        self._rate, self._size, self._clock = rate, size, clock
        self._tokens, self._at = size, clock()

    def take(self, tokens: float = 1) -> bool:
        """Remove `tokens` and return True. If there are fewer, return False and remove none."""
        self._refill()
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def spend(self, tokens: float) -> None:
        """Remove `tokens`, also if there are fewer: until the bucket has gained them, `take` returns False."""
        self._refill()
        self._tokens -= tokens

    @property
    def is_full(self) -> bool:
        """True if the bucket holds `size` tokens."""
        self._refill()
        return self._tokens >= self._size

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
