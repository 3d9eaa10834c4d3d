"""A thread that waits for the metadata to change and then wakes the loop; it does nothing else, and touches nothing.

It ends with the process: it is a daemon's daemon thread, and holds nothing that would have to be put down.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress

from cloud_network.fetcher.metadata.base import Waiting
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.patience import Patience

logger = logging.getLogger(__name__)

_FIRST, _LONGEST = 0.1, 300.0  # seconds until the next try …
_BUSIEST = 5.0  # … which metadata that change all the time make longer, too, but not by much more than this …
_CALM = 10.0  # … until nothing has happened for so long


class Watch:
    """A file descriptor that is readable when the provider has seen a change."""

    def __init__(self, provider: Waiting) -> None:
        self._provider = provider
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def fileno(self) -> int:
        """For a selector."""
        return self._read.fileno()

    def drain(self) -> None:
        """Take the word that there was a change."""
        self._read.recv(4096)

    def _run(self) -> None:
        patience = Patience(_FIRST, _LONGEST)
        while True:
            began, delay = time.monotonic(), 0.0
            try:
                if self._provider.wait_for_change():
                    with suppress(BlockingIOError):  # then the loop has plenty to read
                        self._write.send(b"\0")
                if time.monotonic() > began + _CALM:
                    patience.reset()
                delay = patience.longer(_BUSIEST)
            except MetadataError as error:
                logger.debug("waiting for a change: %s; the timer goes on", error)
                delay = max(patience.longer(), min(error.retry_after, _LONGEST))
            except Exception:
                logger.exception("unexpected; it will be tried again")
                delay = patience.longer()
            time.sleep(delay)
