"""Faults of a metadata server. Each kind was observed in the field.

timeout     the request is read and never answered          status     an error page, e.g. 429 with Retry-After
refuse      nothing listens (the whole server)              html       a portal's or proxy's page, with status 200
reset       the connection is reset instead of answered     truncated  Content-Length promises more than is sent
short       well-formed, but only the first half            empty      200 with no body
drip        a byte now and then                             content    other bodies than the true one, in turn
late        the true answer, after `interval` seconds

A fault applies to requests whose method and path match (shell patterns; the path with or without its query), `times`
times or until cleared. If several match, the newest one applies. `content` needs the same authentication as the true
answer; the others are checked before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .frame import Request, Response

KINDS = ("timeout", "refuse", "reset", "status", "html", "truncated", "short", "empty", "drip", "content", "late")

PAGE = "<!DOCTYPE html>\n<html><head><title>{0}</title></head>\n<body><h1>{0}</h1></body></html>\n"


@dataclass
class Fault:
    kind: str
    path: str = "*"
    method: str = "*"
    times: int | None = None
    status: int = 500
    retry_after: int | None = None
    bodies: Sequence[str] = ()
    interval: float = 0.2
    """Seconds between two bytes of a `drip`, or before a `late` answer."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; accepted: {', '.join(KINDS)}")

    def applies(self, request: Request) -> bool:
        asked = (request.path, f"{request.path}?{request.query}")
        matches = any(fnmatchcase(target, self.path) for target in asked)
        return self.times != 0 and matches and fnmatchcase(request.method, self.method)

    def use(self) -> None:
        if self.times is not None:
            self.times -= 1

    def alter(self, real_answer: Response) -> Response:
        """Return the answer to send instead of the true one. The server decides how it is sent."""
        match self.kind:
            case "status":
                wait = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
                return Response(self.status, PAGE.format(self.status).encode(), wait, "text/html")
            case "html":
                return Response(200, PAGE.format("Please log in").encode(), content_type="text/html")
            case "short":
                return Response(
                    real_answer.status,
                    real_answer.body[: len(real_answer.body) // 2],
                    real_answer.headers,
                    real_answer.content_type,
                )
            case "empty":
                return Response(200, b"", real_answer.headers, real_answer.content_type)
            case "content" if real_answer.status in (200, 404):
                return Response(200, self._next_body(), real_answer.headers)
        return real_answer

    def _next_body(self) -> bytes:
        """Return each body once, then the last one for ever: a tree that changes between two reads of one leaf."""
        first, *rest = self.bodies
        if rest:
            self.bodies = rest
        return first.encode()
