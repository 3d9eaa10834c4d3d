"""The protocol of a provider, and its HTTP requests and responses."""

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
    """True on the second call, after the time that the provider wanted to wait."""

    @property
    def parameters(self) -> Mapping[str, str]:
        """Return the query's parameters, the last of each name."""
        return dict(parse_qsl(self.query, keep_blank_values=True))


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: Headers = field(default_factory=dict)
    content_type: str = "text/plain"


@dataclass(frozen=True)
class Wait:
    """Returned instead of a response: call `again` at the next change, or after so many seconds with `waited`."""

    seconds: float
    again: Request


class Provider(Protocol):
    """One cloud's metadata: a pure function of the interfaces, the settings, and the granted tokens."""

    dmi: ClassVar[Mapping[str, tuple[str, int]]]
    """/sys/class/dmi/id on this cloud: file name → (content, mode)."""

    convention: ClassVar[Convention]
    """The addresses of the server, and the properties of the network."""

    def load(self, nics: Sequence[Nic]) -> None:
        """Set the interfaces of the instance."""

    def record(self, document: Any) -> None:
        """Set a fixed document, independent of the interfaces."""

    def configure(self, **settings: object) -> None:
        """Change settings by name; an unknown one is a TypeError."""

    def expire_tokens(self) -> None:
        """Revoke all tokens."""

    def answer(self, request: Request) -> Response | Wait:
        """Answer one request."""
        ...
