"""Links of Exclude=: nothing may be added, owned objects may be removed, and their routes are not the cloud's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.system.netagent.conftest import start
from tests.system.netagent.identities import UserWire
from tests.system.netagent.packets import PacketObservers, packet_observers
from tests.system.netagent.wire import CONFIG, Wire, address, ifindex, main_rule, route, rule


@pytest.mark.parametrize("pattern", ["eth0", "e*0", "eth[0]", "MAC"])
def test_excluded_link_loses_our_objects_and_gets_none(lab: Lab, pattern: str) -> None:
    on, text = ifindex(lab, "eth0"), "10.0.2.10/24"
    with Wire(lab) as wire:
        added = [address(on, text), route(on, "0.0.0.0/0", "10.0.2.1"), rule("10.0.2.10", 9999 + on)]
        assert wire.apply(*added)["verdict"] == "applied"
    lab.stop("netagent")
    lab.write_config(f'[Network]\nExclude = "{lab.nic("eth0").mac if pattern == "MAC" else pattern}"\n{CONFIG}')
    start(lab)
    with Wire(lab) as wire:
        more = [address(on, "10.0.2.11/32"), route(on, "10.9.0.0/16", "10.0.2.1"), rule("10.0.2.10", 9999 + on, 31020)]
        for op in more:
            assert wire.apply(op)["reason"] == "eth0 is excluded"
        removed = [
            rule("10.0.2.10", 9999 + on, op="rule_remove"),
            route(on, "0.0.0.0/0", "10.0.2.1", op="route_remove"),
            address(on, text, "address_remove"),
        ]
        assert wire.apply(*removed)["verdict"] == "applied"


@pytest.fixture(scope="module")
def excluded_lab() -> Iterator[Lab]:
    """A lab in which an operator excludes eth0, and routes other networks through it."""
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(f'[Network]\nExclude = "eth0"\n{CONFIG}')
        lab.run(["nft", "flush", "table", "bridge", "cloud"], "cloud")
        for namespace in lab.neighbours:
            namespace.batch(["address add fd00:2::fa/64 dev eth0 nodad"])
            theirs = ("10.201.0.5/32", "10.201.5.7/32", "10.201.0.7/32", "fd00:201::7/128", "fd00:201:0:5::7/128")
            namespace.batch([f"address add {each} dev eth0" for each in theirs])
        lab.cloud.run(["sysctl", "-qw", "net.ipv6.conf.sn1.disable_ipv6=0"])
        lab.cloud.batch(["address add fd00:2::1/64 dev sn1 nodad"])
        lab.batch(
            [
                "link set eth0 up",
                "address add 10.0.2.10/24 dev eth0",
                "address add fd00:2::10/64 dev eth0 nodad",
                "address add fd00:1::10/64 dev eth1 nodad",
                "route add 10.201.0.0/16 via 10.0.2.250",
                "route add fd00:201::/48 via fd00:2::fa",
                "route add 10.202.0.0/16 via 10.0.2.1",
                "route add fd00:202::/48 via fd00:2::1",
            ]
        )
        start(lab)
        yield lab


@pytest.fixture(scope="module")
def seen(excluded_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PacketObservers]:
    namespaces = [excluded_lab.cloud, *excluded_lab.neighbours]
    with packet_observers(excluded_lab, namespaces, tmp_path_factory.mktemp("excluded")) as found:
        yield found


@pytest.mark.parametrize(
    ("text", "destination", "receiver"),
    [
        ("10.201.5.5/24", "10.201.5.7", "neighbour1"),
        ("10.201.0.7/32", "10.201.0.7", "neighbour1"),
        ("10.0.2.250/32", "10.0.2.250", "neighbour1"),
        ("fd00:201:0:5::5/64", "fd00:201:0:5::7", "neighbour1"),
        ("fd00:201::7/128", "fd00:201::7", "neighbour1"),
        ("fd00:2::fa/128", "fd00:2::fa", "neighbour1"),
        # Through the first host of the subnet, which is a router on the cloud's links.
        ("10.202.5.5/24", "10.202.5.7", "cloud"),
        ("10.202.0.7/32", "10.202.0.7", "cloud"),
        ("fd00:202:0:5::5/64", "fd00:202:0:5::7", "cloud"),
        ("fd00:202::7/128", "fd00:202::7", "cloud"),
    ],
)
def test_no_link_takes_what_an_excluded_link_routes(
    excluded_lab: Lab, seen: PacketObservers, text: str, destination: str, receiver: str
) -> None:
    before = seen.receivers(destination)
    with UserWire(excluded_lab) as wire:
        answer = wire.apply(address(ifindex(excluded_lab, "eth1"), text))
        after = seen.receivers(destination)
        wire.ask(request="flush", id="after")
    assert before == {receiver}
    assert (answer["verdict"], after) == ("refused", before)


def test_an_excluded_links_subnet_is_reached_by_the_gateway(excluded_lab: Lab, seen: PacketObservers) -> None:
    """Each link's table has the subnets of the other links, also of excluded ones."""
    on = ifindex(excluded_lab, "eth1")
    leads = main_rule(), rule("10.0.1.10", 9999 + on)
    with UserWire(excluded_lab) as wire:
        answer = wire.apply(route(on, "10.0.2.0/24", "10.0.1.1"), *leads)
        arrived = seen.arrivals("10.0.2.250", "10.0.1.10")
        wire.ask(request="flush", id="after")
    assert (answer["verdict"], arrived) == ("applied", {"cloud:sn0", "neighbour1:eth0"})


def test_a_leased_subnet_of_an_excluded_link_may_be_shared(excluded_lab: Lab) -> None:
    """A cloud may have several interfaces in one subnet, with one excluded."""
    shared = address(ifindex(excluded_lab, "eth1"), "10.0.2.60/32") | {"route": False}
    with Wire(excluded_lab) as wire:
        assert "10.0.2.0/24" in wire.apply(shared)["reason"]
        excluded_lab.batch(["address change 10.0.2.10/24 dev eth0 valid_lft 3600 preferred_lft 3600"])
        assert wire.apply(shared)["verdict"] == "applied"
        wire.ask(request="flush", id="after")
    excluded_lab.batch(["address change 10.0.2.10/24 dev eth0 valid_lft forever preferred_lft forever"])


def test_a_subnet_that_both_links_have_may_be_shared(excluded_lab: Lab) -> None:
    shared = address(ifindex(excluded_lab, "eth1"), "10.0.1.60/32") | {"route": False}
    excluded_lab.batch(["address add 10.0.1.77/24 dev eth0"])
    with Wire(excluded_lab) as wire:
        assert wire.apply(shared)["verdict"] == "applied"
        wire.ask(request="flush", id="after")
    excluded_lab.batch(["address delete 10.0.1.77/24 dev eth0"])
