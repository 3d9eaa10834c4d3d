"""IPv6 end to end, with addresses that are global as a cloud's are, and routes from router advertisements."""

from __future__ import annotations

from tests.job import CONFIG, running
from tests.lab import Lab, Spec


def test_every_address_of_both_families_is_reached() -> None:
    allowed = 'AllowAddresses = "2001:db8::/32"\n'
    with running(Spec.cloud("aws", interfaces=4, addresses=15, ipv6=15), allowed, "netagent", "fetcher") as lab:
        lab.wait_for(lambda: all(lab.reachability().values()), message="every link's router to be known")
        lab.fabric.forget_lost()
        answers = lab.reachability()
        assert len(answers) == 600
        assert all(answers.values())
        assert all(lab.outbound().values())
        assert lab.lost() == []


def test_global_addresses_need_no_configuration() -> None:
    with Lab(Spec.cloud("aws", interfaces=2, addresses=2, ipv6=2)) as lab:
        lab.write_config(CONFIG)
        for name in ("netagent", "fetcher"):
            lab.start(name)
        lab.wait_for(lambda: all(lab.reachability().values()), 8, "every address to answer")
