"""One more address among 3,000: time from the change of the metadata to the first packet that it answers.

    sudo .venv/bin/python -m bench.change [--rounds 5]

On EC2 by polling (RefreshTimer is 1 s here; with the default of 5 min, half of it passes on average before the read),
and on GCP by a request that the metadata server keeps open until something changes. 60 × 50 addresses on EC2; on GCP
8 interfaces, the largest number there, with 94 alias ranges of four addresses each. The metadata server's record and
netagent's audit log separate the stages: waiting, reading, from validated metadata to netagent's acknowledgement, and
until the address answers. "Validated" starts at the last request, so it includes the time for its answer, parsing and
validation.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, as_root, figure, save
from tests.lab import Interface, Lab, Spec
from tests.lab.reach import LineReader
from tests.system.service import CONFIG, MACS, audit, is_healthy, running_lab

PING = Path(__file__).with_name("inside") / "ping.py"
TARGET_MS = 600.0  # milliseconds from validated metadata: issue 15
REFRESH_CONFIG = '[System]\nRefreshTimer = "1s"\n'
DOCUMENT = "/computeMetadata/v1/"


STAGES = ("until the pass begins", "reading the metadata", "validated to acknowledged", "acknowledged to answered")


class Stages(NamedTuple):
    """Durations of the stages in milliseconds, in their order."""

    waiting: float
    reading: float
    acknowledged: float
    answered: float


def gcp() -> Spec:
    """Return a lab with 3,008 addresses in 752 alias ranges, and eight of interfaces."""
    interfaces = [
        Interface(f"10.{n}.0.0/20", 1, prefixes=tuple(f"10.{n}.{1 + k // 64}.{4 * (k % 64)}/30" for k in range(94)))
        for n in range(1, 9)
    ]
    return Spec(tuple(interfaces), provider="gcp")


def measure_once(lab: Lab, address: str, add: Callable[[], None], first: str) -> Stages:
    """Add the address and wait until it answers; `first` is the path of the first request of a pass."""
    process = lab.beyond[0].popen(["/usr/bin/python3", "-I", "-S", str(PING), address])
    try:
        lines, lab_clock = LineReader(process.stdout), time.time() - time.monotonic()
        assert lines.next(10) == "asking"
        before = len(audit(lab))
        began = time.monotonic()
        add()
        answered = float(lines.next(120) or "nan")
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout:
            process.stdout.close()
    lab.wait_for(lambda: any(entry["verdict"] == "confirmed" for entry in audit(lab)[before:]), 30, "its confirmation")
    applied = next(entry["monotonic_us"] / 1e6 for entry in audit(lab)[before:] if entry["verdict"] == "applied")
    asked = [(record.path, record.at - lab_clock) for record in lab.metadata.requests()]
    read = [at for path, at in asked if at < applied]
    started = max(began, *(at for path, at in asked if at < applied and path == first))  # it may have started earlier
    marks = [began, started, read[-1], applied, answered]
    return Stages(*((till - since) * 1e3 for since, till in pairwise(marks)))


def measure_polling(rounds: int) -> list[Stages]:
    """Measure EC2 with 60 × 50 addresses."""
    with Lab(Spec.aws(interfaces=60, addresses=50)) as lab:
        lab.write_config(CONFIG + REFRESH_CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: is_healthy(lab), 120, "convergence")
        lab.wait_for(lambda: not facts_pending(lab), 60, "the facts to have been read")
        found = []
        for number in range(rounds):
            nic, address = lab.nics[7 * number + 1], f"10.0.{7 * number + 2}.200"
            time.sleep(1.3)
            found.append(measure_once(lab, address, lambda mac=nic.mac, new=address: lab.add_address(mac, new), MACS))  # type: ignore[misc]
            lab.wait_for(lambda: not facts_pending(lab), 60, "the facts to have been read")
        return found


def facts_pending(lab: Lab) -> bool:
    """Return True if the last pass read more than the keys of the network: more facts are still to be read."""
    lab.metadata.reset()
    time.sleep(3)
    return any(path.endswith("/vpc-id") for path in lab.metadata.paths())


def measure_long_poll(rounds: int) -> list[Stages]:
    """Measure GCP with 8 interfaces and 752 alias ranges; the fetcher waits for the change with a long poll."""
    with running_lab(gcp(), "", "netagent", "fetcher") as lab:
        found = []
        for number in range(rounds):
            lab.wait_for(lambda: lab.metadata.waiting() > 0, 60, "the fetcher to wait")
            lab.metadata.reset()
            time.sleep(6)  # the watch backs off while the metadata changes continuously; this one is calm
            nic, address = lab.nics[number % 8], f"10.{number % 8 + 1}.9.{4 * number}"
            found.append(
                measure_once(lab, address, lambda mac=nic.mac, new=address: lab.add_range(mac, f"{new}/30"), DOCUMENT)  # type: ignore[misc]
            )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    figures: list[Figure] = []
    for name, found in (
        ("EC2, polling every second", measure_polling(given.rounds)),
        ("GCP, waiting", measure_long_poll(given.rounds)),
    ):
        figures.append(figure(f"{name}: change to answer", [sum(each) for each in found]))
        texts = (
            "until the pass begins",
            "reading the metadata",
            "validated to acknowledged",
            "acknowledged to answered",
        )
        for at, text in enumerate(texts):
            bound = TARGET_MS if text.startswith("validated") else None
            figures.append(figure(f"{name}: {text}", [each[at] for each in found], most=bound))
    save("change", figures)


if __name__ == "__main__":
    as_root()
    main()
