"""Every system call of a transaction fails once, and netagent is killed at every one: the kernel has all or nothing.

`CLOUD_NETWORK_EXHAUSTIVE=1` plays every call with every error; without it, of the many answers of the kernel that are
alike only the first, the middle and the last.
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
from tests.system.netagent.faults_bench import APPLY, CONFIRM, EXPIRY, GONE, OPEN, ROLLBACK, Bench, Phase, State, whole
from tests.system.netagent.faults_trace import KILL, Point, points
from tests.system.netagent.faults_who import As
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
    """For tests after which the lab is not as it was before."""
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


def play(bench: Bench, phase: Phase, what: str, *, kill: bool) -> None:
    """Fails with a line for every point at which something went wrong."""
    found = chosen(bench.record(phase), what)
    assert found, "nothing was tried"
    wrong: list[str] = []
    tried = 0
    for point in found:
        if len(wrong) > 3 and not EVERY:
            break  # it takes time to get out of
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
    play(bench, phase, what, kill=True)


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
    play(bench, APPLY, what, kill=False)


@pytest.mark.parametrize("what", ["client", "ledger", "audit", "journal"])
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "failing"])
def test_confirmed_change_stays_and_unconfirmed_is_rolled_back(bench: Bench, what: str, kill: bool) -> None:
    play(bench, CONFIRM, what, kill=kill)


@pytest.mark.parametrize("what", ["client", "dump", "ledger", "batch", "audit", "journal"])
@pytest.mark.parametrize("phase", [ROLLBACK, GONE], ids=str)
def test_restart_rolls_back_unconfirmed_change(bench: Bench, phase: Phase, what: str) -> None:
    play(bench, phase, what, kill=True)


@pytest.mark.parametrize(
    ("phase", "what"),
    [
        (ROLLBACK, "client"),
        (ROLLBACK, "dump"),
        (ROLLBACK, "ledger"),
        (ROLLBACK, "batch"),
        (ROLLBACK, "audit"),
        (ROLLBACK, "journal"),
        (GONE, "client"),
        (GONE, "dump"),
        (GONE, "ledger"),
        (GONE, "batch"),
        (GONE, "audit"),
        (GONE, "journal"),
    ],
    ids=str,
)
def test_rollback_is_complete(bench: Bench, phase: Phase, what: str) -> None:
    play(bench, phase, what, kill=False)


@pytest.mark.parametrize("what", ["dump", "ledger"])
def test_change_not_confirmed_in_time_is_rolled_back(bench: Bench, what: str) -> None:
    found = [point for point in chosen(bench.record(EXPIRY), what) if point.call in ("sendto", "rename")]
    wrong = [f"{point}: {each}" for point in found[:1] for each in bench.attempt(EXPIRY, point, point.errors[0])]
    assert found
    assert not wrong, "\n".join(wrong)


def go_on(lab: Lab) -> None:
    """Wake netagent, which has stopped, and nsenter(1), which follows its child's example and wakes it again."""
    parent = re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{lab.daemons.pid('netagent')}/status").read_text(), re.MULTILINE)
    assert parent
    lab.wait_for(lambda: "State:\tT" in Path(f"/proc/{parent[1]}/status").read_text())
    os.kill(int(parent[1]), signal.SIGCONT)


@contextmanager
def receive_buffer(pid: int, size: int) -> Iterator[None]:
    """Give another process's netlink sockets a receive buffer of `size` (or the smallest that there is)."""
    process = os.pidfd_open(pid)
    ours = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if entry.readlink().name.startswith("socket:"):
            found = socket.socket(fileno=LIBC.syscall(PIDFD_GETFD, process, int(entry.name), 0))
            ours += [found] if found.family == socket.AF_NETLINK else []
    before = [each.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2 for each in ours]  # it is told doubled
    assert ours
    for each in ours:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    yield
    for each, was in zip(ours, before, strict=True):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, was)
        each.close()
    os.close(process)


def without(state: State, link: str) -> State:
    """What a state says of other links."""
    return {key: "\n".join(line for line in text.splitlines() if link not in line) for key, text in state.items()}


def test_lost_acknowledgements_roll_the_change_back(bench: Bench) -> None:
    """A receive buffer that is too small, for real: the kernel drops acknowledgements and says ENOBUFS (netlink(7))."""
    with receive_buffer(bench.lab.daemons.pid("netagent"), 1), As(bench.lab) as wire:
        wire.socket.settimeout(3)
        try:
            answer = wire.apply(*bench.forth, request="lost")
        except OSError:
            answer = None
    if answer is None:
        bench.lab.kill("netagent")
        bench.start()
    wrong = bench.judge(APPLY, answer, "lost")
    bench.reset()
    assert answer is not None, "netagent waits for ever"
    assert answer["verdict"] != "applied"
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("length", [0, 4, 36])
def test_truncated_kernel_answer_is_not_an_acknowledgement(bench: Bench, length: int) -> None:
    found = [point for point in chosen(bench.record(APPLY), "batch") if point.call == "recvmsg"]
    assert found, "nothing was tried"
    for point in found:
        fault = f"inject=recvmsg:retval={length}:syscall=getpid:when={point.nth}"
        wrong = bench.attempt(APPLY, point, fault)
        assert not wrong, f"{point}: {wrong}"


def test_link_removed_during_a_change_rolls_back_the_rest(bench_to_break: Bench) -> None:
    bench, lab = bench_to_break, bench_to_break.lab
    one, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    ops = [{**address(one, f"10.0.2.{host}"), "route": False} for host in range(100, 180)]
    ops += [{**address(other, f"10.0.1.{host}"), "route": False} for host in range(100, 180)]
    with As(lab) as wire, bench.trace() as trace:
        assert wire.apply(*ops, confirm_within=60)["verdict"] == "applied"
        wire.ask(request="rollback", id="test")
    sends = [point for point in points(trace.text.splitlines()) if (point.call, point.what) == ("sendto", "batch")]
    with As(lab) as wire, bench.trace(f"inject=sendto:signal=STOP:when={sends[0].nth}") as trace:
        wire.socket.sendall(protocol.encode({"request": "apply", "id": "going", "ops": ops, "confirm_within": 0}))
        lab.wait_for(lambda: "stopped by SIGSTOP" in trace.so_far())
        assert "10.0.2.100" in bench.state()["addresses"]
        lab.cloud.batch([f"link delete {lab.nic('eth1').port}"])
        go_on(lab)
        answer = wire.answer()
    assert (answer["verdict"], answer["reason"]) == ("rolled back", "No such device")
    assert without(bench.state(), "eth1") == without(bench.old, "eth1")
    assert bench.last_of("going") == "rolled back"
    whole(lab)


def test_log_full_within_a_line_refuses_the_change(bench_to_break: Bench) -> None:
    bench, lab = bench_to_break, bench_to_break.lab
    lab.stop("netagent")
    lab.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "/var/log/cloud-network"])
    bench.start()
    before = lab.path(AUDIT).read_text()
    with As(lab) as wire, bench.trace() as trace:
        answer = wire.apply(*bench.forth, request="full")
    assert "ftruncate(" in trace.text  # a part of the line got there
    assert answer["verdict"] == "refused"
    assert "No space left" in answer["reason"]
    assert bench.state() == bench.old
    after = lab.path(AUDIT).read_text()
    assert after.startswith(before)
    assert '"applied"' not in after[len(before) :]
    whole(lab)


def test_rollback_continues_after_a_kill_during_the_rollback(bench: Bench) -> None:
    request, found = bench.recover()
    assert bench.judge(OPEN, None, request) == []
    kept = [point for point in found if EVERY or point.call != "recvmsg"]
    assert {point.call for point in kept} >= {"sendto", "openat", "write", "rename"}
    for point in kept:
        request, _ = bench.recover(point)
        assert bench.judge(OPEN, None, request) == [], str(point)


def test_audit_log_of_all_tests_is_one_chain(bench: Bench) -> None:
    """The last test of this file, for all that came before."""
    bench.record(APPLY)
    whole(bench.lab)
