"""netagent beside its references: `ip -batch` of the same changes, and an interpreter that does nothing.

    sudo .venv/bin/python -m bench.netagent [--interfaces 15] [--addresses 50] [--rounds 5]

Prints medians with least and most, and the ratios that issue 4 bounds: apply 1.3, start to ready 2.5, PSS 15 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lab import Lab, Spec
from tests.netagent.conftest import answers, start
from tests.netagent.wire import CONFIG, Wire, address, ifindex, route, rule

Op = dict[str, Any]


def changes(lab: Lab, addresses: int) -> tuple[list[Op], list[str], list[str]]:
    """What a fetcher would ask for, the same for `ip -batch`, and how `ip -batch` takes it back."""
    ops: list[Op] = []
    there: list[str] = []
    back: list[str] = []
    nics = [nic for nic in lab.nics if nic.device]
    for nic in nics:
        index = ifindex(lab, nic.name)
        table = 9999 + index
        for number, host in enumerate(nic.addresses[:addresses]):
            length = 24 if number == 0 else 32
            ops.append({**address(index, f"{host}/{length}"), "route": number == 0})
            there.append(f"address add {host}/{length} dev {nic.name}" + (" noprefixroute" if number else ""))
            back.append(f"address del {host}/{length} dev {nic.name}")
        ops.append(route(index, nic.subnet))
        there.append(f"route replace {nic.subnet} dev {nic.name} table {table} proto 209")
        for net in [*(other.subnet for other in lab.nics if other is not nic), "0.0.0.0/0"]:
            ops.append(route(index, net, nic.gateway))
            there.append(f"route replace {net} via {nic.gateway} dev {nic.name} table {table} proto 209")
        back.append(f"route flush table {table}")
        for host in nic.addresses[:addresses]:
            for priority, suppress in ((31000, True), (31020, False)):
                ops.append(rule(host, table, priority, suppress=suppress))
                line = f"from {host} lookup {table} pref {priority} proto 209"
                there.append(f"rule add {line}" + (" suppress_prefixlength 0" if suppress else ""))
                back.append(f"rule del {line}")
    return ops, there, back


def seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def show(name: str, values: list[float], unit: str = "ms", factor: float = 1e3) -> float:
    middle = statistics.median(values)
    least, most = min(values) * factor, max(values) * factor
    print(f"{name:<44} {middle * factor:8.1f} {unit}   ({least:.1f}–{most:.1f}, {len(values)} rounds)")
    return middle


def measure_apply(lab: Lab, addresses: int, rounds: int) -> float:
    ops, there, back = changes(lab, addresses)
    parts = [ops[at : at + 4096] for at in range(0, len(ops), 4096)]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        with Wire(lab) as wire:

            def apply(wire: Wire = wire) -> None:
                for part in parts:
                    answer = wire.apply(*part)
                    assert answer["verdict"] == "applied", answer

            ours.append(seconds(apply))
            flushed = wire.ask(request="flush", id="flush")
            assert flushed["done"] == len(ops), flushed
        theirs.append(seconds(lambda: lab.batch(there)))
        lab.batch(back)
    print(f"{len(ops)} changes: {len(lab.nics) - 1} interfaces, {addresses} addresses each")
    return show("netagent, asked to answered", ours) / show("ip -batch of the same", theirs)


def measure_start(lab: Lab, rounds: int) -> float:
    netagent = str(Path(sys.executable).parent / "cloud-network-netagent")
    code = f"""
import os, select, socket, subprocess, sys, time
ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); ready.bind("/tmp/ready-bench")
os.chmod("/tmp/ready-bench", 0o666)
ours, bare = [], []
for _ in range({rounds}):
    began = time.perf_counter()
    process = subprocess.Popen([{netagent!r}], env={{"NOTIFY_SOCKET": "/tmp/ready-bench"}}, stderr=subprocess.DEVNULL)
    ready.recv(100)
    ours.append(time.perf_counter() - began)
    process.terminate(); process.wait(); ready.recv(100)
    began = time.perf_counter()
    subprocess.run([{sys.executable!r}, "-c", "pass"], env={{}})
    bare.append(time.perf_counter() - began)
os.unlink("/tmp/ready-bench")
import json; print(json.dumps([ours, bare]))
"""
    said = lab.run(["/usr/bin/python3", "-c", code], timeout=120).stdout
    ours, bare = json.loads(said)
    return show("start to ready", ours) / show("python3 -c pass, to its end", bare)


def pss(pid: int) -> int:
    """Proportional set size in KiB (proc_pid_smaps(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(f"no Pss of {pid}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--interfaces", type=int, default=15)
    parser.add_argument("--addresses", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with Lab(Spec.aws(interfaces=given.interfaces + 1, addresses=given.addresses)) as lab:
        lab.write_config(CONFIG)
        lab.batch([f"link set {nic.name} up" for nic in lab.nics])
        begun = measure_start(lab, max(given.rounds, 9))
        start(lab)
        lab.wait_for(lambda: answers(lab))
        rest = pss(lab.daemons.pid("netagent"))
        applied = measure_apply(lab, given.addresses, given.rounds)
        peak = pss(lab.daemons.pid("netagent"))
    bare = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    time.sleep(0.3)
    print(f"PSS at rest {rest / 1024:.1f} MB, after the changes {peak / 1024:.1f} MB; of a bare interpreter", end=" ")
    print(f"{pss(bare.pid) / 1024:.1f} MB")
    bare.communicate(b"\n")
    print(f"apply {applied:.2f} × ip -batch (at most 1.3); start {begun:.2f} × python3 -c pass (at most 2.5)")
    raise SystemExit(0 if applied <= 1.3 and begun <= 2.5 and peak <= 15 * 1024 else 1)


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("run it as root: sudo .venv/bin/python -m bench.netagent")
    main()
