"""Records of every kernel event and every packet during a block."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab import Lab
from tests.lab.lab import Where
from tests.lab.reach import LineReader

MONITOR = "ip -4 -o monitor address route rule & read -r _; kill $!"
"""Like everything here, it ends with its standard input."""
OUTPUT = "/run/lab/monitor"
RULES = 1 << 7  # RTNLGRP_IPV4_RULE, the last that `ip monitor address route rule` subscribes to


class Events:
    """The lines of `ip monitor`; `Deleted …` marks removals."""

    def __init__(self, lab: Lab) -> None:
        self._path = lab.path(OUTPUT)

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()

    @property
    def gone(self) -> list[str]:
        return [line for line in self.lines if line.startswith("Deleted")]


@contextmanager
def monitor(lab: Lab) -> Iterator[Events]:
    """Record each change of an IPv4 address, route or rule in the instance until the end of the block."""
    before = _listeners(lab)
    with Path(lab.path(OUTPUT)).open("wb") as output:
        process = lab.instance.popen(["sh", "-c", MONITOR], stdin=subprocess.PIPE, stdout=output)
        try:
            lab.wait_for(lambda: _listeners(lab) > before, message="ip monitor")
            yield Events(lab)
            # Kernel events arrive at once, but ip must print them: wait until it has printed one that the test caused.
            lab.batch(["rule add pref 1 from 192.0.2.200 lookup 200", "rule del pref 1"])
            lab.wait_for(lambda: any("192.0.2.200" in line for line in Events(lab).gone), message="the last line")
        finally:
            process.communicate(timeout=10)
    rest = [line for line in Events(lab).lines if "192.0.2.200" not in line]
    lab.path(OUTPUT).write_text("".join(f"{line}\n" for line in rest))


def _listeners(lab: Lab) -> int:
    """Return the number of sockets that subscribed to changes of rules (proc(5), /proc/net/netlink)."""
    rows = [line.split() for line in lab.run(["cat", "/proc/net/netlink"]).stdout.splitlines()[1:]]
    return sum(row[1] == "0" and bool(int(row[3], 16) & RULES) for row in rows)


ECHO = """
import select, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
    echo.bind((sys.argv[1], 9007))
    print("ready", flush=True)
    while sys.stdin not in select.select([echo, sys.stdin], [], [])[0]:
        data, peer = echo.recvfrom(64)
        echo.sendto(data, peer)
"""
STREAM = """
import json, select, socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
    stream.connect((sys.argv[1], 9007))
    missing, number, end, answered = set(), 0, None, False
    while end is None or (missing and time.monotonic() < end):
        if end is None:
            stream.send(b"%d" % number)
            missing.add(number)
            number += 1
        ready = select.select([stream, sys.stdin] if end is None else [stream], [], [], 0.002)[0]
        if sys.stdin in ready:
            end = time.monotonic() + 3
        while select.select([stream], [], [], 0)[0]:
            missing.discard(int(stream.recv(64)))
            if not answered:
                print("ready", flush=True)
                answered = True
    print(json.dumps([number, sorted(missing)]), flush=True)
"""


@contextmanager
def stream(lab: Lab, address: str, *sources: Where) -> Iterator[None]:
    """Send a datagram every other millisecond to an address and back. AssertionError unless all came back."""
    argv = [sys.executable, "-I", "-S", "-c"]
    with ExitStack() as stack:

        def start(where: Where, *words: str) -> tuple[subprocess.Popen[str], LineReader]:
            process = lab.namespace(where).popen([*argv, *words], stdin=subprocess.PIPE)
            stack.callback(process.communicate, timeout=10)
            lines = LineReader(process.stdout)
            assert lines.next(10) == "ready", f"{address} and {where} do not reach each other"
            return process, lines

        start("instance", ECHO, address)
        senders = {source: start(source, STREAM, address) for source in sources}
        yield
        for process, _ in senders.values():
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for source, (_, lines) in senders.items():
            sent, missing = json.loads(lines.next(10))
            assert missing == [], f"of {sent} datagrams from {source} to {address} and back, {len(missing)} were lost"
