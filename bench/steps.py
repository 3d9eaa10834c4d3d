"""The steps of a pass one by one, in one process and without sockets.

    sudo .venv/bin/python -m bench.steps [--sizes 15x50,60x50] [--rounds 7]

In a lab's instance, with its real kernel and metadata: with none of the owned objects in the kernel, and with all. The
fetcher's steps are reading the metadata, reading the kernel, planning (`desired` and `plan`, which are pure) and
writing the request. netagent's steps, before any change, are reading the kernel and its checks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, as_root, figure, ratio, save
from tests.lab import Lab, Spec
from tests.system.service import CONFIG, is_healthy

# Targets of issue 15, for 3,000 addresses; MAX_DUMP_RATIO is a multiple of the bare dumps' time.
TARGET_SIZE, PLANNING_TARGET_MS, MAX_DUMP_RATIO = (60, 50), 100.0, 1.3


def measure(lab: Lab, name: str, rounds: int, bound: float | None) -> list[Figure]:
    """Return the figures of all steps in the present state of the kernel."""
    program = [sys.executable, "-m", "bench.inside.steps", str(rounds)]
    done = lab.run(["env", f"PYTHONPATH={Path(__file__).parents[1]}", *program], timeout=240)
    found: dict[str, list[float]] = json.loads(done.stdout)
    figures = {
        step: figure(f"{name}: {step}", each, most=bound if step == "planning" else None)
        for step, each in found.items()
    }
    most = MAX_DUMP_RATIO if bound is not None and name.endswith("all there") else None
    look = ratio(f"{name}: kernel read over bare dumps", figures["kernel read"], figures["bare dumps"], most)
    return [*figures.values(), look]


def measure_size(interfaces: int, addresses: int, rounds: int) -> list[Figure]:
    """Return all figures of one size."""
    name, bound = f"{interfaces} × {addresses}", PLANNING_TARGET_MS if (interfaces, addresses) == TARGET_SIZE else None
    with Lab(Spec.aws(interfaces=interfaces, addresses=addresses)) as lab:
        lab.write_config(CONFIG)
        figures = measure(lab, f"{name}, nothing there", rounds, bound)
        for daemon in ("netagent", "fetcher"):
            lab.start(daemon)
        lab.wait_for(lambda: is_healthy(lab), 120, "convergence")
        lab.stop("fetcher")
        return [*figures, *measure(lab, f"{name}, all there", rounds, bound)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="15x50,60x50")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    figures: list[Figure] = []
    for each in given.sizes.split(","):
        interfaces, addresses = map(int, each.split("x"))
        figures += measure_size(interfaces, addresses, given.rounds)
    save("steps", figures)


if __name__ == "__main__":
    as_root()
    main()
