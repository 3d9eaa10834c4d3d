"""The changes that wait for an object that another program keeps reverting. The lab tests for how long."""

from __future__ import annotations

import pytest
from cloud_network.fetcher.config import Rules
from cloud_network.fetcher.conflicts import ConflictTracker
from cloud_network.fetcher.network.objects import Actual, Address, Rule
from cloud_network.fetcher.network.plan import Change, Plan, Verb

from tests.unit.fetcher.values import carried_out, has, host, instance, interface, link, plan_of, wanted


def reverted(change: Change) -> ConflictTracker:
    """Another program has reverted it so often that it has to wait."""
    tracker = ConflictTracker()
    for _ in range(5):
        tracker.record((change,))
    return tracker


def rules(plan: Plan, second: int) -> set[tuple[str, bool]]:
    found = [each.what for each in plan if isinstance(each.what, Rule) and each.what.table == 9999 + second]
    return {(str(each.selector), each.local) for each in found}


@pytest.mark.parametrize("form", [Rules.AGGREGATE, Rules.ADDRESS])
@pytest.mark.parametrize("siblings", [0, 1])
@pytest.mark.parametrize("there", [False, True])
def test_rule_waits_until_its_selector_has_an_address(form: Rules, siblings: int, there: bool) -> None:
    """netagent refuses a request with a rule for a prefix in which the link has no address."""
    own = ["10.0.2.10", "10.0.2.11"][: 1 + siblings]
    here: Actual = host(link(1), link(2), addresses=has(3, "10.0.2.200/32") if there else {})
    plan = plan_of(wanted(instance(interface(1), interface(2, *own)), here, rules=form), here)
    [address] = [each for each in plan if isinstance(each.what, Address) and str(each.what.address) == own[0]]
    left = reverted(address).allowed(plan, here)
    assert address not in left
    if form is Rules.AGGREGATE:
        assert rules(left, 3) == ({("10.0.2.0/24", True)} if siblings or there else set())
    else:
        assert rules(left, 3) == {(f"{each}/32", False) for each in own[1:]}
    assert rules(ConflictTracker().allowed(plan, here), 3) == rules(plan, 3)


def test_rule_removal_does_not_wait() -> None:
    here = host(link(1), link(2))
    settled = carried_out(plan_of(wanted(instance(interface(1), interface(2)), here), here), here)
    back = plan_of(wanted(instance(interface(1), interface(2)), settled, rules=Rules.ADDRESS), settled)
    gone = [each for each in back if each.verb is Verb.REMOVE and isinstance(each.what, Rule)]
    assert len(gone) == 4
    other = next(each for each in back if each.verb is Verb.ADD)
    assert set(gone) <= set(reverted(other).allowed(back, settled))
