"""Answers to the request `check`: what each refusal tells the fetcher.

The lab's primary is eth1 (10.0.1.10/24, gateway 10.0.1.1, all by DHCP); eth0 is the secondary, and has no address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.lab import Lab
from tests.system.netagent.wire import Wire, address, ifindex, kernel_state, main_rule, route, rule

Op = dict[str, Any]


def refusals(lab: Lab, *ops: Op) -> list[dict[str, Any]]:
    before = kernel_state(lab)
    with Wire(lab) as wire:
        answer = wire.ask(request="check", ops=list(ops))
    assert kernel_state(lab) == before
    assert answer["refused"] == len(answer["refusals"])
    return list(answer["refusals"])


def test_the_widest_subnets_and_ranges_are_accepted(shared_lab: Lab) -> None:
    on = ifindex(shared_lab, "eth0")
    assert refusals(shared_lab, address(on, "10.200.0.5/16"), address(on, "fd77::5/44")) == []
    assert refusals(shared_lab, route(on, "10.64.0.0/20", table=255), route(on, "fd77::/64", table=255)) == []
    assert refusals(shared_lab, route(ifindex(shared_lab, "eth1"), "10.0.1.128/26", table=255)) == []


DEPENDENTS: dict[str, Callable[[int], tuple[Op, Op]]] = {
    "a rule from an address": lambda on: (address(on, "8.8.8.8"), rule("8.8.8.8", 9999 + on)),
    "a rule from an IPv6 address": lambda on: (address(on, "2001:db8::8/128"), rule("2001:db8::8/128", 9999 + on)),
    "a route by an address": lambda on: (address(on, "8.8.8.8/24"), route(on, "0.0.0.0/0", "8.8.8.1")),
    "an on-link route": lambda on: (address(on, "8.8.8.8/24"), route(on, "8.8.8.128/25")),
    "a route by an on-link route": lambda on: (route(on, "8.8.8.0/24"), route(on, "0.0.0.0/0", "8.8.8.1")),
    "a rule from a range": lambda on: (route(on, "8.8.8.0/24", table=255), rule("8.8.8.9", 9999 + on)),
    "a rule after main": lambda on: (no_main("0.0.0.0/0"), rule("10.0.2.10", 9999 + on, 31020)),
    "an IPv6 rule after main": lambda on: (no_main("::/0"), rule("fd00:2::10/128", 9999 + on, 31020)),
}
"""Pairs of operations on a link: one that is refused, and one that is refused only because of it."""


def no_main(everything: str) -> Op:
    """Return the rule for main with a priority that is refused."""
    return main_rule(everything) | {"priority": 1}


@pytest.mark.parametrize("name", DEPENDENTS)
def test_a_refusal_names_the_operation_it_depends_on(shared_lab: Lab, name: str) -> None:
    on = ifindex(shared_lab, "eth0")
    own = [address(on, "10.0.2.10/24"), address(on, "fd00:2::10/128")]  # accepted
    found = refusals(shared_lab, *own, *DEPENDENTS[name](on))
    assert [(each["position"], each.get("depends_on")) for each in found] == [(2, None), (3, 2)]


def test_an_independent_refusal_names_no_other(shared_lab: Lab) -> None:
    on, other = (ifindex(shared_lab, name) for name in ("eth0", "eth1"))
    ops = [address(on, "8.8.8.8/24"), rule("9.9.9.9", 9999 + on), rule("8.8.8.8", 9999 + other)]
    ops += [
        route(other, "0.0.0.0/0", "8.8.8.1"),
        no_main("0.0.0.0/0"),
        rule("fd00:2::10/128", 9999 + on, 31020),
        address(on, "9.9.9.9"),
    ]
    assert [each.get("depends_on") for each in refusals(shared_lab, *ops)] == [None] * len(ops)


def test_the_code_tells_what_waits_for_a_router_advertisement(shared_lab: Lab) -> None:
    on = ifindex(shared_lab, "eth1")
    ops = [address(on, "2001:db8::5/128"), route(on, "::/0", "fe80::77"), address(on, "8.8.8.8")]
    ops += [route(on, "0.0.0.0/0", "10.0.1.77"), address(on, "fd00:ec2::254/128")]
    codes = [each["code"] for each in refusals(shared_lab, *ops)]
    shared_lab.batch(["route add default via fe80::1 dev eth1 proto ra"])
    later = [each["code"] for each in refusals(shared_lab, *ops)]
    shared_lab.batch(["route delete default via fe80::1 dev eth1 proto ra"])
    assert codes == ["waiting", "waiting", "refused", "refused", "refused"]
    assert later == ["refused"] * 5


def test_check_names_the_rule_for_main_that_another_rule_needs(lab: Lab) -> None:
    """Ten more rules for main come after that rule: they may go."""
    on = ifindex(lab, "eth0")
    further = [rule("0.0.0.0/0", 254, 31014 + number, suppress=True) for number in range(10)]
    with Wire(lab) as wire:
        ops = [address(on, "10.0.2.10/24"), main_rule(), rule("10.0.2.10", 9999 + on, 31012), *further]
        assert wire.apply(*ops)["verdict"] == "applied"
        removals = [*({**each, "op": "rule_remove"} for each in further), main_rule(op="rule_remove")]
        found = wire.ask(request="check", ops=removals)["refusals"]
        assert [(each["position"], "31012 must come after it" in each["reason"]) for each in found] == [(10, True)]
        assert wire.apply(*removals[:10])["verdict"] == "applied"


def test_refused_operations_do_not_change_later_answers(lab: Lab) -> None:
    """A subnet moves, and grows. Its route in main is that of the address which the request removes."""
    lab.batch(["link add spare type veth peer name spare1", "link set spare1 up", "link set spare up"])
    on, other = ifindex(lab, "eth0"), ifindex(lab, "spare")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.5.0.193/26"))["verdict"] == "applied"
    moves = [address(on, "10.5.0.193/26", "address_remove"), address(other, "10.5.0.130/25")]
    assert refusals(lab, *moves) == []
    assert [each["position"] for each in refusals(lab, address(other, "10.5.0.129/25"), *moves)] == [0]
