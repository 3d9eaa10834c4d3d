"""The operator's keys for netagent, read from the operator's file. The fetcher cannot set them.

The file is cloud-network.toml(5), read with tomllib. `keys` has its keys, and the fetcher uses the same table. The
values of keys that only the fetcher uses are checked, too: a mistake in the file is an error of every process.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from socket import inet_aton
from typing import Any

from .keys import KEYS, MAX_BYTES, OBSOLETE, AuditFailure, ForwardedRepliesMode, Prefixes, excerpt, unknown_key
from .operations import IPAddress, IPNetwork

PATH = Path("/etc/cloud-network/cloud-network.toml")
RESOLVER_FILES = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),  # behind systemd-resolved's stub 127.0.0.53
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)


class SettingsError(Exception):
    """The file cannot be used; the text names the file, key, value and accepted values."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The keys that concern netagent, at their defaults."""

    route_table_base: int = 9999
    rule_priority: int = 31000
    exclude: tuple[str, ...] = ()  # patterns: claims.is_excluded
    allow_kinds: tuple[str, ...] = ()
    allow_addresses: tuple[IPNetwork, ...] = ()  # in addition to claims.PRIVATE
    allow_gateways: tuple[IPNetwork, ...] = ()
    max_objects: int = 16384
    prefixes: Prefixes | None = None  # None: the cloud's own default, which netagent does not know
    forwarded_replies: ForwardedRepliesMode = ForwardedRepliesMode.OFF
    mark_mask: int = 0x7F
    audit_failure: AuditFailure = AuditFailure.REFUSE

    @property
    def accepts_range_rules(self) -> bool:
        """True if the fetcher may add rules for packets that this host forwards from a delegated range."""
        return self.prefixes in (None, Prefixes.ROUTE)

    @property
    def sets_marks(self) -> bool:
        """True for ForwardedReplies="mark"."""
        return self.forwarded_replies is ForwardedRepliesMode.MARK


def load(path: Path = PATH) -> Settings:
    """Return the settings of the file, or the defaults if there is no file. Raises SettingsError."""
    values = dict[str, Any]()
    for section, table in _document(path).items():
        if section not in KEYS or not isinstance(table, dict):
            sections = ", ".join(f"[{name}]" for name in KEYS)
            raise SettingsError(f"{path}: {section!r:.80} is not a section; accepted: {sections}")
        for name, value in table.items():
            if name in OBSOLETE[section]:
                continue
            if name not in KEYS[section]:
                raise SettingsError(f"{path}: [{section}] {name!r:.80}: {unknown_key(section, name)}")
            key = KEYS[section][name]
            try:
                values[key.field] = key.read(value)
            except ValueError as error:
                raise SettingsError(f"{path}: [{section}] {name} = {excerpt(value)!r}: {error}") from None
    used = {field.name for field in fields(Settings)}
    return Settings(**{field: value for field, value in values.items() if field in used})


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
