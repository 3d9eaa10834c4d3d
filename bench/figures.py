"""What every script of bench/ shares: a figure is the median of several rounds, with the least and the most."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Figure:
    """Of `name`, in `unit`."""

    name: str
    unit: str
    median: float
    least: float
    most: float
    rounds: int

    def __str__(self) -> str:
        span = f"({self.least:.1f}–{self.most:.1f}, {self.rounds} rounds)" if self.rounds > 1 else ""
        return f"  {self.name:<52} {self.median:10.1f} {self.unit:<4} {span}".rstrip()


def figure(name: str, values: Sequence[float], unit: str = "ms") -> Figure:
    """Print it and give it back; seconds are given as milliseconds already."""
    found = Figure(name, unit, statistics.median(values), min(values), max(values), len(values))
    print(found, flush=True)
    return found


def ratio(name: str, ours: Figure, reference: Figure, most: float | None = None) -> Figure:
    """Ours as a multiple of the reference of the same run."""
    found = Figure(name, "×", *(round(ours.median / reference.median, 3),) * 3, 1)
    bound = "" if most is None else f"   (at most {most:g}{'' if found.median <= most else ': MISSED'})"
    print(f"{found}{bound}", flush=True)
    return found


def milliseconds(what: Callable[[], object]) -> float:
    """How long it takes, on a clock."""
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1e3


def bare_interpreter() -> float:
    """One start and end of `python3 -c pass`."""
    return milliseconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))


def pss(pid: int) -> float:
    """Proportional set size in MB (proc_pid_smaps(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of {pid}")


def keep(part: str, figures: Sequence[Figure]) -> None:
    """Write this part of results.json; the others stay."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[part] = [asdict(each) for each in figures]
    RESULTS.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n")
