r"""The text of cloud-network.toml → its entries, and what is not well-formed, each with its line.

The file is the part of TOML that fits on a line, and no more:

    [Section]
    Key = "text"        # the only escapes are \\ and \"
    Key = 'text'
    Key = 123           # the same as "123"

netagent reads the same file and must not carry a TOML library, so what its few lines understand is all that
is accepted here; what is accepted means in TOML what it means here (tests hold it against tomllib). Line by
line, every mistake can be reported at once. Imports only `re`: cnctl reads `Listen=` with it and starts fast.
"""

from __future__ import annotations

import re

FORM = r"""[Section], Key = "text" (escapes: only \\ and \"), Key = 'text' or Key = 123, each on its line"""
"""What to tell somebody whose line was not understood."""

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""Characters that TOML forbids in a line, and C1, which may steer a terminal."""

Entry = tuple[int, str, str, str]
"""Line, section ("" before the first), key, text. A section's header is an entry too, with key ""."""
Mistake = tuple[int, str]
"""Line, what is wrong and what is accepted instead."""

_SECTION = re.compile(r"\[([A-Za-z0-9_-]+)\][ \t]*(?:#.*)?")
_ENTRY = re.compile(
    r"""([A-Za-z0-9_-]+)[ \t]*=[ \t]*
        (?:"((?:[^"\\]|\\["\\])*)" | '([^']*)' | (-?(?:0|[1-9][0-9]{0,17})))
        [ \t]*(?:\#.*)?""",
    re.VERBOSE,
)
_INSTEAD = {
    "[": "the value is an array; write several values as one text, separated by white space",
    "{": "the value is an inline table",
    '"""': "the value is a text over several lines",
    "'''": "the value is a text over several lines",
}


def read(content: str) -> tuple[list[Entry], list[Mistake]]:
    """Take the file apart; sections and keys may come once each. Knows no key by name."""
    entries: list[Entry] = []
    mistakes: list[Mistake] = []
    seen: dict[str, int] = {}
    section = ""
    for number, raw in enumerate(content.replace("\r\n", "\n").split("\n"), 1):
        line = raw.strip(" \t")
        if control := CONTROL.search(line):
            mistakes.append((number, f"control character {control[0]!r}; accepted: {FORM}"))
        elif not line or line.startswith("#"):
            continue
        elif match := _SECTION.fullmatch(line):
            section = match[1]
            _once(seen, f"[{section}]", number, mistakes)
            entries.append((number, section, "", ""))
        elif match := _ENTRY.fullmatch(line):
            key, basic, literal, integer = match.groups()
            _once(seen, f"[{section}] {key}", number, mistakes)
            text = re.sub(r"\\(.)", r"\1", basic) if basic is not None else literal or integer or ""
            entries.append((number, section, key, text))
        else:
            value = line.partition("=")[2].lstrip(" \t")
            reasons = (reason for start, reason in _INSTEAD.items() if value.startswith(start))
            mistakes.append((number, f"{line[:80]}: {next(reasons, 'not understood')}; accepted: {FORM}"))
    return entries, mistakes


def _once(seen: dict[str, int], what: str, number: int, mistakes: list[Mistake]) -> None:
    first = seen.setdefault(what, number)
    if first != number:
        mistakes.append((number, f"{what} is already in line {first}; accepted: each once"))
