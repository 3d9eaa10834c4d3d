"""Four open TCP connections through the primary address, and the longest silence on each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from tests.lab import Lab
from tests.lab.lab import Where
from tests.lab.reach import PORT, LineReader
from tests.lab.spec import beyond_address

CLIENT = """
import json, select, socket, sys, time
target, source, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
with socket.create_connection((target, port), 5, (source, 0) if source else None) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.recv(4096)
    connection.setblocking(False)
    print("ready", flush=True)
    last_echo, longest, broken, end, due = time.monotonic(), 0.0, None, None, 0.0
    while broken is None and (end is None or time.monotonic() < end):
        now = time.monotonic()
        try:
            if now >= due:
                connection.send(b"x\\n")
                due = now + 0.02
        except BlockingIOError:
            due = now + 0.02
        except OSError as error:
            broken = str(error)
        ready = select.select([connection] + ([sys.stdin] if end is None else []), [], [], max(0.0, due - now))[0]
        if sys.stdin in ready:
            end = time.monotonic() + 30
        if connection in ready:
            try:
                if not connection.recv(65536):
                    broken = "closed"
            except OSError as error:
                broken = str(error)
            now = time.monotonic()
            longest, last_echo = max(longest, now - last_echo), now
            if end is not None:
                break
    print(json.dumps([max(longest, time.monotonic() - last_echo), broken]), flush=True)
"""
"""At the end, wait for one more echo: a silent connection has been silent since its last one."""


class Connections:
    """The measurements; filled at the end of the block."""

    def __init__(self) -> None:
        self.silence: dict[str, float] = {}  # the longest in seconds, by connection
        self.broken: dict[str, str] = {}  # the error, by connection

    @property
    def longest(self) -> float:
        """Return the longest silence of any connection, in seconds."""
        return max(self.silence.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.silence.items())


@contextmanager
def open_connections(lab: Lab) -> Iterator[Connections]:
    """Open the connections, and measure the silence on each until the end of the block."""
    primary, host = lab.nics[0].addresses[0], beyond_address(0)
    lab.reach.listen(lab.instance, lab.beyond[0])
    wanted: Mapping[str, tuple[Where, str, str]] = {
        "beyond": ("beyond", primary, ""),
        "neighbour": (("neighbour", 0), primary, ""),
        "same VPC": (("neighbour", 1), primary, ""),
        "outgoing": ("instance", host, primary),
    }
    found = Connections()
    with ExitStack() as stack:
        opened: dict[str, tuple[subprocess.Popen[str], LineReader]] = {}
        for name, (where, target, source) in wanted.items():
            argv = [sys.executable, "-I", "-S", "-c", CLIENT, target, source, str(PORT)]
            process = lab.namespace(where).popen(argv, stdin=subprocess.PIPE)
            stack.callback(process.kill)
            opened[name] = process, LineReader(process.stdout)
            assert opened[name][1].next(10) == "ready", f"{name}: no connection to {target}"
        yield found
        for process, _ in opened.values():
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for name, (process, lines) in opened.items():
            found.silence[name], broken = json.loads(lines.next(40))
            if broken:
                found.broken[name] = broken
            process.communicate(timeout=10)
