"""Requests of the fetcher's user that once diverted traffic: each is refused, and a similar legitimate one is accepted.

The lab's primary is eth1 (10.0.1.10/24, gateway 10.0.1.1, all by DHCP); eth0 is the secondary, in 10.0.2.0/24.
"""

from __future__ import annotations

import json
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from cloud_network.netagent import claims, ledger, policy

from tests.lab import Lab
from tests.system.netagent.conftest import start
from tests.system.netagent.wire import (
    CONFIG,
    Wire,
    address,
    audit_lines,
    ifindex,
    kernel_state,
    main_rule,
    route,
    rule,
)

Ops = list[dict[str, Any]]


def verdict(lab: Lab, *ops: dict[str, Any]) -> str:
    """Return the verdict on `ops`, and flush what was applied."""
    with Wire(lab) as wire:
        answer = wire.apply(*ops)
        if answer["verdict"] == "applied":
            wire.ask(request="flush", id="after")
    return str(answer.get("reason", answer["verdict"]))


def refused(lab: Lab, *ops: dict[str, Any]) -> str:
    """Return the reason of the refusal; check that nothing changed and that `check` gives the same reason."""
    before = without_link_local(kernel_state(lab))
    with Wire(lab) as wire:
        checked = wire.ask(request="check", ops=list(ops))
        answer = wire.apply(*ops)
    assert answer["verdict"] == "refused", answer
    assert answer["reason"] in [each["reason"] for each in checked["refusals"]]
    assert without_link_local(kernel_state(lab)) == before
    return str(answer["reason"])


def without_link_local(state: dict[str, str]) -> dict[str, list[str]]:
    """Leave out what the kernel adds by itself: link-local addresses of a new link, a second or two later."""
    by_kernel = ("fe80:", "ff00::/8")
    return {
        kind: [line for line in text.splitlines() if not any(each in line for each in by_kernel)]
        for kind, text in state.items()
    }


def test_check_finds_every_removal_that_would_orphan_a_rule(lab: Lab) -> None:
    """A refused removal counts as not applied: the address stays, and another link cannot get it."""
    on, other = ifindex(lab, "eth1"), ifindex(lab, "eth0")
    hosts = [f"10.77.0.{number}" for number in (1, 2, 3)]
    removals = [address(on, host, "address_remove") for host in hosts]
    with Wire(lab) as wire:
        rules = [rule(host, 9999 + on) for host in hosts[1:]]
        assert wire.apply(*(address(on, host) for host in hosts), *rules)["verdict"] == "applied"
        checked = wire.ask(request="check", ops=[*removals, *(address(other, host) for host in hosts)])
        assert [each["position"] for each in checked["refusals"]] == [1, 2, 4, 5]
        assert "depends on it" in checked["refusals"][1]["reason"]
        assert "eth1 has 10.77.0.3 already" in checked["refusals"][3]["reason"]
        wire.ask(request="flush", id="after")


# Gateways


@pytest.mark.parametrize("neighbour", ["10.0.1.77", "10.0.1.9"])  # .9: the first host of 10.0.1.8/29
@pytest.mark.parametrize("destination", ["169.254.169.254/32", "0.0.0.0/0", "10.9.0.0/16"])
def test_a_neighbour_is_no_gateway(lab: Lab, destination: str, neighbour: str) -> None:
    on = ifindex(lab, "eth1")
    ops = [route(on, destination, neighbour), rule("10.0.1.10", 9999 + on)]
    assert "is not known as a gateway" in refused(lab, *ops)
    assert verdict(lab, route(on, destination, "10.0.1.1"), ops[1]) == "applied"


def test_a_gateway_by_convention_and_no_second_one(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    own = address(on, "10.0.2.10/24")
    assert "not known as a gateway" in refused(lab, own, route(on, "0.0.0.0/0", "10.0.2.77"))
    first = [own, route(on, "0.0.0.0/0", "10.0.2.1")]
    assert verdict(lab, *first) == "applied"
    assert "not known as a gateway" in refused(lab, *first, route(on, "10.9.0.0/16", "10.0.2.9"))


def test_a_neighbour_of_another_link_is_no_gateway_by_convention(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    own = {**address(on, "10.0.1.62/32"), "route": False}
    ops = [own, route(on, "10.0.1.61/32")]  # the third-last host of 10.0.1.0/26
    assert "would take over a part of 10.0.1.0/24" in refused(lab, *ops)


def test_an_ipv6_neighbour_is_a_gateway_only_as_a_router(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    ops = [address(on, "fd00:2::10/128"), route(on, "::/0", "fe80::77")]
    assert "not known as a gateway" in refused(lab, *ops)
    lab.run(["ip", "neighbour", "replace", "fe80::77", "lladdr", "02:00:00:00:00:77", "dev", "eth0", "router"])
    assert verdict(lab, *ops) == "applied"


def test_router_neighbour_is_a_gateway_by_link_local_address(lab: Lab) -> None:
    """A neighbour sets its router flag by one neighbour advertisement (RFC 4861, 7.2.5)."""
    on = ifindex(lab, "eth1")
    lab.batch(
        [
            "address add fd00:1::10/64 dev eth1 nodad",
            "neighbour replace fd00:1::77 lladdr 02:00:00:00:00:77 dev eth1 router",
        ]
    )
    assert "not known as a gateway" in refused(lab, route(on, "::/0", "fd00:1::77"))


def test_two_interfaces_in_one_subnet_are_accepted(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    second = {**address(on, "10.0.1.60/32"), "route": False}
    table = [route(on, "10.0.1.0/24"), route(on, "0.0.0.0/0", "10.0.1.1")]
    assert verdict(lab, second, *table, rule("10.0.1.60", 9999 + on)) == "applied"


@pytest.mark.parametrize("text", ["10.0.1.60/23", "10.0.1.60/25"])
def test_a_second_interface_claims_the_subnet_as_it_is(lab: Lab, text: str) -> None:
    on = ifindex(lab, "eth0")
    own = {**address(on, "10.0.1.60/32"), "route": False}
    network = str(ip_interface(text).network)
    assert "take over" in refused(lab, address(on, text))
    assert "take over" in refused(lab, own, route(on, network))


def test_a_second_interface_gets_no_connected_route(lab: Lab) -> None:
    """Of two routes with one metric the older is used: the second interface's, once the first is configured again."""
    on = ifindex(lab, "eth0")
    assert "would take over 10.0.1.0/24" in refused(lab, address(on, "10.0.1.60/24"))
    assert verdict(lab, {**address(on, "10.0.1.60/32"), "route": False}) == "applied"


@pytest.mark.parametrize(("foreign", "owned"), [("10.0.5.10/24", "10.0.5.60/24"), ("fd00:5::10/64", "fd00:5::60/64")])
def test_a_subnet_of_an_interface_that_is_down_is_left_to_it(lab: Lab, foreign: str, owned: str) -> None:
    """Its connected route would come second, and not be used."""
    on = ifindex(lab, "eth0")
    lab.run(["sysctl", "-qw", "net.ipv6.conf.eth1.keep_addr_on_down=1"])
    nodad = " nodad" if ":" in foreign else ""
    lab.batch([f"address add {foreign} dev eth1{nodad}", "link set eth1 down"])
    assert "would take over" in refused(lab, address(on, owned))
    lab.batch([f"address delete {foreign} dev eth1"])
    assert verdict(lab, address(on, owned)) == "applied"


@pytest.mark.parametrize("text", ["10.0.1.255/32", "10.0.1.0/32", "fd00:3::/128"])
def test_an_edge_of_another_links_subnet_is_no_address(lab: Lab, text: str) -> None:
    lab.batch(["address add fd00:3::5/64 dev eth1 nodad"])
    lab.wait_for(lambda: "local fd00:3::5" in lab.run(["ip", "-6", "route", "show", "table", "local"]).stdout)
    assert "broadcast address" in refused(lab, address(ifindex(lab, "eth0"), text))


def test_allow_addresses_widens_a_learned_subnet(lab: Lab) -> None:
    on = ifindex(lab, "eth1")
    wide = address(on, "10.0.1.60/23")
    assert "wider than 10.0.1.0/24" in refused(lab, wide)
    lab.stop("netagent")
    lab.write_config(CONFIG + 'AllowAddresses = "10.0.0.0/23"\n')
    start(lab)
    assert verdict(lab, wide) == "applied"


@pytest.mark.parametrize("hop", ["via inet6 fe80::1 dev eth0", "nhid 20"])
def test_an_ipv6_gateway_of_ipv4_routes_leaves_no_choice(lab: Lab, hop: str) -> None:
    """RFC 5549, as with BGP unnumbered: the link has a default route, so no neighbour is a gateway by convention."""
    on = ifindex(lab, "eth0")
    ops = [address(on, "10.77.0.9/24"), route(on, "192.0.2.0/24", "10.77.0.253")]
    lab.batch(["nexthop add id 10 via fe80::1 dev eth0", "nexthop add id 20 group 10"])
    lab.batch([f"route add 0.0.0.0/0 metric 500 {hop}"])
    assert "not known as a gateway" in refused(lab, *ops)
    lab.batch(["route del 0.0.0.0/0 metric 500"])
    assert verdict(lab, *ops) == "applied"


def test_an_advertised_router_is_no_gateway_of_ipv4_routes(lab: Lab) -> None:
    """A neighbour can advertise itself for a moment, and be the next hop of another program (BGP unnumbered)."""
    own = address(ifindex(lab, "eth0"), "10.77.3.5/24")
    lab.batch(["route add 10.77.0.0/16 via inet6 fe80::99 dev eth0 proto bgp"])
    lab.batch(["route add ::/0 via fe80::99 dev eth0 proto ra expires 1800"])
    assert "10.77.0.0/16, which another program routes by eth0 via fe80::99" in refused(lab, own)
    lab.batch(["route add 0.0.0.0/0 via inet6 fe80::99 dev eth0 metric 500"])
    assert verdict(lab, own) == "applied"


def test_an_expired_router_is_no_gateway(lab: Lab) -> None:
    """The kernel lists its default route for up to 30 s more, but no longer uses it."""
    through = route(ifindex(lab, "eth0"), "2600::/12", "fe80::99")
    lab.batch(["route add ::/0 via fe80::99 dev eth0 proto ra expires 2"])
    assert "fe80::99" in lab.run(["ip", "-6", "route", "get", "2600::1"]).stdout
    lab.wait_for(lambda: "fe80::99" not in lab.run(["ip", "-6", "route", "get", "2600::1"], check=False).stdout)
    assert "fe80::99 is not known as a gateway" in refused(lab, through)
    lab.run(["ip", "-6", "route", "del", "::/0", "via", "fe80::99", "dev", "eth0"], check=False)


def test_an_ipv6_gateway_of_ipv4_routes_is_none_of_ipv6_subnets(lab: Lab) -> None:
    """The subnet's own gateway is not known, so that its first host is protected."""
    first = address(ifindex(lab, "eth0"), "fd00:d::1/128")
    lab.batch(["route add fd00:d::/64 dev eth0 proto ra", "route add 0.0.0.0/0 metric 500 via inet6 fe80::1 dev eth0"])
    assert "the gateway of fd00:d::/64 by convention" in refused(lab, first)
    lab.batch(["route del 0.0.0.0/0 metric 500", "route del fd00:d::/64 dev eth0"])


@pytest.mark.parametrize("distance", [0, claims.SECOND_TABLE])
def test_an_operators_route_in_the_links_table_names_the_gateway(lab: Lab, distance: int) -> None:
    on = ifindex(lab, "eth0")
    lab.batch([f"route add default via 10.77.0.7 dev eth0 onlink table {9999 + on + distance}"])
    own = address(on, "10.77.0.9/24")
    assert "not known as a gateway" in refused(lab, own, route(on, "192.0.2.0/24", "10.77.0.1"))
    assert verdict(lab, own, route(on, "192.0.2.0/24", "10.77.0.7")) == "applied"


def test_throw_routes_of_other_tables_lead_nowhere(lab: Lab) -> None:
    """A VPN leaves out the local subnet with such a route (Tailscale in table 52, strongSwan in 220)."""
    on = ifindex(lab, "eth1")
    lab.batch(["route add throw 10.0.1.0/24 table 52", "route add throw 10.88.0.0/16"])
    assert verdict(lab, address(on, "10.0.1.66/32"), route(on, "10.0.1.0/24")) == "applied"
    assert "discarding it" in refused(lab, address(on, "10.88.0.9/32"))  # without a rule after main, it does


def test_allow_gateways_names_a_neighbour(lab: Lab) -> None:
    lab.stop("netagent")
    lab.write_config(CONFIG + 'AllowGateways = "10.0.1.77"\n')
    start(lab)
    assert verdict(lab, route(ifindex(lab, "eth1"), "10.9.0.0/16", "10.0.1.77")) == "applied"


def test_a_resolver_file_that_becomes_unreadable_is_reported(lab: Lab) -> None:
    on, file = ifindex(lab, "eth0"), lab.path("/etc/resolv.conf")
    file.write_text("nameserver 10.0.2.53\n")
    assert "is a resolver" in refused(lab, address(on, "10.0.2.53/32"))
    assert "cannot be read" not in lab.log("netagent")
    file.chmod(0o600)
    for _ in range(2):
        assert verdict(lab, address(on, "10.0.2.53/32")) == "applied"
    assert lab.log("netagent").count("/etc/resolv.conf: cannot be read (Permission denied)") == 1


@pytest.mark.parametrize("text", ["239.1.1.1/32", "224.0.0.0/4", "255.255.255.255/32", "127.0.0.5/32", "ff05::1/128"])
def test_no_gateway_gets_multicast_or_broadcast(lab: Lab, text: str) -> None:
    """With a gateway, the kernel sends multicast packets to the gateway's MAC, so that members do not receive them."""
    on, gateway = ifindex(lab, "eth1"), "fe80::98" if ":" in text else "10.0.1.1"
    lab.run(["ip", "neighbour", "replace", "fe80::98", "lladdr", "02:00:00:00:00:98", "dev", "eth1", "router"])
    assert "multicast, broadcast or reserved" in refused(lab, route(on, text, gateway))


def test_the_last_address_of_all_is_refused_as_a_gateway(lab: Lab) -> None:
    """There is no address after it, which could be the first host of a subnet."""
    last = "255.255.255.255"
    lab.batch([f"route add {last} dev eth1 proto dhcp"])
    assert "is not known as a gateway" in refused(lab, route(ifindex(lab, "eth1"), "10.99.0.0/16", last))
    lab.batch([f"route delete {last} dev eth1"])


def test_a_rule_to_a_resolvers_prefix_is_refused(lab: Lab) -> None:
    on = ifindex(lab, "eth1")
    assert "no address or range" in refused(lab, rule("10.0.1.2/31", 9999 + on, to=True))
    assert verdict(lab, rule("10.0.1.10", 9999 + on, to=True)) == "applied"


# Addresses that the host already routes elsewhere


RIVALS = {
    "VPN": [
        "link add wg0 type bridge",
        "link set wg0 addrgenmode none",
        "link set wg0 up",
        "route add 10.50.0.0/24 dev wg0",
    ],
    "CNI": [
        "link add flannel.1 type bridge",
        "link set flannel.1 addrgenmode none",
        "link set flannel.1 up",
        "route add 10.50.0.0/16 dev flannel.1",
    ],
    "host-gw": ["route add 10.50.0.0/24 via 10.0.1.77"],
    "blackhole": ["route add blackhole 10.50.0.0/24"],
    "multipath": ["route add 10.50.0.0/24 nexthop via 10.0.1.77 nexthop via 10.0.1.78"],
    "second next hop": ["route add 10.50.0.0/24 nexthop via 10.0.1.1 nexthop via 10.0.1.78"],
}


@pytest.mark.parametrize("kind", RIVALS)
def test_address_routed_by_another_program_is_not_claimed(lab: Lab, kind: str) -> None:
    on = ifindex(lab, "eth0")
    lab.batch(RIVALS[kind])
    claims = [
        [address(on, "10.50.0.7/32")],
        [route(on, "10.50.0.0/28", table=255)],
        [route(on, "10.50.0.0/24")],
        [address(on, "10.0.2.10/24"), route(on, "10.50.0.0/24", "10.0.2.1")],
    ]
    for ops in claims:
        assert "another program routes" in refused(lab, *ops)


@pytest.mark.parametrize(
    ("owner", "own", "vpn", "host"),
    [
        ("operator", "10.50.0.1/25", "10.50.0.0/24", "10.50.0.77"),
        ("operator", "fd00:50::1/64", "fd00:50::/48", "fd00:50::77"),
        ("operator", "10.70.0.1 peer 10.50.0.77", "10.50.0.0/24", "10.50.0.77"),
        ("operator", "fd00:70::1 peer fd00:50::77 noprefixroute", "fd00:50::/48", "fd00:50::77"),
        ("cloud-network", "10.50.0.1/25", "10.50.0.0/24", "10.50.0.77"),
        ("cloud-network", "fd00:50::1/64", "fd00:50::/48", "fd00:50::77"),
    ],
)
def test_a_link_that_comes_up_takes_nothing_from_a_vpn(lab: Lab, owner: str, own: str, vpn: str, host: str) -> None:
    """The kernel adds the connected routes of a link's addresses when the link comes up."""
    lab.batch(["link add spare type veth peer name spare1", "link set spare1 up", *RIVALS["VPN"][:3]])
    on = ifindex(lab, "spare")
    if owner == "operator":
        lab.batch([f"address add {own} dev spare"])
    else:
        with Wire(lab) as wire:
            assert wire.apply(address(on, own))["verdict"] == "applied"
    lab.batch([f"route add {vpn} dev wg0"])
    reason = refused(lab, {"op": "link_up", "link": on})
    assert f"overlaps {vpn}, which another program routes by wg0" in reason
    assert " dev wg0 " in lab.run(["ip", "-o", "route", "get", host]).stdout
    lab.batch([f"route delete {vpn} dev wg0"])
    with Wire(lab) as wire:
        assert wire.apply({"op": "link_up", "link": on})["verdict"] == "applied"


def test_a_link_that_comes_up_takes_no_subnet_of_another_link(lab: Lab) -> None:
    """The connected route of cloud-network's address has a lower metric than that of a DHCP client."""
    lab.batch(["link add spare type veth peer name spare1", "link set spare1 up"])
    on, up = ifindex(lab, "spare"), {"op": "link_up", "link": ifindex(lab, "spare")}
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.60.0.5/24"))["verdict"] == "applied"
    lab.batch(["address add 10.60.0.9/24 dev eth1 metric 100"])
    assert "would take over 10.60.0.0/24 of another link" in refused(lab, up)
    lab.batch(["address delete 10.60.0.9/24 dev eth1"])
    with Wire(lab) as wire:
        assert wire.apply(up)["verdict"] == "applied"


@pytest.mark.parametrize("own", ["169.254.3.3/16", "fe80::5/64"])
def test_a_link_comes_up_with_a_link_local_network_that_a_bridge_has(lab: Lab, own: str) -> None:
    lab.batch(["link add spare type veth peer name spare1", "link set spare1 up", f"address add {own} dev spare"])
    lab.batch(["link add br0 type bridge", "link set br0 up", "address add 169.254.7.7/16 dev br0"])
    lab.batch(["address add fe80::7/64 dev br0 nodad"])
    with Wire(lab) as wire:
        assert wire.apply({"op": "link_up", "link": ifindex(lab, "spare")})["verdict"] == "applied"


@pytest.mark.parametrize("own", ["169.254.3.3 peer 169.254.20.10", "169.254.3.3 peer 169.254.169.254"])
def test_a_link_that_comes_up_takes_no_link_local_service(lab: Lab, own: str) -> None:
    """The cache of a cluster's name servers, and the metadata server."""
    lab.path("/etc/resolv.conf").write_text("nameserver 169.254.20.10\n")
    lab.batch(["link add spare type veth peer name spare1", "link set spare1 up", f"address add {own} dev spare"])
    lab.batch(["route add 169.254.169.254 via 10.0.1.1 dev eth1"])
    reason = refused(lab, {"op": "link_up", "link": ifindex(lab, "spare")})
    assert "would take over" in reason or "another program routes" in reason


@pytest.mark.parametrize("own", ["10.0.1.20/25", "10.70.0.1 peer 10.0.1.1", "10.70.0.1 peer 10.44.0.1"])
def test_a_link_that_comes_up_takes_nothing_from_another_link(lab: Lab, own: str) -> None:
    """A part of another link's subnet, its gateway, or the gateway of another route there."""
    lab.batch(["link add spare type veth peer name spare1", "link set spare1 up", f"address add {own} dev spare"])
    lab.batch(["route add 10.44.0.0/24 dev eth0", "route add 10.3.0.0/24 via 10.44.0.1"])
    on = ifindex(lab, "spare")
    assert "would take over" in refused(lab, {"op": "link_up", "link": on})
    lab.batch(["route delete 10.3.0.0/24", "route delete 10.44.0.0/24", f"address delete {own} dev spare"])
    with Wire(lab) as wire:
        assert wire.apply({"op": "link_up", "link": on})["verdict"] == "applied"


def test_an_own_on_link_route_elsewhere_changes_nothing_for_link_up(lab: Lab) -> None:
    """With one in eth0's table, eth0 still needs main's way to its gateway."""
    lab.batch(["link add spare type veth peer name spare1", "link set spare1 up"])
    on, other = ifindex(lab, "spare"), ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.60.0.20/24"))["verdict"] == "applied"
        lab.batch(["route add 10.61.0.0/16 via 10.60.0.1 dev eth0 onlink"])
        assert wire.apply(address(other, "10.60.0.9/32"), route(other, "10.60.0.0/24"))["verdict"] == "applied"
    assert "would take over 10.60.0.1" in refused(lab, {"op": "link_up", "link": on})


@pytest.mark.parametrize(
    ("subnet", "own", "gateway"),
    [
        ("10.50.0.0/24", "10.50.2.10/32", "10.50.0.1/32"),
        ("fd00:50::/64", "fd00:50:0:1::10/128", "fd00:50::1/128"),
    ],
)
def test_a_gateway_by_convention_stays_in_a_vpn(lab: Lab, subnet: str, own: str, gateway: str) -> None:
    """The neighbour with this address on the interface could answer for it."""
    on = ifindex(lab, "eth0")
    lab.batch([*RIVALS["VPN"][:3], f"route add {subnet} dev wg0"])
    ops = [address(on, own), route(on, gateway)]
    assert "another program routes by wg0" in refused(lab, *ops)
    lab.batch([f"route delete {subnet} dev wg0"])
    assert verdict(lab, *ops) == "applied"


@pytest.mark.parametrize("part", ["10.0.1.77/32", "10.0.1.64/26"])
@pytest.mark.parametrize("way", ["dev wg0", "via 10.0.1.5"])
def test_a_part_of_the_links_subnet_stays_where_it_is_routed(lab: Lab, way: str, part: str) -> None:
    on = ifindex(lab, "eth1")
    lab.batch([*RIVALS["VPN"][:3], f"route add 10.0.1.77/32 {way}"])
    assert "another program routes" in refused(lab, route(on, part))
    assert verdict(lab, route(on, "10.0.1.0/24"), route(on, "10.0.1.128/26")) == "applied"


METADATA = "169.254.169.254/32"


def test_a_metadata_server_behind_a_proxy_stays_there(lab: Lab) -> None:
    on = ifindex(lab, "eth1")
    by_gateway = route(on, METADATA, "10.0.1.1")
    lab.batch([*RIVALS["VPN"][:3], "route add 169.254.0.0/16 dev wg0 metric 1000"])  # as avahi-autoipd adds it
    assert verdict(lab, by_gateway) == "applied"
    lab.batch([f"route replace {METADATA} dev wg0"])
    assert "another program routes by wg0" in refused(lab, by_gateway)


def test_a_metadata_server_behind_the_gateway_is_not_on_link(lab: Lab) -> None:
    on = ifindex(lab, "eth1")
    lab.batch(["route add 169.254.0.0/16 dev eth1 metric 1000", f"route replace {METADATA} via 10.0.1.1 dev eth1"])
    assert "main does not route it on eth1" in refused(lab, route(on, METADATA))
    assert verdict(lab, route(on, METADATA, "10.0.1.1")) == "applied"


@pytest.mark.parametrize("way", ["via 10.0.1.1 dev eth1", "dev eth1"])
def test_a_route_with_the_kernels_protocol_is_a_conflict(lab: Lab, way: str) -> None:
    """Cilium, for example, adds routes with the protocol `kernel`."""
    on = ifindex(lab, "eth0")
    lab.batch([f"route add 10.99.0.9/32 {way} proto kernel"])
    for claim in (address(on, "10.99.0.9/32"), route(on, "10.99.0.9/32"), route(on, "10.99.0.0/28", table=255)):
        assert "another program routes by eth1" in refused(lab, claim)
    assert verdict(lab, address(on, "10.99.0.8/32")) == "applied"


def test_a_summary_route_through_the_cloud_is_no_conflict(lab: Lab) -> None:
    lab.batch(["route add 10.0.0.0/8 via 10.0.1.1 dev eth1"])
    on = ifindex(lab, "eth0")
    assert verdict(lab, address(on, "10.0.2.10/24"), route(on, "10.0.2.0/24")) == "applied"


@pytest.mark.parametrize("network", ["172.16.0.0/12", "10.0.1.0/25", "10.0.1.0/24"])
def test_a_local_range_is_bounded(lab: Lab, network: str) -> None:
    assert refused(lab, route(ifindex(lab, "eth1"), network, table=255))


def test_local_range_spares_the_gateway_of_a_later_lease(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    lab.batch(["address add 10.0.2.30/24 dev eth0"])  # as added by DHCP without a default route
    assert "covers 10.0.2.1" in refused(lab, route(on, "10.0.2.0/28", table=255))


NESTED = [
    ("10.9.0.0/16", "10.9.5.5/16", "10.9.7.7/24"),
    ("fd00:9::/48", "fd00:9::5/48", "fd00:9:0:7::7/64"),
]


@pytest.mark.parametrize(("operators", "equal", "inside"), NESTED)
def test_an_operators_on_link_route_outlives_an_equal_subnet(lab: Lab, operators: str, equal: str, inside: str) -> None:
    """A request once removed an address with the route's network, and then took a part of it."""
    on, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    lab.batch([f"route add {operators} dev eth0 proto static metric 1024", "address add 10.0.5.5/32 dev eth0"])
    take = address(other, inside)
    assert "would take over a part" in refused(lab, take)
    with Wire(lab) as wire:
        assert wire.apply(address(on, equal))["verdict"] == "applied"
    assert "would take over a part" in refused(lab, address(on, equal, "address_remove"), take)


@pytest.mark.parametrize("protocol", ["static", "kernel"])
@pytest.mark.parametrize(("ours", "own"), [("10.50.0.0/28", "10.50.0.9/32"), ("fd50::/80", "fd50::9/128")])
def test_a_local_range_of_another_interface_is_not_claimed(lab: Lab, ours: str, own: str, protocol: str) -> None:
    lab.batch([f"route add local {ours} dev eth1 proto {protocol}"])
    on = ifindex(lab, "eth0")
    for op in (address(on, own), route(on, own, table=255)):
        assert f"{ours}, which another program routes by eth1" in refused(lab, op)


@pytest.mark.parametrize("device", ["wg0", "eth1"])
@pytest.mark.parametrize("kind", ["anycast", "local"])
def test_a_destination_in_table_local_is_not_claimed(lab: Lab, kind: str, device: str) -> None:
    """ip-route(8) adds routes of these types to table local. Ranges are used for AnyIP."""
    on = ifindex(lab, "eth0")
    lab.batch([*RIVALS["VPN"][:3], f"route add {kind} 10.50.0.0/24 dev {device}"])
    assert f"another program routes by {device}" in refused(lab, address(on, "10.50.0.77/32"))
    lab.batch([f"route delete {kind} 10.50.0.0/24 dev {device}"])
    assert verdict(lab, address(on, "10.50.0.77/32")) == "applied"


@pytest.mark.parametrize(
    ("single", "around"), [("10.15.0.5/32", "10.15.0.4/30"), ("fd15::5/128", "fd15::4/126"), ("10.15.0.5/32", "")]
)
def test_local_addresses_by_hand_with_the_kernels_protocol_stay(lab: Lab, single: str, around: str) -> None:
    """No address of the link explains such a route, so another program needs it (AnyIP)."""
    on = ifindex(lab, "eth0")
    claim = route(on, around, table=255) if around else address(on, single)
    lab.batch([f"route add local {single} dev lo proto kernel"])
    assert f"{single}, which another program routes by lo" in refused(lab, claim)
    lab.batch([f"route delete local {single} dev lo"])
    assert verdict(lab, claim) == "applied"


def test_an_own_address_does_not_count_as_local_by_hand(lab: Lab) -> None:
    """The kernel removes the local route of an address with it, so that the range may move to another interface."""
    on, other, text = ifindex(lab, "eth0"), ifindex(lab, "eth1"), "10.15.0.5/32"
    with Wire(lab) as wire:
        assert wire.apply(address(on, text))["verdict"] == "applied"
    assert verdict(lab, address(on, text, "address_remove"), route(other, "10.15.0.4/30", table=255)) == "applied"


def test_a_rule_to_an_address_that_a_neighbour_has_is_refused(lab: Lab) -> None:
    """An IPv6 address that fails duplicate address detection is not local: packets to it leave the host."""
    lab.batch(["link add pair0 type veth peer name pair1", "link set pair0 up", "link set pair1 up"])
    on, own = ifindex(lab, "pair0"), "fd00:2::60/64"
    lab.wait_for(lambda: "tentative" not in lab.run(["ip", "address"]).stdout, 10, "the link-local addresses")
    lab.batch([f"address add {own} dev pair1 nodad", f"address add {own} dev pair0"])
    lab.wait_for(lambda: "dadfailed" in lab.run(["ip", "address", "show", "dev", "pair0"]).stdout, 10, "the failure")
    to_own = rule("fd00:2::60/128", 9999 + on, to=True)
    assert "is no address or range of pair0" in refused(lab, to_own)
    lab.batch(
        [f"address delete {own} dev pair1", f"address delete {own} dev pair0", f"address add {own} dev pair0 nodad"]
    )
    assert verdict(lab, to_own) == "applied"


def test_an_address_of_a_subnet_on_lo_is_not_claimed(lab: Lab) -> None:
    """The kernel makes a whole subnet on lo local: the host uses all its addresses."""
    on = ifindex(lab, "eth0")
    lab.batch(["address add 10.5.5.1/24 dev lo"])
    assert "another program routes by lo" in refused(lab, address(on, "10.5.5.77/32"))
    assert verdict(lab, address(on, "10.5.6.77/32")) == "applied"


DOWN = [
    ("10.8.0.1/24", "10.8.0.5/24"),
    ("10.8.0.1/24", "10.8.0.200/25"),
    ("10.8.0.1/24", "10.8.3.5/16"),
    ("10.8.0.1/24", "10.8.0.7/32"),
    ("10.8.0.2 peer 10.8.0.1/32", "10.8.0.1/32"),
    ("fd00:8::1/64", "fd00:8::7/64"),
    ("fd00:9::1 peer fd00:8::7", "fd00:8::7/128"),
]


@pytest.mark.parametrize(("foreign", "owned"), DOWN)
def test_a_subnet_of_a_bridge_that_is_down_is_left_to_it(lab: Lab, foreign: str, owned: str) -> None:
    """Once it is up, its connected route would come second, and not be used."""
    on = ifindex(lab, "eth0")
    lab.batch(["link add br8 type bridge", f"address add {foreign} dev br8"])
    assert "another program routes by br8" in refused(lab, address(on, owned))
    lab.batch(["link delete br8"])
    assert verdict(lab, address(on, owned)) == "applied"


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_a_kill_switch_in_main_does_not_come_before_other_rules(lab: Lab, kind: str, network: str) -> None:
    """suppress_prefixlength does not suppress a default route that discards: no rule after it would be used."""
    family = "-6" if ":" in network else "-4"
    main = main_rule(network)
    lab.run(["sh", "-c", f"ip {family} route flush default; ip {family} route add {kind} default metric 4278198272"])
    assert "main's default route discards packets" in refused(lab, main)
    secondary = ifindex(lab, "eth0")
    mine, wide, via = ("10.0.2.10/24", "8.0.0.0/7", "10.0.2.1")
    if ":" in network:  # the kernel looks up the route again with the source that it has chosen in spite of that route
        mine, wide, via = ("fd00:2::10/64", "2000::/3", "fd00:2::1")
    assert "main's default route discards packets" in refused(
        lab, address(secondary, mine), route(secondary, wide, via)
    )
    gateway = "fe80::1" if ":" in network else "10.0.1.1"
    some = "from fd00:7::/64" if ":" in network else "tos 0x10"
    lab.run(["sh", "-c", f"ip {family} route add default {some} via {gateway} dev eth1 metric 10"])
    assert "main's default route discards packets" in refused(lab, main), "the other one is only for some packets"
    lab.run(["sh", "-c", f"ip {family} route add default via {gateway} dev eth1 metric 100"])
    assert verdict(lab, main) == "applied", "another default comes before it, and is suppressed"


# Invented subnets


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("text", ["10.200.0.5/8", "10.0.1.200/25", "10.0.0.5/16", "10.200.0.5/9"])
def test_an_invented_subnet_takes_over_no_other(lab: Lab, text: str, connected: bool) -> None:
    assert refused(lab, {**address(ifindex(lab, "eth0"), text), "route": connected})


@pytest.mark.parametrize("text", ["10.0.2.10/24", "fd00:2::10/64", "fd00:2::10/128"])
def test_a_rule_does_not_outlive_its_address(lab: Lab, text: str) -> None:
    on = ifindex(lab, "eth0")
    from_it = rule(str(ip_network(ip_interface(text).ip)), 9999 + on)
    with Wire(lab) as wire:
        assert wire.apply(address(on, text), from_it)["verdict"] == "applied"
        gone = address(on, text, "address_remove")
        assert "depends on it" in wire.apply(gone)["reason"]
        assert wire.apply({**from_it, "op": "rule_remove"}, gone)["verdict"] == "applied"


@pytest.mark.parametrize("is_range", [False, True])
def test_rule_for_forwarded_packets_goes_before_its_address(lab: Lab, is_range: bool) -> None:
    """Operations between the two removals may take seconds, in which packets of a client would take the rule."""
    on = ifindex(lab, "eth0")
    own = route(on, "10.77.0.0/28", table=255) if is_range else address(on, "10.77.0.5/32")
    selects = rule("10.77.0.0/28" if is_range else "10.77.0.5/32", 9999 + on, 31000, suppress=True)
    gone, unselected = {**own, "op": own["op"].replace("_add", "_remove").replace("replace", "remove")}, selects.copy()
    gone.pop("route", None)
    unselected["op"] = "rule_remove"
    with Wire(lab) as wire:
        assert wire.apply(own, selects)["verdict"] == "applied"
    orders = [[gone, unselected]] if is_range else [[gone, unselected], [gone, own]]  # a route is changed only once
    for order in orders:
        assert "depends on it; remove the rule before it" in refused(lab, *order)
    with Wire(lab) as wire:
        assert wire.apply(unselected, gone)["verdict"] == "applied"


# Limits, and a flush at the limits


def test_rules_are_limited_and_a_flush_of_all_is_logged_in_parts(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), route(on, "10.77.0.0/20", table=255))["verdict"] == "applied"
        hosts = [f"10.77.{at >> 8}.{at & 255}" for at in range(4096)]
        for priority in (31000, 31005):
            ops = [rule(host, 9999 + on, priority) for host in hosts]
            assert wire.apply(*ops)["verdict"] == "applied"
        assert f"{policy.MAX_RULES} rules" in wire.apply(rule("10.0.2.10", 9999 + on))["reason"]
        wire.socket.settimeout(60)
        answer = wire.ask(request="flush", id="flush")
    assert (answer["verdict"], answer["done"]) == ("applied", 8194)
    parts = [line for line in audit_lines(lab) if line["request"] == "flush" and line["verdict"] == "applied"]
    assert sum(len(line["ops"]) for line in parts) == 8194
    assert [line["part"] for line in parts] == list(range(1, parts[0]["parts"] + 1))
    assert max(len(line) for line in lab.path("/var/log/cloud-network/audit.log").read_text().splitlines()) < 48 << 10
    lab.stop("netagent")
    start(lab)


def test_a_damaged_log_is_moved_aside(lab: Lab) -> None:
    lab.stop("netagent")
    log = lab.path("/var/log/cloud-network/audit.log")
    log.write_text('{"seq":1,"hash":"x"}\n' + "x" * (3 << 20) + "\n")
    start(lab)
    lines = audit_lines(lab)
    assert (lines[0]["verdict"], lines[0]["seq"]) == ("damaged", 1)
    assert [path.name for path in log.parent.iterdir() if "damaged" in path.name]


# Removal, and protected addresses


def test_a_flush_of_nothing_is_logged_with_its_end(lab: Lab) -> None:
    with Wire(lab) as wire:
        assert wire.ask(request="flush", id="flush")["done"] == 0
    verdicts = [line["verdict"] for line in audit_lines(lab) if line["request"] == "flush"]
    assert verdicts == ["started", "applied"]


def test_a_flush_removes_what_it_may_and_names_the_rest(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), rule("10.0.2.10", 9999 + on))["verdict"] == "applied"
        lab.batch(["address add 10.0.2.60/24 dev eth0"])
        answer = wire.ask(request="flush", id="flush")
    assert (answer["verdict"], answer["done"]) == ("applied", 1)
    assert [each["address"] for each in answer["not_undone"]] == [b"\x0a\x00\x02\x0a"]
    assert "10.0.2.60" in lab.run(["ip", "address"]).stdout


@pytest.mark.parametrize("text", ["10.9.0.5/32", "fd00:9::5/128"])
def test_an_address_with_a_local_route_of_ours_is_refused(lab: Lab, text: str) -> None:
    on = ifindex(lab, "eth0")
    assert "in table local; remove it first" in refused(lab, route(on, text, table=255), address(on, text))


def test_the_last_address_stays_while_foreign_routes_need_it(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch(["route add 192.168.88.0/24 via 10.0.2.1 dev eth0"])
        answer = wire.ask(request="rollback", id="open")
        assert [each["op"] for each in answer["not_undone"]] == ["address_remove"]
    assert "192.168.88.0/24" in lab.run(["ip", "route"]).stdout


@pytest.mark.parametrize("text", ["fd00:2::60/128", "fe80::53/64"])
def test_a_link_with_foreign_state_is_not_set_down(lab: Lab, text: str) -> None:
    on = ifindex(lab, "eth0")
    lab.batch(["link set eth0 down"])
    with Wire(lab) as wire:
        up = {"op": "link_up", "link": on}
        assert wire.apply(up, confirm_within=60, request="open")["verdict"] == "applied"
        lab.run(["ip", "-6", "address", "add", text, "dev", "eth0"])
        assert wire.ask(request="rollback", id="open")["not_undone"][0]["op"] == "link_down"
    assert json.loads(lab.run(["ip", "-j", "link", "show", "eth0"]).stdout)[0]["flags"].count("UP") == 1


def test_rollback_skips_an_address_that_another_link_has_now(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    own, from_own = address(on, "10.0.2.10/24"), rule("10.0.2.10", 9999 + on)
    gone = [{**from_own, "op": "rule_remove"}, address(on, "10.0.2.10/24", "address_remove")]
    lab.batch(["link add wg0 type bridge", "link set wg0 up"])
    with Wire(lab) as wire:
        assert wire.apply(own, from_own)["verdict"] == "applied"
        assert wire.apply(*gone, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch(["address add 10.0.2.10/32 dev wg0"])
        answer = wire.ask(request="rollback", id="open")
    assert [each["op"] for each in answer["not_undone"]] == ["address_add", "rule_add"]
    assert "eth0" not in lab.run(["ip", "address", "show", "to", "10.0.2.10"]).stdout
    assert "10.0.2.10" not in lab.run(["ip", "rule"]).stdout


@pytest.mark.parametrize("is_range", [False, True])
def test_rollback_keeps_what_a_rule_for_forwarded_packets_needs(lab: Lab, is_range: bool) -> None:
    """It cannot restore the address or range that the request replaced: another program has that now."""
    on = ifindex(lab, "eth0")
    if is_range:
        former, new, theirs = (route(on, text, table=255) for text in ("10.77.0.0/24", "10.77.0.0/25", "10.77.0.0/24"))
        gone, theirs = {**former, "op": "route_remove"}, "route add local 10.77.0.0/24 dev lo table local"
        selects = rule("10.77.0.0/26", 9999 + on)
    else:
        former, new = address(on, "10.77.0.5/32"), address(on, "10.77.0.5/24")
        gone, theirs = address(on, "10.77.0.5/32", "address_remove"), "address add 10.77.0.5/32 dev lo"
        selects = rule("10.77.0.5", 9999 + on)
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), former, selects)["verdict"] == "applied"
        assert wire.apply(new, gone, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch([theirs])
        left = wire.ask(request="rollback", id="open")["not_undone"]
    assert [each["op"] for each in left] == [former["op"], gone["op"]]
    assert left[1]["reason"].startswith(f"rule 31000 from 10.77.0.{'0/26' if is_range else '5/32'} depends on it")
    kept = "10.77.0.0/25" if is_range else "10.77.0.5/24"
    assert kept in lab.run(["sh", "-c", "ip address show dev eth0; ip route show table local dev eth0"]).stdout


def test_rollback_keeps_an_operators_address_of_another_length(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"))["verdict"] == "applied"
        removal = address(on, "10.0.2.10/24", "address_remove")
        assert wire.apply(removal, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch(["address add 10.0.2.10/32 dev eth0"])
        answer = wire.ask(request="rollback", id="open")
    assert [each["reason"] for each in answer["not_undone"]] == ["another program has added the address"]
    assert "10.0.2.10/24" not in lab.run(["ip", "address", "show", "dev", "eth0"]).stdout


@pytest.mark.parametrize("how", ["requested", "after a restart"])
def test_rollback_changes_no_link_that_got_the_number_of_another(lab: Lab, how: str) -> None:
    lab.batch(["link add spare type veth peer name spare1", "link set spare up", "link set spare1 up"])
    on = ifindex(lab, "spare")
    first, subnet, local = address(on, "10.9.3.10/24"), route(on, "10.9.3.0/24"), route(on, "10.9.4.0/28", table=255)
    made = [first, subnet, local, main_rule(), rule("10.9.3.10", 9999 + on)]
    gone = [
        {**made[4], "op": "rule_remove"},
        {**local, "op": "route_remove"},
        {**subnet, "op": "route_remove"},
        address(on, "10.9.3.10/24", "address_remove"),
        {"op": "link_mtu", "link": on, "mtu": 1400},
    ]
    with Wire(lab) as wire:
        assert wire.apply(*made)["verdict"] == "applied"
        assert wire.apply(*gone, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch(["link delete spare", f"link add br8 index {on} type bridge", "link set br8 up mtu 1300"])
        if how == "requested":
            wire.ask(request="rollback", id="open")
        else:
            lab.kill("netagent")
    if how != "requested":
        start(lab)
    [rolled_back] = [line for line in audit_lines(lab) if line["request"] == "rollback"]
    left = {each["op"] for each in rolled_back["not_undone"] if each["reason"] == "another link has its number now"}
    assert left == {"address_add", "route_replace", "link_mtu"}
    lab.batch(["link set br8 down", "link set br8 up"])
    state = lab.run(["sh", "-c", "ip address show dev br8; ip route show table all dev br8; ip rule"]).stdout
    assert "mtu 1300" in state
    assert "10.9." not in state


CHANGES = {
    "the rule for main is gone": ("rule delete pref 31010", "add it first"),
    "table local comes later": ("rule add pref 32000 lookup local\nrule delete pref 0", "table local is not looked up"),
    "the address is gone": ("address delete 10.0.2.10/24 dev eth0", "is no address or range"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_rollback_adds_no_rule_that_a_request_could_not_add(lab: Lab, what: str) -> None:
    """The host's own packets would leave by the rule: those to a VPN, or to its own addresses."""
    on = ifindex(lab, "eth0")
    own, from_own = address(on, "10.0.2.10/24"), rule("10.0.2.10", 9999 + on, 31020)
    with Wire(lab) as wire:
        assert wire.apply(own, main_rule(), from_own)["verdict"] == "applied"
        gone = {**from_own, "op": "rule_remove"}
        assert wire.apply(gone, confirm_within=60, request="open")["verdict"] == "applied"
        lines, reason = CHANGES[what]
        lab.batch(lines.splitlines())
        [left] = wire.ask(request="rollback", id="open")["not_undone"]
    assert reason in left["reason"]
    assert "from 10.0.2.10" not in lab.run(["ip", "rule"]).stdout


def test_rollback_at_a_start_adds_nothing_to_an_excluded_link(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"))["verdict"] == "applied"
        removal = address(on, "10.0.2.10/24", "address_remove")
        assert wire.apply(removal, confirm_within=60, request="open")["verdict"] == "applied"
        lab.kill("netagent")
    lab.write_config(f'[Network]\nExclude = "eth0"\n{CONFIG}')
    start(lab)
    [rolled_back] = [line for line in audit_lines(lab) if line["request"] == "rollback"]
    assert [each["reason"] for each in rolled_back["not_undone"]] == ["eth0 is excluded"]
    assert "10.0.2.10" not in lab.run(["ip", "address"]).stdout


def test_flush_removes_objects_from_a_link_not_of_the_cloud_now(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), route(on, "10.0.2.0/24"))["verdict"] == "applied"
    lab.stop("netagent")
    lab.write_config(CONFIG.replace("veth", "vlan"))
    start(lab)
    with Wire(lab) as wire:
        assert "is of kind veth" in wire.apply(address(on, "10.0.2.10/24", "address_remove"))["reason"]
        answer = wire.ask(request="flush", id="flush")
    assert (answer["done"], answer.get("not_undone")) == (2, None)


@pytest.mark.parametrize("change", ["replace", "rollback", "remove", "flush"])
def test_a_next_hop_that_an_operator_appends_stays(lab: Lab, change: str) -> None:
    """The kernel joins IPv6 routes of equal destination and metric, and shows the protocol of the first."""
    on, table, network = ifindex(lab, "eth1"), 9999 + ifindex(lab, "eth1"), "fd00:9::/48"
    for gateway in ("fe80::98", "fe80::99"):
        lab.run(["ip", "neighbour", "replace", gateway, "lladdr", "02:00:00:00:00:98", "dev", "eth1", "router"])
    first, second = route(on, network, "fe80::98"), route(on, network, "fe80::99")
    with Wire(lab) as wire:
        assert wire.apply(first)["verdict"] == "applied"
        if change == "rollback":
            assert wire.apply(second, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch([f"route append {network} via fe80::77 dev eth1 table {table} proto static"])
        if change == "replace":
            assert "did not add the route" in wire.apply(second)["reason"]
        elif change == "rollback":
            (left,) = wire.ask(request="rollback", id="open")["not_undone"]
            assert left["reason"] == "another program has a route to it there now"
        elif change == "remove":
            wire.apply({**first, "op": "route_remove"})
        else:
            assert wire.ask(request="flush", id="after")["done"] == 1
    left = lab.run(["ip", "-6", "route", "show", "table", str(table)]).stdout
    assert "via fe80::77" in left
    assert change != "flush" or "via fe80::98" not in left


def test_rollback_replaces_no_route_of_another_program(lab: Lab) -> None:
    on = ifindex(lab, "eth1")
    owned = route(on, "10.9.0.0/16", "10.0.1.1")
    with Wire(lab) as wire:
        assert wire.apply(owned)["verdict"] == "applied"
        gone = {**owned, "op": "route_remove"}
        assert wire.apply(gone, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch([f"route add 10.9.0.0/16 via 10.0.1.77 table {9999 + on} proto static"])
        answer = wire.ask(request="rollback", id="open")
    assert [each["op"] for each in answer["not_undone"]] == ["route_replace"]
    assert "via 10.0.1.77" in lab.run(["ip", "route", "show", "table", str(9999 + on)]).stdout


def test_rollback_turns_an_address_into_a_range_again(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    ranged = route(on, "10.9.0.5/32", table=255)
    with Wire(lab) as wire:
        assert wire.apply(ranged)["verdict"] == "applied"
        before = kernel_state(lab)
        change = [{**ranged, "op": "route_remove"}, {**address(on, "10.9.0.5/32"), "route": False}]
        assert wire.apply(*change, confirm_within=60, request="open")["verdict"] == "applied"
        assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
    assert kernel_state(lab) == before


@pytest.mark.parametrize("table", ["main", "100"])
def test_gateways_of_every_table_and_next_hop_are_protected(lab: Lab, table: str) -> None:
    lab.batch([f"route add 192.168.99.0/24 table {table} nexthop via 10.0.1.77 nexthop via 10.0.1.78"])
    for text in ("10.0.1.77/32", "10.0.1.78/32"):
        assert "a gateway" in refused(lab, address(ifindex(lab, "eth0"), text))


def test_our_former_gateway_is_protected(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    assert verdict(lab, address(on, "10.0.2.10/24"), route(on, "0.0.0.0/0", "10.0.2.1")) == "applied"
    assert "a gateway" in refused(lab, address(on, "10.0.2.1/32"))


def test_the_gateway_of_a_replaced_route_is_remembered(lab: Lab) -> None:
    """Without its route, only the ledger knows it."""
    lab.stop("netagent")
    lab.write_config(CONFIG + 'AllowGateways = "10.20.0.0/16"\n')
    start(lab)
    on = ifindex(lab, "eth0")
    there = [address(on, "10.20.0.10/24"), route(on, "10.200.0.0/16", "10.20.0.254")]
    with Wire(lab) as wire:
        assert wire.apply(*there)["verdict"] == "applied"
        assert wire.apply(route(on, "10.200.0.0/16", "10.20.0.253"))["verdict"] == "applied"
    lab.batch(["link set eth0 down", "link set eth0 up"])
    for gateway in ("10.20.0.254", "10.20.0.253"):
        assert "a gateway" in refused(lab, address(on, f"{gateway}/32"))


def test_later_gateways_push_no_former_gateway_out(lab: Lab) -> None:
    lab.stop("netagent")
    lab.write_config(CONFIG + 'AllowGateways = "10.20.0.0/16"\n')
    start(lab)
    on = ifindex(lab, "eth0")
    assert verdict(lab, address(on, "10.0.2.10/24"), route(on, "0.0.0.0/0", "10.0.2.1")) == "applied"
    count = ledger.MAX_GATEWAYS + 20
    routes = [route(on, f"10.9.{at >> 8}.{at & 255}/32", f"10.20.{at >> 8}.{at & 255}") for at in range(1, count)]
    assert verdict(lab, address(on, "10.20.255.1/16"), *routes) == "applied"
    assert "a gateway" in refused(lab, address(on, "10.0.2.1/32"))


@pytest.mark.parametrize(
    "text",
    [
        *("fd00:42::42/128", "fd00:c1::a9fe:a9fe/128", "fd00:ec2::23/128", "fd20:ce::254/128"),
        *("168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32"),
    ],
)
def test_metadata_servers_are_no_links_address(lab: Lab, text: str) -> None:
    assert "metadata server" in refused(lab, address(ifindex(lab, "eth0"), text))


# Other decisions


def test_azures_wire_server_is_reached_by_each_links_gateway(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    own = address(on, "10.0.2.10/24")
    assert verdict(lab, own, route(on, "168.63.129.16/32", "10.0.2.1")) == "applied"
    assert refused(lab, own, route(on, "168.63.129.16/32"))


def test_a_rule_for_a_clouds_address_on_a_virtual_link(lab: Lab) -> None:
    lab.batch(["link add dummy0 type bridge", "link set dummy0 up", "address add 10.0.1.30/32 dev dummy0"])
    assert verdict(lab, rule("10.0.1.30", 9999 + ifindex(lab, "eth1"))) == "applied"
    assert refused(lab, rule("10.0.1.30", 9999 + ifindex(lab, "eth0")))


@pytest.mark.parametrize("text", ["10.0.1.30/32", "10.0.1.130/25", "fd88::2/64"])
def test_no_rule_for_the_address_of_a_tunnel(lab: Lab, text: str) -> None:
    """A learned subnet may contain a VPN's address by chance, or because a neighbour advertises the VPN's prefix."""
    on = ifindex(lab, "eth1")
    lab.batch(["tuntap add tun0 mode tun", "link set tun0 up", f"address add {text} dev tun0"])
    lab.run(["ip", "-6", "route", "add", "fd88::/64", "dev", "eth1", "proto", "kernel", "expires", "3600"])
    source = str(ip_network(ip_interface(text).ip))
    main = rule("::/0" if ":" in source else "0.0.0.0/0", 254, priority=31010, suppress=True)
    assert "no address or range" in refused(lab, main, rule(source, 9999 + on, 31020))


def test_no_rule_for_a_range_behind_a_tunnel(lab: Lab) -> None:
    on = ifindex(lab, "eth1")
    pods = rule("10.0.1.128/27", 9999 + on, 31020)
    assert verdict(lab, main_rule(), pods) == "applied"
    lab.batch(["tuntap add tun0 mode tun", "link set tun0 up", "route add 10.0.1.128/26 dev tun0"])
    assert "tun0 has some" in refused(lab, main_rule(), pods)
    lab.batch(["route del 10.0.1.128/26 dev tun0", "link add br8 type bridge", "link set br8 up"])
    lab.batch(["route add 10.0.1.128/26 dev br8"])
    assert verdict(lab, main_rule(), pods) == "applied", "containers with a delegated range"


def test_a_rule_for_an_address_on_lo(lab: Lab) -> None:
    """In a subnet that the interface has not learned, only lo and dummies may have the address: only this host uses it.

    Another virtual link, such as a bridge, may belong to a network of containers.
    """
    on = ifindex(lab, "eth0")
    ops = [address(on, "10.0.2.10/24"), rule("10.0.2.40", 9999 + on)]
    assert "no address or range" in refused(lab, *ops)
    lab.batch(["address add 10.0.2.40/32 dev lo"])
    assert verdict(lab, *ops) == "applied"
    lab.batch(["link add br8 type bridge", "address add 10.0.2.40/32 dev br8"])
    assert "no address or range" in refused(lab, *ops)


def test_a_rule_for_an_address_on_lo_needs_one_interface(lab: Lab) -> None:
    """If two interfaces have the subnet, neither is known to be the address's."""
    on = ifindex(lab, "eth1")
    lab.batch(["address add 10.0.1.30/32 dev lo"])
    assert verdict(lab, rule("10.0.1.30", 9999 + on)) == "applied"
    lab.batch(["address add 10.0.1.60/24 dev eth0 noprefixroute"])
    for link in (on, ifindex(lab, "eth0")):
        assert "no address or range" in refused(lab, rule("10.0.1.30", 9999 + link))


def test_a_rule_for_a_public_address_on_lo_is_refused(lab: Lab) -> None:
    lab.stop("netagent")
    lab.write_config(CONFIG + 'AllowAddresses = "203.0.113.0/24"\n')
    start(lab)
    on = ifindex(lab, "eth0")
    lab.batch(["address add 203.0.113.40/32 dev lo"])
    assert "no address or range" in refused(lab, address(on, "203.0.113.10/24"), rule("203.0.113.40", 9999 + on))
