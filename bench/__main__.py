"""`make bench`: run every part in turn, then generate the plots and docs/performance.md.

    sudo .venv/bin/python -m bench [PART …]      all parts, or the named ones

Each part is a separate program with a time limit. It writes its figures into bench/results.json once it has all of
them: a part that fails keeps the figures of its last run, and the others continue. Ctrl-C ends the running part and its
lab. The exit status is 1 if a part failed. A missed target is reported and is no failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import page, plots
from bench.figures import as_root, figures_of, load_results

CHECKOUT = Path(__file__).parents[1]
END_TIMEOUT_S = 20.0  # seconds for a part to remove its lab


class Part(NamedTuple):
    """A program of bench/, what it measures, and its approximate duration in seconds on two processors."""

    name: str
    what: str
    seconds: int
    arguments: tuple[str, ...] = ()

    @property
    def limit(self) -> int:
        """Return the time limit in seconds: a slower machine may take three times as long."""
        return 60 + 3 * self.seconds


PARTS = (
    Part("startup", "cnctl, and what the daemons import", 15),
    Part("netagent", "netagent compared with ip -batch", 15),
    Part("steps", "the steps of a pass", 60),
    Part("converge", "cold convergence, 1 × 1 to 60 × 50", 150),
    Part("refresh", "a refresh that changes nothing", 60),
    Part("change", "one change among 3,000", 140),
    Part("drift", "drift and hot-plug", 150),
    Part("memory", "memory of the three daemons", 90, ("--rounds", "5", "--seconds", "4")),
    Part("load", "many links, routes and rules of other programs", 120),
    Part("datapath", "what the rules cost a packet", 60),
    Part("marks", "what ForwardedReplies=mark costs a packet", 60),
    Part("rest", "the REST server compared with a Flask hello", 40, ("2",)),
)


def run(part: Part) -> bool:
    """Run a part with its output on the terminal. Return True if it succeeded."""
    argv = [sys.executable, "-m", f"bench.{part.name}", *part.arguments]
    process = subprocess.Popen(argv, cwd=CHECKOUT, start_new_session=True)
    try:
        return process.wait(part.limit) == 0
    except subprocess.TimeoutExpired:
        print(f"  stopped after {part.limit} s; it takes {part.seconds} s on two idle processors")
        return False
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part as Ctrl-C would, so that it removes its lab; kill it if that takes too long."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue


def print_targets(measured: Collection[str]) -> None:
    """Print the targets that were met and missed, for the parts measured now and for earlier ones."""
    found = [(part.name, each) for part in PARTS for each in figures_of(load_results(), part.name).values()]
    bounded = [(part, each) for part, each in found if each.bound is not None]
    for title, missed in (("met", False), ("missed", True)):
        those = [(part, each) for part, each in bounded if each.missed is missed]
        print(f"\n{len(those)} of {len(bounded)} targets are {title}" + (":" if those else ""))
        for part, each in those:
            before = "" if part in measured else "   (of an earlier run)"
            print(f"  {part:<9}{each.name:<58}{each.shown:>9}   at most {each.bound:g} {each.unit}{before}".rstrip())


def _interrupt(*_: object) -> None:
    """End the running part at any signal."""
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benchmarks and write the results.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(part.name for part in PARTS))
    given = parser.parse_args()
    unknown = sorted(set(given.parts) - {part.name for part in PARTS})
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; accepted: {', '.join(part.name for part in PARTS)}")
    as_root()
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _interrupt)
    existing = [part for part in PARTS if Path(__file__).with_name(f"{part.name}.py").exists()]
    chosen = [part for part in existing if not given.parts or part.name in given.parts]
    began, failed = time.monotonic(), list[str]()
    load = os.getloadavg()[0]
    if load > 0.5 * (os.cpu_count() or 1):
        print(f"The load is {load:.1f} already: other work makes the figures higher and less stable.")
    for number, part in enumerate(chosen, 1):
        left = sum(each.seconds for each in chosen[number - 1 :])
        print(
            f"\n{number} of {len(chosen)}: {part.what} (about {part.seconds} s; {left / 60:.0f} min to go)", flush=True
        )
        if not run(part):
            failed.append(part.name)
    plots.draw()
    page.generate()
    print_targets({part.name for part in chosen} - set(failed))
    print(
        f"\n{(time.monotonic() - began) / 60:.1f} min; bench/results.json, docs/performance.md and docs/*.svg are new"
    )
    if failed:
        sys.exit(f"these parts failed, and keep the figures of their last run: {', '.join(failed)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the lab was removed")
