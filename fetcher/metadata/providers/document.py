"""A JSON document read with its paths: what is wrong with one is named by where it stands in it.

`Node` is a value and its path. Every method raises MetadataError with that path when the value is not what was asked
for: `network.interface[1].ipv4.subnet[0].prefix: '240' is not 0..32`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from cloud_network.fetcher.metadata.model import (
    Interface,
    IPAddress,
    IPNetwork,
    MetadataError,
    Problem,
    invalid,
    parse_address,
    parse_mac,
    parse_network,
)

Found = tuple[tuple[Interface, ...], tuple[Problem, ...], tuple[str, ...]]
"""Of an instance: its interfaces, what is wrong with others, and what is understood and not configured."""

_MOST = 4096  # interfaces, addresses, keys in one place: more is nobody's instance
_LONGEST = 1 << 16  # characters of one text


class NotYetError(MetadataError):
    """This interface is what it should be, of a sort that is not configured: a notice, and no Problem."""

    def __init__(self, what: str) -> None:
        super().__init__("unsupported", f"{what}, which is not configured yet")


class Node:
    """A value of a document, and where it stands."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "") -> None:
        self.value, self.path = value, path

    def at(self, key: str) -> Node:
        """What the object has under `key`; it must have it."""
        found = self.find(key)
        if found is None:
            raise MetadataError("invalid", f"{self._below(key)}: missing")
        return found

    def find(self, key: str) -> Node | None:
        """What the object has under `key`; None when it has nothing there, or null."""
        if not isinstance(self.value, dict):
            raise invalid(self.path or "the document", self.value, "an object")
        value = self.value.get(key)
        return None if value is None else Node(value, self._below(key))

    def given(self, key: str) -> Node | None:
        """As find, but an empty text, or Oracle's "<null>", is nothing too."""
        found = self.find(key)
        return None if found is None or found.value in ("", "<null>") else found

    def pick(self, *keys: str) -> dict[str, Any]:
        """What the object has under these keys, as it stands: facts that are only shown."""
        value = self.value if isinstance(self.value, dict) else {}
        return {key: value[key] for key in keys if value.get(key) is not None}

    def items(self, key: str | None = None) -> list[Node]:
        """The entries of a list; of the one under `key`, none when there is no such key."""
        node = self if key is None else self.find(key)
        if node is None:
            return []
        if not isinstance(node.value, list) or len(node.value) > _MOST:
            raise invalid(node.path, node.value, f"a list of at most {_MOST}")
        return [Node(value, f"{node.path}[{at}]") for at, value in enumerate(node.value)]

    def text(self) -> str:
        """A string that is not empty, nor only white space."""
        if not isinstance(self.value, str) or not self.value.strip() or len(self.value) > _LONGEST:
            raise invalid(self.path, self.value, "text")
        return self.value.strip()

    def number(self, low: int, high: int) -> int:
        """A whole number in low..high; some clouds write it as text."""
        value = self.value
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise invalid(self.path, self.value, f"{low}..{high}")
        return value

    def mac(self) -> str:
        """A MAC address: with colons, with hyphens, or (Azure) with nothing between."""
        text = self.text().replace("-", ":")
        if len(text) == 12 and ":" not in text:
            text = ":".join(text[at : at + 2] for at in range(0, 12, 2))
        return parse_mac(self.path, text)

    def address(self, version: int | None = None) -> IPAddress:
        """An address that a host can have, of IP `version` if that is given."""
        address = parse_address(self.path, self.text())
        if version is not None and address.version != version:
            raise invalid(self.path, self.value, f"an IPv{version} address")
        return address

    def length(self, version: int) -> int:
        """A prefix length: as such, or as the mask that it makes."""
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

    def network(self, version: int | None = None) -> IPNetwork:
        """A prefix without host bits, such as 10.0.1.0/24; a single address is its own."""
        network = parse_network(self.path, self.text())
        if version is not None and network.version != version:
            raise invalid(self.path, self.value, f"an IPv{version} prefix")
        return network

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def parse(text: str, what: str) -> Node:
    """The JSON document that `text` is; `what` names it in the error when it is none."""
    try:
        return Node(json.loads(text, parse_constant=_no_constant, parse_float=_finite))
    except (ValueError, RecursionError) as error:
        raise MetadataError("invalid", f"{what}: not JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    """A number that fits; 1e999 would become infinity, which no state file can hold."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


def each(nodes: Iterable[Node], mac: Callable[[Node], str], make: Callable[[Node, str], Interface]) -> Found:
    """An Interface of each node, and a Problem for each that is wrong: one bad interface does not stop the others.

    An entry without a MAC that can be read stops all: whose addresses would have to stay could not be told.
    """
    interfaces: list[Interface] = []
    problems: list[Problem] = []
    notices: list[str] = []
    seen: set[str] = set()
    for node in nodes:
        own = mac(node)
        if own in seen:
            raise MetadataError("invalid", f"{node.path}: a second interface with the MAC {own}")
        seen.add(own)
        try:
            interfaces.append(make(node, own))
        except NotYetError as notice:
            notices.append(str(notice))
        except MetadataError as error:
            problems.append(Problem(own, str(error)))
    if not seen:
        raise MetadataError("invalid", "the document names no interface; every instance has one")
    return tuple(interfaces), tuple(problems), tuple(notices)


def texts(value: Any) -> list[str]:
    """The lines of every text in `value`: ssh keys come as a text, as lines of one, or as a list. Only shown."""
    return [line.strip() for text in _texts(value) for line in text.splitlines() if line.strip()]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (each for each in value if isinstance(each, str))
