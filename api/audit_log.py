"""The last lines of netagent's audit log, each a JSON object, oldest first. Reads a bounded number of bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from cloud_network.fetcher.state import opened_below

PATH = Path("/var/log/cloud-network/audit.log")
MAX_LINES = 1000
"""Lines that may be asked for."""
MAX_BYTES = 512 << 10
"""Bytes that one request reads and parses at most: of long lines, fewer are returned."""


class Tail(NamedTuple):
    """The last lines, and the number of lines among them that are not JSON objects and are left out."""

    broken: int
    entries: list[dict[str, Any]]


class AuditLog:
    """The log at `path`, continued backwards by the rotated file before it (`.1`)."""

    def __init__(self, path: Path = PATH):
        self.path = path

    def last(self, count: int) -> Tail:
        """Return the last `count` lines, or those that lie in the last MAX_BYTES. Raises OSError."""
        lines, size = _last_lines(self.path, count, MAX_BYTES)
        before = self.path.with_name(f"{self.path.name}.1")
        if len(lines) < count and size < MAX_BYTES and before.exists():
            older, _ = _last_lines(before, count - len(lines), MAX_BYTES - size)
            lines = older + lines
        entries = [entry for entry in map(parse_line, lines) if entry is not None]
        return Tail(len(lines) - len(entries), entries)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if it is not one."""
    try:
        entry = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _last_lines(path: Path, count: int, limit: int) -> tuple[list[bytes], int]:
    """Return whole lines from the end, and the number of bytes read. A line without a newline is being written."""
    with opened_below(str(path.parent), (path.name,)) as descriptor:
        size = os.fstat(descriptor).st_size
        content = os.pread(descriptor, limit, max(0, size - limit))
    whole, _, _ = content.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    if size > limit:
        del lines[:1]  # begins before what was read
    return lines[-count:], len(content)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
