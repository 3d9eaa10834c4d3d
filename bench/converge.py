"""Cold convergence: from the start of the daemons to every address, route and rule in the kernel.

    sudo .venv/bin/python -m bench.converge [--sizes 1x1,4x15,15x50,60x50] [--rounds 5]

Beside it, of the very same changes: `ip -batch`, which is the kernel's own cost, and a shell that calls `ip` for each,
which is what people do today. The clock of the end is netagent's audit line, and that of the start the same clock's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, bare_interpreter, figure, keep, milliseconds, pss, ratio
from tests.job import CONFIG, audit, status
from tests.lab import Lab, Spec
from tests.netagent.wire import AUDIT

Change = dict[str, Any]


def line(change: Change, names: dict[int, str]) -> str:
    """One operation of the audit log as `ip` would be told."""
    what, name = change["op"], names.get(change.get("link", 0), "")
    if what == "link_up":
        return f"link set {name} up"
    if what == "link_mtu":
        return f"link set {name} mtu {change['mtu']}"
    prefix = f"{change['address']}/{change['prefix']}"
    if what == "address_add":
        return f"address add {prefix} dev {name}" + ("" if change["route"] else " noprefixroute")
    if what == "route_replace":
        via = f"via {change['gateway']} " if change["gateway"] else ""
        return f"route replace {prefix} {via}dev {name} table {change['table']} proto 209"
    source = f"from {prefix} " if change["prefix"] else ""
    source += "iif lo " if change["local"] else ""
    rest = " suppress_prefixlength 0" if change["suppress"] else ""
    return f"rule add {source}lookup {change['table']} pref {change['priority']} proto 209{rest}"


def undone(text: str) -> str:
    """How `ip -batch` takes a line back."""
    if text.startswith("link"):
        return ""
    if text.startswith("address"):
        return text.replace("address add", "address del").replace(" noprefixroute", "")
    return text.replace("route replace", "route del").replace("rule add", "rule del")


def once(lab: Lab) -> tuple[float, list[Change], int]:
    """Start both daemons; milliseconds until the last change was applied, the changes, and requests of the pass."""
    lines = len(audit(lab)) if lab.path(AUDIT).exists() else 0
    began = time.monotonic()
    lab.start("netagent")
    lab.start("fetcher")
    lab.wait_for(lambda: status(lab).get("state") == "ok" and bool(status(lab).get("links")), 120, "convergence")
    seen = time.monotonic()
    entries = [entry for entry in audit(lab)[lines:] if entry["verdict"] == "applied"]
    ended = max((entry["monotonic_us"] / 1e6 for entry in entries), default=seen)  # none: DHCP has done it all
    return (ended - began) * 1e3, [op for entry in entries for op in entry["ops"]], status(lab)["metadata_requests"]


def size(interfaces: int, addresses: int, rounds: int) -> list[Figure]:
    """All figures of one size."""
    ours: list[float] = []
    batch: list[float] = []
    shell: list[float] = []
    memory: list[float] = []
    name = f"{interfaces} × {addresses}"
    with Lab(Spec.aws(interfaces=interfaces, addresses=addresses)) as lab:
        lab.write_config(CONFIG)
        for number in range(rounds):
            taken, changes, requests = once(lab)
            ours.append(taken)
            memory.append(pss(lab.daemons.pid("fetcher")))
            lab.stop("fetcher")
            found = json.loads(lab.run(["ip", "-j", "link"]).stdout)
            names = {int(each["ifindex"]): str(each["ifname"]) for each in found}
            there = [line(change, names) for change in changes]
            back = [text for text in map(undone, reversed(there)) if text]
            lab.stop("netagent")
            lab.batch(back)
            for path in (*lab.path("/run/cloud-network").glob("*.json"),):
                path.unlink()
            batch.append(milliseconds(lambda there=there: lab.batch(there)))  # type: ignore[misc]
            lab.batch(back)
            if number == 0:
                script = "\n".join(f"ip {text}" for text in there)
                shell.append(milliseconds(lambda script=script: lab.run(["sh", "-s"], stdin=script, timeout=600)))  # type: ignore[misc]
                lab.batch(back)
    print(f"{name}: {len(changes)} changes, {requests} metadata requests", flush=True)
    bare = figure("two starts of a bare interpreter", [bare_interpreter() + bare_interpreter() for _ in range(5)])
    mine = figure(f"{name}: start to all in the kernel", ours)
    reference = figure(f"{name}: ip -batch of the same", batch)
    calls = figure(f"{name}: a shell that calls ip for each", shell)
    figures = [mine, reference, calls, bare, figure(f"{name}: the fetcher's PSS", memory, "MB")]
    both = Figure("reference", "ms", reference.median + bare.median, 0, 0, 1)
    return [*figures, ratio(f"{name}: over ip -batch and two bare interpreters", mine, both)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="1x1,4x15,15x50,60x50")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    figures: list[Figure] = []
    for each in given.sizes.split(","):
        interfaces, addresses = map(int, each.split("x"))
        figures += size(interfaces, addresses, given.rounds)
    keep("converge", figures)


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("run it as root: sudo .venv/bin/python -m bench.converge")
    main()
