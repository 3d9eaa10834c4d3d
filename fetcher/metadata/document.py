"""Values of a document with their paths, so that an error names the place:

network.interface[1].ipv4.subnet[0].prefix: '240' is not 0..32
"""

from __future__ import annotations

import json
import math
from ipaddress import ip_address
from typing import Any

from cloud_network.fetcher.metadata.model import (
    IPAddress,
    IPNetwork,
    MetadataError,
    invalid,
    parse_address,
    parse_mac,
    parse_network,
)

_MAX_TEXT_LENGTH = 1 << 16  # characters of one text


class Node:
    """A value of a document and its path. A method raises MetadataError if the value cannot be read as its result."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "") -> None:
        self.value, self.path = value, path

    def at(self, key: str) -> Node:
        """Return the value under `key`. Raises MetadataError if it is missing."""
        found = self.find(key)
        if found is None:
            raise MetadataError("invalid", f"{self._below(key)}: missing")
        return found

    def find(self, key: str) -> Node | None:
        """Return the value under `key`, or None if it is missing or null."""
        if not isinstance(self.value, dict):
            raise invalid(self.path or "the document", self.value, "an object")
        value = self.value.get(key)
        return None if value is None else Node(value, self._below(key))

    def given(self, key: str) -> Node | None:
        """Return the value under `key`, or None if it is missing, null, an empty text or Oracle's "<null>"."""
        found = self.find(key)
        return None if found is None or found.value in ("", "<null>") else found

    def lacks(self, *keys: str, or_empty: bool = False) -> list[str]:
        """Return the paths of those keys that are missing, null, an empty text or, with `or_empty`, an empty list."""
        absent: tuple[object, ...] = (None, "", [], {}) if or_empty else (None, "")
        value = self.value if isinstance(self.value, dict) else {}
        return [self._below(key) for key in keys if value.get(key) in absent]

    def nulls(self, *keys: str) -> list[str]:
        """Return the paths of the keys whose value is null."""
        value = self.value if isinstance(self.value, dict) else {}
        return [self._below(key) for key in keys if value.get(key, "") is None]

    def pick(self, *keys: str) -> dict[str, Any]:
        """Return the values under these keys unchecked: facts that are only shown."""
        value = self.value if isinstance(self.value, dict) else {}
        return {key: value[key] for key in keys if value.get(key) is not None}

    def items(self, key: str | None = None) -> list[Node]:
        """Return the entries of a list, or of the list under `key`: none if there is no such key."""
        node = self if key is None else self.find(key)
        if node is None:
            return []
        if not isinstance(node.value, list):
            raise invalid(node.path, node.value, "a list")
        return [Node(value, f"{node.path}[{index}]") for index, value in enumerate(node.value)]

    def text(self) -> str:
        """Return a string that is not empty or white space."""
        if not isinstance(self.value, str) or not self.value.strip() or len(self.value) > _MAX_TEXT_LENGTH:
            raise invalid(self.path, self.value, "text")
        return self.value.strip()

    def number(self, low: int, high: int) -> int:
        """Return a whole number in low..high; some clouds write it as text."""
        value = self.value
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise invalid(self.path, self.value, f"{low}..{high}")
        return value

    def mac(self) -> str:
        """Return a MAC address written with colons, with hyphens, or (Azure) without separators."""
        text = self.text().replace("-", ":")
        if len(text) == 12 and ":" not in text:
            text = ":".join(text[index : index + 2] for index in range(0, 12, 2))
        return parse_mac(self.path, text)

    def address(self, version: int | None = None) -> IPAddress:
        """Return an address that a host can have, of IP `version` if that is given."""
        address = parse_address(self.path, self.text())
        if version is not None and address.version != version:
            raise invalid(self.path, self.value, f"an IPv{version} address")
        return address

    def length(self, version: int) -> int:
        """Return a prefix length, which may be written as a mask."""
        bits = {4: 32, 6: 128}[version]
        text = str(self.value)
        if not any(mark in text for mark in ".:"):
            return self.number(0, bits)
        try:
            mask = ip_address(self.text())
        except ValueError:
            raise invalid(self.path, self.value, "a subnet mask") from None
        ones = int(mask).bit_count()
        if mask.version != version or int(mask) != ((1 << ones) - 1) << (bits - ones):
            raise invalid(self.path, self.value, f"a mask of an IPv{version} subnet")
        return ones

    def mask(self) -> int:
        """Return the length of an IPv4 subnet mask such as 255.255.255.0; a bare number is a mask that was cut off."""
        if "." not in self.text():
            raise invalid(self.path, self.value, "a subnet mask")
        return self.length(4)

    def network(self, version: int | None = None) -> IPNetwork:
        """Return a prefix such as 10.0.1.0/24; a single address is its own."""
        network = parse_network(self.path, self.text())
        if version is not None and network.version != version:
            raise invalid(self.path, self.value, f"an IPv{version} prefix")
        return network

    def block(self, version: int | None = None) -> IPNetwork:
        """Return a prefix whose length is written behind it."""
        if "/" not in self.text():
            raise invalid(self.path, self.value, "a prefix such as 10.0.1.0/24")
        return self.network(version)

    def split_length(self) -> tuple[Node, Node | None]:
        """Return an address and the prefix length written behind it (10.0.0.2/24), or None."""
        address, slash, length = self.text().partition("/")
        return Node(address, self.path), Node(length, self.path) if slash else None

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def parse_json(text: str, path: str) -> Node:
    """Return a JSON document. Raises MetadataError that starts with `path`."""
    try:
        return Node(json.loads(text, parse_constant=_refuse_constant, parse_float=_finite))
    except (ValueError, RecursionError) as error:
        raise MetadataError("invalid", f"{path}: not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    """Return a number that fits; 1e999 would become infinity, which JSON in a state file cannot hold."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


def lines_of(value: Any) -> list[str]:
    """Return the lines of a text or of a list of texts, as clouds give ssh keys."""
    texts = value if isinstance(value, list) else [value]
    return [line.strip() for text in texts if isinstance(text, str) for line in text.splitlines() if line.strip()]
