"""What is kept from one pass to the next changes nothing of what is found."""

from __future__ import annotations

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.kept import Kept
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.desired import desired
from cloud_network.fetcher.network.objects import Actual
from cloud_network.fetcher.network.plan import plan
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fetcher.values import carried_out, clouds, configs, hosts


def test_the_same_objects_are_asked_for_once_and_forgotten_when_a_pass_made_no_use_of_them() -> None:
    calls = list[object]()

    def make(*of: object) -> tuple[object, ...]:
        calls.append(of)
        return of

    kept, one, other = Kept(), [1], [1]
    first = kept(make, one)
    kept.turn()
    assert kept(make, one) is first
    kept.turn()
    assert kept(make, one) is first
    assert kept(make, other) is not first, "equal is not the same"
    assert kept(make, one, other) == (one, other)
    assert len(calls) == 3
    kept.turn()
    kept.turn()
    assert kept(make, one) is not first
    assert len(calls) == 4


def test_nothing_is_as_good_as_something() -> None:
    calls = list[object]()
    kept, add, empty = Kept(), calls.append, ()
    for _ in range(3):
        assert kept(add, empty) is None
        kept.turn()
    assert calls == [empty]


def test_what_is_equal_in_its_place_is_what_was_there() -> None:
    kept, one, other = Kept(), [1], [1]
    assert kept.same("place", one) is one
    kept.turn()
    assert kept.same("elsewhere", other) is other
    assert kept.same("place", other) is one
    kept.turn()
    assert kept.same("place", [2]) == [2]
    kept.turn()
    kept.turn()
    assert kept.same("place", other) is other


passes = st.lists(st.tuples(clouds(), hosts(), configs), min_size=1, max_size=3)


@settings(max_examples=150)
@given(passes, st.data())
def test_a_pass_that_knows_the_one_before_finds_what_a_new_one_finds(
    different: list[tuple[Instance, Actual, Config]], data: st.DataObject
) -> None:
    """Of few clouds, hosts and configurations in any order, as they are and after what was planned."""
    kept = Kept()
    clouds_, hosts_, configs_ = (list(each) for each in zip(*different, strict=True))
    for _ in range(6):
        cloud, here, config = (data.draw(st.sampled_from(each)) for each in (clouds_, hosts_, configs_))
        kept.turn()
        found, fresh = desired(cloud, config, here, kept), desired(cloud, config, here)
        assert found == fresh
        changes = plan(found, here, may_remove=cloud.complete, kept=kept)
        assert set(changes) == set(plan(fresh, here, may_remove=cloud.complete)), "perhaps in another good order"
        hosts_.append(carried_out(changes, here))
