"""Requests with the fetcher's uid that use what a host does by itself: zeroconf routes, wide on-link routes, flags of
neighbours, and addresses that are kept while a link is down.

eth1 is the primary (10.0.1.10/24, by DHCP), with neighbour0 in its subnet; eth0 is the secondary, with neighbour1.
"""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab
from tests.system.netagent.conftest import start
from tests.system.netagent.packets import packet_observers
from tests.system.netagent.test_takeovers import refused
from tests.system.netagent.wire import CONFIG, Wire, address, ifindex, main_rule, route, rule

METADATA = "169.254.169.254"
MINE = "10.0.1.10"
NODE, NODE_SUBNET, POD = "fe80::33", "fd44:3::/64", "fd44:3::7"
VPN = "10.60.0.0/24"


def on_link(link: int, destination: str) -> dict[str, Any]:
    return dict(route(link, destination, None, table=9999 + link))


def diverting(link: int, destination: str, source: str) -> list[dict[str, Any]]:
    return [on_link(link, destination), main_rule(), rule(source, 9999 + link)]


def add_vpn(lab: Lab, *routes: str) -> None:
    lab.batch(["link add wg0 type bridge", "link set wg0 up", *(f"route add {each}" for each in routes)])


def neighbours_answer_for(lab: Lab, *addresses: str) -> None:
    """Let all neighbours take these addresses; a cloud that drops their answers would hide gaps in the policy."""
    lab.run(["nft", "flush", "table", "bridge", "cloud"], "cloud")
    for namespace in lab.neighbours:
        namespace.batch([f"address add {each} dev eth0" for each in addresses])


@pytest.mark.parametrize("destination", ["169.254.0.0/16", "169.254.169.0/24", f"{METADATA}/32"])
def test_zeroconf_route_does_not_take_the_metadata_server(lab: Lab, tmp_path: Path, destination: str) -> None:
    """RHEL's ifup adds 169.254.0.0/16 to each interface; DHCP (option 121) gives the route to the server."""
    primary, secondary = ifindex(lab, "eth1"), ifindex(lab, "eth0")
    neighbours_answer_for(lab, f"{METADATA}/32")
    lab.run(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"], "cloud")  # the server is behind the router
    lab.batch(
        [
            "address add 10.0.2.10/24 dev eth0",
            "address add 169.254.7.7/16 dev eth0 noprefixroute",
            "route add 169.254.0.0/16 dev eth1 scope link metric 1002",
            "route add 169.254.0.0/16 dev eth0 scope link metric 1003",
            f"route add {METADATA} via 10.0.1.1 dev eth1 proto dhcp",
        ]
    )
    with packet_observers(lab, [lab.cloud, *lab.neighbours], tmp_path) as seen:
        assert seen.receivers(METADATA, MINE) == {"cloud"}
        for link, source in ((primary, MINE), (secondary, "10.0.2.10")):
            reason = refused(lab, *diverting(link, destination, source))
            assert METADATA in reason or "main does not route it on" in reason
        assert seen.receivers(METADATA, MINE) == {"cloud"}
        assert seen.receivers(METADATA, "10.0.2.10") == {"cloud"}


def test_a_second_link_does_not_get_the_firsts_metadata_server(lab: Lab, tmp_path: Path) -> None:
    """Without a route to the server, main has it on the link whose zeroconf route has the lower metric."""
    secondary = ifindex(lab, "eth0")
    neighbours_answer_for(lab, f"{METADATA}/32")
    lab.batch(
        [
            "address add 10.0.2.10/24 dev eth0",
            "route add 169.254.0.0/16 dev eth1 scope link metric 1002",
            "route add 169.254.0.0/16 dev eth0 scope link metric 1003",
        ]
    )
    with packet_observers(lab, lab.neighbours, tmp_path) as seen:
        for destination in ("169.254.0.0/16", f"{METADATA}/32"):
            assert "main does not route it on eth0" in refused(lab, *diverting(secondary, destination, "10.0.2.10"))
        assert "neighbour1" not in seen.receivers(METADATA, "10.0.2.10")
    with Wire(lab) as wire:
        accepted = wire.apply(*diverting(ifindex(lab, "eth1"), f"{METADATA}/32", MINE))
        assert accepted["verdict"] == "applied", "main has it on this link"


@pytest.mark.parametrize("wide", ["10.0.0.0/8", "0.0.0.0/1"])
def test_wide_on_link_route_is_no_subnet_of_the_link(lab: Lab, wide: str) -> None:
    """Another program's wide route beside a VPN: on link in the link's table, it would come before the VPN's."""
    add_vpn(lab, f"{VPN} dev wg0", f"{wide} dev eth1 scope link metric 2000")
    assert VPN in refused(lab, *diverting(ifindex(lab, "eth1"), wide, MINE))
    pods = rule("10.244.0.64/26", 9999 + ifindex(lab, "eth1"), 31020)
    assert "10.244.0.64/26 is no address or range of eth1" in refused(lab, main_rule(), pods)


@pytest.mark.parametrize("protocol", ["static", "kernel"])
def test_subnet_that_a_vpn_alone_routes_is_not_claimed(lab: Lab, protocol: str) -> None:
    """NetworkManager adds the connected route itself, with the protocol `kernel`."""
    add_vpn(lab, "10.70.0.0/16 dev wg0")
    lab.batch(["address add 10.70.0.5/16 dev eth1 noprefixroute"])
    ops = diverting(ifindex(lab, "eth1"), "10.70.0.0/16", "10.70.0.5")
    assert "another program routes by wg0" in refused(lab, *ops)
    lab.batch([f"route add 10.70.0.0/16 dev eth1 proto {protocol} scope link src 10.70.0.5 metric 9"])
    with Wire(lab) as wire:
        assert wire.apply(*ops)["verdict"] == "applied", "main has it on this link, too"


def test_node_with_the_flag_of_a_router_keeps_its_pods(lab: Lab, tmp_path: Path) -> None:
    """A CNI routes through a link-local next hop. Every host that forwards sends the flag in its advertisements."""
    node = lab.neighbours[0]
    lab.run(["nft", "flush", "table", "bridge", "cloud"], "cloud")
    node.run(["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"])
    node.batch([f"address add {NODE}/64 dev eth0 nodad", f"address add {POD}/128 dev lo"])
    lab.neighbours[1].batch([f"address add {POD}/128 dev eth0 nodad"])
    lab.batch(["address add fd00:1::10/64 dev eth1 nodad", f"route add {NODE_SUBNET} via {NODE} dev eth1 proto bird"])
    secondary = ifindex(lab, "eth0")
    with packet_observers(lab, lab.neighbours, tmp_path) as seen:
        assert seen.receivers(POD) == {"neighbour0"}
        assert "router" in lab.run(["ip", "-6", "neighbour", "show", NODE]).stdout
        for claim in (address(secondary, "fd44:3::9/65"), address(secondary, "fd44:3::9/128")):
            assert NODE_SUBNET in refused(lab, claim)
        assert seen.receivers(POD) == {"neighbour0"}
    lab.batch([f"route add {VPN} via inet6 {NODE} dev eth1"])
    assert VPN in refused(lab, address(secondary, "10.60.0.7/25"))


def test_gateway_of_another_table_is_no_router_of_main(lab: Lab) -> None:
    """Some sources leave through an appliance, by a default route in a table of its own."""
    lab.batch(["route add default via 10.0.1.44 dev eth1 table 100", f"route add {VPN} via 10.0.1.44 dev eth1"])
    secondary = ifindex(lab, "eth0")
    for claim in (address(secondary, "10.60.0.7/25"), address(secondary, "10.60.0.7/32")):
        assert VPN in refused(lab, claim)


@pytest.mark.parametrize("peer", ["fd37::2/128", "10.82.0.2/32"])
def test_peer_of_an_address_is_not_claimed(lab: Lab, peer: str) -> None:
    """On its own link, a flush of the address would remove an operator's route to the peer."""
    own = "fd37::1" if ":" in peer else "10.82.0.1"
    lab.batch([f"address add {own} peer {peer} dev eth1"])
    lab.wait_for(lambda: "tentative" not in lab.run(["ip", "address"]).stdout)
    here, other = ifindex(lab, "eth1"), ifindex(lab, "eth0")
    assert "is the peer of an address" in refused(lab, address(here, peer))
    assert "the peer of an address" in refused(lab, route(here, peer, table=255))
    for op in (address(other, peer), on_link(other, peer), route(other, peer, table=255)):
        assert "another program routes by eth1" in refused(lab, op)


def test_peer_is_no_end_of_a_network(lab: Lab) -> None:
    lab.batch(["address add 10.0.1.10 peer 10.77.0.127/32 dev eth1"])
    reason = refused(lab, address(ifindex(lab, "eth1"), "10.77.0.5/25"))
    assert reason == "10.77.0.127, an end of 10.77.0.0/25, is the peer of an address of this host"


@pytest.mark.parametrize(("end", "added"), [("10.77.0.127/32", "10.77.0.5/25"), ("fd77::/128", "fd77::5/64")])
def test_owned_local_route_is_no_end_of_a_network(lab: Lab, wire: Wire, end: str, added: str) -> None:
    """The kernel may add its own route there, so that a rollback could not restore this one."""
    on = ifindex(lab, "eth0")
    assert wire.apply(route(on, end, table=255))["verdict"] == "applied"
    assert "has a route in table local of cloud-network" in wire.apply(address(on, added))["reason"]


def test_macvlan_of_an_interface_has_its_subnet(lab: Lab) -> None:
    """Docker's macvlan networks: a macvlan of the host reaches the containers, which have one each."""
    lab.batch(["link set eth0 up", "link add mv0 link eth0 type macvlan mode bridge"])
    lab.batch(["address add 10.86.0.60/24 dev mv0", "link set mv0 up", "route add 10.86.0.128/26 dev mv0"])
    secondary, primary = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    assert "10.86.0.128/26, which another program routes by mv0" in refused(lab, address(secondary, "10.86.0.130/32"))
    assert "overlaps 10.86.0.0/24" in refused(lab, address(secondary, "10.86.0.10/16"))
    through = route(primary, "10.86.0.0/24", "10.0.1.1", table=9999 + primary)
    own = [address(secondary, "10.86.0.10/32"), address(secondary, "10.86.0.11/32")]
    with Wire(lab) as wire:
        answer = wire.apply(*own, on_link(secondary, "10.86.0.0/24"), through)
        assert answer["verdict"] == "refused", "the part of the containers"
    lab.batch(["route del 10.86.0.128/26 dev mv0"])
    assert "10.86.0.0/24, which another program routes by mv0" in refused(lab, through)
    with Wire(lab) as wire:
        answer = wire.apply(*own, on_link(secondary, "10.86.0.0/24"), through)
        assert answer["verdict"] == "applied", answer
    lab.batch(["link del mv0", "link add br0 type bridge", "address add 10.87.0.60/24 dev br0", "link set br0 up"])
    assert "another program routes by br0" in refused(lab, address(secondary, "10.87.0.10/32"))


def test_containers_on_a_macvlan_keep_their_own_subnet(lab: Lab) -> None:
    """It is not that of the interface below; packets to it do not leave by another interface, or in parts."""
    lab.batch(["link set eth0 up", "link add mv0 link eth1 type macvlan mode bridge", "link set mv0 up"])
    lab.batch(["address add 172.30.0.1/24 dev mv0", "address add 10.0.1.193/27 dev mv0"])
    secondary, primary = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    through = route(primary, "172.30.0.64/26", "10.0.1.1", table=9999 + primary)
    for op in (address(secondary, "172.30.0.5/25"), address(secondary, "172.30.0.5/24"), through):
        assert "172.30.0.0/24, which another program routes by mv0" in refused(lab, op)
    assert "10.0.1.192/27, which another program routes by mv0" in refused(lab, address(primary, "10.0.1.201/29"))


def test_macvlan_keeps_its_subnet_beside_that_of_its_interface(lab: Lab) -> None:
    """A part of it on the interface would take over packets to containers, which the interface cannot reach."""
    lab.batch(["link set eth0 up", "link add mv0 link eth0 type macvlan mode bridge", "link set mv0 up"])
    lab.batch(["address add 10.86.0.60/24 dev mv0", "link add mv1 link eth1 type macvlan mode bridge"])
    lab.batch(["link set mv1 up", "address add 10.0.1.60/24 dev mv1"])
    secondary, primary = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    with Wire(lab) as wire:
        assert wire.apply(address(secondary, "10.86.0.10/24"))["verdict"] == "applied"
    for op in (
        address(secondary, "10.86.0.200/25"),
        route(secondary, "10.86.0.64/26", table=255),
        address(primary, "10.86.0.11/32"),
        route(primary, "10.86.0.0/25", "10.0.1.1"),
    ):
        assert "10.86.0.0/24, which another program routes by mv0" in refused(lab, op)
    assert "10.0.1.0/24, which another program routes by mv1" in refused(lab, address(primary, "10.0.1.200/25"))
    with Wire(lab) as wire:
        assert wire.apply(address(primary, "10.0.1.200/32"))["verdict"] == "applied"


def test_local_route_in_main_keeps_its_addresses(lab: Lab) -> None:
    """Another program's AnyIP outside of table local comes after that of an interface's subnet."""
    lab.batch(["link set eth0 up", "route add local 10.53.0.0/16 dev eth1 table main"])
    for text in ("10.53.0.5/24", "10.53.0.5/32"):
        assert "10.53.0.0/16, which another program" in refused(lab, address(ifindex(lab, "eth0"), text))


def test_foreign_local_range_keeps_no_subnet_out_of_a_table(lab: Lab) -> None:
    """Rules come after the one for table local, so the range stays local (AnyIP)."""
    lab.batch(["route add local 10.0.1.208/28 dev lo"])
    secondary = ifindex(lab, "eth0")
    own, through = address(secondary, "10.0.2.10/24"), route(secondary, "10.0.1.0/24", "10.0.2.1")
    with Wire(lab) as wire:
        assert wire.apply(own, through, main_rule(), rule("10.0.2.10", 9999 + secondary))["verdict"] == "applied"
    path = lab.run(["ip", "route", "get", "10.0.1.210", "from", "10.0.2.10"]).stdout
    assert "local 10.0.1.210" in path


@pytest.mark.parametrize("routes", [("10.0.1.70/32", "10.0.1.71/32"), ("10.0.1.0/24",)])
def test_packets_between_pods_keep_their_route(lab: Lab, routes: tuple[str, ...]) -> None:
    """Another program routes a part of the subnet to each pod, or all of it to a VPN, before the connected route."""
    lab.batch(["route del 10.0.1.0/24 dev eth1", "route add 10.0.1.0/24 dev eth1 proto kernel src 10.0.1.10 metric 9"])
    lab.batch(["link add br0 type bridge", "link set br0 up", *(f"route add {each} dev br0" for each in routes)])
    lab.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    primary = ifindex(lab, "eth1")
    table = 9999 + primary
    subnet, first = on_link(primary, "10.0.1.0/24"), rule("10.0.1.64/26", table, 31000)
    assert "has no rule `lookup main" in refused(lab, subnet, main_rule(), first)
    with Wire(lab) as wire:
        last = rule("10.0.1.64/26", table, 31020)
        assert wire.apply(subnet, main_rule(), last)["verdict"] == "applied"
        path = lab.run(["ip", "route", "get", "10.0.1.70", "from", "10.0.1.71", "iif", "br0"]).stdout
        assert "dev br0" in path
        assert "must come after it" in wire.apply({**main_rule(), "op": "rule_remove"})["reason"]
        lab.batch([f"route del {each} dev br0" for each in routes])
        assert wire.apply(first)["verdict"] == "applied"


def test_single_address_of_a_bridge_comes_after_main(lab: Lab) -> None:
    lab.batch(["link add br0 type bridge", "link set br0 up", "address add 10.0.1.99/32 dev br0"])
    primary = ifindex(lab, "eth1")
    first = rule("10.0.1.99", 9999 + primary, 31000)
    with Wire(lab) as wire:
        assert wire.apply(first)["verdict"] == "applied", "nothing in the subnet is routed elsewhere"
        assert wire.apply({**first, "op": "rule_remove"})["verdict"] == "applied"
    lab.batch(["route add 10.0.1.112/28 dev br0 src 10.0.1.99"])
    assert "has no rule `lookup main" in refused(lab, first)


def test_part_of_a_tunnels_link_local_network_stays_with_it(lab: Lab) -> None:
    """Tunnels of a cloud's VPN have such addresses. The route of the whole 169.254.0.0/16 may be any link's."""
    add_vpn(lab, "169.254.10.0/24 dev wg0", "169.254.0.0/16 dev wg0")
    primary = ifindex(lab, "eth1")
    through = route(primary, "169.254.10.2/32", "10.0.1.1", table=9999 + primary)
    assert "169.254.10.0/24, which another program routes by wg0" in refused(lab, through)
    with Wire(lab) as wire:
        elsewhere = route(primary, f"{METADATA}/32", "10.0.1.1", table=9999 + primary)
        assert wire.apply(elsewhere)["verdict"] == "applied"


@pytest.mark.parametrize("text", ["fd50::7/128", "fd50::7/64"])
def test_address_kept_on_a_link_that_is_down_stays_with_the_vpn(lab: Lab, text: str) -> None:
    """Once the link is up, the address is local, and the VPN's route to it has no effect."""
    for name in ("all", "eth0"):
        lab.run(["sysctl", "-qw", f"net.ipv6.conf.{name}.keep_addr_on_down=1"])
    lab.batch([f"address add {text} dev eth0 nodad noprefixroute", "link set eth0 down"])
    add_vpn(lab, "fd50::7/128 dev wg0")
    assert "another program routes by wg0" in refused(lab, {"op": "link_up", "link": ifindex(lab, "eth0")})
    lab.batch(["route del fd50::7/128 dev wg0"])
    with Wire(lab) as wire:
        assert wire.apply({"op": "link_up", "link": ifindex(lab, "eth0")})["verdict"] == "applied"


def test_own_on_link_route_does_not_free_another_links_gateway(lab: Lab) -> None:
    """The gateway of a /32 lies in no subnet (Hetzner, Scaleway). First its network on link, then as another link's."""
    gateway, subnet = "172.31.1.1", "172.31.1.0/24"
    primary, secondary = ifindex(lab, "eth1"), ifindex(lab, "eth0")
    lab.batch([f"route replace default via {gateway} dev eth1 onlink proto dhcp"])
    with Wire(lab) as wire:
        wire.apply(on_link(primary, subnet))
    assert f"would take over {gateway}" in refused(lab, address(secondary, "172.31.1.9/24"))


def test_packets_forwarded_for_other_networks_keep_their_route(lab: Lab) -> None:
    """A router's clients are behind its default route. No client has an address of the range that the rule selects."""
    secondary = ifindex(lab, "eth0")
    lab.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    table = 9999 + secondary
    ops = (
        address(secondary, "10.88.0.2/32"),
        on_link(secondary, "10.88.0.0/20"),
        route(secondary, "0.0.0.0/0", "10.88.0.1", table=table),
        main_rule(),
        rule("10.88.1.0/24", table, 31020),
    )
    assert "10.88.1.0/24 is no address or range of eth0" in refused(lab, *ops)
    path = lab.run(["ip", "route", "get", "198.51.100.10", "from", "10.88.1.7", "iif", "eth1"]).stdout
    assert "via 10.0.1.1 dev eth1" in path
    shared = (address(secondary, "10.0.1.99/32"), on_link(secondary, "10.0.1.0/24"), main_rule())
    with Wire(lab) as wire:
        of_subnet = wire.apply(*shared, rule("10.0.1.128/26", table, 31020))
        assert of_subnet["verdict"] == "applied", of_subnet


def test_range_with_local_addresses_of_another_link_gets_no_rule(lab: Lab) -> None:
    """The host itself sends from these addresses (AnyIP). On lo they belong to the interface with the subnet."""
    lab.batch(["route add local 10.0.1.72/29 dev eth0"])
    table = 9999 + ifindex(lab, "eth1")
    for selected in ("10.0.1.64/26", "10.0.1.72/29", "10.0.1.72/30"):
        assert f"{selected} is no address or range of eth1" in refused(lab, main_rule(), rule(selected, table, 31020))
    lab.batch(["route del local 10.0.1.72/29 dev eth0", "route add local 10.0.1.72/29 dev lo"])
    with Wire(lab) as wire:
        assert wire.apply(main_rule(), rule("10.0.1.64/26", table, 31020))["verdict"] == "applied"


@pytest.mark.parametrize("device", ["lo", "br0"])
def test_local_addresses_in_two_subnets_get_no_rule(lab: Lab, device: str) -> None:
    """Two interfaces are in one subnet: another program has not said through which its AnyIP range leaves."""
    lab.batch(["link add br0 type bridge", "link set br0 up", "address add 10.0.1.99/24 dev eth0 noprefixroute"])
    lab.batch([f"route add local 10.0.1.72/29 dev {device}"])
    for link in ("eth0", "eth1"):
        table = 9999 + ifindex(lab, link)
        assert f"is no address or range of {link}" in refused(lab, main_rule(), rule("10.0.1.72/29", table, 31020))


@pytest.mark.parametrize(
    ("pool", "gateway"), [("10.88.0.0/28", "10.88.0.1"), ("fd88::/120", "fd88::1"), ("10.88.0.1/32", "10.88.0.1")]
)
def test_gateway_inside_a_local_range_is_refused(lab: Lab, pool: str, gateway: str) -> None:
    """The kernel takes such a next hop for this host, and so asks the neighbours for every destination."""
    secondary = ifindex(lab, "eth0")
    mine, everything = ("10.88.0.99/24", "0.0.0.0/0") if "." in pool else ("fd88::99/64", "::/0")
    ops = [address(secondary, mine), route(secondary, pool, table=255)]
    default = route(secondary, everything, gateway, table=9999 + secondary)
    assert refused(lab, *ops, default) == f"gateway {gateway} is this host's own"
    with Wire(lab) as wire:
        assert wire.apply(*ops)["verdict"] == "applied"
    assert refused(lab, default) == f"gateway {gateway} is this host's own"
    lab.batch([f"route add local {pool} dev eth1 table local metric 7"])  # another program's: it stays
    assert refused(lab, {**ops[1], "op": "route_remove"}, default) == f"gateway {gateway} is this host's own"


def test_gateway_of_a_link_with_routes_outside_main_is_protected(lab: Lab, tmp_path: Path) -> None:
    """NetworkManager's ipv4.route-table= and systemd-networkd's RouteTable= keep all routes of a link out of main."""
    secondary = ifindex(lab, "eth0")
    lab.batch(
        [
            "address add 10.88.0.77/24 dev eth1 noprefixroute",
            "route add 10.88.0.0/24 dev eth1 table 100",
            "route add default via 10.88.0.1 dev eth1 table 100",
        ]
    )
    reason = refused(lab, address(secondary, "10.88.0.99/24"))
    assert reason == "the connected route 10.88.0.0/24 would take over 10.88.0.1, a gateway or resolver"
    with Wire(lab) as wire:
        assert wire.apply(address(secondary, "10.88.0.99/32"))["verdict"] == "applied"


@pytest.mark.parametrize("destinations", [("0.0.0.0/1", "128.0.0.0/1"), ("10.0.0.0/8",)])
def test_range_is_accepted_beside_wide_routes_of_a_vpn(lab: Lab, destinations: tuple[str, ...]) -> None:
    """The link has learned a subnet that contains the range. WireGuard's routes have no gateway."""
    add_vpn(lab, *(f"{destination} dev wg0" for destination in destinations))
    primary = ifindex(lab, "eth1")
    with Wire(lab) as wire:
        assert wire.apply(route(primary, "10.0.1.128/28", table=255))["verdict"] == "applied"
    lab.batch(["route add 10.0.1.64/26 dev wg0"])
    assert "10.0.1.64/26, which another program routes by wg0" in refused(
        lab, route(primary, "10.0.1.72/29", table=255)
    )


def test_rule_from_a_bridges_address_comes_after_that_for_main(lab: Lab) -> None:
    """The kernel chooses the bridge's address for connections to its network, which is a part of the link's subnet."""
    lab.batch(["link add br0 type bridge", "link set br0 up", "address add 10.0.1.193/28 dev br0"])
    primary = ifindex(lab, "eth1")
    table = 9999 + primary
    first, last = rule("10.0.1.193", table, 31000, suppress=True), rule("10.0.1.193", table, 31020)
    assert "has no rule `lookup main" in refused(lab, on_link(primary, "10.0.1.0/24"), main_rule(), first)
    with Wire(lab) as wire:
        assert wire.apply(on_link(primary, "10.0.1.0/24"), main_rule(), last)["verdict"] == "applied"
        assert "dev br0" in lab.run(["ip", "route", "get", "10.0.1.200", "from", "10.0.1.193"]).stdout
        assert wire.apply({**last, "op": "rule_remove"}, {**first, "priority": 31025})["verdict"] == "applied"
        removal = wire.apply({**main_rule(), "op": "rule_remove"})
        assert "31025 must come after it" in removal["reason"]


def test_removals_leave_no_rule_without_that_for_main(lab: Lab) -> None:
    """The operations between the two removals may take seconds."""
    primary = ifindex(lab, "eth1")
    last = rule("10.0.1.10", 9999 + primary, 31020)
    gone = [main_rule(op="rule_remove"), {**last, "op": "rule_remove"}]
    with Wire(lab) as wire:
        assert wire.apply(main_rule(), last)["verdict"] == "applied"
        assert "31020 must come after it; remove that rule before" in wire.apply(*gone)["reason"]
        assert wire.ask(request="check", ops=gone)["refusals"][0]["position"] == 0
        assert wire.apply(*gone[::-1])["verdict"] == "applied"


def test_rollback_keeps_the_rule_for_main_that_another_needs(lab: Lab) -> None:
    """The former one cannot be restored, because main's default route discards packets meanwhile."""
    primary = ifindex(lab, "eth1")
    moved = [main_rule() | {"priority": 31005}, main_rule(op="rule_remove")]
    with Wire(lab) as wire:
        assert wire.apply(main_rule(), rule("10.0.1.10", 9999 + primary, 31020))["verdict"] == "applied"
        assert wire.apply(*moved, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch(["route add unreachable default metric 1"])
        left = wire.ask(request="rollback", id="open")["not_undone"]
        lab.batch(["route delete unreachable default metric 1"])
    assert [(each["op"], each["priority"]) for each in left] == [("rule_add", 31010), ("rule_remove", 31005)]
    assert "31020 must come after it" in left[1]["reason"]
    assert "31005:\tfrom all lookup main suppress_prefixlength 0" in lab.run(["ip", "rule"]).stdout


@pytest.mark.parametrize("selector", ["10.0.1.64/28", "10.0.1.193/32"])
def test_rule_for_forwarded_packets_spares_routes_in_other_subnets(lab: Lab, selector: str) -> None:
    """The rule is for one subnet of the link; its table has another one on link, in which main has a pod's route."""
    lab.batch(["link add br0 type bridge", "link set br0 up", "address add 10.0.1.193/32 dev br0"])
    lab.batch(["address add 10.89.0.9/24 dev eth1", "route add 10.89.0.130/32 dev br0"])
    primary = ifindex(lab, "eth1")
    both = on_link(primary, "10.0.1.0/24"), on_link(primary, "10.89.0.0/24")
    first = rule(selector, 9999 + primary, 31000, suppress=True)
    assert "has no rule `lookup main" in refused(lab, *both, first)
    with Wire(lab) as wire:
        assert wire.apply(both[0], both[1], main_rule(), {**first, "priority": 31025})["verdict"] == "applied"
        assert "dev br0" in lab.run(["ip", "route", "get", "10.89.0.130", "from", "10.0.1.193"]).stdout


@pytest.mark.parametrize("selector", ["fd00:1::1:0/112", "10.0.1.64/28"])
def test_link_local_networks_of_a_bridge_do_not_matter_to_a_range(lab: Lab, selector: str) -> None:
    lab.batch(["link add br0 type bridge", "link add port type veth peer name port1", "link set port master br0"])
    lab.batch([f"link set {name} up" for name in ("port", "port1", "br0")])
    lab.batch(["address add fd00:1::10/64 dev eth1 nodad", "address add 169.254.7.1/16 dev br0"])
    lab.batch(["address add 169.254.7.2/16 dev eth1"])
    lab.wait_for(lambda: "fe80::/64 dev br0" in lab.run(["ip", "-6", "route"]).stdout)
    primary = ifindex(lab, "eth1")
    with Wire(lab) as wire:
        assert wire.apply(rule(selector, 9999 + primary, 31000, suppress=True))["verdict"] == "applied"


def test_first_host_of_a_further_subnet_is_no_address(lab: Lab) -> None:
    """DigitalOcean's anchor subnet has its own gateway. On Alibaba Cloud the gateway is the third-last host."""
    primary = ifindex(lab, "eth1")
    lab.batch(["address add 10.17.0.5/20 dev eth1"])
    reason = refused(lab, address(primary, "10.17.0.1/32"))
    assert reason == "10.17.0.1 is the gateway of 10.17.0.0/20 by convention"
    assert "covers 10.17.0.1" in refused(lab, route(primary, "10.17.0.0/28", table=255))
    lab.batch(["address add 10.89.0.9/24 dev eth0", "route add default via 10.89.0.253 dev eth0 metric 500"])
    with Wire(lab) as wire:
        assert wire.apply(address(ifindex(lab, "eth0"), "10.89.0.1/32"))["verdict"] == "applied"


@pytest.mark.parametrize("length", [16, 24, 29])
def test_subnet_around_a_single_addresss_gateway_is_refused(lab: Lab, length: int) -> None:
    """For masquerade and packets without a source, the kernel prefers an address whose subnet has the next hop."""
    primary = ifindex(lab, "eth1")
    lab.batch(["address flush dev eth1", f"address add {MINE}/32 dev eth1"])
    lab.batch(["route add default via 10.0.1.1 dev eth1 onlink"])
    reason = refused(lab, address(primary, f"10.0.1.5/{length}"))
    assert "10.0.1.1, the gateway of main's default route on eth1" in reason
    with Wire(lab) as wire:
        assert wire.apply(address(primary, "10.0.1.5/32"))["verdict"] == "applied"
    assert f"src {MINE}" in lab.run(["ip", "route", "get", "198.51.100.10"]).stdout


def test_edge_of_a_subnet_is_neither_address_nor_range(lab: Lab) -> None:
    primary = ifindex(lab, "eth1")
    lab.batch(["address add 10.83.0.1/24 dev eth0", "link set eth0 down"])  # so it has no broadcast route
    for link, edge in ((primary, "10.0.1.0/32"), (ifindex(lab, "eth0"), "10.83.0.255/32")):
        for op in (address(link, edge), route(link, edge, table=255)):
            assert "is the network's or broadcast address" in refused(lab, op)
    with Wire(lab) as wire:
        assert wire.apply(route(primary, "10.0.1.240/28", table=255))["verdict"] == "applied", "a delegated prefix"


def test_subnet_and_a_part_of_it_are_added_together(lab: Lab) -> None:
    primary = ifindex(lab, "eth1")
    with Wire(lab) as wire:
        answer = wire.apply(address(primary, "fd7a::99/64"), address(primary, "fd7a::5/126"))
        assert answer["verdict"] == "applied", answer


def test_prefix_kept_off_link_by_a_router_stays_so_in_parts(lab: Lab) -> None:
    """A router's prefix without the flag L: the host gets an address in it, and no route."""
    primary, prefix = ifindex(lab, "eth1"), "2001:db8:77::/64"
    lab.batch(["address add 2001:db8:77::10/64 dev eth1 nodad noprefixroute"])
    for part in ("2001:db8:77::5/65", "2001:db8:77:0:8000::5/65"):
        assert f"lies in {prefix}, which is not on link" in refused(lab, address(primary, part))
    lab.batch([f"route add {prefix} dev eth1 proto ra metric 100"])
    with Wire(lab) as wire:
        assert wire.apply(address(primary, "2001:db8:77::5/65"))["verdict"] == "applied", "the router has it on link"


@pytest.mark.parametrize(("prefixes", "accepted"), [("route", True), ("local", False), ("ignore", False)])
def test_range_that_is_only_a_rule_needs_prefixes_route(lab: Lab, prefixes: str, accepted: bool) -> None:
    """On a router, such a rule could take its clients' packets."""
    lab.write_config(f'[Network]\nPrefixes = "{prefixes}"\n{CONFIG}')
    lab.stop("netagent")
    start(lab)
    primary = ifindex(lab, "eth1")
    ops = [main_rule(), rule("10.0.1.64/26", 9999 + primary, 31020)]
    if not accepted:
        assert "10.0.1.64/26 is no address or range of eth1" in refused(lab, *ops)
        ops.insert(0, route(primary, "10.0.1.64/26", table=255))
    if prefixes == "ignore":
        assert "Prefixes= is ignore" in refused(lab, *ops)
        ops[0] = route(primary, "10.0.1.64/32", table=255)
        ops.pop()
    with Wire(lab) as wire:
        assert wire.apply(*ops)["verdict"] == "applied"


def test_second_link_in_a_subnet_gets_it_on_link_beside_a_pod(lab: Lab) -> None:
    """The first link has the subnet by DHCP, and a container network has a host route inside it."""
    lab.batch(["link add br0 type bridge", "link set br0 up", "route add 10.0.1.70/32 dev br0"])
    secondary = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        answer = wire.apply(address(secondary, "10.0.1.99/32"), on_link(secondary, "10.0.1.0/24"))
        assert answer["verdict"] == "applied", answer
    assert "10.0.1.70/32, which another program routes by br0" in refused(lab, on_link(secondary, "10.0.1.64/28"))


def test_link_is_set_up_once_in_a_request(lab: Lab) -> None:
    """Thousands of them would keep netagent busy."""
    lab.batch(["link set eth0 down"])
    up = {"op": "link_up", "link": ifindex(lab, "eth0")}
    assert refused(lab, up, up) == "the same operation twice in one request"


# An advertised prefix. Any neighbour can send one, of any length, on any interface of the cloud.

KILL_SWITCHES = {
    "a default route that discards": ["route add blackhole ::/0 metric 1"],
    "ip's default metric": ["route add unreachable ::/0"],
    "a protocol of routers": ["route add unreachable ::/0 proto ra"],
    "a VPN by halves": ["route add ::/1 dev wg0", "route add 8000::/1 dev wg0"],
}


@pytest.mark.parametrize("protocol", ["kernel", "ra"])
@pytest.mark.parametrize("prefix", ["2000::/3", "2600::/16"])
@pytest.mark.parametrize("how", KILL_SWITCHES)
def test_advertised_prefix_opens_no_kill_switch(lab: Lab, how: str, prefix: str, protocol: str) -> None:
    """systemd-networkd, which processes advertisements itself, adds the prefix with the protocol `ra`."""
    on = ifindex(lab, "eth0")
    add_vpn(lab)
    lab.batch(
        [
            *KILL_SWITCHES[how],
            "neighbour replace fe80::77 lladdr 02:00:00:00:00:77 dev eth0 router",
            f"route add {prefix} dev eth1 proto {protocol} metric 256 expires 30",
        ]
    )
    source = "fd00:2::11"
    ops = [address(on, f"{source}/128"), route(on, prefix, "fe80::77"), rule(f"{source}/128", 9999 + on)]
    reason = refused(lab, *ops)
    assert "discards packets" in reason or "another program routes by wg0" in reason


@pytest.mark.parametrize("protocol", ["kernel", "ra"])
def test_advertised_default_route_hides_no_discarding_one(lab: Lab, protocol: str) -> None:
    lab.batch(
        [
            "route add unreachable ::/0",
            f"route add ::/0 dev eth1 proto {protocol} metric 256 expires 30",
        ]
    )
    assert "main's default route discards packets" in refused(lab, main_rule("::/0"))


@pytest.mark.parametrize("prefix", ["fc00::/7", "fd00:2::/40"])
def test_advertised_prefix_denies_no_subnet_to_another_interface(lab: Lab, prefix: str) -> None:
    """A prefix as a cloud may have it (/44 and longer) still does: docs/policy.md."""
    lab.batch([f"route add {prefix} dev eth1 proto kernel metric 256 expires 30"])
    with Wire(lab) as wire:
        assert wire.apply(address(ifindex(lab, "eth0"), "fd00:2::11/64"))["verdict"] == "applied"


# Routes of other programs for an interface's own subnet.


@pytest.mark.parametrize("hop", ["via 10.0.2.1 dev eth0", "via 10.0.1.1 dev eth1", "via 10.0.1.77 dev eth1"])
def test_forwarded_packets_keep_routes_through_a_gateway(lab: Lab, hop: str) -> None:
    primary = ifindex(lab, "eth1")
    lab.batch(["address add 10.0.2.10/24 dev eth0", f"route add 10.0.1.128/25 {hop}"])
    lab.run(
        ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"]
    )
    ops = [on_link(primary, "10.0.1.0/24"), rule("10.0.1.64/26", 9999 + primary)]
    forwarded = ["ip", "route", "get", "10.0.1.200", "from", "10.0.1.70", "iif", "eth0"]
    before = lab.run(forwarded).stdout
    assert "another program routes 10.0.1.0/24 or a part of it elsewhere" in refused(lab, *ops)
    with Wire(lab) as wire:
        answer = wire.apply(main_rule(), ops[0], rule("10.0.1.64/26", 9999 + primary, 31020))
        assert answer["verdict"] == "applied", answer
    assert lab.run(forwarded).stdout == before


def test_subnet_that_only_a_vpn_routes_stays_in_the_vpn(lab: Lab, tmp_path: Path) -> None:
    """Some VPNs remove the connected route of the interface's subnet, and route it themselves."""
    primary = ifindex(lab, "eth1")
    add_vpn(lab)
    lab.batch(["route del 10.0.1.0/24 dev eth1", "route add 10.0.1.0/24 dev wg0"])
    ops = [on_link(primary, "10.0.1.0/24"), rule(MINE, 9999 + primary)]
    with packet_observers(lab, lab.neighbours, tmp_path) as seen:
        assert "10.0.1.0/24, which another program routes by wg0" in refused(lab, *ops)
        assert seen.receivers("10.0.1.77", MINE) == set()


# Addresses of other hosts, and special addresses of this one.


@pytest.mark.parametrize(("host", "wider", "beside"), [("10.77.9.9/32", 29, "10"), ("fd77::9/128", 125, "a")])
@pytest.mark.parametrize("protocol", ["dhcp", "ra"])
def test_a_host_of_a_lease_is_not_claimed_by_another_interface(
    lab: Lab, host: str, wider: int, beside: str, protocol: str
) -> None:
    """systemd-networkd adds such routes to name and time servers of the lease."""
    lab.batch([f"route add {host} dev eth1 proto {protocol}"])
    secondary, primary = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    for op in (address(secondary, host), route(secondary, host, table=255), route(secondary, host)):
        assert refused(lab, op) == f"{host.partition('/')[0]} is a host on eth1, by DHCP or a router"
    around = ip_interface(f"{host.partition('/')[0]}/{wider}").network
    assert "overlaps a subnet of eth1" in refused(lab, route(secondary, str(around), table=255))
    with Wire(lab) as wire:
        assert wire.apply(address(secondary, host.replace("9/", f"{beside}/")))["verdict"] == "applied"
        assert wire.apply(address(primary, host))["verdict"] == "applied"


@pytest.mark.parametrize(("host", "subnet"), [("10.77.9.255/32", "10.77.9.5/24"), ("fd77::/128", "fd77::5/64")])
def test_a_host_of_a_lease_is_no_end_of_a_network(lab: Lab, host: str, subnet: str) -> None:
    """It would become a broadcast address or, with IPv6 forwarding, an anycast address of this host."""
    lab.batch([f"route add {host} dev eth1 proto dhcp"])
    assert "is a host, by DHCP or a router" in refused(lab, address(ifindex(lab, "eth0"), subnet))


def test_a_host_of_a_lease_in_another_table_is_not_claimed(lab: Lab) -> None:
    """systemd-networkd adds the routes of a lease to RouteTable=, or to the table of a VRF."""
    lab.batch(["route add 10.77.9.5 dev eth1 table 77 proto dhcp", "rule add to 10.77.9.0/24 lookup 77 pref 900"])
    on = ifindex(lab, "eth0")
    for op in (address(on, "10.77.9.5/32"), route(on, "10.77.9.5/32", table=255), route(on, "10.77.9.4/30", table=255)):
        assert refused(lab, op) == "10.77.9.5 is a host on eth1, by DHCP or a router"


@pytest.mark.parametrize("length", [64, 128])
def test_a_host_of_a_lease_stays_when_a_link_comes_up(lab: Lab, length: int) -> None:
    """The kernel has kept the address (keep_addr_on_down), and would make it local."""
    lab.run(["sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1"])
    lab.batch([f"address add fd77::9/{length} dev eth0 nodad", "link set eth0 down"])
    lab.batch(["route add fd77::9/128 dev eth1 proto dhcp"])
    assert "fd77::9 is a host on eth1" in refused(lab, {"op": "link_up", "link": ifindex(lab, "eth0")})


def test_a_kept_address_that_is_a_resolver_stays_down(lab: Lab) -> None:
    """It became one while the link was down. An operator may have given the host itself the address of one."""
    on, file = ifindex(lab, "eth0"), lab.path("/etc/resolv.conf")
    lab.run(["sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1"])
    with Wire(lab) as wire:
        assert wire.apply({**address(on, "fd77::9/128"), "route": False})["verdict"] == "applied"
    lab.batch(["address add fd77::8/128 dev eth0 nodad", "link set eth0 down"])
    file.write_text("nameserver fd77::9\n")
    assert refused(lab, {"op": "link_up", "link": on}) == (
        "fd77::9 of eth0 is a resolver's address by now; remove that address first"
    )
    file.write_text("nameserver fd77::8\n")
    with Wire(lab) as wire:
        assert wire.apply({"op": "link_up", "link": on})["verdict"] == "applied"


@pytest.mark.parametrize(
    ("own", "subnet", "narrow"),
    [("10.5.0.7/24", "10.5.0.0/24", "tos 0x10"), ("fd05::7/64", "fd05::/64", "from fd99::/64")],
)
def test_a_route_for_some_packets_does_not_put_a_subnet_on_link(lab: Lab, own: str, subnet: str, narrow: str) -> None:
    """All others go through the VPN that has the subnet of the address."""
    lab.batch(["link add wg0 type bridge", "link set wg0 up", f"route add {subnet} dev wg0"])
    lab.batch([f"address add {own} dev eth0 noprefixroute" + (" nodad" if ":" in own else "")])
    lab.run(["ip", "-6" if ":" in own else "-4", "route", "add", *subnet.split(), *narrow.split(), "dev", "eth0"])
    assert "another program routes by wg0" in refused(lab, route(ifindex(lab, "eth0"), subnet))


@pytest.mark.parametrize(
    ("own", "later"),
    [
        ("fd77::9/128", "route add fd77::/64 dev wg0"),
        ("fd77::9/128", "route add fd77::9/128 dev eth1 proto dhcp"),
        ("fd77::9/64", "route add fd77::/128 dev wg0"),  # with forwarding, this host has that anycast address
        ("fd77::9/128", ""),
        ("fd77::9/64", ""),
    ],
)
def test_a_rollback_makes_no_kept_address_local(lab: Lab, own: str, later: str) -> None:
    """The kernel makes a new IPv6 address local at once, also on a link that is down."""
    on = ifindex(lab, "eth0")
    lab.run(["sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1"])
    with Wire(lab) as wire:
        assert wire.apply(address(on, own))["verdict"] == "applied"
        lab.batch(["link add wg0 type bridge", "link set wg0 up", "link set eth0 down", *filter(None, [later])])
        gone = address(on, own, "address_remove")
        assert wire.apply(gone, confirm_within=60, request="open")["verdict"] == "applied"
        left = [each["op"] for each in wire.ask(request="rollback", id="open").get("not_undone", ())]
    assert left == (["address_add"] if later else [])
    local = "local fd77::9" in lab.run(["ip", "-6", "route", "show", "table", "local"]).stdout
    assert local == (not later)


@pytest.mark.parametrize("where", ["the gateway by convention", "AllowAddresses"])
def test_a_neighbour_does_not_keep_a_link_down(lab: Lab, where: str) -> None:
    """It advertises a network whose first host is an address that the link has kept. Or it is allowed to be local."""
    on = ifindex(lab, "eth0")
    lab.run(["sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1"])
    with Wire(lab) as wire:
        assert wire.apply(address(on, "fd77::9/128"))["verdict"] == "applied"
    lab.batch(["link set eth0 down"])
    if where == "AllowAddresses":
        lab.path("/etc/resolv.conf").write_text("nameserver fd77::9\n")
        lab.stop("netagent")
        lab.write_config(CONFIG + 'AllowAddresses = "fd77::9/128"\n')
        start(lab)
    else:
        lab.batch(["route add fd77::8/125 dev eth1 proto ra"])
    with Wire(lab) as wire:
        assert wire.apply({"op": "link_up", "link": on})["verdict"] == "applied"


@pytest.mark.parametrize("narrow", ["198.51.100.0/24 tos 0x10", "2001:db8:1::/48 from 2001:db8:2::/64"])
def test_a_route_for_some_packets_is_no_network_of_a_link(lab: Lab, narrow: str) -> None:
    """All other packets to this public network take the default route."""
    on, network = ifindex(lab, "eth0"), narrow.split()[0]
    lab.run(["ip", "-6" if ":" in narrow else "-4", "route", "add", *narrow.split(), "dev", "eth0"])
    assert "private" in refused(lab, route(on, network))
    lab.batch([f"route add {network} dev eth0"])
    with Wire(lab) as wire:
        assert wire.apply(route(on, network))["verdict"] == "applied"


@pytest.mark.parametrize(
    ("own", "foreign"),
    [
        ("10.5.0.7/24", "10.5.0.0/24 encap ip id 5 dst 192.0.2.1 dev eth0"),
        ("fd05::7/64", "fd05::/64 encap ip6 id 5 dst 2001:db8::1 dev eth0"),
        ("10.5.0.7/24", "local 10.5.0.0/24 dev eth0 table main"),
    ],
)
def test_a_tunnel_does_not_put_a_subnet_on_link(lab: Lab, own: str, foreign: str) -> None:
    """Another program has the subnet of the address only in a tunnel, or on this host itself."""
    lab.batch([f"address add {own} dev eth0 noprefixroute" + (" nodad" if ":" in own else "")])
    lab.run(["ip", "-6" if ":" in own else "-4", "route", "add", *foreign.split()])
    subnet = str(ip_interface(own).network)
    assert "another program routes by eth0" in refused(lab, route(ifindex(lab, "eth0"), subnet))


def test_an_address_of_the_request_itself_is_not_removed(lab: Lab) -> None:
    """Each such removal would wait until the kernel has joined the multicast group of the IPv6 address."""
    on = ifindex(lab, "eth0")
    removal = address(on, "fd77::9/128", "address_remove")
    assert refused(lab, address(on, "fd77::9/128"), removal) == "the request adds fd77::9/128 itself"


def test_a_host_route_with_the_kernels_protocol_is_another_programs(lab: Lab) -> None:
    """The kernel itself adds such an IPv6 route only for an address of the link, or the peer of one."""
    lab.batch(["route add fd77::9/128 dev eth1 proto kernel"])
    secondary = ifindex(lab, "eth0")
    for op in (address(secondary, "fd77::9/128"), route(secondary, "fd77::9/128", table=255)):
        assert "another program routes by eth1" in refused(lab, op)


JOIN_ANYCAST = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    group = socket.inet_pton(socket.AF_INET6, sys.argv[1]) + socket.if_nametoindex("eth1").to_bytes(4, sys.byteorder)
    sock.setsockopt(socket.IPPROTO_IPV6, 27, group)  # IPV6_JOIN_ANYCAST
    sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["eth0", "eth1"])
def test_an_anycast_address_of_a_socket_is_no_address(lab: Lab, name: str) -> None:
    """The kernel would answer success on the socket's interface, but not make the address local."""
    lab.batch(["address add fd00:1::10/64 dev eth1 nodad"])
    joined = lab.instance.popen([sys.executable, "-I", "-S", "-c", JOIN_ANYCAST, "fd00:1::53"], stdin=subprocess.PIPE)
    try:
        anycast = ["ip", "-6", "route", "show", "table", "local", "type", "anycast"]
        lab.wait_for(lambda: "fd00:1::53" in lab.run(anycast).stdout)
        on = ifindex(lab, name)
        assert "is a broadcast or anycast address" in refused(lab, address(on, "fd00:1::53/128"))
        assert "did not add the route" in refused(lab, route(on, "fd00:1::53/128", table=255))
    finally:
        joined.communicate()


@pytest.mark.parametrize("name", ["eth0", "eth1"])
def test_an_unusual_broadcast_address_is_no_address(lab: Lab, name: str) -> None:
    lab.batch(["address add 10.77.0.5/24 broadcast 10.77.0.127 dev eth1"])
    on = ifindex(lab, name)
    assert "is a broadcast or anycast address" in refused(lab, address(on, "10.77.0.127/32"))
    assert "did not add the route" in refused(lab, route(on, "10.77.0.127/32", table=255))


def test_a_rule_for_a_table_of_no_link_names_the_table(lab: Lab) -> None:
    for of_no_link in (rule("10.0.1.10", 254), rule("0.0.0.0/0", 254, mark=1, mask=0xFF00000)):
        assert refused(lab, of_no_link) == "table 254 is that of no link"


def test_a_very_high_ifindex_leads_to_no_table_of_others(lab: Lab) -> None:
    """RouteTableBase + ifindex, modulo the distance of the second tables (2^30)."""
    index = 500 - 9999 + 2**30
    lab.batch(
        [
            f"link add high index {index} type veth peer name low",
            "link set high up",
            "route add 10.9.0.0/16 via 10.0.1.1 table 500",
        ]
    )
    source = address(index, "10.77.0.5/32")
    assert refused(lab, source, rule("10.77.0.5", 500)) == "table 500 is that of no link"
    with Wire(lab) as wire:
        assert wire.apply(source, rule("10.77.0.5", 9999 + index))["verdict"] == "applied"
