"""The last lines of netagent's audit log, each a JSON object, oldest first. Reads a bounded number of bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from cloud_network.fetcher.state import opened_below

PATH = Path("/var/log/cloud-network/audit.log")
MAX_LINES = 1000
"""Largest number of lines in one request."""
MAX_BYTES = 512 << 10
"""Largest number of bytes that one request reads and parses. If lines are long, fewer are returned."""


class Tail(NamedTuple):
    """The last lines, and the number of lines left out because they are not JSON objects."""

    broken: int
    entries: list[dict[str, Any]]


class AuditLog:
    """The log at `path`, preceded by the rotated file (`.1`)."""

    def __init__(self, path: Path = PATH):
        self.path = path

    def last(self, count: int) -> Tail:
        """Return the last `count` lines, or those within the last MAX_BYTES. Raises OSError."""
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


def peer_name(entry: dict[str, Any]) -> str:
    """Return the name of a request's sender: its unit, else its uid; netagent itself for its own lines."""
    peer = entry.get("peer")
    peer = peer if isinstance(peer, dict) else {}
    return str(peer.get("unit") or (f"uid {peer['uid']}" if "uid" in peer else "netagent"))


def _last_lines(path: Path, count: int, limit: int) -> tuple[list[bytes], int]:
    """Return whole lines from the end, and the number of bytes read.

    A last line without a newline is still being written.
    """
    with opened_below(str(path.parent), (path.name,)) as descriptor:
        size = os.fstat(descriptor).st_size
        content = os.pread(descriptor, limit, max(0, size - limit))
    whole, _, _ = content.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    if size > limit:
        del lines[:1]  # starts before the bytes that were read
    return lines[-count:], len(content)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
