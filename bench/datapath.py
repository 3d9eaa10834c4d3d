"""The cost of the rules per packet: the kernel evaluates them in order on every lookup.

    sudo .venv/bin/python -m bench.datapath [--rounds 5]

In a separate namespace with a veth. Datagrams from an unconnected socket, so that each looks up its route, to a host
beyond the gateway, as most replies, so that all three steps are evaluated, and from the address whose rules come last.
The rules are those that `desired` computes for an instance with so many interfaces of fifteen or fifty addresses, with
Rules=address and with Rules=aggregate. The reference is the same packets without these rules.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloud_network.fetcher.config import RulesMode
from cloud_network.fetcher.network.plan import add_rule, in_ip_syntax

from bench.figures import Figure, figure, ratio, save
from tests.unit.fetcher.values import BASE, host, instance, interface, link, wanted

NAMESPACE = "cloud-network-bench"
SHAPES = ((4, 15), (15, 50), (60, 50))
"""Interfaces, and addresses of each."""
OUTSIDE = "198.51.100.7"  # RFC 5737
PACKETS = 20000
SEND = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
for _ in range(int(sys.argv[2]) // 10):
    s.sendto(b"x", (sys.argv[3], 9))
began = time.perf_counter()
for _ in range(int(sys.argv[2])):
    s.sendto(b"x", (sys.argv[3], 9))
print((time.perf_counter() - began) / int(sys.argv[2]) * 1e9)
"""


def ip(*words: str, stdin: str | None = None) -> None:
    subprocess.run(["ip", *words], input=stdin, text=True, check=True, capture_output=True)


def source(number: int, position: int) -> str:
    return f"10.0.{number}.{10 + position}"


def rules(interfaces: int, addresses: int, form: RulesMode) -> list[str]:
    """Return the rules for `ip -batch`, in the order in which they are added."""
    cloud = instance(*(interface(n, *(source(n, each) for each in range(addresses))) for n in range(1, interfaces + 1)))
    found = wanted(cloud, host(*map(link, range(1, interfaces + 1))), rules=form)
    return [in_ip_syntax(add_rule(rule), {}).removeprefix("ip ") for rule in found.rules]


def nanoseconds(lines: list[str], last: str, table: int, rounds: int) -> list[float]:
    """Return the time in ns to send a datagram from the address `last` with these rules; its own ones use `table`."""
    ip("netns", "add", NAMESPACE)
    try:
        setup = [
            "link add near type veth peer name far",
            "address add 10.250.0.1/24 dev near",
            f"address add {last}/32 dev lo",
            *("link set lo up", "link set near up", "link set far up"),
            "neigh add 10.250.0.2 lladdr 02:00:00:00:00:02 dev near nud permanent",
            "route add default via 10.250.0.2",
            f"route add default via 10.250.0.2 table {table}",
        ]
        ip("-n", NAMESPACE, "-batch", "-", stdin="\n".join([*setup, *lines]) + "\n")
        argv = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-S", "-c", SEND, last, str(PACKETS), OUTSIDE]
        return [float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout) for _ in range(rounds)]
    finally:
        ip("netns", "delete", NAMESPACE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    bare = figure("0 addresses, no rules", nanoseconds([], source(1, 0), BASE + 2, given.rounds), "ns")
    figures: list[Figure] = [bare]
    for interfaces, addresses in SHAPES:
        total, last, table = interfaces * addresses, source(interfaces, addresses - 1), BASE + interfaces + 1
        for form in (RulesMode.ADDRESS, RulesMode.AGGREGATE):
            lines = rules(interfaces, addresses, form)
            name = f"{total} addresses, {form}: {len(lines)} rules"
            each = figure(name, nanoseconds(lines, last, table, given.rounds), "ns")
            figures += [each, ratio(f"{total} addresses, {form}, relative to no rules", each, bare)]
    save("datapath", figures)


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("run it as root: sudo .venv/bin/python -m bench.datapath")
    main()
