"""What is wrong now: said in the log when it begins, when it changes and when it is over, and not in between."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

from cloud_network.fetcher.status import LastError

Kind = Literal["metadata", "netagent", "kernel", "config", "conflict"]

RFC3339 = "%Y-%m-%dT%H:%M:%SZ"  # as status.json has times

logger = logging.getLogger(__name__)


def now() -> str:
    """RFC 3339, as status.json has it."""
    return datetime.now(UTC).strftime(RFC3339)


class Errors:
    """At most one error of each kind. `serious`: that part cannot be dealt with at all."""

    def __init__(self) -> None:
        self._current: dict[Kind, LastError] = {}
        self._serious: set[Kind] = set()

    def begin(self, kind: Kind, message: str, *, serious: bool, passes: bool = False) -> None:
        """It is so, or still so. `passes`: most likely it will soon be over, and nobody has to do anything."""
        before = self._current.pop(kind, None)
        repeated = before is not None and before["message"] == message
        level = logging.WARNING if passes else logging.ERROR
        logger.log(logging.DEBUG if repeated else level, "%s: %s", kind, message)
        self._current[kind] = {"at": now(), "kind": kind, "message": message}
        (self._serious.add if serious else self._serious.discard)(kind)

    def end(self, kind: Kind) -> None:
        """It is not so, or no longer so."""
        if self._current.pop(kind, None) is not None:
            logger.info("%s: well again", kind)
        self._serious.discard(kind)

    @property
    def last(self) -> LastError | None:
        """The one that was seen last."""
        return next(reversed(self._current.values()), None)

    @property
    def serious(self) -> bool:
        """Whether any error keeps us from our work."""
        return bool(self._serious)
