"""Runs in a service's sandbox instead of the service: tries the actions of a compromised program.

    sandbox_probe.py [HOST PORT …]    one JSON object on standard output

`connect` has the result for each destination. `write` has the directories in which a file can be created.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path


def result_of(what: Callable[[], object]) -> str:
    try:
        what()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return "yes"


def connect(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=1.5):
        pass


def send(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", (host, port))


def writable() -> list[str]:
    """Return the topmost directories, at most three deep, in which a file can be created; without /proc and /sys."""
    found = []
    for top, below, _ in os.walk("/"):
        depth = top.count("/") if top != "/" else 0
        below[:] = [] if depth > 2 else [name for name in below if f"{top}{name}" not in ("/proc", "/sys")]
        place = Path(top, ".probe")
        if result_of(place.touch) == "yes":
            place.unlink()
            found.append(top)
            below.clear()
    return sorted(found)


def links() -> list[str]:
    try:
        return [name for _, name in socket.if_nameindex()]
    except OSError:  # no rtnetlink
        return []


def main(argv: list[str]) -> dict[str, object]:
    places = list(zip(argv[::2], map(int, argv[1::2]), strict=True))
    status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status"))  # noqa: SIM115, PTH123
    return {
        "write": writable(),
        "sysctl": result_of(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1")),
        "processes": sorted({p.name for p in Path("/proc").iterdir() if p.name.isdecimal()} - {str(os.getpid())}),
        "sockets": {
            "inet": result_of(lambda: socket.socket(socket.AF_INET)),
            "inet6": result_of(lambda: socket.socket(socket.AF_INET6)),
            "raw": result_of(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
            "packet": result_of(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
            "rtnetlink": result_of(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)),
            "nfnetlink": result_of(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)),
        },
        "connect": {f"{host} {port}": result_of(partial(connect, host, port)) for host, port in places},
        "send": {f"{host} {port}": result_of(partial(send, host, port)) for host, port in places},
        "links": links(),
        "setuid": result_of(lambda: os.setuid(0)),
        "devices": sorted(p.name for p in Path("/dev").iterdir()),
        "capabilities": {key: status[key] for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb")},
        "no new privileges": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
