"""State files → bytes to send, made once and kept until a file they were made from changes.

A file is known by (mtime, inode, size), so an unchanged request costs one stat a file. Every write is a rename of
a new inode; mtime has the grain of the kernel's clock tick, so what was made within a few ticks of a write is not
kept: the next write could look the same.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

Made = TypeVar("Made")
Stamp = tuple[int, int, int]

_SETTLED = 100_000_000
"""Nanoseconds after its mtime from which a file's stamp tells it from its successor: ten ticks of HZ=100."""


class Body(NamedTuple):
    """A response body, its strong ETag, quotes included, and headers that say more of it."""

    content: bytes
    etag: str
    about: tuple[tuple[str, str], ...] = ()


def body(content: bytes) -> Body:
    """Name the bytes by their digest: the same state after a restart, or on another worker, has the same ETag."""
    return Body(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


class Kept(Generic[Made]):
    """`make(contents)` of the files that `paths()` names; a missing file's content is None."""

    def __init__(self, paths: Callable[[], Sequence[str]], make: Callable[[list[bytes | None]], Made]):
        self._paths = paths
        self._make = make
        self._kept: tuple[Sequence[str], list[Stamp | None], Made] | None = None

    def get(self) -> Made:
        """Make it, or return what was made before. Raises OSError for a file that is there but not readable."""
        paths = self._paths()
        kept = self._kept
        if kept and kept[0] == paths and kept[1] == [read_stamp(path) for path in paths]:
            return kept[2]
        files = [_read(path) for path in paths]
        made = self._make([content for _, content in files])
        stamps = [stamp for stamp, _ in files]
        now = time.time_ns()
        # One assignment: threads see either the old triple or the new one.
        settled = all(stamp is None or now - stamp[0] > _SETTLED for stamp in stamps)
        self._kept = (paths, stamps, made) if settled else None
        return made


def read_stamp(path: str) -> Stamp | None:
    """What tells a file from its successor; None when there is no file."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(path: str) -> tuple[Stamp | None, bytes | None]:
    try:
        with Path(path).open("rb") as file:
            found = os.fstat(file.fileno())
            return (found.st_mtime_ns, found.st_ino, found.st_size), file.read()
    except FileNotFoundError:
        return None, None
