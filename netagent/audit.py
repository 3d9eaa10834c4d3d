"""The audit log: one JSON object a line for every request, refused ones too, each chained to the one before.

A line is `{"seq": …, …, "prev": "…", "hash": "…"}`. `hash` is the SHA-256 of everything before `,"hash"` in the line,
`prev` among it, so a line that was changed, dropped or moved breaks the chain where it happened. The file is opened for
appending and never rewritten; a rotation renames it, and the new file's first line goes on with the chain.
The journal gets the same line (journald.conf(5) LineMax= says where it breaks a long one).
"""

import os
import time
from _json import encode_basestring_ascii, make_encoder  # `json` imports `re`: 5 ms of start-up, for its decoder

from .old_protocol import text

try:
    from _sha256 import sha256  # the C part alone: `hashlib` maps libcrypto, 4 MB of this process
except ImportError:  # Python 3.12 and later
    from _sha2 import sha256

# Bytes: more than the longest line has, and how large a file is when it is rotated out; and how many of those are kept.
_TAIL, _MAX_FILE, _KEPT = 2 << 20, 16 << 20, 8


# Compact JSON in ASCII, in parts; packed addresses become text.
_json = make_encoder(None, text, encode_basestring_ascii, None, ":", ",", False, False, False)


class Audit:
    """The open log and the head of its chain."""

    def __init__(self, path: str) -> None:
        digits = os.environ["BOOT_ID"]  # random(4)'s; ProcSubset=pid hides it, so it comes as %b of systemd.unit(5)
        self._path, self._boot = path, "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        self._file = self._open()
        first = b'{"seq":0,"hash":"%b"}' % (b"0" * 64)  # as if there were a line before the first
        try:
            last = self._last_line(path) or self._last_line(f"{path}.1") or first
            self.sequence, self.head = int(last[len(b'{"seq":') :].partition(b",")[0]), last[-66:-2].decode("ascii")
        except (OSError, ValueError) as error:
            raise SystemExit(f"cloud-network-netagent: {path}: {error}; move it away for a new chain") from None

    def _open(self) -> int:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.fchmod(file, 0o644)  # whatever the umask: everybody may read it, nobody else may write
        return file

    def _last_line(self, path: str) -> bytes:
        """The last whole line; an unfinished one behind it, of a crash in mid-write, is cut off."""
        if not os.path.exists(path):
            return b""
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            whole, _, rest = file.read().rpartition(b"\n")
        if rest and path == self._path:
            os.ftruncate(self._file, size - len(rest))
        return whole.rpartition(b"\n")[2]

    def write(self, entry: dict[str, object]) -> None:
        """Append one line; OSError when it did not get there whole, and then none of it did."""
        now = time.time_ns()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now // 10**9))}.{now // 1000 % 10**6:06}Z"
        when = {"time": stamp, "monotonic_us": time.monotonic_ns() // 1000, "boot": self._boot}
        body = "".join(_json({"seq": self.sequence + 1, **when, **entry, "prev": self.head}, 0))[:-1]
        digest = sha256(body.encode()).hexdigest()
        line = f'{body},"hash":"{digest}"}}\n'.encode()
        if os.fstat(self._file).st_size + len(line) > _MAX_FILE:
            self._rotate()
        written = os.write(self._file, line)
        if written != len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError("No space left on device")  # a short write means just this
        self.sequence, self.head = self.sequence + 1, digest
        os.write(2, line)  # the journal's

    def _rotate(self) -> None:
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, _KEPT + 1))]
        gap = next((at for at, name in enumerate(names) if not os.path.exists(name)), _KEPT)
        for at in range(gap, 0, -1):  # nothing, if the first is gone: no room for a new one when it was renamed
            os.replace(names[at - 1], names[at])
        self.reopen()

    def reopen(self) -> None:
        """Open the path anew: after a rotation, ours or (SIGHUP) somebody else's."""
        before, self._file = self._file, self._open()  # if it cannot be opened, the old one stays
        os.close(before)
