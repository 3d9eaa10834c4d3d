"""HTTP/1.1 as a client of a metadata server speaks it (RFC 9112): a request as bytes, and an answer from a stream.

Not http.client: with the ssl and email that it brings it was 12 ms of the start and 3 MB, and it takes more than twice
the time for an answer. Nor is it lenient: a body has as many bytes as its head says, or there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_LONGEST_HEAD, _LONGEST_LINE = 1 << 16, 1 << 10  # bytes
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: .*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NUMBER = re.compile(r"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_TARGET, _TEXT = re.compile(r"[\x21-\x7e]+"), re.compile(r"[\x20-\x7e]*")


class NoAnswerError(Exception):
    """What came is not the head of an HTTP/1.1 answer."""


class NoBodyError(Exception):
    """The body ended before its end, or what came is none."""


class TooLargeError(Exception):
    """There is more of the body than somebody wants."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and fields of an answer; the names are in lower case."""

    status: int
    fields: Mapping[str, str]
    lasts: bool  # whether the server keeps the connection after it
    length: int | None  # of the body in bytes; None when the body says itself where it ends, or the connection does
    chunked: bool


class Stream:
    """What arrives, in pieces that `receive` gives; b"" is the end."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self.rest = bytearray()  # has arrived, and nobody has taken it

    def more(self) -> bool:
        """Wait for the next piece; whether there is one."""
        piece = self._receive()
        self.rest += piece
        return bool(piece)

    def take(self, size: int) -> bytes:
        """The next bytes, which are there."""
        taken = bytes(self.rest[:size])
        del self.rest[:size]
        return taken

    def until(self, mark: bytes, most: int) -> bytes | None:
        """What is before the next `mark`; None when the stream ends without one, or `most` bytes have none."""
        seen = 0
        while (at := self.rest.find(mark, seen, most)) < 0:
            seen = max(0, len(self.rest) - len(mark) + 1)
            if len(self.rest) >= most or not self.more():
                return None
        taken = self.take(at)
        del self.rest[: len(mark)]
        return taken


def request(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """The bytes of a request without a body. ValueError for what would make another request of it."""
    if not _TARGET.fullmatch(target):
        raise ValueError(f"{target!r} is no target of a request")
    for name, value in fields.items():
        if not _NAME.fullmatch(name) or not _TEXT.fullmatch(value):
            raise ValueError(f"{name}: {value!r} is no field of a request")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if method != "GET":
        lines.append("Content-Length: 0")
    return "\r\n".join((*lines, "", "")).encode("ascii")


def read_head(stream: Stream) -> Head:
    """The head of the next answer, without the interim ones before it (RFC 9110, 15.2); NoAnswerError."""
    while True:
        text = stream.until(b"\r\n\r\n", _LONGEST_HEAD)
        if text is None:
            raise NoAnswerError("it ends within the head, or the head is too long" if stream.rest else "no answer came")
        found = _head(text.decode("latin-1"))
        if found.status >= 200:
            return found
        if found.status == 101:
            raise NoAnswerError("it changes to a protocol that nobody asked for")


def _head(text: str) -> Head:
    first, *lines = text.split("\r\n")
    status = _STATUS.fullmatch(first)
    if not status:
        raise NoAnswerError(f"{first[:100]!r} is no status line")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise NoAnswerError(f"{line[:100]!r} is no header field")
        name, value = name.lower(), value.strip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    number, bodiless = int(status[2]), status[2] in ("204", "304") or status[2].startswith("1")
    coding, length = fields.get("transfer-encoding", "").lower(), fields.get("content-length")
    if coding not in ("", "chunked"):
        raise NoAnswerError(f"a transfer coding that nobody asked for: {coding[:100]!r}")
    if length is not None and not _NUMBER.fullmatch(length):
        raise NoAnswerError(f"{length[:100]!r} is no length")
    chunked = coding == "chunked" and not bodiless
    told = 0 if bodiless else None if chunked or length is None else int(length)
    kept = status[1] == "1" and "close" not in fields.get("connection", "").lower() and not (coding and length)
    return Head(number, fields, kept and (chunked or told is not None), told, chunked)


def read_body(stream: Stream, head: Head, most: int) -> bytes:
    """All of it: by its length, in chunks, or to the end of the connection (RFC 9112, 6.3); NoBodyError, TooLargeError.

    What breaks the connection off, `receive` raises.
    """
    if head.chunked:
        return b"".join(_chunks(stream, most))
    if head.length is None:
        while len(stream.rest) <= most and stream.more():
            pass
        if len(stream.rest) > most:
            raise TooLargeError
        return stream.take(len(stream.rest))
    if head.length > most:
        raise TooLargeError
    while len(stream.rest) < head.length:
        if not stream.more():
            raise NoBodyError(f"after {len(stream.rest)} bytes, of {head.length}")
    return stream.take(head.length)


def _chunks(stream: Stream, most: int) -> list[bytes]:
    """Each with its size before it, until one of no bytes, and then perhaps fields, which nobody reads."""
    found: list[bytes] = []
    room = most
    while True:
        line = stream.until(b"\r\n", _LONGEST_LINE)
        said = _CHUNK.fullmatch(line) if line is not None else None
        if not said:
            raise NoBodyError(f"after {most - room} bytes: no end of it")
        size = int(said[1], 16)
        if size == 0:
            break
        room -= size
        if room < 0:
            raise TooLargeError
        while len(stream.rest) < size + 2:
            if not stream.more():
                raise NoBodyError(f"after {most - room - size + len(stream.rest)} bytes: no end of it")
        found.append(stream.take(size))
        if stream.take(2) != b"\r\n":
            raise NoBodyError(f"after {most - room} bytes: a chunk that is longer than it says")
    while line := stream.until(b"\r\n", _LONGEST_LINE):
        pass
    if line is None:
        raise NoBodyError(f"after {most - room} bytes: no end of it")
    return found
