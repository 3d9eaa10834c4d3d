"""A lab with one change to the network, and a check that a fault leaves all of the change or nothing."""

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
from tests.system.netagent.identities import UserWire
from tests.system.netagent.strace import KILL, Point, Trace, points
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
    """A phase of a transaction: the steps before strace is attached, and the step during which the fault occurs."""

    name: str
    within: int  # confirm_within of the change, in seconds
    ask: Callable[[Bench, Wire, str], Answer]
    opened: bool  # True if the change is applied before strace is attached
    new: str | None  # the verdict after which the state must be the new one
    old: tuple[str, ...]  # the verdicts after which the state must be the old one

    def __str__(self) -> str:
        return self.name


def _apply(within: int) -> Callable[[Bench, Wire, str], Answer]:
    return lambda bench, wire, request: wire.apply(*bench.change, confirm_within=within, request=request)


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
    """Wait until netagent has rolled back the change and logged that."""
    bench.lab.wait_for(lambda: not bench.running or bench.last_of(request) == "rolled back" or bench.faulted(), 10)


def disconnect(bench: Bench, wire: Wire, request: str) -> None:
    """Close the connection without a request."""
    wire.socket.close()
    wait(bench, wire, request)


DISCONNECT = Phase("the client disconnects", 60, disconnect, True, None, ())
EXPIRY = Phase("the time expires", 1, wait, True, None, ())


@dataclass
class Bench:
    """netagent in a lab with objects of other programs and with earlier objects of its own."""

    lab: Lab
    scratch: Path
    change: Ops = field(default_factory=list)
    inverse: Ops = field(default_factory=list)
    base: Ops = field(default_factory=list)
    requests: int = 0
    link: int = 0

    def __post_init__(self) -> None:
        self.lab.batch(FOREIGN)
        start(self.lab)
        self.link = ifindex(self.lab, "eth0")
        self._plan(self.link, ifindex(self.lab, "eth1"))
        self.old = self.state()
        with UserWire(self.lab) as wire:
            assert wire.apply(*self.change)["verdict"] == "applied"
            self.new = self.state()
            assert wire.apply(*self.inverse)["verdict"] == "applied"
        assert self.new != self.old == self.state()

    def _plan(self, a: int, b: int) -> None:
        """Plan a change of two links, with more than one batch of 128 messages, that adds, removes and replaces
        objects.
        """
        hosts = range(11, 33)
        self.base = [address(a, "10.0.2.10/24"), _single(a, "10.0.2.90"), route(a, "10.9.0.0/16", "10.0.2.1")]
        self.base += [rule("10.0.2.90", 9999 + a), main_rule()]
        with UserWire(self.lab) as wire:
            assert wire.apply(*self.base)["verdict"] == "applied"
        for link, net, gateway in ((a, "10.0.2", "10.0.2.1"), (b, "10.0.1", "10.0.1.1")):
            table = 9999 + link
            self.change += [_single(link, f"{net}.{host}") for host in hosts]
            self.change += [address(link, f"fd00:{link}::10/128")]
            self.change += [route(link, "0.0.0.0/0", gateway), route(link, f"{net}.0/24")]
            self.change += [rule(f"{net}.{host}", table, suppress=True) for host in hosts]
            self.change += [rule(f"{net}.{host}", table, 31020) for host in hosts]
        swapped = (route(a, "10.9.0.0/16", "10.0.2.2"), route(a, "10.9.0.0/16", "10.0.2.1"))
        gone = [rule("10.0.2.90", 9999 + a, op="rule_remove"), address(a, "10.0.2.90/32", "address_remove")]
        self.change = [*self.change[:60], swapped[0], *gone, *self.change[60:]]
        assert len(self.change) > 128
        undone = [swapped[1] if op == swapped[0] else _inverse(op) for op in reversed(self.change)]
        self.inverse = undone

    def name(self) -> str:
        """Return an unused request id."""
        self.requests += 1
        return f"r{self.requests}"

    def start(self) -> None:
        """Start netagent; after its first dump the kernel sends datagrams as large as its buffer."""
        self.lab.start("netagent")
        self.lab.wait_for(self._refuses)

    def _refuses(self) -> bool:
        """Return True if netagent checks a request against the kernel and answers it."""
        try:
            with UserWire(self.lab) as wire:
                return bool(wire.apply(address(self.link, "8.8.8.8"))["verdict"] == "refused")
        except OSError:
            return False

    # — state

    @property
    def running(self) -> bool:
        return self.lab.daemons.running("netagent")

    def state(self) -> State:
        return comparable(kernel_state(self.lab))

    def last_of(self, request: str) -> str | None:
        """Return the last verdict in the audit log for a request."""
        for line in reversed(self.lab.path(AUDIT).read_text().splitlines()):
            if f'"id":"{request}"' in line:
                return str(json.loads(line)["verdict"])
        return None

    def faulted(self) -> bool:
        path = self.scratch / "trace"
        return path.exists() and "INJECTED" in path.read_text()

    def between(self, state: State) -> str:
        """Describe the differences between a state and the two permitted states."""
        names = {id(self.old): "before", id(self.new): "after"}
        parts = []
        for wanted in (self.old, self.new):
            lines = {(key, line) for key in state for line in state[key].splitlines()}
            expected = {(key, line) for key in wanted for line in wanted[key].splitlines()}
            parts.append(f"{names[id(wanted)]}: {len(expected - lines)} missing, {len(lines - expected)} additional")
        return "; ".join(parts)

    # — faults

    def record(self, phase: Phase) -> list[Point]:
        """Return the system calls of a phase without a fault."""
        trace, _ = self._run(phase, "recorded")
        self.reset()
        return points(trace.text.splitlines())

    def trace(self, *faults: str) -> Trace:
        """Return a trace of the running netagent."""
        return Trace(self.lab.daemons.pid("netagent"), self.scratch / "trace", *faults)

    def _run(self, phase: Phase, request: str, *faults: str) -> tuple[Trace, Answer]:
        with UserWire(self.lab) as wire:
            if phase.opened:
                assert wire.apply(*self.change, confirm_within=phase.within, request=request)["verdict"] == "applied"
            else:
                wire.ask(request="status")
            with self.trace(*faults) as trace:
                try:
                    answer = phase.ask(self, wire, request)
                except (OSError, ConnectionError):
                    answer = None
        return trace, answer

    def attempt(self, phase: Phase, point: Point, name: str) -> list[str]:
        """Run a phase with a fault at a point; return the errors in the result."""
        request = self.name()
        trace, answer = self._run(phase, request, point.fault(name))
        if not trace.injected:
            return [f"not injected:\n{trace.text}"]
        wrong = ["netagent exited"] if self._died() and name != KILL else []
        wrong += self.check(phase, answer, request)
        self.reset()
        return wrong

    def _died(self) -> bool:
        """If netagent has ended, start it again and return True."""
        try:
            with UserWire(self.lab) as wire:
                wire.ask(request="status")
        except OSError:
            self.lab.wait_for(lambda: not self.running, 5, "netagent to answer or exit")
            self.start()
            return True
        return False

    def check(self, phase: Phase, answer: Answer, request: str) -> list[str]:
        """Return errors after the fault: no transaction may be open, and answer, log and kernel must agree."""
        wrong = []
        verdict = answer["verdict"] if answer else None
        try:
            with UserWire(self.lab) as wire:
                self.lab.wait_for(lambda: wire.ask(request="status")["open"] is None, 1, "the end of the transaction")
        except AssertionError:
            wrong.append("a transaction stays open, which blocks other clients")
        except OSError as error:
            return [f"netagent does not serve: {error!r}"]
        if not self._refuses():
            wrong.append("the next request is not answered")
            self.lab.wait_for(self._refuses)
        state = self.state()
        if state not in (self.old, self.new):
            wrong.append(f"neither old nor new state: {self.between(state)}")
        elif verdict == phase.new and verdict is not None and state != self.new:
            wrong.append(f"the answer is {answer}, and the state is the old one")
        elif verdict in phase.old and state != self.old:
            wrong.append(f"the answer is {answer}, and the state is the new one")
        if verdict not in (None, phase.new, *phase.old):
            wrong.append(f"unexpected answer: {answer}")
        logged = self.last_of(request)
        stands = ("applied", "confirmed") if phase.within == 0 else ("confirmed",)
        if state == self.new and logged not in stands:
            wrong.append(f"the state is the new one, and the audit log ends with {logged}")
        if state == self.old and logged in stands:
            wrong.append(f"the state is the old one, and the audit log ends with {logged}")
        return wrong

    def recover(self, point: Point | None = None) -> tuple[str, list[Point]]:
        """Kill netagent with an open change, and kill the next netagent at `point`, unless it is None.

        Returns the request's id, and the calls from the read of the ledger on.
        """
        request, out = self.name(), self.scratch / "recovery"
        with UserWire(self.lab) as wire:
            assert wire.apply(*self.change, confirm_within=60, request=request)["verdict"] == "applied"
            self.lab.kill("netagent")
        calls = "trace=sendto,recvmsg,openat,write,rename,ftruncate"
        argv = ["strace", "-f", "-qq", "-y", "-s", "96", "-o", str(out), "-e", calls]
        if point is not None:
            argv += ["-e", point.fault(KILL)]
        netagent = [sys.executable, "-I", "-m", ISOLATED["netagent"]]
        with (self.scratch / "output").open("wb") as output:
            tracer = subprocess.Popen(
                [*argv, *self.lab.instance.enter(*netagent)], env=ENVIRONMENT, stdout=output, stderr=output
            )
        self.lab.wait_for(lambda: tracer.poll() is not None or "ready" in (self.scratch / "output").read_text())
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
        """Restore the old state from any state."""
        if self.requests % 10 == 0 or not self._at_rest():
            self.lab.kill("netagent")  # also resets its rate limits
            self.start()
        state = self.state()
        if state == self.old:
            return
        with UserWire(self.lab) as wire:
            if state == self.new:
                assert wire.apply(*self.inverse)["verdict"] == "applied"
            else:
                wire.ask(request="flush", id="flush")
                assert wire.apply(*self.base)["verdict"] == "applied"
        assert self.state() == self.old, self.between(self.state())

    def _at_rest(self) -> bool:
        try:
            with UserWire(self.lab) as wire:
                return wire.ask(request="status")["open"] is None
        except OSError:
            return False


def comparable(state: State) -> State:
    """Return the state with sorted lines: addresses and rules that were removed and added again are last."""
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


def verify_audit_log(lab: Lab) -> None:
    """Check the hash chain with `cnctl audit --verify`."""
    cnctl = [sys.executable, "-m", "cloud_network.api.cnctl", "audit", "--log", str(lab.path(AUDIT)), "--verify"]
    done = subprocess.run(cnctl, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("OK: ")
