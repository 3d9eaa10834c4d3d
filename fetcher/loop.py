"""The one loop of the fetcher: it wakes on a timer, on a change in kernel or cloud, on a command and on a signal."""

from __future__ import annotations

import argparse
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloud_network.fetcher import config as configuration
from cloud_network.fetcher import log, privileges
from cloud_network.fetcher.control import Control, remove_socket
from cloud_network.fetcher.detect import DetectionError, detect, read_dmi
from cloud_network.fetcher.events import KernelEvents
from cloud_network.fetcher.providers import Waiting
from cloud_network.fetcher.reconcile import Reconciler
from cloud_network.fetcher.state import StateDirectory
from cloud_network.fetcher.watch import Watch

logger = logging.getLogger(__name__)

RUNTIME = Path("/run/cloud-network")
_LONGEST_SLEEP = 3600.0  # seconds; a selector takes no infinity


class Loop:
    """Waits for what comes next and hands it to the reconciler."""

    def __init__(self, reconciler: Reconciler, config_path: Path) -> None:
        self._reconciler, self._config_path = reconciler, config_path
        self._events = KernelEvents()
        self._control = Control({"refresh": self._refresh_now, "credentials": reconciler.provider.credentials})
        self._wake, write = socket.socketpair()
        self._wake.setblocking(False)
        write.setblocking(False)
        self._write = write  # kept open: signals arrive through it
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the number is read from the wake-up socket
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._events.fileno(), selectors.EVENT_READ, self._on_kernel)
        self._selector.register(self._control.fileno(), selectors.EVENT_READ, self._control.serve)
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_signal)
        self._watch = Watch(reconciler.provider) if isinstance(reconciler.provider, Waiting) else None
        if self._watch is not None:
            self._selector.register(self._watch.fileno(), selectors.EVENT_READ, self._on_change)
        self._stop = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT. The network stays as it is."""
        reconciler, ready = self._reconciler, False
        while not self._stop:
            now = time.monotonic()
            if now >= reconciler.refresh_due:
                _attempt(reconciler.refresh)
                if not ready:
                    notify("READY=1")
                    ready = True
            elif now >= reconciler.compare_due:
                _attempt(reconciler.converge)
            due = min(reconciler.refresh_due, reconciler.compare_due) - time.monotonic()
            for key, _ in self._selector.select(min(max(0.0, due), _LONGEST_SLEEP)):
                _attempt(key.data)
        notify("STOPPING=1")
        remove_socket()

    def _on_kernel(self) -> None:
        if self._events.drain():
            self._reconciler.noticed()

    def _on_change(self) -> None:
        if self._watch is not None:
            self._watch.drain()
            self._reconciler.changed()

    def _on_signal(self) -> None:
        numbers = self._wake.recv(64)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop = True
        elif signal.SIGHUP in numbers:
            self._reload()

    def _reload(self) -> None:
        try:
            config = configuration.load(self._config_path)
        except configuration.ConfigError as error:
            logger.error("%s; going on with the configuration from before", error)
            return
        log.set_up(config.log_level, config.log_format)
        logger.info("configuration read again from %s", self._config_path)
        _say_not_yet(config)
        self._reconciler.reconfigure(config)

    def _refresh_now(self) -> dict[str, Any]:
        status = self._reconciler.refresh_now()
        error = status["last_error"]
        return {"state": status["state"]} | ({"error": f"{error['kind']}: {error['message']}"} if error else {})


def _say_not_yet(config: configuration.Config) -> None:
    """Keys that a later version will act upon: whoever sets one must not believe that it does something now."""
    if config.forwarded_replies is not configuration.ForwardedReplies.OFF:
        logger.warning('ForwardedReplies="%s" does nothing in this version', config.forwarded_replies.value)
    if config.purge is not configuration.Purge.NEVER:
        logger.warning('Purge="%s" does nothing in this version: the network stays', config.purge.value)


def _attempt(step: Callable[[], object]) -> None:
    """Whatever goes wrong in one step, the loop goes on; a pass has set the time of its next try before it began."""
    try:
        step()
    except Exception:
        logger.exception("unexpected; it will be tried again")


def notify(message: str) -> None:
    """sd_notify(3): tell systemd, where there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)


def main() -> None:
    """Entry point of cloud-network-fetcher."""
    parser = argparse.ArgumentParser(
        prog="cloud-network-fetcher",
        description="Reads the cloud's metadata and asks netagent to make the network agree with it.",
        epilog="Signals: SIGHUP reads the configuration again and refreshes; SIGTERM ends it, the network stays.",
    )
    parser.add_argument("--config", type=Path, default=configuration.PATH, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--check-config", action="store_true", help="say whether the file is right, and change nothing")
    arguments = parser.parse_args()
    try:
        config = configuration.load(arguments.config)
    except configuration.ConfigError as error:
        raise SystemExit(f"cloud-network-fetcher: {error}") from None
    if arguments.check_config:
        print(f"{arguments.config}: right")
        return
    privileges.become_unprivileged(RUNTIME)
    log.set_up(config.log_level, config.log_format)
    state = StateDirectory(RUNTIME)
    state.prepare()
    try:
        provider = detect(config.provider, read_dmi())
    except DetectionError as error:
        raise SystemExit(f"cloud-network-fetcher: {error}") from None
    _say_not_yet(config)
    logger.info("cloud: %s, metadata at %s", provider.name, provider.client.endpoint)
    Loop(Reconciler(config, provider, state), arguments.config).run()


if __name__ == "__main__":
    main()
