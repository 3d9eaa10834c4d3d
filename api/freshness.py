"""How old what we know is. Shared by REST and cnctl; `datetime` is imported when asked, for cnctl's start-up."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloud_network.fetcher.status import Status


def age(at: str, now: float) -> float:
    """Seconds from an RFC 3339 time to `now` (Unix time)."""
    from datetime import datetime

    return now - datetime.fromisoformat(at).timestamp()


def until(status: Status) -> float:
    """When (Unix time) two refreshes and half a minute will have passed without a good answer of the metadata."""
    fetched_at = status["fetched_at"]
    return 0.0 if fetched_at is None else 2 * status["refresh_timer"] + 30 - age(fetched_at, 0.0)


def stale(status: Status, now: float) -> bool:
    """Whether that has passed."""
    return now > until(status)
