"""Parsers of the values of cloud-network.toml. Each takes the value's text and raises ValueError with the reason."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a TCP port; str() is `ip:port` or `[ipv6]:port`."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.address.version == 4 else f"[{self.address}]:{self.port}"


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(ns|us|µs|μs|ms|s|m|h)")


def duration(text: str) -> float:
    """Return the seconds of a duration in Go's syntax: "300s", "5m", "1h30m", "1.5h", "500ms"."""
    if re.fullmatch(r"[0-9.]+", text):
        raise ValueError(f'a duration needs a unit: "{text}s"?')
    if not re.fullmatch(f"(?:{_PART.pattern})+", text):
        raise ValueError("not a duration")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def seconds_between(low: float, high: float) -> Callable[[str], float]:
    """Return a parser of durations within these seconds."""

    def parse(text: str) -> float:
        seconds = duration(text)
        if not low <= seconds <= high:
            raise ValueError("too short" if seconds < low else "too long")
        return seconds

    return parse


def choice(kind: type[StrEnum], *, any_case: bool = False) -> Callable[[str], StrEnum]:
    """Return a parser of the values of an enum."""

    def parse(text: str) -> StrEnum:
        wanted = text.lower() if any_case else text
        if wanted in kind.__members__.values():
            return kind(wanted)
        raise ValueError("unknown value" + did_you_mean(text, [str(member) for member in kind]))

    return parse


def integer_between(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise ValueError("not a whole number")
        if not low <= int(text) <= high:
            raise ValueError("too small" if int(text) < low else "too large")
        return int(text)

    return parse


def mask(text: str) -> int:
    """Return a 32-bit mask of at least two adjacent bits, from hexadecimal or decimal."""
    if not re.fullmatch(r"0x[0-9A-Fa-f]{1,8}|[0-9]{1,10}", text):
        raise ValueError("not a mask")
    bits = int(text, 16 if text.startswith("0x") else 10)
    if not 0 < bits < 1 << 32:
        raise ValueError("not a 32-bit mask with at least one bit set")
    run = bits // (bits & -bits)  # shifted down to bit 0
    if run & (run + 1):
        raise ValueError("its bits are not adjacent")
    if run == 1:
        raise ValueError("a mask of one bit; the highest bit is for arriving packets, the others number the links")
    return bits


def endpoint(text: str) -> Endpoint:
    """Return the address and port of "ip:port" or "[ipv6]:port"."""
    match = re.fullmatch(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", text)
    if not match:
        raise ValueError("not an address and a port")
    if not 1 <= int(match[3]) <= 65535:
        raise ValueError(f"port {match[3]} is outside 1..65535")
    return Endpoint(ip_address(match[1] or match[2]), int(match[3]))


def link_names(text: str) -> tuple[str, ...]:
    """Return the names of links in a list separated by spaces."""
    for name in text.split():
        if "," in name:
            names = " ".join(text.replace(",", " ").split())
            raise ValueError(f'{name!r} has a comma; separate names with spaces: "{names}"')
        if any(letter in name for letter in "*?[]"):
            raise ValueError(f"{name!r} is a pattern; only whole names are supported")
        if len(name.encode()) > 15 or "/" in name or ":" in name or name in (".", ".."):
            raise ValueError(f"{name!r} is not the name of a link")
    return tuple(text.split())


def link_kinds(text: str) -> tuple[str, ...]:
    """Return the rtnetlink kinds (IFLA_INFO_KIND) in a list separated by spaces."""
    for kind in text.split():
        if not re.fullmatch(r"[a-z0-9_-]{1,15}", kind):
            raise ValueError(f"{kind!r} is not an rtnetlink kind")
    return tuple(text.split())


def networks(text: str) -> tuple[Network, ...]:
    """Return the addresses and prefixes in a list separated by spaces."""
    return tuple(_network(word) for word in text.split())


def _network(word: str) -> Network:
    try:
        network = ip_network(word, strict=False)
    except ValueError:
        raise ValueError(f"{word!r} is not an address or prefix") from None
    if "/" in word and ip_address(word.partition("/")[0]) != network.network_address:
        raise ValueError(f"{word!r} has bits beyond its length; {str(network)!r}?")
    return network


def did_you_mean(word: str, known: list[str]) -> str:
    """Return " (did you mean ...?)" with the closest of the known words, or ""."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1)
    return f" (did you mean {folded[close[0]]}?)" if close else ""
