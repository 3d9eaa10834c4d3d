"""Regression tests for errors found by the state machine and the fuzzer; in most, the kernel removes more than
netagent requested.
"""

from __future__ import annotations

import pytest

from tests.lab import Lab
from tests.system.netagent.wire import Wire, address, ifindex, kernel_state, route

known = pytest.mark.xfail(strict=True, reason="the kernel removes routes with the last address")


def test_flush_removes_two_addresses_of_one_subnet(lab: Lab, wire: Wire) -> None:
    """Without promote_secondaries the kernel removes the second address with the first; its own removal then fails
    with EADDRNOTAVAIL.
    """
    before, on = kernel_state(lab), ifindex(lab, "eth0")
    assert wire.apply(address(on, "10.0.2.10/24"), address(on, "10.0.2.12/24"))["verdict"] == "applied"
    assert wire.ask(request="flush", id="flush")["verdict"] == "applied"
    assert kernel_state(lab) == before


def test_rollback_restores_the_secondary_address_of_a_subnet(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    assert wire.apply(address(on, "10.0.2.10/24"), address(on, "10.0.2.12/24"))["verdict"] == "applied"
    gone = address(on, "10.0.2.10/24", "address_remove")
    assert wire.apply(gone)["reason"] == "10.0.2.12 is a secondary address of 10.0.2.10 and may go with it"
    first = address(on, "10.0.2.12/24", "address_remove")
    assert wire.apply(first, gone, confirm_within=60, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
    shown = kernel_state(lab)["addresses"]
    assert ("10.0.2.10/24" in shown, "10.0.2.12/24" in shown) == (True, True)


def test_rollback_of_the_only_address_keeps_an_operators_route(lab: Lab, wire: Wire) -> None:
    """The kernel removes a link's IPv4 routes with its last IPv4 address (fib_disable_ip, fib_frontend.c)."""
    lab.batch(["route add 192.168.9.0/24 dev eth0"])
    on = ifindex(lab, "eth0")
    added = wire.apply(address(on, "10.0.2.10/24"), confirm_within=60, request="open")
    assert added["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
    assert "192.168.9.0/24" in kernel_state(lab)["routes"]


@known
def test_rollback_of_the_only_address_keeps_our_routes(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    assert wire.apply(route(on, "10.77.0.0/24", table=255))["verdict"] == "applied"
    before = kernel_state(lab)
    assert wire.apply(address(on, "10.0.2.10/24"), confirm_within=60, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
    assert kernel_state(lab) == before


def test_mtu_below_1280_keeps_ipv6_routes(lab: Lab, wire: Wire) -> None:
    """Below 1280 the kernel disables IPv6 on the link and removes its routes, with or without an address."""
    lab.batch(["link add spare type veth peer name spare1", "link set spare addrgenmode none", "link set spare up"])
    lab.run(["ip", "-6", "route", "add", "fd00:9::/64", "dev", "spare", "metric", "7"])
    before = kernel_state(lab)["routes6"]
    answer = wire.apply({"op": "link_mtu", "link": ifindex(lab, "spare"), "mtu": 576})
    assert "fd00:9::/64" in kernel_state(lab)["routes6"], (answer, before)


def test_a_containers_address_is_not_taken_over(lab: Lab, wire: Wire) -> None:
    """On a cloud's link, the address would attract the host's packets to the container behind the bridge."""
    lab.batch(["link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0", "link set docker0 up"])
    assert wire.apply(address(ifindex(lab, "eth0"), "172.17.0.33/32"))["verdict"] == "refused"


def test_failed_route_replacement_leaves_nothing(lab: Lab, wire: Wire) -> None:
    """To undo the second route, netagent would add the first, which the kernel never accepted: its link is down."""
    lab.batch(["link add spare type veth peer name spare1"])
    first, second = (route(ifindex(lab, name), "fd00:7::/80", table=255) for name in ("spare", "eth0"))
    before = kernel_state(lab)
    assert "twice in one request" in wire.apply(first, second)["reason"]
    assert kernel_state(lab) == before


def test_route_is_changed_once_in_a_request(lab: Lab, wire: Wire) -> None:
    """The rollback took a route that the request had removed and added again for the request's own."""
    on = ifindex(lab, "eth0")
    out = route(on, "10.5.0.0/24")
    assert wire.apply(out)["verdict"] == "applied"
    answer = wire.apply(address(on, "10.5.0.9/24"), {**out, "op": "route_remove"}, out)
    assert (answer["position"], answer["reason"]) == (2, "the route to 10.5.0.0/24 twice in one request")
