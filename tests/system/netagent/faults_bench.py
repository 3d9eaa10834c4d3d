"""One lab, one change to the network, and a judge of what a fault has made of it: all of it, or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import Lab
from tests.lab.namespaces import ENVIRONMENT
from tests.lab.processes import ISOLATED
from tests.system.netagent.conftest import start
from tests.system.netagent.faults_trace import KILL, Point, Trace, points
from tests.system.netagent.faults_who import As
from tests.system.netagent.wire import AUDIT, Wire, address, ifindex, kernel_state, main_rule, route, rule

Answer = dict[str, Any] | None
Ops = list[dict[str, Any]]
State = dict[str, str]
FOREIGN = (
    "link set eth0 up",
    "address add 10.0.2.200/32 dev eth0",
    "route add 192.168.77.0/24 via 10.0.1.1",
    "route add 192.0.2.0/25 via 10.0.1.1 dev eth1 table 10002",
    "rule add pref 31005 from 10.9.9.9 lookup main",
    "rule add pref 31000 from 10.0.2.200 lookup 10001 suppress_prefixlength 0",
)


@dataclass(frozen=True)
class Phase:
    """A part of a transaction's life: what happens before strace is attached, and what while it is."""

    name: str
    within: int  # seconds, of the apply that comes first
    ask: Callable[[Bench, Wire, str], Answer]
    opened: bool  # whether the change is made before strace is attached
    new: str | None  # the verdict after which the new state must be there
    old: tuple[str, ...]  # the verdicts after which it must not

    def __str__(self) -> str:
        return self.name


def _apply(within: int) -> Callable[[Bench, Wire, str], Answer]:
    return lambda bench, wire, request: wire.apply(*bench.forth, confirm_within=within, request=request)


APPLY = Phase("apply", 0, _apply(0), False, "applied", ("refused", "rolled back"))
OPEN = Phase("apply to be confirmed", 60, _apply(60), False, None, ("refused", "rolled back", "applied"))
CONFIRM = Phase(
    "confirm", 60, lambda _, wire, request: wire.ask(request="confirm", id=request), True, "confirmed", ("refused",)
)
ROLLBACK = Phase(
    "rollback",
    60,
    lambda _, wire, request: wire.ask(request="rollback", id=request),
    True,
    None,
    ("rolled back", "refused"),
)


def wait(bench: Bench, wire: Wire, request: str) -> None:
    """Do nothing, until netagent has lost its patience and written that down."""
    bench.lab.wait_for(lambda: not bench.running or bench.last_of(request) == "rolled back" or bench.faulted(), 10)


def hang_up(bench: Bench, wire: Wire, request: str) -> None:
    """Go without a word."""
    wire.socket.close()
    wait(bench, wire, request)


GONE = Phase("the client goes", 60, hang_up, True, None, ())
EXPIRY = Phase("time is up", 1, wait, True, None, ())


@dataclass
class Bench:
    """netagent in a lab with other people's addresses, routes and rules, and some of its own from before."""

    lab: Lab
    scratch: Path
    forth: Ops = field(default_factory=list)
    back: Ops = field(default_factory=list)
    there: Ops = field(default_factory=list)
    requests: int = 0
    link: int = 0

    def __post_init__(self) -> None:
        self.lab.batch(FOREIGN)
        start(self.lab)
        self.link = ifindex(self.lab, "eth0")
        self._plan(self.link, ifindex(self.lab, "eth1"))
        self.old = self.state()
        with As(self.lab) as wire:
            assert wire.apply(*self.forth)["verdict"] == "applied"
            self.new = self.state()
            assert wire.apply(*self.back)["verdict"] == "applied"
        assert self.new != self.old == self.state()

    def _plan(self, a: int, b: int) -> None:
        """On two links, and more than one batch of 128 messages: things come, go and are replaced."""
        hosts = range(11, 33)
        self.there = [address(a, "10.0.2.10/24"), _single(a, "10.0.2.90"), route(a, "10.9.0.0/16", "10.0.2.1")]
        self.there += [rule("10.0.2.90", 9999 + a), main_rule()]
        with As(self.lab) as wire:
            assert wire.apply(*self.there)["verdict"] == "applied"
        for link, net, gateway in ((a, "10.0.2", "10.0.2.1"), (b, "10.0.1", "10.0.1.1")):
            table = 9999 + link
            self.forth += [_single(link, f"{net}.{host}") for host in hosts]
            self.forth += [address(link, f"fd00:{link}::10/128")]
            self.forth += [route(link, "0.0.0.0/0", gateway), route(link, f"{net}.0/24")]
            self.forth += [rule(f"{net}.{host}", table, suppress=True) for host in hosts]
            self.forth += [rule(f"{net}.{host}", table, 31020) for host in hosts]
        swapped = (route(a, "10.9.0.0/16", "10.0.2.2"), route(a, "10.9.0.0/16", "10.0.2.1"))
        gone = [rule("10.0.2.90", 9999 + a, op="rule_remove"), address(a, "10.0.2.90/32", "address_remove")]
        self.forth = [*self.forth[:60], swapped[0], *gone, *self.forth[60:]]
        assert len(self.forth) > 128
        undone = [swapped[1] if op == swapped[0] else _inverse(op) for op in reversed(self.forth)]
        self.back = undone

    def name(self) -> str:
        """An id that no request has had."""
        self.requests += 1
        return f"r{self.requests}"

    def start(self) -> None:
        """Start netagent; after its first dump the kernel makes datagrams as large as its buffer allows."""
        self.lab.start("netagent")
        self.lab.wait_for(self._refuses)

    def _refuses(self) -> bool:
        """Whether netagent asks the kernel, and answers."""
        try:
            with As(self.lab) as wire:
                return bool(wire.apply(address(self.link, "8.8.8.8"))["verdict"] == "refused")
        except OSError:
            return False

    # — looking

    @property
    def running(self) -> bool:
        return self.lab.daemons.running("netagent")

    def state(self) -> State:
        return comparable(kernel_state(self.lab))

    def last_of(self, request: str) -> str | None:
        """The last verdict that the audit log has for a request."""
        for line in reversed(self.lab.path(AUDIT).read_text().splitlines()):
            if f'"id":"{request}"' in line:
                return str(json.loads(line)["verdict"])
        return None

    def faulted(self) -> bool:
        path = self.scratch / "trace"
        return path.exists() and "INJECTED" in path.read_text()

    def between(self, state: State) -> str:
        """How a state differs from both that there may be."""
        names = {id(self.old): "before", id(self.new): "after"}
        parts = []
        for wanted in (self.old, self.new):
            lines = {(key, line) for key in state for line in state[key].splitlines()}
            right = {(key, line) for key in wanted for line in wanted[key].splitlines()}
            parts.append(f"{names[id(wanted)]}: {len(right - lines)} missing, {len(lines - right)} more")
        return "; ".join(parts)

    # — doing

    def record(self, phase: Phase) -> list[Point]:
        """The system calls of a phase in which nothing goes wrong."""
        trace, _ = self._play(phase, "recorded")
        self.reset()
        return points(trace.text.splitlines())

    def trace(self, *faults: str) -> Trace:
        """strace, for netagent as it runs now."""
        return Trace(self.lab.daemons.pid("netagent"), self.scratch / "trace", *faults)

    def _play(self, phase: Phase, request: str, *faults: str) -> tuple[Trace, Answer]:
        with As(self.lab) as wire:
            if phase.opened:
                assert wire.apply(*self.forth, confirm_within=phase.within, request=request)["verdict"] == "applied"
            else:
                wire.ask(request="status")
            with self.trace(*faults) as trace:
                try:
                    answer = phase.ask(self, wire, request)
                except (OSError, ConnectionError):
                    answer = None
        return trace, answer

    def attempt(self, phase: Phase, point: Point, name: str) -> list[str]:
        """Play a phase with a fault at a point; what is wrong with what became of it."""
        request = self.name()
        trace, answer = self._play(phase, request, point.fault(name))
        if not trace.injected:
            return [f"not injected:\n{trace.text}"]
        wrong = ["netagent died of it"] if self._died() and name != KILL else []
        wrong += self.judge(phase, answer, request)
        self.reset()
        return wrong

    def _died(self) -> bool:
        """Whether netagent is no more; if so, it is started again."""
        try:
            with As(self.lab) as wire:
                wire.ask(request="status")
        except OSError:
            self.lab.wait_for(lambda: not self.running, 5, "netagent to serve or to end")
            self.start()
            return True
        return False

    def judge(self, phase: Phase, answer: Answer, request: str) -> list[str]:
        """After the fault, and a restart if netagent died of it: nothing is open, and all agree with the kernel."""
        wrong = []
        verdict = answer["verdict"] if answer else None
        try:
            with As(self.lab) as wire:
                self.lab.wait_for(lambda: wire.ask(request="status")["open"] is None, 1, "nothing to be open")
        except AssertionError:
            wrong.append("a transaction stays open, so nobody is served")
        except OSError as error:
            return [f"netagent does not serve: {error!r}"]
        if not self._refuses():
            wrong.append("the next request is not answered")
            self.lab.wait_for(self._refuses)
        state = self.state()
        if state not in (self.old, self.new):
            wrong.append(f"in between: {self.between(state)}")
        elif verdict == phase.new and verdict is not None and state != self.new:
            wrong.append(f"the answer is {answer}, and the state is the old one")
        elif verdict in phase.old and state != self.old:
            wrong.append(f"the answer is {answer}, and the state is the new one")
        if verdict not in (None, phase.new, *phase.old):
            wrong.append(f"an answer that nobody expected: {answer}")
        logged = self.last_of(request)
        stands = ("applied", "confirmed") if phase.within == 0 else ("confirmed",)
        if state == self.new and logged not in stands:
            wrong.append(f"the state is the new one, and the audit log ends with {logged}")
        if state == self.old and logged in stands:
            wrong.append(f"the state is the old one, and the audit log ends with {logged}")
        return wrong

    def recover(self, point: Point | None = None) -> tuple[str, list[Point]]:
        """Kill netagent with a change open, and kill the next one at `point` too (None: let it be).

        The request's id, and the calls from where the ledger is read.
        """
        request, out = self.name(), self.scratch / "recovery"
        with As(self.lab) as wire:
            assert wire.apply(*self.forth, confirm_within=60, request=request)["verdict"] == "applied"
            self.lab.kill("netagent")
        calls = "trace=sendto,recvmsg,openat,write,rename,ftruncate"
        argv = ["strace", "-f", "-qq", "-y", "-s", "96", "-o", str(out), "-e", calls]
        if point is not None:
            argv += ["-e", point.fault(KILL)]
        netagent = [sys.executable, "-I", "-m", ISOLATED["netagent"]]
        with (self.scratch / "said").open("wb") as said:
            tracer = subprocess.Popen(
                [*argv, *self.lab.instance.enter(*netagent)], env=ENVIRONMENT, stdout=said, stderr=said
            )
        self.lab.wait_for(lambda: tracer.poll() is not None or "ready" in (self.scratch / "said").read_text())
        lines = [line.split(maxsplit=1) for line in out.read_text().splitlines()]
        pid = lines[-1][0]
        if point is None:
            os.kill(int(pid), signal.SIGTERM)
        tracer.wait(10)
        found = [line for number, line in lines if number == pid]
        assert (point is None) == ("+++ killed by SIGKILL +++" not in out.read_text())
        seen = points(found)
        began = next((at for at, line in enumerate(found) if "ledger" in line and "O_RDONLY" in line), None)
        self.start()
        return request, [] if began is None else seen[-len(found) + began :]

    def reset(self) -> None:
        """Back to the old state, however far from it."""
        if self.requests % 10 == 0 or not self._at_rest():
            self.lab.kill("netagent")  # it would count the requests of so many tries, too
            self.start()
        state = self.state()
        if state == self.old:
            return
        with As(self.lab) as wire:
            if state == self.new:
                assert wire.apply(*self.back)["verdict"] == "applied"
            else:
                wire.ask(request="flush", id="flush")
                assert wire.apply(*self.there)["verdict"] == "applied"
        assert self.state() == self.old, self.between(self.state())

    def _at_rest(self) -> bool:
        try:
            with As(self.lab) as wire:
                return wire.ask(request="status")["open"] is None
        except OSError:
            return False


def comparable(state: State) -> State:
    """Without an order: addresses and rules that were taken away and given back are at the end."""
    return {key: "\n".join(sorted(text.splitlines())) for key, text in state.items()}


def _single(link: int, text: str) -> dict[str, Any]:
    return {**address(link, text), "route": False}


def _inverse(op: dict[str, Any]) -> dict[str, Any]:
    kind, _, verb = op["op"].partition("_")
    other = {"add": "remove", "remove": "add", "replace": "remove"}[verb]
    turned = {**op, "op": f"{kind}_{other}"}
    if kind == "address":
        turned.pop("route", None)
        if other == "add":
            turned["route"] = False
    return turned


def whole(lab: Lab) -> None:
    """Let the reader of the audit log say that it is one chain."""
    cnctl = [sys.executable, "-m", "cloud_network.api.cnctl.main", "audit", "--log", str(lab.path(AUDIT)), "--verify"]
    done = subprocess.run(cnctl, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("OK: ")
