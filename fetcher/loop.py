"""The one loop of the fetcher: it wakes on a timer, on a change in kernel or cloud, on a command and on a signal."""

from __future__ import annotations

import gc
import logging
import math
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cloud_network.fetcher import config as configuration
from cloud_network.fetcher import flush, service
from cloud_network.fetcher.control import Control, remove_socket
from cloud_network.fetcher.metadata.base import Waiting
from cloud_network.fetcher.metadata.detect import DetectionError, detect, read_firmware
from cloud_network.fetcher.network.kernel import KernelEvents
from cloud_network.fetcher.networkd import Networkd
from cloud_network.fetcher.reconcile import Reconciler
from cloud_network.fetcher.service import Notifier, api_listeners
from cloud_network.fetcher.state import AlreadyRunning, RunLock, StateDirectory, boot_id
from cloud_network.fetcher.status import RENEWAL, new_status, rfc3339
from cloud_network.fetcher.watch import Watch

logger = logging.getLogger(__name__)

RUNTIME = Path("/run/cloud-network")
USER = "cloud-network"
_LONGEST_SLEEP = 3600.0  # seconds; a selector takes no infinity


class Loop:
    """Waits for what comes next and hands it to the reconciler."""

    def __init__(self, reconciler: Reconciler, events: KernelEvents, config_path: Path, systemd: Notifier) -> None:
        self._reconciler, self._config_path, self._systemd = reconciler, config_path, systemd
        self._events = events
        self._control = Control(
            {
                "refresh": self._refresh_now,
                "plan": reconciler.plan_now,
                "flush": reconciler.flush,
                "credentials": reconciler.provider.credentials,
            }
        )
        self._wake, write = socket.socketpair()
        self._wake.setblocking(False)
        write.setblocking(False)
        self._write = write  # kept open: signals arrive through it
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the number is read from the wake-up socket
        self._selector = selectors.DefaultSelector()
        self._events_descriptor: int | None = None
        self._register_events()
        self._selector.register(self._control.fileno(), selectors.EVENT_READ, self._control.serve)
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_signal)
        self._watch = Watch(reconciler.provider) if isinstance(reconciler.provider, Waiting) else None
        if self._watch is not None:
            self._selector.register(self._watch.fileno(), selectors.EVENT_READ, self._on_change)
        self._stop = False
        self._renew_due = 0.0

    def run(self, ready_timeout: float) -> None:
        """Until SIGTERM or SIGINT. The network stays as it is, unless Purge= says otherwise.

        systemd hears that we are ready when the first pass succeeded, or after so many seconds.
        """
        reconciler, systemd, ready_at = self._reconciler, self._systemd, time.monotonic() + ready_timeout
        networkd = Networkd()
        while not self._stop:
            systemd.alive()
            now = time.monotonic()
            if now >= self._renew_due:
                self._renew_due = now + RENEWAL
                _attempt(reconciler.renew)
            if now >= reconciler.refresh_due:
                _attempt(networkd.warn)
                _attempt(reconciler.refresh)
            elif now >= reconciler.compare_due:
                _attempt(reconciler.converge)
            if ready_at < math.inf and (reconciler.succeeded or time.monotonic() >= ready_at):
                systemd.ready()
                ready_at = math.inf
            due = min(reconciler.refresh_due, reconciler.compare_due, ready_at, self._renew_due) - time.monotonic()
            self._register_events()
            for key, _ in self._selector.select(min(max(0.0, due), systemd.period, _LONGEST_SLEEP)):
                _attempt(key.data)
        systemd.stopping()
        _attempt(reconciler.stop)
        remove_socket()

    def _on_kernel(self) -> None:
        if self._events.drain():
            self._reconciler.noticed()

    def _register_events(self) -> None:
        """Register the socket of the kernel's events, again if it was replaced."""
        descriptor = self._events.fileno()
        if descriptor != self._events_descriptor:
            if self._events_descriptor is not None:
                self._selector.unregister(self._events_descriptor)
            self._selector.register(descriptor, selectors.EVENT_READ, self._on_kernel)
            self._events_descriptor = descriptor

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
        """The reload is over when the configuration has been tried, or was refused."""
        reloading = self._systemd.reloading()
        self._read_configuration()
        _attempt(self._reconciler.refresh)
        if reloading:
            self._systemd.ready()

    def _read_configuration(self) -> None:
        try:
            config = configuration.load(self._config_path)
        except configuration.ConfigError as error:
            logger.error("%s; going on with the configuration from before", error)
            return
        service.set_up_logging(config.log_level, config.log_format)
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


def _attempt(step: Callable[[], object]) -> None:
    """Whatever goes wrong in one step, the loop goes on; a pass has set the time of its next try before it began."""
    try:
        step()
    except Exception:
        logger.exception("unexpected; it will be tried again")


def _leave_reason(state: StateDirectory, run: str, error: Exception) -> None:
    """Write the reason of an exit that a restart does not help to status.json, for cnctl status."""
    failed = new_status("", run, boot_id())
    failed["state"] = "error"
    failed["last_error"] = {"at": rfc3339(), "kind": "config", "message": str(error)}
    state.write_status(failed)


def _hopeless(error: Exception) -> SystemExit:
    """To start again does not help: 78, EX_CONFIG of sysexits.h, which the unit leaves at that."""
    print(f"cloud-network-fetcher: {error}", file=sys.stderr)
    return SystemExit(78)


class _Arguments(NamedTuple):
    config: Path = configuration.PATH
    check_config: bool = False
    flush: bool = False


def _arguments(words: list[str]) -> _Arguments:
    """What the command line says. There are no words when the unit starts us: then nobody pays for argparse."""
    if not words:
        return _Arguments()
    import argparse

    parser = argparse.ArgumentParser(
        prog="cloud-network-fetcher",
        description="Reads the cloud's metadata and asks netagent to make the network agree with it.",
        epilog="Signals: SIGHUP reads the configuration again and refreshes; SIGTERM ends it: the network stays, "
        'or with Purge="on-stop" all that it put there goes. Exit status 78: the configuration is wrong, or the cloud '
        "is none that is known; to start again does not help.",
    )
    parser.add_argument("--config", type=Path, default=configuration.PATH, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--check-config", action="store_true", help="say whether the file is right, and change nothing")
    parser.add_argument(
        "--flush", action="store_true", help="as root, while it does not run: take away all that it put into the kernel"
    )
    return _Arguments(**vars(parser.parse_args(words)))


def _refuse_configuration(error: Exception) -> None:
    """Leave the reason where cnctl status finds it, if this is the only fetcher."""
    with suppress(service.PrivilegeError, AlreadyRunning, OSError):
        service.drop_privileges(USER, (RUNTIME,))
        state = StateDirectory(RUNTIME)
        state.prepare()
        _leave_reason(state, RunLock(state).run, error)


def main() -> None:
    """Entry point of cloud-network-fetcher."""
    arguments = _arguments(sys.argv[1:])
    if arguments.flush:
        flush.directly()
        return
    try:
        config = configuration.load(arguments.config)
    except configuration.ConfigError as error:
        if not arguments.check_config:
            _refuse_configuration(error)
        raise _hopeless(error) from None
    if arguments.check_config:
        print(f"{arguments.config}: right")
        if (there := api_listeners()) and str(config.listen) not in there:
            print(
                f"[Network] Listen = {config.listen} does not count: systemd listens on {', '.join(there)}. "
                "Set Listen= to that, or: systemctl edit cloud-network-api.socket",
                file=sys.stderr,
            )
        return
    try:
        service.drop_privileges(USER, (RUNTIME,))
    except service.PrivilegeError as error:
        raise SystemExit(f"cloud-network-fetcher: {error}") from None
    service.set_up_logging(config.log_level, config.log_format)
    state = StateDirectory(RUNTIME)
    state.prepare()
    try:
        lock = RunLock(state)
    except AlreadyRunning as error:
        raise SystemExit(f"cloud-network-fetcher: {error}") from None
    try:
        provider = detect(config.provider, read_firmware())
    except DetectionError as error:
        _leave_reason(state, lock.run, error)
        raise _hopeless(error) from None
    _say_not_yet(config)
    logger.info("cloud: %s, metadata at %s", provider.name, provider.client.endpoint)
    systemd = Notifier()
    gc.set_threshold(20_000)  # what a pass makes goes by its count of references: to look for more often is for nothing
    events = KernelEvents()
    reconciler = Reconciler(config, provider, state, systemd.status, events.drain, lock.run)
    reconciler.renew()  # from now on, status.json is of this run
    Loop(reconciler, events, arguments.config, systemd).run(config.ready_timeout)


if __name__ == "__main__":
    main()
