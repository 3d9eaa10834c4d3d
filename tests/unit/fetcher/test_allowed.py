"""The fetcher's judgement of what netagent would refuse, beside netagent's own."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.network.allowed import NEVER, Allowed
from cloud_network.netagent import policy
from cloud_network.netagent.settings import Settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fetcher.values import has, host, link

ANYWHERE = st.one_of(
    st.ip_addresses(),
    st.ip_addresses(network="10.0.0.0/7"),
    st.ip_addresses(network="10.16.0.0/15"),
    st.ip_addresses(network="100.64.0.0/10"),
    st.ip_addresses(network="203.0.113.0/24"),
    st.ip_addresses(network="fc00::/7"),
    st.sampled_from([net.network_address for net in NEVER]),
)
HOST = host(
    link(1),
    link(2, "docker0", kind="bridge"),
    addresses=has(2, "203.0.113.9/25") | has(2, "198.51.100.1/24", owned=True) | has(3, "10.17.0.1/16"),
)


class Kernel:
    """What netagent reads, with the same content as HOST."""

    def all(self, kind: str, index: int = 0) -> list[dict[str, object]]:
        if kind == "link":
            return [
                {"link": each.ifindex, "name": each.name, "kind": each.kind, "up": True, "loopback": False, "mtu": 1500}
                for each in HOST.links
            ]
        return [
            {
                "link": ifindex,
                "address": kernel.address.address.packed,
                "prefix": kernel.address.prefix,
                "flags": 0,
                "protocol": policy.PROTOCOL if kernel.owned else 0,
            }
            for (ifindex, _), kernel in HOST.addresses.items()
            if index in (0, ifindex)
            if kind == "address"
        ]

    def routes(self, *_: object) -> list[dict[str, object]]:
        return []


def test_nobodys_addresses_are_the_same() -> None:
    there = {(size * 8, number, size * 8 - host) for size, number, host in policy.NEVER}
    assert there == {(net.max_prefixlen, int(net.network_address), net.prefixlen) for net in NEVER}


@settings(max_examples=400)
@given(address=ANYWHERE, length=st.integers(0, 128))
def test_both_judge_alike(address: object, length: int) -> None:
    at = ip_address(address)  # type: ignore[arg-type]
    network = ip_network((at, min(length, at.max_prefixlen)), strict=False)
    view = policy.View(Kernel(), Settings(), frozenset(), frozenset())  # type: ignore[arg-type]
    try:
        view.check_claim(2, policy.network(network.network_address.packed, network.prefixlen), str(network))
        verdict = True
    except policy.Refusal:
        verdict = False
    assert Allowed(Config(), HOST, frozenset()).may_claim(link(1), network) is verdict


@pytest.mark.parametrize(("left", "said"), [(frozenset(), None), (frozenset({3}), "eth1 has 10.0.1.10")])
def test_an_address_that_is_ours_on_another_link_is_free_once_it_has_gone_from_there(
    left: frozenset[int], said: str | None
) -> None:
    here = host(link(1), link(2), addresses=has(3, "10.0.1.10/24", owned=True))
    found = Allowed(Config(), here, left).rejection(link(1), ip_address("10.0.1.10"))
    assert found is None if said is None else found is not None and said in found.text
