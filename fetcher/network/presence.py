"""Links over time: those with which udev has not finished yet, and those that have left this network namespace.

udev may rename a link after it appears, and a link that is up cannot be renamed on every kernel; until then its name
says nothing about Exclude=. systemd-udevd writes /run/udev/data/n<ifindex> when it has finished with a link.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from cloud_network.fetcher.network.objects import Actual, Link

UDEV_SECONDS = 5.0
"""Time that udev has for a link; a rule that hangs must not leave an instance without addresses."""
DEPARTED_SECONDS = 30.0
"""Time without its link after which an interface that the metadata still name has left, to a pod for instance."""
_POLL = 0.25  # seconds; no event says that udev has finished with a link that it does not rename


class Presence:
    """Tells which links are ready, and which have left. Used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, root: Path = Path("/")) -> None:
        self._clock, self._udev = clock, root / "run/udev"
        self._first_seen: dict[int, float] = {}
        self._last_seen: dict[str, float] = {}  # by MAC
        self._away: set[str] = set()
        self._pending: set[int] = set()

    def observe(self, actual: Actual, macs: Collection[str]) -> Actual:
        """Return `actual` with the links that udev has finished with marked as ready. `macs` are the metadata's."""
        now, runs = self._clock(), (self._udev / "control").exists()
        here = {link.ifindex for link in actual.links}
        self._first_seen = {index: self._first_seen.get(index, now) for index in here}
        seen_now = {link.mac: now for link in actual.links if link.mac in macs}
        self._last_seen = {mac: seen for mac, seen in (self._last_seen | seen_now).items() if mac in macs}
        self._away = self._last_seen.keys() - seen_now.keys()
        pending = {link.ifindex for link in actual.links if link.mac in macs and runs and not self._is_ready(link, now)}
        self._pending = pending
        if not pending:
            return actual
        return replace(actual, links=tuple(replace(each, ready=each.ifindex not in pending) for each in actual.links))

    def _is_ready(self, link: Link, now: float) -> bool:
        late = now >= self._first_seen[link.ifindex] + UDEV_SECONDS
        return late or (self._udev / "data" / f"n{link.ifindex}").exists()

    @property
    def departed(self) -> frozenset[str]:
        """MACs that the metadata name and whose link was here, and has been away for DEPARTED_SECONDS."""
        now = self._clock()
        return frozenset(mac for mac in self._away if now >= self._last_seen[mac] + DEPARTED_SECONDS)

    @property
    def due(self) -> float:
        """When to look again; infinity if only an event can change anything."""
        now = self._clock()
        if self._pending:
            return now + _POLL
        ends = (self._last_seen[mac] + DEPARTED_SECONDS for mac in self._away)
        return min((at for at in ends if at > now), default=math.inf)
