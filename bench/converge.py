"""Cold convergence: from the start of the daemons to every address, route and rule in the kernel.

    sudo .venv/bin/python -m bench.converge [--sizes 1x1,4x15,15x50,60x50] [--rounds 5]

References for the same changes: `ip -batch`, the kernel's own cost; a shell that calls `ip` for each, the usual manual
way; two interpreters that import the daemons' packages; and the metadata server's own answer time for the same
requests. The target is for the sum of `ip -batch` and the two interpreters (issue 15). The daemons start as on an
instance (installed.py). The metadata server's record and netagent's audit log separate the stages.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, as_root, figure, imports, milliseconds, pss, ratio, save, total
from bench.installed import installed
from tests.lab import Lab, Record, Spec
from tests.system.netagent.wire import AUDIT
from tests.system.service import CONFIG, audit, status

Change = dict[str, Any]
REPLAY = Path(__file__).with_name("inside") / "replay.py"
TARGET_SIZES, MAX_RATIO = ((4, 15), (15, 50)), 1.8
FETCHER, NETAGENT = "requests, pyroute2, msgpack", "msgpack, prctl"  # packages of the two daemons
PARTS = ("start and imports", "metadata", "kernel read, planning, wire", "netagent and kernel")


def line(change: Change, names: dict[int, str]) -> str:
    """Return one operation of the audit log in the syntax of `ip -batch`."""
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
    source += "iif lo " if change.get("local") else ""
    return f"rule add {source}lookup {change['table']} pref {change['priority']} proto 209{rest}"


def inverse(text: str) -> str:
    """Return the inverse of a line of `ip -batch`."""
    if text.startswith("link"):
        return ""
    if text.startswith("address"):
        return text.replace("address add", "address del").replace(" noprefixroute", "")
    return text.replace("route replace", "route del").replace("rule add", "rule del")


@dataclass(frozen=True)
class Pass:
    """One start of the daemons: its duration in milliseconds, its requests and its changes."""

    taken: float
    parts: tuple[float, float, float, float]
    changes: list[Change]
    asked: list[Record]


def measure_once(lab: Lab) -> Pass:
    """Start both daemons, and wait until they have finished."""
    lab.path(AUDIT).unlink(missing_ok=True)
    lab.metadata.reset()
    wall = time.time() - time.monotonic()  # the record uses wall-clock time, the audit log the monotonic clock
    began = time.monotonic()
    lab.start("netagent")
    lab.start("fetcher")
    lab.wait_for(lambda: status(lab).get("state") == "ok" and bool(status(lab).get("links")), 120, "convergence")
    seen = time.monotonic()
    entries = [entry for entry in audit(lab) if entry["verdict"] == "applied"]
    ends = [entry["monotonic_us"] / 1e6 for entry in entries] or [seen]  # none: DHCP has configured everything
    heard = ends[0] - (entries[0]["duration_us"] / 1e6 if entries else 0.0)
    asked = [record for record in lab.metadata.requests() if record.at - wall < heard]
    marks = [began, asked[0].at - wall, asked[-1].at - wall, heard, ends[-1]]
    first, second, third, fourth = ((till - since) * 1e3 for since, till in pairwise(marks))
    changes = [op for entry in entries for op in entry["ops"]]
    return Pass((ends[-1] - began) * 1e3, (first, second, third, fourth), changes, asked)


def metadata_answer_times(lab: Lab, asked: Sequence[Record], rounds: int) -> list[float]:
    """Return the metadata server's time in milliseconds for all requests of a pass."""
    requests = [[each.method, f"{each.path}?{each.query}" if each.query else each.path] for each in asked]
    argv = [sys.executable, "-I", "-S", str(REPLAY), lab.convention.endpoints[0], str(rounds)]
    found: list[float] = json.loads(lab.run(argv, stdin=json.dumps(requests), timeout=120).stdout)
    return found


def measure_size(interfaces: int, addresses: int, rounds: int, python: str) -> list[Figure]:
    """Return all figures of one size."""
    passes: list[Pass] = []
    batch: list[float] = []
    shell: list[float] = []
    memory: list[float] = []
    name = f"{interfaces} × {addresses}"
    with Lab(Spec.aws(interfaces=interfaces, addresses=addresses)) as lab:
        lab.write_config(CONFIG)
        found = json.loads(lab.run(["ip", "-j", "link"]).stdout)
        names = {int(each["ifindex"]): str(each["ifname"]) for each in found}
        for number in range(rounds):
            passes.append(measure_once(lab))
            memory.append(pss(lab.daemons.pid("fetcher")))
            lab.stop("fetcher")
            lab.stop("netagent")
            there = [line(change, names) for change in passes[-1].changes]
            back = [text for text in map(inverse, reversed(there)) if text]
            down = [f"link set {text.split()[2]} down" for text in there if text.endswith(" up")]
            lab.batch(back + down)
            for path in (*lab.path("/run/cloud-network").glob("*.json"),):
                path.unlink()
            batch.append(milliseconds(lambda there=there: lab.batch(there)))  # type: ignore[misc]
            lab.batch(back + down)
            if number == 0:
                script = "\n".join(f"ip {text}" for text in there)
                shell.append(milliseconds(lambda script=script: lab.run(["sh", "-s"], stdin=script, timeout=600)))  # type: ignore[misc]
                lab.batch(back + down)
        server = metadata_answer_times(lab, passes[-1].asked, rounds)
    print(f"{name}: {len(passes[-1].changes)} changes, {len(passes[-1].asked)} metadata requests", flush=True)
    bound = MAX_RATIO if (interfaces, addresses) in TARGET_SIZES else None
    whole = figure(f"{name}: start to all in the kernel", [each.taken for each in passes])
    parts = [figure(f"{name}: {part}", [each.parts[at] for each in passes]) for at, part in enumerate(PARTS)]
    reference = figure(f"{name}: ip -batch of the same", batch)
    both = [imports(python, FETCHER) + imports(python, NETAGENT) for _ in batch]
    bare = figure(f"{name}: two interpreters that import the packages", both)
    answers = figure(f"{name}: the metadata server's own answer time", server)
    least = total(f"{name}: ip -batch and the two interpreters", reference, bare)
    return [
        figure(f"{name}: changes", [len(each.changes) for each in passes], ""),
        figure(f"{name}: metadata requests", [len(each.asked) for each in passes], ""),
        *(whole, *parts, reference, bare, answers, least),
        figure(f"{name}: a shell that calls ip for each", shell),
        ratio(f"{name}: over ip -batch and the two interpreters", whole, least, bound),
        figure(f"{name}: the fetcher's PSS", memory, "MB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="1x1,4x15,15x50,60x50")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    figures: list[Figure] = []
    with installed() as python:
        for each in given.sizes.split(","):
            interfaces, addresses = map(int, each.split("x"))
            figures += measure_size(interfaces, addresses, given.rounds, str(python))
    save("converge", figures)


if __name__ == "__main__":
    as_root()
    main()
