"""Transactions are atomic, and rolled back unless confirmed, if the client, the time limit or netagent ends."""

from __future__ import annotations

import errno
import json
import signal
import time

import pytest

from tests.lab import Lab
from tests.system.netagent.conftest import answers, start
from tests.system.netagent.wire import Wire, address, audit_lines, ifindex, kernel_state, main_rule, route, rule


def change(lab: Lab) -> list[dict[str, object]]:
    """Return one operation of every kind, as in a plan for the secondary."""
    on = ifindex(lab, "eth0")
    table = 9999 + on
    return [
        {"op": "link_mtu", "link": on, "mtu": 1400},
        address(on, "10.0.2.10/24"),
        {**address(on, "10.0.2.11/32"), "route": False},
        address(on, "fd00:2::10/128"),
        route(on, "10.0.2.0/24"),
        route(on, "10.0.1.0/24", "10.0.2.1"),
        route(on, "0.0.0.0/0", "10.0.2.1"),
        route(on, "10.77.0.0/24", table=255),
        rule("10.0.2.10", table, suppress=True),
        rule("10.0.2.11", table, suppress=True),
        rule("0.0.0.0/0", 254, priority=31010, suppress=True),
        rule("::/0", 254, priority=31010, suppress=True),
        rule("10.0.2.10", table, priority=31020),
        rule("10.0.2.11", table, priority=31020),
        rule("10.77.0.0/24", table, priority=31020),
        rule("fd00:2::10/128", table, priority=31020),
    ]


def open_change(lab: Lab, wire: Wire, within: int = 60) -> dict[str, str]:
    """Apply the change unconfirmed; return the state before it."""
    before = kernel_state(lab)
    assert wire.apply(*change(lab), confirm_within=within, request="open")["verdict"] == "applied"
    assert kernel_state(lab) != before
    return before


def test_confirmed_stays(lab: Lab, wire: Wire) -> None:
    open_change(lab, wire)
    applied = kernel_state(lab)
    assert wire.ask(request="confirm", id="open") == {"verdict": "confirmed"}
    wire.socket.close()
    lab.kill("netagent", signal.SIGKILL)
    start(lab)
    assert kernel_state(lab) == applied
    assert [line["verdict"] for line in audit_lines(lab)] == ["applied", "confirmed"]
    addresses = json.loads(lab.run(["ip", "-j", "-4", "address", "show", "dev", "eth0"]).stdout)[0]["addr_info"]
    assert {(each["local"], each["prefixlen"]) for each in addresses} == {("10.0.2.10", 24), ("10.0.2.11", 32)}
    assert "noprefixroute" in lab.run(["ip", "address", "show", "to", "10.0.2.11"]).stdout
    assert "local 10.77.0.0/24 dev eth0 proto 209" in lab.run(["ip", "route", "show", "table", "local"]).stdout


def test_foreign_local_range_may_have_rules(lab: Lab, wire: Wire) -> None:
    """Google's guest agent may add the local routes of alias ranges first."""
    on = ifindex(lab, "eth0")
    lab.batch(["route add local 10.77.0.0/24 dev eth0 table local proto 66"])
    assert wire.apply(rule("10.77.0.0/24", 9999 + on))["verdict"] != "refused"
    assert wire.apply(rule("10.77.0.0/24", 9999 + ifindex(lab, "eth1")))["verdict"] == "refused"


def test_route_via_the_other_family_is_not_on_link(lab: Lab, wire: Wire) -> None:
    """RTA_VIA instead of RTA_GATEWAY also means a route through a router."""
    on = ifindex(lab, "eth0")
    lab.batch(["route add 10.55.0.0/16 via inet6 fe80::1 dev eth0"])
    assert "10.55.0.1 is not on eth0" in wire.apply(route(on, "10.9.0.0/16", "10.55.0.1"))["reason"]
    assert "no address or range" in wire.apply(rule("10.55.1.0/24", 9999 + on))["reason"]


def test_prefix_from_a_router_advertisement_belongs_to_the_link(lab: Lab, wire: Wire) -> None:
    """The kernel adds the advertised prefix with protocol `kernel` and an expiry time."""
    on, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    heard = {**address(on, "2001:db8:5::a/128"), "route": False}
    assert wire.apply(heard)["verdict"] == "refused"
    route6 = ["ip", "-6", "route", "add", "2001:db8:5::/64", "dev", "eth0"]
    lab.run([*route6, "proto", "kernel", "metric", "256", "expires", "3600"])
    assert wire.apply({**heard, "link": other})["verdict"] == "refused"
    assert wire.apply(heard)["verdict"] != "refused"


def test_no_advertised_prefix_is_wider_than_a_clouds_subnet(lab: Lab, wire: Wire) -> None:
    """A neighbour can advertise half of the Internet as on link."""
    lab.run(["ip", "-6", "route", "add", "2000::/3", "dev", "eth0", "proto", "kernel", "expires", "3600"])
    for text in ("2600::9/16", "2600::9/64", "2600::9/128"):
        ours = {**address(ifindex(lab, "eth0"), text), "route": not text.endswith("128")}
        assert "no IPv6 router advertisement" in wire.apply(ours)["reason"]


def test_rolled_back_on_request(lab: Lab, wire: Wire) -> None:
    before = open_change(lab, wire)
    assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


def test_a_changed_address_is_rolled_back_beside_other_routes(lab: Lab, wire: Wire) -> None:
    """The kernel removes them with the last address of a link, but the former one is restored before that."""
    on = ifindex(lab, "eth0")
    there = [address(on, "10.0.2.10/24"), route(on, "10.0.2.0/24"), route(on, "0.0.0.0/0", "10.0.2.1")]
    assert wire.apply(*there)["verdict"] == "applied"
    lab.batch(["route add 10.99.0.0/16 via 10.0.2.1 dev eth0 proto static"])
    before = kernel_state(lab)
    moved = [address(on, "10.0.3.10/24"), address(on, "10.0.2.10/24", "address_remove")]
    assert wire.apply(*moved, confirm_within=30, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


def test_an_address_that_moved_to_another_link_is_moved_back(lab: Lab, wire: Wire) -> None:
    one, other = ifindex(lab, "eth1"), ifindex(lab, "eth0")
    there = [address(one, "10.0.1.77/32"), address(other, "10.0.2.10/24"), route(other, "10.0.2.0/24")]
    assert wire.apply(*there)["verdict"] == "applied"
    before = kernel_state(lab)
    moved = [
        address(one, "10.0.1.77/32", "address_remove"),
        address(other, "10.0.1.77/32"),
        address(other, "10.0.2.10/24", "address_remove"),
    ]
    assert wire.apply(*moved, confirm_within=30, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


def test_one_rule_twice_in_a_request_is_refused(lab: Lab, wire: Wire) -> None:
    """A rollback removes what was added, and then adds what was removed: the rule would stay."""
    before, again = kernel_state(lab), [main_rule(), main_rule(op="rule_remove")]
    for ops in (again, [*again, main_rule()]):
        answer = wire.apply(*ops, confirm_within=30)
        assert (answer["verdict"], answer["reason"]) == ("refused", "the same rule twice in one request")
    assert wire.apply(main_rule())["verdict"] == "applied"
    answer = wire.apply(main_rule(op="rule_remove"), main_rule())
    assert (answer["verdict"], answer["reason"]) == ("refused", "the same rule twice in one request")
    assert wire.apply(main_rule(op="rule_remove"))["verdict"] == "applied"
    assert kernel_state(lab) == before


def test_route_before_the_first_address_is_rolled_back_with_it(lab: Lab, wire: Wire) -> None:
    """The kernel removes the route with the link's last IPv4 address; it is no reason to keep the address."""
    before, link = kernel_state(lab), ifindex(lab, "eth0")
    on_link = route(link, "10.77.0.0/24", table=9999 + link)
    ops = on_link, address(link, "10.77.0.5/32")
    assert wire.apply(*ops, confirm_within=30, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


def test_rolled_back_when_the_client_disconnects(lab: Lab, wire: Wire) -> None:
    before = open_change(lab, wire)
    wire.socket.close()
    lab.wait_for(lambda: kernel_state(lab) == before)
    assert "connection ended" in audit_lines(lab)[-1]["reason"]


def test_rolled_back_when_the_time_is_up(lab: Lab, wire: Wire) -> None:
    before = open_change(lab, wire, within=1)
    lab.wait_for(lambda: kernel_state(lab) == before)
    assert "in time" in audit_lines(lab)[-1]["reason"]
    assert wire.ask(request="confirm", id="open")["verdict"] == "refused"


def test_further_requests_do_not_extend_the_time(lab: Lab, wire: Wire) -> None:
    before = kernel_state(lab)
    answer = wire.apply(*change(lab), confirm_within=1, request="open")
    assert answer["verdict"] == "applied"
    began = time.monotonic()
    while wire.ask(request="status")["open"] == "open":
        assert time.monotonic() < began + 10
        time.sleep(0.1)
    assert kernel_state(lab) == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_rolled_back_when_netagent_ends(lab: Lab, wire: Wire, how: signal.Signals) -> None:
    before = open_change(lab, wire)
    lab.kill("netagent", how)
    lab.wait_for(lambda: not lab.daemons.running("netagent"))
    start(lab)
    assert kernel_state(lab) == before
    change, *_, last = audit_lines(lab)
    assert last["verdict"] == "rolled back"
    # After a crash, it is not known whether the line of the change was written.
    links = [op["link"] for op in change["ops"] if "link" in op] if how is signal.SIGKILL else []
    assert [op["link"] for op in last.get("ops", ()) if "link" in op] == links[::-1]
    assert len(last.get("ops", ())) == (len(change["ops"]) if links else 0)


def test_rules_come_back_after_the_rule_that_they_need(lab: Lab, wire: Wire) -> None:
    """A rule that uses a default route needs the one for main before it, also in a rollback."""
    on = ifindex(lab, "eth0")
    rules = [main_rule(), rule("10.0.2.10", 9999 + on, 31020)]
    assert wire.apply(address(on, "10.0.2.10/24"), *rules)["verdict"] == "applied"
    before = kernel_state(lab)
    removals = [{**each, "op": "rule_remove"} for each in reversed(rules)]
    assert wire.apply(*removals, confirm_within=60)["verdict"] == "applied"
    assert wire.ask(request="rollback", id="test") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


def test_only_one_is_open_and_only_its_client_decides(lab: Lab, wire: Wire) -> None:
    open_change(lab, wire)
    with Wire(lab) as other:
        other.send(request="confirm", id="open")  # read after the first client has disconnected
        assert "still open" in wire.apply(address(ifindex(lab, "eth0"), "10.0.2.12"))["reason"]
        assert wire.ask(request="confirm", id="another")["verdict"] == "refused"
        assert wire.ask(request="confirm", id="open")["verdict"] == "confirmed"
        wire.close()
        assert other.answer()["reason"] == "there is no such open transaction"


def test_operation_that_the_kernel_refuses_rolls_back_all(lab: Lab, wire: Wire) -> None:
    lab.batch(["link set eth0 down"])
    before = kernel_state(lab)
    answer = wire.apply(*change(lab))
    assert (answer["verdict"], answer["reason"]) == ("rolled back", "Network is down")
    assert change(lab)[answer["position"]]["op"] == "route_replace"
    assert kernel_state(lab) == before
    down, unreachable = errno.ENETDOWN, errno.ENETUNREACH
    expected = [0, 0, 0, 0, down, unreachable, unreachable, *(None for _ in change(lab)[7:])]
    assert answer["errnos"] == expected, "also of the operations after the first failure, up to a local range"
    line = audit_lines(lab)[-1]
    assert [op["errno"] for op in line["ops"]] == expected


def test_a_replaced_route_comes_back_as_it_was(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    assert wire.apply(address(on, "10.0.2.10/24"), route(on, "10.9.0.0/16", "10.0.2.1"))["verdict"] == "applied"
    before = kernel_state(lab)
    replaced = route(on, "10.9.0.0/16")
    gone = address(on, "10.0.2.10/24", "address_remove")
    assert wire.apply(replaced, gone, confirm_within=60, request="open")["verdict"] == "applied"
    assert "10.0.2.10" not in lab.run(["ip", "-o", "address"]).stdout
    wire.ask(request="rollback", id="open")
    assert kernel_state(lab)["addresses"] == before["addresses"]
    assert kernel_state(lab)["rules"] == before["rules"]


def test_flush_removes_only_our_objects(lab: Lab) -> None:
    lab.batch(
        [
            "address add 10.0.2.50/32 dev eth0",
            "route add 192.168.9.0/24 via 10.0.1.1",
            "rule add pref 31001 from 10.8.8.8",
        ]
    )
    lab.wait_for(lambda: answers(lab))
    before = kernel_state(lab)
    ops = [op for op in change(lab) if op["op"] != "link_mtu"]
    with Wire(lab) as wire:
        assert wire.apply(*ops)["verdict"] == "applied"
        answer = wire.ask(request="flush", id="flush")
    assert (answer["verdict"], answer["done"]) == ("applied", len(ops))
    assert kernel_state(lab) == before


def test_rollback_keeps_a_foreign_address(lab: Lab, wire: Wire) -> None:
    """Another program removed netagent's address and added the same one, which netagent must not remove."""
    on = ifindex(lab, "eth0")
    assert wire.apply(address(on, "10.0.2.10/24"), confirm_within=60, request="open")["verdict"] == "applied"
    lab.batch(["address del 10.0.2.10/24 dev eth0", "address add 10.0.2.10/24 dev eth0"])
    wire.ask(request="rollback", id="open")
    assert "10.0.2.10/24" in lab.run(["ip", "-o", "address"]).stdout


def test_rollback_names_a_range_in_the_place_of_a_broadcast_address(lab: Lab, wire: Wire) -> None:
    """The kernel refuses a second route to it. That once counted as done."""
    on, text = ifindex(lab, "eth0"), "10.5.0.255/32"
    assert wire.apply(route(on, text, table=255))["verdict"] == "applied"
    lab.batch(["address add 10.5.0.254/24 dev eth0 broadcast 10.5.0.255"])
    gone = route(on, text, table=255, op="route_remove")
    assert wire.apply(gone, confirm_within=60, request="open")["verdict"] == "applied"
    (left,) = wire.ask(request="rollback", id="open")["not_undone"]
    assert left["reason"] == "File exists"


def test_rollback_keeps_an_address_that_was_changed_without_ipv6(lab: Lab, wire: Wire) -> None:
    """Then no other address shows that the kernel marks owned addresses: 127.0.0.1 has no protocol number."""
    lab.run(["sysctl", "-qw", *(f"net.ipv6.conf.{name}.disable_ipv6=1" for name in ("all", "lo", "eth0", "eth1"))])
    assert wire.apply(address(ifindex(lab, "eth0"), "10.0.2.10/24"), confirm_within=60, request="open")["done"] == 1
    lab.batch(["address change 10.0.2.10/24 dev eth0"])  # removes the number
    assert len(wire.ask(request="rollback", id="open")["not_undone"]) == 1
    assert "10.0.2.10/24" in lab.run(["ip", "-o", "address"]).stdout


@pytest.mark.parametrize("how", ["two requests", "rollback", "flush", "undo"])
def test_a_removed_address_takes_no_multicast_group_along(lab: Lab, wire: Wire, how: str) -> None:
    """An address with the same last 24 bits would lose its group, and neighbours would not find it.

    The kernel joins the group a moment after the address is added. Here the removal comes at once, and several times.
    """
    on, other, text = ifindex(lab, "eth0"), ifindex(lab, "eth1"), "fd00:9::abcd:10/128"
    lab.run(["sysctl", "-qw", "net.ipv6.conf.eth1.disable_ipv6=1"])
    lab.batch(["address add fd00:1::abcd:10/64 dev eth0 nodad"])
    lab.wait_for(lambda: has_solicited_node_group(lab, "cd0010"), 5, "the group of another program's address")
    before = kernel_state(lab)
    add, remove = address(on, text), address(on, text, "address_remove")
    adds = {"request": "apply", "ops": [add], "confirm_within": 0}
    requests: dict[str, list[dict[str, object]]] = {
        "two requests": [adds, {**adds, "ops": [remove]}],
        "rollback": [{**adds, "confirm_within": 60}, {"request": "rollback"}],
        "flush": [adds, {"request": "flush"}],
        "undo": [{**adds, "ops": [address(other, "fd00:8::1/128"), add]}],  # the kernel refuses the first
    }
    for _ in range(60):
        answers = wire.ask_at_once(*({"id": "x", **each} for each in requests[how]))
        assert "refused" not in {answer["verdict"] for answer in answers}, answers
        assert has_solicited_node_group(lab, "cd0010")
    assert kernel_state(lab) == before


def has_solicited_node_group(lab: Lab, last: str) -> bool:
    """Return True if eth0 is in the multicast group of addresses with these last 24 bits (RFC 4291, 2.7.1)."""
    groups = [line.split() for line in lab.run(["cat", "/proc/net/igmp6"]).stdout.splitlines()]
    return any(words[1] == "eth0" and words[2] == f"ff0200000000000000000001ff{last}" for words in groups)


def test_an_address_that_came_and_went_does_not_come_back(lab: Lab, wire: Wire) -> None:
    before, on, text = kernel_state(lab), ifindex(lab, "eth0"), "10.60.0.5/24"
    steps = [address(on, text), address(on, text, "address_remove")]
    assert wire.apply(*steps, confirm_within=60, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


def test_an_address_that_went_and_came_is_there_after_a_rollback(lab: Lab, wire: Wire) -> None:
    on, text = ifindex(lab, "eth0"), "10.60.0.5/24"
    assert wire.apply(address(on, text))["verdict"] == "applied"
    before = kernel_state(lab)
    steps = [address(on, text, "address_remove"), address(on, text)]
    assert wire.apply(*steps, confirm_within=60, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


def test_a_rollback_restores_the_form_and_the_order_of_addresses(lab: Lab, wire: Wire) -> None:
    on, names = ifindex(lab, "eth0"), ("10.60.0.5/24", "10.60.0.6/24")
    first, second = (address(on, text) for text in names)
    gone_first, gone_second = (address(on, text, "address_remove") for text in names)
    assert wire.apply(first, second)["verdict"] == "applied"
    before = kernel_state(lab)
    for steps in (
        [gone_second, gone_first, second, first],
        [gone_second, gone_first, {**address(on, "10.60.0.5/32"), "route": False}, second],
    ):
        assert wire.apply(*steps, confirm_within=60, request="open")["verdict"] == "applied"
        assert kernel_state(lab) != before
        assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
        assert kernel_state(lab) == before


def test_what_was_not_sent_is_not_undone(lab: Lab) -> None:
    """An earlier version undid the unsent removal of an address that the kernel had refused, and reported a failure."""
    lab.run(["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"])
    on = ifindex(lab, "eth0")
    ops = [address(on, f"10.9.0.{host}/32") for host in range(1, 128)]
    ops += [address(on, "fd00:9::5/128"), address(on, "10.9.0.1/32", "address_remove")]
    before = kernel_state(lab)
    with Wire(lab) as wire:
        answer = wire.apply(*ops)
    assert (answer["verdict"], answer["position"], answer["not_undone"]) == ("rolled back", 127, [])
    assert answer["errnos"][-2:] == [errno.EACCES, None]
    assert kernel_state(lab) == before
