"""What a provider has to be, and the few words of HTTP that it speaks in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl

from ..convention import Convention
from ..nic import Nic

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
    body: bytes = b""
    waited: bool = False
    """Asked again because the time that the provider wanted to wait is over."""

    @property
    def parameters(self) -> Mapping[str, str]:
        """The query's, the last of each name."""
        return dict(parse_qsl(self.query, keep_blank_values=True))


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: Headers = field(default_factory=dict)
    content_type: str = "text/plain"


@dataclass(frozen=True)
class Wait:
    """Instead of a response: ask `again` at the next change, or after so many seconds with `waited`."""

    seconds: float
    again: Request


class Provider(Protocol):
    """One cloud's metadata: a pure function of the interfaces, the settings, and the tokens it gave out."""

    dmi: ClassVar[Mapping[str, tuple[str, int]]]
    """/sys/class/dmi/id on this cloud: file name → (content, mode)."""

    convention: ClassVar[Convention]
    """Where its server listens, and how its network treats an instance."""

    def load(self, nics: Sequence[Nic]) -> None:
        """From now on these are the instance's interfaces."""

    def record(self, document: Any) -> None:
        """From now on this is what the cloud says, whatever the interfaces are."""

    def configure(self, **settings: object) -> None:
        """Change settings by name; an unknown one is a TypeError."""

    def expire_tokens(self) -> None:
        """Whatever was handed out to authenticate requests is void."""

    def answer(self, request: Request) -> Response | Wait:
        """Answer one request."""
        ...
