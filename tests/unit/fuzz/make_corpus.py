"""Writes recorded/ and corpus/ again: `.venv/bin/python -m tests.unit.fuzz.make_corpus`, as root. Small, and checked
in.

The dumps are those of the state machine's lab with a fetcher's plan applied. The frames are those of a fetcher, and the
well-known ways to break msgpack. Corpus files are named after their content, as libFuzzer does.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from tests.lab import Lab, Spec
from tests.system.netagent.conftest import start
from tests.system.netagent.state_model import add_foreign_objects
from tests.system.netagent.state_operations import attacks, plan, removals
from tests.system.netagent.wire import Wire, address, ifindex, route, rule

HERE = Path(__file__).parent
KINDS = {"link": 18, "address": 22, "route": 26, "rule": 34}  # RTM_GETLINK and so on
DUMP = """
import socket, struct, sys
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
for family in (0,) if sys.argv[1] == "18" else (2, 10):
    s.send(struct.pack("=IHHII", 32, int(sys.argv[1]), 0x301, 1, 0) + struct.pack("=B15x", family))
    while True:
        data = s.recv(1 << 17)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == 3:
                break
            sys.stdout.buffer.write(data[:length + 3 & ~3])
            data = data[length + 3 & ~3:]
        if data:
            break
"""
BROKEN = (
    *(b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81\xa7request\xa5apply\x00", b"\xdd\xff\xff\xff\xff", b"\x91" * 500),
    *(b"\x81\x01\x02", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xd4\xff\0"),
    *(b"\x82\xa7request\xa6status" + b"\xa7request\xa6status", b"\x81\xa7request\xa2\xff\xfe", b"\xca\x7f\xc0\0\0"),
)


def write(folder: Path, bodies: Iterable[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for body in bodies:
        (folder / hashlib.sha1(body).hexdigest()).write_bytes(body)


def requests(ops: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield requests as a fetcher sends them."""
    yield {"request": "hello", "version": 3}
    yield from ({"request": name, "id": "1"} for name in ("confirm", "rollback", "flush"))
    yield {"request": "status"}
    yield from applies(ops)


def applies(ops: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for at in range(0, len(ops), 4):
        yield {"request": "apply", "id": "1", "ops": ops[at : at + 4], "confirm_within": 30}
    yield {"request": "apply", "id": "1", "ops": ops, "confirm_within": 0}


def main() -> None:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        add_foreign_objects(lab)
        start(lab)
        index = {name: ifindex(lab, name) for name in ("eth0", "eth1", "spare", "docker0", "lo")}
        done = plan(index)
        with Wire(lab) as wire:
            assert wire.apply(*done)["verdict"] == "applied"
        (HERE / "recorded").mkdir(exist_ok=True)
        for kind, number in KINDS.items():
            argv = ["nsenter", f"--target={lab.instance.pid}", "--net", "--", sys.executable, "-c", DUMP, str(number)]
            dump = subprocess.run(argv, capture_output=True, check=True).stdout
            (HERE / "recorded" / kind).write_bytes(dump)
    from tests.unit.fuzz.targets import recorded  # imported late: it reads the recorded files

    on, spare = index["eth0"], index["spare"]
    more = [
        *removals(done),
        {"op": "link_up", "link": spare},
        {"op": "link_mtu", "link": spare, "mtu": 9001},
        address(spare, "10.0.3.10/24"),
        route(spare, "0.0.0.0/0", "10.0.3.1"),
        route(spare, "10.78.0.0/28", table=255),
        rule("10.0.3.10", 9999 + spare, priority=31020),
        rule("10.78.0.0/28", 9999 + spare, priority=31000, suppress=True),
        address(on, "10.0.2.12/24"),
        route(on, "10.9.0.0/16", "10.0.2.1"),
    ]
    messages = [*requests(done), *applies(more), *applies(done[:1] + more[-2:])]
    messages += [{"request": "apply", "id": "1", "ops": ops, "confirm_within": 0} for ops in attacks(index)]
    frames = [msgpack.packb(message) for message in messages]
    write(HERE / "corpus" / "protocol", [*frames[:20], *BROKEN])
    write(
        HERE / "corpus" / "policy", [frame for frame, message in zip(frames, messages, strict=True) if "ops" in message]
    )
    some = {kind: [*recorded(kind)][:12] for kind in KINDS}
    write(HERE / "corpus" / "rtnetlink", [bytes((at,)) + one for at, kind in enumerate(KINDS) for one in some[kind]])


if __name__ == "__main__":
    main()
