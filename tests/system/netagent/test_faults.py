"""Every system call of a transaction fails once, and netagent is killed at each: the kernel has all of the change or
nothing.

`CLOUD_NETWORK_EXHAUSTIVE=1` tries every call with every error. By default only the first, the middle and the last of
the kernel's equal answers are tried.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cloud_network.netagent import protocol

from tests.lab import Lab, Spec
from tests.system.netagent.fault_bench import (
    APPLY,
    CONFIRM,
    DISCONNECT,
    EXPIRY,
    OPEN,
    ROLLBACK,
    Bench,
    Phase,
    State,
    verify_audit_log,
)
from tests.system.netagent.identities import UserWire
from tests.system.netagent.strace import KILL, Point, points
from tests.system.netagent.wire import AUDIT, CONFIG, address, ifindex

EVERY = bool(os.environ.get("CLOUD_NETWORK_EXHAUSTIVE"))
BATCH = 128
LIBC = ctypes.CDLL(None, use_errno=True)
PIDFD_GETFD = 438  # the same on every architecture: asm-generic/unistd.h


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG + 'AllowGateways = "10.0.2.2"\n')  # the change replaces a gateway
        yield Bench(lab, tmp_path_factory.mktemp("strace"))


@pytest.fixture
def bench_to_break(tmp_path: Path) -> Iterator[Bench]:
    """For tests that leave the lab changed."""
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG + 'AllowGateways = "10.0.2.2"\n')  # the change replaces a gateway
        yield Bench(lab, tmp_path)


def chosen(points: list[Point], what: str) -> list[Point]:
    found = [point for point in points if point.what == what]
    answers = [point for point in found if point.call == "recvmsg"]
    if EVERY or len(answers) < 6:
        return found
    kept = {answers[at] for at in (0, len(answers) // 2, min(BATCH, len(answers)) - 1, -1)}
    return [point for point in found if point not in answers or point in kept]


def run_faults(bench: Bench, phase: Phase, what: str, *, kill: bool) -> None:
    """Run the phase once for each fault; fail with a line for every error."""
    found = chosen(bench.record(phase), what)
    assert found, "no fault was injected"
    wrong: list[str] = []
    tried = 0
    for point in found:
        if len(wrong) > 3 and not EVERY:
            break  # recovery from each error takes time
        for fault in [KILL] if kill else point.errors if EVERY or point.call != "recvmsg" else point.errors[:1]:
            tried += 1
            wrong += [f"{point}, {fault}: {each}" for each in bench.attempt(phase, point, fault)]
    assert tried
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("phase", "what"),
    [
        *((APPLY, what) for what in ("client", "resolvers", "dump", "ledger", "batch", "audit", "journal")),
        *((OPEN, what) for what in ("client", "ledger", "batch", "audit", "journal")),
    ],
    ids=str,
)
def test_kill_during_a_change_leaves_all_or_nothing(bench: Bench, phase: Phase, what: str) -> None:
    run_faults(bench, phase, what, kill=True)


@pytest.mark.parametrize(
    "what",
    [
        "client",
        "resolvers",
        "dump",
        "ledger",
        "batch",
        "audit",
        "journal",
    ],
)
def test_failed_system_call_leaves_all_or_nothing(bench: Bench, what: str) -> None:
    run_faults(bench, APPLY, what, kill=False)


@pytest.mark.parametrize("what", ["client", "ledger", "audit", "journal"])
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "failing"])
def test_confirmed_change_stays_and_unconfirmed_is_rolled_back(bench: Bench, what: str, kill: bool) -> None:
    run_faults(bench, CONFIRM, what, kill=kill)


@pytest.mark.parametrize("what", ["client", "dump", "ledger", "batch", "audit", "journal"])
@pytest.mark.parametrize("phase", [ROLLBACK, DISCONNECT], ids=str)
def test_restart_rolls_back_unconfirmed_change(bench: Bench, phase: Phase, what: str) -> None:
    run_faults(bench, phase, what, kill=True)


@pytest.mark.parametrize(
    ("phase", "what"),
    [
        (ROLLBACK, "client"),
        (ROLLBACK, "dump"),
        (ROLLBACK, "ledger"),
        (ROLLBACK, "batch"),
        (ROLLBACK, "audit"),
        (ROLLBACK, "journal"),
        (DISCONNECT, "client"),
        (DISCONNECT, "dump"),
        (DISCONNECT, "ledger"),
        (DISCONNECT, "batch"),
        (DISCONNECT, "audit"),
        (DISCONNECT, "journal"),
    ],
    ids=str,
)
def test_rollback_is_complete(bench: Bench, phase: Phase, what: str) -> None:
    run_faults(bench, phase, what, kill=False)


@pytest.mark.parametrize("what", ["dump", "ledger"])
def test_change_not_confirmed_in_time_is_rolled_back(bench: Bench, what: str) -> None:
    found = [point for point in chosen(bench.record(EXPIRY), what) if point.call in ("sendto", "rename")]
    wrong = [f"{point}: {each}" for point in found[:1] for each in bench.attempt(EXPIRY, point, point.errors[0])]
    assert found
    assert not wrong, "\n".join(wrong)


def resume(lab: Lab) -> None:
    """Continue netagent, which has stopped, and nsenter(1), which stops with its child and continues it."""
    parent = re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{lab.daemons.pid('netagent')}/status").read_text(), re.MULTILINE)
    assert parent
    lab.wait_for(lambda: "State:\tT" in Path(f"/proc/{parent[1]}/status").read_text())
    os.kill(int(parent[1]), signal.SIGCONT)


@contextmanager
def receive_buffer(pid: int, size: int) -> Iterator[None]:
    """Set the receive buffer of another process's netlink sockets to `size`, or to the minimum."""
    process = os.pidfd_open(pid)
    sockets = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if entry.readlink().name.startswith("socket:"):
            found = socket.socket(fileno=LIBC.syscall(PIDFD_GETFD, process, int(entry.name), 0))
            sockets += [found] if found.family == socket.AF_NETLINK else []
    before = [
        each.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2 for each in sockets
    ]  # the kernel returns twice the value
    assert sockets
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    yield
    for each, was in zip(sockets, before, strict=True):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, was)
        each.close()
    os.close(process)


def without(state: State, link: str) -> State:
    """Return a state without the lines of a link."""
    return {key: "\n".join(line for line in text.splitlines() if link not in line) for key, text in state.items()}


def test_lost_acknowledgements_roll_the_change_back(bench: Bench) -> None:
    """With a receive buffer that is too small, the kernel drops acknowledgements and returns ENOBUFS (netlink(7))."""
    with receive_buffer(bench.lab.daemons.pid("netagent"), 1), UserWire(bench.lab) as wire:
        wire.socket.settimeout(3)
        try:
            answer = wire.apply(*bench.change, request="lost")
        except OSError:
            answer = None
    if answer is None:
        bench.lab.kill("netagent")
        bench.start()
    wrong = bench.check(APPLY, answer, "lost")
    bench.reset()
    assert answer is not None, "netagent does not answer"
    assert answer["verdict"] != "applied"
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("length", [0, 4, 36])
def test_truncated_kernel_answer_is_not_an_acknowledgement(bench: Bench, length: int) -> None:
    found = [point for point in chosen(bench.record(APPLY), "batch") if point.call == "recvmsg"]
    assert found, "no fault was injected"
    for point in found:
        fault = f"inject=recvmsg:retval={length}:syscall=getpid:when={point.nth}"
        wrong = bench.attempt(APPLY, point, fault)
        assert not wrong, f"{point}: {wrong}"


def test_link_removed_during_a_change_rolls_back_the_rest(bench_to_break: Bench) -> None:
    bench, lab = bench_to_break, bench_to_break.lab
    one, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    ops = [{**address(one, f"10.0.2.{host}"), "route": False} for host in range(100, 180)]
    ops += [{**address(other, f"10.0.1.{host}"), "route": False} for host in range(100, 180)]
    with UserWire(lab) as wire, bench.trace() as trace:
        assert wire.apply(*ops, confirm_within=60)["verdict"] == "applied"
        wire.ask(request="rollback", id="test")
    sends = [point for point in points(trace.text.splitlines()) if (point.call, point.what) == ("sendto", "batch")]
    with UserWire(lab) as wire, bench.trace(f"inject=sendto:signal=STOP:when={sends[0].nth}") as trace:
        wire.socket.sendall(protocol.encode({"request": "apply", "id": "going", "ops": ops, "confirm_within": 0}))
        lab.wait_for(lambda: "stopped by SIGSTOP" in trace.so_far())
        assert "10.0.2.100" in bench.state()["addresses"]
        lab.cloud.batch([f"link delete {lab.nic('eth1').port}"])
        resume(lab)
        answer = wire.answer()
    assert (answer["verdict"], answer["reason"]) == ("rolled back", "No such device")
    assert without(bench.state(), "eth1") == without(bench.old, "eth1")
    assert bench.last_of("going") == "rolled back"
    verify_audit_log(lab)


def test_log_full_within_a_line_refuses_the_change(bench_to_break: Bench) -> None:
    bench, lab = bench_to_break, bench_to_break.lab
    lab.stop("netagent")
    lab.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "/var/log/cloud-network"])
    bench.start()
    before = lab.path(AUDIT).read_text()
    with UserWire(lab) as wire, bench.trace() as trace:
        answer = wire.apply(*bench.change, request="full")
    assert "ftruncate(" in trace.text  # a part of the line was written
    assert answer["verdict"] == "refused"
    assert "No space left" in answer["reason"]
    assert bench.state() == bench.old
    after = lab.path(AUDIT).read_text()
    assert after.startswith(before)
    assert '"applied"' not in after[len(before) :]
    verify_audit_log(lab)


def test_rollback_continues_after_a_kill_during_the_rollback(bench: Bench) -> None:
    request, found = bench.recover()
    assert bench.check(OPEN, None, request) == []
    kept = [point for point in found if EVERY or point.call != "recvmsg"]
    assert {point.call for point in kept} >= {"sendto", "openat", "write", "rename"}
    for point in kept:
        request, _ = bench.recover(point)
        assert bench.check(OPEN, None, request) == [], str(point)


def test_audit_log_of_all_tests_is_one_chain(bench: Bench) -> None:
    """Must be the last test of this file."""
    bench.record(APPLY)
    verify_audit_log(bench.lab)
