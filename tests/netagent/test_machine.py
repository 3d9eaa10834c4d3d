"""A random client, or several, against a real netagent: whatever is asked in whatever order, what must hold holds.

Each example is a sequence of requests, hang-ups and kills; after every step the kernel is compared with a model.
`MACHINE_EXAMPLES=500 .venv/bin/pytest tests/netagent/test_machine.py` is a soak with fresh seeds; without it the same
few examples run each time. What a failure prints (steps, and a blob for @reproduce_failure) repeats it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cloud_network.netagent import protocol
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.lab import Lab, Spec
from tests.lab.processes import SCRIPTS
from tests.lab.rooms import OURS
from tests.netagent.conftest import start
from tests.netagent.machine_kernel import FOREIGN, Snapshot, dangers, furnish, ours, predict, snapshot
from tests.netagent.machine_ops import VALUES, attacks, nearly, operations, plan, removals
from tests.netagent.wire import AUDIT, CONFIG, Wire, ifindex

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "0"))
PHASES = (Phase.explicit, Phase.generate)
SETTINGS = settings(
    max_examples=EXAMPLES or 20,
    stateful_step_count=40 if EXAMPLES else 30,
    derandomize=not EXAMPLES,
    phases=tuple(Phase) if EXAMPLES and not os.environ.get("NOSHRINK") else PHASES,
    print_blob=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LINKS = ("eth0", "eth1", "spare", "docker0", "lo")
SEATS = st.integers(0, 2)  # three clients
BY_HAND = """
for family in -4 -6; do
  ip $family route flush table all proto 209
  while ip $family rule del proto 209; do :; done
done
for link in eth0 eth1 spare; do
  ip -o address show dev $link scope global | while read -r _ _ _ address _; do
    case $address in
      10.0.1.10/24|10.0.2.50/32|10.0.3.50/32|fd00:2::50/128) ;;
      *) ip address del $address dev $link;;
    esac
  done
done
"""


class Log:
    """A file that grows: what was written since it was last asked for."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def new(self) -> str:
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.decode(errors="replace")


class World:
    """The lab, and what stays from one example to the next."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.index = {name: ifindex(lab, name) for name in LINKS}
        self.names = {index: name for name, index in self.index.items()}
        self.pid = lab.daemons.pid("netagent")
        self.numbers = itertools.count()
        self.audit, self.log = Log(lab.path(AUDIT)), Log(lab.path(OURS / "log" / "netagent"))
        self.head = "0" * 64
        self.sequence = 0
        self.tally: dict[str, int] = {}
        self.begin = snapshot(lab)

    def entries(self) -> list[dict[str, Any]]:
        """The audit lines since the last call, each of which must continue the chain."""
        found = []
        for line in self.audit.new().splitlines():
            entry = json.loads(line)
            digest = hashlib.sha256(line.rpartition(',"hash":"')[0].encode()).hexdigest()
            assert (entry["prev"], entry["hash"], entry["seq"]) == (self.head, digest, self.sequence + 1)
            self.head, self.sequence = digest, self.sequence + 1
            found.append(entry)
        return found

    def restart(self) -> None:
        start(self.lab)
        self.pid = self.lab.daemons.pid("netagent")

    def reset(self) -> None:
        """The kernel as in the beginning, for the next example: netagent is asked, then it is done by hand."""
        with connected(self.lab) as wire:
            asked(wire, request="flush", id="reset")
        lines = [f"link set {name} mtu {self.begin.links[name][1]}" for name in LINKS]
        self.lab.batch([*lines, "link set spare down"])
        if snapshot(self.lab) != self.begin:
            self.lab.run(["sh", "-c", BY_HAND], check=False)
            for line in FOREIGN[5:]:
                self.lab.run(["ip", *line.split()], check=False)


def asked(wire: Wire, **message: Any) -> dict[str, Any]:
    """Ask, and again if that was too often."""
    while "too many requests" in (answer := wire.ask(**message)).get("reason", ""):
        time.sleep(0.1)
    return answer


def connected(lab: Lab) -> Wire:
    """A client that netagent serves. One that has just gone may count until netagent has noticed: there are four."""

    def wire() -> Wire | None:
        client = Wire(lab)
        try:
            assert asked(client, request="hello", version=1) == {"verdict": "ok", "version": 1}
        except ConnectionError:
            client.socket.close()
            return None
        return client

    client = lab.wait_for(wire)
    assert client
    return client


def apply(name: str, ops: list[Any], seconds: int = 0) -> dict[str, Any]:
    return {"request": "apply", "id": name, "ops": ops, "confirm_within": seconds}


def malformed(message: dict[str, Any]) -> str:
    """What the wire has against a message; nothing if it is well formed."""
    try:
        protocol.check_request(protocol.decode(protocol.encode(message)[protocol.HEADER.size :]))
    except protocol.Malformed as error:
        return str(error)
    return ""


def machine(world: World) -> type[RuleBasedStateMachine]:
    """The machine of this world."""
    lab, some = world.lab, st.lists(operations(world.index), min_size=1, max_size=6)
    whole, hostile = plan(world.index), attacks(world.index)
    cuts = st.tuples(st.sampled_from((0, 0, 0, 1, 2, 4, 8)), st.integers(1, 14))
    kinds = st.one_of(some, some, cuts.map(lambda cut: whole[cut[0] : sum(cut)]))
    formed = kinds.filter(lambda ops: not malformed(apply("x", ops)))
    within = st.sampled_from((0, 0, 60))

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.wires: dict[int, Wire] = {}
            self.owner: tuple[int, str] | None = None  # whose transaction is open
            self.before: Snapshot = world.begin  # before the open one
            self.made: list[dict[str, Any]] = []
            self.expired = 0

        @initialize()
        def begin(self) -> None:
            world.reset()
            world.entries()
            self.now = self.expected = snapshot(lab)

        # — the model

        def wire(self, seat: int) -> Wire:
            if seat not in self.wires:
                self.wires[seat] = connected(lab)
            return self.wires[seat]

        def message(self, ops: list[Any], seconds: int) -> dict[str, Any]:
            return apply(f"m{next(world.numbers)}", ops, seconds)

        def gone(self, seat: int) -> None:
            """The connection ended, and with it what it had not confirmed."""
            self.wires.pop(seat).socket.close()
            if self.owner and self.owner[0] == seat:
                self.taken_back()

        def taken_back(self) -> None:
            self.owner, self.expected = None, self.before
            self.settle()

        def settle(self) -> None:
            """Wait until netagent has noticed."""
            with connected(lab) as wire:
                lab.wait_for(lambda: asked(wire, request="status")["open"] is None)

        def outcome(self, seat: int, message: dict[str, Any], answer: dict[str, Any]) -> None:
            """Take note of an apply's answer."""
            world.tally[answer["verdict"]] = world.tally.get(answer["verdict"], 0) + 1
            if answer["verdict"] != "applied":
                assert answer["verdict"] in ("refused", "rolled back"), answer
                assert "not_undone" not in answer, answer
                return
            assert self.owner is None, "two open at once"
            self.before = self.expected
            self.expected = predict(self.expected, message["ops"], world.names)
            self.made += message["ops"]
            if message["confirm_within"]:
                self.owner = seat, message["id"]

        def apply(self, seat: int, ops: list[Any], seconds: int) -> None:
            message = self.message(ops, seconds)
            wire = self.wire(seat)
            answer = asked(wire, **message)
            if reason := malformed(message):
                assert answer == {"verdict": "refused", "reason": reason}
                assert wire.socket.recv(1) == b""
                self.gone(seat)
            else:
                self.outcome(seat, message, answer)

        # — what may happen

        @rule(seat=SEATS, ops=kinds, seconds=within)
        def applies(self, seat: int, ops: list[Any], seconds: int) -> None:
            self.apply(seat, ops, seconds)

        @precondition(lambda self: self.owner is None)
        @rule(seat=SEATS, mtu=st.sampled_from((1300, 1400, 1500)), ops=formed)
        def leaves_one_open_that_others_want(self, seat: int, mtu: int, ops: list[Any]) -> None:
            self.apply(seat, [{"op": "link_mtu", "link": world.index["eth0"], "mtu": mtu}], 60)
            assert self.owner
            other = self.wire((seat + 1) % 3)
            for request in ("confirm", "rollback"):
                assert asked(other, request=request, id=self.owner[1])["verdict"] == "refused"
            assert "still open" in asked(other, **apply("x", ops))["reason"]

        @precondition(lambda self: self.owner is None)
        @rule(seat=SEATS, requests=st.lists(st.integers(0, len(hostile) - 1), min_size=4, max_size=12))
        def attacks(self, seat: int, requests: list[int]) -> None:
            for number in requests:
                self.apply(seat, hostile[number], 0)

        @rule(seat=SEATS, first=st.integers(0, 40), count=st.integers(1, 8), seconds=within, data=st.data())
        def removes(self, seat: int, first: int, count: int, seconds: int, data: st.DataObject) -> None:
            """What was made, and something more perhaps."""
            gone = removals(self.made)[first % (len(self.made) + 1) :][:count]
            self.apply(seat, gone + data.draw(st.one_of(st.just([]), some)) or whole[:1], seconds)

        @rule(seat=SEATS, ops=kinds, how=st.integers(0, 1000), value=VALUES)
        def applies_what_is_nearly_valid(self, seat: int, ops: list[Any], how: int, value: Any) -> None:
            at = how % len(ops)
            self.apply(seat, [*ops[:at], nearly(ops[at], how // 8, value), *ops[at + 1 :]], 0)

        @rule(seat=SEATS, another=st.booleans())
        def confirms(self, seat: int, another: bool) -> None:
            may = self.owner is not None and self.owner[0] == seat and not another
            name = self.owner[1] if self.owner and not another else "another"
            answer = asked(self.wire(seat), request="confirm", id=name)
            assert answer["verdict"] == ("confirmed" if may else "refused")
            if may:
                self.owner = None

        @rule(seat=SEATS, another=st.booleans())
        def rolls_back(self, seat: int, another: bool) -> None:
            may = self.owner is not None and self.owner[0] == seat and not another
            name = self.owner[1] if self.owner and not another else "another"
            answer = asked(self.wire(seat), request="rollback", id=name)
            assert answer["verdict"] == ("rolled back" if may else "refused")
            if may:
                self.taken_back()

        @precondition(lambda self: self.owner is None and self.expired < 1)
        @rule(seat=SEATS, ops=kinds)
        def lets_time_run_out(self, seat: int, ops: list[Any]) -> None:
            self.apply(seat, ops, 1)
            if self.owner:
                self.expired += 1
                self.taken_back()
                assert asked(self.wire(seat), request="confirm", id="late")["verdict"] == "refused"

        @rule(seat=SEATS)
        def flushes(self, seat: int) -> None:
            answer = asked(self.wire(seat), request="flush", id="flush")
            assert answer["verdict"] == "applied", answer
            if self.owner:
                self.taken_back()
            self.expected = replace(self.expected, addresses=frozenset(), routes=frozenset(), rules=frozenset())
            self.made = []

        @rule(seat=SEATS)
        def asks_for_status(self, seat: int) -> None:
            answer = asked(self.wire(seat), request="status")
            assert answer["open"] == (self.owner[1] if self.owner else None)
            world.entries()
            assert (answer["sequence"], answer["head"]) == (world.sequence, world.head)

        @precondition(lambda self: self.wires)
        @rule(seat=SEATS)
        def hangs_up(self, seat: int) -> None:
            if seat in self.wires:
                self.gone(seat)

        @rule(seat=SEATS, ops=formed, seconds=within)
        def hangs_up_before_the_answer(self, seat: int, ops: list[Any], seconds: int) -> None:
            message = self.message(ops, seconds)
            self.wire(seat).socket.sendall(protocol.encode(message))
            busy = self.owner is not None
            self.wires.pop(seat).socket.close()
            found: list[dict[str, Any]] = []

            def logged() -> bool:
                found.extend(each for each in world.entries() if each.get("id") == message["id"])
                return bool(found)

            lab.wait_for(logged)
            if busy and self.owner and self.owner[0] == seat:
                assert found[0]["verdict"] == "refused"
                self.taken_back()
            else:
                self.outcome(seat, message, found[0])
                if self.owner and self.owner[0] == seat:
                    self.taken_back()

        @rule(seat=SEATS, cut=st.integers(0, 1000), finishes=st.booleans())
        def sends_half_a_frame(self, seat: int, cut: int, finishes: bool) -> None:
            frame, wire = protocol.encode({"request": "status"}), self.wire(seat)
            at = 1 + cut % (len(frame) - 1)
            wire.socket.sendall(frame[:at])
            with connected(lab) as other:
                assert asked(other, request="status")["verdict"] == "ok"
            if finishes:
                wire.socket.sendall(frame[at:])
                assert wire.answer()["verdict"] in ("ok", "refused")
            else:
                self.gone(seat)

        @rule(
            seat=SEATS,
            body=st.one_of(
                st.binary(max_size=60), VALUES.map(msgpack.packb), st.binary(max_size=9).map(lambda b: b"\x83" + b)
            ),
        )
        def sends_garbage(self, seat: int, body: bytes) -> None:
            answer = self.wire(seat).raw(body)
            assert answer["verdict"] == "refused"
            if "too many requests" not in answer["reason"]:
                assert self.wires[seat].socket.recv(1) == b""
                self.gone(seat)

        @precondition(lambda self: self.owner is None)
        @rule(one=formed, two=formed, seconds=within, other=within)
        def two_at_once(self, one: list[Any], two: list[Any], seconds: int, other: int) -> None:
            """Both have sent before either has an answer. The audit log says whose turn was first."""
            sent = {0: self.message(one, seconds), 1: self.message(two, other)}
            wires = [self.wire(seat) for seat in sent]
            for seat, message in sent.items():
                wires[seat].socket.sendall(protocol.encode(message))
            answers = {message["id"]: (seat, message, wires[seat].answer()) for seat, message in sent.items()}
            turns = [entry["id"] for entry in world.entries() if entry.get("id") in answers]
            assert sorted(turns) == sorted(answers)
            for turn in turns:
                self.outcome(*answers[turn])

        @precondition(lambda self: self.owner is None)
        @rule(seat=SEATS, ops=formed, seconds=within)
        def is_killed_at_work(self, seat: int, ops: list[Any], seconds: int) -> None:
            """Whole or not at all, and gone if it was not confirmed; which, only the kernel knows."""
            message = self.message(ops, seconds)
            self.wire(seat).socket.sendall(protocol.encode(message))
            self.end(signal.SIGKILL)
            done = predict(self.expected, ops, world.names)
            if not seconds and ours(snapshot(lab, done.addresses)) == ours(done):
                self.expected = done
                self.made += ops

        @rule(how=st.sampled_from((signal.SIGKILL, signal.SIGTERM)))
        def ends_and_is_started(self, how: signal.Signals) -> None:
            self.end(how)

        def end(self, how: signal.Signals) -> None:
            lab.kill("netagent", how)
            lab.wait_for(lambda: not lab.daemons.running("netagent"))
            for wire in self.wires.values():
                wire.socket.close()
            self.wires.clear()
            world.restart()
            if self.owner:
                self.taken_back()

        @rule(sense=st.booleans())
        def reads_its_settings_anew(self, sense: bool) -> None:
            if not sense:
                lab.write_config("nonsense\n")
            lab.kill("netagent", signal.SIGHUP)
            if not sense:
                lab.wait_for(lambda: "going on with" in self.said())
                lab.write_config(CONFIG)

        # — what must hold

        def said(self) -> str:
            text = world.log.new()
            assert "Traceback" not in text, text
            return text

        @invariant()
        def all_is_well(self) -> None:
            now = self.now = snapshot(lab, self.expected.addresses)
            begin = world.begin
            assert now.foreign_addresses == begin.foreign_addresses
            assert now.foreign_routes == begin.foreign_routes
            assert now.foreign_rules == begin.foreign_rules
            assert begin.kernel_routes <= now.kernel_routes, begin.kernel_routes - now.kernel_routes
            assert now.ways == begin.ways
            assert now.addresses == self.expected.addresses
            assert now.routes == self.expected.routes
            assert now.rules == self.expected.rules
            assert now.links == self.expected.links
            assert dangers(now, world.names) == []

            assert lab.daemons.running("netagent")
            assert lab.daemons.pid("netagent") == world.pid
            self.said()
            world.entries()

        def teardown(self) -> None:
            for wire in self.wires.values():
                wire.socket.close()
            if lab.daemons.running("netagent"):
                done = lab.run([str(SCRIPTS / "cnctl"), "audit", "--verify"], check=False)
                assert done.returncode == 0, done.stdout + done.stderr
            else:
                world.restart()

    return Machine


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        furnish(lab)
        start(lab)
        world = World(lab)
        yield world
        print(f"{world.sequence} audit lines; what became of requests to apply: {world.tally}")


def test_whatever_is_asked_in_whatever_order_what_must_hold_holds(world: World) -> None:
    run_state_machine_as_test(machine(world), settings=SETTINGS)
