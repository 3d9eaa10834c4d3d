"""Two soak tests: random events, and growth of memory and logs.

    sudo .venv/bin/python -m bench.soak events [--seconds 3600] [--seed N]
    sudo .venv/bin/python -m bench.soak growth [--seconds 3600] [--seed N]

*events*: rounds of random events, each followed by a calm period, after which the kernel must match the cloud, objects
of other programs must be unchanged, and connections must still work (tests/system/chaos.py). Meanwhile a watch looks
for addresses of the metadata that are missing for more than 5 s without a cause in status.json. A violation ends the
lab, and a new lab continues with the next seed; the exit status is then 1. `--seed` repeats a run.

*growth*: four interfaces of 15 addresses whose metadata changes about every 2 s. Measured every minute: memory,
descriptors and threads of each daemon, and the size of the fetcher's log and of the audit log.

RefreshTimer is 1 s in *events*, and 2 s in *growth*: 24 s of it have as many refreshes as an hour with the default.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, as_root, figure, save
from bench.installed import installed
from bench.memory import ask_everything, memory_of, process_tree
from tests.lab import Lab, LabError, Spec
from tests.lab.namespaces import LAB_RUN
from tests.system.absences import Absence, Watch
from tests.system.chaos import Chaos, chaos
from tests.system.service import DAEMONS, running_lab

REFRESH_CONFIG = '[System]\nRefreshTimer = "2s"\n'
MEASURE_INTERVAL_S, CHANGE_INTERVAL_S = 60.0, 2.0  # seconds
MAX_LINGER_S = 15.0  # seconds, at most, between the events of a round and the calm period
FIRST_HOST, LAST_HOST = 3, 199  # range of host numbers in a subnet
MIN_ADDRESSES, MAX_ADDRESSES = 10, 20  # number of addresses of an interface


# Events


@dataclass
class Tally:
    """Results of the rounds of all labs."""

    rounds: int = 0
    events: int = 0
    samples: int = 0
    longest: float = 0.0
    violations: int = 0
    absences: list[Absence] = field(default_factory=list)


def events(seconds: float, seed: int, count: int, rounds: int) -> None:
    """Run rounds of `count` events for `seconds`, with at most `rounds` rounds in each lab."""
    tally, end = Tally(), time.monotonic() + seconds
    while time.monotonic() < end:
        print(f"seed {seed}", flush=True)
        chance = random.Random(seed)
        with (
            chaos(seed) as storm,
            Watch(
                storm.lab,
                storm.unmanaged,
                events=storm.last_events,
            ) as watch,
        ):
            for number in range(rounds):
                if not run_round(storm, count, number, chance.uniform(0, MAX_LINGER_S)):
                    tally.violations += 1
                    break
                tally.rounds += 1
                if time.monotonic() > end:
                    break
            tally.events += storm.events
        for absence in watch.found:
            print(f"VIOLATION: {absence}", flush=True)
        tally.samples += watch.samples
        tally.longest = max(tally.longest, watch.longest)
        tally.absences += watch.found
        seed += 1
    print(f"{tally.rounds} rounds and {tally.events} events, {tally.violations + len(tally.absences)} violations")
    figures = [
        figure("events", [tally.events], ""),
        figure("rounds without a violation", [tally.rounds], ""),
        figure("rounds with a violation", [tally.violations], ""),
        figure("samples of kernel and status.json", [tally.samples], ""),
        figure("longest unreported absence of an address", [tally.longest * 1e3], "ms"),
        figure("unreported absences longer than 5 s", [len(tally.absences)], ""),
    ]
    save("events", figures)
    if tally.violations or tally.absences:
        sys.exit(1)


def run_round(storm: Chaos, count: int, number: int, linger: float) -> bool:
    """Run a round: events, `linger` seconds, and a calm period. On a violation, print it and return False."""
    began = time.monotonic()
    try:
        storm.round(count, linger)
    except (AssertionError, LabError, OSError, ValueError) as error:
        print(f"VIOLATION in round {number}; to repeat: python -m bench.soak events --seed {storm.seed}", flush=True)
        traceback.print_exception(error)
        return False
    took = time.monotonic() - began
    print(f"  round {number}: {len(storm.lab.nics)} links, {storm.events} events, {took:.1f} s", flush=True)
    return True


# Growth


@dataclass(frozen=True)
class Series:
    """The values of one quantity of a daemon or a log, one per minute."""

    name: str
    unit: str
    values: list[float]


def open_files(pid: int) -> float:
    """Return the number of open descriptors of a daemon's processes."""
    return sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in process_tree(pid))


def threads(pid: int) -> float:
    """Return the number of threads of a daemon's processes."""
    return sum(len(list(Path(f"/proc/{each}/task").iterdir())) for each in process_tree(pid))


QUANTITIES: Mapping[str, tuple[str, Callable[[int], float]]] = {
    "PSS": ("MB", memory_of),
    "descriptors": ("", open_files),
    "threads": ("", threads),
}


def log_size(lab: Lab, log: str) -> float:
    """Return the size of a log in MB; the audit log includes its rotated files."""
    if log == "fetcher log":
        return lab.path(LAB_RUN / "log/fetcher").stat().st_size / 1e6
    return sum(each.stat().st_size for each in lab.path("/var/log/cloud-network").glob("audit.log*")) / 1e6


LOGS = ("fetcher log", "audit log")


def measure(lab: Lab, series: Sequence[Series]) -> None:
    """Add a value to every series, and print the values."""
    ask_everything(lab)
    found = {
        f"{name}: {what}": quantity(lab.daemons.pid(name))
        for name in DAEMONS
        for what, (_, quantity) in QUANTITIES.items()
    }
    found |= {log: log_size(lab, log) for log in LOGS}
    for each in series:
        each.values.append(found[each.name])
    print("  " + "  ".join(f"{each.name} {each.values[-1]:.4g}" for each in series), flush=True)


def change(lab: Lab, chance: random.Random) -> None:
    """Add or remove an address in the metadata of one interface, but never the primary address of the instance."""
    nic = chance.choice(lab.nics)
    removable = nic.addresses[1:] if nic == lab.nics[0] else nic.addresses
    if len(nic.addresses) >= MAX_ADDRESSES or (len(nic.addresses) > MIN_ADDRESSES and chance.random() < 0.5):
        lab.remove_address(nic.mac, chance.choice(removable))
    else:
        taken = {*lab.addresses, nic.gateway}
        hosts = [str(nic.network[at]) for at in range(FIRST_HOST, LAST_HOST) if str(nic.network[at]) not in taken]
        lab.add_address(nic.mac, chance.choice(hosts))


def ticks(seconds: float) -> Iterator[float]:
    """Yield the seconds since the start, every CHANGE_INTERVAL_S, until `seconds` have passed."""
    began, number = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        yield now
        number += 1
        time.sleep(max(0.0, began + number * CHANGE_INTERVAL_S - time.monotonic()))


def growth(seconds: float, seed: int) -> None:
    """Change the metadata for `seconds`, and measure every minute."""
    chance = random.Random(seed)
    series = [Series(f"{name}: {what}", unit, []) for name in DAEMONS for what, (unit, _) in QUANTITIES.items()]
    series += [Series(log, "MB", []) for log in LOGS]
    changes, next_measure = 0, 0.0
    with installed(), running_lab(Spec.aws(interfaces=4, addresses=15), REFRESH_CONFIG) as lab, Watch(lab) as watch:
        for now in ticks(seconds):
            if now >= next_measure:
                measure(lab, series)
                next_measure += MEASURE_INTERVAL_S
            change(lab, chance)
            changes += 1
        measure(lab, series)
        figures = [figure("metadata: changes", [changes], "")]
        figures += summary(series, seconds)
    for absence in watch.found:
        print(f"VIOLATION: {absence}", flush=True)
    figures.append(figure("metadata: longest unreported absence of an address", [watch.longest * 1e3], "ms"))
    save("growth", figures)
    if watch.found:
        sys.exit(1)


def summary(series: Sequence[Series], seconds: float) -> list[Figure]:
    """Return the first, the last and the greatest value of each daemon's series, and each log's growth per hour."""
    print(f"\n{'':<24}{'first':>10}{'last':>10}{'most':>10}")
    found = []
    for each in series:
        first, last, most = each.values[0], each.values[-1], max(each.values)
        print(f"{each.name:<24}{first:>10.4g}{last:>10.4g}{most:>10.4g} {each.unit}")
        if each.name in LOGS:
            found.append(figure(f"{each.name}: per hour", [(last - first) * 3600 / seconds], "MB"))
        else:
            values = {"first": first, "last": last, "largest": most}
            found += [figure(f"{each.name} {when}", [value], each.unit) for when, value in values.items()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("mode", choices=("events", "growth"))
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=None, help="default: random")
    parser.add_argument("--events", type=int, default=15, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="in each lab (default: %(default)s)")
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    if given.mode == "events":
        events(given.seconds, seed, given.events, given.rounds)
    else:
        growth(given.seconds, seed)


if __name__ == "__main__":
    as_root()
    main()
