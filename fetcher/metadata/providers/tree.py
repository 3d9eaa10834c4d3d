"""What the providers share whose cloud serves a tree of texts, leaf by leaf, as EC2 does.

Such a tree answers 404 both for 'there is none' and for 'not now', so only the directory listing says what an interface
has: a leaf that is listed and does not answer makes the interface unread, and nothing of it is removed.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance, Interface, MetadataError, Problem, invalid, parse_mac
from cloud_network.fetcher.metadata.providers.document import Node

logger = logging.getLogger(__name__)

META = "/latest/meta-data/"
MACS = "network/interfaces/macs/"
Leaves = dict[str, str]  # what is below one interface: key → text
_KEY = re.compile(r"[A-Za-z0-9._:=+@-]+/?")
_READ, _LOOK = 5.0, 2.0  # seconds for an answer, and for the look whether the server still gives one
_FIXED, _EACH = 5, 12  # requests that a refresh may cost, and for each interface
_KEYS = "public-keys/"


@dataclass(frozen=True, slots=True)
class Session:
    """How a token is asked for and shown; they are worded alike everywhere."""

    path: str
    ttl_header: str
    header: str
    ttl: int = 21600  # seconds, the longest that is granted


class Gone(MetadataError):
    """HTTP 404."""


class TreeProvider:
    """A Provider but for what is below an interface. Facts that are only shown are read bit by bit, and kept."""

    name: ClassVar[str] = ""
    endpoint: ClassVar[str] = ""
    headers: ClassVar[Mapping[str, str]] = {}
    session: ClassVar[Session | None] = None
    system_keys: ClassVar[tuple[str, ...]] = ()
    identity: ClassVar[Mapping[str, str]] = {}  # document, pkcs7 … → path
    shown_keys: ClassVar[tuple[str, ...]] = ()  # of each interface
    roles: ClassVar[str] = ""  # the directory of the credentials of the instance's roles

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client(self.endpoint)
        self.unread = False
        self._token: str | None = None
        self._token_expires = 0.0
        self._primary = ""
        self._facts: dict[str, str] = {}  # path → text; "" where there is none
        self._outdated: list[str] = []  # paths of facts that are (again) to be read
        self._last: Instance | None = None
        self._doubled: tuple[Interface, ...] = ()

    def leaves(self, directory: str, listed: set[str]) -> Leaves:
        """What the network of the interface in `directory` is made of."""
        raise NotImplementedError

    def instance(self, macs: Mapping[str, Leaves], primary: str) -> Instance:
        """The instance that those leaves of each interface (by its MAC as the tree writes it) describe."""
        raise NotImplementedError

    def fetch(self) -> Instance:
        """See Provider."""
        began = self.client.requests
        names = [line.rstrip("/") for line in self.listing(MACS)]
        self._primary = self._primary or self.leaf("mac").strip()
        trees: dict[str, Leaves] = {}
        problems: list[Problem] = []
        for name in names:
            mac = parse_mac(MACS, name)
            try:
                trees[name] = self._tree(f"{MACS}{name}/")
            except MetadataError as error:
                if error.kind not in ("invalid", "changed"):
                    raise
                problems.append(Problem(mac, str(error)))
        found = self.instance(trees, self._primary) if trees or not problems else Instance(self.name, ())
        found = replace(found, problems=(*found.problems, *problems))
        self._check_doubled(found.interfaces)
        if found != self._last:
            self._last = found
            shown = [f"{META}{MACS}{name}/{key}" for name in names for key in self.shown_keys]
            system = [META + key for key in (*self.system_keys, _KEYS)]
            self._outdated = [*system, *self.identity.values(), *shown]
        self._read_facts(began + _FIXED + _EACH * len(names))
        return self._with_facts(found, names)

    def answers(self) -> bool:
        """See Provider. Asked twice: the kept connection may have had an address for its source that is gone."""
        for _ in range(2):
            try:
                answer = self._get(META, _LOOK)
                if answer.status in (429, 503):  # one that is too busy is still there, and the way to it too
                    return True
                return answer.status == 200 and "instance-id" in answer.text(META).split()
            except MetadataError:
                continue
        return False

    def credentials(self) -> dict[str, Any]:
        """The temporary credentials of the instance's roles, as the cloud gives them: JSON by their path."""
        try:
            names = self.listing(self.roles)
        except Gone:
            return {}  # an instance without a role
        return {self.roles + name: self.leaf(self.roles + name) for name in names}

    # Reading

    def leaf(self, path: str) -> str:
        """The text at `path` of the metadata; it must be there."""
        answer = self._get(META + path)
        if answer.status == 404:
            raise Gone("changed", f"{path}: HTTP 404, though it must be there; it is read again")
        if answer.status != 200:
            raise answer.error(path)
        return answer.text(path)

    def listing(self, path: str) -> list[str]:
        """The names in a directory; those of directories end with a slash, on most clouds."""
        lines = [line.strip() for line in self.leaf(path).split("\n")]
        for line in lines:
            if line and not _KEY.fullmatch(line):
                raise invalid(path, line, "a name in a directory listing")
        return [line for line in lines if line]

    def _tree(self, directory: str) -> Leaves:
        found = self.leaves(directory, {line.rstrip("/") for line in self.listing(directory)})
        for key, text in found.items():
            if not text.strip():
                raise MetadataError("invalid", f"{directory}{key}: is listed, and empty")
        return found

    def _get(self, path: str, seconds: float = _READ) -> Response:
        for _ in range(2):
            headers = dict(self.headers)
            if self.session and (token := self._token_now(self.session)):
                headers[self.session.header] = token
            answer = self.client.request("GET", path, headers, seconds)
            if answer.status != 401:
                break
            self._token, self._token_expires = None, 0.0  # expired or forgotten by the server: once more with a new one
        return answer

    def _token_now(self, session: Session) -> str | None:
        """A session token; None where there are none, which 404 or 405 say and nothing else does."""
        if time.monotonic() < self._token_expires:
            return self._token
        headers = {**self.headers, session.ttl_header: str(session.ttl)}
        answer = self.client.request("PUT", session.path, headers)
        if answer.status in (404, 405):
            self._token = None
        elif answer.status == 200 and re.fullmatch(rb"[\x21-\x7e]{1,512}", answer.body):
            self._token = answer.body.decode()
        elif answer.status == 200:
            raise MetadataError("invalid", f"{session.path}: the answer is not a token")
        else:
            raise answer.error(session.path)
        self._token_expires = time.monotonic() + session.ttl * 0.9
        return self._token

    def _check_doubled(self, interfaces: tuple[Interface, ...]) -> None:
        """An address on two interfaces was moved while they were read; if the next read says so too, it is so."""
        count = Counter(address.ip for interface in interfaces for address in interface.addresses)
        doubled = ", ".join(str(address) for address, times in count.items() if times > 1)
        before, self._doubled = self._doubled, interfaces if doubled else ()
        if doubled and before != interfaces:
            raise MetadataError("changed", f"{MACS}: {doubled} on more than one interface; it is read again")

    # What is only shown

    def _read_facts(self, limit: int) -> None:
        """As far as the allowance goes. One that cannot be read goes to the end, and the next refresh goes on."""
        self.unread = False
        while self._outdated:
            if self.client.requests >= limit:
                self.unread = True
                return
            path = self._outdated.pop(0)
            try:
                answer = self._get(path)
                if answer.status not in (200, 404):
                    raise answer.error(path)
                self._facts[path] = answer.text(path) if answer.status == 200 else ""
            except MetadataError as error:
                self._outdated.append(path)
                logger.debug("metadata: %s; it is only shown, and read again with the next refresh", error)
                return
            if path == META + _KEYS:
                self._outdated += list(self._key_paths())

    def _key_paths(self) -> Iterator[str]:
        """Of each ssh key: the listing has its number and name (0=name), or its name alone."""
        for line in self._facts.get(META + _KEYS, "").split():
            if _KEY.fullmatch(line):
                yield f"{META}{_KEYS}{line.partition('=')[0].rstrip('/')}/openssh-key"

    def _with_facts(self, found: Instance, names: list[str]) -> Instance:
        facts = self._facts
        of = {parse_mac(MACS, name): f"{META}{MACS}{name}/" for name in names}
        interfaces = []
        for interface in found.interfaces:
            shown = {key: facts.get(of[interface.mac] + key, "") for key in self.shown_keys}
            document = dict(interface.document) | {key: text for key, text in shown.items() if text}
            interfaces.append(replace(interface, document=document))
        system: dict[str, Any] = {key: facts[META + key] for key in self.system_keys if facts.get(META + key)}
        system["public-keys"] = [facts[path].strip() for path in self._key_paths() if facts.get(path)]
        identity = {part: facts[path].encode() for part, path in self.identity.items() if facts.get(path)}
        return replace(found, interfaces=tuple(interfaces), system=system, identity=identity)


def assembled(name: str, macs: Mapping[str, Leaves], make: Callable[[str, str, Leaves], Interface]) -> Instance:
    """An Interface of each MAC and what is below it, and a Problem for each that is wrong."""
    interfaces: list[Interface] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for written, leaves in macs.items():
        mac = parse_mac(MACS, written)
        if mac in seen:
            raise MetadataError("invalid", f"{MACS}: a second interface with the MAC {mac}")
        seen.add(mac)
        try:
            interfaces.append(make(mac, f"{MACS}{written}/", leaves))
        except MetadataError as error:
            problems.append(Problem(mac, str(error)))
    if not seen:
        raise MetadataError("invalid", f"{MACS}: names no interface; every instance has one")
    return Instance(name, tuple(interfaces), tuple(problems), system={"public-keys": []})


def words(where: str, leaves: Leaves, key: str) -> list[Node]:
    """The values of a leaf that holds one, or several: a line each, or ["a", "b"], or [a, b]."""
    text = leaves.get(key, "").strip()
    if text.startswith("[") != text.endswith("]"):
        raise invalid(where + key, text, "a whole list")
    parts = re.split(r"[\s,]+", text.strip("[]"))
    return [Node(part.strip('"'), where + key) for part in parts if part.strip('"')]
