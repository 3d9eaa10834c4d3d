"""Settings: /etc/cloud-network/cloud-network.toml (TOML 1.0) and the environment, validated, as one frozen `Config`.

`KEYS` lists all keys: the field, the parser of its value, and the accepted form, which every error names. The file is
documented in cloud-network.toml(5). netagent reads the same file with its own code and the same meaning.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

from cloud_network.fetcher import config_values as values
from cloud_network.fetcher.config_values import Endpoint, Network
from cloud_network.netagent.claims import link_patterns

__all__ = ["Config", "ConfigError", "Endpoint", "Network", "load"]

PATH = Path("/etc/cloud-network/cloud-network.toml")
RULE_BAND = 30
"""Number of rule priorities, from RulePriority= on, that belong to cloud-network."""
MAIN_PRIORITY = 32766
"""Priority of the kernel's own rule `lookup main`; all owned rules must come before it."""
EX_CONFIG = 78
"""Exit status of all programs of cloud-network for an invalid configuration (sysexits.h)."""
MAX_BYTES = 1 << 20
"""Largest accepted size of the file."""


class ConfigError(Exception):
    """An invalid configuration. `problems` has one line for each mistake; str() is all of them."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


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


class Rules(StrEnum):
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


class ForwardedReplies(StrEnum):
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


PRIVATE = tuple(
    ip_network(prefix) for prefix in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""Prefixes that a link may get without AllowAddresses=."""


DEFAULT_LISTEN = Endpoint(IPv4Address("127.0.0.1"), 5209)


@dataclass(frozen=True, slots=True)
class Config:
    """The value of every key. Times are in seconds."""

    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.TEXT
    refresh_timer: float = 300.0
    ready_timeout: float = 60.0
    listen: Endpoint = DEFAULT_LISTEN
    supplementary: tuple[str, ...] = ()
    provider: Provider = Provider.AUTO
    route_table_base: int = 9999
    rule_priority: int = 31000
    rules: Rules = Rules.AGGREGATE
    manage: Manage = Manage.ALL
    exclude: tuple[str, ...] = ()  # patterns: netagent.claims.is_excluded
    exclude_addresses: tuple[Network, ...] = ()
    prefixes: Prefixes | None = None  # None: the cloud's own default
    forwarded_replies: ForwardedReplies = ForwardedReplies.OFF
    mark_mask: int = 0x7F  # avoids the bits of kube-proxy, Cilium, Calico, Tailscale and the AWS CNI
    purge: Purge = Purge.NEVER
    confirm_timeout: float = 30.0
    allow_kinds: tuple[str, ...] = ()
    allow_addresses: tuple[Network, ...] = PRIVATE  # the defaults, then what the file adds
    allow_gateways: tuple[Network, ...] = ()
    max_objects: int = 16384
    audit_failure: AuditFailure = AuditFailure.REFUSE
    notices: tuple[str, ...] = field(default=(), compare=False)  # about keys in the file that have no effect


def _log_level(text: str) -> StrEnum:
    return values.choice(LogLevel, any_case=True)("warning" if text.lower() == "warn" else text)


def _allowed_addresses(text: str) -> tuple[Network, ...]:
    return PRIVATE + values.networks(text)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file: the field of `Config`, the parser of its text, and the accepted form for errors."""

    field: str
    parse: Callable[[str], Any]
    accepted: str


_LINKS = "names of links, separated by spaces"
_PATTERNS = 'names of links with *, ? and [...], and MACs, separated by spaces, such as "eni* ens[6-9]"'
_DURATION = 'at least 1s, such as "300s", "5m" or "1h30m"'
_BELOW_MAIN = f"1 to {MAIN_PRIORITY - RULE_BAND}: all {RULE_BAND} priorities must be below main's {MAIN_PRIORITY}"
_NETWORKS = 'addresses or prefixes, separated by spaces, such as "10.0.0.0/8 2001:db8::/32"'


def _one_of(field: str, kind: type[StrEnum], *, any_case: bool = False) -> Key:
    return Key(field, values.choice(kind, any_case=any_case), ", ".join(kind) + (" (any case)" if any_case else ""))


KEYS: Mapping[str, Mapping[str, Key]] = {
    "System": {
        "LogLevel": Key("log_level", _log_level, ", ".join(LogLevel) + " (any case)"),
        "LogFormat": _one_of("log_format", LogFormat, any_case=True),
        "RefreshTimer": Key("refresh_timer", values.seconds_between(1, 9e9), _DURATION),
        "ReadyTimeout": Key("ready_timeout", values.seconds_between(1, 9e9), _DURATION),
    },
    "Network": {
        "Listen": Key("listen", values.endpoint, '"ip:port" or "[ipv6]:port", such as "127.0.0.1:5209"'),
        "Supplementary": Key("supplementary", values.link_names, _LINKS),
        "Provider": _one_of("provider", Provider),
        "RouteTableBase": Key("route_table_base", values.integer_between(256, 1_000_000_000), "256 to 1000000000"),
        "RulePriority": Key("rule_priority", values.integer_between(1, MAIN_PRIORITY - RULE_BAND), _BELOW_MAIN),
        "Rules": _one_of("rules", Rules),
        "Manage": _one_of("manage", Manage),
        "Exclude": Key("exclude", link_patterns, _PATTERNS),
        "ExcludeAddresses": Key("exclude_addresses", values.networks, _NETWORKS),
        "Prefixes": _one_of("prefixes", Prefixes),
        "ForwardedReplies": _one_of("forwarded_replies", ForwardedReplies),
        "MarkMask": Key("mark_mask", values.mask, "a 32-bit mask of at least two adjacent bits, such as 0x7f"),
        "Purge": _one_of("purge", Purge),
        "ConfirmTimeout": Key("confirm_timeout", values.seconds_between(1, 600), '1s to 10m, such as "30s"'),
    },
    "Netagent": {
        "AllowKinds": Key("allow_kinds", values.link_kinds, 'rtnetlink kinds, separated by spaces, such as "veth"'),
        "AllowAddresses": Key("allow_addresses", _allowed_addresses, _NETWORKS),
        "AllowGateways": Key("allow_gateways", values.networks, _NETWORKS),
        "MaxObjects": Key("max_objects", values.integer_between(1, 65536), "1 to 65536"),
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
"""Keys of the Go original that are accepted with any value, and the text of the notice. netagent accepts them, too."""
ENVIRONMENT: Mapping[str, Key] = {
    "CLOUD_NETWORK_LOG_LEVEL": KEYS["System"]["LogLevel"],
    "CLOUD_NETWORK_LOG_FORMAT": KEYS["System"]["LogFormat"],
}


# The file


def load(path: Path = PATH, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the settings of the file, overridden by the environment. A missing file means the defaults.

    Raises ConfigError with every mistake as `FILE:LINE: [Section] Key = value: reason; accepted: ...`.
    """
    content = _content(path)
    reader = _Reader()
    problems = []
    for section, entries in _document(path, content).items():
        for key, value, reason in reader.section(section, entries):
            line = _line_of(content, section, key)
            where = f"{path}:{line}" if line else str(path)
            problems.append((line, f"{where}: {_shown(section, key, value)}: {reason}"))
    lines = [text for _, text in sorted(problems, key=lambda problem: problem[0])]
    for variable, found in ENVIRONMENT.items():
        text = environ.get(variable, "")
        wrong = reader.set(found, text) if text else None
        if wrong:
            lines.append(f"environment: {variable} = {text}: {wrong}")
    if lines:
        raise ConfigError([visible(line) for line in lines])
    return Config(**reader.values, notices=tuple(f"{path}: {visible(notice)}" for notice in reader.notices))


def effective(config: Config) -> Iterator[str]:
    """Yield every key with the value that is in force, as lines of a TOML file. Defaults are marked."""
    defaults = Config()
    for section, keys in KEYS.items():
        yield f"[{section}]"
        for name, key in keys.items():
            value = getattr(config, key.field)
            mark = "  # default" if value == getattr(defaults, key.field) else ""
            if value is None:
                value, mark = Prefixes.ROUTE, mark + f'; "{Prefixes.LOCAL}" on GCP'
            yield f"{name} = {_toml(key, value)}{mark}"


def _toml(key: Key, value: Any) -> str:
    """Return the value as TOML."""
    if key.parse is _allowed_addresses:
        value = value[len(PRIVATE) :]  # the key adds to these
    if isinstance(value, tuple):
        return '"' + " ".join(map(str, value)) + '"'
    if isinstance(value, float):
        return f'"{value:.9f}'.rstrip("0").rstrip(".") + 's"'
    if isinstance(value, int):
        return hex(value) if key.parse is values.mask else str(value)
    return f'"{value}"'


class _Reader:
    """Collects the values of the fields of `Config`."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.notices: list[str] = []

    def section(self, section: str, entries: Any) -> list[tuple[str, Any, str]]:
        """Take the values of one section; return its mistakes as (key, value, reason)."""
        if not isinstance(entries, dict):
            sections = [f"[{name}]" for name, keys in KEYS.items() if section in keys] or [f"[{name}]" for name in KEYS]
            return [("", entries, f"key outside of a section; accepted sections: {', '.join(sections)}")]
        if section not in KEYS:
            hint = values.did_you_mean(section, list(KEYS))
            return [("", None, f"unknown section{hint}; accepted: {', '.join(KEYS)}")]
        mistakes = []
        for key, value in entries.items():
            if key in OBSOLETE[section]:
                self.notices.append(f"{_shown(section, key, value)}: {OBSOLETE[section][key]}")
                continue
            found = KEYS[section].get(key)
            reason = self.set(found, value) if found else _unknown_key(section, key)
            if reason:
                mistakes.append((key, value, reason))
        return mistakes

    def set(self, key: Key, value: Any) -> str | None:
        """Set the field of a key. Return the reason if its value is not accepted."""
        try:
            self.values[key.field] = key.parse(_text(value))
        except ValueError as error:
            return f"{error}; accepted: {key.accepted}"
        return None


def _text(value: Any) -> str:
    """Return a value as text: a string, or an integer, which is equivalent to the string of its digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return str(value)
    raise ValueError("not a string or whole number")


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; make it a file of mode 0644"]) from error
    if len(content) > MAX_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_BYTES} bytes"])
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: byte {error.start} is not UTF-8; save it as UTF-8"]) from error


def _document(path: Path, content: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or an integer with too many digits
        found = re.search(r"at line ([0-9]+)", str(error))
        where = f"{path}:{found[1]}" if found else str(path)
        raise ConfigError([visible(f"{where}: not TOML: {error}; see cloud-network.toml(5)")]) from error


def _line_of(content: str, section: str, key: str) -> int:
    """Return the line of a key, or of a section for key "", in the usual layout; 0 if it cannot be found."""
    current = ""
    if '"""' in content or "'''" in content:
        return 0  # a line inside a string of several lines may look like a key
    for number, line in enumerate(content.split("\n"), 1):
        if header := re.match(r"\s*\[\s*['\"]?([^\]'\"]*?)['\"]?\s*\]", line):
            current = header[1]
            if not key and current == section:
                return number
        entry = re.match(r"\s*['\"]?([A-Za-z0-9_-]+)['\"]?\s*=", line)
        if entry and (current, entry[1]) in ((section, key), ("", section)):
            return number
    return 0


def _shown(section: str, key: str, value: Any) -> str:
    if not key:
        return f"[{section}]" if value is None else f"{section} = {_excerpt(value)}"
    return f"[{section}] {key} = {_excerpt(value)}"


def _excerpt(value: Any) -> str:
    try:
        return f"{value!s:.80}"
    except ValueError:  # an integer with too many digits to print
        return "..."


def _unknown_key(section: str, key: str) -> str:
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
    return f"unknown key{values.did_you_mean(key, accepted)}; accepted: {', '.join(accepted)}"


def visible(text: str) -> str:
    r"""Return the text with control characters as \x.., so that it cannot control a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda control: f"\\x{ord(control[0]):02x}", text)
