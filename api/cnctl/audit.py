"""`cnctl audit`: requests to netagent, their senders and verdicts. `--verify` proves that no line was changed.

A line's hash is the SHA-256 of everything before `,"hash"` in it, including the hash of the previous line (`prev`).
`seq` counts from 1. A changed, removed or moved line breaks the chain at that place. Lines removed at the end leave no
trace in the file itself. Therefore the last change that the fetcher saw confirmed (status.json) must be in the log, and
the printed head can be compared with the last entry in the journal. Rotation removes the oldest lines, so the number
and the time of the first remaining line are printed, too.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cloud_network.api.audit_log import parse_line, peer_name
from cloud_network.api.cnctl import output
from cloud_network.api.cnctl.output import Exit, Failure, safe
from cloud_network.api.cnctl.source import Source
from cloud_network.fetcher.state import StateError, opened_below

MAX_LINE_BYTES = 8 << 20
MAX_ROTATED = 99


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log, with its newline."""

    path: Path
    number: int
    content: bytes


class ChainBroken(Exception):
    """The chain is broken: the place, and the reason."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(reason)
        self.where, self.reason = where, reason


def show(log: Path, last: int, as_json: bool) -> Exit:
    """Print the last lines."""
    entries = [parse_line(line.content) or {} for line in deque(_lines(log), maxlen=last)]
    if as_json:
        output.show_json(entries)
        return Exit.OK
    for entry in entries:
        print(safe(_summary(entry)))
    return Exit.OK


def verify(log: Path, source: Source, as_json: bool) -> Exit:
    """Check every line. Print both ends of the chain, or the place where it is broken."""
    try:
        result = _verify(log, _last_confirmed(source))
    except ChainBroken as broken:
        if as_json:
            output.show_json({"ok": False, "where": broken.where, "reason": broken.reason})
        else:
            print(f"BROKEN at {broken.where}: {broken.reason}")
        return Exit.FAILED
    if as_json:
        output.show_json(result)
    else:
        lines = output.count(result["lines"], "line")
        print(f"OK: {lines}, the last is {result['sequence']}, head {result['head'] or '-'}")
        if result["lines"]:
            print(f"first line in the log: {result['first']}, of {safe(str(result['since']))}")
    return Exit.OK


def _lines(log: Path) -> Iterator[Line]:
    """Yield the lines of the whole log, the oldest rotated file first."""
    rotated = (log.with_name(f"{log.name}.{number}") for number in range(MAX_ROTATED, 0, -1))
    try:
        for path in [*(each for each in rotated if each.exists()), log]:
            with opened_below(str(path.parent), (path.name,)) as descriptor:
                file = os.fdopen(os.dup(descriptor), "rb")
                with file:
                    yield from _numbered(path, iter(lambda file=file: file.readline(MAX_LINE_BYTES), b""))  # type: ignore[misc]
    except FileNotFoundError:
        raise Failure(Exit.NO_STATE, f"{log} does not exist: netagent has had no request yet") from None
    except PermissionError:
        raise Failure(Exit.FAILED, f"{log}: Permission denied. Use: sudo cnctl audit") from None
    except OSError as error:
        raise Failure(Exit.FAILED, f"{log}: {error.strerror}") from None


def _numbered(path: Path, contents: Iterator[bytes]) -> Iterator[Line]:
    for number, content in enumerate(contents, 1):
        yield Line(path, number, content)


def _summary(entry: dict[str, Any]) -> str:
    """Return one line of text: number, time, peer, request and verdict."""
    ops = entry.get("ops")
    request = f"{entry.get('request') or 'malformed'}" + (f" of {len(ops)}" if isinstance(ops, list) else "")
    reason = f": {entry['reason']}" if entry.get("reason") else ""
    at = str(entry.get("time", "?"))[:19]
    verdict = f"{entry.get('verdict', '?')}{reason}"
    return f"{entry.get('seq', '?')!s:>5}  {at}  {peer_name(entry):<12}  {request:<14}  {verdict}"


def _last_confirmed(source: Source) -> str | None:
    """Return the id of the last change that the fetcher saw confirmed, or None."""
    try:
        status = source.files.read_status()
    except StateError:
        return None
    last = status["netagent"] if status else None
    return last["request"] if last and last["verdict"] == "confirmed" else None


def _verify(log: Path, confirmed: str | None) -> dict[str, Any]:
    previous, sequence, count, where, seen = "", 0, 0, str(log), False
    first: int | None = None
    since: str | None = None
    for line in _lines(log):
        where = f"{line.path}:{line.number}"
        entry = _checked(line, where)
        if count and (entry["prev"], entry["seq"]) != (previous, sequence + 1):
            reason = f"line {entry['seq']} follows line {sequence}: lines were removed, added or moved before it"
            raise ChainBroken(where, reason)
        if not count:
            first, since = entry["seq"], entry.get("time")
        previous, sequence, count = entry["hash"], entry["seq"], count + 1
        seen = seen or (entry.get("verdict"), entry.get("id")) == ("confirmed", confirmed)
    if confirmed is not None and not seen:
        reason = f"line {sequence} is the last, and the confirmation of {confirmed} is missing: lines were removed"
        raise ChainBroken(where, reason)
    return {"ok": True, "lines": count, "sequence": sequence, "head": previous, "first": first, "since": since}


def _checked(line: Line, where: str) -> dict[str, Any]:
    """Return the entry of a line. Raises ChainBroken if its hash is wrong."""
    body, found, rest = line.content.rpartition(b',"hash":"')
    entry = parse_line(line.content)
    if not line.content.endswith(b"\n") or not found or entry is None or not {"prev", "seq", "hash"} <= entry.keys():
        raise ChainBroken(where, "not a whole line: it was truncated or overwritten")
    if not (isinstance(entry["seq"], int) and isinstance(entry["prev"], str)):
        raise ChainBroken(where, "seq or prev is of the wrong type")
    if sha256(body).hexdigest().encode() != rest.rstrip(b"\n").removesuffix(b'"}'):
        raise ChainBroken(where, "the line was changed: its hash is not that of its text")
    return entry
