"""The audit log: one JSON object a line for every request, refused ones too, each chained to the one before.

A line is `{"seq": …, …, "prev": "…", "hash": "…"}`. `hash` is the SHA-256 of everything before `,"hash"` in the line,
`prev` among it, so a line that was changed, dropped or moved breaks the chain where it happened. The file is opened for
appending and never rewritten; a rotation renames it, and the new file's first line goes on with the chain.
The journal gets the same line, without the operations where they would make it longer than a journal line may be.
"""

from __future__ import annotations

import os
import sys
import time

# `json` imports `re`: 5 ms of start-up for a decoder that is not used here.
from _json import encode_basestring_ascii as quote

from .protocol import text

try:
    from _sha256 import sha256  # the C part alone: `hashlib` maps libcrypto, 4 MB of this process
except ImportError:  # Python 3.12 and later
    from _sha2 import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

GENESIS = "0" * 64
_TAIL = 2 << 20  # bytes: more than the longest line
_JOURNAL_LINE = 16384
_MAX_FILE, _KEPT = 16 << 20, 8  # a rotated-out file's size in bytes, and how many of them are kept


def to_json(value: Any) -> str:
    """Compact JSON of what a line is made of; packed addresses become text."""
    return _JSON[type(value)](value)


_JSON: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "null",
    bool: lambda value: "true" if value else "false",
    int: str,
    str: quote,
    bytes: lambda value: f'"{text(value)}"' if len(value) in (4, 16) else f'"{value.hex()}"',
    list: lambda value: "[" + ",".join([to_json(entry) for entry in value]) + "]",
    dict: lambda value: "{" + ",".join([f"{quote(str(key))}:{to_json(value[key])}" for key in value]) + "}",
}


class Audit:
    """The open log and the head of its chain."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.sequence, self.head = 0, GENESIS
        with open("/proc/sys/kernel/random/boot_id") as file:
            self._boot = file.read().strip()
        self._file = self._open()
        self._read_head()

    def _open(self) -> int:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.fchmod(file, 0o644)  # whatever the umask: everybody may read it, nobody else may write
        return file

    def _read_head(self) -> None:
        """Go on with the chain of the last whole line; an unfinished one, of a crash in mid-write, is cut off."""
        try:
            with open(self._path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _TAIL))
                tail = file.read()
            if not tail and os.path.exists(f"{self._path}.1"):
                with open(f"{self._path}.1", "rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                    last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
            else:
                whole, _, rest = tail.rpartition(b"\n")
                if rest:
                    os.ftruncate(self._file, size - len(rest))
                last = whole.rpartition(b"\n")[2]
            if last:
                self.sequence = int(last[len(b'{"seq":') :].partition(b",")[0])
                self.head = last[-66:-2].decode("ascii")
        except (OSError, ValueError) as error:
            raise SystemExit(
                f"cloud-network-netagent: {self._path}: {error}; move it away to begin a new chain"
            ) from None

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line; OSError when it did not get there whole, and then none of it did."""
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
        first = {
            "seq": self.sequence + 1,
            "time": f"{stamp}.{now // 1000 % 10**6:06}Z",
            "monotonic_us": time.monotonic_ns() // 1000,
            "boot": self._boot,
        }
        body = to_json({**first, **entry, "prev": self.head})[:-1]
        digest = sha256(body.encode()).hexdigest()
        line = f'{body},"hash":"{digest}"}}\n'.encode()
        size = os.fstat(self._file).st_size
        if size and size + len(line) > _MAX_FILE:
            self._rotate()
            size = 0
        written = 0
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(28, "No space left on device")  # a short write means just this
        except OSError:
            if written:
                os.ftruncate(self._file, size)
            raise
        if len(line) > _JOURNAL_LINE:
            entry = {**entry, "ops": len(entry.get("ops", ())), "prev": self.head, "hash": digest}
            line = (to_json({**first, **entry}) + "\n").encode()
        self.sequence, self.head = self.sequence + 1, digest
        sys.stderr.buffer.write(line)
        sys.stderr.flush()

    def _rotate(self) -> None:
        for number in range(_KEPT - 1, 0, -1):
            if os.path.exists(f"{self._path}.{number}"):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
        self.reopen()

    def reopen(self) -> None:
        """Open the path anew: after a rotation, ours or (SIGHUP) somebody else's."""
        before, self._file = self._file, self._open()  # if it cannot be opened, the old one stays
        os.close(before)
