"""One module a cloud; each reads, none decides. `detect` finds a module by its name, and in it

- NAME, the cloud's name as Provider= has it, and ENDPOINT, the address of its metadata server; `firmware` has a
  function of that name;
- `probe()`, only where the firmware is not enough: whether the cloud's documented sign is there;
- the class named like the cloud (`Aws`), a Provider.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance


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


@runtime_checkable
class Waiting(Protocol):
    """What a Provider offers besides, when its cloud says at once that something has changed."""

    def wait(self) -> bool:
        """Block until the metadata differ from what `fetch` last read (True), or for about a minute (False).

        Called in a thread of its own: it has a connection of its own. MetadataError as from `fetch`.
        """
        ...
