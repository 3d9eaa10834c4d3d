"""Hosts with many links, routes and rules of other programs: memory, processor time and time of a repair.

    sudo .venv/bin/python -m bench.load [--links 1000] [--routes 100000] [--rules 5000] [--rate 1000] [--seconds 20]

Four interfaces of 15 addresses, with in turn: many links of other programs; many of their routes and rules; and a
routing daemon that changes routes continuously. In each, `ip` removes owned addresses. A repair is the time from the
kernel's notification of the removal to that of the repair. Memory is the peak of the resident sets, and its target
MemoryMax= of the unit; processor time is the sum of all three daemons.
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
from bench.figures import Figure, as_root, figure, processor_time, save
from bench.installed import installed
from bench.memory import process_tree
from tests.lab import Lab, Spec
from tests.system.service import DAEMONS, ip, refresh, running_lab

UNITS = Path(__file__).parents[1] / "systemd" / "system"
# Targets of issue 22; PROCESSOR is a share of one processor.
REPAIR_TARGET_MS = 2000.0
REPAIR_IN_CHANGES_TARGET_MS = 5000.0
PROCESSOR_TARGET_PERCENT = 50.0
SETTLE_S = 2.0  # seconds
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
"""A routing daemon: adds and removes routes, at the given number of changes per second."""


def memory_limit(name: str) -> float:
    """Return MemoryMax= of a daemon's unit, in MB."""
    unit = RawConfigParser(strict=False, interpolation=None)
    unit.read(UNITS / f"cloud-network-{name}.service")
    return float(unit["Service"]["MemoryMax"].removesuffix("M"))


def reset_peaks(lab: Lab) -> None:
    """Reset the peaks of the resident sets (proc_pid_clear_refs(5))."""
    for name in DAEMONS:
        for pid in process_tree(lab.daemons.pid(name)):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory(pid: int) -> float:
    """Return the peak of the resident sets of a process and its children, in MB."""
    found = 0
    for each in process_tree(pid):
        lines = Path(f"/proc/{each}/status").read_text().splitlines()
        found += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return found / 1024


def daemons_processor_time(lab: Lab) -> float:
    """Return the processor time of all daemons in milliseconds."""
    return sum(processor_time(pid) for name in DAEMONS for pid in process_tree(lab.daemons.pid(name)))


def repairs(lab: Lab, count: int) -> list[float]:
    """Remove `count` owned addresses; return the milliseconds until the repair of each."""
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
def loaded_lab(*lines: str) -> Iterator[Lab]:
    """Yield a configured lab with objects of other programs, which `ip -batch` creates from `lines`."""
    with running_lab(Spec.aws(interfaces=4, addresses=15)) as lab:
        lab.batch(["link add load0 type bridge", "link set load0 up", *lines])
        time.sleep(SETTLE_S)
        reset_peaks(lab)
        yield lab


def memory_figures(name: str, lab: Lab) -> list[Figure]:
    """Return the peaks since the last reset."""
    return [
        figure(f"{name}: {daemon}'s peak memory", [peak_memory(lab.daemons.pid(daemon))], "MB", memory_limit(daemon))
        for daemon in DAEMONS
    ]


def measure_static(name: str, lines: Sequence[str], count: int) -> list[Figure]:
    """Measure repairs and memory with objects of other programs that do not change."""
    with loaded_lab(*lines) as lab:
        began = time.monotonic()
        refresh(lab)
        took, before = (time.monotonic() - began) * 1e3, daemons_processor_time(lab)
        repaired = figure(f"{name}: repair of an address", repairs(lab, count), most=REPAIR_TARGET_MS)
        return [
            repaired,
            figure(f"{name}: processor time per repair", [(daemons_processor_time(lab) - before) / count]),
            figure(f"{name}: refresh", [took]),
            *memory_figures(name, lab),
        ]


def measure_changing(rate: int, seconds: float) -> list[Figure]:
    """Measure repairs, memory and processor time while a routing daemon changes routes."""
    name = f"{rate} route changes per second"
    with loaded_lab() as lab, ThreadPoolExecutor() as pool:
        before, began = daemons_processor_time(lab), time.monotonic()
        argv = [sys.executable, "-I", "-S", "-c", CHANGES, str(rate), str(seconds)]
        made = pool.submit(lab.run, argv, timeout=seconds + 60)
        found = repairs(lab, max(1, round(seconds / 10)))
        changes = int(made.result().stdout)
        took = time.monotonic() - began
        share = (daemons_processor_time(lab) - before) / took / 10
        return [
            figure(f"{name}: changes made", [changes], ""),
            figure(f"{name}: repair of an address", found, most=REPAIR_IN_CHANGES_TARGET_MS),
            figure(f"{name}: processor time of the daemons", [share], "%", PROCESSOR_TARGET_PERCENT),
            *memory_figures(name, lab),
        ]


def address(number: int) -> str:
    """Return an address of 172.16.0.0/12."""
    return f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--links", type=int, default=1000)
    parser.add_argument("--routes", type=int, default=100_000)
    parser.add_argument("--rules", type=int, default=5000)
    parser.add_argument("--rate", type=int, default=1000, help="route changes per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of route changes")
    parser.add_argument("--repairs", type=int, default=5)
    given = parser.parse_args()
    links = [f"link add other{number} type bridge" for number in range(given.links)]
    routes = [f"route add {address(number)} dev load0 proto bird" for number in range(given.routes)]
    rules = [f"rule add pref 100 to {address(number)} lookup 77" for number in range(given.rules)]
    with installed():
        figures = [
            *measure_static(f"{given.links} links", links, given.repairs),
            *measure_static(f"{given.routes} routes and {given.rules} rules", [*routes, *rules], given.repairs),
            *measure_changing(given.rate, given.seconds),
        ]
    save("load", figures)


if __name__ == "__main__":
    as_root()
    main()
