"""Plans as requests: the parts in which they are applied, and a netagent that does not answer."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cloud_network.fetcher.apply import LinkRole, Netagent, NetagentError, components, explain, is_listening
from cloud_network.fetcher.config import Config, RulesMode
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import Actual
from cloud_network.fetcher.network.plan import COMMON, Plan, is_removal, link_of
from cloud_network.fetcher.network.rules import main_rule
from cloud_network.netagent import protocol
from cloud_network.netagent.operations import RuleAdd
from cloud_network.netagent.protocol import Apply, Refused
from hypothesis import given

from .values import (
    BASE,
    after_changes,
    clouds,
    configs,
    goal_of,
    host,
    hosts,
    instance,
    interface,
    kernel_address,
    link,
    plan_of,
    wanted,
)


def links_of(ops: Plan) -> set[int]:
    return {link_of(op, BASE) for op in ops} - {COMMON}


def test_listener_is_found_without_connecting(tmp_path: Path) -> None:
    path = str(tmp_path / "netagent.sock")
    assert not is_listening(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert is_listening(path)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not is_listening(path), "the file of a process that has ended"


@given(clouds(), configs, hosts())
def test_every_plan_is_a_request_of_the_protocol(cloud: Instance, config: Config, before: Actual) -> None:
    ops = plan_of(goal_of(cloud, config, before), before)
    if ops:
        request = Apply("x", ops, 30)
        frame = protocol.encode(request.to_wire())
        assert protocol.request_from_wire(protocol.decode(frame[protocol.HEADER.size :])) == request


@given(clouds(), configs, hosts())
def test_parts_have_every_operation_once_in_order(cloud: Instance, config: Config, before: Actual) -> None:
    ops = plan_of(goal_of(cloud, config, before), before)
    parts = components(ops, BASE)
    assert sorted(map(str, (op for part in parts for op in part))) == sorted(map(str, ops))
    for part in parts:
        own = [op for op in part if link_of(op, BASE) != COMMON]
        assert own == [op for op in ops if op in own]
    assert sum(len(links_of(part)) for part in parts) == len(links_of(ops)), "each link is in one part"


@given(clouds(), configs, hosts())
def test_parts_applied_one_by_one_lead_to_the_goal(cloud: Instance, config: Config, before: Actual) -> None:
    goal = goal_of(cloud, config, before)
    here = before
    for part in components(plan_of(goal, before), BASE):
        here = after_changes(part, here)
    assert {each for each in here.rules if each.table not in goal.unmanaged_tables} == set(goal.rules)
    assert {(each.ifindex, each.address) for each in goal.addresses} <= here.addresses.keys()


def test_parts_are_in_the_order_of_their_links_roles() -> None:
    cloud = instance(interface(1), interface(2), interface(3))
    here = host(link(1), link(2), link(3))
    roles = {2: LinkRole.NEW, 3: LinkRole.PRIMARY, 4: LinkRole.SECONDARY}
    parts = components(plan_of(wanted(cloud, here), here), BASE, lambda links: roles[min(links)])
    assert [links_of(part) for part in parts] == [{4}, {3}, {2}]
    assert any(link_of(op, BASE) == COMMON for op in parts[0]), "the rule for main must precede the last step"


def test_address_that_moves_ties_its_links_together() -> None:
    here = host(link(1), link(2), addresses=kernel_address(3, "10.0.1.10/32", owned=True))
    parts = components(plan_of(wanted(instance(interface(1), interface(2)), here), here), BASE)
    assert [links_of(part) for part in parts] == [{2, 3}]


def test_links_whose_rules_depend_on_each_other_stay_together() -> None:
    same = ["10.0.1.0/24"]
    one, both = interface(1, "10.0.1.10", subnets=same), ["10.0.1.20", "10.0.1.200"]
    two, more = (interface(2, *both[:count], subnets=same) for count in (1, 2))
    bare = host(link(1), link(2))
    here = after_changes(plan_of(wanted(instance(one, two), bare), bare), bare)
    changes = plan_of(wanted(instance(one, more), here), here)
    assert len(components(changes, BASE)) == 1


def test_rules_of_no_link_are_removed_last() -> None:
    cloud, bare = instance(interface(1), interface(2)), host(link(1), link(2))
    here = after_changes(plan_of(wanted(cloud, bare), bare), bare)
    parts = components(plan_of(wanted(instance(interface(1)), here, rules=RulesMode.ADDRESS), here), BASE)
    common = [op for part in parts[:-1] for op in part if link_of(op, BASE) == COMMON]
    assert common == []
    assert {link_of(op, BASE) for op in parts[-1]} == {COMMON}, "a refusal does not block the links' changes"
    assert all(map(is_removal, parts[-1]))


@given(clouds(), configs, hosts())
def test_no_rule_comes_before_that_for_main(cloud: Instance, config: Config, before: Actual) -> None:
    """netagent refuses a rule to a link's default route unless main is asked first."""
    here = before
    for part in components(plan_of(goal_of(cloud, config, before), before), BASE):
        for op in part:
            here = after_changes((op,), here)
            if isinstance(op, RuleAdd) and not op.suppress:
                mains = [rule for rule in here.rules if rule == main_rule(op.selector.version, config)]
                assert [rule.priority < op.priority for rule in mains] == [True]


def test_refusal_is_explained_with_the_key() -> None:
    assert explain(Refused("8.8.8.8 is not private", allow="KEY")) == "8.8.8.8 is not private; to allow it, set KEY"
    assert explain(Refused("busy")) == "busy"


def test_missing_netagent_is_named_with_its_socket() -> None:
    with pytest.raises(NetagentError, match=r"/nowhere/netagent.sock: No such file.*systemctl status cloud-network"):
        Netagent("/nowhere/netagent.sock")


@contextmanager
def answering(path: str, *answers: bytes) -> Iterator[None]:
    """Answer the requests of one client, in turn."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)

        def serve() -> None:
            client, _ = listener.accept()
            with client, client.makefile("rb") as stream:
                for answer in answers:
                    (size,) = protocol.HEADER.unpack(stream.read(protocol.HEADER.size))
                    stream.read(size)
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)  # only root sends credentials, and only to a real netagent
    return str(tmp_path / "socket")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed the connection"),
        (b"\0\0\0\5\xff", "closed the connection"),
        (protocol.encode({"no": "verdict"}), "has no verdict"),
        (protocol.encode({"verdict": "refused", "version": 2}), "uses version 2"),
        (b"\0\0\0\1\xc1", "does not answer"),
    ],
)
def test_odd_answer_is_an_error(path: str, answer: bytes, reason: str) -> None:
    with answering(path, answer), pytest.raises(NetagentError, match=reason):
        Netagent(path)


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (Netagent.status, {"verdict": "ok"}),
        (lambda agent: agent.check(()), {"verdict": "ok", "refused": 1}),
        (lambda agent: agent.check(()), {"verdict": "ok", "refused": 1, "refusals": [{"reason": "", "code": "?"}]}),
        (lambda agent: agent.check(()), {"verdict": "refused"}),
        (lambda agent: agent.apply((), 30), {"verdict": "refused"}),
        (lambda agent: agent.apply((), 30), {"verdict": "failed", "errnos": 1}),
        (Netagent.flush, {"verdict": "applied", "done": "all"}),
        (Netagent.flush, {"verdict": "applied", "not_undone": [{"op": "address_remove", "address": b"12345"}]}),
    ],
)
def test_incomplete_answer_is_an_error(path: str, ask: Callable[[Netagent], object], answer: protocol.Message) -> None:
    hello = protocol.encode({"verdict": "ok", "version": protocol.VERSION})
    served = answering(path, hello, protocol.encode(answer))
    with served, Netagent(path) as agent, pytest.raises(NetagentError, match="cannot be read"):
        ask(agent)
