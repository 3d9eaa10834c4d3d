"""Drift and hot-plug: time until the network is repaired, and until a new interface works.

    sudo .venv/bin/python -m bench.drift [--sizes 4x15,60x50] [--rounds 5] [--plugs 5]

Drift: `ip` removes an owned address, route or rule. The time is that from the kernel's notification of the
removal to the one of the repair. The reference is the same fetcher without kernel events, so that only its timer starts
a pass: with a RefreshTimer of 2 s the mean wait is 1 s; with the default of 5 min it is 150 s. Hot-plug: from
the plugging to the last change in netagent's audit log, with metadata that names the interface before, and with
metadata that names it only afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, as_root, figure, ratio, save
from tests.lab import Interface, Lab, Spec, processes
from tests.system.service import PROTOCOL, audit, ip, is_healthy, refresh, running_lab

REPAIR = Path(__file__).with_name("inside") / "repair.py"
TARGET_SIZE, TARGET_MS = (4, 15), 200.0  # milliseconds: issue 15
REFRESH_TIMER_S = 2.0
PAUSE_S = 1.2  # seconds, up to twice as many: after a pass the fetcher waits half a second before the next
WITHOUT_EVENTS = """#!{python}
import sys
from cloud_network.fetcher import __main__, daemon


async def ignore_events(self):
    return


daemon.Daemon._listen = ignore_events  # it receives no kernel events
sys.exit(__main__.main())
"""


def removals(lab: Lab, count: int) -> list[list[str]]:
    """Return this number of `ip` commands, each for another object: repeated reverts of one are a conflict."""
    addresses = [
        ["address", "del", f"{each['local']}/32", "dev", str(link["ifname"])]
        for link in ip(lab, "address")
        for each in link["addr_info"]
        if each["prefixlen"] == 32
    ]
    routes = [
        ["route", "del", str(each["dst"]), "table", str(each["table"])]
        for each in ip(lab, "-d", "route", "show", "table", "all")
        if str(each.get("protocol")) == PROTOCOL and "gateway" in each and each["dst"] != "default"
    ]
    rules = [
        ["rule", "del", "pref", str(each["priority"]), "from", f"{each['src']}/{each.get('srclen', 32)}"]
        for each in ip(lab, "-d", "rule")
        if str(each.get("protocol")) == PROTOCOL and each["src"] != "all"
    ]
    found = [each for each in chain(*zip_longest(addresses, routes, rules)) if each][: 3 * count]
    return [["ip", *each] for each in found]


def repairs(lab: Lab, count: int, pause: float) -> list[float]:
    """Return the milliseconds of each repair."""
    program = ["/usr/bin/python3", "-I", "-S", str(REPAIR), str(pause)]
    done = lab.run(program, stdin=json.dumps(removals(lab, count)), timeout=170)
    found: list[float] = json.loads(done.stdout)
    return found


@contextmanager
def without_kernel_events() -> Iterator[None]:
    """Replace the fetcher by one that receives no kernel events."""
    before = processes.SCRIPTS
    with tempfile.TemporaryDirectory(prefix="bench-", dir=before) as name:
        directory = Path(name)
        directory.chmod(0o755)
        for each in before.glob("cloud-network-*"):
            (directory / each.name).symlink_to(each)
        fetcher = directory / "cloud-network-fetcher"
        fetcher.unlink()
        fetcher.write_text(WITHOUT_EVENTS.format(python=sys.executable))
        fetcher.chmod(0o755)
        processes.SCRIPTS = directory
        try:
            yield
        finally:
            processes.SCRIPTS = before


def measure_drift(interfaces: int, addresses: int, rounds: int) -> Figure:
    """Measure repairs with kernel events."""
    with running_lab(Spec.aws(interfaces=interfaces, addresses=addresses), "", "netagent", "fetcher") as lab:
        time.sleep(2)
        most = TARGET_MS if (interfaces, addresses) == TARGET_SIZE else None
        return figure(f"{interfaces} × {addresses}: drift repaired", repairs(lab, rounds, PAUSE_S), most=most)


def measure_drift_without_events(interfaces: int, addresses: int, rounds: int) -> Figure:
    """Measure repairs by the timer alone."""
    timer = f'[System]\nRefreshTimer = "{REFRESH_TIMER_S:g}s"\n'
    with (
        without_kernel_events(),
        running_lab(Spec.aws(interfaces=interfaces, addresses=addresses), timer, "netagent", "fetcher") as lab,
    ):
        name = f"{interfaces} × {addresses}: drift repaired, no kernel events, RefreshTimer {REFRESH_TIMER_S:g} s"
        return figure(name, repairs(lab, rounds, PAUSE_S))


def measure_hot_plug(lab: Lab, number: int, *, known: bool) -> float:
    """Return the milliseconds from plugging an interface of 15 addresses to the last change."""
    began = 0.0

    def start_clock() -> None:
        nonlocal began
        if known:
            refresh(lab)
            time.sleep(1.5)
        began = began or time.monotonic()

    began = 0.0 if known else time.monotonic()
    first = "metadata" if known else "interface"
    lab.attach_interface(Interface(f"10.1.{number}.0/24", 15), first_update=first, between_updates=start_clock)  # type: ignore[arg-type]
    lab.wait_for(lambda: is_healthy(lab), 60, "the new interface")
    ended = max(entry["monotonic_us"] / 1e6 for entry in audit(lab) if entry["verdict"] == "applied")
    time.sleep(1.5)
    return float(ended - began) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="4x15,60x50")
    parser.add_argument("--rounds", type=int, default=5, help="of each, an address, a route and a rule")
    parser.add_argument("--plugs", type=int, default=5)
    given = parser.parse_args()
    figures: list[Figure] = []
    for each in given.sizes.split(","):
        interfaces, addresses = map(int, each.split("x"))
        figures.append(measure_drift(interfaces, addresses, given.rounds))
    alone = measure_drift_without_events(4, 15, given.rounds)
    figures += [alone, ratio("4 × 15: relative to no kernel events", figures[0], alone)]
    with running_lab(Spec.aws(interfaces=4, addresses=15), "", "netagent", "fetcher") as lab:
        time.sleep(2)
        plugs = [
            (known, measure_hot_plug(lab, 2 * n + known, known=known))
            for n in range(given.plugs)
            for known in (True, False)
        ]
    for known, name in ((True, "in the metadata before"), (False, "in the metadata afterwards")):
        found = [taken for when, taken in plugs if when is known]
        figures.append(figure(f"hot-plug, {name}", found, most=TARGET_MS if known else None))
    save("drift", figures)


if __name__ == "__main__":
    as_root()
    main()
