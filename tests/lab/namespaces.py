"""Network namespaces, each with the process that holds it: the lab's side of holder.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

HOLDER = Path(__file__).with_name("holder.py")
LAB_RUN = Path("/run/lab")

ENVIRONMENT = MappingProxyType(
    {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
    }
)
"""Environment of programs in a namespace: nothing from the developer's shell may affect a test."""


TIMEOUT_S = 10.0
END_TIMEOUT_S = 60.0  # the kernel ends every process of the lab first, which is slow on a busy machine


class LabError(Exception):
    """The lab itself failed, or could not be built here."""


@dataclass(frozen=True)
class Namespace:
    name: str
    pid: int

    def enter(self, *argv: str, user: str | None = None) -> list[str]:
        """Return `argv` as it is run inside, in the lab's PID namespace as well, so that it cannot outlive the lab."""
        inside = ["--net", "--pid", "--mount", "--uts"]
        become = ["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if user else []
        return ["nsenter", f"--target={self.pid}", *inside, "--", *become, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end with captured output. With `check`, a failure is a LabError with the output."""
        done = subprocess.run(
            self.enter(*argv, user=user),
            env=ENVIRONMENT,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise LabError(f"{self.name}: {' '.join(argv)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        stderr: int | IO[bytes] | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.enter(*argv),
            env={**ENVIRONMENT, **env},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def batch(self, lines: Iterable[str]) -> None:
        """Run many `ip` commands in one process, in the PID namespace of the lab: `netns PID` needs the lab's pids."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", "--", "ip", "-batch", "-"],
            env=ENVIRONMENT,
            input="\n".join(lines),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LabError(f"{self.name}: ip -batch: {done.stderr}")

    def path(self, path: str | Path) -> Path:
        """Return a file of the namespace as a path for this process."""
        return Path(f"/proc/{self.pid}/root", str(path).lstrip("/"))


class Namespaces:
    """The holder and its namespaces."""

    def __init__(self) -> None:
        self._namespaces: dict[str, Namespace] = {}
        self._holder = subprocess.Popen(
            [
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount",
                "--propagation",
                "private",
                sys.executable,
                "-I",
                "-S",
                str(HOLDER),
            ],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __getitem__(self, name: str) -> Namespace:
        try:
            return self._namespaces[name]
        except KeyError:
            raise LabError(f"no namespace {name!r}; there are {', '.join(self._namespaces)}") from None

    def __iter__(self) -> Iterable[str]:
        return iter(self._namespaces)

    def open(self, *wanted: Mapping[str, object]) -> list[Namespace]:
        """Make namespaces, all at once: `{"name": …, "sysctl": {…}, …}`, see holder.py."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        before = len(self._namespaces)
        for namespace in wanted:
            try:
                self._holder.stdin.write(json.dumps(namespace) + "\n")
                self._holder.stdin.flush()
            except BrokenPipeError:
                break
            answer = json.loads(self._holder.stdout.readline() or "{}")
            if "pid" not in answer:
                raise LabError(
                    f"cannot make the namespace {namespace['name']}: {answer.get('error') or self._holder_errors()}"
                )
            self._namespaces[str(namespace["name"])] = Namespace(str(namespace["name"]), answer["pid"])
        if len(self._namespaces) != before + len(wanted):
            raise LabError(f"cannot make namespaces: {self._holder_errors()}")
        return list(self._namespaces.values())[before:]

    def close(self) -> None:
        """End the holder, and with it everything inside."""
        try:
            self._holder.communicate(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._holder.kill()  # --kill-child: the holder too
            raise LabError(f"the lab did not end within {END_TIMEOUT_S:.0f} s") from None

    def _holder_errors(self) -> str:
        return self._holder.communicate()[1].strip()
