"""What an operator has set for netagent, read straight from the operator's file: never from the fetcher.

The file is the fetcher's (cloud-network.toml(5)); its one-line `Key = value` subset of TOML is small enough to read
here. A line that is not understood is an error: netagent would rather not start than guess what it may do.
"""

from __future__ import annotations

from .policy import ALLOWED, parse_network
from .protocol import BAND

PATH = "/etc/cloud-network/cloud-network.toml"


class Settings:
    """The keys that concern netagent, at their defaults; and the resolvers that nobody may take over."""

    def __init__(self) -> None:
        self.table_base, self.priority = 9999, 31000
        self.exclude: frozenset[str] = frozenset()
        self.allow_kinds: frozenset[str] = frozenset()
        self.allow_addresses = ALLOWED
        self.audit_failure = "refuse"
        self.resolvers: frozenset[bytes] = frozenset()

    def take(self, section: str, key: str, value: str) -> None:
        """Take one key of the file; ValueError says what is accepted. Other keys are the fetcher's to judge."""
        if (section, key) == ("Network", "RouteTableBase"):
            self.table_base = _whole(value, 256, 2**30)
        elif (section, key) == ("Network", "RulePriority"):
            self.priority = _whole(value, 1, 32766 - BAND)
        elif (section, key) == ("Network", "Exclude"):
            self.exclude = frozenset(value.split())
        elif (section, key) == ("Netagent", "AllowKinds"):
            self.allow_kinds = frozenset(value.split())
        elif (section, key) == ("Netagent", "AllowAddresses"):
            self.allow_addresses = ALLOWED + tuple(map(parse_network, value.split()))
        elif (section, key) == ("Netagent", "AuditFailure"):
            if value not in ("refuse", "continue"):
                raise ValueError("accepted: refuse, continue")
            self.audit_failure = value


def _whole(value: str, low: int, high: int) -> int:
    if not (value.isascii() and value.isdecimal()) or not low <= int(value) <= high:
        raise ValueError(f"accepted: a whole number in {low}..{high}")
    return int(value)


def _value(line: str) -> str:
    """The value of `Key = value`: a whole number, 'text' or "text", and perhaps a comment behind it."""
    quote = line[:1]
    if quote not in ("'", '"'):
        return line.partition("#")[0].strip()
    plain = line if quote == "'" else line.replace('\\"', "\0\0").replace("\\\\", "\0\1")
    end = plain.find(quote, 1)
    rest = plain[end + 1 :].strip()
    if end < 0 or ("\\" in plain[:end] and quote == '"') or (rest and not rest.startswith("#")):
        raise ValueError(f'accepted: {quote}text{quote}, with no escapes but \\" and \\\\')
    return plain[1:end].replace("\0\0", '"').replace("\0\1", "\\")


def load(path: str = PATH) -> Settings:
    """The settings of the file, or the defaults where there is none; SystemExit names file, line and reason."""
    settings, section = Settings(), ""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().replace("\r\n", "\n").split("\n")
    except FileNotFoundError:
        return settings
    for number, line in enumerate(map(str.strip, lines), 1):
        try:
            key, equals, value = line.partition("=")
            if line.startswith("["):
                section, closed, rest = line[1:].partition("]")
                if not closed or rest.strip()[:1] not in ("", "#"):
                    raise ValueError("accepted: [Section]")
            elif line and not line.startswith("#"):
                if not equals or not key.strip().replace("_", "").replace("-", "").isalnum():
                    raise ValueError("accepted: Key = value")
                settings.take(section, key.strip(), _value(value.strip()))
        except ValueError as error:
            raise SystemExit(f"cloud-network-netagent: {path}:{number}: {line}: {error}") from None
    return settings


def resolvers(path: str = "/etc/resolv.conf") -> frozenset[bytes]:
    """The packed addresses of the host's name servers."""
    found = []
    try:
        with open(path, errors="replace") as file:
            for words in map(str.split, file):
                if len(words) > 1 and words[0] == "nameserver":
                    net = parse_network(words[1].partition("%")[0])
                    found.append(net[1].to_bytes(net[0]))
    except (OSError, ValueError):  # no such file, or an address that is none: what was found is what there is
        pass
    return frozenset(found)
