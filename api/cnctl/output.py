"""Terminal output, and exit codes of cnctl.

Metadata is hostile. Every value from it passes through `safe`, which escapes control characters, bidirectional
overrides and line breaks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from enum import IntEnum

RED, GREEN, YELLOW = 31, 32, 33
PIPE_COLUMNS = 80
"""Width of lines in a pipe or file."""

Row = tuple[str, str | Sequence[str]]
"""A key and its value: a text, which wraps at spaces, or words, which do not wrap inside."""


class Exit(IntEnum):
    """Exit codes of cnctl."""

    OK = 0
    FAILED = 1  # drift, or an error without a code of its own
    USAGE = 2
    NO_STATE = 3  # a daemon does not answer, or there is no state
    CONFIG = 78  # the configuration is invalid; the daemons use the same code
    INTERRUPTED = 130


class Failure(Exception):
    """The command cannot do its work; str() gives the reason and the next command to run."""

    def __init__(self, code: Exit, message: str):
        super().__init__(message)
        self.code = code


def safe(value: object) -> str:
    r"""Return the text of a value, with unprintable characters as \x.., \u.... or \U........ ."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def columns() -> int:
    """Return the width of the terminal, or of lines in a pipe."""
    return _size("COLUMNS", 0, 80) or PIPE_COLUMNS


def height() -> int | None:
    """Return the number of lines of the terminal; None if the output is not a terminal."""
    return _size("LINES", 1, 24)


def _size(variable: str, which: int, default: int) -> int | None:
    if not sys.stdout.isatty():
        return None
    if (given := os.environ.get(variable, "")).isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno())[which] or default
    except OSError:
        return default


def rows(table: Iterable[Row], width: int, limit: int) -> str:
    """Return `key: value` lines with the colons in column `width`.

    Values wrap at `limit` and continue in their own column.
    """
    lines = []
    for key, value in table:
        words = safe(value).split(" ") if isinstance(value, str) else [safe(word) for word in value]
        line = f"{key:>{width}}:"
        for word in words:
            if len(line) > width + 2 and len(line) + 1 + len(word) > limit:
                lines.append(line)
                line = " " * (width + 1)
            line = f"{line} {word}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def wrapped(head: str, text: str, before: int) -> str:
    """Return the head and the text; further lines start below the text.

    `before`: number of columns to the left of the head.
    """
    limit, indent = columns(), before + len(head)
    lines, used = [head], indent
    for word in safe(text).split(" "):
        if used > indent and used + 1 + len(word) > limit:
            lines.append(" " * indent)
            used = indent
        lines[-1] += word if used == indent else f" {word}"
        used += len(word) + (used > indent)
    return "\n".join(lines)


def coloured(text: str, colour: int) -> str:
    """Return the text in a colour, if the output is a terminal that allows it (https://no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def count(number: int, singular: str) -> str:
    """Return "1 change", "2 changes", "3 addresses"."""
    plural = f"{singular}es" if singular.endswith("s") else f"{singular}s"
    return f"{number} {singular if number == 1 else plural}"


def duration(seconds: float) -> str:
    """Return a duration in words."""
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(seconds: float) -> str:
    """Return an age in words."""
    return f"{duration(seconds)} ago"


def show_json(value: object) -> None:
    """Print JSON for programs, in ASCII: it is safe on a terminal as well."""
    print(json.dumps(value, indent=2))


def note(text: str) -> None:
    """Print a note or an error on standard error: wrapped on a terminal, else unchanged."""
    for number, line in enumerate(text.splitlines()):
        head = "" if number else "cnctl: "
        print(wrapped(head, line, 0) if sys.stderr.isatty() else head + safe(line), file=sys.stderr)
