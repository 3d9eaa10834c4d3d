"""Passes against a scripted netagent over its real socket, and a kernel that follows its operations."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest
from cloud_network.fetcher import gateways
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.conflicts import ConflictTracker
from cloud_network.fetcher.metadata.base import Provider as BaseProvider
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, IPAddress, MetadataError
from cloud_network.fetcher.metadata.reading import Reading, RemovalProof
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.objects import Actual, GatewayUse
from cloud_network.fetcher.network.plan import COMMON, link_of
from cloud_network.fetcher.network.presence import Presence
from cloud_network.fetcher.network.rules import main_rule
from cloud_network.fetcher.reconciler import Memory, Reconciler
from cloud_network.fetcher.rejections import LinkHolds, PlanRetry, RejectionTable
from cloud_network.fetcher.reporting import PassReport
from cloud_network.fetcher.schedule import CHANGE_DEADLINE_S, Deadline
from cloud_network.netagent import protocol
from cloud_network.netagent.operations import AddressAdd, AddressRemove, Operation, RuleAdd
from cloud_network.netagent.protocol import (
    Answer,
    Apply,
    Check,
    CheckAnswer,
    Confirm,
    Done,
    Failed,
    Hello,
    HelloAnswer,
    Refused,
    Request,
    Rollback,
    Status,
    StatusAnswer,
    Verdict,
)

from .test_schedule import Clock
from .values import BASE, after_changes, host, instance, interface, kernel_address, link

BOTH = instance(interface(1), interface(2))


@dataclass
class World:
    """A kernel, a netagent that changes it, and a metadata server that can be switched off."""

    actual: Actual
    refuse: Callable[[Operation], str | None] = lambda _: None  # by policy: returns the reason
    fail: Callable[[Operation], int] = lambda _: 0  # by the kernel: returns the errno
    server_answers: Callable[[Actual], bool] = lambda _: True
    silent: set[GatewayUse] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    before: Actual | None = None
    owned: frozenset[tuple[int, IPAddress]] = frozenset()  # netagent's ledger
    before_answer: Callable[[Request], None] = lambda _: None

    def answer(self, request: Request) -> Answer:
        if isinstance(request, Hello):
            return HelloAnswer(Verdict.OK, protocol.VERSION)
        self.requests.append(request)
        self.before_answer(request)
        if isinstance(request, Status):
            return StatusAnswer(None, 1, "", None, self.owned)
        if isinstance(request, Check):
            found = [Refused(why, at) for at, op in enumerate(request.ops) if (why := self.refuse(op))]
            return CheckAnswer(len(found), tuple(found))
        if isinstance(request, Apply):
            return self.apply(request.ops)
        if isinstance(request, Confirm):
            return Done(Verdict.CONFIRMED)
        assert isinstance(request, Rollback)
        assert self.before is not None
        self.actual = self.before
        return Done(Verdict.ROLLED_BACK)

    def apply(self, ops: tuple[Operation, ...]) -> Answer:
        refused = [Refused(why, at) for at, op in enumerate(ops) if (why := self.refuse(op))]
        if refused:
            return refused[0]
        errnos = tuple(self.fail(op) for op in ops)
        if any(errnos):
            position = next(at for at, each in enumerate(errnos) if each)
            return Failed(position, errnos, "Permission denied")
        self.before, self.actual = self.actual, after_changes(ops, self.actual.with_owned(self.owned))
        return Done(Verdict.APPLIED, len(ops))

    def of(self, kind: type[Request]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]


class Provider:
    """A cloud whose metadata the test passes to the reconciler itself."""

    name, unread = "aws", False

    def __init__(self, world: World) -> None:
        self.client, self._world = Client("127.0.0.1:9"), world

    def fetch(self) -> Instance:
        raise MetadataError("unreachable", "not here")

    def is_reachable(self) -> bool:
        return self._world.server_answers(self._world.actual)

    def credentials(self) -> dict[str, Any]:
        return {}


def serve(world: World, listener: socket.socket) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, client.makefile("rb") as stream:
            for request in requests(stream):
                client.sendall(protocol.encode(world.answer(request).to_wire()))


def requests(stream: Any) -> Iterator[Request]:
    while len(header := stream.read(protocol.HEADER.size)) == protocol.HEADER.size:
        (size,) = protocol.HEADER.unpack(header)
        yield protocol.request_from_wire(protocol.decode(stream.read(size)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    made = World(host(link(1), link(2)))
    monkeypatch.setattr(kernel, "read", lambda: made.actual)
    monkeypatch.setattr(gateways, "resolved_gateways", lambda asked, *_: frozenset(asked) - made.silent)
    monkeypatch.setattr(gateways, "_can_be_probed", lambda *_: True)  # the links of this test are not real
    monkeypatch.setattr("os.geteuid", lambda: 1)  # root sends credentials first, which this test does not read
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "netagent.sock"))
        listener.listen(4)
        threading.Thread(target=serve, args=(made, listener), daemon=True).start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def reconciler(world: World, clock: Clock, tmp_path: Path) -> Reconciler:
    memory = Memory(
        ConflictTracker(clock), RejectionTable(clock), LinkHolds(clock), PlanRetry(clock), RemovalProof(clock)
    )
    return Reconciler(
        Config(),
        cast(BaseProvider, Provider(world)),
        memory,
        socket=str(tmp_path / "netagent.sock"),
        deadline=lambda: Deadline(CHANGE_DEADLINE_S, clock),
    )


def refresh(reconciler: Reconciler, cloud: Instance = BOTH) -> PassReport:
    return reconciler.refresh(Reading(cloud, None, 1, 0.1), kernel_changed=False)


def addresses(world: World) -> set[str]:
    return {str(address) for _, address in world.actual.addresses}


def is_settled(report: PassReport) -> bool:
    """Return True if nothing is left to do."""
    return report.comparison is not None and not report.comparison.changes


def texts(report: PassReport) -> list[str]:
    assert report.comparison is not None
    return [each.text for each in report.comparison.wanted.withheld]


def is_address(op: Operation, text: str) -> bool:
    return isinstance(op, AddressAdd) and str(op.interface.ip) == text


def is_removal_of(op: Operation, text: str) -> bool:
    return isinstance(op, AddressRemove) and str(op.interface.ip) == text


def changed_links(world: World) -> list[set[int]]:
    """Return the links of each request."""
    return [{link_of(op, BASE) for op in request.ops} - {COMMON} for request in world.of(Apply)]


def test_first_pass_configures_everything(world: World, reconciler: Reconciler) -> None:
    report = refresh(reconciler)
    assert is_settled(report)
    assert addresses(world) == {"10.0.1.10", "10.0.2.10"}
    assert [attempt.verdict for attempt in report.attempts] == ["confirmed", "confirmed"]


def test_refresh_without_a_change_reads_the_kernel_once(
    world: World, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(reconciler)
    reads = 0

    def read() -> Actual:
        nonlocal reads
        reads += 1
        return world.actual

    monkeypatch.setattr(kernel, "read", read)
    assert is_settled(refresh(reconciler))
    assert reads == 1


def test_link_renamed_after_an_early_read_is_not_ready(world: World, clock: Clock, tmp_path: Path) -> None:
    """The early read of the kernel may have the name from before udev's rename, which Exclude= must not see."""
    data = tmp_path / "run/udev/data"
    data.mkdir(parents=True)
    (data.parent / "control").touch()
    memory = replace(Memory.new(), presence=Presence(clock, tmp_path))
    early = Reconciler(Config(), cast(BaseProvider, Provider(world)), memory, socket=str(tmp_path / "netagent.sock"))
    (data / "n2").touch()
    seen = early.look()
    (data / "n3").touch()
    early.refresh(Reading(BOTH, None, 1, 0.1), kernel_changed=False, seen=seen)
    assert addresses(world) == {"10.0.1.10"}
    early.refresh(Reading(BOTH, None, 1, 0.1), kernel_changed=False, seen=early.look())
    assert addresses(world) == {"10.0.1.10", "10.0.2.10"}


def test_ledger_names_owned_addresses_before_linux_5_18(
    world: World, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.18 netagent's ledger says which addresses are owned; others stay."""
    monkeypatch.setattr(protocol, "HAS_IFA_PROTO", False)
    world.actual = host(
        link(1), link(2), addresses=kernel_address(2, "10.0.1.11/32") | kernel_address(2, "10.0.1.12/32")
    )
    world.owned = frozenset({(2, ip_address("10.0.1.11"))})
    refresh(reconciler)
    refresh(reconciler)  # a removal needs two reads
    assert addresses(world) == {"10.0.1.10", "10.0.1.12", "10.0.2.10"}


def test_ledger_is_asked_only_after_a_change_in_the_kernel(
    world: World, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a standing refusal. Before Linux 5.18, only netagent knows which addresses are owned."""
    monkeypatch.setattr(protocol, "HAS_IFA_PROTO", False)
    world.refuse = lambda op: "not private" if is_address(op, "10.0.2.10") else None
    refresh(reconciler)
    world.requests.clear()
    for _ in range(2):
        refresh(reconciler)
        reconciler.compare(kernel_changed=False)
    assert world.requests == []
    reconciler.compare(kernel_changed=True)
    assert [type(request) for request in world.requests] == [Status]
    added = kernel_address(2, "10.0.1.12/32")
    world.actual = replace(world.actual, addresses={**world.actual.addresses, **host(addresses=added).addresses})
    world.owned = frozenset({(2, ip_address("10.0.1.12"))})
    for _ in range(2):  # a removal needs two reads
        refresh(reconciler)
    assert addresses(world) == {"10.0.1.10"}


def test_second_pass_sends_no_request(world: World, reconciler: Reconciler) -> None:
    refresh(reconciler)
    world.requests.clear()
    assert is_settled(refresh(reconciler))
    assert world.requests == []


def test_refused_operation_is_left_out_and_not_asked_again(world: World, reconciler: Reconciler) -> None:
    world.refuse = lambda op: "not private" if is_address(op, "10.0.2.10") else None
    report = refresh(reconciler)
    assert addresses(world) == {"10.0.1.10"}
    assert texts(report) == ["10.0.2.10 of eth1: not private"]
    assert "refused" not in {attempt.verdict for attempt in report.attempts}
    world.requests.clear()
    refresh(reconciler)
    assert world.requests == [], "a lasting refusal"
    reconciler.retry()
    world.refuse = lambda _: None
    assert is_settled(refresh(reconciler))


def test_plan_for_other_metadata_keeps_refusals(world: World, reconciler: Reconciler) -> None:
    world.refuse = lambda op: "not private" if is_address(op, "10.0.2.10") else None
    refresh(reconciler)
    world.requests.clear()
    other = instance(interface(1, "10.0.1.10", "10.0.1.11"), interface(2))
    answer = reconciler.planned_changes(Reading(other, None, 1, 0.1))
    assert answer["changes"] == ["ip address add 10.0.1.11/32 dev eth0 noprefixroute"]
    assert answer["withheld"] == ["10.0.2.10 of eth1: not private"]
    refresh(reconciler)
    assert world.requests == []


def test_many_refusals_end_within_a_few_rounds(world: World, reconciler: Reconciler) -> None:
    world.refuse = lambda op: "no" if isinstance(op, RuleAdd) else None
    refresh(reconciler)
    assert len(world.of(Check)) <= 8
    assert addresses(world) == {"10.0.1.10", "10.0.2.10"}


def test_kernel_refusals_are_isolated_in_one_round(world: World, reconciler: Reconciler, clock: Clock) -> None:
    own = [f"10.0.2.{n}" for n in range(10, 70)]
    cloud = instance(interface(1), interface(2, "10.0.2.200", *own))
    world.fail = lambda op: errno.EACCES if isinstance(op, AddressAdd) and str(op.interface.ip) in own else 0
    report = refresh(reconciler, cloud)
    assert addresses(world) == {"10.0.1.10", "10.0.2.200"}
    assert len([attempt for attempt in report.attempts if attempt.verdict == "rolled back"]) == 1
    assert "the kernel refuses it: Permission denied" in texts(report)[0]
    world.fail = lambda _: 0
    clock.now += 10
    assert is_settled(refresh(reconciler, cloud)), "retried after a delay"


def test_change_that_breaks_one_link_is_rolled_back_alone(world: World, reconciler: Reconciler, clock: Clock) -> None:
    """Of three links, the third's addresses disconnect the metadata server."""
    world.actual = host(link(1), link(2), link(3))
    cloud = instance(interface(1), interface(2), interface(3))
    world.server_answers = lambda actual: not any(ifindex == 4 for ifindex, _ in actual.addresses)
    report = refresh(reconciler, cloud)
    assert addresses(world) == {"10.0.1.10", "10.0.2.10"}
    assert report.netagent is not None
    assert report.netagent.message.startswith("change rolled back: eth2: the metadata server does not answer")
    world.requests.clear()
    for _ in range(3):
        refresh(reconciler, cloud)
    assert world.of(Apply) == [], "not retried without a change"
    clock.now += 400
    refresh(reconciler, cloud)
    assert len(world.of(Apply)) == 1


def test_each_link_is_confirmed_before_the_next_is_changed(world: World, reconciler: Reconciler) -> None:
    world.actual = host(*(link(number) for number in range(1, 5)))
    assert is_settled(refresh(reconciler, instance(*(interface(number) for number in range(1, 5)))))
    kinds = [type(request) for request in world.requests]
    assert kinds == [Check] + [Apply, Confirm] * 4
    assert changed_links(world) == [{2}, {3}, {4}, {5}]


def test_links_in_use_precede_new_ones_primary_last(world: World, reconciler: Reconciler) -> None:
    """The new links' subnets are in the tables of the others before they are in main."""
    world.actual = host(*(link(number) for number in range(1, 6)))
    everything = [interface(number) for number in range(1, 6)]
    refresh(reconciler, instance(*everything[:3]))
    world.requests.clear()
    refresh(reconciler, instance(*everything))
    assert changed_links(world) == [{3}, {4}, {2}, {5}, {6}]


def test_links_that_are_given_up_are_changed_first(world: World, reconciler: Reconciler, clock: Clock) -> None:
    """Their subnets are removed from main before they are removed from the tables of the others."""
    world.actual = host(*(link(number) for number in range(1, 5)))
    refresh(reconciler, instance(*(interface(number) for number in range(1, 5))))
    world.requests.clear()
    for _ in range(3):
        refresh(reconciler, instance(*(interface(number) for number in range(1, 4))))
        clock.now += 100
    assert changed_links(world) == [{5}, {3}, {4}, {2}]


def test_pass_out_of_time_stops_between_links(world: World, reconciler: Reconciler, clock: Clock) -> None:
    """No open change is interrupted, and the next pass continues with what is left."""
    world.actual = host(link(1), link(2), link(3))
    world.before_answer = lambda request: clock.advance(20) if isinstance(request, Apply) else None
    report = refresh(reconciler, instance(interface(1), interface(2), interface(3)))
    assert [attempt.verdict for attempt in report.attempts] == ["confirmed", "confirmed"]
    assert addresses(world) == {"10.0.1.10", "10.0.2.10"}
    assert report.netagent is not None
    assert report.netagent.message.startswith(
        "the time limit of a pass (30 s) has passed; the next pass continues with 7 changes ("
    )
    assert report.retry_at < clock.now
    report = reconciler.compare(kernel_changed=True)
    assert is_settled(report)
    assert report.netagent is None
    assert [type(request) for request in world.requests if not isinstance(request, Check)] == [Apply, Confirm] * 3


def test_each_pass_out_of_time_changes_at_least_a_link(world: World, reconciler: Reconciler, clock: Clock) -> None:
    """Also if the check alone takes longer than a pass may."""
    world.actual = host(link(1), link(2), link(3))
    world.before_answer = lambda request: clock.advance(40)
    refresh(reconciler, instance(interface(1), interface(2), interface(3)))
    assert changed_links(world) == [{2}]
    for _ in range(2):
        reconciler.compare(kernel_changed=True)
    assert changed_links(world) == [{2}, {3}, {4}]


def test_pass_out_of_time_stops_between_checks(world: World, reconciler: Reconciler, clock: Clock) -> None:
    """The next pass knows what was refused, first with the prefix length of the subnet, then as /32."""
    clock.advance(10)  # refusals right after the start are checked again
    world.refuse = lambda op: "not private" if is_address(op, "10.0.2.10") else None
    world.before_answer = lambda request: clock.advance(40)
    report = refresh(reconciler)
    assert [type(request) for request in world.requests] == [Check]
    assert report.netagent is not None
    assert "time limit" in report.netagent.message
    for _ in range(2):
        reconciler.compare(kernel_changed=False)
    assert [type(request) for request in world.requests] == [Check, Check, Check, Apply, Confirm]


def test_refused_removal_does_not_stop_what_is_left(world: World, reconciler: Reconciler, clock: Clock) -> None:
    """Only a plan that was refused as a whole waits for a change in the kernel."""
    world.actual = host(link(1), link(2), link(3))
    two = [interface(number, f"10.0.{number}.10", f"10.0.{number}.11") for number in range(1, 4)]
    refresh(reconciler, instance(*two))
    world.refuse = lambda op: "a route depends on it" if is_removal_of(op, "10.0.1.11") else None
    world.before_answer = lambda request: clock.advance(40)
    for _ in range(2):
        refresh(reconciler, instance(interface(1), interface(2), interface(3)))
    assert len(addresses(world)) == 5
    reconciler.compare(kernel_changed=False)
    assert addresses(world) == {"10.0.1.10", "10.0.1.11", "10.0.2.10", "10.0.3.10"}


def test_removal_refused_for_one_link_alone_stops_nothing(world: World, reconciler: Reconciler, clock: Clock) -> None:
    """netagent accepts it with the changes of the other links, but each link is changed by itself."""

    def judge(request: Request) -> None:
        ops = request.ops if isinstance(request, Check | Apply) else ()
        alone = len({op.link for op in ops if isinstance(op, AddressAdd | AddressRemove)}) == 1
        world.refuse = lambda op: "a rule depends on it" if alone and is_removal_of(op, "10.0.1.11") else None

    world.actual = host(link(1), link(2), link(3))
    one = interface(1, "10.0.1.10", "10.0.1.11")
    refresh(reconciler, instance(one, interface(2), interface(3)))
    world.before_answer = judge
    changed = [interface(number, f"10.0.{number}.10", f"10.0.{number}.12") for number in range(1, 4)]
    reports = []
    for _ in range(3):
        reports.append(refresh(reconciler, instance(*changed)))
        clock.advance(60)
    assert addresses(world) == {f"10.0.{number}.{host}" for number in range(1, 4) for host in (10, 12)} | {"10.0.1.11"}
    assert any("a rule depends on it; other changes are applied" in str(report.netagent) for report in reports)


def test_rules_of_no_link_outlive_the_first_links_rollback(world: World, reconciler: Reconciler) -> None:
    """They are added with the first link, and the rules of all other links need them."""
    world.actual = host(link(1), link(2), link(3))
    world.server_answers = lambda actual: not any(ifindex == 2 for ifindex, _ in actual.addresses)
    refresh(reconciler, instance(interface(1), interface(2), interface(3)))
    assert addresses(world) == {"10.0.2.10", "10.0.3.10"}
    first, *others = [[op for op in request.ops if link_of(op, BASE) == COMMON] for request in world.of(Apply)]
    assert first == others[0] != []
    assert main_rule(4, Config()) in world.actual.rules


def test_rules_of_no_link_that_break_something_are_held(world: World, reconciler: Reconciler) -> None:
    refresh(reconciler)
    rule = main_rule(4, Config())
    world.actual = replace(world.actual, rules=world.actual.rules - {rule})
    world.server_answers = lambda actual: rule not in actual.rules
    world.requests.clear()
    report = refresh(reconciler)
    assert report.netagent is not None
    assert report.netagent.message.startswith("change rolled back: rules of no link: the metadata server does not")
    refresh(reconciler)
    assert len(world.of(Apply)) == 1


def test_news_of_the_link_ends_its_hold(world: World, reconciler: Reconciler) -> None:
    world.server_answers = lambda actual: not any(str(ip) == "10.0.2.66" for _, ip in actual.addresses)
    refresh(reconciler, instance(interface(1), interface(2, "10.0.2.66")))
    assert addresses(world) == {"10.0.1.10"}
    refresh(reconciler, instance(interface(1), interface(2, "10.0.2.10")))
    assert addresses(world) == {"10.0.1.10", "10.0.2.10"}


def test_refused_removal_does_not_end_the_hold(world: World, reconciler: Reconciler) -> None:
    """An operator's route depends on the address; the link's other change breaks something and is tried once."""
    refresh(reconciler, instance(interface(1), interface(2, "10.0.2.10", "10.0.2.11")))
    world.refuse = lambda op: "a route depends on it" if isinstance(op, AddressRemove) else None
    world.server_answers = lambda actual: not any(str(ip) == "10.0.2.66" for _, ip in actual.addresses)
    world.requests.clear()
    for _ in range(3):
        refresh(reconciler, instance(interface(1), interface(2, "10.0.2.10", "10.0.2.66")))
    assert sum(any(is_address(op, "10.0.2.66") for op in request.ops) for request in world.of(Apply)) == 1


def test_refusals_are_checked_again_soon_after_a_start(world: World, reconciler: Reconciler, clock: Clock) -> None:
    """netagent may read a changed configuration a moment later than a restarted fetcher."""
    world.refuse = lambda op: "eth1 is excluded" if is_address(op, "10.0.2.10") else None
    refresh(reconciler)
    world.refuse = lambda _: None
    refresh(reconciler)
    assert addresses(world) == {"10.0.1.10"}
    clock.now += 6
    refresh(reconciler)
    assert addresses(world) == {"10.0.1.10", "10.0.2.10"}


def test_server_that_is_down_anyway_holds_no_link(world: World, reconciler: Reconciler, clock: Clock) -> None:
    up = {"answers": False}
    world.server_answers = lambda _: up["answers"]
    report = refresh(reconciler)
    assert addresses(world) == set()
    assert report.netagent is not None
    assert "does not answer after the change" in report.netagent.message
    up["answers"] = True
    clock.now += 2
    assert is_settled(refresh(reconciler))


def test_silent_new_gateway_gets_no_route(world: World, reconciler: Reconciler) -> None:
    world.actual = host(
        link(1), link(2), addresses=kernel_address(2, "10.0.1.10/24") | kernel_address(3, "10.0.2.10/24")
    )
    world.silent = {GatewayUse(3, interface(2).gateways[0])}
    report = refresh(reconciler)
    assert any("gateway 10.0.2.1 of eth1: it does not answer ARP" in text for text in texts(report))
    gateways_now = {str(route.gateway) for route in world.actual.routes if route.gateway is not None}
    assert gateways_now == {"10.0.1.1"}
    assert all(attempt.verdict == "confirmed" for attempt in report.attempts), "probed before the change"


def test_silent_gateway_of_a_new_link_is_rolled_back(world: World, reconciler: Reconciler) -> None:
    world.silent = {GatewayUse(3, interface(2).gateways[0])}
    report = refresh(reconciler)
    assert [attempt.verdict for attempt in report.attempts].count("rolled back") == 1
    assert addresses(world) == {"10.0.1.10", "10.0.2.10"}
    assert "10.0.2.1" not in {str(route.gateway) for route in world.actual.routes}


def test_removal_waits_for_a_second_read(world: World, reconciler: Reconciler) -> None:
    cloud = instance(interface(1, "10.0.1.10", "10.0.1.11"), interface(2))
    refresh(reconciler, cloud)
    report = refresh(reconciler)
    assert report.needs_second_read
    assert "10.0.1.11" in addresses(world)
    refresh(reconciler)
    assert "10.0.1.11" not in addresses(world)


def test_failed_read_changes_nothing(world: World, reconciler: Reconciler) -> None:
    refresh(reconciler)
    world.actual = replace(world.actual, addresses={})
    world.requests.clear()
    report = reconciler.refresh(Reading(None, MetadataError("timeout", "no answer"), 1, 5.0), kernel_changed=True)
    assert report.comparison is None
    assert world.requests == []


def test_drift_is_repaired_and_counted(world: World, reconciler: Reconciler) -> None:
    refresh(reconciler)
    world.actual = replace(world.actual, rules=frozenset())
    report = reconciler.compare(kernel_changed=True)
    assert is_settled(report)
    assert report.repaired == len(world.actual.rules)


def test_drift_is_not_repaired_without_the_server(world: World, reconciler: Reconciler) -> None:
    refresh(reconciler)
    world.actual = replace(world.actual, rules=frozenset())
    world.server_answers = lambda _: False
    report = reconciler.compare(kernel_changed=True)
    assert report.read_first
    assert world.actual.rules == frozenset()


def test_missing_netagent_is_reported_and_asked_again_soon(
    reconciler: Reconciler, world: World, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "netagent.sock").unlink()
    report = refresh(reconciler)
    assert report.netagent is not None
    assert report.netagent.serious
    assert report.attempts[0].verdict == "unreachable"
    assert clock.now < report.retry_at < clock.now + 7


def test_plan_in_parts_is_applied_whole(world: World, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_network.fetcher.reconciler.MAX_OPS", 8)
    world.actual = host(*(link(number) for number in range(1, 5)))
    assert is_settled(refresh(reconciler, instance(*(interface(number) for number in range(1, 5)))))
    assert max(len(request.ops) for request in world.of(Check)) <= 8
