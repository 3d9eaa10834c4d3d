"""The actual destinations of the instance's packets: observers on every outside host, and UDP datagrams from the
instance.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab import Lab, Namespace

OBSERVER = """
import os, re, socket
packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
os.write(1, b"ready\\n")
while True:
    data, (name, _, kind, _, _) = packets.recvfrom(2048)
    found = re.search(rb"<[0-9]+>", data)
    protocol = data[9] if data[0] >> 4 == 4 else data[6]  # an ICMP error contains the mark, too
    if found and kind == socket.PACKET_HOST and name != "lo" and protocol == socket.IPPROTO_UDP:
        os.write(1, found[0] + name.encode() + b"\\n")
"""
"""Prints mark and interface of each packet that this host receives: a frame to its own MAC address."""

SEND = """
import socket, sys
destination, source, mark = sys.argv[1:]
family = socket.AF_INET6 if ":" in destination else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    if source:
        sock.bind((source, 0))
    try:
        sock.sendto(mark.encode(), (destination, 9))
    except OSError as error:
        print(error.strerror)
"""
SECONDS, SETTLED = 3.0, 0.15
"""Time limits for the first receiver of a packet, and for a second one."""


class PacketObservers:
    """An observer in each namespace. `receivers` sends a datagram and returns the namespaces that received it."""

    def __init__(self, lab: Lab, namespaces: Iterable[Namespace], scratch: Path) -> None:
        self._lab, self._marks = lab, itertools.count(1)
        self._logs = {namespace.name: scratch / namespace.name for namespace in namespaces}
        self._processes: list[subprocess.Popen[str]] = []
        for namespace in namespaces:
            with self._logs[namespace.name].open("wb") as out:
                self._processes.append(namespace.popen([sys.executable, "-I", "-S", "-c", OBSERVER], stdout=out))
        lab.wait_for(lambda: all("ready" in log.read_text() for log in self._logs.values()), 20, "the observers")

    def close(self) -> None:
        """End the observers."""
        for process in self._processes:
            process.terminate()
            process.wait(10)

    def receivers(self, destination: str, source: str = "") -> set[str]:
        """Return the names of the namespaces that receive a datagram from the instance to `destination`."""
        return {name.partition(":")[0] for name in self.arrivals(destination, source)}

    def arrivals(self, destination: str, source: str = "") -> set[str]:
        """Return `namespace:interface` wherever a datagram from the instance to `destination` arrives."""
        mark = f"<{next(self._marks)}>"
        self._lab.run([sys.executable, "-I", "-S", "-c", SEND, destination, source, mark])
        end = time.monotonic() + SECONDS
        while not self._seen(mark) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(SETTLED)
        return self._seen(mark)

    def _seen(self, mark: str) -> set[str]:
        lines = [(namespace, line) for namespace, log in self._logs.items() for line in log.read_text().split()]
        return {f"{namespace}:{line.removeprefix(mark)}" for namespace, line in lines if line.startswith(mark)}


@contextmanager
def packet_observers(lab: Lab, namespaces: Iterable[Namespace], scratch: Path) -> Iterator[PacketObservers]:
    """Yield observers for the duration of the block."""
    with ExitStack() as stack:
        found = PacketObservers(lab, list(namespaces), scratch)
        stack.callback(found.close)
        yield found
