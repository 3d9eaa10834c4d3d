"""The daemons in the instance, started as root in the foreground, as on a command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from .namespaces import LAB_RUN, TIMEOUT_S, LabError, Namespace

USERS = MappingProxyType({"cloud-network-netagent": 52091, "cloud-network": 52092, "cloud-network-api": 52093})
"""Accounts of the instance, outside the ranges that Debian's policy (9.2.2) gives to packages, people or systemd."""

SCRIPTS = Path(sys.executable).parent
"""Console scripts are next to the interpreter. Not resolved: in a virtual environment it is a link."""


ISOLATED = {"netagent": "cloud_network.netagent"}
"""Modules that root may start only in an isolated interpreter, as the installed programs do."""

ENVIRONMENT = {"fetcher": {"MALLOC_TRIM_THRESHOLD_": "131072"}}
"""Variables that the units set and that the lab does not provide otherwise."""


def _program(name: str) -> list[str]:
    if name in ISOLATED:
        return [sys.executable, "-I", "-m", ISOLATED[name]]
    return [str(SCRIPTS / f"cloud-network-{name}")]


class Daemons:
    def __init__(self, instance: Namespace) -> None:
        self._instance = instance
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._logs = instance.path(LAB_RUN / "log")
        self._logs.mkdir(mode=0o700)

    def start(self, name: str, *argv: str, env: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start the console script `cloud-network-NAME`. Its output is appended to the log of that name."""
        if self.running(name):
            raise LabError(f"{name} is running already")
        with (self._logs / name).open("ab") as log:
            environment = {**ENVIRONMENT.get(name, {}), **env}
            self._running[name] = self._instance.popen(
                [*_program(name), *argv], stdout=log, stderr=log, env=environment
            )

    def running(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def pid(self, name: str) -> int:
        """Return the pid of the daemon itself: `_running` has nsenter, which waits for it."""
        entered = self._running[name].pid
        children = Path(f"/proc/{entered}/task/{entered}/children")
        while self.running(name):
            if found := children.read_text().split():
                return int(found[0])
            time.sleep(0.001)
        raise LabError(f"{name} isn't running\n{self.report(name)}")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal; after SIGKILL, return when the process has ended."""
        os.kill(self.pid(name), number)
        if number == signal.SIGKILL:
            self._running[name].wait(TIMEOUT_S)

    def resume(self, name: str) -> None:
        """Continue after SIGSTOP: nsenter stops with its child, and wakes it when it is woken (nsenter(1), --pid)."""
        self._running[name].send_signal(signal.SIGCONT)

    def stop(self, name: str) -> int:
        """Send SIGTERM, and return the exit status. A daemon that does not end is killed, which is an error."""
        os.kill(self.pid(name), signal.SIGTERM)
        try:
            return self._running[name].wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill(name)
            raise LabError(f"{name} did not end within {TIMEOUT_S:.0f} s of SIGTERM\n{self.report(name)}") from None

    def log(self, name: str) -> str:
        file = self._logs / name
        return file.read_text(errors="replace") if file.exists() else ""

    def report(self, *names: str, lines: int = 40) -> str:
        """Return the last lines of each log, for the message of a failure."""
        parts = []
        for name in names or self._running:
            state = "running" if self.running(name) else f"ended with {self._running[name].returncode}"
            tail = self.log(name).splitlines()[-lines:]
            parts.append("\n".join([f"--- {name} ({state})", *tail]))
        return "\n".join(parts)

    def close(self) -> None:
        """Collect nsenter's processes; the holder ends the daemons."""
        for process in self._running.values():
            process.wait(TIMEOUT_S)
