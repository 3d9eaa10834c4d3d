"""The little YAML that Hetzner's metadata is written in, strictly: mappings, lists, scalars, and nothing that executes.

Block mappings and lists, `- key: value`, [a, b] of scalars, "…" and '…' over several lines, | and >, plain scalars that
go on in deeper lines. Anchors, tags, flow mappings, tabs and whatever else YAML has are an error with its line.
Scalars stay text, but for null, true and false. Source: YAML 1.2.2 (yaml.org/spec/1.2.2), chapters 6 to 8.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers.document import Node

_DEEPEST = 16
_LONGEST = 1 << 16  # characters between quotes
_KEY = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_./-]*):(?: +|$)")
_PLAIN = re.compile(r"[^\s\[\]{}&*!|>'\"%@`#,?:-][^\t]*|[:?-][^\s][^\t]*")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


def parse(text: str, what: str) -> Node:
    """The document that `text` is; `what` names it in the error when it is none."""
    if text.strip() == "[]":
        return Node([])
    reader = _Reader(text.split("\n"), what)
    found = reader.block(0, 0) if reader.peek() else None
    if reader.peek():
        raise reader.wrong("is not where YAML would have it")
    return Node(found)


class _Reader:
    def __init__(self, lines: list[str], what: str) -> None:
        self.lines, self.what, self.at = lines, what, 0

    def wrong(self, why: str) -> MetadataError:
        """Names the line and does not show it: the document has vendor data, and errors are for everybody to read."""
        return MetadataError("invalid", f"{self.what}: line {self.at + 1} {why}")

    def peek(self) -> tuple[int, str] | None:
        """Indent and text of the next line that says something."""
        while self.at < len(self.lines):
            line = self.lines[self.at].rstrip()
            text = line.lstrip(" ")
            if text and not text.startswith("#") and line not in ("---", "..."):
                if "\t" in text[:1]:
                    raise self.wrong("is indented by a tab")
                return len(line) - len(text), text
            self.at += 1
        return None

    def block(self, indent: int, depth: int) -> Any:
        """The list or mapping whose lines begin at `indent`."""
        if depth > _DEEPEST:
            raise self.wrong("is nested too deep")
        following = self.peek()
        assert following is not None  # both callers have looked
        if _is_item(following[1]):
            return self._list(indent, depth)
        return self._mapping(indent, depth)

    def _list(self, indent: int, depth: int) -> list[Any]:
        found: list[Any] = []
        while (following := self.peek()) and following[0] == indent and _is_item(following[1]):
            rest = following[1][1:].lstrip(" ")
            if _KEY.match(rest):  # a mapping begins behind the dash, as if the dash were a space
                deeper = indent + len(following[1]) - len(rest)
                self.lines[self.at] = " " * deeper + rest
                found.append(self.block(deeper, depth + 1))
            else:
                found.append(self._value(rest, indent, depth))
        return found

    def _mapping(self, indent: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while (following := self.peek()) and following[0] == indent and not _is_item(following[1]):
            key = _KEY.match(following[1])
            if key is None or key[1] in found:
                raise self.wrong("is no 'key: value'" if key is None else "is there already")
            found[key[1]] = self._value(following[1][key.end() :], indent, depth, may_dash=True)
        if not found:
            raise self.wrong("is not where YAML would have it")
        return found

    def _value(self, rest: str, indent: int, depth: int, *, may_dash: bool = False) -> Any:
        """What stands behind a key or a dash, and in the lines below it; leaves the cursor behind them."""
        if rest.startswith(("|", ">")):
            return self._literal(rest, indent)
        if rest.startswith(('"', "'")):
            return self._quoted(rest)
        if rest.startswith("["):
            return self._flow(rest)
        if rest == "{}":
            self.at += 1
            return {}
        if rest:
            return self._plain(rest, indent)
        self.at += 1
        following = self.peek()
        if following and (following[0] > indent or (may_dash and following[0] == indent and _is_item(following[1]))):
            return self.block(following[0], depth + 1)
        return None

    def _plain(self, rest: str, indent: int) -> Any:
        words = [self._scalar(rest)]
        self.at += 1
        while self.at < len(self.lines) and (line := self.lines[self.at].rstrip()):
            if len(line) - len(line.lstrip(" ")) <= indent or line.lstrip().startswith("#"):
                break
            words.append(self._scalar(line.strip()))
            self.at += 1
        return _WORDS.get(words[0], words[0]) if len(words) == 1 else " ".join(words)

    def _scalar(self, text: str) -> str:
        text = re.split(r"\s#", text)[0].rstrip()
        if not _PLAIN.fullmatch(text) or ": " in text or text.endswith(":"):
            raise self.wrong("is YAML that this reader does not know")
        return text

    def _flow(self, rest: str) -> list[Any]:
        if not rest.endswith("]"):
            raise self.wrong("is a list that does not end")
        inner = rest[1:-1].strip()
        found = [self._scalar(part.strip()) for part in inner.split(",")] if inner else []
        self.at += 1
        return [_WORDS.get(word, word) for word in found]

    def _literal(self, rest: str, indent: int) -> str:
        if not re.fullmatch(r"[|>][+-]?", rest):
            raise self.wrong("is YAML that this reader does not know")
        self.at += 1
        found = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.strip() and len(line) - len(line.lstrip(" ")) <= indent:
                break
            found.append(line.strip())
            self.at += 1
        return "\n".join(found).strip("\n")

    def _quoted(self, rest: str) -> str:
        quote = rest[0]
        found = rest[1:]
        end = re.compile(r"(?:[^\\\"]|\\.)*?\"" if quote == '"' else r"(?:[^']|'')*'(?!')", re.DOTALL)
        while not (whole := end.match(found)):
            self.at += 1
            if self.at >= len(self.lines) or len(found) > _LONGEST:
                raise self.wrong("comes before a text has ended")
            line = self.lines[self.at].strip()
            found = found[:-1] + line if quote == '"' and _escaped(found) else f"{found.rstrip()} {line}"
        if found[whole.end() :].strip():
            raise self.wrong("goes on behind a text")
        self.at += 1
        inner = found[: whole.end() - 1]
        return inner.replace("''", "'") if quote == "'" else self._unescaped(inner)

    def _unescaped(self, inner: str) -> str:
        inner = re.sub(r"\\x([0-9A-Fa-f]{2})", r"\\u00\1", inner.replace("\\ ", " "))
        try:
            return str(json.loads(f'"{inner}"', strict=False))
        except ValueError:
            self.at -= 1
            raise self.wrong("has an escape that this reader does not know") from None


def _is_item(text: str) -> bool:
    return text == "-" or text.startswith("- ")


def _escaped(text: str) -> bool:
    """Whether the text ends with a backslash that is no escaped one."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1
