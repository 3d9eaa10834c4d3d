"""A booted Debian with cloud-network's package in it, joined to a lab's cloud: what both forms of it have in common."""

from __future__ import annotations

import json
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.lab.lab import Lab

from .image import TOOLS

SERVICES = ("netagent", "fetcher", "api")
CONFIG = "/etc/cloud-network/cloud-network.toml"

T = TypeVar("T")


class Guest(ABC):
    """`with Machine(…) as guest:`; its files go with it."""

    filters: bool
    """Whether IPAddressDeny= is enforced."""
    patience = 1.0
    """Factor of every time that is waited for at most: an emulated processor is slow on a busy host."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def __enter__(self) -> Self:
        try:
            self._boot()
            self.wait_for(self._up, 120, "the boot to end")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _boot(self) -> None:
        """Until commands can be run."""

    @abstractmethod
    def close(self) -> None:
        """However far it came."""

    @abstractmethod
    def command(self, argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
        """Its exit status, and what it said on both of its outputs."""

    def _up(self) -> bool:
        """Not is-system-running: that waits for the fetcher, which waits for the metadata server."""
        return self.run("systemctl", "is-active", "multi-user.target", check=False).strip() == "active"

    # — inside

    def run(
        self, *argv: str, user: str | None = None, check: bool = True, stdin: str = "", timeout: float = 120
    ) -> str:
        """What a command inside says."""
        become = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"] if user else []
        status, output = self.command([*become, *argv], stdin, timeout)
        if check and status:
            raise AssertionError(f"{' '.join(argv)} ended with {status}:\n{output}")
        return output

    def show(self, unit: str, key: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).strip()

    def main_pid(self, service: str) -> int:
        return int(self.show(f"cloud-network-{service}.service", "MainPID"))

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--boot", "--unit=cloud-network*", check=False)

    @contextmanager
    def configured(self, text: str) -> Iterator[None]:
        """With this configuration, which is read again; dpkg finds the file as it was."""
        before = self.run("cat", CONFIG)
        try:
            self._configure(text)
            yield
        finally:
            self._configure(before)

    def _configure(self, text: str) -> None:
        self.run("tee", CONFIG, stdin=text)
        self.run("systemctl", "try-reload-or-restart", "cloud-network-netagent", "cloud-network-fetcher")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of the REST server's answer, asked from inside."""
        program = (
            "import sys, urllib.request, urllib.error\n"
            "try:\n    answer = urllib.request.urlopen(sys.argv[1], timeout=30)\n"
            "except urllib.error.HTTPError as error:\n    answer = error\n"
            "print(answer.status, answer.read().decode())"
        )
        status, _, body = self.run("python3", "-c", program, f"http://127.0.0.1:5209{path}").partition(" ")
        return int(status), body

    def within(self, service: str, program: str, *argv: str) -> Any:
        """What a Python program prints as JSON that is run in a service's sandbox: its unit with another ExecStart."""
        name, script = f"probe-{service}.service", f"{TOOLS}/within-{service}.py"
        unit = self.run("cat", self.show(f"cloud-network-{service}.service", "FragmentPath"))
        left_out = ("Type=", "ExecStart=", "Restart", "ExecReload", "Watchdog", "Requires=", "Wants=", "Also=")
        kept = "\n".join(line for line in unit.splitlines() if not line.startswith(left_out))
        start = f"Type=oneshot\nExecStart=/usr/bin/python3 -IS {script} {shlex.join(argv)}\n"
        self.run("tee", script, stdin=program)
        self.run("tee", f"/run/systemd/system/{name}", stdin=kept.replace("[Service]", f"[Service]\n{start}"))
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", name)
        said = self.run("journalctl", "-o", "cat", "-t", "python3", "-u", name).splitlines()
        assert said, self.run("journalctl", "-u", name)
        return json.loads(said[-1])

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") == "active"

    def wait_for(self, predicate: Callable[[], T], timeout: float = 60, message: str = "") -> T:
        """The first true value of `predicate`."""
        timeout *= self.patience
        end = time.monotonic() + timeout
        while not (value := predicate()):
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout:g} s for {message or predicate}\n{self.journal()[-6000:]}")
            time.sleep(0.1)
        return value

    def memory(self, services: Sequence[str] = SERVICES) -> int:
        """PSS of all processes of these services, in bytes."""
        groups = [self.show(f"cloud-network-{service}.service", "ControlGroup") for service in services]
        program = " ".join(f"/sys/fs/cgroup{group}/cgroup.procs" for group in groups if group)
        pids = self.run("sh", "-c", f"cat {program or '/dev/null'}", check=False).split()
        files = [f"/proc/{pid}/smaps_rollup" for pid in pids if pid.isdecimal()]
        rollups = self.run("cat", *files, check=False) if files else ""
        return sum(int(line.split()[1]) << 10 for line in rollups.splitlines() if line.startswith("Pss:"))
