"""What the providers share: the Provider itself, and one that reads JSON documents (`tree` has one that reads a tree).

A provider is used by one thread at a time, except for `wait_for_change`, which has a connection of its own and runs in
another thread beside the reads.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

from cloud_network.fetcher.metadata.document import Node, parse_json
from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance, MetadataError, Problem, bounded

logger = logging.getLogger(__name__)

LOOK_S = 2.0  # seconds to wait for the next bytes when only asking whether the server answers
BUSY = (429, 503)  # statuses of a server that is there, and reachable, and asks to be left alone for now


class Provider(ABC):
    """One cloud: reads its metadata, decides nothing."""

    name: ClassVar[str]
    endpoints: ClassVar[
        tuple[str, ...]
    ]  # addresses of the metadata server; the second serves if the first is not there

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client(*self.endpoints)
        self.pending_facts = False  # facts that are only shown are still to be read by the next fetches

    def fetch(self, deadline: float = math.inf) -> Instance:
        """Read the metadata once, until `deadline` (of time.monotonic) at the latest.

        Returns what was understood, within the bounds of `model`; `problems` names the rest. Raises MetadataError if
        the server did not answer in time, or the answer is not this cloud's document.
        """
        self.client.unbounded = ""
        with self.client.until(deadline):
            found = bounded(self.read())
        if not self.client.unbounded:
            return found
        text = f"{self.client.unbounded}: the answer has no length and may have been cut off"
        return replace(found, missing=(*found.missing, Problem("", text)))

    @abstractmethod
    def read(self) -> Instance:
        """Return what the metadata say now (called by `fetch`)."""

    def answers(self) -> bool:
        """Return True if the metadata server can be reached: one cheap request, at most twice.

        Twice, because a kept connection may have had a source address that is gone.
        """
        for _ in range(2):
            try:
                return self.look()
            except MetadataError:
                continue
        return False

    @abstractmethod
    def look(self) -> bool:
        """Send one request and return True if the answer is the cloud's (called by `answers`)."""

    def credentials(self) -> dict[str, Any]:
        """Return the instance's secrets by their paths; for root only, and never stored."""
        return {}

    def is_recognised(self) -> bool:
        """Return True if the server shows a sign that only this cloud's has. For hosts without firmware fields."""
        return False


@runtime_checkable
class Waiting(Protocol):
    """A provider whose cloud reports changes at once."""

    def wait_for_change(self) -> bool:
        """Block until the metadata differ from those last fetched (True), or for about a minute (False).

        For a thread of its own. Raises MetadataError as `fetch`.
        """
        ...


class JsonProvider(Provider):
    """A Provider that reads JSON documents. Facts that are only shown are read again when the network has changed."""

    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    probe: ClassVar[str]  # the path of a document that is always there

    def __init__(self, client: Client | None = None) -> None:
        super().__init__(client)
        self._network: object = None  # the document that the facts below belong to
        self._facts: dict[str, Node] = {}
        self._due: list[str] = []  # paths of facts to read

    def look(self) -> bool:
        """See Provider."""
        answer = self.request(self.probe, LOOK_S)
        return answer.status in BUSY or (answer.status == 200 and bool(answer.text(self.probe).strip()))

    def document(self, path: str) -> Node:
        """Return the JSON document at `path`."""
        return parse_json(self.text(path), path)

    def text(self, path: str) -> str:
        """Return the text at `path`. Raises MetadataError unless it is there."""
        answer = self.request(path)
        if answer.status != 200:
            raise answer.error(path)
        return answer.text(path)

    def facts(self, network: Node, *paths: str) -> dict[str, Node]:
        """Return the documents at `paths`, as they were when `network` last changed. One that failed is tried again."""
        if self._network != network.value:
            self._network, self._due = network.value, list(paths)
        for path in list(self._due):
            try:
                self._facts[path] = self.document(path)
                self._due.remove(path)
            except MetadataError as error:
                logger.debug("metadata: %s; only shown, read again at the next refresh", error)
        return self._facts

    def request(self, path: str, seconds: float | None = None) -> Response:
        """Send a GET request with the cloud's headers."""
        return self.client.request("GET", path, self.headers, seconds)
