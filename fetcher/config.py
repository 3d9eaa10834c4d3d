"""Settings: /etc/cloud-network/cloud-network.toml (TOML 1.0) and the environment, validated, as one frozen `Config`.

The file is documented in cloud-network.toml(5). netagent reads it with the same table of keys, `netagent.keys`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from cloud_network.netagent.claims import PRIVATE
from cloud_network.netagent.keys import (
    KEYS,
    MAX_BYTES,
    OBSOLETE,
    AuditFailure,
    Endpoint,
    ForwardedRepliesMode,
    Key,
    LogFormat,
    LogLevel,
    Manage,
    Network,
    Prefixes,
    Provider,
    Purge,
    RulesMode,
    did_you_mean,
    excerpt,
    unknown_key,
)

__all__ = [
    "KEYS",
    "OBSOLETE",
    "PRIVATE",
    "AuditFailure",
    "Config",
    "ConfigError",
    "Endpoint",
    "ForwardedRepliesMode",
    "LogFormat",
    "LogLevel",
    "Manage",
    "Network",
    "Prefixes",
    "Provider",
    "Purge",
    "RulesMode",
    "load",
]

PATH = Path("/etc/cloud-network/cloud-network.toml")
EX_CONFIG = 78
"""Exit status of all programs of cloud-network for an invalid configuration (sysexits.h)."""


class ConfigError(Exception):
    """An invalid configuration. `problems` has one line for each mistake; str() is all of them."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


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
    rules: RulesMode = RulesMode.AGGREGATE
    manage: Manage = Manage.ALL
    exclude: tuple[str, ...] = ()  # patterns: netagent.claims.is_excluded
    exclude_addresses: tuple[Network, ...] = ()
    prefixes: Prefixes | None = None  # None: the cloud's own default
    forwarded_replies: ForwardedRepliesMode = ForwardedRepliesMode.OFF
    mark_mask: int = 0x7F  # avoids the bits of kube-proxy, Cilium, Calico, Tailscale and the AWS CNI
    purge: Purge = Purge.NEVER
    confirm_timeout: float = 30.0
    allow_kinds: tuple[str, ...] = ()
    allow_addresses: tuple[Network, ...] = PRIVATE  # the defaults, then what the file adds
    allow_gateways: tuple[Network, ...] = ()
    max_objects: int = 16384
    audit_failure: AuditFailure = AuditFailure.REFUSE
    notices: tuple[str, ...] = field(default=(), compare=False)  # about keys in the file that have no effect


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
    if key.field == "allow_addresses":
        value = value[len(PRIVATE) :]  # the key adds to these
    if isinstance(value, tuple):
        return '"' + " ".join(map(str, value)) + '"'
    if isinstance(value, float):
        return f'"{value:.9f}'.rstrip("0").rstrip(".") + 's"'
    if isinstance(value, int):
        return hex(value) if key.field == "mark_mask" else str(value)
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
            hint = did_you_mean(section, list(KEYS))
            return [("", None, f"unknown section{hint}; accepted: {', '.join(KEYS)}")]
        mistakes = []
        for key, value in entries.items():
            if key in OBSOLETE[section]:
                self.notices.append(f"{_shown(section, key, value)}: {OBSOLETE[section][key]}")
                continue
            found = KEYS[section].get(key)
            reason = self.set(found, value) if found else unknown_key(section, key)
            if reason:
                mistakes.append((key, value, reason))
        return mistakes

    def set(self, key: Key, value: Any) -> str | None:
        """Set the field of a key. Return the reason if its value is not accepted."""
        try:
            found = key.read(value)
        except ValueError as error:
            return str(error)
        self.values[key.field] = PRIVATE + found if key.field == "allow_addresses" else found
        return None


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
        return f"[{section}]" if value is None else f"{section} = {excerpt(value)}"
    return f"[{section}] {key} = {excerpt(value)}"


def visible(text: str) -> str:
    r"""Return the text with control characters as \x.., so that it cannot control a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda control: f"\\x{ord(control[0]):02x}", text)
