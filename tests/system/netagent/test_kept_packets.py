"""Removals, flushes and rollbacks, seen from the neighbours: what other programs added goes on working.

The primary is eth1 (10.0.1.10/24, with the default routes). The secondary, eth0, is up and has no address; neighbour1
is in its subnet, in which the lab's filter is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Lab, Spec
from tests.system.netagent.conftest import start
from tests.system.netagent.identities import UserWire
from tests.system.netagent.packets import PacketObservers, packet_observers
from tests.system.netagent.wire import CONFIG, Wire, address, ifindex, route

BEYOND = "198.51.100.10"


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.run(["nft", "flush", "table", "bridge", "cloud"], "cloud")
        lab.cloud.batch(["address add fe80::fe/64 dev sn0 nodad"])
        lab.batch(["link set eth0 up", "route add default via fe80::fe dev eth1 proto ra"])
        start(lab)
        yield lab


@pytest.fixture
def lab(module_lab: Lab) -> Iterator[Lab]:
    """The lab. Afterwards remove the test's and netagent's objects from it.

    The kernel keeps the route of a prefix with a lifetime when it removes the address.
    """
    yield module_lab
    clean = "ip route flush proto static; ip address flush dev eth0 scope global; ip -6 route flush root fd00::/8"
    module_lab.run(["sh", "-c", f"{clean}; ip link set eth0 up"])
    with Wire(module_lab) as wire:
        wire.ask(request="flush", id="after")


@pytest.fixture(scope="module")
def seen(module_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PacketObservers]:
    namespaces = [module_lab.cloud, *module_lab.neighbours]
    with packet_observers(module_lab, namespaces, tmp_path_factory.mktemp("kept")) as found:
        yield found


def flush(lab: Lab) -> dict[str, Any]:
    """Flush as root."""
    with Wire(lab) as wire:
        return wire.ask(request="flush", id="flush")


# A flush by root, after requests that once disabled it


def test_flush_removes_a_range_whose_address_was_requested(lab: Lab, seen: PacketObservers) -> None:
    """The kernel's local route of the address has the same destination. The link keeps an operator's address."""
    on, host = ifindex(lab, "eth0"), "10.9.0.5"
    lab.batch(["address add 10.0.2.20/32 dev eth0"])
    before = seen.receivers(host)
    with UserWire(lab) as wire:
        assert wire.apply(route(on, f"{host}/32", table=255))["verdict"] == "applied"
        taken = seen.receivers(host)
        wire.apply(address(on, f"{host}/32"))
    flush(lab)
    assert (before, taken, seen.receivers(host)) == ({"cloud"}, set(), {"cloud"})


def test_flush_removes_a_range_beside_an_operators_secondary(lab: Lab, seen: PacketObservers) -> None:
    on, host = ifindex(lab, "eth0"), "10.9.0.5"
    with UserWire(lab) as wire:
        ops = [address(on, "10.0.2.10/24"), route(on, f"{host}/32", table=255)]
        assert wire.apply(*ops)["verdict"] == "applied"
    lab.batch(["address add 10.0.2.60/24 dev eth0"])
    taken = seen.receivers(host)
    answer = flush(lab)
    assert (taken, seen.receivers(host)) == (set(), {"cloud"})
    assert answer["done"] == 1, "the operator's secondary needs the address"


def test_flush_removes_ipv6_beside_a_temporary_address(lab: Lab, seen: PacketObservers) -> None:
    """A neighbour has the address afterwards."""
    on, host = ifindex(lab, "eth0"), "fd00:9::5"
    lab.run(["sysctl", "-qw", "net.ipv6.conf.eth0.use_tempaddr=2"])
    with UserWire(lab) as wire:
        assert wire.apply(address(on, f"{host}/64"))["verdict"] == "applied"
    lab.batch(["address add fd00:9::60/64 dev eth0 mngtmpaddr nodad valid_lft 3600 preferred_lft 3600"])
    shown = "ip -6 address show dev eth0"
    lab.wait_for(lambda: " temporary " in (text := lab.run(shown.split()).stdout) and "tentative" not in text)
    lab.neighbours[1].batch([f"address add {host}/64 dev eth0 nodad"])
    taken = seen.receivers(host)
    flush(lab)
    assert (taken, seen.receivers(host)) == (set(), {"neighbour1"})


# Routes of an operator that the kernel would remove with an address, or with the link's state


NETWORKS = ("198.51.100.0/25", "192.0.2.0/24", "203.0.113.0/24")
OPERATORS = [f"route add {network} via 10.0.2.1 dev eth0 onlink proto static" for network in NETWORKS]
BY_SECONDARY = {"cloud:sn1"}


@pytest.mark.parametrize("how", ["removed and added again", "rollback", "flush"])
def test_operators_routes_outlive_the_last_address(lab: Lab, seen: PacketObservers, how: str) -> None:
    on, own = ifindex(lab, "eth0"), "10.0.2.10/24"
    with UserWire(lab) as wire:
        seconds = 60 if how == "rollback" else 0
        assert wire.apply(address(on, own), confirm_within=seconds, request="open")["verdict"] == "applied"
        lab.batch(OPERATORS)
        before = seen.arrivals(BEYOND)
        if how == "rollback":
            answer = wire.ask(request="rollback", id="open")
        elif how == "flush":
            answer = wire.ask(request="flush", id="flush")
        else:
            answer = wire.apply(address(on, own, "address_remove"), address(on, own))
    assert (before, seen.arrivals(BEYOND)) == (BY_SECONDARY, BY_SECONDARY)
    if how == "removed and added again":
        assert answer["verdict"] == "refused"
    else:
        assert [each["op"] for each in answer["not_undone"]] == ["address_remove"]


@pytest.mark.parametrize("operator", [["address add 10.0.2.30/24 dev eth0", *OPERATORS], OPERATORS])
def test_operators_routes_outlive_a_rolled_back_link_up(lab: Lab, seen: PacketObservers, operator: list[str]) -> None:
    """With the operator's address, and with one that was there before."""
    on = ifindex(lab, "eth0")
    lab.batch(["address add 10.0.2.20/32 dev eth0", "link set eth0 down"])
    with UserWire(lab) as wire:
        up = {"op": "link_up", "link": on}
        assert wire.apply(up, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch(operator)
        before = seen.arrivals(BEYOND)
        answer = wire.ask(request="rollback", id="open")
    assert (before, seen.arrivals(BEYOND)) == (BY_SECONDARY, BY_SECONDARY)
    assert [each["op"] for each in answer["not_undone"]] == ["link_down"]


# Protected addresses


@pytest.mark.parametrize(("own", "gateway"), [("10.0.2.10/24", "10.0.2.1/32"), ("fd00:2::10/64", "fd00:2::1/128")])
def test_our_former_gateway_is_reached_after_a_flush(lab: Lab, seen: PacketObservers, own: str, gateway: str) -> None:
    """The address is protected until the next boot: rules and routes may come back at any time."""
    on, everything, host = ifindex(lab, "eth0"), "::/0" if ":" in own else "0.0.0.0/0", gateway.partition("/")[0]
    before = seen.receivers(host)
    with UserWire(lab) as wire:
        assert wire.apply(address(on, own), route(on, everything, host))["verdict"] == "applied"
        wire.ask(request="flush", id="flush")
        answer = wire.apply(address(on, gateway))
        after = seen.receivers(host)
    assert (answer["verdict"], before, after) == ("refused", {"cloud"}, {"cloud"})
