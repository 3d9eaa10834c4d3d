"""Base class of the emulated clouds: state, tokens, answers in JSON, and trees of text."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from ..convention import Convention
from ..nic import Nic
from .frame import NO_HEADERS, Headers, Response, Tree

Dmi = Mapping[str, tuple[str, int]]

MAX_LIFETIME_S = 21600
"""Lifetime in seconds: six hours, for a token of AWS, Alibaba and others."""


@dataclass(frozen=True)
class NoSettings:
    """A cloud without options."""


S = TypeVar("S")


class Behaviour(Generic[S]):
    """A provider (frame.py) without `answer`: the present interfaces and settings."""

    dmi: ClassVar[Dmi]
    convention: ClassVar[Convention] = Convention()
    settings: S

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.recorded: Any = None
        """A document from `documents/` that is served instead of one made from the interfaces."""
        self.nics: Sequence[Nic] = ()
        self.tokens = Tokens()

    def load(self, nics: Sequence[Nic]) -> None:
        self.nics, self.recorded = nics, None

    def record(self, document: Any) -> None:
        """Serve this document from now on. Each cloud's module documents its content."""
        self.recorded = document

    def configure(self, **settings: object) -> None:
        self.settings = replace(self.settings, **settings)  # type: ignore[type-var]  # always a dataclass

    def expire_tokens(self) -> None:
        self.tokens.expire()


class Tokens:
    """Granted tokens and their expiry times."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}

    def grant(self, seconds: float) -> str:
        token = base64.urlsafe_b64encode(secrets.token_bytes(42)).decode()
        self._ends[token] = time.monotonic() + seconds
        return token

    def left(self, token: str) -> float:
        """Return the seconds until a token expires; 0 or less if it is invalid."""
        return self._ends.get(token, 0) - time.monotonic()

    def expire(self) -> None:
        self._ends.clear()


def lifetime(text: str | None) -> int | None:
    """Return the requested lifetime of a token in seconds; None if it is not allowed."""
    valid = text is not None and text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_LIFETIME_S
    return int(text) if text is not None and valid else None


def dmi(**entries: str) -> Dmi:
    """Return firmware files.

    Modes are those of drivers/firmware/dmi-id.c: only root can read serial numbers and the UUID.
    """
    return {
        name: (text, 0o400 if name.endswith(("_serial", "_uuid")) else 0o444) for name, text in sorted(entries.items())
    }


def answer(value: object, headers: Headers = NO_HEADERS, status: int = 200) -> Response:
    """Return a response in JSON."""
    return Response(status, json.dumps(value, indent=2).encode(), headers, "application/json")


def pick(value: object, names: Sequence[str]) -> object:
    """Return the part of a document that a path names, indices included; LookupError if it does not exist."""
    for name in names:
        if isinstance(value, list) and name.isascii() and name.isdigit():
            value = value[int(name)]
        elif isinstance(value, dict):
            value = value[name]
        else:
            raise LookupError(name)
    return value


def pruned(node: Tree) -> Tree:
    """Return the tree without empty text and empty directories: the cloud omits such keys."""
    parts = ((name, pruned(below) if isinstance(below, dict) else below) for name, below in node.items())
    return {name: below for name, below in parts if below}


def find(tree: Tree, path: str) -> str | Tree | None:
    """Return the node at `path` of a tree of text: a leaf, or a directory (with or without slash); None if absent."""
    node: str | Tree = tree
    for name in filter(None, path.split("/")):
        below = node.get(name) if isinstance(node, dict) else None
        if below is None:
            return None
        node = below
    return None if isinstance(node, str) and path.endswith("/") else node


def listing(node: Tree) -> str:
    """Return a listing: one name per line, sorted, directories with a slash."""
    return "\n".join(f"{name}/" if isinstance(below, dict) else name for name, below in sorted(node.items()))
