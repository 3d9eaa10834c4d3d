"""Shared code of the scripts in bench/. A figure is the median of several rounds, with the least and the most."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_BEGAN, _LOAD = time.monotonic(), round(os.getloadavg()[0], 1)  # load: runnable processes before this one started
RESULTS = Path(os.environ.get("BENCH_RESULTS", _HERE / "results.json"))


@dataclass(frozen=True)
class Figure:
    """A median of `name`, in `unit`. If it is a target, `bound` is the largest accepted value."""

    name: str
    unit: str
    median: float
    least: float
    most: float
    rounds: int
    bound: float | None = None

    @property
    def missed(self) -> bool:
        """Return True if the figure is a target and exceeds it."""
        return self.bound is not None and self.median > self.bound

    @property
    def shown(self) -> str:
        """Return the median with its unit."""
        return f"{format_number(self.median)} {self.unit}".rstrip()

    def __str__(self) -> str:
        span = (
            f"({format_number(self.least)}–{format_number(self.most)}, {self.rounds} rounds)" if self.rounds > 1 else ""
        )
        target = "" if self.bound is None else f"  at most {self.bound:g}{': MISSED' if self.missed else ''}"
        return f"  {self.name:<60} {format_number(self.median):>8} {self.unit:<3} {span}{target}".rstrip()


def format_number(value: float) -> str:
    """Return a number with three significant digits."""
    if value == round(value) and abs(value) < 1000:
        return f"{value:.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def figure(name: str, values: Sequence[float], unit: str = "ms", most: float | None = None) -> Figure:
    """Print and return a figure. Times are in milliseconds."""
    found = Figure(name, unit, statistics.median(values), min(values), max(values), len(values), most)
    print(found, flush=True)
    return found


def ratio(name: str, measured: Figure, reference: Figure, most: float | None = None) -> Figure:
    """Return a figure as a multiple of the reference's median in the same run."""
    median, least, largest = (
        round(each / reference.median, 3) for each in (measured.median, measured.least, measured.most)
    )
    found = Figure(name, "×", median, least, largest, measured.rounds, most)
    print(found, flush=True)
    return found


def total(name: str, *parts: Figure) -> Figure:
    """Return the sum of several references."""
    median, least, most = (sum(getattr(part, what) for part in parts) for what in ("median", "least", "most"))
    found = Figure(name, parts[0].unit, median, least, most, min(part.rounds for part in parts))
    print(found, flush=True)
    return found


def as_root() -> None:
    """Exit unless run as root: the lab's instance and its daemons have their own users."""
    if os.geteuid() != 0:
        raise SystemExit("run it as root, with sudo")


def milliseconds(what: Callable[[], object]) -> float:
    """Return the duration of a call in milliseconds."""
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1e3


def bare_interpreter() -> float:
    """Return the milliseconds of one start and end of `python3 -c pass`."""
    return milliseconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))


def imports(python: str, modules: str) -> float:
    """Return the milliseconds of one start and end of an interpreter that imports `modules`."""
    paths = [path for path in sys.path if "site-packages" in path]
    code = f"import sys; sys.path[:0] = {paths}; import {modules}"
    return milliseconds(lambda: subprocess.run([python, "-IS", "-c", code], check=True))


def pss(pid: int) -> float:
    """Return the proportional set size in MB (proc_pid_smaps(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of {pid}")


def processor_time(pid: int) -> float:
    """Return the processor time in milliseconds of a process and its threads, as counted by the scheduler."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def load_results() -> dict[str, Any]:
    """Return the content of results.json; empty if the file does not exist."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def figures_of(results: dict[str, Any], part: str) -> dict[str, Figure]:
    """Return {name: figure} of a part of results.json."""
    return {each["name"]: Figure(**each) for each in results.get(part, [])}


def save(part: str, figures: Sequence[Figure]) -> None:
    """Write this part of results.json with its run; the other parts stay."""
    known = load_results()
    runs = {**known.get("runs", {}), part: this_run()}
    write({**known, "runs": runs, part: [asdict(each) for each in figures]})


def this_run() -> dict[str, Any]:
    """Return the date, commit and machine of this run: results.json also has figures of other runs."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
        "seconds": round(time.monotonic() - _BEGAN),
        "load": _LOAD,
        "processors": os.cpu_count() or 1,
        "processor": model[0].partition(": ")[2] if model else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _commit() -> str:
    """Return HEAD, with a + if the code differs from the commit. Files that a run writes do not count."""

    def git(*words: str) -> str:
        argv = ["git", "-c", "safe.directory=*", *words]
        return subprocess.run(argv, cwd=_HERE, capture_output=True, text=True, check=False).stdout.strip()

    changed = git(
        "status", "--porcelain", "--", ":/", ":(top,exclude)bench/results.json", ":(top,exclude)docs/performance*"
    )
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def write(results: dict[str, Any]) -> None:
    """Write results.json atomically."""
    new = RESULTS.with_suffix(".new")
    new.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    new.replace(RESULTS)
