"""What is held back, and what with it. How long, and that it is named, is tried in the lab."""

from __future__ import annotations

import pytest
from cloud_network.fetcher.config import Rules
from cloud_network.fetcher.fights import Fights
from cloud_network.fetcher.network.objects import Actual, Address, Rule
from cloud_network.fetcher.network.plan import Change, Plan, Verb

from tests.unit.fetcher.values import carried_out, has, host, instance, interface, link, plan_of, wanted


def fought_over(change: Change) -> Fights:
    """Somebody has taken it away so often that it has to wait."""
    fights = Fights()
    for _ in range(5):
        fights.made((change,))
    return fights


def rules(plan: Plan, second: int) -> set[tuple[str, bool]]:
    found = [each.what for each in plan if isinstance(each.what, Rule) and each.what.table == 9999 + second]
    return {(str(each.selector), each.local) for each in found}


@pytest.mark.parametrize("form", [Rules.AGGREGATE, Rules.ADDRESS])
@pytest.mark.parametrize("siblings", [0, 1])
@pytest.mark.parametrize("there", [False, True])
def test_a_rule_waits_for_the_address_that_it_is_for_and_that_of_a_prefix_for_the_last(
    form: Rules, siblings: int, there: bool
) -> None:
    """netagent makes no rule for a prefix in which the link has nothing, and refuses the whole request."""
    own = ["10.0.2.10", "10.0.2.11"][: 1 + siblings]
    here: Actual = host(link(1), link(2), addresses=has(3, "10.0.2.200/32") if there else {})
    plan = plan_of(wanted(instance(interface(1), interface(2, *own)), here, rules=form), here)
    [address] = [each for each in plan if isinstance(each.what, Address) and str(each.what.address) == own[0]]
    left = fought_over(address).allowed(plan, here)
    assert address not in left
    if form is Rules.AGGREGATE:
        assert rules(left, 3) == ({("10.0.2.0/24", True)} if siblings or there else set())
    else:
        assert rules(left, 3) == {(f"{each}/32", False) for each in own[1:]}
    assert rules(Fights().allowed(plan, here), 3) == rules(plan, 3)


def test_a_rule_that_goes_waits_for_nothing() -> None:
    here = host(link(1), link(2))
    settled = carried_out(plan_of(wanted(instance(interface(1), interface(2)), here), here), here)
    back = plan_of(wanted(instance(interface(1), interface(2)), settled, rules=Rules.ADDRESS), settled)
    gone = [each for each in back if each.verb is Verb.REMOVE and isinstance(each.what, Rule)]
    assert len(gone) == 4
    other = next(each for each in back if each.verb is Verb.ADD)
    assert set(gone) <= set(fought_over(other).allowed(back, settled))
