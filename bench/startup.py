"""Start-up time of `cnctl` and of the daemons' interpreters, compared with `python3 -c pass`.

    sudo .venv/bin/python -m bench.startup [--rounds 15]

In a lab of 4 × 15 with the three daemons. The programs take turns, so that other work on the machine affects all.
The daemons' imports are measured without their work: an interpreter imports the module and exits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, as_root, bare_interpreter, figure, milliseconds, ratio, save
from tests.lab import Spec
from tests.system.service import running_lab

CNCTL = str(Path(sys.executable).with_name("cnctl"))
MAX_RATIO = 8.0
COMMANDS = (("status", "network"), ("status",), ("status", "--json"), ("--help",))
MODULES = {
    "netagent": "cloud_network.netagent.server",
    "fetcher": "cloud_network.fetcher.__main__, cloud_network.fetcher.metadata.providers.aws",
    "api": "cloud_network.api.server",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    shown: dict[str, list[float]] = {}
    imported: dict[str, list[float]] = {}
    bare: list[float] = []
    within: list[float] = []
    with running_lab(Spec.aws(interfaces=4, addresses=15)) as lab:

        def run(*words: str) -> float:
            return milliseconds(lambda: lab.run(words))

        for _ in range(given.rounds):
            within.append(run(sys.executable, "-c", "pass"))
            for words in COMMANDS:
                shown.setdefault(" ".join(words), []).append(run(CNCTL, *words))
    for _ in range(given.rounds):
        bare.append(bare_interpreter())
        for name, module in MODULES.items():
            program = [sys.executable, "-c", f"import {module}"]
            imported.setdefault(name, []).append(
                milliseconds(lambda program=program: subprocess.run(program, check=True))  # type: ignore[misc]
            )
    reference = figure("python3 -c pass, in the instance", within)
    figures: list[Figure] = [reference]
    for text, values in shown.items():
        each = figure(f"cnctl {text}", values)
        bound = MAX_RATIO if text == "status network" else None
        figures += [each, ratio(f"cnctl {text}: over python3 -c pass", each, reference, bound)]
    alone = figure("python3 -c pass", bare)
    figures.append(alone)
    for name, values in imported.items():
        each = figure(f"imports of {name}", values)
        figures += [each, ratio(f"imports of {name}: over python3 -c pass", each, alone)]
    save("startup", figures)


if __name__ == "__main__":
    as_root()
    main()
