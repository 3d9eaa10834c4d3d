"""One module a cloud; each reads, none decides. A module has a class that is a Provider, listed in `detect`."""

from __future__ import annotations

from typing import Any, Protocol

from cloud_network.fetcher.client import Client
from cloud_network.fetcher.model import Instance


class Provider(Protocol):
    """What a cloud's module offers."""

    name: str
    client: Client
    unread: bool  # facts that are only shown are still to be read: a pass within its allowance could not take them all

    def fetch(self) -> Instance:
        """One read of the metadata; MetadataError when it is not whole or not valid."""
        ...

    def answers(self) -> bool:
        """Whether the metadata server can (still) be reached: one cheap request."""
        ...

    def credentials(self) -> dict[str, Any]:
        """The secrets that the metadata server has for this instance; for root only, and never kept."""
        ...
