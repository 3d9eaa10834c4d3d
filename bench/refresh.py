"""A refresh without changes: processor time, metadata requests, and writes to the kernel, which must be 0.

    sudo .venv/bin/python -m bench.refresh [--sizes 4x15,60x50] [--rounds 5] [--seconds 10]

The reference is the processor time of three `ip` commands that only show the same addresses, routes and rules. A day is
288 refreshes (RefreshTimer is 5 min) plus what the daemons use while nothing happens.
Three observations prove that nothing was written: the kernel sent no notification, the audit log has no new line, and
netagent, the only process that could write, used no processor time.
The same is measured on a host on which netagent refuses the addresses of one interface for good.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, as_root, figure, processor_time, ratio, save, total
from tests.lab import Interface, Lab, Spec
from tests.system.netagent.wire import AUDIT
from tests.system.service import CONFIG, DAEMONS, audit, is_healthy, refresh, status

DAY_S, REFRESHES = 86400.0, 288
TARGET_NAME, TARGET_MS = "4 × 15", 100.0  # milliseconds of processor: issue 15
REFUSED_SIZE = 4, 15
QUIET_S = 3.0  # seconds without a metadata request: the facts for display have been read, too
SHOW = (["ip", "address"], ["ip", "route", "show", "table", "all"], ["ip", "rule"])


def with_refusals(interfaces: int, addresses: int) -> Spec:
    """Return a host whose last interface has addresses that are neither private nor learned (RFC 2544)."""
    subnets = [*(f"10.0.{number}.0/24" for number in range(1, interfaces)), "198.18.7.0/24"]
    return Spec(tuple(Interface(subnet, addresses) for subnet in subnets))


def wait_until_quiet(lab: Lab, state: str) -> None:
    """Wait until the daemons are idle."""
    lab.wait_for(lambda: is_healthy(lab) if state == "ok" else status(lab).get("state") == state, 120, "convergence")

    def resting() -> bool:
        lab.metadata.reset()
        time.sleep(QUIET_S)
        return not lab.metadata.requests()

    lab.wait_for(resting, 120, "the daemons to be idle")


def ip_processor_time(lab: Lab) -> float:
    """Return the processor time, in milliseconds, of `ip` showing the same objects."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (used.ru_utime + used.ru_stime) * 1e3

    before = spent()
    for words in SHOW:
        lab.run(words)
    return spent() - before


def pids(lab: Lab, name: str) -> list[int]:
    """Return the pids of a daemon and its children: gunicorn has a worker."""
    pid = lab.daemons.pid(name)
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def measure(name: str, spec: Spec, state: str, rounds: int, seconds: float) -> list[Figure]:
    """Return all figures of one host, which is in this state."""
    spent: dict[str, list[float]] = {"fetcher": [], "netagent": []}
    requests: list[float] = []
    writes: list[float] = []
    with Lab(spec) as lab:
        lab.write_config(CONFIG)
        for daemon in DAEMONS:
            lab.start(daemon)
        wait_until_quiet(lab, state)
        monitor = lab.instance.popen(["ip", "monitor", "address", "route", "rule"])
        idle: dict[str, float] = {}
        before = {daemon: sum(map(processor_time, pids(lab, daemon))) for daemon in DAEMONS}
        time.sleep(seconds)
        for daemon in DAEMONS:
            idle[daemon] = (sum(map(processor_time, pids(lab, daemon))) - before[daemon]) / seconds
        for _ in range(rounds):
            lines = len(audit(lab)) if lab.path(AUDIT).exists() else 0
            had = {daemon: processor_time(lab.daemons.pid(daemon)) for daemon in spent}
            assert refresh(lab) == state
            for daemon, values in spent.items():
                values.append(processor_time(lab.daemons.pid(daemon)) - had[daemon])
            requests.append(status(lab)["metadata_requests"])
            writes.append(len(audit(lab)) - lines if lab.path(AUDIT).exists() else 0)
        monitored = Path(f"/proc/{monitor.pid}/task/{monitor.pid}/children").read_text()  # the other is nsenter
        os.kill(int(monitored), signal.SIGTERM)
        logged = len(monitor.communicate(timeout=10)[0].splitlines())
        reference = [ip_processor_time(lab) for _ in range(rounds)]
    most = TARGET_MS if name.startswith(TARGET_NAME) else None
    busy = figure(f"{name}: the fetcher's processor time", spent["fetcher"], most=most)
    asleep = figure(f"{name}: netagent's processor time", spent["netagent"], most=0)
    showing = figure(f"{name}: ip showing the same", reference)
    figures = [busy, asleep, showing, ratio(f"{name}: over ip showing the same", busy, showing)]
    figures.append(figure(f"{name}: metadata requests", requests, ""))
    figures.append(figure(f"{name}: writes to the kernel", [*writes, logged], "", most=0))
    days = []
    for daemon in DAEMONS:
        work = sum(spent.get(daemon, [0.0])) / rounds * REFRESHES
        days.append(figure(f"{name}: a day of {daemon}", [(idle[daemon] * DAY_S + work) / 1e3], "s"))
    return [*figures, *days, total(f"{name}: a day of all three", *days)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="4x15,60x50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of rest whose processor time is measured")
    given = parser.parse_args()
    figures: list[Figure] = []
    for each in given.sizes.split(","):
        interfaces, addresses = map(int, each.split("x"))
        spec = Spec.aws(interfaces=interfaces, addresses=addresses)
        figures += measure(f"{interfaces} × {addresses}", spec, "ok", given.rounds, given.seconds)
    interfaces, addresses = REFUSED_SIZE
    name = f"{interfaces} × {addresses}, one interface refused"
    figures += measure(name, with_refusals(interfaces, addresses), "degraded", given.rounds, given.seconds)
    save("refresh", figures)


if __name__ == "__main__":
    as_root()
    main()
