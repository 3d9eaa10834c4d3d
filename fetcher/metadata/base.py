"""Base classes of the providers: Provider, and one for clouds with JSON documents (`tree` has one for trees of texts).

A provider is used by one thread at a time; another thread uses a `clone`. Only `wait_for_change` runs in parallel with
reads: it has its own connection.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from cloud_network.fetcher.metadata.document import Node, parse_json
from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance, MetadataError, Problem, bounded

logger = logging.getLogger(__name__)

REACHABLE_TIMEOUT_S = 10.0  # seconds, for `Provider.is_reachable` over all links and endpoints
BUSY = (429, 503)  # statuses of a reachable server that asks the client to wait


class Provider(ABC):
    """One cloud: reads its metadata, makes no decisions."""

    name: ClassVar[str]
    endpoints: ClassVar[
        tuple[str, ...]
    ]  # addresses of the metadata server; the second is used if the first does not answer

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client(*self.endpoints)
        self.pending_facts = False  # facts for display are still to be read by the next fetches

    def clone(self) -> Self:
        """Return a provider of the same cloud with its own connection, for another thread."""
        return type(self)(self.client.clone())

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
        text = f"{self.client.unbounded}: the answer has no length and may be incomplete"
        return replace(found, missing=(*found.missing, Problem("", text)))

    @abstractmethod
    def read(self) -> Instance:
        """Return the current metadata (called by `fetch`)."""

    def is_reachable(self) -> bool:
        """Return True if the server can be reached within REACHABLE_TIMEOUT_S: one cheap request, at most twice.

        Twice, because a kept connection may have a source address that is no longer on this host, and because a server
        may give one wrong answer.
        """
        with self.client.until(time.monotonic() + REACHABLE_TIMEOUT_S):
            for _ in range(2):
                with suppress(MetadataError):
                    if self.send_probe():
                        return True
        return False

    @abstractmethod
    def send_probe(self) -> bool:
        """Send one request and return True if the answer is from this cloud (called by `is_reachable`)."""

    def credentials(self) -> dict[str, Any]:
        """Return the instance's secrets by path. For root only, never stored."""
        return {}

    def is_recognised(self) -> bool:
        """Return True if the server has a characteristic unique to this cloud. For hosts without firmware fields."""
        return False


@runtime_checkable
class WatchingProvider(Protocol):
    """A provider whose cloud reports changes immediately."""

    def wait_for_change(self) -> bool:
        """Block until the metadata differs from the last fetch (True), or for about a minute (False).

        Called in a separate thread. Raises MetadataError as `fetch` does.
        """
        ...


class JsonProvider(Provider):
    """A Provider that reads JSON documents. Facts for display are read again when the network has changed."""

    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    probe_path: ClassVar[str]  # the path of a document that always exists

    def __init__(self, client: Client | None = None) -> None:
        super().__init__(client)
        self._network: object = None  # the document for which the facts below were read
        self._facts: dict[str, Node] = {}
        self._due: list[str] = []  # paths of facts to read

    def send_probe(self) -> bool:
        """See Provider."""
        answer = self.request(self.probe_path)
        return answer.status in BUSY or (answer.status == 200 and bool(answer.text(self.probe_path).strip()))

    def document(self, path: str) -> Node:
        """Return the JSON document at `path`."""
        return parse_json(self.text(path), path)

    def text(self, path: str) -> str:
        """Return the text at `path`. Raises MetadataError if it is missing."""
        answer = self.request(path)
        if answer.status != 200:
            raise answer.error(path)
        return answer.text(path)

    def facts(self, network: Node, *paths: str) -> dict[str, Node]:
        """Return the documents at `paths`, read when `network` last changed. A failed one is tried again."""
        if self._network != network.value:
            self._network, self._due = network.value, list(paths)
        for path in list(self._due):
            try:
                self._facts[path] = self.document(path)
                self._due.remove(path)
            except MetadataError as error:
                logger.debug("metadata: %s; for display only, retrying at the next refresh", error)
        return self._facts

    def request(self, path: str) -> Response:
        """Send a GET request with the cloud's headers."""
        return self.client.request("GET", path, self.headers)
