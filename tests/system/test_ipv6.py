"""IPv6 end to end, with global addresses as in a cloud, and routes from router advertisements."""

from __future__ import annotations

import pytest

from tests.lab import Lab, Spec
from tests.system.service import CONFIG, audit, kernel, own_objects, read_all_facts, running_lab, without_order


def test_every_address_of_both_families_is_reached() -> None:
    allowed = 'AllowAddresses = "2001:db8::/32"\n'
    with running_lab(Spec.cloud("aws", interfaces=4, addresses=15, ipv6=15), allowed, "netagent", "fetcher") as lab:
        lab.wait_for(lambda: all(lab.reachability().values()), message="every link's router to be known")
        lab.fabric.clear_lost()
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
        assert "level=error" not in lab.log("fetcher"), "waiting for a router advertisement is not an error"


@pytest.mark.parametrize("what", ["address", "route", "rule"])
def test_removed_ipv6_object_is_repaired(what: str) -> None:
    """The timer is five minutes: only a kernel event can wake the fetcher."""
    with running_lab(Spec.cloud("aws", interfaces=2, addresses=1, ipv6=2), "", "netagent", "fetcher") as lab:
        read_all_facts(lab)  # otherwise it reads again after a second, without an event
        before, nic = without_order(kernel(lab)), lab.nics[1]
        table = own_objects(lab, "rule-6")[0]["table"]
        removal = {
            "address": f"-6 address del {nic.ipv6[1]}/128 dev {nic.name}",
            "route": f"-6 route del default table {table}",
            "rule": f"-6 rule del pref 31020 table {table}",
        }
        lines = len(audit(lab))
        lab.run(["ip", *removal[what].split()])
        lab.wait_for(lambda: len(audit(lab)) > lines, 10, "a request")
        lab.wait_for(lambda: without_order(kernel(lab)) == before, 10, "the repair")
