"""The interval index against a search of every interval, and the networks of addresses."""

from __future__ import annotations

from ipaddress import ip_address

from cloud_network.fetcher.network.intervals import Interval, IntervalIndex, networks_of
from cloud_network.fetcher.network.objects import Address
from hypothesis import given
from hypothesis import strategies as st

numbers = st.integers(0, 40)
intervals = st.builds(
    lambda version, first, size, ifindex: Interval(version, first, first + size, ifindex),
    st.sampled_from([4, 6]),
    numbers,
    st.one_of(st.just(0), st.integers(0, 12)),
    st.integers(0, 3),
)


@given(st.lists(intervals), intervals)
def test_index_finds_every_overlapping_interval(known: list[Interval], wanted: Interval) -> None:
    expected = {each for each in known if each.overlaps(wanted)}
    assert IntervalIndex(known).overlapping(wanted) == sorted(expected)


@given(intervals, intervals)
def test_intervals_overlap_if_they_share_an_address(one: Interval, other: Interval) -> None:
    shared = set(range(one.first, one.last + 1)) & set(range(other.first, other.last + 1))
    assert one.overlaps(other) == (one.version == other.version and bool(shared))


@given(intervals, intervals)
def test_interval_contains_all_addresses_of_another(one: Interval, other: Interval) -> None:
    inside = set(range(other.first, other.last + 1)) <= set(range(one.first, one.last + 1))
    assert one.contains(other) == (one.version == other.version and inside)


def address(ifindex: int, text: str, prefix: int) -> Address:
    return Address(ifindex, ip_address(text), prefix, connected=False)


def test_host_address_in_a_network_of_its_link_adds_nothing() -> None:
    network = Interval.around(ip_address("10.0.1.0"), 24, 2)
    assert networks_of([address(2, "10.0.1.11", 32), address(2, "10.0.1.10", 24)]) == [network]
    other = address(3, "10.0.1.11", 32)
    assert networks_of([other, address(2, "10.0.1.10", 24)]) == [network, Interval.of_address(other.address, 3)]
