"""Changes that the kernel or netagent refuses are left out and reported with their cause, and do not block others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.nic import Nic
from tests.system.service import CONFIG as SERVICE_CONFIG
from tests.system.service import (
    audit,
    ip,
    is_healthy,
    kernel_addresses,
    own_objects,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
)

DUAL_STACK = tuple(Interface(f"10.0.{n}.0/24", 3, ipv6=(f"fd00:{n}::a", f"fd00:{n}::b")) for n in (1, 2, 3))
CONFIG = '[Netagent]\nAllowKinds = "veth macvlan"\n'


def sysctl(lab: Lab, link: str, key: str, value: int) -> None:
    lab.run(["sysctl", "-qw", f"net.ipv6.conf.{link}.{key}={value}"])


def start(lab: Lab, config: str = SERVICE_CONFIG) -> None:
    lab.write_config(config)
    lab.start("netagent")
    lab.start("fetcher")


def rolled_back(lab: Lab) -> list[object]:
    return [line for line in audit(lab) if line["verdict"] not in ("applied", "confirmed")]


def test_disabled_ipv6_does_not_block_ipv4() -> None:
    """IPv6 is disabled for all links before the start. The cause is reported for each link, and clears with it."""
    with Lab(Spec(DUAL_STACK)) as lab:
        sysctl(lab, "all", "disable_ipv6", 1)
        start(lab)
        lab.wait_for(lambda: set(lab.addresses) <= kernel_addresses(lab), 10, "the IPv4 addresses")
        assert refresh(lab) == "degraded"
        assert all(lab.reachability(lab.addresses).values())
        message = status(lab)["last_error"]["message"]
        for nic in lab.nics:
            assert f"{nic.name}: IPv6 is disabled on this link" in message
            assert f"net.ipv6.conf.{nic.name}.disable_ipv6=0" in message
        assert rolled_back(lab) == []
        sysctl(lab, "all", "disable_ipv6", 0)
        lab.wait_for(lambda: is_healthy(lab), 20, "the IPv6 addresses")


def test_ipv6_disabled_on_one_link_does_not_block_others() -> None:
    with running_lab(Spec(DUAL_STACK), "", "netagent", "fetcher") as lab:
        off, other = lab.nics[2], lab.nics[1]
        six = [each for nic in lab.nics for each in nic.ipv6]
        lab.wait_for(lambda: all(lab.reachability([*lab.addresses, *six]).values()), 20, "all addresses")
        sysctl(lab, off.name, "disable_ipv6", 1)
        lab.wait_for(lambda: "disable_ipv6=0" in str(status(lab)["last_error"]), 10, "the cause")
        lab.add_address(other.mac, "10.0.2.77")
        lab.add_address(off.mac, "10.0.3.77")
        assert refresh(lab) == "degraded"
        assert {"10.0.2.77", "10.0.3.77", *other.ipv6} <= kernel_addresses(lab)
        lab.wait_for(lambda: all(lab.reachability([*lab.addresses, *other.ipv6]).values()), 10, "the other links")
        assert rolled_back(lab) == []


@pytest.fixture
def macvlan_lab() -> Iterator[Lab]:
    """Yield a GCP lab, whose metadata has MTUs. An interface is a macvlan on a link that is down: it can neither be
    set up nor get its MTU.
    """
    with Lab(Spec.cloud("gcp", interfaces=3, addresses=1)) as lab:
        nic = lab.nics[1]
        lower = [
            f"link set {nic.name} name lower0",
            "link set lower0 address 02:aa:bb:cc:dd:02",
            "link set lower0 mtu 1400",
            f"link add link lower0 name {nic.name} address {nic.mac} type macvlan mode bridge",
        ]
        lab.batch(lower)
        start(lab, CONFIG)
        yield lab


def test_link_that_cannot_come_up_does_not_block_others(macvlan_lab: Lab) -> None:
    lab, nic = macvlan_lab, macvlan_lab.nics[1]
    others = [each for each in lab.nics if each is not nic]
    lab.wait_for(
        lambda: {*others[0].addresses, *others[1].addresses} <= kernel_addresses(lab), 10, "the others' addresses"
    )
    lab.wait_for(lambda: status(lab).get("state") == "degraded", 10, "the report")
    message = str(status(lab)["last_error"]["message"])
    assert nic.name in message
    assert "the kernel refuses it" in message
    assert all(lab.reachability([address for each in others for address in each.addresses]).values())
    lab.batch(["link set lower0 up"])  # the upper link has no event; the fetcher retries
    lab.wait_for(lambda: set(nic.addresses) <= kernel_addresses(lab), 30, "the link to come up")
    assert refresh(lab) == "degraded"
    assert f"MTU {mtu_of(lab, others[0])} of {nic.name}: the kernel refuses it: Invalid argument" in str(
        status(lab)["last_error"]["message"]
    )
    lab.batch([f"link set lower0 mtu {mtu_of(lab, others[0])}"])
    lab.wait_for(lambda: status(lab)["state"] == "ok", 60, "the MTU")
    assert mtu_of(lab, nic) == mtu_of(lab, others[0])


def mtu_of(lab: Lab, nic: Nic) -> int:
    return next(int(link["mtu"]) for link in ip(lab, "link") if link["ifname"] == nic.name)


# IPv6 forwarding


@pytest.fixture
def ipv6_lab() -> Iterator[Lab]:
    with running_lab(Spec.cloud("aws", interfaces=3, addresses=2, ipv6=2), "", "netagent", "fetcher") as made:
        made.wait_for(lambda: all(made.reachability().values()), 15, "every link's router")
        yield made


def defaults(lab: Lab) -> list[str]:
    return sorted(
        f"{route['dev']} {route.get('gateway')}" for route in own_objects(lab, "route-6") if route["dst"] == "default"
    )


def test_forwarding_keeps_working_routes_and_reports_the_cause(ipv6_lab: Lab) -> None:
    """As enabled by Docker and k3s: the kernel removes the advertised routes and ignores further advertisements."""
    lab, before = ipv6_lab, defaults(ipv6_lab)
    held = lab.hold_connection(lab.nics[1].ipv6[1])
    sysctl(lab, "all", "forwarding", 1)
    lab.wait_for(lambda: status(lab)["state"] == "degraded", 10, "the cause")
    assert refresh(lab) == "degraded"
    assert defaults(lab) == before
    message = str(status(lab)["last_error"]["message"])
    for nic in lab.nics:
        key = f"net.ipv6.conf.{nic.name}"
        assert f"{key}.forwarding=1 with accept_ra=1" in message
        assert f"set {key}.accept_ra=2" in message
    assert held.alive()
    assert all(lab.reachability().values())
    for nic in lab.nics:
        sysctl(lab, nic.name, "accept_ra", 2)
        lab.fabric.advertise(nic.subnet)
    wait_until_healthy(lab)
    assert defaults(lab) == before
    assert all(lab.reachability().values())


def test_forwarding_with_accept_ra_2_changes_nothing(ipv6_lab: Lab) -> None:
    lab, before = ipv6_lab, defaults(ipv6_lab)
    for nic in lab.nics:
        sysctl(lab, nic.name, "accept_ra", 2)
    sysctl(lab, "all", "forwarding", 1)
    assert refresh(lab) == "ok"
    assert defaults(lab) == before
    assert all(lab.reachability().values())


def test_start_with_forwarding_on_finds_the_router_by_neighbours() -> None:
    with Lab(Spec.cloud("aws", interfaces=3, addresses=2, ipv6=2)) as lab:
        lab.batch([f"link set {nic.name} up" for nic in lab.nics])
        learned = ["ip", "-6", "route", "show", "default", "proto", "ra"]
        lab.wait_for(lambda: lab.run(learned).stdout.count("fe80::1") == 3, message="every link's router")
        sysctl(lab, "all", "forwarding", 1)
        assert lab.run(learned).stdout == ""
        start(lab)
        lab.wait_for(lambda: set(lab.addresses6) <= kernel_addresses(lab), 15, "the addresses")
        lab.wait_for(lambda: all(lab.reachability().values()), 15, "every address to answer")
        assert refresh(lab) == "degraded"
        assert "accept_ra=2" in str(status(lab)["last_error"]["message"])


def test_refused_removal_does_not_block_other_changes() -> None:
    """A route of an operator has the removed address as its preferred source."""
    with running_lab(Spec.aws(interfaces=3, addresses=3), "", "netagent", "fetcher") as lab:
        nic, other = lab.nics[1], lab.nics[2]
        kept = nic.addresses[1]
        route = f"192.0.2.0/24 via {nic.gateway} dev {nic.name} src {kept} proto static"
        lab.batch([f"route add {route}"])
        lab.remove_address(nic.mac, kept)
        lab.add_address(nic.mac, "10.0.2.77")
        lab.add_address(other.mac, "10.0.3.77")
        assert refresh(lab) == "degraded"
        lab.wait_for(lambda: {"10.0.2.77", "10.0.3.77"} <= kernel_addresses(lab), 20, "the other changes")
        assert kept in kernel_addresses(lab)
        message = status(lab)["last_error"]["message"]
        assert f"the route to 192.0.2.0/24 in table 254 depends on {kept}" in message
        lab.batch([f"route del {route}"])
        lab.wait_for(lambda: kept not in kernel_addresses(lab), 90, "the removal after the route")
        lab.wait_for(lambda: is_healthy(lab), 20, "state ok")
