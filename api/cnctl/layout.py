"""How text reaches the terminal: made safe, keys right-aligned on the colon, long lists wrapped.

Metadata is hostile. Whatever comes from it passes `safe`, so that no escape sequence, bidirectional override or
line break of its own gets through.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Row = tuple[str, "str | Sequence[str]"]
"""A key, and its value: a text, which wraps at its spaces, or words, which have none."""


def safe(value: object) -> str:
    r"""Text of the value, everything unprintable as \x.., \u.... or \U........ ."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def columns() -> int | None:
    """Width of the terminal; None when the output is none, as lines are then not wrapped: programs read them."""
    if not sys.stdout.isatty():
        return None
    if (given := os.environ.get("COLUMNS", "")).isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80


def rows(table: Iterable[Row], width: int, limit: int | None) -> str:
    """Lay out `key: value` lines with the colons in column `width`; words wrap to the value's column at `limit`."""
    lines = []
    for key, value in table:
        words = safe(value).split(" ") if isinstance(value, str) else [safe(word) for word in value]
        line = f"{key:>{width}}:"
        for word in words:
            if limit and len(line) > width + 2 and len(line) + 1 + len(word) > limit:
                lines.append(line)
                line = " " * (width + 1)
            line = f"{line} {word}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def coloured(text: str, colour: int) -> str:
    """The text in one of the terminal's colours (31 red, 32 green, 33 yellow), where there is a terminal for it."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def show_json(value: object) -> None:
    """Print JSON for programs; ASCII, so it is safe on a terminal as well."""
    import json

    print(json.dumps(value, indent=2))
