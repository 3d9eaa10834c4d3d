"""Requests with side effects in the kernel on foreign addresses and routes."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from errno import EINVAL
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, Spec
from tests.system.netagent.conftest import start
from tests.system.netagent.wire import CONFIG, Wire, address, audit_lines, ifindex, kernel_state, main_rule, route, rule

RUNTIME = "/run/cloud-network-netagent"


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.batch(
            [
                "link set eth0 up",
                "link add vpn type bridge",
                "address add 10.50.0.1/24 dev vpn",
                "link set vpn up",
            ]
        )
        start(lab)
        yield lab


@pytest.fixture
def lab(module_lab: Lab) -> Iterator[Lab]:
    """The lab with one owned address on eth0. Afterwards remove all objects of netagent and of the test from it."""
    with Wire(module_lab) as wire:
        assert wire.apply(address(ifindex(module_lab, "eth0"), "10.0.2.10/24"))["verdict"] == "applied"
    yield module_lab
    sh(module_lab, "ip link delete spare 2>&1; ip route flush proto static")
    sh(module_lab, "ip -6 route flush proto static; ip -6 route flush proto ra")
    with Wire(module_lab) as wire:
        wire.ask(request="flush", id="after")
    sh(module_lab, "ip address flush dev eth0 scope global; ip route flush table 10001; ip -6 route flush table 10001")


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    with Wire(lab) as wire:
        yield wire


def sh(lab: Lab, commands: str) -> str:
    return lab.run(["sh", "-c", commands], check=False).stdout


def get(lab: Lab, destination: str) -> str:
    """Return the kernel's route for packets from the host to an address."""
    return lab.run(["ip", "-o", "route", "get", destination]).stdout.partition(" uid")[0]


def apply(wire: Wire, *ops: dict[str, Any]) -> None:
    answer = wire.apply(*ops)
    assert answer["verdict"] == "applied", answer


def reason(wire: Wire, *ops: dict[str, Any]) -> str:
    answer = wire.apply(*ops)
    assert answer["verdict"] == "refused", answer
    return str(answer["reason"])


# — addresses and routes that the kernel removes with an address


def test_a_rollback_keeps_a_secondary_of_another_program(lab: Lab) -> None:
    """Without promote_secondaries the kernel removes the secondary with the first address of its subnet."""
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        answer = wire.apply(address(on, "10.9.2.10/24"), confirm_within=60, request="open")
        assert answer["verdict"] == "applied"
        lab.batch(["address add 10.9.2.77/24 dev eth0"])
        left = wire.ask(request="rollback", id="open")["not_undone"]
    assert [each["reason"] for each in left] == ["10.9.2.77 is a secondary address of 10.9.2.10 and may go with it"]
    assert "10.9.2.77/24" in kernel_state(lab)["addresses"]


def test_a_secondary_of_the_same_request_is_known_as_one(lab: Lab, wire: Wire) -> None:
    """Otherwise the kernel would remove the second address with the first, and then all routes of the link."""
    spare = spare_link(lab)
    lab.batch(["route add 10.77.0.0/16 dev spare proto static"])
    first, second = address(spare, "10.9.3.10/24"), address(spare, "10.9.3.11/24")
    assert "may go with" in reason(wire, first, second, address(spare, "10.9.3.10/24", "address_remove"))
    assert "10.77.0.0/16" in kernel_state(lab)["routes"]


@pytest.mark.parametrize("text", ["10.8.2.66/24", "fd00:8::66/64"])
def test_a_later_foreign_address_gets_its_connected_route(lab: Lab, wire: Wire, text: str) -> None:
    """Beside an IPv4 address of ours without that route it would be a secondary, for which the kernel adds none."""
    on, host = ifindex(lab, "eth0"), text.partition("/")[0]
    quiet = {**address(on, text), "route": False}
    theirs, near = (text.replace("66", each) for each in ("10", "77"))
    assert "without its connected route must be a /" in reason(wire, quiet)
    apply(wire, {**address(on, host + ("/128" if ":" in host else "/32")), "route": False})
    sh(lab, f"sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1; ip address add {theirs} dev eth0 nodad")
    for _ in range(2):  # the second time, it is renewed
        assert f"{near.partition('/')[0]} " in get(lab, near.partition("/")[0])
        assert "dev eth0 " in get(lab, near.partition("/")[0])
        assert " via " not in get(lab, near.partition("/")[0])
        sh(lab, f"ip address delete {theirs} dev eth0; ip address add {theirs} dev eth0 nodad")
    assert wire.ask(request="flush", id="flush").get("not_undone") is None
    assert " via " not in get(lab, near.partition("/")[0])
    sh(lab, f"sysctl -qw net.ipv4.conf.eth0.promote_secondaries=0; ip address delete {theirs} dev eth0")


def spare_link(lab: Lab) -> int:
    sh(lab, "ip link delete spare; ip link add spare type veth peer name spare1; ip link set spare1 up")
    lab.batch(["link set spare up"])
    return ifindex(lab, "spare")


def check_address_stays(lab: Lab, wire: Wire, how: str, added: str, foreign: str, named: str) -> None:
    """Add an address, then an object of another program that depends on it: the address can then not be removed."""
    on = ifindex(lab, "eth0")
    add = wire.apply(address(on, added), confirm_within=60 if how == "roll back" else 0, request="open")
    assert add["verdict"] == "applied"
    lab.batch([foreign])
    if how == "remove":
        assert named in reason(wire, address(on, added, "address_remove"))
    else:
        assert len(wire.ask(request="rollback", id="open")["not_undone"]) == 1


@pytest.mark.parametrize("how", ["remove", "roll back"])
def test_a_vpn_route_that_prefers_our_address_stays(lab: Lab, wire: Wire, how: str) -> None:
    foreign = "route add 10.60.0.0/16 dev vpn src 10.0.2.11 proto static"
    check_address_stays(lab, wire, how, "10.0.2.11/32", foreign, "10.60.0.0/16")
    assert "dev vpn" in get(lab, "10.60.0.1")


KERNELS_PROTOCOL = {
    "by a VPN": "10.60.0.0/16 dev vpn src 10.9.9.5 scope link proto kernel",
    "by a neighbour": "10.60.0.0/16 via 10.9.9.77 proto kernel",
    "on link": "10.60.0.0/16 dev eth0 proto kernel",
    "on link, by the address": "10.60.0.0/16 dev eth0 proto kernel scope link src 10.9.9.5",
    "of a router advertisement": "10.60.0.0/16 via 10.9.9.77 proto ra",
    "on link, with another metric": "10.9.9.0/24 dev eth0 proto kernel scope link src 10.9.9.5 metric 100",
    "AnyIP": "local 10.60.0.0/16 dev eth0 proto kernel src 10.9.9.5",
    "AnyIP, one address": "local 10.60.0.0/32 dev eth0 proto kernel src 10.9.9.5",
}


@pytest.mark.parametrize("how", ["remove", "roll back"])
@pytest.mark.parametrize("way", KERNELS_PROTOCOL)
def test_a_route_with_the_kernels_protocol_stays(lab: Lab, wire: Wire, how: str, way: str) -> None:
    """Cilium, for example, adds routes with the protocol `kernel`; the kernel does not restore them, nor IPv4 `ra`."""
    apply(wire, address(ifindex(lab, "eth0"), "10.0.2.10/24", "address_remove"))
    foreign = f"route add {KERNELS_PROTOCOL[way]}"
    network = re.findall(r"10\.[0-9.]+", foreign)[0]
    check_address_stays(lab, wire, how, "10.9.9.5/24", foreign, f"{network}/")
    assert network in sh(lab, "ip route show table all")
    sh(lab, f"ip route delete {KERNELS_PROTOCOL[way]}")


@pytest.mark.parametrize("protocol", ["static", "ra"])
def test_an_ipv6_route_keeps_the_source_it_prefers(lab: Lab, wire: Wire, protocol: str) -> None:
    on = ifindex(lab, "eth0")
    apply(wire, address(on, "fd00:2::10/128"))
    sh(lab, "ip -6 route add fd00:60::/48 dev eth0 src fd00:2::10 proto " + protocol)
    assert "fd00:60::/48" in reason(wire, address(on, "fd00:2::10/128", "address_remove"))
    assert "src fd00:2::10" in sh(lab, "ip -6 route show fd00:60::/48")
    sh(lab, "ip -6 route delete fd00:60::/48")


PREFIX_ROUTES = {
    "NetworkManager's": "proto ra metric 100",
    "one with the kernel's metric": "proto static metric 256",
    "a router's": "proto kernel metric 256 expires 1800",
    "a router's, with infinite lifetime": "proto kernel metric 256",
}


@pytest.mark.parametrize("whose", PREFIX_ROUTES)
@pytest.mark.parametrize("prefix", ["fd00:abc::/64", "fd00:abc::5/128"])
def test_an_ipv6_prefix_route_of_others_stays(lab: Lab, wire: Wire, prefix: str, whose: str) -> None:
    """The kernel would remove it with an owned address; a router's would meanwhile not count as learned."""
    own = address(ifindex(lab, "eth0"), f"fd00:abc::5/{prefix.partition('/')[2]}")
    sh(lab, f"ip -6 route add {prefix} dev eth0 {PREFIX_ROUTES[whose]}")
    assert f"another program routes {prefix}" in reason(wire, own)
    apply(wire, {**own, "prefix": 128, "route": False})
    sh(lab, f"ip -6 route flush {prefix}")


def test_no_ipv6_prefix_route_of_ours_stays_behind(lab: Lab, wire: Wire) -> None:
    """For another address without a connected route, the kernel keeps the route of a removed address."""
    lab.batch(["address add fd00:ad::a/64 dev eth0 noprefixroute nodad"])
    assert "no connected route of its own" in reason(wire, address(ifindex(lab, "eth0"), "fd00:ad::5/64"))
    apply(wire, address(ifindex(lab, "eth0"), "fd00:ad::5/128"))


WITHOUT_ROUTE = {
    "removed": "address add fd00:ad::a/64 dev eth0 nodad\nroute delete fd00:ad::/64 dev eth0",
    "with another metric": "address add fd00:ad::a/64 dev eth0 metric 1024 nodad",
    "in another table": "address add fd00:ad::a/64 dev eth0 nodad\nroute delete fd00:ad::/64 dev eth0\n"
    "route add fd00:ad::/64 dev eth0 table 100",
}


@pytest.mark.parametrize("how", WITHOUT_ROUTE)
def test_an_ipv6_address_whose_route_is_gone_gets_none(lab: Lab, wire: Wire, how: str) -> None:
    """The kernel would keep the route of our address after its removal, also after a flush."""
    lab.batch(WITHOUT_ROUTE[how].splitlines())
    before = sh(lab, "ip -6 route show table all fd00:ad::/64")
    assert "no connected route of its own" in reason(wire, address(ifindex(lab, "eth0"), "fd00:ad::5/64"))
    assert sh(lab, "ip -6 route show table all fd00:ad::/64") == before
    sh(lab, "ip -6 address delete fd00:ad::a/64 dev eth0; ip -6 route flush table 100")


ADVERTISE = """
import socket, struct, sys
interface, prefix, flags = sys.argv[1:]
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    option = struct.pack("!BBBBIII", 3, 4, 64, int(flags), 3600, 3600, 0) + socket.inet_pton(socket.AF_INET6, prefix)
    sock.sendto(advertisement + option, ("ff02::1", 0, 0, socket.if_nametoindex(interface)))
"""
AUTONOMOUS = 0x40  # without 0x80, on link (RFC 4861, 4.6.2)


def test_a_prefix_that_is_not_on_link_stays_behind_the_router(lab: Lab, wire: Wire) -> None:
    """The kernel takes the router's address for a user of our connected route, and keeps that route for it."""
    on = ifindex(lab, "eth0")
    sh(lab, "sysctl -qw net.ipv6.conf.eth0.accept_ra=2")
    lab.cloud.run(["sysctl", "-qw", "net.ipv6.conf.sn1.disable_ipv6=0"])
    lab.cloud.batch(["address add fe80::a1/64 dev sn1 nodad"])
    try:
        lab.cloud.run([sys.executable, "-I", "-S", "-c", ADVERTISE, "sn1", "fd00:aaaa::", str(AUTONOMOUS)])
        lab.wait_for(lambda: "fd00:aaaa::" in sh(lab, "ip -6 address show dev eth0 -tentative"))
        assert "via fe80::a1" in get(lab, "fd00:aaaa::7")
        assert "no connected route of its own" in reason(wire, address(on, "fd00:aaaa::5/64"))
        apply(wire, address(on, "fd00:aaaa::5/128"))
        assert "via fe80::a1" in get(lab, "fd00:aaaa::7")
    finally:
        lab.cloud.batch(["address delete fe80::a1/64 dev sn1"])
        sh(lab, "sysctl -qw net.ipv6.conf.eth0.accept_ra=0; ip -6 route delete default dev eth0 proto ra")


@pytest.mark.parametrize("how", ["remove", "roll back"])
def test_an_ipv6_prefix_route_instead_of_the_kernels_stays(lab: Lab, wire: Wire, how: str) -> None:
    """The kernel removes the first route to the prefix, whatever its metric, if its own is missing."""
    foreign = (
        "route delete fd00:ae::/64 dev eth0",
        "route add fd00:ae::/64 dev eth0 proto static metric 1024",
    )
    check_address_stays(lab, wire, how, "fd00:ae::5/64", "\n".join(foreign), "fd00:ae::/64")
    assert "metric 1024" in sh(lab, "ip -6 route show fd00:ae::/64")


def test_ipv6_prefix_route_beside_the_kernels_blocks_no_removal(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    sh(lab, "ip -6 route add fd00:af::/64 dev eth0 proto static metric 1024")
    apply(wire, address(on, "fd00:af::5/64"))
    apply(wire, address(on, "fd00:af::5/64", "address_remove"))
    assert "metric 1024" in sh(lab, "ip -6 route show fd00:af::/64")


def test_an_ipv6_prefix_route_that_came_later_stays(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    apply(wire, address(on, "fd00:ac::5/64"))
    sh(lab, "ip -6 route add fd00:ac::/64 dev eth0 proto ra metric 100")
    assert "fd00:ac::/64" in reason(wire, address(on, "fd00:ac::5/64", "address_remove"))
    assert "proto ra" in sh(lab, "ip -6 route show fd00:ac::/64")


def test_an_mtu_without_ipv6_does_not_come_back(lab: Lab, wire: Wire) -> None:
    """Below 1280 the kernel would remove IPv6 addresses and routes that an operator has added since."""
    spare = spare_link(lab)
    lab.batch(["link set spare mtu 1000"])
    raised = wire.apply({"op": "link_mtu", "link": spare, "mtu": 1500}, confirm_within=60, request="open")
    assert raised["verdict"] == "applied"
    lab.batch(["address add fd00:77::1/64 dev spare"])
    assert len(wire.ask(request="rollback", id="open")["not_undone"]) == 1
    assert "fd00:77::1/64" in kernel_state(lab)["addresses"]


def test_the_mtu_of_a_link_that_is_gone_is_reported(lab: Lab, wire: Wire) -> None:
    """It may have been moved to a container's namespace, with the changed MTU."""
    raise_mtu = {"op": "link_mtu", "link": spare_link(lab), "mtu": 1400}
    assert wire.apply(raise_mtu, confirm_within=60, request="open")["verdict"] == "applied"
    sh(lab, "ip link delete spare")
    left = wire.ask(request="rollback", id="open")["not_undone"]
    assert [each["reason"] for each in left] == ["the link is gone; in another network namespace it keeps its MTU"]


def test_objects_of_a_link_that_is_gone_are_reported_as_not_restored(lab: Lab, wire: Wire) -> None:
    spare = spare_link(lab)
    hosts = "10.9.9.5/24", "fd00:60::5/128"
    assert wire.apply(*(address(spare, host) for host in hosts), route(spare, "10.9.9.0/24"))["verdict"] == "applied"
    removals = [address(spare, host, "address_remove") for host in hosts]
    removals.append(route(spare, "10.9.9.0/24", op="route_remove"))
    assert wire.apply(*removals[::-1], confirm_within=60, request="open")["verdict"] == "applied"
    sh(lab, "ip link delete spare")
    left = wire.ask(request="rollback", id="open")["not_undone"]
    assert sorted(each["op"] for each in left) == ["address_add", "address_add", "route_replace"]
    assert {each["reason"] for each in left} == {"No such device"}


def test_any_former_mtu_comes_back_after_a_crash(lab: Lab) -> None:
    spare = spare_link(lab)
    lab.batch(["link set spare mtu 500"])
    with Wire(lab) as wire:
        raised = wire.apply({"op": "link_mtu", "link": spare, "mtu": 1500}, confirm_within=60, request="open")
        assert raised["verdict"] == "applied"
        lab.kill("netagent")
    start(lab)
    assert json.loads(sh(lab, "ip -j link show spare"))[0]["mtu"] == 500


NEIGHBOURS = {
    "static": ("10.9.4.1 lladdr 02:00:00:00:00:99 nud permanent", "PERMANENT"),
    "without ARP": ("10.9.4.1 lladdr 02:00:00:00:00:99 nud noarp", "02:00:00:00:00:99 NOARP"),
    "learned from another program": ("10.9.4.1 lladdr 02:00:00:00:00:99 nud reachable extern_learn", "extern_learn"),
    "resolved for another program": ("10.9.4.1 managed", "managed"),
    "proxy": ("proxy 10.9.4.7", "10.9.4.7"),
    "static, IPv6": ("fe80::1 lladdr 02:00:00:00:00:99 nud permanent", "PERMANENT"),
    "proxy, IPv6": ("proxy fd00::77", "fd00::77"),
}


def neighbours(lab: Lab) -> str:
    show = "neighbour show dev spare"
    return sh(lab, f"for v in -4 -6; do ip $v {show} nud all; ip $v {show} proxy; done")


@pytest.mark.parametrize("how", ["remove", "roll back"])
@pytest.mark.parametrize("what", [what for what in NEIGHBOURS if "IPv6" not in what])
def test_static_neighbours_stay(lab: Lab, wire: Wire, what: str, how: str) -> None:
    """The kernel removes them with the last IPv4 address of a link; another host could then answer as the gateway."""
    spare = spare_link(lab)
    add = wire.apply(address(spare, "10.9.4.10/24"), confirm_within=60 if how == "roll back" else 0, request="open")
    assert add["verdict"] == "applied"
    entry, shown = NEIGHBOURS[what]
    sh(lab, f"ip neighbour add {entry} dev spare")
    if how == "remove":
        assert "static neighbour" in reason(wire, address(spare, "10.9.4.10/24", "address_remove"))
    else:
        assert len(wire.ask(request="rollback", id="open")["not_undone"]) == 1
    assert shown in neighbours(lab)


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_a_link_with_static_neighbours_stays_up(lab: Lab, wire: Wire, what: str) -> None:
    spare = spare_link(lab)
    lab.batch(["link set spare down"])
    assert wire.apply({"op": "link_up", "link": spare}, confirm_within=60, request="open")["verdict"] == "applied"
    entry, shown = NEIGHBOURS[what]
    sh(lab, f"ip neighbour add {entry} dev spare")
    (left,) = wire.ask(request="rollback", id="open")["not_undone"]
    assert left["reason"] == "static neighbour entries of the link depend on it"
    assert shown in neighbours(lab)


@pytest.mark.parametrize("what", [what for what in NEIGHBOURS if "IPv6" in what])
def test_an_mtu_without_ipv6_takes_no_static_neighbours(lab: Lab, wire: Wire, what: str) -> None:
    spare = spare_link(lab)
    lab.batch(["link set spare mtu 1000"])
    raised = wire.apply({"op": "link_mtu", "link": spare, "mtu": 1500}, confirm_within=60, request="open")
    assert raised["verdict"] == "applied"
    entry, shown = NEIGHBOURS[what]
    sh(lab, f"ip neighbour add {entry} dev spare")
    assert len(wire.ask(request="rollback", id="open")["not_undone"]) == 1
    assert shown in neighbours(lab)


def test_a_link_stays_up_with_an_ipv6_address_of_ours_that_stays(lab: Lab, wire: Wire) -> None:
    """Otherwise the kernel would remove the address, although it is listed as not undone."""
    spare = spare_link(lab)
    lab.batch(["link set spare down"])
    ops = [{"op": "link_up", "link": spare}, address(spare, "fd00:60::5/128")]
    assert wire.apply(*ops, confirm_within=60, request="open")["verdict"] == "applied"
    sh(lab, "ip -6 route add fd00:77::/48 dev vpn src fd00:60::5 proto static")
    left = wire.ask(request="rollback", id="open")["not_undone"]
    assert [each["op"] for each in left] == ["address_remove", "link_down"]
    assert left[1]["reason"] == "fd00:60::5/128 depends on it"
    assert "fd00:60::5/128" in kernel_state(lab)["addresses"]


@pytest.mark.parametrize("text", ["10.9.9.5/24", "fd00:60::5/128"])
def test_a_rollback_reports_an_address_that_was_changed(lab: Lab, wire: Wire, text: str) -> None:
    """With a change of its lifetime, the address loses the protocol number."""
    added = address(ifindex(lab, "eth0"), text)
    assert wire.apply(added, confirm_within=60, request="open")["verdict"] == "applied"
    lab.batch([f"address change {text} dev eth0 valid_lft 3600 preferred_lft 3600"])
    left = wire.ask(request="rollback", id="open")["not_undone"]
    assert [each["reason"] for each in left] == ["another program has added or changed it since"]
    assert text in kernel_state(lab)["addresses"]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_link_goes_down_after_its_addresses_are_gone(lab: Lab, wire: Wire, is_first: bool) -> None:
    spare = spare_link(lab)
    lab.batch(["link set spare down"])
    ops = [{"op": "link_up", "link": spare}, address(spare, "fd00:60::5/128")]
    ops = ops if is_first else ops[::-1]
    assert wire.apply(*ops, confirm_within=60, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open").get("not_undone") is None
    assert "UP" not in json.loads(sh(lab, "ip -j link show spare"))[0]["flags"]


@pytest.mark.parametrize("how", ["stays", "comes back"])
def test_a_link_stays_up_with_an_earlier_owned_ipv6_address(lab: Lab, wire: Wire, how: str) -> None:
    spare = spare_link(lab)
    lab.batch(["link set spare down"])
    owned = address(spare, "fd00:61::5/128")
    assert wire.apply(owned)["verdict"] == "applied"
    ops: list[dict[str, Any]] = [{"op": "link_up", "link": spare}]
    if how == "comes back":
        ops.append(address(spare, "fd00:61::5/128", "address_remove"))
    assert wire.apply(*ops, confirm_within=60, request="open")["verdict"] == "applied"
    (left,) = wire.ask(request="rollback", id="open")["not_undone"]
    assert (left["op"], left["reason"]) == ("link_down", "fd00:61::5/128 depends on it")
    assert "fd00:61::5/128" in kernel_state(lab)["addresses"]


def test_a_link_with_a_nexthop_object_stays_up(lab: Lab, wire: Wire) -> None:
    spare = spare_link(lab)
    lab.batch(["link set spare down"])
    assert wire.apply({"op": "link_up", "link": spare}, confirm_within=60, request="open")["verdict"] == "applied"
    sh(lab, "ip nexthop add id 55 dev spare")
    assert len(wire.ask(request="rollback", id="open")["not_undone"]) == 1
    assert "id 55" in sh(lab, "ip nexthop show; ip nexthop delete id 55")


@pytest.mark.parametrize(("flag", "left"), [("noprefixroute", ["link_down"]), ("", []), ("metric 7", [])])
def test_a_link_with_a_connected_route_of_others_stays_up(lab: Lab, wire: Wire, flag: str, left: list[str]) -> None:
    """NetworkManager adds the connected route itself, with the protocol `kernel`. The kernel would not restore it."""
    spare = spare_link(lab)
    lab.batch(["link set spare down"])
    assert wire.apply({"op": "link_up", "link": spare}, confirm_within=60, request="open")["verdict"] == "applied"
    sh(lab, f"ip address add 10.9.9.5/24 dev spare {flag}")
    if left:
        lab.batch(["route add 10.9.9.0/24 dev spare proto kernel scope link src 10.9.9.5 metric 100"])
    assert [each["op"] for each in wire.ask(request="rollback", id="open").get("not_undone", ())] == left
    assert ("10.9.9.0/24" in sh(lab, "ip route")) == bool(left)


@pytest.mark.parametrize("protocol", ["kernel", "static"])
@pytest.mark.parametrize("text", ["fd99::/80", "fd99::7/128"])
def test_a_link_with_local_ipv6_routes_stays_up(lab: Lab, wire: Wire, text: str, protocol: str) -> None:
    """Another program made the route of type local (AnyIP), also with the kernel's protocol: no address explains it."""
    spare = spare_link(lab)
    lab.batch(["link set spare down"])
    assert wire.apply({"op": "link_up", "link": spare}, confirm_within=60, request="open")["verdict"] == "applied"
    lab.batch([f"route add local {text} dev spare proto {protocol}"])
    (left,) = wire.ask(request="rollback", id="open")["not_undone"]
    assert (left["op"], left["reason"]) == ("link_down", f"the route to {text} depends on it")


@pytest.mark.parametrize("how", ["remove", "roll back"])
def test_a_secondary_by_its_peer_stays(lab: Lab, wire: Wire, how: str) -> None:
    """For the kernel, the network of a point-to-point address is that of its peer."""
    foreign = "address add 10.1.1.1 peer 10.9.9.1/24 dev eth0"
    check_address_stays(lab, wire, how, "10.9.9.5/24", foreign, "10.1.1.1 is a secondary address of 10.9.9.5")
    assert "10.1.1.1 peer 10.9.9.1/24" in kernel_state(lab)["addresses"]


# — local and broadcast addresses of the kernel


@pytest.mark.parametrize("group", [False, True])
def test_the_gateway_of_a_nexthop_object_is_protected(lab: Lab, wire: Wire, group: bool) -> None:
    """Without the compatibility mode the kernel shows only the object's id in a route."""
    sh(lab, "sysctl -qw net.ipv4.nexthop_compat_mode=0; ip nexthop add id 5 via 10.0.1.77 dev eth1")
    sh(lab, "ip nexthop add id 6 dev vpn; ip nexthop add id 9 group 5/6")
    lab.batch([f"route add 10.55.0.0/16 nhid {9 if group else 5} proto static"])
    assert "10.0.1.77 is a gateway's address" in reason(wire, address(ifindex(lab, "eth1"), "10.0.1.77/32"))
    assert "10.55.0.0/16" in reason(wire, address(ifindex(lab, "eth0"), "10.55.0.77/32"))
    sh(lab, "ip route flush proto static; ip nexthop flush; sysctl -qw net.ipv4.nexthop_compat_mode=1")


def test_the_gateway_of_an_unused_nexthop_object_is_protected(lab: Lab, wire: Wire) -> None:
    sh(lab, "ip nexthop add id 5 via 10.0.1.77 dev eth1")
    assert "10.0.1.77 is a gateway's address" in reason(wire, address(ifindex(lab, "eth0"), "10.0.1.77/32"))
    sh(lab, "ip nexthop flush")


def test_another_links_address_does_not_become_broadcast(lab: Lab, wire: Wire) -> None:
    """When the address is removed and added again (VRRP), the broadcast route is older than the local one."""
    lab.batch(["address add 10.86.0.203/32 dev vpn"])
    assert "is an address of vpn" in reason(wire, address(ifindex(lab, "eth0"), "10.86.0.201/30"))
    lab.batch(["address delete 10.86.0.203/32 dev vpn", "address add 10.86.0.203/32 dev vpn"])
    assert get(lab, "10.86.0.203").startswith("local ")
    lab.batch(["address delete 10.86.0.203/32 dev vpn"])


def test_a_gateway_does_not_become_an_anycast_address(lab: Lab, wire: Wire) -> None:
    """With forwarding, the kernel accepts packets for the first address of an IPv6 subnet as its own."""
    lab.batch(["address add fd00:2::a/64 dev eth0 nodad", "route add default via fd00:2::100 dev eth0 proto static"])
    sh(lab, "sysctl -qw net.ipv6.conf.all.forwarding=1")
    assert "is a gateway" in reason(wire, address(ifindex(lab, "eth0"), "fd00:2::101/120"))
    assert "anycast" not in get(lab, "fd00:2::100")
    sh(lab, "sysctl -qw net.ipv6.conf.all.forwarding=0")


def test_a_range_that_an_operator_made_local_stays_whole(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    lab.batch(["route add local 10.88.0.0/16 dev lo proto static table local"])
    asked = (address(on, "10.88.0.5"), address(on, "10.88.5.1/24"), route(on, "10.88.4.0/24", table=255))
    for op in asked:
        assert "another program routes by lo" in reason(wire, op)
    assert get(lab, "10.88.5.255").startswith("local ")
    lab.batch(["route delete local 10.88.0.0/16 dev lo table local"])


def test_an_address_in_a_local_range_does_not_become_broadcast(lab: Lab, wire: Wire) -> None:
    lab.batch(["route add local 10.88.0.0/16 dev eth0 proto static table local"])
    assert "lies in the local range 10.88.0.0/16" in reason(wire, address(ifindex(lab, "eth0"), "10.88.5.1/24"))
    apply(wire, address(ifindex(lab, "eth0"), "10.88.5.1"))
    assert get(lab, "10.88.5.255").startswith("local ")
    lab.batch(["route delete local 10.88.0.0/16 dev eth0 table local"])


@pytest.mark.parametrize("way", ["dev eth0", "via 10.0.2.1 dev eth0"])
def test_a_tunnel_without_a_link_of_its_own_stays(lab: Lab, wire: Wire, way: str) -> None:
    """A route on the cloud's link with `encap`: a tunnel carries the packets elsewhere."""
    on = ifindex(lab, "eth0")
    lab.batch([f"route add 10.55.0.0/16 encap ip id 5 dst 10.0.2.1 {way} proto static"])
    for op in (address(on, "10.55.0.7/24"), route(on, "10.55.0.0/16", "10.0.2.1", table(lab))):
        assert "another program routes by eth0" in reason(wire, op)
    assert "encap" in get(lab, "10.55.0.9")


def test_link_local_destinations_that_are_prohibited_stay_so(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    lab.batch(["route add prohibit 169.254.77.0/24 proto static"])
    for to in ("169.254.0.0/16", "169.254.77.5/32"):
        assert "another program routes by discarding it" in reason(wire, route(on, to, "10.0.2.1", table(lab)))
    apply(wire, route(on, "169.254.169.254/32", "10.0.2.1", table(lab)))


@pytest.mark.parametrize("how", ["flush", "rollback"])
def test_our_address_goes_although_another_has_a_peer(lab: Lab, wire: Wire, how: str) -> None:
    """Both have the same address, link and length; netagent's was neither removed nor reported."""
    on = ifindex(lab, "eth0")
    assert wire.apply(address(on, "10.9.3.11/24"), confirm_within=60, request="open")["verdict"] == "applied"
    if how == "flush":
        wire.ask(request="confirm", id="open")
    lab.batch(["address add 10.9.3.11 peer 10.9.9.1/24 dev eth0"])
    assert "not_undone" not in wire.ask(request=how, id="open")
    assert "10.9.3.11/24" not in kernel_state(lab)["addresses"]
    assert "10.9.3.11 peer 10.9.9.1/24" in kernel_state(lab)["addresses"]


def test_a_host_route_of_another_link_stays(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    lab.batch(["route add 10.99.9.9/32 dev eth1 proto static"])
    for op in (address(on, "10.99.9.9"), route(on, "10.99.9.9/32", table=255)):
        assert "another program routes by eth1" in reason(wire, op)
    assert "dev eth1" in get(lab, "10.99.9.9")


# — rules that lose their justification


def table(lab: Lab) -> int:
    return 9999 + ifindex(lab, "eth0")


def test_a_range_that_moves_to_another_link_leaves_no_rule(lab: Lab, wire: Wire) -> None:
    on, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    selects = rule("10.88.0.0/24", table(lab), 31020)
    apply(wire, main_rule(), route(on, "10.88.0.0/24", table=255), selects)
    assert "depends on it" in reason(wire, route(other, "10.88.0.0/24", table=255))


def test_a_rule_made_wrong_by_another_link_blocks_no_repair(lab: Lab, wire: Wire) -> None:
    """A compromised fetcher has added both /32; the repaired one removes them link by link."""
    on, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    selects = rule("10.87.0.0/24", table(lab), local=True)
    apply(wire, address(on, "10.87.0.10/24"), selects)
    for lost in (address(other, "10.87.0.127/32"), route(other, "10.87.0.100/32", table=255)):
        apply(wire, address(on, "10.87.0.66/32"), lost)
        apply(wire, address(on, "10.87.0.66/32", "address_remove"))
    assert "depends on it" in reason(wire, address(on, "10.87.0.10/24", "address_remove")), "the link would lose all"


def test_a_rule_inside_a_subnet_goes_with_the_subnet(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    apply(wire, address(on, "10.87.0.10/24"), main_rule(), rule("10.87.0.64/26", table(lab), 31020))
    assert "depends on it" in reason(wire, address(on, "10.87.0.10/24", "address_remove"))


def test_a_rule_inside_a_replaced_on_link_route_goes(lab: Lab, wire: Wire) -> None:
    on = ifindex(lab, "eth0")
    subnet, selects = "10.0.1.0/24", rule("10.0.1.128/26", table(lab), 31020)  # the subnet of eth1, which learned it
    apply(wire, main_rule(), address(on, "10.0.1.99/32"), route(on, subnet), selects)
    assert "depends on it" in reason(wire, route(on, subnet, "10.0.2.1"))


def test_rules_go_with_the_ranges_that_go_with_the_last_address(lab: Lab, wire: Wire) -> None:
    """With the last IPv4 address of a link, the kernel removes all IPv4 routes of the link, also ranges."""
    on, last = ifindex(lab, "eth0"), "10.0.2.10/24"
    selects = rule("10.88.0.0/25", table(lab), 31020)
    apply(wire, main_rule(), route(on, "10.88.0.0/24", table=255), selects)
    gone = address(on, last, "address_remove")
    assert "depends on it" in reason(wire, gone)
    assert "depends on it" in reason(wire, gone, address(on, last))
    apply(wire, address(on, "10.9.0.5/32"), gone)
    apply(wire, {**selects, "op": "rule_remove"}, address(on, "10.9.0.5/32", "address_remove"))
    assert "10.88.0.0" not in sh(lab, "ip route show table local; ip rule")


def test_a_rollback_keeps_the_last_address_with_a_restored_range(lab: Lab, wire: Wire) -> None:
    on, ranged = ifindex(lab, "eth0"), route(ifindex(lab, "eth0"), "10.88.0.0/24", table=255)
    apply(wire, address(on, "10.0.2.10/24", "address_remove"))
    apply(wire, ranged)
    ops = [address(on, "10.0.2.10/24"), {**ranged, "op": "route_remove"}]
    assert wire.apply(*ops, confirm_within=60, request="open")["verdict"] == "applied"
    (left,) = wire.ask(request="rollback", id="open")["not_undone"]
    assert left["op"] == "address_remove"
    assert "10.88.0.0/24" in sh(lab, "ip route show table local")


def test_a_rollback_keeps_the_last_address_with_an_earlier_range(lab: Lab, wire: Wire) -> None:
    """The kernel would remove the range with the address, and its rule would stay."""
    on, own, ranged = ifindex(lab, "eth0"), address(ifindex(lab, "eth0"), "10.0.2.10/24"), "10.88.0.0/24"
    apply(wire, address(on, "10.0.2.10/24", "address_remove"))
    apply(wire, main_rule(), route(on, ranged, table=255), rule("10.88.0.0/25", table(lab), 31020))
    added = wire.apply(own, route(on, "10.9.0.0/16", "10.0.2.1"), confirm_within=60, request="open")
    assert added["verdict"] == "applied"
    (left,) = wire.ask(request="rollback", id="open")["not_undone"]
    assert (left["op"], left["reason"]) == ("address_remove", f"the route to {ranged} depends on it and stays")
    assert ranged in sh(lab, "ip route show table local")


@pytest.mark.parametrize("replaced", [True, False])
def test_rollback_restores_routes_removed_with_the_last_address(lab: Lab, wire: Wire, replaced: bool) -> None:
    on = ifindex(lab, "eth0")
    selects = rule("10.88.0.0/25", table(lab), 31020)
    apply(wire, main_rule(), route(on, "10.88.0.0/24", table=255), selects)
    apply(wire, route(on, "10.0.2.0/24"), route(on, "0.0.0.0/0", "10.0.2.1"))
    before = kernel_state(lab)
    gone = [{**selects, "op": "rule_remove"}, address(on, "10.0.2.10/24", "address_remove")]
    added = [address(on, "10.0.2.11/24"), route(on, "10.0.2.0/24"), route(on, "0.0.0.0/0", "10.0.2.1")]
    assert wire.apply(*gone, *added[: 3 * replaced], confirm_within=60, request="open")["verdict"] == "applied"
    assert "10.88.0.0" not in sh(lab, "ip route show table local; ip rule")
    assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


def test_no_address_is_removed_if_another_could_not_be_added(lab: Lab, wire: Wire) -> None:
    """The kernel would remove the VPN's route with the only 10.9.9.10. It refuses two scopes in one subnet."""
    on, owned = ifindex(lab, "eth0"), "10.9.9.10/32"
    lab.batch(["address add 10.9.9.20/26 dev eth0 scope link"])
    apply(wire, address(on, owned))
    lab.batch(["route add 10.60.0.0/16 dev vpn proto static src 10.9.9.10"])
    answer = wire.apply(address(on, "10.9.9.10/26"), address(on, owned, "address_remove"))
    assert (answer["verdict"], answer["errnos"]) == ("rolled back", [EINVAL, None])
    assert "10.60.0.0/16" in sh(lab, "ip route")
    lab.batch(["address delete 10.9.9.20/26 dev eth0"])


def test_no_rule_selects_a_link_local_address(lab: Lab, wire: Wire) -> None:
    """The rule would send traffic for neighbours to a router."""
    shown = json.loads(sh(lab, "ip -j -6 address show dev eth0 scope link"))
    (own,) = [each["local"] for each in shown[0]["addr_info"]]
    assert "link-local" in reason(wire, rule(f"{own}/128", table(lab)))


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0"])
def test_no_rule_comes_before_table_local(lab: Lab, wire: Wire, everything: str) -> None:
    """VRFs move the rule for table local. A rule for main before it would send packets for own addresses to a link."""
    ip = "ip -6" if ":" in everything else "ip"
    sh(
        lab,
        f"{ip} rule add pref 32765 lookup local; {ip} rule delete pref 0; {ip} rule add pref 9 iif vpn lookup local",
    )
    assert "table local is not looked up for every packet before 31000" in reason(wire, main_rule(everything))
    assert " dev lo " in get(lab, "10.0.2.10")
    sh(lab, f"{ip} rule add pref 30999 lookup local")
    apply(wire, main_rule(everything))
    assert " dev lo " in get(lab, "10.0.2.10")
    sh(lab, f"{ip} rule add pref 0 lookup local; {ip} rule delete pref 30999; {ip} rule delete pref 32765")
    sh(lab, f"{ip} rule delete pref 9")


LOCAL_BY_HALF = {
    "skipped": ["pref 0 goto 30000", "pref 10 lookup local", "pref 30000 nop"],
    "suppressed": ["pref 0 lookup local suppress_prefixlength {bits}"],
    "suppressed for addresses": ["pref 0 lookup local suppress_prefixlength {bits_less}"],
    "suppressed by group": ["pref 0 lookup local suppress_ifgroup 0"],
    "inverted": ["pref 0 not from all lookup local"],
    "for one protocol": ["pref 0 ipproto tcp lookup local"],
    "for VRFs": ["pref 0 l3mdev"],
}


@pytest.mark.parametrize("how", LOCAL_BY_HALF)
@pytest.mark.parametrize("version", [4, 6])
def test_no_rule_comes_before_table_local_for_some_packets(lab: Lab, wire: Wire, version: int, how: str) -> None:
    own, everything, bits = {4: ("10.0.2.10", "0.0.0.0/0", 32), 6: ("fd00:abc::5", "::/0", 128)}[version]
    on, ip = ifindex(lab, "eth0"), f"ip -{version}"
    if version == 6:
        apply(wire, address(on, f"{own}/64"))
    rules = [each.format(bits=bits, bits_less=bits - 1) for each in LOCAL_BY_HALF[how]]
    sh(lab, "; ".join([f"{ip} rule add pref 32000 lookup local", f"{ip} rule delete pref 0"]))
    sh(lab, "; ".join(f"{ip} rule add {each}" for each in rules))
    try:
        assert "table local is not looked up" in reason(wire, main_rule(everything))
        assert " dev lo " in get(lab, own)
        sh(lab, f"{ip} rule add pref 30999 lookup local")
        apply(wire, main_rule(everything))
        assert " dev lo " in get(lab, own)
    finally:
        sh(lab, f"{ip} rule add pref 1 lookup local; " + "; ".join(f"{ip} rule delete {each}" for each in rules))
        sh(lab, f"{ip} rule add pref 0 lookup local; {ip} rule delete pref 1; {ip} rule delete pref 30999")
        sh(lab, f"{ip} rule delete pref 32000")


def test_a_rule_for_main_that_a_goto_skips_does_not_count(lab: Lab, wire: Wire) -> None:
    """Otherwise packets from the address to the VPN would use the default route of the link's table."""
    sh(lab, "ip rule add pref 31015 nop; ip rule add pref 100 goto 31015")
    default = route(ifindex(lab, "eth0"), "0.0.0.0/0", "10.0.2.1")
    try:
        assert "add it first" in reason(wire, default, main_rule(), rule("10.0.2.10", table(lab), 31020))
        apply(wire, default, {**main_rule(), "priority": 31016}, rule("10.0.2.10", table(lab), 31020))
    finally:
        sh(lab, "ip rule delete pref 100; ip rule delete pref 31015")


# — time, and a full /run


@pytest.fixture
def fresh(lab: Lab) -> Lab:
    """A lab in which the budget of requests is full."""
    lab.stop("netagent")
    start(lab)
    return lab


def test_refused_removals_cost_no_search_for_orphans(fresh: Lab) -> None:
    """With 4,000 owned rules, 4,096 removals of objects that do not exist took 18 s, and 9 s for rules."""
    on, own = ifindex(fresh, "eth0"), table(fresh)
    rules = [rule(f"10.200.{each >> 8}.{each & 255}/32", own, 31020) for each in range(4000)]
    with Wire(fresh) as wire:
        wire.socket.settimeout(60)
        apply(wire, main_rule(), route(on, "10.200.0.0/20", table=255), *rules)
        for op in (
            route(on, "0.0.0.0/0", "10.0.2.2", op="route_remove"),
            {**main_rule(op="rule_remove"), "table": 254},
        ):
            absent = {**op, "priority": 31005} if op["op"] == "rule_remove" else op
            began = time.monotonic()
            assert wire.ask(request="check", ops=[absent] * 4096)["refused"] == 4096
            assert time.monotonic() - began < 6


def test_thousands_of_subnets_do_not_slow_a_check(fresh: Lab) -> None:
    """Each subnet has connected routes. With 8,000 such subnets, these checks took 93 s and 73 s."""
    on = ifindex(fresh, "eth0")
    subnets = [
        address(on, f"10.{100 + (each >> 14)}.{each >> 6 & 255}.{(each << 2 & 255) + 1}/30") for each in range(4000)
    ]
    checks = [
        [route(on, "10.0.0.0/8", "10.0.2.1", table=table(fresh))] * 4096,  # 10.50.0.0/24 is the VPN's
        [address(on, f"fd00:7:{each:x}::1/64") for each in range(4096)],
        [address(on, f"10.99.{each >> 8}.{each & 255}/16") for each in range(4096)],
    ]
    with Wire(fresh) as wire:
        wire.socket.settimeout(60)
        apply(wire, route(on, "0.0.0.0/0", "10.0.2.1"), *subnets)
        for ops in checks:
            began = time.monotonic()
            assert wire.ask(request="check", ops=ops)["verdict"] == "ok"
            assert time.monotonic() - began < 10


@pytest.fixture
def full(lab: Lab) -> Iterator[Path]:
    """A file that fills netagent's runtime directory when it is written, as the fetcher could fill /run."""
    lab.stop("netagent")
    sh(lab, f"mount -t tmpfs -o size=64k,mode=755 tmpfs {RUNTIME}; chown cloud-network-netagent: {RUNTIME}")
    start(lab)
    yield lab.path(f"{RUNTIME}/fill")
    lab.stop("netagent")
    sh(lab, f"umount {RUNTIME}")
    start(lab)


def fill(file: Path) -> None:
    with file.open("wb") as out:
        try:
            while True:
                os.write(out.fileno(), bytes(4096))
        except OSError:
            return


def test_a_full_run_directory_does_not_stop_a_flush(lab: Lab, full: Path) -> None:
    with Wire(lab) as wire:
        apply(wire, address(ifindex(lab, "eth0"), "10.0.2.12/32"))
        fill(full)
        answer = wire.ask(request="flush", id="full")
    assert (answer["verdict"], answer["done"]) == ("applied", 2)
    assert audit_lines(lab)[-1]["done"] == 2


def test_what_was_rolled_back_in_a_full_directory_stays_so(lab: Lab, full: Path) -> None:
    """Otherwise the next start would undo the transaction again, after root's flush."""
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        apply(wire, main_rule(), route(on, "0.0.0.0/0", "10.0.2.1"))
        gone = (main_rule(op="rule_remove"), route(on, "0.0.0.0/0", "10.0.2.1", op="route_remove"))
        assert wire.apply(*gone, confirm_within=60, request="open")["verdict"] == "applied"
        fill(full)
        assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
        assert wire.ask(request="flush", id="full")["verdict"] == "applied"
    lab.stop("netagent")
    start(lab)
    assert "proto 209" not in kernel_state(lab)["rules"]
