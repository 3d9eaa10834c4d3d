"""Beside what other programs have on a big host: memory, processor time, and how long a repair takes.

    sudo .venv/bin/python -m bench.load [--links 1000] [--routes 100000] [--rules 5000] [--rate 1000] [--seconds 20]

Four interfaces of 15 addresses, and in turn: many links of other programs; a full table of their routes and many of
their rules; and a routing daemon that changes routes all the time. In each, `ip` removes addresses of ours; from the
kernel's notification that one is gone to the one that it is back. Memory is the peak of the resident sets, to be
compared with MemoryMax= of the units; processor time is of all three daemons.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from configparser import RawConfigParser
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.drift import REPAIR
from bench.figures import Figure, as_root, figure, keep, processor_time
from bench.installed import installed
from bench.memory import members
from tests.lab import Lab, Spec
from tests.system.service import DAEMONS, ip, refresh, running

UNITS = Path(__file__).parents[1] / "systemd" / "system"
REPAIRED, REPAIRED_IN_CHANGES, PROCESSOR = 2000.0, 5000.0, 50.0  # ms, ms, % of one processor: issue 22
REST = 2.0  # seconds
CHANGES = """
import subprocess, sys, time
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
with subprocess.Popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True) as batch:
    began, made = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        while made < rate * now:
            verb, at = ("add", "del")[made % 2], made // 2 % 60000
            batch.stdin.write(f"route {verb} 172.24.{at >> 8}.{at & 255} dev load0 proto bird\\n")
            made += 1
        batch.stdin.flush()
        time.sleep(0.02)
print(made)
"""
"""A routing daemon: it adds a route and removes it, so many changes a second."""


def limit(name: str) -> float:
    """MemoryMax= of a daemon's unit, in MB."""
    unit = RawConfigParser(strict=False, interpolation=None)
    unit.read(UNITS / f"cloud-network-{name}.service")
    return float(unit["Service"]["MemoryMax"].removesuffix("M"))


def forget_peaks(lab: Lab) -> None:
    """Start the peaks of the resident sets again (proc_pid_clear_refs(5))."""
    for name in DAEMONS:
        for pid in members(lab.daemons.pid(name)):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> float:
    """Peak of the resident sets of a process and its children, in MB."""
    found = 0
    for each in members(pid):
        lines = Path(f"/proc/{each}/status").read_text().splitlines()
        found += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return found / 1024


def used(lab: Lab) -> float:
    """Milliseconds of processor time of all daemons."""
    return sum(processor_time(pid) for name in DAEMONS for pid in members(lab.daemons.pid(name)))


def repairs(lab: Lab, count: int) -> list[float]:
    """Milliseconds until each of so many addresses of ours is back."""
    names = {nic.name for nic in lab.nics}
    removals = [
        ["ip", "address", "del", f"{each['local']}/32", "dev", str(link["ifname"])]
        for link in ip(lab, "address")
        if link["ifname"] in names
        for each in link["addr_info"]
        if each["prefixlen"] == 32
    ]
    argv = ["/usr/bin/python3", "-I", "-S", str(REPAIR), "1.2"]
    found: list[float] = json.loads(lab.run(argv, stdin=json.dumps(removals[:count]), timeout=300).stdout)
    return found


@contextmanager
def beside(*lines: str) -> Iterator[Lab]:
    """A lab whose daemons have done their work, and then what other programs have, made by `ip -batch`."""
    with running(Spec.aws(interfaces=4, addresses=15)) as lab:
        lab.batch(["link add load0 type bridge", "link set load0 up", *lines])
        time.sleep(REST)
        forget_peaks(lab)
        yield lab


def of_memory(name: str, lab: Lab) -> list[Figure]:
    """The peaks since they were forgotten."""
    return [
        figure(f"{name}: {daemon}'s peak memory", [peak(lab.daemons.pid(daemon))], "MB", limit(daemon))
        for daemon in DAEMONS
    ]


def standing(name: str, lines: Sequence[str], count: int) -> list[Figure]:
    """Repairs and memory beside what other programs have."""
    with beside(*lines) as lab:
        began = time.monotonic()
        refresh(lab)
        took, before = (time.monotonic() - began) * 1e3, used(lab)
        repaired = figure(f"{name}: an address repaired", repairs(lab, count), most=REPAIRED)
        return [
            repaired,
            figure(f"{name}: processor time of a repair", [(used(lab) - before) / count]),
            figure(f"{name}: a refresh", [took]),
            *of_memory(name, lab),
        ]


def changing(rate: int, seconds: float) -> list[Figure]:
    """Repairs, memory and processor time while a routing daemon changes routes."""
    name = f"{rate} route changes a second"
    with beside() as lab, ThreadPoolExecutor() as pool:
        before, began = used(lab), time.monotonic()
        argv = [sys.executable, "-I", "-S", "-c", CHANGES, str(rate), str(seconds)]
        made = pool.submit(lab.run, argv, timeout=seconds + 60)
        found = repairs(lab, max(1, round(seconds / 10)))
        changes = int(made.result().stdout)
        took = time.monotonic() - began
        share = (used(lab) - before) / took / 10
        return [
            figure(f"{name}: changes made", [changes], ""),
            figure(f"{name}: an address repaired", found, most=REPAIRED_IN_CHANGES),
            figure(f"{name}: processor time of the daemons", [share], "%", PROCESSOR),
            *of_memory(name, lab),
        ]


def address(number: int) -> str:
    """An address of 172.16.0.0/12."""
    return f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--links", type=int, default=1000)
    parser.add_argument("--routes", type=int, default=100_000)
    parser.add_argument("--rules", type=int, default=5000)
    parser.add_argument("--rate", type=int, default=1000, help="route changes a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of route changes")
    parser.add_argument("--repairs", type=int, default=5)
    given = parser.parse_args()
    links = [f"link add other{number} type bridge" for number in range(given.links)]
    routes = [f"route add {address(number)} dev load0 proto bird" for number in range(given.routes)]
    rules = [f"rule add pref 100 to {address(number)} lookup 77" for number in range(given.rules)]
    with installed():
        figures = [
            *standing(f"{given.links} links", links, given.repairs),
            *standing(f"{given.routes} routes and {given.rules} rules", [*routes, *rules], given.repairs),
            *changing(given.rate, given.seconds),
        ]
    keep("load", figures)


if __name__ == "__main__":
    as_root()
    main()
