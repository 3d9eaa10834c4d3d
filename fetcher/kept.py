"""What pure functions made at the last pass, of values that are still the very same.

A large instance changes by one address: what is made of all else is what it was. A function whose arguments are the
same objects as the last time is not called again, which cannot be wrong as long as it is pure and they do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, TypeVarTuple, cast

Of = TypeVarTuple("Of")
Made = TypeVar("Made")
Value = TypeVar("Value")


class Kept:
    """Of this pass and the one before. A new one knows nothing, and everything is made."""

    def __init__(self) -> None:
        self._now: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}
        self._before: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}
        self._values: dict[Hashable, Any] = {}
        self._values_before: dict[Hashable, Any] = {}

    def turn(self) -> None:
        """A pass has ended: what it made no use of is forgotten."""
        self._before, self._now = self._now, {}
        self._values_before, self._values = self._values, {}

    def __call__(self, make: Callable[[*Of], Made], *of: *Of) -> Made:
        """`make(*of)`, or what that was for these very objects: equal ones do not count (see `same`)."""
        key = (make, *map(id, of))
        found = self._now.get(key) or self._before.get(key) or (of, make(*of))
        self._now[key] = found  # with `of`: as long as an object is kept, no other has its id
        return cast(Made, found[1])

    def same(self, place: Hashable, value: Value) -> Value:
        """`value`; or what was in this place before, if that is equal: it is known what is made of it."""
        before = self._values.get(place, self._values_before.get(place))
        self._values[place] = before if before is value or before == value else value
        return cast(Value, self._values[place])
