"""A container behind NAT as made by Docker, whose port is published on every address of the instance."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab import Interface, Lab, Spec
from tests.lab.namespaces import Namespace
from tests.lab.reach import LineReader

PROGRAM = Path(__file__).with_name("others") / "published.py"
PORT, PUBLISHED = 7000, 8080
BRIDGE, HOST, CONTAINER = "docker0", ("172.17.0.1", "fd17::1"), ("172.17.0.2", "fd17::2")
RULES = f"""
table ip nat {{
  chain PREROUTING {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local iifname != "{BRIDGE}" meta l4proto {{ tcp, udp }} th dport {PUBLISHED} \
      dnat to {CONTAINER[0]}:{PORT}
  }}
  chain POSTROUTING {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {HOST[0]}/16 oifname != "{BRIDGE}" masquerade
  }}
}}
table ip6 nat {{
  chain PREROUTING {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local iifname != "{BRIDGE}" meta l4proto {{ tcp, udp }} th dport {PUBLISHED} \
      dnat to [{CONTAINER[1]}]:{PORT}
  }}
  chain POSTROUTING {{
    type nat hook postrouting priority srcnat; policy accept;
    ip6 saddr fd17::/64 oifname != "{BRIDGE}" masquerade
  }}
}}
table inet other {{
  chain PREROUTING {{
    type filter hook prerouting priority mangle; policy accept;
    tcp dport {PUBLISHED} ct mark set ct mark or 0x4000
    meta mark set meta mark or 0x8000
  }}
}}
"""
"""Rules of Docker, and of a program with its own marks."""
SYSCTL = {"net.ipv6.conf.all.accept_ra": "2", "net.ipv6.conf.default.accept_ra": "2"}
SPEC = Spec(tuple(Interface(f"10.0.{n}.0/24", count, ipv6=1) for n, count in enumerate((2, 2, 1), 1)), beyond=2)
"""Five clients and five IPv4 addresses: 25 pairs."""


def python(*argv: object) -> list[str]:
    return [sys.executable, "-I", "-S", str(PROGRAM), *map(str, argv)]


class Container:
    """A namespace behind the bridge, and its server."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        [self.namespace] = lab.namespaces.open(
            {"name": "container", "sysctl": {"net.ipv6.conf.default.accept_dad": "0"}}
        )
        lab.batch(
            [
                f"link add {BRIDGE} type bridge",
                f"address add {HOST[0]}/16 dev {BRIDGE}",
                f"address add {HOST[1]}/64 dev {BRIDGE} nodad",
                f"link add veth0 type veth peer name eth0 netns {self.namespace.pid}",
                f"link set veth0 master {BRIDGE} up",
                f"link set {BRIDGE} up",
            ]
        )
        self.namespace.batch(
            [
                "link set lo up",
                f"address add {CONTAINER[0]}/16 dev eth0",
                f"address add {CONTAINER[1]}/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add default via {HOST[0]}",
                f"route add ::/0 via {HOST[1]}",
            ]
        )
        lab.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
        lab.run(["nft", "-f", "-"], stdin=RULES)
        self._server = self.namespace.popen(python("serve", PORT))
        assert LineReader(self._server.stdout).next(10) == "ready"
        lab.wait_for(self._is_reachable, message="the container to be reachable by the host, by IPv6, too")

    def _is_reachable(self) -> bool:
        pairs = json.dumps([["tcp", address] for address in CONTAINER])
        return bool(all(json.loads(self._lab.run(python("ask", 2, PORT), stdin=pairs).stdout)))

    def hold(self, client: Namespace, address: str) -> Connection:
        """Open a connection to the published port."""
        return Connection(client, address)

    def close(self) -> None:
        assert self._server.stdout is not None
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()


class Connection:
    """A long-lived connection through NAT."""

    PROGRAM = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); f = s.makefile('rw'); "
        "[(f.write(l), f.flush(), print(f.readline(), end='', flush=True)) for l in sys.stdin]"
    )

    def __init__(self, client: Namespace, address: str) -> None:
        argv = [sys.executable, "-I", "-S", "-c", self.PROGRAM, address, str(PUBLISHED)]
        self._process = client.popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._lines, self._sent = LineReader(self._process.stdout), 0

    def is_alive(self) -> bool:
        self._sent += 1
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{self._sent}\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return self._lines.next(5) == str(self._sent)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def answered(lab: Lab, protocol: str, addresses: Sequence[str], timeout: float = 2) -> dict[tuple[str, str], bool]:
    """Return {(client, address): the published port answered} for every client, tested in parallel."""
    clients = [namespace for namespace in lab.sources if ":" not in addresses[0] or lab.fabric.has_ipv6(namespace)]
    pairs = json.dumps([[protocol, address] for address in addresses])

    def one(client: Namespace) -> list[bool]:
        done = client.run(python("ask", timeout, PUBLISHED), stdin=pairs, timeout=timeout + 30)
        return [bool(each) for each in json.loads(done.stdout)]

    with ThreadPoolExecutor(len(clients)) as pool:
        found = list(pool.map(one, clients))
    return {
        (client.name, address): each
        for client, given in zip(clients, found, strict=True)
        for address, each in zip(addresses, given, strict=True)
    }
