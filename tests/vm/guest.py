"""A booted Debian with cloud-network's package, connected to a lab's cloud: common code of virtual machine and
container.
"""

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
    """`with VirtualMachine(…) as guest:`; its files are removed at the end."""

    filters: bool
    """True if IPAddressDeny= is enforced."""
    timeout_factor = 1.0
    """Factor of every timeout: an emulated processor is slow on a busy host."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def __enter__(self) -> Self:
        try:
            self._boot()
            self.wait_for(self._up, 120, "the end of the boot")
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
        """Boot until commands can be run."""

    @abstractmethod
    def close(self) -> None:
        """End the guest, also after an incomplete boot."""

    @abstractmethod
    def command(self, argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
        """Run a command; return its exit status, and its standard output and standard error together."""

    def _up(self) -> bool:
        """Return True if multi-user.target is active. is-system-running would also wait for the fetcher, and so for the
        metadata server.
        """
        return self.run("systemctl", "is-active", "multi-user.target", check=False).strip() == "active"

    # — commands in the guest

    def run(
        self, *argv: str, user: str | None = None, check: bool = True, stdin: str = "", timeout: float = 120
    ) -> str:
        """Run a command and return its output."""
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
        """Use this configuration within the block; afterwards the file is unchanged for dpkg."""
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
        """Return status and body of a REST answer, requested inside the guest."""
        program = (
            "import sys, urllib.request, urllib.error\n"
            "try:\n    answer = urllib.request.urlopen(sys.argv[1], timeout=30)\n"
            "except urllib.error.HTTPError as error:\n    answer = error\n"
            "print(answer.status, answer.read().decode())"
        )
        status, _, body = self.run("python3", "-c", program, f"http://127.0.0.1:5209{path}").partition(" ")
        return int(status), body

    def run_in_sandbox(self, service: str, program: str, *argv: str) -> Any:
        """Run a Python program in a service's sandbox (its unit with another ExecStart=); return its JSON output."""
        name, script = f"probe-{service}.service", f"{TOOLS}/probe-{service}.py"
        unit = self.run("cat", self.show(f"cloud-network-{service}.service", "FragmentPath"))
        left_out = ("Type=", "ExecStart=", "Restart", "ExecReload", "Watchdog", "Requires=", "Wants=", "Also=")
        kept = "\n".join(line for line in unit.splitlines() if not line.startswith(left_out))
        start = f"Type=oneshot\nExecStart=/usr/bin/python3 -IS {script} {shlex.join(argv)}\n"
        self.run("tee", script, stdin=program)
        self.run("tee", f"/run/systemd/system/{name}", stdin=kept.replace("[Service]", f"[Service]\n{start}"))
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", name)
        output = self.run("journalctl", "-o", "cat", "-t", "python3", "-u", name).splitlines()
        assert output, self.run("journalctl", "-u", name)
        return json.loads(output[-1])

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") == "active"

    def wait_for(self, predicate: Callable[[], T], timeout: float = 60, message: str = "") -> T:
        """Return the first true value of `predicate`."""
        timeout *= self.timeout_factor
        end = time.monotonic() + timeout
        while not (value := predicate()):
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout:g} s for {message or predicate}\n{self.journal()[-6000:]}")
            time.sleep(0.1)
        return value

    def memory(self, services: Sequence[str] = SERVICES) -> int:
        """Return the PSS of all processes of these services, in bytes."""
        groups = [self.show(f"cloud-network-{service}.service", "ControlGroup") for service in services]
        program = " ".join(f"/sys/fs/cgroup{group}/cgroup.procs" for group in groups if group)
        pids = self.run("sh", "-c", f"cat {program or '/dev/null'}", check=False).split()
        files = [f"/proc/{pid}/smaps_rollup" for pid in pids if pid.isdecimal()]
        rollups = self.run("cat", *files, check=False) if files else ""
        return sum(int(line.split()[1]) << 10 for line in rollups.splitlines() if line.startswith("Pss:"))
