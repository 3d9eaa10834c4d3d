"""What a provider has to be, and the few words of HTTP that it speaks in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Protocol

from ..spec import Nic

Headers = Mapping[str, str]
NO_HEADERS: Headers = MappingProxyType({})
Tree = dict[str, "str | Tree"]


@dataclass(frozen=True)
class Request:
    """`path` without its query; header names in lower case."""

    method: str
    path: str
    headers: Headers = field(default_factory=dict)
    query: str = ""


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: Headers = field(default_factory=dict)
    content_type: str = "text/plain"


class Provider(Protocol):
    """One cloud's metadata: a pure function of the interfaces, the settings, and the tokens it gave out."""

    dmi: ClassVar[Mapping[str, tuple[str, int]]]
    """/sys/class/dmi/id on this cloud: file name → (content, mode)."""

    def load(self, nics: Sequence[Nic]) -> None:
        """From now on these are the instance's interfaces."""

    def configure(self, **settings: object) -> None:
        """Change settings by name; an unknown one is a TypeError."""

    def expire_tokens(self) -> None:
        """Whatever was handed out to authenticate requests is void."""

    def answer(self, request: Request) -> Response:
        """Answer one request."""
        ...
