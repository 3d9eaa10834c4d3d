"""Measures reachability with TCP connections from the hosts of clients."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from .namespaces import LabError, Namespace

PROBE = Path(__file__).with_name("probe.py")
PORT = 7
"""Echo's port, RFC 862."""


def _probe(*argv: object) -> list[str]:
    return [sys.executable, "-I", "-S", str(PROBE), *map(str, argv)]


class LineReader:
    """The output lines of a probe, with a time limit, which a buffered stream could not keep."""

    def __init__(self, stream: IO[str] | None) -> None:
        assert stream is not None
        self._stream = stream
        self._rest = b""

    def next(self, timeout: float) -> str:
        """Return one line; "" if it does not arrive in time or the stream ended."""
        end = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._stream], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._stream.fileno(), 4096) if ready else b""
            if not chunk:
                return ""
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class Reach:
    """Listeners, started when first needed, and probes."""

    def __init__(self) -> None:
        self._listeners: dict[str, subprocess.Popen[str]] = {}
        self._held: list[HeldConnection] = []

    def listen(self, *namespaces: Namespace) -> None:
        missing = [namespace for namespace in namespaces if namespace.name not in self._listeners]
        started = {namespace.name: namespace.popen(_probe("serve", PORT)) for namespace in missing}
        for name, process in started.items():
            if LineReader(process.stdout).next(10) != "ready":
                raise LabError(f"the listener in {name} did not start")
        self._listeners |= started

    def probe(
        self, pairs: Mapping[Namespace, Sequence[tuple[str, str | None]]], timeout: float
    ) -> dict[tuple[str, str, str | None], bool]:
        """Connect all (target, source address) pairs in parallel: {(namespace, target, source address): answered}."""

        def probe_from(namespace: Namespace, wanted: Sequence[tuple[str, str | None]]) -> list[bool]:
            argv = _probe("connect", PORT, timeout)
            done = namespace.run(argv, stdin=json.dumps(wanted), timeout=timeout + 30)
            return [bool(answered) for answered in json.loads(done.stdout)]

        with ThreadPoolExecutor(len(pairs)) as pool:
            answers = list(pool.map(lambda item: probe_from(*item), pairs.items()))
        return {
            (namespace.name, *pair): answered
            for (namespace, wanted), given in zip(pairs.items(), answers, strict=True)
            for pair, answered in zip(wanted, given, strict=True)
        }

    def hold(self, namespace: Namespace, address: str, timeout: float) -> HeldConnection:
        held = HeldConnection(namespace, address, timeout)
        self._held.append(held)
        if not held.opened:
            raise LabError(f"{address} does not answer {namespace.name}")
        return held

    def close(self) -> None:
        """Collect what remains of the processes; the holder ends them."""
        for process in [*self._listeners.values(), *(held.process for held in self._held)]:
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
            process.wait(10)


class HeldConnection:
    """A TCP connection that stays open, as an operator's SSH session does."""

    def __init__(self, namespace: Namespace, address: str, timeout: float) -> None:
        self.address = address
        self._sent = 0
        self.process = namespace.popen(_probe("hold", address, PORT), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._lines = LineReader(self.process.stdout)
        self.opened = self._lines.next(timeout) == "open"

    def alive(self, timeout: float = 3) -> bool:
        """Return True if bytes pass in both directions through this connection."""
        assert self.process.stdin is not None
        self._sent += 1
        try:
            self.process.stdin.write(f"{self._sent}\n")
            self.process.stdin.flush()
        except OSError:
            return False
        end = time.monotonic() + timeout
        while line := self._lines.next(end - time.monotonic()):
            if line == f"echo {self._sent}":
                return True  # late echoes of earlier calls were read before
        return False

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
