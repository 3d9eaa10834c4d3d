"""The documents of tests/lab/metadata/documents, served by the lab's metadata servers and read by the providers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloud_network.fetcher.metadata import detect
from cloud_network.fetcher.metadata.base import Provider
from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import Instance

from tests.lab.metadata import frame
from tests.lab.metadata.providers import PROVIDERS

DOCUMENTS = Path(__file__).parents[2] / "lab/metadata/documents"
CLOUDS = tuple(PROVIDERS)


class DirectClient(Client):
    """A client that calls an emulated cloud without a network, for tests that read thousands of documents."""

    def __init__(self, cloud: frame.Provider) -> None:
        super().__init__("127.0.0.1")
        self.cloud = cloud

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, seconds: float | None = None
    ) -> Response:
        self.requests += 1
        bare, _, query = path.partition("?")
        given = {name.lower(): value for name, value in (headers or {}).items()}
        answer = self.cloud.answer(frame.Request(method, bare, given, query))
        assert isinstance(answer, frame.Response)
        return Response(answer.status, answer.body, {name.lower(): value for name, value in answer.headers.items()})


def names(cloud: str) -> list[str]:
    """Return the names of the cloud's documents."""
    found = sorted(path.stem for path in (DOCUMENTS / cloud).glob("*.json"))
    assert found, f"{DOCUMENTS / cloud} has no document"
    return found


def document(cloud: str, name: str) -> Any:
    """Return a copy of a document, which the caller may change."""
    return json.loads((DOCUMENTS / cloud / f"{name}.json").read_text())


def provider_class(cloud: str) -> type[Provider]:
    return type(detect.load(cloud))


def provider_of(cloud: str, served: Any) -> Provider:
    """Return a provider whose metadata server serves this document."""
    emulated = PROVIDERS[cloud]()
    emulated.record(copy.deepcopy(served))
    return provider_class(cloud)(DirectClient(emulated))


def settled(provider: Provider) -> Instance:
    """Return the instance after enough reads to have all facts."""
    found = provider.fetch()
    for _ in range(40):
        if not provider.pending_facts:
            break
        found = provider.fetch()
    return found


def read(cloud: str, served: Any) -> Instance:
    """Return the provider's instance for a document, or for the document with this name."""
    named = isinstance(served, str)
    return provider_of(cloud, document(cloud, served) if named else served).fetch()
