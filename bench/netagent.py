"""netagent beside its references: `ip -batch` of the same changes, and an interpreter that does nothing.

    sudo .venv/bin/python -m bench.netagent [--interfaces 15] [--addresses 50] [--rounds 5]

What issue 4 bounds: apply, start to ready, PSS.
"""

from __future__ import annotations

import argparse
import compileall
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloud_network.netagent import start as by_hand
from cloud_network.netagent.start import BECOME, LOGS, RUNTIME, USER

from bench.figures import Figure, as_root, figure, keep, milliseconds, pss, ratio
from tests.lab import Lab, Spec
from tests.system.netagent.conftest import answers, start
from tests.system.netagent.wire import CONFIG, Wire, address, ifindex, route, rule

Op = dict[str, Any]
APPLY, START, MEMORY = 1.3, 2.5, 15.0  # issue 4: × ip -batch, × python3 -c pass, MB


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


def measure_apply(lab: Lab, addresses: int, rounds: int) -> list[Figure]:
    """Asked to answered, beside `ip -batch`."""
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

            ours.append(milliseconds(apply))
            flushed = wire.ask(request="flush", id="flush")
            assert flushed["done"] == len(ops), flushed
        theirs.append(milliseconds(lambda: lab.batch(there)))
        lab.batch(back)
    print(f"{len(ops)} changes: {len(lab.nics) - 1} interfaces, {addresses} addresses each")
    mine, reference = figure("netagent, asked to answered", ours), figure("ip -batch of the same", theirs)
    return [mine, reference, ratio("netagent's answer over ip -batch", mine, reference, APPLY)]


def measure_start(lab: Lab, rounds: int) -> list[Figure]:
    """Start to ready, as systemd does it with both sockets and by hand, beside a whole life of `python3 -c pass`.

    As an installation has it (systemd/install): compiled, and with -IS.
    """
    compileall.compile_dir(Path(by_hand.__file__).parent, quiet=1)
    paths = [path for path in sys.path if "site-packages" in path or "__editable__" in path]
    program = f"import sys; sys.path[:0] = {paths!r}; from cloud_network.netagent.{{}} import main; main()"
    server, netagent = ([sys.executable, "-IS", "-c", program.format(name)] for name in ("server", "start"))
    lab.run(["install", "-d", "-o", USER, "-g", USER, RUNTIME, LOGS])
    code = f"""
import os, signal, socket, subprocess, sys, time
ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); ready.bind("/tmp/ready-bench")
os.chmod("/tmp/ready-bench", 0o666)
listener = socket.socket(socket.AF_UNIX); listener.bind("/tmp/listener-bench"); listener.listen()
rtnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
where = {{"RUNTIME_DIRECTORY": {RUNTIME!r}, "LOGS_DIRECTORY": {LOGS!r}, "BOOT_ID": "0" * 32, "LISTEN_FDS": "2"}}
told = {{"NOTIFY_SOCKET": "/tmp/ready-bench"}}
sink = os.open("/dev/null", os.O_WRONLY)

def activated():
    pid = os.fork()
    if pid == 0:
        os.dup2(sink, 2); os.dup2(listener.fileno(), 10); os.dup2(rtnetlink.fileno(), 11)
        os.dup2(10, 3); os.dup2(11, 4)
        program = [*{BECOME!r}, "--", *{server!r}]
        os.execvpe(program[0], program, where | told | {{"PATH": os.environ["PATH"], "LISTEN_PID": str(os.getpid())}})
    return pid

def by_hand():
    env = told | {{"PATH": os.environ["PATH"]}}
    return os.posix_spawn({sys.executable!r}, {netagent!r}, env, file_actions=[(os.POSIX_SPAWN_DUP2, sink, 2)])

taken = {{"activated": [], "by hand": [], "bare": []}}
for _ in range({rounds}):
    for name, start in (("activated", activated), ("by hand", by_hand)):
        began = time.perf_counter()
        pid = start()
        ready.recv(100)
        taken[name].append(1e3 * (time.perf_counter() - began))
        os.kill(pid, signal.SIGTERM); os.waitpid(pid, 0)
    began = time.perf_counter()
    subprocess.run([{sys.executable!r}, "-c", "pass"], env={{}})
    taken["bare"].append(1e3 * (time.perf_counter() - began))
os.unlink("/tmp/ready-bench"); os.unlink("/tmp/listener-bench")
import json; print(json.dumps(taken))
"""
    taken = json.loads(lab.run(["/usr/bin/python3", "-c", code], timeout=120).stdout)
    mine = figure("start to ready", taken["activated"])
    manual = figure("start to ready, by hand", taken["by hand"])  # two interpreters: the first makes what systemd does
    reference = figure("python3 -c pass, to its end", taken["bare"])
    return [
        *(mine, manual, reference),
        ratio("start to ready over python3 -c pass", mine, reference, START),
        ratio("start to ready, by hand: over python3 -c pass", manual, reference),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--interfaces", type=int, default=15)
    parser.add_argument("--addresses", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with Lab(Spec.aws(interfaces=given.interfaces + 1, addresses=given.addresses)) as lab:
        lab.write_config(CONFIG)
        lab.batch([f"link set {nic.name} up" for nic in lab.nics])
        figures = measure_start(lab, max(given.rounds, 9))
        start(lab)
        lab.wait_for(lambda: answers(lab))
        figures.append(figure("PSS at rest", [pss(lab.daemons.pid("netagent"))], "MB"))
        figures += measure_apply(lab, given.addresses, given.rounds)
        figures.append(figure("PSS after the changes", [pss(lab.daemons.pid("netagent"))], "MB", most=MEMORY))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bare:
        time.sleep(0.3)
        figures.append(figure("PSS of a bare interpreter", [pss(bare.pid)], "MB"))
        bare.communicate(b"\n")
    keep("netagent", figures)


if __name__ == "__main__":
    as_root()
    main()
