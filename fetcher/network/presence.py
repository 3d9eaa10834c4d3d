"""Links over time: those that udev has not finished with, and those that have left this network namespace.

udev may rename a link after it appears, and some kernels cannot rename a link that is up. Until then its name must not
be compared with Exclude=. systemd-udevd writes /run/udev/data/n<ifindex> when it has finished with a link.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cloud_network.fetcher.network.objects import Actual

UDEV_S = 5.0
"""Time limit for udev per link: a hanging rule must not leave an instance without addresses."""
DEPARTED_S = 30.0
"""Time without its link after which an interface that the metadata still names counts as moved away, e.g. to a pod."""
FORGOTTEN_S = 3600.0
"""Time after which an interface that the metadata no longer names is forgotten; partial answers omit it for seconds."""
_POLL_S = 0.25  # seconds; udev sends no event when it finishes with a link that it does not rename


@dataclass(frozen=True, slots=True)
class Look:
    """The kernel's state, with the names of the files in udev's database from before it was read."""

    actual: Actual
    finished: frozenset[str] | None  # see Presence.finished


class Presence:
    """Tracks which links are ready, and which have left. Used by one thread."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, root: Path = Path("/"), departed: Iterable[str] = ()
    ) -> None:
        """`departed`: MACs whose links had left when the previous process of this boot ended."""
        self._clock, self._udev = clock, root / "run/udev"
        self._first_seen: dict[int, float] = {}
        self._last_seen = dict.fromkeys(departed, clock() - DEPARTED_S)  # by MAC
        self._last_named = dict.fromkeys(departed, clock())  # by MAC
        self._away: set[str] = set()
        self._pending: set[int] = set()

    def finished(self) -> frozenset[str] | None:
        """Return the names of the files in udev's database; None if udev does not run.

        Call it before the links are read: a name that is read earlier may precede the rename.
        """
        if not (self._udev / "control").exists():
            return None
        return frozenset(path.name for path in (self._udev / "data").glob("n*"))

    def observe(self, actual: Actual, macs: Collection[str], finished: frozenset[str] | None) -> Actual:
        """Return `actual` with the links marked that udev has not finished with. `macs` are those of the metadata."""
        now = self._clock()
        here = {link.ifindex for link in actual.links}
        self._first_seen = {index: self._first_seen.get(index, now) for index in here}
        seen_now = {link.mac: now for link in actual.links if link.mac in macs}
        named = self._last_named | dict.fromkeys(macs, now)
        self._last_named = {mac: at for mac, at in named.items() if at > now - FORGOTTEN_S}
        seen = self._last_seen | seen_now
        self._last_seen = {mac: at for mac, at in seen.items() if mac in self._last_named}
        self._away = (self._last_seen.keys() & set(macs)) - seen_now.keys()
        self._pending = set() if finished is None else set(self._unfinished(actual, macs, finished))
        if not self._pending:
            return actual
        links = (replace(each, ready=each.ifindex not in self._pending) for each in actual.links)
        return replace(actual, links=tuple(links))

    def _unfinished(self, actual: Actual, macs: Collection[str], finished: frozenset[str]) -> Iterator[int]:
        since = self._clock() - UDEV_S
        for link in actual.links:
            if link.mac in macs and f"n{link.ifindex}" not in finished and self._first_seen[link.ifindex] > since:
                yield link.ifindex

    @property
    def departed(self) -> frozenset[str]:
        """MACs in the metadata whose link was on this host and has been away for DEPARTED_S."""
        now = self._clock()
        return frozenset(mac for mac in self._away if now >= self._last_seen[mac] + DEPARTED_S)

    @property
    def due(self) -> float:
        """Time of the next check; infinity if only an event can change anything."""
        now = self._clock()
        if self._pending:
            return now + _POLL_S
        ends = (self._last_seen[mac] + DEPARTED_S for mac in self._away)
        return min((at for at in ends if at > now), default=math.inf)
