"""netagent compared with `ip -batch` of the same changes, and with an interpreter with the same imports.

    sudo .venv/bin/python -m bench.netagent [--interfaces 15] [--addresses 50] [--rounds 5]

Bounds (issue 14): apply at most 1.5 x `ip -batch`; PSS at most 1.5 x an interpreter that has imported msgpack, prctl,
json, hashlib, socket and tomllib.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, as_root, figure, milliseconds, pss, ratio, save
from tests.lab import Lab, Spec
from tests.system.netagent.conftest import answers, start
from tests.system.netagent.wire import CONFIG, Wire, address, ifindex, main_rule, route, rule

Op = dict[str, Any]
MAX_APPLY_RATIO, MAX_MEMORY_RATIO = 1.5, 1.5  # × ip -batch; × the interpreter with these imports
IMPORTS = "import msgpack, prctl, json, hashlib, socket, tomllib; input()"


def changes(lab: Lab, addresses: int) -> tuple[list[Op], list[str], list[str]]:
    """Return the operations of a fetcher, the same changes for `ip -batch`, and their inverse."""
    main = "rule add lookup main pref 31010 suppress_prefixlength 0 proto 209"
    ops: list[Op] = [main_rule()]
    there: list[str] = [main]
    back: list[str] = [main.replace("add", "del")]
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


def measure_apply(lab: Lab, addresses: int, rounds: int) -> list[Figure]:
    """Measure the time from request to answer, and that of `ip -batch`."""
    ops, there, back = changes(lab, addresses)
    parts = [ops[at : at + 4096] for at in range(0, len(ops), 4096)]
    netagent_times: list[float] = []
    batch_times: list[float] = []
    for _ in range(rounds):
        with Wire(lab) as wire:

            def apply(wire: Wire = wire) -> None:
                for part in parts:
                    answer = wire.apply(*part)
                    assert answer["verdict"] == "applied", answer

            netagent_times.append(milliseconds(apply))
            flushed = wire.ask(request="flush", id="flush")
            assert flushed["done"] == len(ops), flushed
        batch_times.append(milliseconds(lambda: lab.batch(there)))
        lab.batch(back)
    print(f"{len(ops)} changes: {len(lab.nics) - 1} interfaces, {addresses} addresses each")
    answer_time, reference = (
        figure("netagent, request to answer", netagent_times),
        figure("ip -batch of the same", batch_times),
    )
    return [answer_time, reference, ratio("netagent's answer over ip -batch", answer_time, reference, MAX_APPLY_RATIO)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--interfaces", type=int, default=15)
    parser.add_argument("--addresses", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with Lab(Spec.aws(interfaces=given.interfaces + 1, addresses=given.addresses)) as lab:
        lab.write_config(CONFIG)
        lab.batch([f"link set {nic.name} up" for nic in lab.nics])
        start(lab)
        lab.wait_for(lambda: answers(lab), message="netagent to answer")
        figures: list[Figure] = []
        figures.append(figure("PSS at rest", [pss(lab.daemons.pid("netagent"))], "MB"))
        figures += measure_apply(lab, given.addresses, given.rounds)
        after = figure("PSS after the changes", [pss(lab.daemons.pid("netagent"))], "MB")
        with subprocess.Popen([sys.executable, "-I", "-c", IMPORTS], stdin=subprocess.PIPE) as reference:
            time.sleep(0.5)  # until it waits for input
            imports = figure("PSS of an interpreter with the same imports", [pss(reference.pid)], "MB")
            reference.communicate(b"\n")
        figures += [after, imports, ratio("netagent's PSS over it", after, imports, MAX_MEMORY_RATIO)]
    save("netagent", figures)


if __name__ == "__main__":
    as_root()
    main()
