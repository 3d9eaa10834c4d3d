"""Random requests of one or several clients to a real netagent: the invariants hold in every order.

Each example is a sequence of requests, disconnections and kills; after every step the kernel is compared with a model.
`STATE_MACHINE_EXAMPLES=500 .venv/bin/pytest tests/system/netagent/test_state_machine.py` is a soak with new seeds; by
default the same few examples run each time. A failure prints its steps, and a blob for @reproduce_failure.
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
    rule,
    run_state_machine_as_test,
)

from tests.lab import Lab, Spec
from tests.lab.namespaces import LAB_RUN
from tests.lab.processes import SCRIPTS
from tests.system.netagent.conftest import start
from tests.system.netagent.state_model import (
    FOREIGN,
    Snapshot,
    add_foreign_objects,
    owned_state,
    predict,
    snapshot,
    violations,
)
from tests.system.netagent.state_operations import VALUES, attacks, nearly, operations, plan, removals
from tests.system.netagent.wire import AUDIT, CONFIG, Wire, ifindex

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", "0"))
PHASES = (Phase.explicit, Phase.generate)
SETTINGS = settings(
    max_examples=EXAMPLES or 16,
    stateful_step_count=40 if EXAMPLES else 30,
    derandomize=not EXAMPLES,
    phases=tuple(Phase) if EXAMPLES and not os.environ.get("NOSHRINK") else PHASES,
    print_blob=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LINKS = ("eth0", "eth1", "spare", "docker0", "lo")
CLEANUP = """
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
    """A growing file; returns the lines since the last read."""

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
    """The lab, and state that is common to all examples."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.index = {name: ifindex(lab, name) for name in LINKS}
        self.names = {index: name for name, index in self.index.items()}
        self.pid = lab.daemons.pid("netagent")
        self.numbers = itertools.count()
        self.audit, self.log = Log(lab.path(AUDIT)), Log(lab.path(LAB_RUN / "log" / "netagent"))
        self.head = "0" * 64
        self.sequence = 0
        self.tally: dict[str, int] = {}
        self.left, self.at = 300.0, time.monotonic()
        self.begin = snapshot(lab)

    def entries(self) -> list[dict[str, Any]]:
        """Return the audit lines since the last call; each must continue the hash chain."""
        found = []
        for line in self.audit.new().splitlines():
            entry = json.loads(line)
            digest = hashlib.sha256(line.rpartition(',"hash":"')[0].encode()).hexdigest()
            assert (entry["prev"], entry["hash"], entry["seq"]) == (self.head, digest, self.sequence + 1)
            self.head, self.sequence = digest, self.sequence + 1
            found.append(entry)
        return found

    def connected(self) -> Wire:
        """Return a client that netagent serves; it serves one at a time."""
        wire = Wire(self.lab)
        assert self.asked(wire, request="hello", version=4) == {"verdict": "ok", "version": 4}
        return wire

    def asked(self, wire: Wire, **message: Any) -> dict[str, Any]:
        self.pace()
        return wire.ask(**message)

    def pace(self) -> None:
        """Stay below netagent's rate limit: 20 requests per second, with a burst of 400."""
        self.left = min(350.0, self.left + (time.monotonic() - self.at) * 15) - 1
        self.at = time.monotonic()
        if self.left < 0:
            time.sleep(-self.left / 15)

    def restart(self) -> None:
        start(self.lab)
        self.pid = self.lab.daemons.pid("netagent")
        self.left = 350.0

    def reset(self) -> None:
        """Restore the kernel's initial state for the next example: first by a flush, then by `ip`."""
        with self.connected() as wire:
            self.asked(wire, request="flush", id="reset")
        lines = [f"link set {name} mtu {self.begin.links[name][1]}" for name in LINKS]
        self.lab.batch([*lines, "link set spare down"])
        if snapshot(self.lab) != self.begin:
            self.lab.run(["sh", "-c", CLEANUP], check=False)
            for line in FOREIGN[5:]:
                self.lab.run(["ip", *line.split()], check=False)


def apply(name: str, ops: list[Any], seconds: int = 0) -> dict[str, Any]:
    return {"request": "apply", "id": name, "ops": ops, "confirm_within": seconds}


def malformed(message: dict[str, Any]) -> str:
    """Return the error of protocol validation; "" if the message is valid."""
    try:
        protocol.request_from_wire(protocol.decode(protocol.encode(message)[protocol.HEADER.size :]))
    except protocol.Malformed as error:
        return str(error)
    return ""


def machine(world: World) -> type[RuleBasedStateMachine]:
    """Return the state machine for this world."""
    lab, some = world.lab, st.lists(operations(world.index), min_size=1, max_size=6)
    whole, hostile = plan(world.index), attacks(world.index)
    cuts = st.tuples(st.sampled_from((0, 0, 0, 1, 2, 4, 8)), st.integers(1, 14))
    kinds = st.one_of(some, some, cuts.map(lambda cut: whole[cut[0] : sum(cut)]))
    formed = kinds.filter(lambda ops: not malformed(apply("x", ops)))
    within = st.sampled_from((0, 0, 60))

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.client: Wire | None = None
            self.open: str | None = None  # the client's transaction
            self.before: Snapshot = world.begin  # before the open one
            self.made: list[dict[str, Any]] = []
            self.expired = 0

        @initialize()
        def begin(self) -> None:
            world.reset()
            world.entries()
            self.now = self.expected = snapshot(lab)

        # — the model

        @property
        def wire(self) -> Wire:
            if self.client is None:
                self.client = world.connected()
            return self.client

        def message(self, ops: list[Any], seconds: int) -> dict[str, Any]:
            return apply(f"m{next(world.numbers)}", ops, seconds)

        def disconnected(self, *, sent: bool = False) -> None:
            """Record that the connection ended, and that its unconfirmed change is rolled back."""
            if self.client is not None:
                self.client.close()
                self.client = None
            if self.open or sent:
                with world.connected() as another:  # served after all earlier requests
                    assert world.asked(another, request="status")["open"] is None
            if self.open:
                self.rolled_back()

        def rolled_back(self) -> None:
            self.open, self.expected = None, self.before

        def outcome(self, message: dict[str, Any], answer: dict[str, Any]) -> None:
            """Record the answer to an apply request."""
            world.tally[answer["verdict"]] = world.tally.get(answer["verdict"], 0) + 1
            if answer["verdict"] != "applied":
                assert answer["verdict"] in ("refused", "rolled back"), answer
                assert not answer.get("not_undone"), answer
                return
            assert self.open is None, "two open transactions"
            self.before = self.expected
            self.expected = predict(self.expected, message["ops"], world.names)
            self.made += message["ops"]
            if message["confirm_within"]:
                self.open = message["id"]

        def apply(self, ops: list[Any], seconds: int) -> None:
            message = self.message(ops, seconds)
            wire = self.wire
            answer = world.asked(wire, **message)
            if reason := malformed(message):
                assert answer == {"verdict": "refused", "code": "refused", "reason": reason}
                assert wire.socket.recv(1) == b""
                self.disconnected()
            else:
                self.outcome(message, answer)

        # — steps. No @precondition: generated data must not depend on the result of a race with netagent.

        @rule(ops=kinds, seconds=within)
        def applies(self, ops: list[Any], seconds: int) -> None:
            self.apply(ops, seconds)

        @rule(mtu=st.sampled_from((1300, 1400, 1500)), ops=formed, request=st.sampled_from(("confirm", "rollback")))
        def another_client_requests_the_open_change(self, mtu: int, ops: list[Any], request: str) -> None:
            if self.open:
                return
            self.apply([{"op": "link_mtu", "link": world.index["eth0"], "mtu": mtu}], 60)
            assert self.open
            with Wire(lab) as other:  # it waits until there is no open change
                other.send(request=request, id=self.open)
                assert world.asked(self.wire, request="status")["open"] == self.open
                assert "still open" in world.asked(self.wire, **apply("x", ops))["reason"]
                self.client.close()
                assert other.answer()["verdict"] == "refused"
            self.disconnected()

        @rule(requests=st.lists(st.integers(0, len(hostile) - 1), min_size=4, max_size=12))
        def attacks(self, requests: list[int]) -> None:
            if self.open:
                return
            for number in requests:
                self.apply(hostile[number], 0)

        @rule(first=st.integers(0, 40), count=st.integers(1, 8), seconds=within, data=st.data())
        def removes(self, first: int, count: int, seconds: int, data: st.DataObject) -> None:
            """Remove earlier objects, and possibly add others."""
            gone = removals(self.made)[first % (len(self.made) + 1) :][:count]
            self.apply(gone + data.draw(st.one_of(st.just([]), some)) or whole[:1], seconds)

        @rule(ops=kinds, how=st.integers(0, 1000), value=VALUES)
        def applies_what_is_nearly_valid(self, ops: list[Any], how: int, value: Any) -> None:
            at = how % len(ops)
            self.apply([*ops[:at], nearly(ops[at], how // 8, value), *ops[at + 1 :]], 0)

        @rule(another=st.booleans())
        def confirms(self, another: bool) -> None:
            may = self.open is not None and not another
            name = self.open if self.open and not another else "another"
            answer = world.asked(self.wire, request="confirm", id=name)
            assert answer["verdict"] == ("confirmed" if may else "refused")
            if may:
                self.open = None

        @rule(another=st.booleans())
        def rolls_back(self, another: bool) -> None:
            may = self.open is not None and not another
            name = self.open if self.open and not another else "another"
            answer = world.asked(self.wire, request="rollback", id=name)
            assert answer["verdict"] == ("rolled back" if may else "refused")
            if may:
                self.rolled_back()

        @rule(ops=kinds)
        def lets_the_time_expire(self, ops: list[Any]) -> None:
            if self.open or self.expired:
                return
            self.apply(ops, 1)
            if self.open:
                self.expired += 1
                self.rolled_back()
                lab.wait_for(self.is_rolled_back)
                lab.wait_for(self.is_closed)  # a change without effect looks as if it were rolled back at once
                assert world.asked(self.wire, request="confirm", id="late")["verdict"] == "refused"

        def is_closed(self) -> bool:
            return world.asked(self.wire, request="status")["open"] is None

        def is_rolled_back(self) -> bool:
            now = snapshot(lab, self.before.addresses)
            return (
                owned_state(now) == owned_state(self.before) and now.foreign_addresses == self.before.foreign_addresses
            )

        @rule()
        def flushes(self) -> None:
            answer = world.asked(self.wire, request="flush", id="flush")
            assert answer["verdict"] == "applied", answer
            if self.open:
                self.rolled_back()
            self.expected = replace(self.expected, addresses=frozenset(), routes=frozenset(), rules=frozenset())
            self.made = []

        @rule()
        def asks_for_status(self) -> None:
            answer = world.asked(self.wire, request="status")
            assert answer["open"] == self.open
            world.entries()
            assert (answer["sequence"], answer["head"]) == (world.sequence, world.head)

        @rule()
        def disconnects(self) -> None:
            if self.client is None:
                return
            self.disconnected()

        @rule(ops=formed, seconds=within)
        def disconnects_before_the_answer(self, ops: list[Any], seconds: int) -> None:
            """The request is still applied, and kept if it needs no confirmation."""
            world.pace()
            self.wire.socket.sendall(protocol.encode(self.message(ops, seconds)))
            busy = self.open
            self.disconnected(sent=True)
            if not busy and not seconds:
                self.read_result(ops)

        def read_result(self, ops: list[Any]) -> None:
            """Read from the kernel whether the change was applied."""
            done = predict(self.expected, ops, world.names)
            if owned_state(snapshot(lab, done.addresses)) == owned_state(done):
                self.expected = done
                self.made += ops

        @rule(cut=st.integers(0, 1000), finishes=st.booleans())
        def sends_half_a_frame(self, cut: int, finishes: bool) -> None:
            frame, wire = protocol.encode({"request": "status"}), self.wire
            at = 1 + cut % (len(frame) - 1)
            wire.socket.sendall(frame[:at])
            if finishes:
                world.pace()
                wire.socket.sendall(frame[at:])
                assert wire.answer()["verdict"] in ("ok", "refused")
            else:
                self.disconnected()

        @rule(
            body=st.one_of(
                st.binary(max_size=60), VALUES.map(msgpack.packb), st.binary(max_size=9).map(lambda b: b"\x83" + b)
            ),
        )
        def sends_garbage(self, body: bytes) -> None:
            answer = self.wire.raw(body)
            assert answer["verdict"] == "refused"
            assert self.wire.socket.recv(1) == b""
            self.disconnected()

        @rule(one=formed, two=formed, seconds=within, other=within)
        def two_at_once(self, one: list[Any], two: list[Any], seconds: int, other: int) -> None:
            """Two clients send requests; the second is answered after the first has disconnected."""
            if self.open:
                return
            first, second = self.message(one, seconds), self.message(two, other)
            wire = self.wire
            with Wire(lab) as waiting:
                waiting.send(**second)
                self.outcome(first, world.asked(wire, **first))
                wire.close()
                if self.open:
                    self.rolled_back()
                world.pace()
                self.client = waiting
                self.outcome(second, waiting.answer())
                self.disconnected()

        @rule(ops=formed, seconds=within)
        def is_killed_during_a_change(self, ops: list[Any], seconds: int) -> None:
            """All or nothing is applied, and nothing is kept without a confirmation; only the kernel shows which."""
            if self.open:
                return
            world.pace()
            self.wire.socket.sendall(protocol.encode(self.message(ops, seconds)))
            self.end(signal.SIGKILL)
            if not seconds:
                self.read_result(ops)

        @rule(how=st.sampled_from((signal.SIGKILL, signal.SIGTERM)))
        def ends_and_restarts(self, how: signal.Signals) -> None:
            self.end(how)

        def end(self, how: signal.Signals) -> None:
            lab.kill("netagent", how)
            lab.wait_for(lambda: not lab.daemons.running("netagent"))
            world.restart()
            self.disconnected()

        @rule(valid=st.booleans())
        def reloads_its_settings(self, valid: bool) -> None:
            if not valid:
                lab.write_config("nonsense\n")
            lab.kill("netagent", signal.SIGHUP)
            if not valid:
                lab.wait_for(lambda: "continuing with" in self.new_log())
                lab.write_config(CONFIG)

        # — invariants

        def new_log(self) -> str:
            text = world.log.new()
            assert "Traceback" not in text, text
            return text

        @invariant()
        def state_is_as_expected(self) -> None:
            now = self.now = snapshot(lab, self.expected.addresses)
            begin = world.begin
            assert now.foreign_addresses == begin.foreign_addresses
            assert now.foreign_routes == begin.foreign_routes
            assert now.foreign_rules == begin.foreign_rules
            assert begin.kernel_routes <= now.kernel_routes, begin.kernel_routes - now.kernel_routes
            assert now.egress == begin.egress
            assert now.addresses == self.expected.addresses
            assert now.routes == self.expected.routes
            assert now.rules == self.expected.rules
            assert now.links == self.expected.links
            assert violations(now, world.names) == []

            assert lab.daemons.running("netagent")
            assert lab.daemons.pid("netagent") == world.pid
            self.new_log()
            world.entries()

        def teardown(self) -> None:
            if self.client is not None:
                self.client.close()
            if lab.daemons.running("netagent"):
                done = lab.run([str(SCRIPTS / "cnctl"), "audit", "--verify"], check=False)
                assert done.returncode == 0, done.stdout + done.stderr
            else:
                world.restart()

    return Machine


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        add_foreign_objects(lab)
        start(lab)
        world = World(lab)
        yield world
        print(f"{world.sequence} audit lines; what became of requests to apply: {world.tally}")


def test_invariants_hold_for_random_requests(world: World) -> None:
    run_state_machine_as_test(machine(world), settings=SETTINGS)
