"""Attacks by a compromised fetcher, by other users, and by root of a user namespace; all must fail."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cloud_network.netagent import protocol

from tests.lab import Lab, Spec
from tests.lab.processes import USERS
from tests.system.netagent.conftest import start
from tests.system.netagent.fault_bench import verify_audit_log
from tests.system.netagent.identities import ATTACKER, FETCHER, NAMESPACE, UserWire, attack_from_user_namespace, become
from tests.system.netagent.wire import AUDIT, CONFIG, Wire, address, audit_lines, ifindex, kernel_state

MEMORY = 64 << 10  # KiB
MAX_FILE, FILES = 16 << 20, 9


CLIENTS = {
    "the fetcher": become(FETCHER),
    "the api": become(USERS["cloud-network-api"]),
    "nobody": become(65534),
    "root of the fetcher's user namespace": [*become(FETCHER), *NAMESPACE],
    "root of nobody's user namespace": [*become(65534), *NAMESPACE],
    "root of one in nobody's user namespace": [*become(65534), *NAMESPACE, *NAMESPACE],
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.batch(["link set eth0 up"])
        for directory in ("/run/attacker", "/var/log/attacker"):
            lab.path(directory).mkdir()
            lab.path(directory).chmod(0o777)
        start(lab)
        with Wire(lab) as wire:
            assert wire.apply(address(ifindex(lab, "eth0"), "10.0.2.10/24"))["verdict"] == "applied"
        yield lab


@pytest.fixture(autouse=True)
def is_as_before(lab: Lab) -> Iterator[None]:
    """After each attack, check that netagent is the same process, answers, and has changed nothing."""
    lab.stop("netagent")
    start(lab)
    before, pid = kernel_state(lab), lab.daemons.pid("netagent")
    yield
    assert lab.daemons.pid("netagent") == pid
    lab.wait_for(lambda: serves(lab))
    assert kernel_state(lab) == before


def serves(lab: Lab) -> bool:
    try:
        with Wire(lab) as wire:
            return bool(wire.ask(request="status")["verdict"] == "ok")
    except OSError:
        return False


def attack(lab: Lab, who: Sequence[str], *arguments: str) -> dict[str, str]:
    """Run the attacker; return {attempt: result}."""
    done = lab.run([*who, "/usr/bin/python3", str(ATTACKER), *arguments], timeout=60)
    results: dict[str, str] = json.loads(done.stdout)
    return results


# — the process, its files and its socket


@pytest.mark.parametrize("who", CLIENTS)
def test_other_users_cannot_reach_the_process_or_its_files(lab: Lab, who: str) -> None:
    lines = lab.path(AUDIT).read_text()
    rotated = lab.path(f"{AUDIT}.1")
    rotated.touch()
    stats = [
        lab.path(path).stat() for path in (AUDIT, f"{AUDIT}.1", protocol.SOCKET, f"{Path(protocol.SOCKET).parent}")
    ]
    limits = Path(f"/proc/{lab.daemons.pid('netagent')}/limits").read_text()
    results = attack(lab, CLIENTS[who])
    rotated.unlink()
    uid = int(results.pop("uid"))
    answered = results.pop("connect")
    assert len(results) > 150
    assert (results.pop("bind over the socket"), results.pop("setpgid")) in {
        ("EADDRINUSE", "ESRCH"),
        ("EADDRINUSE", "EPERM"),
    }
    assert {name: how for name, how in results.items() if how not in ("EPERM", "EACCES")} == {}
    after = lab.path(AUDIT).read_text()
    assert after.startswith(lines)
    assert uid in (0, *(each for each in (FETCHER, USERS["cloud-network-api"], 65534)))
    assert [lab.path(path).stat().st_mode for path in (AUDIT, protocol.SOCKET)] == [stats[0].st_mode, stats[2].st_mode]
    assert Path(f"/proc/{lab.daemons.pid('netagent')}/limits").read_text() == limits
    refused = [line for line in audit_lines(lab)[len(lines.splitlines()) :] if line["verdict"] == "refused"]
    assert (answered, refused) == ("allowed" if "fetcher" in who else "EACCES", [])
    verify_audit_log(lab)


def test_process_of_the_same_user_cannot_trace_it(lab: Lab) -> None:
    """Refused even for the same user and capability: netagent is not dumpable (ptrace(2))."""
    capability = ["--inh-caps=+net_admin", "--ambient-caps=+net_admin"]
    results = attack(lab, [*become(USERS["cloud-network-netagent"]), *capability], "inside")
    assert (results.pop("uid"), results.pop("connect") != "allowed") == (str(USERS["cloud-network-netagent"]), True)
    assert len(results) > 25
    assert {name: how for name, how in results.items() if how not in ("EPERM", "EACCES")} == {}


FOREIGN_ROOTS = {
    "nobody is root": (65534, "0 65534 1\n"),
    "with a range of subordinate uids": (65534, "0 65534 1\n1 60000 1000\n"),
    "a subordinate uid is root": (65534, "0 60000 1000\n"),
    "the api is root, with the fetcher": (52093, f"0 52093 1\n{FETCHER} {FETCHER} 1\n"),
    "root is somewhere else": (65534, "0 60000 1\n1 0 1\n"),
}


@pytest.mark.parametrize("nested", [[], NAMESPACE], ids=["", "nested"])
@pytest.mark.parametrize("how", FOREIGN_ROOTS)
def test_root_of_a_foreign_user_namespace_is_refused(lab: Lab, how: str, nested: list[str]) -> None:
    uid, table = FOREIGN_ROOTS[how]
    results = attack_from_user_namespace(lab, become(uid), table, *nested)
    assert (results["uid"], results["connect"]) == ("0", "EACCES")


# The uids of this process's user namespace: without root, the tests run in one themselves.
HERE = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
EVERY = "every uid, as a container without a mapping of its own"
ROOTS = {
    "uid 0 alone": "0 0 1\n",
    "uid 0 and a range": "0 0 1\n1 60000 1000\n",
    EVERY: "".join(f"{first} {first} {count}\n" for first, _, count in HERE),
}


@pytest.mark.parametrize("nested", [[], NAMESPACE], ids=["", "nested"])
@pytest.mark.parametrize("how", ROOTS)
def test_root_of_another_user_namespace_is_not_root(lab: Lab, how: str, nested: list[str]) -> None:
    """SO_PEERCRED reports uid 0, but this root has no privilege over netagent's objects."""
    lines = len(audit_lines(lab))
    results = attack_from_user_namespace(lab, [], ROOTS[how], *nested)
    assert results["connect"] != "allowed"
    assert {(line["request"], line["verdict"]) for line in audit_lines(lab)[lines:]} == {("connect", "refused")}


CONTAINERS = {
    "with its own process numbers": ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"],
    "without CAP_SYS_ADMIN, as Docker's": [*("unshare", "--pid", "--fork"), "setpriv", "--bounding-set=-sys_admin"],
}


@pytest.mark.parametrize("how", CONTAINERS)
def test_root_of_a_container_is_not_root(lab: Lab, how: str) -> None:
    """Process 1 of a container has another pid here, and without CAP_SYS_ADMIN a process cannot claim another pid."""
    lines = len(audit_lines(lab))
    results = attack(lab, CONTAINERS[how], "connect")
    assert results["uid"] == "0"
    assert results["connect"] != "allowed"
    assert {(line["request"], line["verdict"]) for line in audit_lines(lab)[lines:]} == {("connect", "refused")}
    assert attack(lab, [], "connect")["connect"] == "allowed", "root of the host is accepted"


def test_the_fetcher_is_the_fetcher_in_any_user_namespace(lab: Lab) -> None:
    """Only the fetcher's user or root can map the fetcher's uid (user_namespaces(7))."""
    assert attack_from_user_namespace(lab, become(FETCHER), f"0 {FETCHER} 1\n")["connect"] == "allowed"


PASS_DESCRIPTORS = f"""
import array, socket, struct
for _ in range(20):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect({protocol.SOCKET!r})
        files = array.array("i", [client.fileno()] * 4)
        given = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, {protocol.ROOT_CREDENTIALS!r})]
        client.sendmsg([b"0"], [*given, (socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        client.sendall(bytes.fromhex("0000001081a772657175657374a6737461747573"))
        assert client.recv(100)
"""


def test_passed_descriptors_do_not_exhaust_netagent(lab: Lab) -> None:
    """Passed files arrive with the first byte, of which netagent reads only the credentials."""
    files = Path(f"/proc/{lab.daemons.pid('netagent')}/fd")
    before = len(list(files.iterdir()))
    lab.run(["/usr/bin/python3", "-c", PASS_DESCRIPTORS])
    with Wire(lab) as wire:
        assert wire.ask(request="status")["verdict"] == "ok"
    lab.wait_for(lambda: len(list(files.iterdir())) <= before, message="netagent to close the passed files")


# — memory


def memory(lab: Lab) -> int:
    """Return netagent's peak memory in KiB."""
    found = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{lab.daemons.pid('netagent')}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def many(each: bytes) -> bytes:
    """Return the body of a frame of maximum size: arrays of maximum length with the same small value."""
    inner = b"\xdc" + struct.pack(">H", protocol.MAX_OPS) + each * protocol.MAX_OPS
    count = (protocol.MAX_FRAME - 3) // len(inner)
    return b"\xdc" + struct.pack(">H", count) + inner * count


BODIES = {
    "nested arrays": b"\x91" * protocol.MAX_FRAME,
    "nested maps": b"\x81\xa1a" * (protocol.MAX_FRAME // 3),
    "a promise of an array": b"\xdd\xff\xff\xff\xff" + bytes(1000),
    "numbers": many(b"\xcd\x01\x00"),
    "floats": many(b"\xcb" + bytes(8)),
    "strings": many(b"\xa2ab"),
    "bytes": many(b"\xc4\x02ab"),
    "empty maps": many(b"\x80"),
    "empty arrays": many(b"\x90"),
    "arrays of one": many(b"\x91\x90"),
    "maps of one": many(b"\x81\xa1a\x80"),
}


@pytest.mark.parametrize("what", BODIES)
def test_frames_that_unpack_to_much_do_not_fill_the_memory(lab: Lab, what: str) -> None:
    for _ in range(3):
        with UserWire(lab) as wire:
            assert wire.raw(BODIES[what])["verdict"] == "refused"
    assert memory(lab) < MEMORY


def test_incomplete_frames_do_not_fill_the_memory(lab: Lab) -> None:
    with UserWire(lab) as wire:
        wire.socket.sendall(protocol.HEADER.pack(protocol.MAX_FRAME) + bytes(protocol.MAX_FRAME - 1))
        waiting = [UserWire(lab) for _ in range(50)]
        for each in waiting:
            each.socket.sendall(protocol.HEADER.pack(protocol.MAX_FRAME) + bytes(1000))
        assert wire.answer()["reason"] == "a frame did not arrive in time"
    for each in waiting:
        each.close()
    lab.wait_for(lambda: serves(lab))
    assert memory(lab) < MEMORY


def test_many_requests_at_once_do_not_fill_the_memory(lab: Lab) -> None:
    """The client sends many requests and does not read the answers."""
    request = protocol.encode({"request": "status"})
    with UserWire(lab) as wire, pytest.raises(OSError, match=r"Broken pipe|reset"):
        wire.socket.sendall(request * 200_000)
    assert memory(lab) < MEMORY


# — the log


def test_many_refusals_do_not_exceed_the_rotated_log_size(lab: Lab) -> None:
    """Eight files of 16 MiB exist before the test; a rotation removes the oldest."""
    log, uid = lab.path(AUDIT), USERS["cloud-network-netagent"]
    files = [log.with_name(f"audit.log.{number}") for number in range(1, FILES)]
    for file in files:
        with file.open("wb") as made:
            made.truncate(MAX_FILE)
        os.chown(file, uid, uid)
    op: protocol.Message = {
        "op": "route_remove",
        "table": 10002,
        "link": 1,
        "address": bytes(16),
        "prefix": 0,
        "gateway": bytes(16),
    }
    frame = protocol.encode({"request": "apply", "id": "x" * 64, "ops": [op] * 4096, "confirm_within": 0})
    before = len(audit_lines(lab))
    for _ in range(2):
        os.truncate(log, MAX_FILE - len(frame) // 4)  # nearly full, to send less
        first = log.stat().st_ino
        with UserWire(lab) as wire:
            for _ in range(4):
                wire.socket.sendall(frame)
                assert wire.answer()["verdict"] == "refused"
                if files[0].stat().st_ino == first:
                    break
    found = sorted(log.parent.iterdir())
    assert found == sorted([log, *files])
    assert files[0].stat().st_ino == first
    assert all(0 < file.stat().st_size <= MAX_FILE for file in found)
    assert sum(file.stat().st_size for file in found) <= FILES * MAX_FILE
    text = "".join(file.read_text() for file in (files[1], files[0], log)).replace("\0", "")
    numbers = [json.loads(line)["seq"] for line in text.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > before
    for file in files:
        file.unlink()
    log.write_text("")  # for the following tests


FORGERY = ',"hash":"' + "0" * 9 + '"}\n{"seq":1,"x":"'
NASTY = [
    FORGERY,
    "\n",
    '"',
    "\\",
    '\\"}',
    "\r\n<3>netagent: applied",
    "\x1b[2J\x1b]0;title\x07",
    "\x00\x01\x7f\x9b31m",
    "\u2028\u2029\u202e\ufeff",
    "\U0001f600",
    "%s%n{}$(reboot)`id`",
]


@pytest.mark.parametrize("where", ["id", "key", "request", "op"])
def test_no_text_of_a_client_forges_a_line_or_reaches_a_terminal(lab: Lab, where: str) -> None:
    start_of_log, lines = len(lab.log("netagent")), len(audit_lines(lab))
    make: dict[str, Callable[[str], dict[str, Any]]] = {
        "id": lambda text: {"request": "rollback", "id": text[:64]},
        "key": lambda text: {"request": "status", text: 1},
        "request": lambda text: {"request": text},
        "op": lambda text: {"request": "apply", "id": text[:64], "ops": [{"op": text}], "confirm_within": 0},
    }
    for text in NASTY:
        with UserWire(lab) as wire:
            assert wire.ask(**make[where](text))["verdict"] == "refused"
    raw = lab.path(AUDIT).read_bytes()
    assert set(raw) <= {10, *range(32, 127)}
    added = audit_lines(lab)[lines:]
    assert [line["verdict"] for line in added] == ["refused"] * len(NASTY)
    if where == "id":
        assert [line["id"] for line in added] == [text[:64] for text in NASTY]
    journal = lab.log("netagent")[start_of_log:]
    assert set(journal.encode()) <= {10, *range(32, 127)}
    for line in journal.splitlines():
        assert line.startswith("cloud-network-netagent: ") or json.loads(line)["verdict"] == "refused"
    verify_audit_log(lab)
    cnctl = [sys.executable, "-m", "cloud_network.api.cnctl", "audit", "--log", str(lab.path(AUDIT))]
    shown = subprocess.run(cnctl, capture_output=True, check=True).stdout
    assert len(shown.splitlines()) == len(audit_lines(lab)[-len(shown.splitlines()) :])
    assert all(character.isprintable() for character in shown.decode() if character != "\n")


def test_the_fetcher_is_served_while_root_of_containers_waits(lab: Lab) -> None:
    """20 connections of uid 0 without credentials delay the fetcher by less than the time limit of one of them."""
    hold = (
        f"import socket, time\nheld = [socket.socket(socket.AF_UNIX) for _ in range(20)]\n"
        f"for each in held: each.connect({protocol.SOCKET!r})\nprint('held', flush=True)\ntime.sleep(60)"
    )
    child = lab.instance.popen(["/usr/bin/python3", "-c", hold], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with UserWire(lab) as wire:
        wire.socket.settimeout(0.9)  # ROOT_SECONDS is 1
        assert wire.ask(request="status")["verdict"] == "ok"
    (holder,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()  # of nsenter(1)
    os.kill(int(holder), signal.SIGKILL)
    child.wait(10)


def test_replayed_request_changes_nothing(lab: Lab) -> None:
    """Send the same bytes on another connection of the fetcher while the change is open, confirmed and removed."""
    link, before = ifindex(lab, "eth0"), kernel_state(lab)
    add = protocol.encode({"request": "apply", "id": "one", "ops": [address(link, "10.0.2.77")], "confirm_within": 60})
    confirm = protocol.encode({"request": "confirm", "id": "one"})
    rollback = protocol.encode({"request": "rollback", "id": "one"})
    gone: protocol.Message = {"request": "apply", "id": "two", "ops": [address(link, "10.0.2.77/32", "address_remove")]}
    remove = protocol.encode({**gone, "confirm_within": 0})

    def send(wire: Wire, *frames: bytes) -> list[str]:
        wire.socket.sendall(b"".join(frames))
        return [str(wire.answer()["verdict"]) for _ in frames]

    with UserWire(lab) as first, UserWire(lab) as other:
        assert send(first, add, add) == ["applied", "refused"]
        opened = kernel_state(lab)
        other.socket.sendall(confirm + rollback + add)  # answered now, or after the first client has disconnected
        assert kernel_state(lab) == opened != before
        assert send(first, confirm, confirm, rollback, add) == ["confirmed", "refused", "refused", "refused"]
        first.close()
        assert [other.answer()["verdict"] for _ in range(3)] == ["refused"] * 3
        assert kernel_state(lab) == opened
        assert send(other, remove, remove) == ["applied", "refused"]
        other.close()
    with UserWire(lab) as first, UserWire(lab) as other:
        assert send(first, add) == ["applied"]
        other.socket.sendall(confirm + rollback)
        first.close()  # rolls the change back
        assert [other.answer()["verdict"] for _ in range(2)] == ["refused"] * 2
    verify_audit_log(lab)
