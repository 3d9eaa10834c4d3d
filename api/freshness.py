"""How old what we know is. Shared by REST and cnctl; `datetime` is imported when asked, for cnctl's start-up."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloud_network.fetcher.status import Status


def age(at: str, now: float) -> float:
    """Seconds from an RFC 3339 time to `now` (Unix time)."""
    from datetime import datetime

    return now - datetime.fromisoformat(at).timestamp()


def stale(status: Status, now: float) -> bool:
    """Whether two refreshes and half a minute passed without a good answer from the metadata server."""
    fetched_at = status["fetched_at"]
    return fetched_at is None or age(fetched_at, now) > 2 * status["refresh_timer"] + 30
