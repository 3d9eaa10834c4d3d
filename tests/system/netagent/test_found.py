"""What the state machine and the fuzzer found, each by itself; mostly the kernel removes more than it was asked to."""

from __future__ import annotations

import pytest

from tests.lab import Lab
from tests.system.netagent.wire import Wire, address, ifindex, kernel_state, route

known = pytest.mark.xfail(strict=True, reason="found by test_machine.py: the kernel does it with a last address")


def test_a_flush_takes_away_two_addresses_of_one_subnet(lab: Lab, wire: Wire) -> None:
    """Without promote_secondaries the second goes with the first, and its own removal then fails with EADDRNOTAVAIL."""
    before, on = kernel_state(lab), ifindex(lab, "eth0")
    assert wire.apply(address(on, "10.0.2.10/24"), address(on, "10.0.2.12/24"))["verdict"] == "applied"
    assert wire.ask(request="flush", id="flush")["verdict"] == "applied"
    assert kernel_state(lab) == before


def test_taking_back_brings_the_second_address_of_a_subnet_back_too(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    assert wire.apply(address(on, "10.0.2.10/24"), address(on, "10.0.2.12/24"))["verdict"] == "applied"
    gone = address(on, "10.0.2.10/24", "address_remove")
    assert wire.apply(gone)["reason"] == "10.0.2.12 may go with 10.0.2.10"
    first = address(on, "10.0.2.12/24", "address_remove")
    assert wire.apply(first, gone, confirm_within=60, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
    shown = kernel_state(lab)["addresses"]
    assert ("10.0.2.10/24" in shown, "10.0.2.12/24" in shown) == (True, True)


def test_an_operators_route_stays_when_the_only_address_of_its_link_is_taken_back(lab: Lab, wire: Wire) -> None:
    """The kernel removes a link's IPv4 routes with its last IPv4 address (fib_disable_ip, fib_frontend.c)."""
    lab.batch(["route add 192.168.9.0/24 dev eth0"])
    on = ifindex(lab, "eth0")
    added = wire.apply(address(on, "10.0.2.10/24"), confirm_within=60, request="open")
    assert added["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
    assert "192.168.9.0/24" in kernel_state(lab)["routes"]


@known
def test_our_own_routes_stay_when_the_only_address_of_their_link_is_taken_back(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    assert wire.apply(route(on, "10.77.0.0/24", table=255))["verdict"] == "applied"
    before = kernel_state(lab)
    assert wire.apply(address(on, "10.0.2.10/24"), confirm_within=60, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
    assert kernel_state(lab) == before


def test_an_mtu_that_ipv6_cannot_have_leaves_ipv6_routes(lab: Lab, wire: Wire) -> None:
    """Below 1280 the kernel takes IPv6 off the link, its routes with it, whether or not there is an address."""
    lab.batch(["link add spare type veth peer name spare1", "link set spare addrgenmode none", "link set spare up"])
    lab.run(["ip", "-6", "route", "add", "fd00:9::/64", "dev", "spare", "metric", "7"])
    before = kernel_state(lab)["routes6"]
    answer = wire.apply({"op": "link_mtu", "link": ifindex(lab, "spare"), "mtu": 576})
    assert "fd00:9::/64" in kernel_state(lab)["routes6"], (answer, before)


def test_a_containers_address_is_not_taken_over(lab: Lab, wire: Wire) -> None:
    """Found by fuzzing: on a cloud's link it would draw in what the host sends to the container behind the bridge."""
    lab.batch(["link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0", "link set docker0 up"])
    assert wire.apply(address(ifindex(lab, "eth0"), "172.17.0.33/32"))["verdict"] == "refused"


def test_nothing_is_left_when_the_route_that_was_to_be_replaced_failed(lab: Lab, wire: Wire) -> None:
    """The way back of the second is to put the first there again, which the kernel never took: that link is down."""
    lab.batch(["link add spare type veth peer name spare1"])
    first, second = (route(ifindex(lab, name), "fd00:7::/80", table=255) for name in ("spare", "eth0"))
    before = kernel_state(lab)
    assert "twice in one request" in wire.apply(first, second)["reason"]
    assert kernel_state(lab) == before
