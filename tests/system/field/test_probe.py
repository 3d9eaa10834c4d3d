"""A gateway that the fetcher cannot probe (IPAddressDeny= of its unit) is checked after its route is added."""

from __future__ import annotations

from tests.lab import Lab, Spec
from tests.system.service import (
    CONFIG,
    MACS,
    audit,
    kernel_addresses,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
)

DENY = """
table inet deny {
    chain output {
        type filter hook output priority 0;
        udp dport 9 ip daddr != 169.254.169.254 drop
        udp dport 9 ip6 daddr != fd00:ec2::254 drop
    }
}
"""
NO_ADVERTISEMENTS = """
table inet deny {
    chain input {
        type filter hook input priority 0;
        icmpv6 type nd-router-advert drop
    }
}
"""


def test_routes_are_repaired_without_probing_their_gateway() -> None:
    with running_lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        wait_until_healthy(lab)
        lab.run(["nft", "-f", "-"], stdin=DENY)
        [link] = [each for each in status(lab)["links"].values() if each["name"] == lab.nics[1].name]
        lab.run(["ip", "neigh", "flush", "dev", lab.nics[1].name])
        lab.run(["ip", "route", "flush", "table", str(link["table"])])
        lab.wait_for(lambda: status(lab)["counters"]["drift_repaired"] > 0, 15, "the routes to be repaired")
        wait_until_healthy(lab)
        assert status(lab)["last_error"] is None
        assert all(lab.reachability().values())


def test_silent_gateway_of_a_new_link_is_tried_with_backoff() -> None:
    """Each try adds the routes and is rolled back; the link's addresses are configured, and the status says when."""
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.run(["nft", "-f", "-"], stdin=DENY)
        nic = lab.nics[1]
        lab.metadata.content(f"{MACS}{nic.mac}/subnet-ipv4-cidr-block", "10.0.2.8/29")  # its gateway would be 10.0.2.9
        lab.start("netagent")
        lab.start("fetcher")
        silent = f"gateway 10.0.2.9 of {nic.name}: it does not answer ARP or neighbour discovery and is not used"
        lab.wait_for(lambda: silent in str(status(lab).get("last_error")), 20, "the report")
        assert "; next try at 2" in status(lab)["last_error"]["message"]
        tries = verdicts(lab).count("rolled back")
        lab.wait_for(lambda: verdicts(lab).count("rolled back") > tries, 20, "another try")
        lab.wait_for(lambda: set(nic.addresses) <= kernel_addresses(lab), 20, "the addresses")
        lab.metadata.clear()
        refresh(lab)
        wait_until_healthy(lab)
        assert all(lab.reachability().values())


def verdicts(lab: Lab) -> list[str]:
    return [line["verdict"] for line in audit(lab)]


def test_router_known_only_by_its_neighbour_entry_is_used_again() -> None:
    """As in a VRF, where main does not have the advertised route."""
    lab_of = Spec.cloud("aws", interfaces=2, addresses=2, ipv6=1)
    with running_lab(lab_of, 'AllowAddresses = "2001:db8::/32"\n') as lab:
        wait_until_healthy(lab)
        lab.wait_for(lambda: all(lab.reachability().values()), message="all addresses")
        name = lab.nics[1].name
        [link] = [each for each in status(lab)["links"].values() if each["name"] == name]
        show = ["ip", "-6", "route", "show", "default", "table", str(link["table"])]
        lab.run(["nft", "-f", "-"], stdin=DENY + NO_ADVERTISEMENTS)
        lab.run(["ip", "-6", "route", "flush", "proto", "ra", "dev", name])
        lab.run(["ip", "-6", "route", "flush", "table", str(link["table"])])
        lab.wait_for(lambda: "via fe80::1" in lab.run(show).stdout, 15, "the route to be repaired")
        lab.wait_for(lambda: audit(lab)[-1]["verdict"] == "confirmed", 15, "the change to be confirmed")
        wait_until_healthy(lab)
        assert "via fe80::1" in lab.run(show).stdout
        assert status(lab)["last_error"] is None
