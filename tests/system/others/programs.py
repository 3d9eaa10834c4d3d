"""A program of another project in a namespace: started as root, with its output stored, ended by its pid."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import pytest

from tests.lab import Lab
from tests.lab.namespaces import LAB_RUN, TIMEOUT_S, Namespace

PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/lib/systemd:/usr/lib/systemd"


def require_program(program: str, package: str) -> str:
    """Return the path of the program; skip the test if Debian packages it and it is not installed."""
    found = shutil.which(program, path=PROGRAM_PATH)
    if found is None:
        pytest.skip(f"{program} is not here: apt-get install {package}")
    return found


class Program:
    """`with Program(lab, argv) as it:`. `private` directories are its own and empty: nothing on the host changes.

    /sys is read-only for it, as in a container: the lab has no udev that a program could wait for.
    """

    def __init__(
        self,
        lab: Lab,
        argv: Sequence[str],
        *,
        namespace: Namespace | None = None,
        private: Sequence[str] = (),
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._lab, self._namespace = lab, namespace or lab.instance
        self.name = Path(argv[0]).name
        self._log = lab.path(LAB_RUN / "log" / self.name)
        steps = [f"mount -t tmpfs tmpfs {directory}" for directory in private]
        steps += ["mount -o remount,ro,bind /sys"] if namespace is None else []
        steps += [f"exec {shlex.join(argv)}"]
        self._argv, self._env = ["unshare", "--mount", "sh", "-ec", "\n".join(steps)], env
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            error.add_note("\n".join([f"--- {self.name}", *self.log().splitlines()[-40:]]))
        if self.running():
            self.stop()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = self._namespace.popen(self._argv, stdout=log, stderr=log, env=self._env)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pid(self) -> int:
        """Return the pid of the program itself, below nsenter."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return self._lab.wait_for(
            lambda: [int(pid) for pid in children.read_text().split()], message="the program's process"
        )[0]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid(), number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for its end; a program that does not end is killed."""
        assert self._process is not None
        self.send(number)
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait(TIMEOUT_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""
