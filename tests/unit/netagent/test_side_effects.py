"""Which routes the kernel has derived from the addresses of a member of a VRF. The kernel of most tests has no VRF."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from cloud_network.netagent import rtnetlink
from cloud_network.netagent.operations import PROTOCOL
from cloud_network.netagent.rtnetlink import Address, NextHop, Route
from cloud_network.netagent.side_effects import is_derived, places_of

VRF_TABLE = 77
IP = IPv4Address("10.5.0.9")
PLACES = places_of([Address(3, IP, 24, 0, PROTOCOL), Address(3, IPv4Address("10.5.0.10"), 24, 0, PROTOCOL)])


@pytest.mark.parametrize(
    ("kind", "text", "link", "derived"),
    [
        (rtnetlink.RTN_UNICAST, "10.5.0.0/24", 3, True),
        (rtnetlink.RTN_LOCAL, "10.5.0.9/32", 3, True),
        (rtnetlink.RTN_LOCAL, "10.5.0.10/32", 3, True),  # a secondary has the primary as source
        (rtnetlink.RTN_BROADCAST, "10.5.0.255/32", 3, True),
        (rtnetlink.RTN_UNICAST, "10.6.0.0/24", 3, False),
        (rtnetlink.RTN_LOCAL, "10.5.0.11/32", 3, False),
        (rtnetlink.RTN_LOCAL, "10.5.0.0/24", 4, False),
        (rtnetlink.RTN_ANYCAST, "10.5.0.12/32", 3, False),
        (rtnetlink.RTN_BLACKHOLE, "10.5.0.128/25", 3, False),
    ],
)
@pytest.mark.parametrize("table", [VRF_TABLE, 255])
def test_routes_of_a_vrf_member_are_the_kernels(table: int, kind: int, text: str, link: int, *, derived: bool) -> None:
    route = Route(table, IPv4Network(text), (NextHop(link, None),), kind, rtnetlink.RTPROT_KERNEL, 0, IP, expires=False)
    assert is_derived(route, PLACES) == derived
