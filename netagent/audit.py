"""The audit log: a JSON object per line for each change, confirmation, rollback, flush and refusal, as a hash chain.

A line is `{"seq": ..., ..., "prev": "...", "hash": "..."}`. `hash` is the SHA-256 of the line up to `,"hash"`, which
includes `prev`, the hash of the line before. So a line that was changed, removed or moved breaks the chain there. A
request with many operations gets several lines, numbered `part` of `parts`. The file is opened for appending and never
rewritten; a rotation renames it, and the first line of the new file continues the chain. The journal gets every line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from errno import ENOSPC
from ipaddress import ip_address
from pathlib import Path
from time import monotonic_ns

from .operations import Message

MAX_FILE = 16 << 20  # bytes; then the file is rotated
KEPT = 8  # rotated files
OPS_PER_LINE = 224  # at most 46 KB: the journal splits a line at its LineMax= of 48 KB
REMAINING_PER_LINE = 128  # entries of `not_undone`: an operation and a reason each
LINE_BYTES, OP_BYTES = 2048, 256
"""Upper bounds, in bytes, of the audit lines of a request and of each of its operations."""
MARKS_PER_OP = 5  # marks of `forwarded_replies` that need as many bytes as an operation
_BLOCK = 1 << 16
_FIRST = "0" * 64  # `prev` of the first line of a chain
_BEGIN = b'{"seq":'
_LAST_LINE = re.compile(rb'\{"seq":([0-9]{1,18}),.*,"hash":"([0-9a-f]{64})"\}')


def cost(ops: int) -> int:
    """Return the upper bound, in bytes, of the audit lines of a request with `ops` operations."""
    return LINE_BYTES * (1 + ops // OPS_PER_LINE) + OP_BYTES * ops


def _address(packed: bytes) -> str:
    """Return the text of a packed address, for JSON."""
    return str(ip_address(packed))


def _weight(values: Iterable[Message]) -> int:
    """Return the number of operations; marks count as further operations."""
    marks = (value.get("marks") for value in values)
    return sum(1 + (len(each) // MARKS_PER_OP if isinstance(each, list) else 0) for each in marks)


def _parts(values: Sequence[Message], most: int) -> list[list[Message]]:
    """Split operations into parts with a weight of at most `most`."""
    parts, size = list[list[Message]](), most
    for value in values:
        weight = _weight([value])
        if size + weight > most:
            parts.append([])
            size = 0
        parts[-1].append(value)
        size += weight
    return parts


class Audit:
    """The open log and the head of its chain."""

    def __init__(self, path: Path, boot: str) -> None:
        self._path, self._boot = path, boot
        self.damage: str | None = None  # set if the log's end could not be read and the file was moved aside
        self.sequence, self.head = 0, _FIRST
        self._file = self._open()
        self._resume()

    def _open(self) -> int:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.fchmod(file, 0o644)  # all users may read it, regardless of the umask
        return file

    def _resume(self) -> None:
        """Continue the chain where the last line ends. A damaged log is moved aside: a new chain starts."""
        for path in (self._path, self._rotated(1)):
            last = self._last_line(path)
            if last is None:
                continue
            found = _LAST_LINE.fullmatch(last)
            if found is None:
                self._move_aside(path)
                return
            self.sequence, self.head = int(found[1]), found[2].decode()
            return

    def _last_line(self, path: Path) -> bytes | None:
        """Return the last complete line of a file; None without a complete line; b"" if the end of the file is damaged.

        Cut off an incomplete line that a crash left.
        """
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            size, tail = file.seek(0, os.SEEK_END), b""
            while len(tail) < size and tail.count(b"\n") < 2:
                if len(tail) > 2 * MAX_FILE:
                    return b""  # no line is that long
                length = min(size, 4 * len(tail) or _BLOCK)
                file.seek(size - length)
                tail = file.read(length)
        whole, newline, rest = tail.rpartition(b"\n")
        if not rest.startswith(_BEGIN[: len(rest)]) or _BEGIN in rest[1:]:
            return b""
        if rest and path == self._path:
            os.ftruncate(self._file, size - len(rest))
        return whole.rpartition(b"\n")[2] if newline else None

    def _move_aside(self, path: Path) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}")
        path.replace(aside)
        if path == self._path:
            self.reopen()
        self.damage = f"the end of {path} is damaged; moved to {aside}, and a new chain starts"

    def _rotated(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def write(
        self,
        entry: Message,
        ops: Sequence[Message] = (),
        remaining: Sequence[Message] | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        """Append an entry, in as many lines as its operations and those that were not undone (`remaining`) need.

        Only the first line has `counts`, which are cleared then. Raises OSError if a line could not be written.
        """
        parts = [{"ops": part} for part in _parts(ops, OPS_PER_LINE)]
        if remaining and _weight(ops) / OPS_PER_LINE + _weight(remaining) / REMAINING_PER_LINE > 1:
            parts += [{"not_undone": part} for part in _parts(remaining, REMAINING_PER_LINE)]
        elif remaining is not None:
            entry = {**entry, "not_undone": remaining}
        for number, part in enumerate(parts or [{}], 1):
            numbered = {"part": number, "parts": len(parts)} if len(parts) > 1 else {}
            self._append({**entry, **(counts or {}), **numbered, **part})
            if counts:
                counts.clear()

    def _append(self, entry: Message) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        when = {"seq": self.sequence + 1, "time": now, "monotonic_us": monotonic_ns() // 1000, "boot": self._boot}
        body = json.dumps({**when, **entry, "prev": self.head}, separators=(",", ":"), default=_address)[:-1]
        digest = hashlib.sha256(body.encode()).hexdigest()
        line = f'{body},"hash":"{digest}"}}\n'.encode()
        try:
            if os.fstat(self._file).st_size + len(line) > MAX_FILE:
                self._rotate()
            self._write_line(line)
        finally:  # standard error is the journal: it also has lines for which the file has no space
            with contextlib.suppress(OSError):  # journald may have ended
                os.write(2, line)
        self.sequence, self.head = self.sequence + 1, digest

    def _write_line(self, line: bytes) -> None:
        """Write a complete line or nothing. Raises OSError."""
        written = os.write(self._file, line)
        if written != len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(ENOSPC, os.strerror(ENOSPC))  # the cause of a short write to a file

    def _rotate(self) -> None:
        """Rename each file to the next number; the oldest is overwritten."""
        names = [self._path, *(self._rotated(number) for number in range(1, KEPT + 1))]
        free = next((at for at, name in enumerate(names) if not name.exists()), KEPT)
        for at in range(free, 0, -1):
            names[at - 1].replace(names[at])
        self.reopen()

    def reopen(self) -> None:
        """Open the path again, after a rotation by netagent or by another program (SIGHUP)."""
        before, self._file = self._file, self._open()  # if open() fails, the old file stays in use
        os.close(before)
