"""The largest instance, 60 interfaces with 50 addresses each: the cost of one change, and its growth."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_interface
from types import FrameType

import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import Actual
from cloud_network.fetcher.network.plan import Plan, added_object, in_ip_syntax
from cloud_network.netagent.operations import AddressAdd, AddressRemove

from .values import after_changes, goal_of, host, instance, interface, link, plan_of, wanted

pytestmark = pytest.mark.exhaustive


def cloud(interfaces: int, addresses: int) -> Instance:
    return instance(
        *(
            interface(number, *(f"10.0.{number}.{last}" for last in range(10, 10 + addresses)))
            for number in range(1, 1 + interfaces)
        )
    )


def bare(interfaces: int) -> Actual:
    return host(*(link(number, up=False) for number in range(1, 1 + interfaces)))


@pytest.fixture(scope="module")
def large() -> tuple[Instance, Actual]:
    """Return the instance and a host that is completely configured."""
    found, here = cloud(60, 50), bare(60)
    return found, after_changes(plan_of(wanted(found, here), here), here)


def test_largest_instance_is_complete(large: tuple[Instance, Actual]) -> None:
    found, here = large
    assert len(here.addresses) == 3000
    assert plan_of(wanted(found, here), here) == ()


def changes_after(found: Instance, here: Actual, *texts: str) -> Plan:
    """Return the changes if interface 30 alone gets these addresses."""
    odd = found.interfaces[29]
    changed = replace(odd, addresses=tuple(ip_interface(text) for text in texts))
    others = [each for each in found.interfaces if each is not odd]
    new = replace(found, interfaces=(*others[:29], changed, *others[29:]))
    return plan_of(wanted(new, here), here)


def test_one_changed_address_changes_only_its_objects(large: tuple[Instance, Actual]) -> None:
    found, here = large
    before = [str(address) for address in found.interfaces[29].addresses]
    gone, new = before[20], "10.0.30.200/24"
    changes = changes_after(found, here, *(each for each in before if each != gone), new)
    addresses = [op for op in changes if isinstance(op, AddressAdd | AddressRemove)]
    assert [(type(op), str(op.interface.ip)) for op in addresses] == [
        (AddressRemove, "10.0.30.30"),
        (AddressAdd, "10.0.30.200"),
    ]
    lines = [in_ip_syntax(change, {}) for change in changes]
    assert all(" 10.0.30.30" in line or " 10.0.30.200" in line for line in lines), lines
    assert len(lines) <= 6


def test_one_removed_object_is_repaired_alone(large: tuple[Instance, Actual]) -> None:
    found, here = large
    for rule in sorted(here.rules, key=str)[::4000]:
        [change] = plan_of(wanted(found, here), replace(here, rules=here.rules - {rule}))
        assert added_object(change) == rule
    for route in sorted(here.routes, key=str)[::4000]:
        [change] = plan_of(wanted(found, here), replace(here, routes=here.routes - {route}))
        assert added_object(change) == route


def count_calls(work: Callable[[], object]) -> int:
    """Return the number of function calls: a measure of the cost that does not depend on the machine's load."""
    count = 0

    def seen(_frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_cost_grows_linearly_with_addresses() -> None:
    def cost(addresses: int) -> int:
        found, here = cloud(8, addresses), bare(8)
        there = after_changes(plan_of(wanted(found, here), here), here)

        def work() -> None:
            for each in (here, there):
                plan_of(goal_of(found, Config(), each), each)

        return count_calls(work)

    once, twice, four_times = cost(50), cost(100), cost(200)
    assert four_times - twice < 1.1 * 2 * (twice - once)
