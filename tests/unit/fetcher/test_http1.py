"""HTTP/1.1 by itself, from bytes: what is an answer, where its body ends, and whether the connection lasts."""

from __future__ import annotations

import contextlib
import http.client
import io
from itertools import pairwise

import pytest
from cloud_network.fetcher.metadata.http1 import (
    Head,
    NoAnswerError,
    NoBodyError,
    Stream,
    TooLargeError,
    read_body,
    read_head,
    request,
)
from hypothesis import given, settings
from hypothesis import strategies as st

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MOST = 1000


def stream(data: bytes, *cuts: int) -> Stream:
    """The bytes, cut into pieces at those places; then the end."""
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(places) if data[begin:end]]
    return Stream(lambda: pieces.pop(0) if pieces else b"")


def answer(data: bytes, *cuts: int, most: int = MOST) -> tuple[Head, bytes, bytes]:
    """Head and body, and what is left of the stream."""
    source = stream(data, *cuts)
    head = read_head(source)
    body = read_body(source, head, most)
    return head, body, bytes(source.rest)


@pytest.mark.parametrize(
    ("data", "body", "lasts"),
    [
        (OK + b"Content-Length: 3\r\n\r\nabc", b"abc", True),
        (OK + b"content-length:3\r\nConnection: Close\r\n\r\nabc", b"abc", False),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
        (OK + b"\r\nto the end", b"to the end", False),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b"", True),
        (CHUNKED + b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789", True),
        (CHUNKED + b"000\r\nX: trailer\r\nY: another\r\n\r\n", b"", True),
        (OK + b"Content-Length: 9\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc", False),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", b"a", True),
    ],
)
def test_where_a_body_ends(data: bytes, body: bytes, lasts: bool) -> None:
    """However it is cut into pieces. What comes after it is left alone, unless the end of the connection is its end."""
    for cuts in [(), tuple(range(len(data))), (len(data) // 2,)]:
        head, found, rest = answer(data, *cuts)
        assert (found, rest, head.lasts) == (body, b"", lasts)
    if lasts:
        assert answer(data + b"HTTP/1.1 500 more")[1:] == (body, b"HTTP/1.1 500 more")


def test_fields_have_lower_case_names_and_those_of_one_name_are_one() -> None:
    head, _, _ = answer(OK + b"ETag: \t x y \r\nA: 1\r\nempty:\r\na: 2\r\nContent-Length: 0\r\n\r\n")
    assert head.fields == {"etag": "x y", "a": "1, 2", "empty": "", "content-length": "0"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        *(
            OK + field + b"\r\n\r\nabc"
            for field in (
                b"no field", b": no name", b"A b: c", b"A : b", b"A: b\r\n folded: c", b"Content-Length: 3, 4",
                b"Content-Length: 3\r\nContent-Length: 3", b"Content-Length: -3", b"Content-Length: +3",
                b"Content-Length: 0x3", b"Content-Length:", b"Content-Length: \xb3",
                b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity",
            )
        ),
        OK + b"x" * (1 << 16) + b": y\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_head(data: bytes) -> None:
    with pytest.raises(NoAnswerError):
        answer(data)


@pytest.mark.parametrize(
    "rest",
    [
        b"", b"3", b"3\r\nab", b"3\r\nabc", b"3\r\nabc\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"3\r\nabc\r\n0\r\n",
        b"0\r\nX: y", b"3\r\nabcXX0\r\n\r\n", b"\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n", b"+3\r\nabc\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n",
        b"1_0\r\n", b" 3\r\nabc\r\n0\r\n\r\n", b"g\r\n", b"1" * 16 + b"\r\n",
        b"1;" + b"x" * 2000 + b"\r\na\r\n0\r\n\r\n",
    ],
)  # fmt: skip
def test_chunks_that_are_none(rest: bytes) -> None:
    with pytest.raises(NoBodyError):
        answer(CHUNKED + rest)


def test_a_head_without_end_is_not_waited_for() -> None:
    pieces = [b"x" * 1000] * 200
    with pytest.raises(NoAnswerError, match="too long"):
        read_head(Stream(pieces.pop))
    assert len(pieces) == 200 - 66


def test_fewer_bytes_than_promised() -> None:
    with pytest.raises(NoBodyError, match="after 2 bytes, of 3"):
        answer(OK + b"Content-Length: 3\r\n\r\nab")


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 11\r\n\r\n" + b"x" * 11,
        OK + b"\r\n" + b"x" * 11,
        CHUNKED + b"6\r\nxxxxxx\r\n5\r\nxxxxx\r\n0\r\n\r\n",
        CHUNKED + b"ffffffff\r\n",
    ],
)
def test_a_body_longer_than_somebody_wants(data: bytes) -> None:
    with pytest.raises(TooLargeError):
        answer(data, most=10)
    assert len(answer(OK + b"Content-Length: 10\r\n\r\n" + b"x" * 10, most=10)[1]) == 10


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_chunks_make_the_body_however_they_arrive(chunks: list[bytes], cuts: list[int]) -> None:
    parts = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
    data = CHUNKED + parts + b"0\r\n\r\n"
    assert answer(data, *(cut for cut in cuts if cut < len(data)))[1:] == (b"".join(chunks), b"")


def test_a_request_is_what_was_meant() -> None:
    expected = b"GET /a?b=c HTTP/1.1\r\nHost: [::1]:80\r\nX-Empty: \r\n\r\n"
    assert request("GET", "/a?b=c", {"Host": "[::1]:80", "X-Empty": ""}) == expected
    assert request("PUT", "/", {}) == b"PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("target", ["", "/a b", "/a\r\nX: y", "/\x00", "/ü", "/a\n"])
def test_a_target_that_would_make_another_request(target: str) -> None:
    with pytest.raises(ValueError, match="no target"):
        request("GET", target, {})


@pytest.mark.parametrize(("name", "value"), [("A", "b\r\nC: d"), ("A", "\n"), ("A: b", ""), ("", "x"), ("A", "ü")])
def test_a_field_that_would_make_another_request(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="no field"):
        request("GET", "/", {name: value})


# — beside http.client, and with bytes of any sort


class Bytes:
    """A socket as http.client sees it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True).filter(
    lambda name: name.lower() not in ("content-length", "transfer-encoding", "connection")
)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20).map(str.strip)


@given(
    status=st.integers(200, 599),
    fields=st.dictionaries(NAMES, VALUES, max_size=5),
    body=st.binary(max_size=80),
    way=st.sampled_from(["length", "chunked", "end"]),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_the_librarys_reading_is_ours(
    status: int, fields: dict[str, str], body: bytes, way: str, cuts: list[int]
) -> None:
    fields = {name.lower(): value for name, value in fields.items()}
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in fields.items())]
    data = body
    if way == "length":
        lines.append(f"Content-Length: {len(body)}")
    elif way == "chunked":
        lines.append("Transfer-Encoding: chunked")
        data = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    whole = "\r\n".join((*lines, "", "")).encode() + data
    theirs = http.client.HTTPResponse(Bytes(whole))  # type: ignore[arg-type]
    theirs.begin()
    said = theirs.read()
    head, found, _ = answer(whole, *(cut for cut in cuts if cut < len(whole)))
    assert (head.status, found) == (theirs.status, said)
    assert {name: head.fields[name] for name in fields} == {name: theirs.headers[name] for name in fields}
    assert head.lasts is not theirs.will_close


PIECES = st.sampled_from(
    [
        OK,
        CHUNKED,
        b"\r\n",
        b"\n",
        b"Content-Length: 5\r\n",
        b"5\r\n",
        b"0\r\n\r\n",
        b"HTTP/1.1 100 C\r\n\r\n",
        b":",
        b" ",
    ]
)


@settings(max_examples=400)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=12)), max_size=10).map(b"".join), st.integers(0, 60))
def test_bytes_of_any_sort_are_an_answer_or_one_of_three_errors(data: bytes, cut: int) -> None:
    for given_data in (data, data[:cut]):
        with contextlib.suppress(NoAnswerError, NoBodyError, TooLargeError):
            _, body, _ = answer(given_data, most=50)
            assert len(body) <= 50
