"""Memory of the three daemons (PSS), at rest and after work, beside a bare interpreter.

    sudo .venv/bin/python -m bench.memory [--sizes 4x15,15x50] [--rounds 3] [--seconds 8]

They start as systemd/install has it, `/usr/bin/python3 -IS` with one private directory, so that nothing of the virtual
environment's own start-up counts. Their interpreter is a copy: of a page that several processes map each has its share
(proc_pid_smaps(5)), and the lab's own processes would take theirs of what an instance's daemons have for themselves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, figure, keep, pss
from tests.job import CONFIG, DAEMONS, refresh, settle
from tests.lab import Lab, Spec, processes

PROGRAMS = {
    "netagent": "cloud_network.netagent.start",
    "fetcher": "cloud_network.fetcher.loop",
    "api": "cloud_network.api.app",
}
PATHS = ("/api/v1/status", "/api/v1/health", "/api/v1/links", "/metrics", "/openapi.json", "/", "/api/v1/audit", "/no")
START = "#!{python} -IS\nimport sys\n\nsys.path[:0] = {paths}\nfrom {module} import main\n\nsys.exit(main())\n"
REST, ALL = "at rest", "at rest, all three"


@contextmanager
def installed() -> Iterator[Path]:
    """A directory with the programs as systemd/install writes them, and an interpreter of their own."""
    with TemporaryDirectory(prefix="cloud-network-bench-", dir="/usr/local/lib") as name:
        directory = Path(name)
        directory.chmod(0o755)
        python = directory / "python3"
        shutil.copy(Path("/usr/bin/python3").resolve(), python)
        paths = [path for path in sys.path if "site-packages" in path or "__editable__" in path]
        for daemon, module in PROGRAMS.items():
            script = directory / f"cloud-network-{daemon}"
            script.write_text(START.format(python=python, paths=paths, module=module))
            script.chmod(0o755)
        processes.SCRIPTS, before = directory, processes.SCRIPTS
        try:
            yield python
        finally:
            processes.SCRIPTS = before


def family(pid: int) -> float:
    """MB of a process and its children: gunicorn has a worker."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return pss(pid) + sum(pss(int(child)) for child in children)


def bare(python: Path) -> float:
    """MB of an interpreter that waits."""
    with subprocess.Popen([python, "-IS", "-c", "input()"], stdin=subprocess.PIPE) as process:
        time.sleep(0.3)
        found = pss(process.pid)
        process.communicate(b"\n")
    return found


def ask_everything(lab: Lab) -> None:
    """Every kind of answer of the api, several times."""
    for path in PATHS * 3:
        lab.run(["curl", "--silent", "--output", "/dev/null", f"http://127.0.0.1:5209{path}"])


def once(spec: Spec, seconds: float) -> dict[str, float]:
    """MB of each daemon, and of all: at rest after the first pass, at the peak of it all, and at rest again."""
    found: dict[str, float] = {}
    with Lab(spec) as lab:
        lab.write_config(CONFIG)

        def now(what: str) -> None:
            each = {name: family(lab.daemons.pid(name)) for name in DAEMONS}
            found.update({f"{name} {what}": size for name, size in each.items()} | {f"all {what}": sum(each.values())})

        for name in DAEMONS:
            lab.start(name)
        settle(lab)
        lab.run(["curl", "--silent", "--output", "/dev/null", "http://127.0.0.1:5209/api/v1/health"])
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of rest before it is measured")
    given = parser.parse_args()
    with installed() as python:
        figures: list[Figure] = [figure("a bare interpreter", [bare(python) for _ in range(given.rounds)], "MB")]
        for each in given.sizes.split(","):
            interfaces, addresses = map(int, each.split("x"))
            rounds = [
                once(Spec.aws(interfaces=interfaces, addresses=addresses), given.seconds) for _ in range(given.rounds)
            ]
            for name in rounds[0]:
                figures.append(figure(f"{interfaces} × {addresses}: {name}", [found[name] for found in rounds], "MB"))
    keep("memory", figures)


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("run it as root: sudo .venv/bin/python -m bench.memory")
    main()
