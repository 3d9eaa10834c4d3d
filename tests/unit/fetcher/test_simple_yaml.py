"""The YAML that Hetzner writes, and the YAML that is refused."""

from __future__ import annotations

import pytest
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers.simple_yaml import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n\n---\n", None),
        ("a: b\nc: 1\n", {"a": "b", "c": "1"}),
        ("a: true\nb: null\nc: ~\nd:\ne: false\n", {"a": True, "b": None, "c": None, "d": None, "e": False}),
        ("a:\n  b: c\n  d:\n    e: f\ng: h\n", {"a": {"b": "c", "d": {"e": "f"}}, "g": "h"}),
        ("a:\n- b\n- c\nd: e", {"a": ["b", "c"], "d": "e"}),
        ("a:\n  - b\n  - c\n", {"a": ["b", "c"]}),
        ("- a: b\n  c: d\n- a: e\n", [{"a": "b", "c": "d"}, {"a": "e"}]),
        ("-   a: b\n    c: d\n", [{"a": "b", "c": "d"}]),
        ("-\n  a: b\n- c\n", [{"a": "b"}, "c"]),
        ("a: [b, c]\nd: []\ne: {}\n", {"a": ["b", "c"], "d": [], "e": {}}),
        ("a: 2a01:4f8::1/64\nb: http://x/y\n", {"a": "2a01:4f8::1/64", "b": "http://x/y"}),
        ("[]\n", []),
        ("a: ''\nb: 'it''s'\n", {"a": "", "b": "it's"}),
        ('a: "x\\ny\\x41\\u0042"\n', {"a": "x\ny" + "AB"}),
        ('a: "x\\n\\\n  y\\n\\\n  \\  z"\nb: c\n', {"a": "x\ny\n  z", "b": "c"}),
        ('a: "one\n  two"\n', {"a": "one two"}),
        ("- ssh-rsa\n  AAAA\n  me\n- b\n", ["ssh-rsa AAAA me", "b"]),
        ("a: |\n  one: two\n\n  three\nb: c\n", {"a": "one: two\n\nthree", "b": "c"}),
        ("a: x # comment\n", {"a": "x"}),
    ],
)
def test_what_is_read(text: str, value: object) -> None:
    assert parse(text, "x").value == value


@pytest.mark.parametrize(
    "text",
    [
        "a: &anchor b",
        "a: *anchor",
        "a: !!python/object:os.system x",
        "a: {b: c}",
        "a: [b, [c]]",
        "a: [b",
        'a: "b',
        "a: 'b",
        'a: "\\q"',
        'a: "b" c',
        "a: '' # a comment behind quotes",
        "a: b: c",
        "a: b\na: c",
        "just text",
        "a: b\n   c: d",
        "a:\n    b: c\n  d: e",
        "\ta: b",
        "? a",
        "a: %b",
        "a: |9\n",
        "- a\nb: c",
        "<html></html>",
        "".join(f"{'  ' * depth}a:\n" for depth in range(40)) + " " * 80 + "b: c",
    ],
)
def test_what_is_refused_is_named_by_its_line(text: str) -> None:
    with pytest.raises(MetadataError, match=r"^here: line \d+ ") as caught:
        parse(text, "here")
    assert not any(word in str(caught.value) for word in ("anchor", "python", "just", "html"))
