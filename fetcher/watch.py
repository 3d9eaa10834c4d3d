"""A thread that waits for the metadata to change and then wakes the loop.

It is a daemon thread, so it ends with the process; it holds nothing that would need to be released.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress

from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers import Waiting
from cloud_network.fetcher.schedule import Backoff

logger = logging.getLogger(__name__)

_INITIAL, _MAXIMUM = 0.1, 300.0  # seconds of backoff after a failure …
_MAXIMUM_BUSY = 5.0  # … and at most after a change, for metadata that change all the time
_QUIET = 10.0  # seconds without a change that reset the backoff


class Watch:
    """A file descriptor that becomes readable when the provider sees a change."""

    def __init__(self, provider: Waiting) -> None:
        self._provider = provider
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def fileno(self) -> int:
        """Return the descriptor for a selector."""
        return self._read.fileno()

    def drain(self) -> None:
        """Read the notifications, so that the descriptor is no longer readable."""
        self._read.recv(4096)

    def _run(self) -> None:
        backoff = Backoff(_INITIAL, _MAXIMUM)
        while True:
            began, delay = time.monotonic(), 0.0
            try:
                if self._provider.wait():
                    with suppress(BlockingIOError):  # the loop has unread notifications already
                        self._write.send(b"\0")
                if time.monotonic() > began + _QUIET:
                    backoff.reset()
                delay = backoff.next_delay(_MAXIMUM_BUSY)
            except MetadataError as error:
                logger.debug("waiting for a change: %s; the refresh timer still runs", error)
                delay = max(backoff.next_delay(), min(error.retry_after, _MAXIMUM))
            except Exception:
                logger.exception("waiting for a change failed unexpectedly; retrying")
                delay = backoff.next_delay()
            time.sleep(delay)
