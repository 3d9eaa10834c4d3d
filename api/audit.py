"""The end of netagent's audit log, for those who only read: its last lines, each a JSON object, oldest first."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from cloud_network.api.bodies import Stamp, read_stamp

PATH = "/var/log/cloud-network/audit.log"
MOST = 1000
"""Lines that may be asked for."""

_BLOCK = 1 << 16
_BYTES = 4 << 20
"""Of one file, at most: fewer lines are given rather than more read."""


class Tail(NamedTuple):
    """The last lines, and how many among them were no JSON objects and are left out."""

    entries: list[dict[str, Any]]
    broken: int


class AuditLog:
    """The log at `path`, and the file before it (`.1`) where a rotation has just begun a new one."""

    def __init__(self, path: str = PATH):
        self.path = path

    def stamp(self) -> Stamp | None:
        """What tells the log from an earlier state of it, for it is only ever appended to; None when there is none."""
        return read_stamp(self.path)

    def last(self, count: int) -> Tail:
        """The last `count` lines. Raises OSError when the log cannot be read."""
        lines = _last_lines(self.path, count)
        if len(lines) < count and Path(f"{self.path}.1").exists():
            lines = _last_lines(f"{self.path}.1", count - len(lines)) + lines
        entries = [entry for entry in map(_entry, lines) if entry is not None]
        return Tail(entries, len(lines) - len(entries))


def _last_lines(path: str, count: int) -> list[bytes]:
    """Whole lines from the end; a last one without its newline is still being written."""
    with Path(path).open("rb") as file:
        at = end = file.seek(0, os.SEEK_END)
        content = b""
        while at and content.count(b"\n") <= count and end - at < _BYTES:
            step = min(_BLOCK, at)
            at -= step
            file.seek(at)
            content = file.read(step) + content
    whole, _, _ = content.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    return lines[1 if at else 0 :][-count:]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _not_json(name: str) -> None:
    raise ValueError(name)
