"""Memory of the three daemons (PSS), at rest and after work. The reference is a bare interpreter.

    sudo .venv/bin/python -m bench.memory [--sizes 4x15,15x50] [--rounds 5] [--seconds 8]

They start as on an instance (installed.py).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, figure, pss, ratio, save
from bench.installed import installed
from tests.lab import Lab, Spec
from tests.system.service import DAEMONS, refresh, running_lab

PATHS = ("/api/v1/status", "/api/v1/health", "/api/v1/links", "/metrics", "/openapi.json", "/", "/api/v1/audit", "/no")
MAX_OVER_INTERPRETER, MAX_GROWTH = 1.25, 1.05  # ×: issue 15


def process_tree(pid: int) -> list[int]:
    """Return the pids of a process and its children: gunicorn has a worker."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def memory_of(pid: int) -> float:
    """Return the MB of a process and its children: gunicorn has a worker."""
    return sum(pss(each) for each in process_tree(pid))


def bare_memory(python: Path) -> float:
    """Return the MB of an interpreter that waits."""
    with subprocess.Popen([python, "-IS", "-c", "input()"], stdin=subprocess.PIPE) as process:
        time.sleep(0.3)
        found = pss(process.pid)
        process.communicate(b"\n")
    return found


def with_packages(python: Path) -> float:
    """Return the MB of an interpreter that has imported the fetcher's packages, and waits."""
    paths = [path for path in sys.path if "site-packages" in path]
    code = f"import sys; sys.path[:0] = {paths}; import requests, pyroute2, msgpack, prctl; input()"
    with subprocess.Popen([python, "-IS", "-c", code], stdin=subprocess.PIPE) as process:
        time.sleep(2)
        found = pss(process.pid)
        process.communicate(b"\n")
    return found


def after_refreshes(spec: Spec, count: int) -> tuple[float, float]:
    """Return the MB of the fetcher after the first few refreshes, and after `count` more."""
    with running_lab(spec, "", "netagent", "fetcher") as lab:
        sizes = []
        for number in (5, count):
            for _ in range(number):
                refresh(lab)
            time.sleep(1)
            sizes.append(memory_of(lab.daemons.pid("fetcher")))
        return sizes[0], sizes[1]


def ask_everything(lab: Lab) -> None:
    """Request every route of the api several times."""
    for path in PATHS * 3:
        lab.run(["curl", "--silent", "--output", "/dev/null", f"http://127.0.0.1:5209{path}"])


def measure_once(spec: Spec, seconds: float) -> dict[str, float]:
    """Return the MB of each daemon and of all: at rest after the first pass, at the peak, and at rest again."""
    found: dict[str, float] = {}
    with running_lab(spec) as lab:

        def now(what: str) -> None:
            each = {name: memory_of(lab.daemons.pid(name)) for name in DAEMONS}
            found.update({f"{name} {what}": size for name, size in each.items()} | {f"all {what}": sum(each.values())})

        refresh(lab)
        time.sleep(seconds)
        now("at rest")
        ask_everything(lab)
        for _ in range(3):
            refresh(lab)
        now("after work")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="4x15,15x50", help="interfaces × addresses (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--refreshes", type=int, default=60, help="refreshes before the fetcher is measured again")
    parser.add_argument("--seconds", type=float, default=8.0, help="idle time before the measurement")
    given = parser.parse_args()
    with installed() as python:
        figures: list[Figure] = [figure("a bare interpreter", [bare_memory(python) for _ in range(given.rounds)], "MB")]
        for each in given.sizes.split(","):
            interfaces, addresses = map(int, each.split("x"))
            rounds = [
                measure_once(Spec.aws(interfaces=interfaces, addresses=addresses), given.seconds)
                for _ in range(given.rounds)
            ]
            for name in rounds[0]:
                figures.append(figure(f"{interfaces} × {addresses}: {name}", [found[name] for found in rounds], "MB"))
        reference = figure(
            "an interpreter with the fetcher's packages", [with_packages(python) for _ in range(given.rounds)], "MB"
        )
        runs = [after_refreshes(Spec.aws(interfaces=4, addresses=15), given.refreshes) for _ in range(given.rounds)]
        first = figure("4 × 15: the fetcher after 5 refreshes", [few for few, _ in runs], "MB")
        last = figure(f"4 × 15: the fetcher after {given.refreshes} more", [many for _, many in runs], "MB")
        figures += [
            reference,
            first,
            last,
            ratio("4 × 15: the fetcher over the interpreter", last, reference, MAX_OVER_INTERPRETER),
        ]
        figures.append(ratio("4 × 15: the fetcher after the last relative to the first", last, first, MAX_GROWTH))
    save("memory", figures)


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("run it as root: sudo .venv/bin/python -m bench.memory")
    main()
