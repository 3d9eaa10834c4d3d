"""The cost of ForwardedReplies="mark" per packet: for a published port in both directions, and for the host itself.

    sudo .venv/bin/python -m bench.marks [--rounds 7]

A client, a router with Docker's DNAT rules, and a container, each in a separate namespace. The client sends a datagram
to the published port and waits for its echo, so the router forwards two packets each time. The reference is the router
without marks. The other measurements have the table and the rules for marks of several links; the client's is the last.
The second part is that of `bench.datapath`: datagrams of the host, which also pass the rules for marks.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloud_network.fetcher.config import ForwardedRepliesMode
from cloud_network.fetcher.network.plan import add_rule, in_ip_syntax
from cloud_network.netagent.netfilter import Netfilter
from cloud_network.netagent.operations import LinkMark

from bench.datapath import nanoseconds, source
from bench.figures import Figure, as_root, figure, ratio, save
from tests.unit.fetcher.values import BASE, host, instance, interface, link, wanted

CLIENT, ROUTER, CONTAINER = (f"cloud-network-bench-{name}" for name in ("client", "router", "container"))
LINKS = (4, 60)
MASK = 0x7F
ECHOES = 5000
NETLINK_NETFILTER = 12
NAT = """
table ip nat {
  chain p { type nat hook prerouting priority dstnat; udp dport 8080 dnat to 172.17.0.2:7; }
  chain q { type nat hook postrouting priority srcnat; ip saddr 172.17.0.0/16 oifname != "inside" masquerade; }
}
"""
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("172.17.0.2", 7))
print("ready", flush=True)
while True:
    s.sendto(*s.recvfrom(64))
"""
ASK = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect(("10.250.0.1", 8080))
def ask(number):
    for _ in range(number):
        s.send(b"x")
        s.recv(64)
ask(500)
began = time.perf_counter()
ask(int(sys.argv[1]))
print((time.perf_counter() - began) / int(sys.argv[1]) * 1e9)
"""


def ip(*words: str, stdin: str | None = None) -> None:
    subprocess.run(["ip", *words], input=stdin, text=True, check=True, capture_output=True)


def inside(name: str, *argv: str) -> list[str]:
    return ["ip", "netns", "exec", name, *argv]


@contextmanager
def network() -> Iterator[None]:
    """Connect the three namespaces; remove them at the end."""
    made: list[str] = []
    try:
        for name in (CLIENT, ROUTER, CONTAINER):
            ip("netns", "add", name)
            made.append(name)
        ip("-n", ROUTER, "link", "add", "outside", "type", "veth", "peer", "name", "eth0", "netns", CLIENT)
        ip("-n", ROUTER, "link", "add", "inside", "type", "veth", "peer", "name", "eth0", "netns", CONTAINER)
        lines = {
            CLIENT: ("address add 10.250.0.2/24 dev eth0", "link set eth0 up"),
            CONTAINER: ("address add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1"),
            ROUTER: (
                *("address add 10.250.0.1/24 dev outside", "address add 172.17.0.1/16 dev inside"),
                *("link set outside up", "link set inside up"),
            ),
        }
        for name, batch in lines.items():
            ip("-n", name, "-batch", "-", stdin="\n".join(batch) + "\n")
        subprocess.run(inside(ROUTER, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"), check=True)
        subprocess.run(inside(ROUTER, "nft", "-f", "-"), input=NAT, text=True, check=True)
        yield
    finally:
        for name in made:
            ip("netns", "delete", name)


def mark(links: int) -> None:
    """Make the router mark connections of `links` links. The client's link is the last; its table leads back to it."""
    argv = inside(ROUTER, "cat", "/sys/class/net/outside/ifindex")
    outside = int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    marks = [*(LinkMark(1000 + number, number) for number in range(1, links)), LinkMark(outside, links)]
    with in_namespace(ROUTER):
        netfilter = Netfilter(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))
    if netfilter.replace(marks, MASK) != 0:
        raise SystemExit("the kernel rejects the nftables table; load the module nf_conntrack")
    netfilter.close()
    rules = [f"route add 10.250.0.0/24 dev outside table {BASE}"]
    for priority, suppress in ((31000, " suppress_prefixlength 0"), (31020, "")):
        for number in range(1, links + 1):
            rules.append(f"rule add pref {priority} fwmark {number}/{MASK:#x} lookup {BASE}{suppress}")
    rules.append("rule add pref 31010 lookup main suppress_prefixlength 0")
    ip("-n", ROUTER, "-batch", "-", stdin="\n".join(rules) + "\n")


@contextmanager
def in_namespace(name: str) -> Iterator[None]:
    """Move this thread into a network namespace within the block."""
    with Path("/proc/thread-self/ns/net").open() as before, Path(f"/run/netns/{name}").open() as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(before.fileno())


def _setns(file: int) -> None:
    """Call setns(2), which `os` has since Python 3.12."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(file, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


def echoes(rounds: int, links: int = 0) -> list[float]:
    """Return the nanoseconds of a datagram and its echo through the router."""
    with network():
        if links:
            mark(links)
        server = subprocess.Popen(inside(CONTAINER, sys.executable, "-S", "-c", ECHO), stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            server.stdout.readline()
            argv = inside(CLIENT, sys.executable, "-S", "-c", ASK, str(ECHOES))
            done = [subprocess.run(argv, check=True, capture_output=True, text=True).stdout for _ in range(rounds)]
        finally:
            server.kill()
            server.wait()
    return [float(each) for each in done]


def host_rules(interfaces: int, addresses: int, forwarded: ForwardedRepliesMode) -> list[str]:
    """Return the rules for `ip -batch`."""
    cloud = instance(*(interface(n, *(source(n, each) for each in range(addresses))) for n in range(1, interfaces + 1)))
    found = wanted(cloud, host(*map(link, range(1, interfaces + 1))), forwarded_replies=forwarded)
    return [in_ip_syntax(add_rule(rule), {}).removeprefix("ip ") for rule in found.rules]


def of_published_ports(rounds: int) -> list[Figure]:
    bare = figure("a published port, round trip: NAT alone", echoes(rounds), "ns")
    found = [bare]
    for links in LINKS:
        each = figure(f"a published port, round trip: marks of {links} links", echoes(rounds, links), "ns")
        found += [each, ratio(f"marks of {links} links, relative to NAT alone", each, bare)]
    return found


def of_the_host(rounds: int, shapes: Sequence[tuple[int, int]] = ((4, 15), (60, 50))) -> list[Figure]:
    found = []
    for interfaces, addresses in shapes:
        last, table, pair = source(interfaces, addresses - 1), BASE + interfaces + 1, list[Figure]()
        for forwarded in ForwardedRepliesMode:
            lines = host_rules(interfaces, addresses, forwarded)
            name = f"a datagram of the host, {interfaces} interfaces, {forwarded}: {len(lines)} rules"
            pair.append(figure(name, nanoseconds(lines, last, table, rounds), "ns"))
        found += [
            *pair,
            ratio(f"a datagram of the host, {interfaces} interfaces, mark relative to off", pair[1], pair[0]),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    save("marks", [*of_published_ports(rounds), *of_the_host(rounds)])


if __name__ == "__main__":
    as_root()
    os.environ.pop("PYTHONPATH", None)
    main()
