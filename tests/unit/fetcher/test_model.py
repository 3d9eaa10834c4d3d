"""Metadata values are accepted only if a host could have them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

import pytest
from cloud_network.fetcher.metadata import model
from cloud_network.fetcher.metadata.model import MetadataError, Problem
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fetcher.values import instance, interface, mac


def refused(error: MetadataError, *parts: str) -> bool:
    """Return True for an error of kind invalid whose text contains all `parts`."""
    return error.kind == "invalid" and all(part in str(error) for part in parts)


@pytest.mark.parametrize(
    "text",
    ["", "10.0.1", "999.1.1.1", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "0.0.0.0", "0.1.2.3",
     "10.0.0.1/24", "<html>", "::", "::1", "ff02::1", "::ffff:10.0.0.1", "fd00::1%eth0", "10.0.0.1\n10.0.0.2"],
)  # fmt: skip
def test_impossible_address_is_refused_with_path_and_value(text: str) -> None:
    with pytest.raises(MetadataError) as caught:
        model.parse_address("macs/x/local-ipv4s", text)
    assert refused(caught.value, "macs/x/local-ipv4s", repr(text), "address")


@given(st.ip_addresses())
def test_accepted_address_is_unchanged(address: IPv4Address | IPv6Address) -> None:
    try:
        assert model.parse_address("p", f" {address}\n") == address
    except MetadataError:
        odd = address.is_reserved or address.is_loopback or address.is_multicast or address.is_unspecified
        assert odd or (address.version == 4 and int(address) < 1 << 24)


@pytest.mark.parametrize("text", ["0.0.0.0/0", "10.0.0.0/7", "127.0.0.0/8", "224.0.0.0/8", "fd00::/31", "x"])
def test_impossible_prefix_is_refused_with_path_and_value(text: str) -> None:
    with pytest.raises(MetadataError) as caught:
        model.parse_network("macs/x/ipv4-prefix", text)
    assert refused(caught.value, "macs/x/ipv4-prefix", repr(text), "prefix")


@pytest.mark.parametrize(
    "text", ["", "02:00:00:00:00", "02:00:00:00:00:zz", "02-00-00-00-00-01", "02:00:00:00:00:01:02"]
)
def test_invalid_mac_is_refused_with_path_and_value(text: str) -> None:
    with pytest.raises(MetadataError) as caught:
        model.parse_mac("macs/", text)
    assert refused(caught.value, "macs/", repr(text), "a MAC address")


def test_macs_are_compared_in_lower_case() -> None:
    assert model.parse_mac("macs/", " 02:AB:00:00:00:01 ") == "02:ab:00:00:00:01"


def test_a_long_value_is_shown_shortened() -> None:
    with pytest.raises(MetadataError) as caught:
        model.parse_mac("macs/", "x" * 5000)
    assert len(str(caught.value)) < 120


def test_an_address_gets_the_length_of_the_subnet_it_lies_in() -> None:
    subnets = (ip_network("10.0.1.0/24"), ip_network("10.0.2.0/25"), ip_network("fd00::/64"))
    assert str(model.with_prefix_length("p", ip_address("10.0.2.7"), subnets)) == "10.0.2.7/25"
    assert str(model.with_prefix_length("p", ip_address("fd00::7"), subnets)) == "fd00::7/64"


@pytest.mark.parametrize("text", ["8.8.8.8", "10.0.2.1", "fd01::1", "10.0.1.0", "10.0.1.255"])
def test_address_outside_subnets_is_refused_with_the_subnets(text: str) -> None:
    with pytest.raises(MetadataError) as caught:
        model.with_prefix_length(
            "macs/x/local-ipv4s", ip_address(text), (ip_network("10.0.1.0/24"), ip_network("fd00::/64"))
        )
    assert refused(caught.value, "macs/x/local-ipv4s", text, "10.0.1.0/24")


def test_a_point_to_point_subnet_has_no_broadcast_address() -> None:
    assert str(model.with_prefix_length("p", ip_address("10.0.1.0"), (ip_network("10.0.1.0/31"),))) == "10.0.1.0/31"
    assert str(model.with_prefix_length("p", ip_address("10.0.1.9"), (ip_network("10.0.1.9/32"),))) == "10.0.1.9/32"


def test_host_bits_of_a_prefix_are_dropped() -> None:
    assert model.parse_network("p", "10.0.1.5/24") == ip_network("10.0.1.0/24")


def test_problem_proves_nothing_about_its_interface() -> None:
    assert instance(interface(1)).complete
    named = instance(interface(1), problems=(Problem(mac(2), "bad"),))
    assert (named.complete, named.may_remove, named.unproven) == (False, False, {mac(2)})
    nameless = instance(interface(1), problems=(Problem("", "bad"),))
    assert (nameless.complete, nameless.may_remove) == (False, False)
    stale = instance(interface(1), stale=True)
    assert (stale.complete, stale.may_remove) == (False, False)


def test_interface_without_addresses_is_no_proof_unless_by_dhcp() -> None:
    empty = replace(interface(1), addresses=())
    assert instance(empty).unproven == {mac(1)}
    assert instance(replace(empty, dhcp=True)).unproven == set()


def test_unread_interface_stays_as_it_was() -> None:
    before = instance(interface(1), interface(2), interface(3))
    read = instance(interface(1, "10.0.1.99"), problems=(Problem(mac(2), "bad"), Problem(mac(9), "bad")))
    kept = read.with_known(before)
    assert kept.interfaces == (interface(1, "10.0.1.99"), interface(2))  # 3 is no longer listed, 9 was never known
    assert not kept.complete
    assert read.with_known(None) == read


def test_nameless_problem_keeps_every_interface() -> None:
    before = instance(interface(1), interface(2))
    assert instance(interface(1), problems=(Problem("", "bad"),)).with_known(before).interfaces == before.interfaces


def test_parts_that_were_not_understood_stay_as_they_were() -> None:
    before = instance(interface(1, "10.0.1.10", "10.0.1.11", mtu=9001), interface(2, "10.0.2.10", "10.0.2.11"))
    now = replace(interface(1, "10.0.1.12"), gateways=(), mtu=None)
    moved = interface(2, "10.0.1.11", subnets=["10.0.1.0/24"])
    kept = instance(now, moved, problems=(Problem(mac(1), "bad"),)).with_known(before)
    assert [str(each) for each in kept.interfaces[0].addresses] == ["10.0.1.10/24", "10.0.1.12/24"]
    assert (kept.interfaces[0].gateways, kept.interfaces[0].mtu) == (before.interfaces[0].gateways, 9001)
    assert kept.interfaces[1] == moved


def test_more_than_the_bounds_is_reported_and_left_out() -> None:
    many = instance(*(interface(number % 250, f"10.0.{number % 250}.10") for number in range(1, 80)))
    found = model.bounded(many)
    assert len(found.interfaces) == model.MAX_INTERFACES
    assert (found.problems[0].mac, found.may_remove) == ("", False)
    block = tuple(ip_interface(f"10.1.{number // 250}.{number % 250}/16") for number in range(1, 5000))
    large = instance(replace(interface(1), addresses=block), interface(2))
    found = model.bounded(large)
    assert sum(len(each.addresses) for each in found.interfaces) == model.MAX_ADDRESSES
    assert {problem.mac for problem in found.problems} == {mac(1), mac(2)}
    assert model.bounded(instance(interface(1))) == instance(interface(1))


def test_subnets_and_routes_of_all_interfaces_are_bounded() -> None:
    subnets = tuple(ip_network(f"10.{number}.0.0/24") for number in range(100))
    routes = tuple((ip_network(f"172.16.{number}.0/24"), ip_address("10.0.0.1")) for number in range(100))
    each = replace(interface(1), subnets=subnets, routes=routes)
    found = model.bounded(instance(*(replace(each, mac=mac(number)) for number in range(1, 5))))
    assert sum(len(each.subnets) + len(each.routes) for each in found.interfaces) == model.MAX_NETWORKS
    assert [problem.mac for problem in found.problems] == [mac(3), mac(4)]
    assert "88 subnets and routes exceed" in found.problems[0].text


def test_reports_are_bounded_in_number_and_length() -> None:
    reports = tuple(Problem(mac(1), f"{number} {'x' * 900000 * (number == 0)}") for number in range(30000))
    texts = tuple(each.text for each in reports)
    found = model.bounded(instance(interface(1), problems=reports, missing=reports, notices=texts))
    for each in (found.problems, found.missing, tuple(Problem("", text) for text in found.notices)):
        assert len(each) == model.MAX_REPORTS + 1
        assert max(len(problem.text) for problem in each) == model.MAX_REPORT_LENGTH
        assert each[-1] == Problem("", "and 29744 more")
    before = instance(interface(1), interface(2))
    assert {each.mac for each in found.with_known(before).interfaces} == {mac(1), mac(2)}


def test_documents_for_display_do_not_make_two_instances_differ() -> None:
    assert instance(interface(1, document={"a": "b"}), system={"ami-id": "x"}) == instance(interface(1))
    assert instance(interface(1, public=(ip_address("8.8.8.8"),))) != instance(interface(1))


def test_another_order_is_no_change() -> None:
    """The first address of a subnet carries the subnet's length: another first address would cause a removal."""
    before = instance(interface(1, "10.0.1.10", "10.0.1.11", "10.0.1.12"))
    now = instance(interface(1, "10.0.1.13", "10.0.1.12", "10.0.1.10"))
    assert [str(each.ip) for each in now.with_known(before).interfaces[0].addresses] == [
        "10.0.1.10", "10.0.1.12", "10.0.1.13",
    ]  # fmt: skip


def test_missing_part_keeps_known_parts_with_a_notice() -> None:
    before = instance(interface(1, "10.0.1.10", "10.0.1.11"), interface(2))
    less = instance(interface(1, "10.0.1.10"), interface(2), missing=(Problem(mac(1), "ipv6: missing"),))
    assert (less.complete, less.may_remove, less.unproven) == (False, True, {mac(1)})
    kept = less.with_known(before)
    assert set(kept.interfaces[0].addresses) == set(before.interfaces[0].addresses)
    assert kept.notices == ("ipv6: missing; the earlier values are kept",)
    assert less.with_known(less).notices == ()
    partial = instance(interface(1), missing=(Problem("", "private: missing"),))
    assert (partial.may_remove, partial.with_known(before).interfaces[1]) == (False, interface(2))
    assert partial.with_known(before).notices == ("private: missing; the earlier values are kept",)


def test_subnet_router_anycast_address_is_refused() -> None:
    with pytest.raises(MetadataError, match="anycast"):
        model.with_prefix_length("p", ip_address("fd00::"), (ip_network("fd00::/64"),))
    assert str(model.with_prefix_length("p", ip_address("fd00::"), (ip_network("fd00::/127"),))) == "fd00::/127"


def test_merged_interface_does_not_become_proof() -> None:
    before = instance(interface(1), interface(2))
    empty = replace(interface(2), addresses=(), subnets=())
    merged = instance(interface(1), empty).with_known(before)
    assert {each.ip for each in merged.interfaces[1].addresses} == {each.ip for each in before.interfaces[1].addresses}
    assert not merged.complete
