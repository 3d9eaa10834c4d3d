"""What an operator has set for netagent, read straight from the operator's file: never from the fetcher.

The file is the fetcher's (cloud-network.toml(5)); its one-line `Key = value` subset of TOML is small enough to read
here. A line that is not understood is an error: netagent would rather not start than guess what it may do.
"""

from __future__ import annotations

from .old_protocol import BAND, TYPE_CHECKING, pack_address, raise_if
from .policy import parse_networks

if TYPE_CHECKING:
    from .shapes import Any, Callable, Network

PATH = "/etc/cloud-network/cloud-network.toml"
_FORM = "accepted: [Section], Key = \"text\", Key = 'text' or Key = 123, without \\, each on its line and once"


class Settings:
    """The keys that concern netagent, at their defaults."""

    table_base, priority, audit_failure = 9999, 31000, "refuse"
    exclude = allow_kinds = frozenset[str]()
    allow_addresses: tuple[Network, ...] = ()  # beside policy.ALLOWED


def _whole(text: str, low: int, high: int) -> int:
    number = int(text) if text.isdecimal() else -1
    raise_if(not low <= number <= high, ValueError, "accepted: a whole number in {}..{}", low, high)
    return number


def _failure(text: str) -> str:
    raise_if(text not in ("refuse", "continue"), ValueError, "accepted: refuse, continue")
    return text


# What each key sets, and how its text is read; other keys are the fetcher's to judge.
_KEYS: dict[tuple[str, str], tuple[str, Callable[[str], Any]]] = {
    ("Network", "RouteTableBase"): ("table_base", lambda text: _whole(text, 256, 10**9)),
    ("Network", "RulePriority"): ("priority", lambda text: _whole(text, 1, 32766 - BAND)),
    ("Network", "Exclude"): ("exclude", lambda text: frozenset(text.split())),
    ("Netagent", "AllowKinds"): ("allow_kinds", lambda text: frozenset(text.split())),
    ("Netagent", "AllowAddresses"): ("allow_addresses", parse_networks),
    ("Netagent", "AuditFailure"): ("audit_failure", _failure),
}


def _until(end: str, line: str) -> str:
    """What stands before `end`; behind it nothing may stand but a comment."""
    value, closed, rest = line.partition(end)
    raise_if(not closed or "\\" in value or rest.strip()[:1] not in ("", "#"), ValueError, _FORM)
    return value


def _value(line: str) -> str:
    if line[:1] in ("'", '"'):
        return _until(line[0], line[1:])
    number = line.partition("#")[0].strip()
    raise_if(not (number.isascii() and number.isdecimal() and len(number) < 19), ValueError, _FORM)
    return number


def load(path: str = PATH) -> Settings:
    """The settings of the file, or the defaults where there is none; SystemExit names file, line and reason."""
    settings, section, number, line, seen = Settings(), "", 0, "", set()
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(map(str.strip, file), 1):  # noqa: B007  # for the error
                if line[:1] == "[":
                    section = _until("]", line[1:])
                elif line[:1] not in ("", "#"):
                    key, _, value = map(str.strip, line.partition("="))
                    raise_if((section, key) in seen, ValueError, _FORM)
                    seen.add((section, key))
                    name, read = _KEYS.get((section, key), ("other", str))
                    setattr(settings, name, read(_value(value)))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise SystemExit(f"cloud-network-netagent: {path}:{number}: {line!r:.80}: {error}") from None
    return settings


def read(path: str) -> str:
    """A small file of the host; nothing where it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def resolvers(path: str = "/etc/resolv.conf") -> frozenset[bytes]:
    """The packed addresses of the host's name servers."""
    lines = map(str.split, read(path).splitlines())
    servers = [words[1].partition("%")[0] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]
    return frozenset(filter(None, map(pack_address, servers)))  # resolver(3) passes over what is no address, too
