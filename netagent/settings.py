"""What an operator has set for netagent, read straight from the operator's file: never from the fetcher.

The file is the fetcher's (cloud-network.toml(5)); its one-line `Key = value` subset of TOML is small enough to
read here. A line that is not understood is an error: netagent would rather not start than guess what it may do.
"""

from __future__ import annotations

from .policy import ALLOWED, parse_network
from .protocol import BAND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .policy import Network

PATH = "/etc/cloud-network/cloud-network.toml"
RESOLV_CONF = "/etc/resolv.conf"


class Settings:
    """The keys that concern netagent, at their defaults."""

    def __init__(self) -> None:
        self.table_base = 9999
        self.priority = 31000
        self.exclude: frozenset[str] = frozenset()
        self.allow_kinds: frozenset[str] = frozenset()
        self.allow_addresses: tuple[Network, ...] = ALLOWED
        self.audit_failure = "refuse"
        self.resolvers: frozenset[bytes] = frozenset()

    def set(self, section: str, key: str, value: str) -> None:
        """Take one key of the file; ValueError says what is accepted. Other keys are the fetcher's to judge."""
        if (section, key) == ("Network", "RouteTableBase"):
            self.table_base = _whole(value, 256, 2**31 - 2**20)
        elif (section, key) == ("Network", "RulePriority"):
            self.priority = _whole(value, 1, 32766 - BAND)
        elif (section, key) == ("Network", "Exclude"):
            self.exclude = frozenset(value.split())
        elif (section, key) == ("Netagent", "AllowKinds"):
            self.allow_kinds = frozenset(value.split())
        elif (section, key) == ("Netagent", "AllowAddresses"):
            self.allow_addresses = ALLOWED + tuple(parse_network(word) for word in value.split())
        elif (section, key) == ("Netagent", "AuditFailure"):
            if value not in ("refuse", "continue"):
                raise ValueError("accepted: refuse, continue")
            self.audit_failure = value


def _whole(value: str, low: int, high: int) -> int:
    if not value.isdecimal() or not low <= int(value) <= high:
        raise ValueError(f"accepted: a whole number in {low}..{high}")
    return int(value)


def _value(line: str) -> str:
    """The value of `Key = value`: a whole number, 'literal' or "basic" string, and perhaps a comment."""
    quote = line[:1]
    if quote not in ("'", '"'):
        word = line.partition("#")[0].strip()
        if not word.lstrip("+-").replace("_", "").isalnum():
            raise ValueError('accepted: "text" or a whole number')
        return word
    found, position = "", 1
    while position < len(line) and line[position] != quote:
        if quote == '"' and line[position] == "\\":
            position += 1
            if line[position : position + 1] not in ("\\", '"'):
                raise ValueError('accepted escapes: \\\\ and \\"')
        found += line[position : position + 1]
        position += 1
    rest = line[position + 1 :].strip()
    if position >= len(line) or (rest and not rest.startswith("#")):
        raise ValueError(f"the string does not end with {quote}, or something follows it")
    return found


def load(path: str = PATH) -> Settings:
    """The settings of the file, or the defaults where there is none; SystemExit names file, line and reason."""
    settings = Settings()
    section = ""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return settings
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("["):
                section, closed, rest = line[1:].partition("]")
                section = section.strip()
                if not closed or not section.isalpha() or (rest.strip() and not rest.strip().startswith("#")):
                    raise ValueError("accepted: [System], [Network], [Netagent]")
                continue
            key, equals, value = line.partition("=")
            if not equals or not key.strip().isalpha():
                raise ValueError("accepted: Key = value")
            settings.set(section, key.strip(), _value(value.strip()))
        except ValueError as error:
            raise SystemExit(f"cloud-network-netagent: {path}:{number}: {line}: {error}") from None
    return settings


def resolvers(path: str = RESOLV_CONF) -> frozenset[bytes]:
    """The packed addresses of resolv.conf's name servers: nobody's to take over."""
    from _socket import AF_INET, AF_INET6, inet_pton

    found = set()
    try:
        with open(path, errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    address = words[1].partition("%")[0]
                    found.add(inet_pton(AF_INET6 if ":" in address else AF_INET, address))
    except OSError:  # none, or one with an address that is none
        pass
    return frozenset(found)
