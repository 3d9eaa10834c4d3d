"""The operator's keys for netagent, read from the operator's file. The fetcher cannot set them.

The file is cloud-network.toml(5), read with tomllib. Every key has the same meaning as in the fetcher
(`fetcher.config`); tests read the same files with both. The values of keys that only the fetcher uses are checked, too:
a mistake in the file is an error of every process.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from socket import inet_aton
from typing import Any

from .claims import link_patterns
from .operations import BAND, IPAddress, IPNetwork

PATH = Path("/etc/cloud-network/cloud-network.toml")
MAIN_PRIORITY = 32766
"""Priority of the kernel's own rule `lookup main`; owned rules come before it."""
RESOLVER_FILES = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),  # behind systemd-resolved's stub 127.0.0.53
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)


_MASK = "a 32-bit mask of at least two adjacent bits, such as 0x7f"


class SettingsError(Exception):
    """The file cannot be used; the text names the file, key, value and accepted values."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The keys that concern netagent, at their defaults."""

    table_base: int = 9999
    priority: int = 31000
    exclude: frozenset[str] = frozenset()  # patterns: claims.is_excluded
    allow_kinds: frozenset[str] = frozenset()
    allow_addresses: tuple[IPNetwork, ...] = ()  # in addition to claims.PRIVATE
    allow_gateways: tuple[IPNetwork, ...] = ()
    max_objects: int = 16384
    forwarded_replies: bool = False  # ForwardedReplies="mark"
    mark_mask: int = 0x7F
    continue_unaudited: bool = False  # AuditFailure="continue"


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"accepted: a whole number, {low} to {high}")
        return int(text)

    return parse


def _links(text: str) -> frozenset[str]:
    try:
        return frozenset(link_patterns(text))
    except ValueError as error:
        accepted = "names of links with *, ? and [...], and MACs, separated by spaces"
        raise ValueError(f"{error}; accepted: {accepted}") from None


def _kinds(text: str) -> frozenset[str]:
    for kind in text.split():
        if not re.fullmatch(r"[a-z0-9_-]{1,15}", kind):
            raise ValueError(f"{kind!r} is not an rtnetlink kind; accepted: kinds such as veth, separated by spaces")
    return frozenset(text.split())


def _networks(text: str) -> tuple[IPNetwork, ...]:
    found = []
    for word in text.split():
        try:
            network = ip_network(word)
        except ValueError as error:
            raise ValueError(f"{error}; accepted: addresses and prefixes, separated by spaces") from None
        found.append(network)
    return tuple(found)


def _one_of(*accepted: str, any_case: bool = False) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = text.lower() if any_case else text
        if value not in accepted:
            raise ValueError(f"accepted: {', '.join(accepted)}")
        return value

    return parse


def _forwarded_replies(text: str) -> bool:
    return _one_of("off", "mark")(text) == "mark"


def _mark_mask(text: str) -> int:
    if not re.fullmatch(r"0x[0-9A-Fa-f]{1,8}|[0-9]{1,10}", text):
        raise ValueError(f"accepted: {_MASK}")
    bits = int(text, 16 if text.startswith("0x") else 10)
    if not 0 < bits < 1 << 32:
        raise ValueError(f"accepted: {_MASK}")
    run = bits // (bits & -bits)  # shifted down to bit 0
    if run & (run + 1) or run == 1:
        raise ValueError(f"accepted: {_MASK}")
    return bits


def _audit_failure(text: str) -> bool:
    return _one_of("refuse", "continue")(text) == "continue"


_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = r"([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(ns|us|µs|μs|ms|s|m|h)"


def _seconds(low: float, high: float, accepted: str) -> Callable[[str], float]:
    """Return a parser of durations in Go's syntax, such as "1h30m"."""

    def parse(text: str) -> float:
        parts = re.findall(_DURATION_PART, text)
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        if not re.fullmatch(f"(?:{_DURATION_PART})+", text) or not low <= seconds <= high:
            raise ValueError(f"accepted: {accepted}")
        return seconds

    return parse


def _endpoint(text: str) -> tuple[IPAddress, int]:
    found = re.fullmatch(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", text)
    try:
        if found and 1 <= int(found[3]) <= 65535:
            return ip_address(found[1] or found[2]), int(found[3])
    except ValueError:
        pass
    raise ValueError('accepted: "ip:port" or "[ipv6]:port", such as "127.0.0.1:5209"')


def _link_names(text: str) -> tuple[str, ...]:
    for name in text.split():
        if len(name.encode()) > 15 or set(name) & set(",*?[]/:") or name in (".", ".."):
            raise ValueError(f"{name!r} is not the name of a link; accepted: names of links, separated by spaces")
    return tuple(text.split())


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file: its field in Settings, and its parser, whose ValueError names the accepted values."""

    field: str | None  # None: only the fetcher uses it
    parse: Callable[[str], Any]


_DURATION = 'at least 1s, such as "300s", "5m" or "1h30m"'

KEYS: Mapping[str, Mapping[str, Key]] = {
    "System": {
        "LogLevel": Key(
            None,
            _one_of("trace", "debug", "info", "warn", "warning", "error", "fatal", "panic", any_case=True),
        ),
        "LogFormat": Key(None, _one_of("text", "json", any_case=True)),
        "RefreshTimer": Key(None, _seconds(1, 9e9, _DURATION)),
        "ReadyTimeout": Key(None, _seconds(1, 9e9, _DURATION)),
    },
    "Network": {
        "Listen": Key(None, _endpoint),
        "Supplementary": Key(None, _link_names),
        "Provider": Key(
            None,
            _one_of(
                *("auto", "aws", "azure", "gcp", "oracle", "alibaba", "digitalocean", "openstack", "hetzner"),
                *("vultr", "scaleway", "ibm", "tencent"),
            ),
        ),
        "RouteTableBase": Key("table_base", _integer(256, 10**9)),
        "RulePriority": Key("priority", _integer(1, MAIN_PRIORITY - BAND)),
        "Rules": Key(None, _one_of("aggregate", "address", "original")),
        "Manage": Key(None, _one_of("all", "primary")),
        "Exclude": Key("exclude", _links),
        "ExcludeAddresses": Key(None, _networks),
        "Prefixes": Key(None, _one_of("local", "route", "ignore")),
        "ForwardedReplies": Key("forwarded_replies", _forwarded_replies),
        "MarkMask": Key("mark_mask", _mark_mask),
        "Purge": Key(None, _one_of("never", "on-stop")),
        "ConfirmTimeout": Key(None, _seconds(1, 600, '1s to 10m, such as "30s"')),
    },
    "Netagent": {
        "AllowKinds": Key("allow_kinds", _kinds),
        "AllowAddresses": Key("allow_addresses", _networks),
        "AllowGateways": Key("allow_gateways", _networks),
        "MaxObjects": Key("max_objects", _integer(1, 65536)),
        "AuditFailure": Key("continue_unaudited", _audit_failure),
    },
}
"""All keys. Any other key is an error: it may be a misspelled Exclude=."""
ORIGINALS_KEYS = ("Address", "Port", "PrimaryAddress")
"""Keys of the Go original in [Network] that have no effect; the fetcher logs a notice for each."""
MAX_BYTES = 1 << 20
"""Limit of the size of the file, as in the fetcher."""


def load(path: Path = PATH) -> Settings:
    """Return the settings of the file, or the defaults if there is no file. Raises SettingsError."""
    content = _document(path)
    values = {}
    for section, table in content.items():
        if section not in KEYS or not isinstance(table, dict):
            sections = ", ".join(f"[{name}]" for name in KEYS)
            raise SettingsError(f"{path}: {section!r:.80} is not a section; accepted: {sections}")
        for name, value in table.items():
            key = KEYS[section].get(name)
            if key is not None:
                parsed = _value(path, section, name, value, key)
                if key.field is not None:
                    values[key.field] = parsed
            elif not (section == "Network" and name in ORIGINALS_KEYS):
                raise SettingsError(f"{path}: [{section}] {name!r:.80}: {_unknown_key(section, name)}")
    return Settings(**values)


def _unknown_key(section: str, name: str) -> str:
    for key in (*KEYS[section], *(ORIGINALS_KEYS if section == "Network" else ())):
        if key.lower() == name.lower():
            return f"keys are case-sensitive; accepted: {key}"
    return "unknown key; see cloud-network.toml(5)"


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}; make it a file of mode 0644") from None
    if len(content) > MAX_BYTES:
        raise SettingsError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, not UTF-8, or a number of too many digits
        raise SettingsError(f"{path}: not TOML: {error}; see cloud-network.toml(5)") from None


def _value(path: Path, section: str, name: str, value: object, key: Key) -> Any:
    """Return the parsed value. An integer is parsed as the text of its digits."""
    is_number = type(value) is int and abs(value) < 1 << 63
    where = f"{path}: [{section}] {name}"
    if not is_number and not isinstance(value, str):
        raise SettingsError(f'{where}: accepted: a text, {name} = "...", or a whole number')
    try:
        return key.parse(str(value))
    except ValueError as error:
        raise SettingsError(f"{where} = {value!r:.80}: {error}") from None


def resolvers(files: tuple[Path, ...] = RESOLVER_FILES) -> tuple[frozenset[IPAddress], tuple[str, ...]]:
    """Return the addresses of the host's name servers, and a warning for each file that exists and cannot be read."""
    found, warnings = set[IPAddress](), []
    for path in files:
        try:
            found |= _name_servers(_lines(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            advice = "the name servers in it are not protected; make it readable for all users"
            warnings.append(f"{path}: cannot be read ({error.strerror}); {advice}")
    return frozenset(found), tuple(warnings)


def _lines(path: Path) -> list[str]:
    """Return the lines of a regular file. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), errors="replace") as file:  # no FIFO blocks
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(0, f"larger than {MAX_BYTES} bytes")
    return content.splitlines()


def _name_servers(lines: Iterable[str]) -> set[IPAddress]:
    found = set()
    for line in lines:
        words = line.partition("\0")[0].split()
        if len(words) > 1 and words[0] == "nameserver":
            address = _name_server(words[1].partition("%")[0])
            if address is not None:
                found.add(address)
    return found


def _name_server(text: str) -> IPAddress | None:
    """Return an address in any form that resolver(3) reads; None for text that it ignores."""
    try:
        return IPv4Address(inet_aton(text))  # 10.1026 and 0x0a000402 are 10.0.4.2
    except (OSError, ValueError):
        pass
    try:
        address = IPv6Address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address
