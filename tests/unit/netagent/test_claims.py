"""Networks by link and gateways by convention, compared with simple implementations."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

from cloud_network.netagent.claims import CONVENTION_LENGTHS, IPAddress, conventional_subnets, overlap
from cloud_network.netagent.network_index import NetworksByLink
from hypothesis import given
from hypothesis import strategies as st

LINKS = st.integers(2, 4)
NETWORKS = st.builds(
    lambda number, length: IPv4Network((number >> 32 - length << 32 - length, length)),
    st.integers(0x0A000000, 0x0A00000F),
    st.integers(26, 32),
)


@given(st.sets(st.tuples(LINKS, NETWORKS)), st.sets(st.tuples(LINKS, NETWORKS)), LINKS, NETWORKS)
def test_networks_are_found_by_link(
    added: set[tuple[int, IPv4Network]], removed: set[tuple[int, IPv4Network]], link: int, network: IPv4Network
) -> None:
    found = NetworksByLink()
    for place in added:
        found.add(*place)
    for place in removed:
        found.discard(*place)
    left = added - removed
    near = {(each, other) for other, each in left if overlap(each, network)}
    assert found.has(link, network) == ((link, network) in left)
    assert sorted(found.overlapping(link, network)) == sorted(each for each, other in near if other == link)
    around = [each for other, each in left if other == link and network.subnet_of(each)]
    assert sorted(found.containing(link, network)) == sorted(around)
    assert sorted(found.elsewhere(link, network)) == sorted(each for each in near if each[1] != link)
    assert sorted(found.all_containing(network)) == sorted(
        (each, other) for other, each in left if network.subnet_of(each)
    )
    assert found.links_overlapping(network) == {other for _, other in near}


@given(st.one_of(st.integers(1, 254).map(lambda host: IPv4Address(0x0A000100 + host)), st.ip_addresses()))
def test_conventional_gateways_are_accepted(gateway: IPAddress) -> None:
    last = 2 if gateway.version == 4 else 8
    around = [ip_network(f"{gateway}/{length}", strict=False) for length in CONVENTION_LENGTHS[gateway.version]]
    wanted = [each for each in around if gateway in (each[1], each[-1 - last])]
    assert list(conventional_subnets(gateway)) == wanted


def test_gateways_of_clouds_are_conventional() -> None:
    assert ip_network("10.0.1.0/24") in conventional_subnets(IPv4Address("10.0.1.1"))
    assert ip_network("10.0.1.0/24") in conventional_subnets(IPv4Address("10.0.1.253"))
    assert ip_network("fd00:1::/64") in conventional_subnets(IPv6Address("fd00:1::ffff:ffff:ffff:fff7"))
    assert not list(conventional_subnets(IPv4Address("10.0.1.78")))
