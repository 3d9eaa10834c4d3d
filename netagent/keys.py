"""The keys of cloud-network.toml(5). netagent and the fetcher read the file with this table.

Each key has a field, a parser of the value's text and the accepted form, which errors name. A parser raises ValueError
with the reason. The fetcher's `Config` has all fields, netagent's `Settings` those that concern it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from .claims import link_patterns
from .operations import NUMBER_OF_PRIORITIES

MAIN_PRIORITY = 32766
"""Priority of the kernel's own rule `lookup main`; all owned rules must come before it."""
MAX_BYTES = 1 << 20
"""Largest accepted size of the file."""


class LogLevel(StrEnum):
    """LogLevel=, the names of the Go original (logrus), which also takes `warn`."""

    TRACE = "trace"
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    FATAL = "fatal"
    PANIC = "panic"


class LogFormat(StrEnum):
    """LogFormat=."""

    TEXT = "text"
    JSON = "json"


class Provider(StrEnum):
    """Provider=: the cloud of this instance; `auto` detects it."""

    AUTO = "auto"
    AWS = "aws"
    AZURE = "azure"
    GCP = "gcp"
    ORACLE = "oracle"
    ALIBABA = "alibaba"
    DIGITALOCEAN = "digitalocean"
    OPENSTACK = "openstack"
    HETZNER = "hetzner"
    VULTR = "vultr"
    SCALEWAY = "scaleway"
    IBM = "ibm"
    TENCENT = "tencent"


class RulesMode(StrEnum):
    """Rules=: one rule per subnet or per address; `original` adds the `to` rules of the Go original."""

    AGGREGATE = "aggregate"
    ADDRESS = "address"
    ORIGINAL = "original"


class Manage(StrEnum):
    """Manage=: `all` interfaces of the metadata, or only the `primary` one."""

    ALL = "all"
    PRIMARY = "primary"


class Prefixes(StrEnum):
    """Prefixes=: a delegated range becomes a local route, source rules only, or nothing."""

    LOCAL = "local"
    ROUTE = "route"
    IGNORE = "ignore"


class ForwardedRepliesMode(StrEnum):
    """ForwardedReplies=: `mark` sends replies of forwarded connections out through the interface they came in by."""

    OFF = "off"
    MARK = "mark"


class Purge(StrEnum):
    """Purge=: `on-stop` removes everything that is owned when the service stops."""

    NEVER = "never"
    ON_STOP = "on-stop"


class AuditFailure(StrEnum):
    """AuditFailure=: netagent refuses a change that it cannot write to the audit log, or makes it unlogged."""

    REFUSE = "refuse"
    CONTINUE = "continue"


# Parsers of values


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


def _log_level(text: str) -> StrEnum:
    return choice(LogLevel, any_case=True)("warning" if text.lower() == "warn" else text)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file: the field of the settings, the parser of its text, and the accepted form for errors."""

    field: str
    parse: Callable[[str], Any]
    accepted: str

    def read(self, value: object) -> Any:
        """Return the parsed value of the key. Raises ValueError with the reason and the accepted form."""
        try:
            return self.parse(_text(value))
        except ValueError as error:
            raise ValueError(f"{error}; accepted: {self.accepted}") from None


def _text(value: object) -> str:
    """Return a value as text: a string, or an integer, which is equivalent to the string of its digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return str(value)
    raise ValueError("not a string or whole number")


_LINKS = "names of links, separated by spaces"
_PATTERNS = 'names of links with *, ? and [...], and MACs, separated by spaces, such as "eni* ens[6-9]"'
_DURATION = 'at least 1s, such as "300s", "5m" or "1h30m"'
_HIGHEST_PRIORITY = MAIN_PRIORITY - NUMBER_OF_PRIORITIES
_BELOW_MAIN = f"1 to {_HIGHEST_PRIORITY}: all {NUMBER_OF_PRIORITIES} priorities must be below main's {MAIN_PRIORITY}"
_NETWORKS = 'addresses or prefixes, separated by spaces, such as "10.0.0.0/8 2001:db8::/32"'


def _one_of(field: str, kind: type[StrEnum], *, any_case: bool = False) -> Key:
    return Key(field, choice(kind, any_case=any_case), ", ".join(kind) + (" (any case)" if any_case else ""))


KEYS: Mapping[str, Mapping[str, Key]] = {
    "System": {
        "LogLevel": Key("log_level", _log_level, ", ".join(LogLevel) + " (any case)"),
        "LogFormat": _one_of("log_format", LogFormat, any_case=True),
        "RefreshTimer": Key("refresh_timer", seconds_between(1, 9e9), _DURATION),
        "ReadyTimeout": Key("ready_timeout", seconds_between(1, 9e9), _DURATION),
    },
    "Network": {
        "Listen": Key("listen", endpoint, '"ip:port" or "[ipv6]:port", such as "127.0.0.1:5209"'),
        "Supplementary": Key("supplementary", link_names, _LINKS),
        "Provider": _one_of("provider", Provider),
        "RouteTableBase": Key("route_table_base", integer_between(256, 1_000_000_000), "256 to 1000000000"),
        "RulePriority": Key("rule_priority", integer_between(1, _HIGHEST_PRIORITY), _BELOW_MAIN),
        "Rules": _one_of("rules", RulesMode),
        "Manage": _one_of("manage", Manage),
        "Exclude": Key("exclude", link_patterns, _PATTERNS),
        "ExcludeAddresses": Key("exclude_addresses", networks, _NETWORKS),
        "Prefixes": _one_of("prefixes", Prefixes),
        "ForwardedReplies": _one_of("forwarded_replies", ForwardedRepliesMode),
        "MarkMask": Key("mark_mask", mask, "a 32-bit mask of at least two adjacent bits, such as 0x7f"),
        "Purge": _one_of("purge", Purge),
        "ConfirmTimeout": Key("confirm_timeout", seconds_between(1, 600), '1s to 10m, such as "30s"'),
    },
    "Netagent": {
        "AllowKinds": Key("allow_kinds", link_kinds, 'rtnetlink kinds, separated by spaces, such as "veth"'),
        "AllowAddresses": Key("allow_addresses", networks, _NETWORKS),
        "AllowGateways": Key("allow_gateways", networks, _NETWORKS),
        "MaxObjects": Key("max_objects", integer_between(1, 65536), "1 to 65536"),
        "AuditFailure": _one_of("audit_failure", AuditFailure),
    },
}
OBSOLETE: Mapping[str, Mapping[str, str]] = {
    "System": {},
    "Network": {
        "Address": 'it has no effect; use Listen = "ADDRESS:PORT"',
        "Port": 'it has no effect; use Listen = "ADDRESS:PORT"',
        "PrimaryAddress": "it has no effect; the primary address of every interface is always configured",
    },
    "Netagent": {},
}
"""Keys of the Go original that are accepted with any value, and the text of the fetcher's notice."""


def unknown_key(section: str, key: str) -> str:
    """Return the reason for a key that its section does not have, with the correct spelling or section if known."""
    by_lower = {
        name.lower(): (other, name) for known in (KEYS, OBSOLETE) for other, keys in known.items() for name in keys
    }
    other, name = by_lower.get(key.lower(), ("", ""))
    if other == section:
        return f"keys are case-sensitive; accepted: {name}"
    if other:
        return f"key of another section; accepted: [{other}] {name}"
    accepted = list(KEYS[section])
    return f"unknown key{did_you_mean(key, accepted)}; accepted: {', '.join(accepted)}"


def excerpt(value: object) -> str:
    """Return the beginning of a value, for errors."""
    try:
        return f"{value!s:.80}"
    except ValueError:  # an integer with too many digits to print
        return "..."
