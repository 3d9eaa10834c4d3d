"""What the rules cost a packet: the kernel goes through them in order for every lookup.

    sudo .venv/bin/python -m bench.datapath [--rounds 5]

In a namespace of its own with a veth: datagrams from a socket that is not connected, so that each asks for its route,
from an address whose rules come last. Beside it the same without any rule of ours. Two rules an address, as `desired`
makes them, and one rule for each /24 of addresses, which is what Rules=aggregate would make of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, figure, keep, ratio

NAMESPACE = "cloud-network-bench"
PACKETS = 20000
SEND = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
for _ in range(int(sys.argv[2]) // 10):
    s.sendto(b"x", ("10.250.0.2", 9))
began = time.perf_counter()
for _ in range(int(sys.argv[2])):
    s.sendto(b"x", ("10.250.0.2", 9))
print((time.perf_counter() - began) / int(sys.argv[2]) * 1e9)
"""


def ip(*words: str, stdin: str | None = None) -> None:
    subprocess.run(["ip", *words], input=stdin, text=True, check=True, capture_output=True)


def source(number: int) -> str:
    return f"10.{1 + number // 60000}.{number // 250 % 240}.{number % 250 + 1}"


def selectors(addresses: int, *, whole: bool) -> list[str]:
    every = [source(number) for number in range(addresses)]
    return list(dict.fromkeys(f"{each.rpartition('.')[0]}.0/24" for each in every)) if whole else every


def rules(addresses: int, *, whole: bool) -> str:
    found = selectors(addresses, whole=whole)
    lines = [f"rule add from {each} lookup 10002 pref 31000 suppress_prefixlength 0 proto 209" for each in found]
    lines += ["rule add lookup main suppress_prefixlength 0 pref 31010 proto 209"] if found else []
    return "\n".join(lines + [f"rule add from {each} lookup 10002 pref 31020 proto 209" for each in found])


def nanoseconds(addresses: int, rounds: int, *, whole: bool = False) -> list[float]:
    """A datagram's way down, with so many addresses' rules before the one that matches."""
    ip("netns", "add", NAMESPACE)
    try:
        last = source(max(0, addresses - 1))
        lines = [
            "link add near type veth peer name far",
            "address add 10.250.0.1/24 dev near",
            f"address add {last}/32 dev lo",
            *("link set lo up", "link set near up", "link set far up"),
            "neigh add 10.250.0.2 lladdr 02:00:00:00:00:02 dev near nud permanent",
            "route add 10.250.0.0/24 dev near table 10002",
        ]
        ip("-n", NAMESPACE, "-batch", "-", stdin="\n".join(lines) + "\n")
        ip("-n", NAMESPACE, "-batch", "-", stdin=rules(addresses, whole=whole) + "\n")
        argv = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-S", "-c", SEND, last, str(PACKETS)]
        return [float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout) for _ in range(rounds)]
    finally:
        ip("netns", "delete", NAMESPACE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    bare = figure("no rule of ours", nanoseconds(0, given.rounds), "ns")
    figures: list[Figure] = [bare]
    for addresses in (60, 750, 3000):
        each = figure(f"{addresses} addresses, two rules each", nanoseconds(addresses, given.rounds), "ns")
        whole = figure(
            f"{addresses} addresses, two rules a /24", nanoseconds(addresses, given.rounds, whole=True), "ns"
        )
        figures += [each, whole, ratio("  of a packet without rules", each, bare), ratio("  the same", whole, bare)]
    keep("datapath", figures)


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("run it as root: sudo .venv/bin/python -m bench.datapath")
    main()
