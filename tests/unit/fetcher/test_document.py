"""Invalid documents: the error names the place."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata.document import Node, lines_of, parse_json
from cloud_network.fetcher.metadata.model import MetadataError

DOCUMENT = """{"network": {"interface": [
  {"mac": "000D3AF806EC", "ipv4": {"prefix": "24", "address": "10.1.2.5"}, "nothing": null},
  {"mac": "00-0d-3a-f8-06-ed", "ipv4": {"prefix": "240", "address": "10.1.2.6"}}]}}"""


def test_values_are_read_with_their_types() -> None:
    first, second = parse_json(DOCUMENT, "instance").at("network").items("interface")
    assert (first.at("mac").mac(), second.at("mac").mac()) == ("00:0d:3a:f8:06:ec", "00:0d:3a:f8:06:ed")
    assert first.at("ipv4").at("prefix").number(0, 32) == 24
    assert first.at("ipv4").at("address").address(4) == ip_address("10.1.2.5")
    assert first.find("nothing") is None
    assert first.items("nothing") == []
    assert Node("10.1.2.0/24").network(4) == ip_network("10.1.2.0/24")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            lambda root: root.at("network").items("interface")[1].at("ipv4").at("prefix").number(0, 32),
            "network.interface[1].ipv4.prefix: '240' is not 0..32",
        ),
        (lambda root: root.at("compute"), "compute: missing"),
        (lambda root: root.at("network").items(), "network: "),
        (lambda root: root.at("network").at("interface").at("mac"), "is not an object"),
        (lambda root: root.at("network").items("interface")[0].at("mac").number(0, 9), "network.interface[0].mac: "),
        (lambda root: root.at("network").text(), "network: "),
        (lambda root: root.at("network").items("interface")[0].at("ipv4").at("address").address(6), "an IPv6 address"),
        (lambda root: Node(True, "mtu").number(0, 9), "mtu: True is not 0..9"),
        (lambda root: Node("10.1.2.1/240", "subnet").network(), "subnet: '10.1.2.1/240' is not a prefix"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(read: object, message: str) -> None:
    with pytest.raises(MetadataError, match=re.escape(message)):
        read(parse_json(DOCUMENT, "instance"))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("value", "version", "length"),
    [
        ("255.255.252.0", 4, 22),
        ("0.0.0.0", 4, 0),
        ("24", 4, 24),
        (24, 4, 24),
        ("ffff:ffff:ffff::", 6, 48),
        ("::", 6, 0),
        ("127", 6, 127),
    ],
)
def test_a_mask_is_a_prefix_length_too(value: object, version: int, length: int) -> None:
    assert Node(value, "mask").length(version) == length


@pytest.mark.parametrize(
    ("value", "version"),
    [
        ("255.0.255.0", 4),
        ("0.0.0.255", 4),
        ("33", 4),
        (-1, 4),
        ("ffff::", 4),
        ("255.255.255.0", 6),
        (None, 4),
        ("x", 4),
    ],
)
def test_invalid_mask_is_refused_with_its_path(value: object, version: int) -> None:
    with pytest.raises(MetadataError, match=r"^mask: "):
        Node(value, "mask").length(version)


def test_an_empty_text_is_not_given_and_facts_are_picked() -> None:
    node = Node({"empty": "", "null": None, "there": "x", "oracle": "<null>", "secret": "x"})
    assert [node.given(key) is None for key in ("empty", "null", "there", "oracle", "none")] == [1, 1, 0, 1, 1]
    assert node.pick("there", "null", "none") == {"there": "x"}
    assert Node(["no object"]).pick("there") == {}


def test_lines_of_flattens_texts_and_lists() -> None:
    assert lines_of("a\n\n b \n") == ["a", "b"]
    assert lines_of(["a", 1, None, "b\nc", ["d"]]) == ["a", "b", "c"]
    assert lines_of(None) == lines_of({"a": "b"}) == []


@pytest.mark.parametrize("text", ["", "<html>", "[1", "{'a': 1}", '{"a": NaN}', '{"a": [-1e999]}', "[" * 100_000])
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(MetadataError, match="instance: not JSON"):
        parse_json(text, "instance")
