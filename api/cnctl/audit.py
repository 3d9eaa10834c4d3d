"""`cnctl audit`: what netagent was asked, by whom, and what became of it; `--verify` proves that no line was touched.

A line's hash is the SHA-256 of everything before `,"hash"` in it, with the hash of the line before (`prev`); `seq`
counts from 1. So a line that was changed, dropped or moved breaks the chain, and where it breaks is told. Lines cut off
the end leave no trace in the file itself: that the last change which the fetcher saw confirmed (status.json) is among
them is checked, and the head that is printed can be compared with the journal's last line.
"""

from __future__ import annotations

import json
import os

from cloud_network.api.cnctl import layout
from cloud_network.api.cnctl.failure import OK, UNREACHABLE, WRONG, Failure
from cloud_network.fetcher.state import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    from cloud_network.api.cnctl.source import Source


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Print the last lines, or verify all of them."""
    if arguments.verify:
        return _verify(arguments, _last_confirmed(source))
    lines = [line for _, _, line in _lines(arguments.log)][-arguments.last :]
    entries = [_entry(line) for line in lines]
    if arguments.json:
        layout.show_json(entries)
        return OK
    for entry in entries:
        print(layout.safe(_summary(entry)))
    return OK


def _lines(log: str) -> Iterator[tuple[str, int, str]]:
    """(file, number, line) of the whole log, the oldest rotated file first."""
    paths = [f"{log}.{number}" for number in range(99, 0, -1) if os.path.exists(f"{log}.{number}")]  # noqa: PTH110
    try:
        for path in [*paths, log]:
            with open(path, encoding="utf-8", errors="replace", newline="\n") as file:  # noqa: PTH123
                for number, line in enumerate(file, 1):
                    yield path, number, line
    except FileNotFoundError:
        raise Failure(UNREACHABLE, f"{log} is not there: netagent has not been asked for anything yet") from None
    except OSError as error:
        raise Failure(WRONG, f"{error.filename}: {error.strerror}") from None


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {}


def _summary(entry: dict[str, Any]) -> str:
    """One line for a person: when, who, what, and what became of it."""
    peer = entry.get("peer") or {}
    who = peer.get("unit") or (f"uid {peer['uid']}" if "uid" in peer else "netagent")
    ops = entry.get("ops")
    what = f"{entry.get('request') or 'malformed'}" + (f" of {len(ops)}" if isinstance(ops, list) else "")
    reason = f": {entry['reason']}" if entry.get("reason") else ""
    when = str(entry.get("time", "?"))[:19]
    return f"{entry.get('seq', '?'):>5}  {when}  {who:<12}  {what:<14}  {entry.get('verdict', '?')}{reason}"


def _last_confirmed(source: Source) -> str | None:
    """The id of the last change that the fetcher saw confirmed; None when it has seen none, or none since."""
    try:
        status = source.files.read_status()
    except StateError:
        return None
    last = status["netagent"] if status else None
    return last["request"] if last and last["verdict"] == "confirmed" else None


def _verify(arguments: argparse.Namespace, confirmed: str | None) -> int:
    from hashlib import sha256

    previous, sequence, count = "", 0, 0
    path, number, seen = arguments.log, 0, False
    for path, number, line in _lines(arguments.log):
        where = f"{path}:{number}"
        body, found, rest = line.rpartition(',"hash":"')
        entry = _entry(line)
        if not line.endswith("\n") or not found or not entry:
            return _broken(arguments, where, "not a whole line: it was cut off or overwritten")
        if sha256(body.encode()).hexdigest() != rest.rstrip("\n").removesuffix('"}'):
            return _broken(arguments, where, "the line was changed: its hash is not that of its text")
        if count and (entry.get("prev"), entry.get("seq")) != (previous, sequence + 1):
            said = f"line {entry.get('seq')} follows line {sequence}: lines were dropped, added or moved before it"
            return _broken(arguments, where, said)
        previous, sequence, count = entry["hash"], entry["seq"], count + 1
        seen = seen or (entry.get("verdict"), entry.get("id")) == ("confirmed", confirmed)
    if confirmed is not None and not seen:
        said = f"line {sequence} is the last: lines were cut off the end, the confirmation of {confirmed} among them"
        return _broken(arguments, f"{path}:{number}", said)
    if arguments.json:
        layout.show_json({"ok": True, "lines": count, "sequence": sequence, "head": previous})
    else:
        print(f"whole: {count} lines, the last is {sequence}, head {previous or '-'}")
    return OK


def _broken(arguments: argparse.Namespace, where: str, reason: str) -> int:
    if arguments.json:
        layout.show_json({"ok": False, "where": where, "reason": reason})
    else:
        print(f"BROKEN at {where}: {reason}")
    return WRONG
