"""Every cloud boots as its convention defines: the primary interface answers, and the metadata server is reachable."""

from __future__ import annotations

import pytest

from tests.lab import Lab, Spec
from tests.lab.curl import ask
from tests.lab.metadata import PROVIDERS


@pytest.mark.parametrize("name", PROVIDERS)
def test_fresh_instance_answers_on_its_first_address(name: str) -> None:
    with Lab(Spec.cloud(name, interfaces=3, addresses=3, ipv6=2, prefixes=1)) as lab:
        first = lab.nics[0]
        served = lab.nics if lab.convention.all_links else [first]
        ready = [address for nic in served for address in (nic.addresses[0], *nic.ipv6[:1])]
        reached = [first.addresses[0], *first.ipv6[:1]]
        if lab.convention.all_links:  # the kernel may use any of three routers that advertise themselves
            del reached[1:]
        answers = lab.reachability(reached)
        assert [pair for pair, answer in answers.items() if pair[0] in ("beyond0", "neighbour0") and not answer] == []
        assert all(lab.outbound(addresses=reached).values())
        if not lab.convention.all_links:  # with all up and one table, replies to the siblings' subnets are lost
            assert lab.lost() == []
        for address in lab.convention.endpoints:
            if first.ipv6 or ":" not in address:
                assert ask(lab, "/", address=address).status < 500
        unready = [address for nic in lab.nics for address in (*nic.addresses, *nic.ipv6) if address not in ready]
        assert not any(lab.reachability(unready, 0.5).values())


@pytest.mark.parametrize("name", PROVIDERS)
def test_lab_has_the_specified_interfaces(name: str) -> None:
    convention = PROVIDERS[name].convention
    whole = Spec.cloud(name, interfaces=4, addresses=15, ipv6=3, prefixes=2)
    assert 1 <= len(whole.interfaces) <= min(4, convention.most_interfaces)
    for interface in whole.interfaces[1:]:
        assert interface.addresses == min(15, convention.most_addresses)
        assert interface.ipv6 == min(3, convention.most_ipv6)
        assert len(interface.prefixes) == 2 * len(convention.ranges)
