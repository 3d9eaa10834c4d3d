"""What the providers share whose cloud serves JSON documents over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers.document import Node, parse

logger = logging.getLogger(__name__)

_READ = 5.0  # seconds for an answer …
_LOOK = 2.0  # … and for the look whether the server still gives one


class JsonProvider:
    """A Provider but for fetch(). The network is read every time; other facts again when the network has changed."""

    name: ClassVar[str] = ""
    endpoint: ClassVar[str] = ""
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    probe: ClassVar[str] = ""  # the path of a document that is always there

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client(self.endpoint)
        self.unread = False
        self._network: object = None  # the document that the facts below belong to
        self._facts: dict[str, Node] = {}
        self._due: list[str] = []  # paths that are (again) to be read

    def fetch(self) -> Instance:
        """See Provider."""
        raise NotImplementedError

    def answers(self) -> bool:
        """See Provider. Asked twice: the kept connection may have had an address for its source that is gone."""
        for _ in range(2):
            try:
                answer = self._ask(self.probe, _LOOK)
                if answer.status in (429, 503):  # one that is too busy is still there, and the way to it too
                    return True
                return answer.status == 200 and bool(answer.text(self.probe).strip())
            except MetadataError:
                continue
        return False

    def credentials(self) -> dict[str, Any]:
        """See Provider. Most of these clouds have none for the instance."""
        return {}

    def read(self, path: str) -> Node:
        """The JSON document at `path`."""
        return parse(self.text(path), path)

    def text(self, path: str) -> str:
        """The document at `path`; MetadataError unless it is there."""
        answer = self._ask(path, _READ)
        if answer.status != 200:
            raise answer.error(path)
        return answer.text(path)

    def facts(self, network: Node, *paths: str) -> dict[str, Node]:
        """The documents at `paths`, which are only shown: as they were when `network` last changed.

        One that cannot be read costs nothing but time: it is tried again with the next refresh.
        """
        if self._network != network.value:
            self._network, self._due = network.value, list(paths)
        for path in list(self._due):
            try:
                self._facts[path] = self.read(path)
                self._due.remove(path)
            except MetadataError as error:
                logger.debug("metadata: %s; it is only shown, and read again with the next refresh", error)
        return self._facts

    def _ask(self, path: str, seconds: float) -> Response:
        return self.client.request("GET", path, self.headers, seconds)
