"""Metadata served as a tree of texts, leaf by leaf, as EC2, Alibaba Cloud and Tencent Cloud do.

Such a tree answers 404 both for an absent value and for one that is temporarily unavailable. Only a directory listing
shows what an interface has: a leaf that is listed but cannot be read is a problem of that interface, and nothing of it
is removed.
"""

from __future__ import annotations

import logging
import math
import re
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from cloud_network.fetcher.metadata.base import BUSY, Provider
from cloud_network.fetcher.metadata.builder import InstanceBuilder, InterfaceBuilder
from cloud_network.fetcher.metadata.document import Node
from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import (
    MAX_INTERFACES,
    Instance,
    Interface,
    MetadataError,
    Problem,
    invalid,
    parse_mac,
)

logger = logging.getLogger(__name__)

META = "/latest/meta-data/"
MACS = "network/interfaces/macs/"
_KEYS = "public-keys/"
_NAME = re.compile(r"[A-Za-z0-9._:=+@,-]+/?")  # a role's name may have +=,.@- (IAM)
_FIXED_REQUESTS, _REQUESTS_EACH = 5, 12  # request budget of a refresh: fixed, and per interface
_PASSING_S = 3600.0
_MAX_FACTS = 4096  # facts kept, those of interfaces that are gone included: a partial answer must not lose them
_MAX_FACT_CHARACTERS = 1 << 19  # of all facts together; longer ones are not shown
_MAX_SHOWN_LEAVES = 256  # leaves read from a directory for display only
_TOKEN_AND_LOOKS = 4  # requests kept free of facts: a token, and a check after each group of changes


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """The PUT request for a session token, and the header that carries it."""

    path: str
    ttl_header: str
    header: str
    ttl: int = 21600  # seconds, the longest that the server grants


class NotFoundError(MetadataError):
    """HTTP 404."""


@dataclass(slots=True)
class Leaves:
    """The texts below one interface's directory, and the errors of listed leaves that could not be read."""

    directory: str
    listed: frozenset[str]
    texts: dict[str, str]
    errors: dict[str, MetadataError]

    def words(self, builder: InterfaceBuilder, key: str) -> list[Node]:
        """Return the values of a leaf; an empty list and a problem if they cannot be separated."""
        found = list[Node]()
        with builder.part():
            found += self._split(key)
        return found

    def _split(self, key: str) -> list[Node]:
        """Return the values of a leaf with one or several: one per line, or ["a", "b"], or [a, b]."""
        text = self.texts.get(key, "").strip()
        if text.startswith("[") != text.endswith("]"):
            raise invalid(self.directory + key, text, "a whole list")
        words = (word.strip('"') for word in re.split(r"[\s,]+", text.strip("[]")))
        return [Node(word, self.directory + key) for word in words if word]


class TreeProvider(Provider):
    """A Provider that reads such a tree.

    Facts for display are read a few with each fetch; if the network has changed, only by the next fetch, so that the
    change is applied first.
    """

    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    token_request: ClassVar[TokenRequest | None] = None
    network_keys: ClassVar[tuple[str, ...]]  # leaves of an interface that define its network
    shown_keys: ClassVar[tuple[str, ...]]  # leaves of an interface for display only
    shown_directories: ClassVar[tuple[str, ...]] = ()  # directories of an interface with leaves for display only
    system_keys: ClassVar[tuple[str, ...]]
    passing_keys: ClassVar[tuple[str, ...]] = ()  # those of `system_keys` that change without a change of the network
    identity: ClassVar[Mapping[str, str]] = MappingProxyType({})  # document, pkcs7 ... -> path
    role_directories: ClassVar[tuple[str, ...]]  # of the credentials of the instance's roles
    numbers_devices: ClassVar[bool] = False  # each interface has a number; else `mac` names the primary one
    lists_keys: ClassVar[bool] = True  # all ssh keys are read, by the listing of public-keys/

    def __init__(self, client: Client | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(client)
        self._clock = clock
        self._token: str | None = None
        self._token_expires = 0.0
        self._primary = ""  # MAC of the primary interface, which never changes
        self._facts: dict[str, str] = {}  # path -> text; "" for an absent one
        self._due: list[str] = []  # paths of facts to read
        self._passing_at = math.inf  # the clock's time at which `passing_keys` are read again
        self._listed: dict[str, frozenset[str]] = {}  # interface's name in the tree -> names in its directory
        self._last: Instance | None = None
        self._doubled: tuple[Interface, ...] = ()

    def describe(self, texts: dict[str, str], keys: list[str], interfaces: tuple[Interface, ...]) -> dict[str, Any]:
        """Return the facts to show from the texts of `system_keys` and the ssh keys."""
        return {**texts, "public-keys": keys}

    @abstractmethod
    def fill(self, builder: InterfaceBuilder, leaves: Leaves) -> None:
        """Fill the builder from the leaves of one interface."""

    def leaves(self, directory: str, listed: frozenset[str]) -> Leaves:
        """Read the leaves that define the network of the interface in `directory`."""
        found = Leaves(directory, listed, {}, {})
        for key in self.network_keys:
            if key in listed:
                self.read_leaf(found, key)
        return found

    def read_leaf(self, leaves: Leaves, key: str, path: str = "") -> None:
        """Read one leaf (at `path` below the directory if that differs from its key), or record the error."""
        where = leaves.directory + (path or key)
        try:
            text = self.leaf(where)
            if not text.strip():
                raise MetadataError("invalid", f"{where}: is listed but empty")
            leaves.texts[key] = text
        except MetadataError as error:
            if not _concerns_one_part(error):
                raise
            leaves.errors[key] = error

    def read(self) -> Instance:
        """See Provider."""
        began = self.client.requests
        names = [line.rstrip("/") for line in self.listing(MACS)]
        if not names:
            raise MetadataError("invalid", f"{MACS}: lists no interface; every instance has one")
        primary_problem = self._read_primary()
        found = self._read_interfaces(names)
        found = replace(found, problems=found.problems + primary_problem)
        self._refuse_moving_address(found.interfaces)
        if len(self._facts) > _MAX_FACTS:
            self._forget_facts()
        network_first = found != self._last and not self.pending_facts
        if found != self._last:
            self._last = found
            keys = (*self.system_keys, _KEYS) if self.lists_keys else self.system_keys
            self._due = [*(META + key for key in keys), *self.identity.values(), *self._shown_paths()]
            self._passing_at = self._clock() + _PASSING_S
        elif self.passing_keys and self._clock() >= self._passing_at:
            self._due += [META + key for key in self.passing_keys if META + key not in self._due]
            self._passing_at = self._clock() + _PASSING_S
        if network_first:
            self.pending_facts = True
        else:
            self._read_facts(began + _FIXED_REQUESTS + _REQUESTS_EACH * len(names) - _TOKEN_AND_LOOKS)
        return self._with_facts(found)

    def _read_primary(self) -> tuple[Problem, ...]:
        """Read the primary interface's MAC once. If that fails, the other interfaces are still configured."""
        if self._primary or self.numbers_devices:
            return ()
        try:
            self._primary = self.leaf("mac").strip().lower()
        except MetadataError as error:
            if not _concerns_one_part(error):
                raise
            return (Problem("", str(error)),)
        return ()

    def _read_interfaces(self, names: list[str]) -> Instance:
        instance = InstanceBuilder(self.name)
        failed: MetadataError | None = None
        self._listed = {}
        for name in names[:MAX_INTERFACES]:
            directory = f"{MACS}{name}/"
            try:
                builder = instance.start(parse_mac(MACS, name), directory)
                if builder is not None:
                    listed = frozenset(line.rstrip("/") for line in self.listing(directory))
                    self._listed[name] = listed
                    leaves = self.leaves(directory, listed)
                    with instance.adding(builder):
                        self._fill(builder, leaves)
            except MetadataError as error:
                if not _concerns_one_part(error):
                    raise
                failed = failed or error
                instance.problems.append(Problem(_mac_or_empty(name), str(error)))
        if len(names) > MAX_INTERFACES:
            text = f"{MACS}: {len(names)} interfaces are listed; the first {MAX_INTERFACES} are configured"
            instance.problems.append(Problem("", text))
        if failed and not instance.interfaces:
            raise failed
        return instance.build({"public-keys": []})

    def _fill(self, builder: InterfaceBuilder, leaves: Leaves) -> None:
        builder.document = leaves.texts
        builder.number = 0 if builder.mac == self._primary else None
        builder.problems += [str(error) for error in leaves.errors.values()]
        self.fill(builder, leaves)

    def send_probe(self) -> bool:
        """See Provider."""
        answer = self.get(META)
        return answer.status in BUSY or (answer.status == 200 and "instance-id" in answer.text(META).split())

    def credentials(self) -> dict[str, Any]:
        """Return the temporary credentials of the instance's roles: JSON texts by path."""
        found: dict[str, Any] = {}
        for directory in self.role_directories:
            try:
                names = self.listing(directory)
            except NotFoundError:
                continue  # an instance without a role
            found |= {directory + name: self.leaf(directory + name) for name in names}
        return found

    def leaf(self, path: str) -> str:
        """Return the text at `path` of the metadata. Raises NotFoundError if it is missing."""
        answer = self.get(META + path)
        if answer.status == 404:
            raise NotFoundError("changed", f"{path}: HTTP 404 although it is listed; reading again at the next refresh")
        if answer.status != 200:
            raise answer.error(path)
        return answer.text(path)

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory. On most clouds, those of directories end with a slash."""
        lines = [line.strip() for line in self.leaf(path).split("\n")]
        for line in lines:
            if line and not _NAME.fullmatch(line):
                raise invalid(path, line, "a name in a directory listing")
        return [line for line in lines if line]

    def get(self, path: str) -> Response:
        """Send a GET request with a session token; repeat it with a new token if the server rejects the old one."""
        for _ in range(2):
            headers = dict(self.headers)
            if self.token_request and (token := self._current_token(self.token_request)):
                headers[self.token_request.header] = token
            answer = self.client.request("GET", path, headers)
            if answer.status != 401:
                break
            self._token, self._token_expires = None, 0.0
        return answer

    def _current_token(self, request: TokenRequest) -> str | None:
        """Return a session token; None for a server without tokens, which only 404 and 405 prove."""
        if self._clock() < self._token_expires:
            return self._token
        headers = {**self.headers, request.ttl_header: str(request.ttl)}
        answer = self.client.request("PUT", request.path, headers)
        if answer.status in (404, 405):
            self._token = None
        elif answer.status == 200 and re.fullmatch(rb"[\x21-\x7e]{1,512}", answer.body):
            self._token = answer.body.decode()
        elif answer.status == 200:
            raise MetadataError("invalid", f"{request.path}: the answer is not a token")
        else:
            raise answer.error(request.path)
        self._token_expires = self._clock() + request.ttl * 0.9
        return self._token

    def _refuse_moving_address(self, interfaces: tuple[Interface, ...]) -> None:
        """Raise MetadataError if an address is on two interfaces, unless the previous read was the same.

        The address was moved during the read of the tree. Interfaces in two VPCs may share an address: the first one
        gets it.
        """
        count = Counter(address.ip for interface in interfaces for address in interface.addresses)
        doubled = ", ".join(str(address) for address, times in count.items() if times > 1)
        before, self._doubled = self._doubled, interfaces if doubled else ()
        if doubled and before != interfaces:
            raise MetadataError("changed", f"{MACS}: {doubled} is on more than one interface; reading again")
        if doubled and (self._last is None or self._last.interfaces != interfaces):
            logger.warning("metadata: %s: %s is on more than one interface; the first one gets it", MACS, doubled)

    def _forget_facts(self) -> None:
        """Forget the facts of interfaces that are no longer listed."""
        listed = tuple(f"{META}{MACS}{name}/" for name in self._listed)
        directory = META + MACS
        self._facts = {
            path: text
            for path, text in self._facts.items()
            if not path.startswith(directory) or path.startswith(listed)
        }

    def _read_facts(self, limit: int) -> None:
        """Read facts that are due, until the client has sent `limit` requests. A failed one goes to the end."""
        self.pending_facts = False
        while self._due:
            if self.client.requests >= limit:
                self.pending_facts = True
                return
            path = self._due.pop(0)
            try:
                answer = self.get(path)
                if answer.status not in (200, 404):
                    raise answer.error(path)
                text = answer.text(path) if answer.status == 200 else ""
                total = sum(len(fact) for other, fact in self._facts.items() if other != path)
                self._facts[path] = text if total + len(text) <= _MAX_FACT_CHARACTERS else ""
            except MetadataError as error:
                self._due.append(path)
                logger.debug("metadata: %s; for display only, retrying at the next refresh", error)
                return
            if path == META + _KEYS:
                self._due += list(self._key_paths())
            elif path.startswith(META + MACS) and path.endswith("/"):
                self._due += list(self._leaf_paths(path))

    def _leaf_paths(self, directory: str) -> Iterator[str]:
        """Yield the paths of the leaves in a directory that has been read."""
        for name in self._facts.get(directory, "").split()[:_MAX_SHOWN_LEAVES]:
            if _NAME.fullmatch(name) and not name.endswith("/"):
                yield directory + name

    def _key_paths(self) -> Iterator[str]:
        """Yield the path of each SSH key. The listing has its number and name (0=name), or its name alone."""
        for line in self._facts.get(META + _KEYS, "").split():
            if _NAME.fullmatch(line):
                yield f"{META}{_KEYS}{line.partition('=')[0].rstrip('/')}/openssh-key"

    def _shown_paths(self) -> Iterator[str]:
        for name, listed in self._listed.items():
            yield from (f"{META}{MACS}{name}/{key}" for key in self.shown_keys if key in listed)
            yield from (f"{META}{MACS}{name}/{key}/" for key in self.shown_directories if key in listed)

    def _with_facts(self, found: Instance) -> Instance:
        facts = self._facts
        of = {_mac_or_empty(name): name for name in self._listed}  # a MAC that is listed twice is read once
        interfaces = []
        for interface in found.interfaces:
            name = of[interface.mac]
            keys = (key for key in self.shown_keys if key in self._listed[name])
            shown = {key: facts.get(f"{META}{MACS}{name}/{key}", "") for key in keys}
            document = dict(interface.document) | {key: text for key, text in shown.items() if text}
            for key in (key for key in self.shown_directories if key in self._listed[name]):
                directory = f"{META}{MACS}{name}/{key}/"
                leaves = {path.removeprefix(directory): facts.get(path, "") for path in self._leaf_paths(directory)}
                document |= {key: leaves} if leaves else {}
            interfaces.append(replace(interface, document=document))
        texts = {key: facts[META + key] for key in self.system_keys if facts.get(META + key)}
        keys_read = [facts[path].strip() for path in self._key_paths() if facts.get(path)]
        system = self.describe(texts, keys_read, tuple(interfaces))
        identity = {part: facts[path].encode() for part, path in self.identity.items() if facts.get(path)}
        return replace(found, interfaces=tuple(interfaces), system=system, identity=identity)


def _concerns_one_part(error: MetadataError) -> bool:
    """Return True if the error concerns one answer and not the server: the next request may succeed."""
    return error.kind in ("invalid", "changed", "truncated", "too large", "status") and error.status not in BUSY


def _mac_or_empty(name: str) -> str:
    try:
        return parse_mac(MACS, name)
    except MetadataError:
        return ""
