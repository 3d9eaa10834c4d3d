"""/etc/cloud-network/cloud-network.toml and the environment → one frozen, checked `Config`.

`keyfile` takes the file apart; here is what each key means. `KEYS` is the whole list: field, meaning, and the
accepted form that every error about the key names.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

from cloud_network.fetcher import keyfile

PATH = Path("/etc/cloud-network/cloud-network.toml")
RULE_BAND = 30
"""How many rule priorities, from RulePriority= on, belong to us."""
MAIN_PRIORITY = 32766
"""The kernel's own `lookup main`; every rule of ours must come before it."""

Network = IPv4Network | IPv6Network


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has one line for each mistake; str() is all of them."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class LogLevel(StrEnum):
    """LogLevel=, the original's seven names."""

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
    """Provider=: which cloud this is, or `auto` to find out."""

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


class Rules(StrEnum):
    """Rules=: one for a subnet where one will do, or for each address; `original` adds the Go original's `to` rules."""

    AGGREGATE = "aggregate"
    ADDRESS = "address"
    ORIGINAL = "original"


class Prefixes(StrEnum):
    """Prefixes=: what a delegated range becomes: a local route, source rules only, or nothing."""

    LOCAL = "local"
    ROUTE = "route"
    IGNORE = "ignore"


class ForwardedReplies(StrEnum):
    """ForwardedReplies=: whether marks on connections lead replies of NATed ports back."""

    OFF = "off"
    MARK = "mark"


class Purge(StrEnum):
    """Purge=: whether stopping the service removes what it owns."""

    NEVER = "never"
    ON_STOP = "on-stop"


class AuditFailure(StrEnum):
    """AuditFailure=: what netagent does with a change that it cannot write to the audit log."""

    REFUSE = "refuse"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the REST server listens; str() is `ip:port` or `[ipv6]:port`."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.address.version == 4 else f"[{self.address}]:{self.port}"


PRIVATE = tuple(
    ip_network(prefix) for prefix in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""What a link may be given without AllowAddresses=."""


@dataclass(frozen=True, slots=True)
class Config:
    """Every key of the file, checked. Times are seconds."""

    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.TEXT
    refresh_timer: float = 300.0
    ready_timeout: float = 60.0
    listen: Endpoint = Endpoint(IPv4Address("127.0.0.1"), 5209)
    supplementary: tuple[str, ...] = ()
    provider: Provider = Provider.AUTO
    route_table_base: int = 9999
    rule_priority: int = 31000
    rules: Rules = Rules.AGGREGATE
    exclude: tuple[str, ...] = ()
    exclude_addresses: tuple[Network, ...] = ()
    prefixes: Prefixes | None = None  # None: the cloud's own default
    forwarded_replies: ForwardedReplies = ForwardedReplies.OFF
    mark_mask: int = 0x7F  # clear of kube-proxy's, Cilium's, Calico's, Tailscale's and the AWS CNI's bits
    purge: Purge = Purge.NEVER
    confirm_timeout: float = 30.0
    allow_kinds: tuple[str, ...] = ()
    allow_addresses: tuple[Network, ...] = PRIVATE  # the defaults, then what the file adds
    audit_failure: AuditFailure = AuditFailure.REFUSE


# --- values: text → what it means; each raises ValueError with the reason ---


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(ns|us|µs|μs|ms|s|m|h)")


def duration(text: str) -> float:
    """Go's duration syntax → seconds: "300s", "5m", "1h30m", "1.5h", "500ms"."""
    if re.fullmatch(r"[0-9.]+", text):
        raise ValueError(f'a time needs a unit: "{text}s"?')
    if not re.fullmatch(f"(?:{_PART.pattern})+", text):
        raise ValueError("not a time")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _duration(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        seconds = duration(text)
        if not low <= seconds <= high:
            raise ValueError("too short" if seconds < low else "too long")
        return seconds

    return parse


def _choice(kind: type[StrEnum], *, any_case: bool = False) -> Callable[[str], StrEnum]:
    def parse(text: str) -> StrEnum:
        wanted = text.lower() if any_case else text
        if wanted in kind.__members__.values():
            return kind(wanted)
        raise ValueError("unknown value" + _did_you_mean(text, [str(member) for member in kind]))

    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise ValueError("not a whole number")
        if not low <= int(text) <= high:
            raise ValueError("too small" if int(text) < low else "too large")
        return int(text)

    return parse


def _mask(text: str) -> int:
    if not re.fullmatch(r"0x[0-9A-Fa-f]{1,8}|[0-9]{1,10}", text):
        raise ValueError("not a mask")
    mask = int(text, 16 if text.startswith("0x") else 10)
    if not 0 < mask < 1 << 32:
        raise ValueError("not a 32-bit mask with a bit set")
    run = mask // (mask & -mask)  # shifted down to bit 0
    if run & (run + 1):
        raise ValueError("its bits are not in one run")
    return mask


def _endpoint(text: str) -> Endpoint:
    match = re.fullmatch(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", text)
    if not match:
        raise ValueError("not an address and a port")
    if not 1 <= int(match[3]) <= 65535:
        raise ValueError(f"port {match[3]} is outside 1..65535")
    return Endpoint(ip_address(match[1] or match[2]), int(match[3]))


def _links(text: str) -> tuple[str, ...]:
    for name in text.split():
        if len(name.encode()) > 15 or "/" in name or ":" in name or name in (".", ".."):
            raise ValueError(f"{name!r} cannot be the name of a link")
    return tuple(text.split())


def _kinds(text: str) -> tuple[str, ...]:
    for kind in text.split():
        if not re.fullmatch(r"[a-z0-9_-]{1,15}", kind):
            raise ValueError(f"{kind!r} cannot be an rtnetlink kind")
    return tuple(text.split())


def _networks(text: str) -> tuple[Network, ...]:
    found: list[Network] = []
    for word in text.split():
        try:
            found.append(ip_network(word, strict=False))
        except ValueError:
            raise ValueError(f"{word!r} is not an address or prefix") from None
        if "/" in word and ip_address(word.split("/")[0]) != found[-1].network_address:
            raise ValueError(f"{word!r} has bits beyond its length; {str(found[-1])!r}?")
    return tuple(found)


class Key(NamedTuple):
    """One key of the file: the field of `Config`, how its text is read, and what to tell who got it wrong."""

    field: str
    parse: Callable[[str], Any]
    accepted: str


_LINKS = "names of links, with white space between"
_SECONDS = 'at least 1s, such as "300s", "5m" or "1h30m"'
_BELOW_MAIN = f"1 to {MAIN_PRIORITY - RULE_BAND}: the {RULE_BAND} from it on must lie below main's {MAIN_PRIORITY}"
_NETWORKS = 'prefixes, with white space between, such as "10.0.0.0/8 2001:db8::/32"'


def _one_of(field: str, kind: type[StrEnum], *, any_case: bool = False) -> Key:
    return Key(field, _choice(kind, any_case=any_case), ", ".join(kind) + (" (any case)" if any_case else ""))


KEYS: Mapping[str, Mapping[str, Key]] = {
    "System": {
        "LogLevel": _one_of("log_level", LogLevel, any_case=True),
        "LogFormat": _one_of("log_format", LogFormat, any_case=True),
        "RefreshTimer": Key("refresh_timer", _duration(1, 9e9), _SECONDS),
        "ReadyTimeout": Key("ready_timeout", _duration(1, 9e9), _SECONDS),
    },
    "Network": {
        "Listen": Key("listen", _endpoint, '"ip:port" or "[ipv6]:port", such as "127.0.0.1:5209"'),
        "Supplementary": Key("supplementary", _links, _LINKS),
        "Provider": _one_of("provider", Provider),
        "RouteTableBase": Key("route_table_base", _integer(256, 1_000_000_000), "256 to 1000000000"),
        "RulePriority": Key("rule_priority", _integer(1, MAIN_PRIORITY - RULE_BAND), _BELOW_MAIN),
        "Rules": _one_of("rules", Rules),
        "Exclude": Key("exclude", _links, _LINKS),
        "ExcludeAddresses": Key("exclude_addresses", _networks, _NETWORKS),
        "Prefixes": _one_of("prefixes", Prefixes),
        "ForwardedReplies": _one_of("forwarded_replies", ForwardedReplies),
        "MarkMask": Key("mark_mask", _mask, 'a 32-bit mask of neighbouring bits, such as "0x7f" or 127'),
        "Purge": _one_of("purge", Purge),
        "ConfirmTimeout": Key("confirm_timeout", _duration(1, 600), '1s to 10m, such as "30s"'),
    },
    "Netagent": {
        "AllowKinds": Key("allow_kinds", _kinds, 'rtnetlink kinds with white space between, such as "veth"'),
        "AllowAddresses": Key("allow_addresses", lambda text: PRIVATE + _networks(text), _NETWORKS),
        "AuditFailure": _one_of("audit_failure", AuditFailure),
    },
}
ENVIRONMENT: Mapping[str, Key] = {
    "CLOUD_NETWORK_LOG_LEVEL": KEYS["System"]["LogLevel"],
    "CLOUD_NETWORK_LOG_FORMAT": KEYS["System"]["LogFormat"],
}


# --- the file ---


def load(path: Path = PATH, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check the file, then the environment, which wins. No file means the defaults.

    Raises ConfigError with all that is wrong as: `file:line: [Section] Key = value: reason; accepted: …`.
    """
    try:
        content = path.read_bytes().decode()
    except FileNotFoundError:
        content = ""
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; make it a file of mode 0644"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: byte {error.start} is not UTF-8; save it as UTF-8"]) from error

    values: dict[str, Any] = {}
    entries, mistakes = keyfile.read(content)
    for line, section, key, text in entries:
        if found := _key(section, key):
            _set(values, found, text, line, f"[{section}] {key}", mistakes)
        elif reason := _unknown(section, key, text):
            mistakes.append((line, reason))
    problems = [f"{path}:{line}: {reason}" for line, reason in sorted(mistakes)]

    mistakes = []
    for variable, found in ENVIRONMENT.items():
        if text := environ.get(variable, ""):
            _set(values, found, text, 0, variable, mistakes)
    problems += [f"environment: {reason}" for _, reason in mistakes]

    if problems:
        raise ConfigError([keyfile.CONTROL.sub(_visible, problem) for problem in problems])
    return Config(**values)


def _set(values: dict[str, Any], key: Key, text: str, line: int, name: str, mistakes: list[keyfile.Mistake]) -> None:
    try:
        values[key.field] = key.parse(text)
    except ValueError as error:
        mistakes.append((line, f"{name} = {text}: {error}; accepted: {key.accepted}"))


def _key(section: str, key: str) -> Key | None:
    return KEYS.get(section, {}).get(key)


def _unknown(section: str, key: str, text: str) -> str:
    """Why there is no such key, and which may have been meant; "" when there is nothing (more) to report."""
    sections = [f"[{name}]" for name in KEYS]
    homes = [f"[{name}]" for name in KEYS if _key(name, key)] or sections
    if not section:
        return f"{key} = {text}: before the first section; accepted: in {' or '.join(homes)}"
    if section not in KEYS:
        hint = _did_you_mean(f"[{section}]", sections)
        return "" if key else f"[{section}]: unknown section{hint}; accepted: {', '.join(sections)}"
    if not key:
        return ""
    if homes != sections:
        return f"[{section}] {key} = {text}: of another section; accepted: in {homes[0]}"
    known = list(KEYS[section])
    return f"[{section}] {key} = {text}: unknown key{_did_you_mean(key, known)}; accepted: {', '.join(known)}"


def _did_you_mean(word: str, known: list[str]) -> str:
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1)
    return f" (did you mean {folded[close[0]]}?)" if close else ""


def _visible(control: re.Match[str]) -> str:
    return f"\\x{ord(control[0]):02x}"
