"""The event loop: timers, kernel events, the control socket, signals, the watchdog. It never waits for anything else.

Passes run one after the other. The metadata is read in one thread, and the rest of a pass runs in another, so a slow
metadata server or netagent delays nothing here. The commands `plan` and `credentials` ask the metadata server over
connections and in threads of their own, so they wait for no other read.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cloud_network.fetcher import config as configuration
from cloud_network.fetcher import schedule, service
from cloud_network.fetcher.apply import is_listening
from cloud_network.fetcher.config import Config, Purge
from cloud_network.fetcher.control import Control, FlushAnswer, flush_answer
from cloud_network.fetcher.metadata.base import Provider, WatchingProvider
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.reading import Reading, read_metadata
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.networkd import Networkd
from cloud_network.fetcher.reconciler import Reconciler
from cloud_network.fetcher.reporting import PassReport, PlanAnswer, Reporter
from cloud_network.fetcher.schedule import Backoff, ReadResult, Schedule
from cloud_network.fetcher.service import Notifier
from cloud_network.fetcher.status import RENEWAL_S

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class PassHungError(Exception):
    """A pass did not end in time. Only a new process can continue."""


class Worker:
    """A thread that runs functions one after the other."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, function: Callable[[], Result]) -> Result:
        """Run `function` in the thread. Raises PassHungError if it does not end within PASS_DEADLINE_S."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs.put((function, future))
        try:
            return await asyncio.wait_for(asyncio.shield(future), schedule.PASS_DEADLINE_S)
        except TimeoutError:
            raise PassHungError(f"a pass did not end within {schedule.PASS_DEADLINE_S:.0f} s") from None

    def _run(self) -> None:
        while True:
            function, future = self._jobs.get()
            loop = future.get_loop()
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001  # raised again in the coroutine that waits
                report: Callable[[], None] = partial(_set, future, error=error)
            else:
                report = partial(_set, future, result)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(report)


def _set(future: asyncio.Future[Any], result: object = None, error: BaseException | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class Daemon:
    """Waits for the next event or deadline, and runs passes."""

    def __init__(
        self,
        config: Config,
        provider: Provider,
        reconciler: Reconciler,
        reporter: Reporter,
        notifier: Notifier,
        config_path: Path,
    ) -> None:
        self._config, self._provider, self._config_path = config, provider, config_path
        self._reconciler, self._reporter, self._notifier = reconciler, reporter, notifier
        self._schedule = Schedule(config)
        self._reads, self._worker = Worker("metadata"), Worker("pass")
        self._plan_reads, self._credential_reads = Worker("plan"), Worker("credentials")
        self._pass_lock = asyncio.Lock()
        self._wake, self._reload = asyncio.Event(), asyncio.Event()
        self._stopping = False
        self._kernel_changed = True  # since the last comparison
        self._events = 0  # number of the kernel's events
        self._networkd = Networkd()
        self._netagent_due = time.monotonic() + schedule.NETAGENT_START_S

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. The network stays as it is unless Purge= is set."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        control = Control(
            {
                "refresh": self._refresh_command,
                "retry": self._retry_command,
                "plan": self._plan_command,
                "flush": self._flush,
                "credentials": self._credentials_command,
            }
        )
        if isinstance(self._provider, WatchingProvider):
            changed = partial(loop.call_soon_threadsafe, self._on_metadata_change)
            threading.Thread(target=watch_metadata, args=(self._provider, changed), name="watch", daemon=True).start()
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(each)
                for each in (self._listen(), control.serve(), self._keep_alive(), self._reloads())
            ]
            self._notifier.ready()  # the daemon runs; cloud-network-wait-online.service waits for the network
            await self._passes()
            for task in background:
                task.cancel()
        self._notifier.stopping()
        await self._purge()
        control.remove()

    # Events

    def _stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def _on_reload(self) -> None:
        self._reload.set()

    def _on_metadata_change(self) -> None:
        self._schedule.on_metadata_change()
        self._wake.set()

    async def _listen(self) -> None:
        """Record the kernel's events. A loss of events counts as an event."""
        while True:
            try:
                async for _ in kernel.events():
                    self._on_kernel_event()
            except Exception as error:  # noqa: BLE001  # after any error of pyroute2, the kernel is read again
                logger.debug("kernel events: %s", error)
            self._on_kernel_event()
            await asyncio.sleep(schedule.EVENTS_RETRY_S)

    def _on_kernel_event(self) -> None:
        self._kernel_changed = True
        self._events += 1
        self._schedule.on_kernel_event()
        self._wake.set()

    async def _keep_alive(self) -> None:
        """Send watchdog pings and renew status.json: both prove that this loop runs."""
        renewed_at = -math.inf
        while True:
            self._notifier.alive()
            if time.monotonic() >= renewed_at + RENEWAL_S / 2:
                renewed_at = time.monotonic()
                await _attempt(self._renew)
            await asyncio.sleep(min(self._notifier.period, RENEWAL_S / 2))

    async def _renew(self) -> None:
        listening = is_listening()
        was_listening = self._reporter.status["netagent"]["listening"]
        if listening and was_listening is False:
            config = self._load_configuration()
            if config is not None and config != self._config:
                self._on_reload()  # netagent has started with the new file
            self._on_kernel_event()  # netagent is back: compare, and repair the differences
        if listening or time.monotonic() >= self._netagent_due:
            if not listening and was_listening is not False:
                self._load_configuration()
            self._reporter.record_netagent(listening)
        self._reporter.renew()

    def _load_configuration(self) -> Config | None:
        """Return the configuration of the file; None if it is invalid, which is reported: netagent cannot start."""
        try:
            config = configuration.load(self._config_path)
        except configuration.ConfigError as error:
            self._reporter.record_configuration(str(error))
            return None
        self._reporter.record_configuration(None)
        return config

    # Passes

    async def _passes(self) -> None:
        while not self._stopping:
            now = time.monotonic()
            if now >= self._schedule.refresh_due:
                await self._unless_stopped(self._refresh)
            elif now >= self._schedule.compare_due:
                await self._unless_stopped(self._compare)
            else:
                wait = min(self._schedule.due - now, schedule.LONGEST_WAIT_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)
                self._wake.clear()

    async def _unless_stopped(self, step: Callable[[], Awaitable[object]]) -> None:
        """Run a pass. After SIGTERM, wait only a short time for its end."""
        running = asyncio.ensure_future(_attempt(step))
        while not running.done() and not self._stopping:
            stop = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            self._wake.clear()
        await asyncio.wait({running}, timeout=schedule.STOP_S)
        if running.done():
            running.result()

    async def _refresh(self) -> PassReport:
        """Read the metadata and act on the result."""
        async with self._pass_lock:
            await _attempt(self._warn_of_networkd)
            self._schedule.read_begins()
            self._reporter.read_begins()
            if self._schedule.is_first_read:
                self._notifier.status(f"reading the metadata at {self._provider.client.endpoint}")
            events, seen_at = self._events, time.monotonic()
            seen = await self._worker.run(self._reconciler.look)
            reading = await self._read_and_report_drift()
            if self._events > events or time.monotonic() > seen_at + schedule.LOOK_VALID_S:
                seen = None
            changed = reading.error is None and self._take_kernel_changed()
            if reading.error is None:
                self._schedule.compare_begins(on_event=False)
            pass_ = self._worker.run(partial(self._reconciler.refresh, reading, kernel_changed=changed, seen=seen))
            report = await self._report_slow_pass(pass_)
            self._schedule.read_ended(read_result(reading, report))
            if changed and report.comparison is None:
                self._on_kernel_event()  # nothing was compared, so the kernel's events are still pending
            self._record(report)
            return report

    async def _read(self) -> Reading:
        return await self._reads.run(partial(read_metadata, self._provider, schedule.READ_DEADLINE_S))

    async def _read_and_report_drift(self) -> Reading:
        """Read the metadata. Meanwhile, report a slow server, and changes in the kernel.

        They are repaired after the read. No repair could be confirmed before: it needs an answer of the server.
        """
        reading, compare_at = asyncio.ensure_future(self._read()), time.monotonic() + schedule.SLOW_READ_S
        async for _ in self._while_running(reading):
            if self._kernel_changed and time.monotonic() > compare_at:
                compare_at = time.monotonic() + schedule.SLOW_READ_S
                compare = partial(self._reconciler.compare, kernel_changed=False, may_change=False)
                self._reporter.record(await self._worker.run(compare))
        return reading.result()

    async def _compare(self) -> None:
        async with self._pass_lock:
            self._schedule.compare_begins(on_event=True)
            changed = self._take_kernel_changed()
            pass_ = self._worker.run(partial(self._reconciler.compare, kernel_changed=changed))
            self._record(await self._report_slow_pass(pass_))

    async def _while_running(self, running: asyncio.Future[Any]) -> AsyncIterator[None]:
        """Yield every PASS_POLL_S until it has ended. Report a metadata server that is slow to answer."""
        while not (await asyncio.wait({running}, timeout=schedule.PASS_POLL_S))[0]:
            if self._provider.client.slowest_answer > schedule.SLOW_ANSWER_S:
                self._reporter.record_slow_server()
            yield

    async def _report_slow_pass(self, pass_: Awaitable[PassReport]) -> PassReport:
        """Await a pass. Meanwhile, report a change that takes long."""
        running, began = asyncio.ensure_future(pass_), time.monotonic()
        async for _ in self._while_running(running):
            if time.monotonic() > began + schedule.SLOW_CHANGE_S:
                self._reporter.record_slow_change()
        return running.result()

    def _take_kernel_changed(self) -> bool:
        changed, self._kernel_changed = self._kernel_changed, False
        return changed

    def _record(self, report: PassReport) -> None:
        """Report a pass and schedule the next one."""
        self._reporter.record(report)
        if report.reading is None or report.reading.error is None:
            self._schedule.compare_ended(report.retry_at if report.kernel_error is None else -math.inf)
        if report.read_first:
            self._schedule.read_before_change()
        if report.comparison is not None:
            snapshot = report.comparison.snapshot
            self._schedule.read_for_links(snapshot.metadata, snapshot.actual)
        if report.awaiting_removal:
            self._schedule.read_within(min(report.awaiting_removal.values()))
        self._notifier.status(self._reporter.summary(self._provider.client.endpoint))
        self._wake.set()  # a command or a reload may have changed the deadlines

    async def _warn_of_networkd(self) -> None:
        self._networkd.warn()

    # Commands

    async def _refresh_command(self) -> dict[str, Any]:
        """Read the metadata and act on it now, including the second read that a removal needs."""
        self._schedule.on_request()
        await self._worker.run(self._reconciler.resume)
        report = await self._refresh()
        if report.needs_second_read:
            await self._refresh()
        status = self._reporter.status
        error = status["last_error"]
        return {"state": status["state"]} | ({"error": f"{error['kind']}: {error['message']}"} if error else {})

    async def _retry_command(self) -> dict[str, Any]:
        """Refresh, and try again what was refused or rolled back."""
        await self._worker.run(self._reconciler.retry)
        return await self._refresh_command()

    async def _plan_command(self) -> PlanAnswer:
        """Return the changes that a refresh would make. Waits for no other read, only for a change in progress."""
        reading = await self._plan_reads.run(partial(read_for_plan, self._provider.clone()))
        return await self._worker.run(partial(self._reconciler.planned_changes, reading))

    async def _credentials_command(self) -> dict[str, Any]:
        return await self._credential_reads.run(partial(read_credentials, self._provider.clone()))

    async def _flush(self) -> FlushAnswer:
        """Flush without the lock: a slow read must not delay it. Passes wait, and add nothing afterwards."""
        outcome, report = await self._worker.run(self._reconciler.flush)
        self._record(report)
        return flush_answer(outcome)

    async def _reloads(self) -> None:
        """Reload after each SIGHUP."""
        while True:
            await self._reload.wait()
            self._reload.clear()
            await self._read_configuration()

    async def _read_configuration(self) -> None:
        """Read the configuration again. The reload ends when it has been applied or rejected."""
        reloading = self._notifier.reloading()
        config = self._load_configuration()
        if config is not None:
            service.set_up_logging(config.log_level, config.log_format)
            logger.info("configuration read again from %s", self._config_path)
            configure(config, self._provider)
            self._config = config
            await self._worker.run(partial(self._reconciler.reconfigure, config))
            self._reporter.reconfigure(config)
            self._schedule.on_configuration(config)
        await _attempt(self._refresh)
        if reloading:
            self._notifier.ready()

    async def _purge(self) -> None:
        if self._config.purge is Purge.ON_STOP:
            answer = await _attempt(self._flush)
            if answer is not None:
                logger.info("Purge: removed %d addresses, routes and rules (%s)", answer["removed"], answer["request"])


def read_for_plan(provider: Provider) -> Reading:
    """Read the metadata for `plan`. It is read twice if it changed during the read."""
    deadline = time.monotonic() + schedule.COMMAND_READ_S
    with closing(provider.client):
        reading = read_metadata(provider, schedule.COMMAND_READ_S)
        if reading.error is not None and reading.error.kind == "changed":
            reading = read_metadata(provider, deadline - time.monotonic())
    return reading


def read_credentials(provider: Provider) -> dict[str, Any]:
    """Read the credentials of the instance. Raises MetadataError."""
    with closing(provider.client), provider.client.until(time.monotonic() + schedule.COMMAND_READ_S):
        return provider.credentials()


def configure(config: Config, provider: Provider) -> None:
    """Pass the configuration to the metadata client."""
    provider.client.kinds = config.allow_kinds
    for notice in config.notices:
        logger.warning("%s", notice)


async def _attempt(step: Callable[[], Awaitable[Result]]) -> Result | None:
    """Run a step. Log every error and continue; only a hung pass ends the daemon."""
    try:
        return await step()
    except PassHungError:
        raise
    except Exception:
        logger.exception("pass: unexpected error; retrying later")
        return None


def read_result(reading: Reading, report: PassReport) -> ReadResult:
    """Return what a read and its pass mean for the time of the next read."""
    error = reading.error
    if error is not None:
        return ReadResult(
            failed=True, unanswered=error.kind in ("unreachable", "timeout"), retry_after=error.retry_after
        )
    is_understood = reading.instance is not None and not reading.instance.problems
    complete = is_understood and report.kernel_error is None  # else the answer was not used: read again soon
    return ReadResult(complete=complete, unread_facts=reading.unread_facts, needs_second_read=report.needs_second_read)


def _call(changed: Callable[[], object]) -> bool:
    """Report a change to the loop. Return False if the loop has ended."""
    try:
        changed()
    except RuntimeError:
        return False
    return True


def watch_metadata(provider: WatchingProvider, changed: Callable[[], object]) -> None:
    """Wait for changes of the metadata in a separate thread, and report each."""
    backoff = Backoff(schedule.WATCH_FIRST_S, schedule.WATCH_LONGEST_S)
    while True:
        began, delay = time.monotonic(), 0.0
        try:
            if provider.wait_for_change() and not _call(changed):
                return
            if time.monotonic() > began + schedule.WATCH_CALM_S:
                backoff.reset()
            delay = backoff.next_delay(schedule.WATCH_BUSIEST_S)
        except MetadataError as error:
            logger.debug("waiting for a metadata change: %s; the refresh timer continues", error)
            delay = max(backoff.next_delay(), min(error.retry_after, schedule.WATCH_LONGEST_S))
        except Exception:
            logger.exception("waiting for a metadata change: unexpected error; retrying later")
            delay = backoff.next_delay()
        time.sleep(delay)
