"""Takeovers with the fetcher's uid, seen from the neighbours: no packet goes to another host than before the request.

The lab's filter is off: a cloud that drops spoofed packets and ARP answers would hide gaps in the policy.
neighbour0 is in the subnet of eth1 (the primary, 10.0.1.10/24, by DHCP), neighbour1 in that of eth0; `vpn` is behind
wg0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest

from tests.lab import Lab, Spec
from tests.system.netagent.conftest import start
from tests.system.netagent.identities import UserWire
from tests.system.netagent.packets import PacketObservers, packet_observers
from tests.system.netagent.wire import CONFIG, address, ifindex, kernel_state, main_rule, route, rule

Ops = list[dict[str, Any]]
METADATA, RESOLVER, ELSEWHERE = "169.254.169.254", "10.0.0.2", "10.0.77.7"
RESOLVER2, BEHIND_STUB = "10.0.4.3", "10.0.4.4"
SERVERS = ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254", "fd00:42::42", "fd00:c1::a9fe:a9fe")
"""Metadata servers of other clouds in private networks, which a link may claim otherwise."""
HOPS = tuple(f"10.0.1.{host}" for host in (101, 102, 103, 104))
"""Gateways of an operator's routes: both of a multipath route, of another table, and of a nexthop object."""
NEIGHBOUR0, NEIGHBOUR1 = "10.0.1.250", "10.0.2.250"  # neighbour0, neighbour1
BESIDE0_6, BESIDE1_6 = "fe80::ace0", "fe80::ace1"
BEYOND, BEYOND6 = "198.51.100.10", "2001:db8:ffff::10"
CLAIMED = (
    *(METADATA, RESOLVER, ELSEWHERE, "10.0.1.222", "10.0.2.221", "10.0.2.253", "10.50.0.7", "10.50.0.200"),
    *("10.60.0.7", "10.70.0.7", "fd50::7", "fd00:1:0:7::7", RESOLVER2, "10.99.0.7", "10.99.1.7", "fd00:abc::1"),
    *(BEHIND_STUB, *SERVERS, *HOPS),
)
"""Addresses for which both neighbours, working with the attacker, answer ARP and neighbour discovery."""
MINE, MINE6 = "10.0.1.10", "fd00:1::10"
PRIMARY, SECONDARY = "eth1", "eth0"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.run(["nft", "flush", "table", "bridge", "cloud"], "cloud")
        lab.batch(["link set eth0 up"])
        for number, (namespace, own) in enumerate(zip(lab.neighbours, (BESIDE0_6, BESIDE1_6), strict=True)):
            namespace.batch(
                [f"address add {own}/64 dev eth0 nodad", f"address add fd00:{number + 1}::fa/64 dev eth0 nodad"]
            )
            namespace.batch([f"address add {each}/{128 if ':' in each else 32} dev eth0" for each in CLAIMED])
        lab.path("/etc/resolv.conf").write_text(f"nameserver {RESOLVER}\nnameserver {RESOLVER2}\n")
        lab.path("/run/systemd/resolve").mkdir(parents=True)
        lab.path("/run/systemd/resolve/resolv.conf").write_text(f"nameserver {BEHIND_STUB}\n")
        _add_vpn(lab)
        start(lab)
        _add_ipv6(lab)
        yield lab


def _add_vpn(lab: Lab) -> None:
    """Add routes of other programs: a VPN, a CNI through another host of the subnet, a blackhole, two through the
    gateway, and those through HOPS.
    """
    [vpn] = lab.namespaces.open({"name": "vpn", "sysctl": {}})
    lab.batch(
        [
            "link add wg0 type bridge",
            f"link add wgport type veth peer name eth0 netns {vpn.pid}",
            "link set wgport master wg0 up",
            "address add 10.50.0.1/24 dev wg0",
            "address add fd50::1/64 dev wg0 nodad",
            "link set wg0 up",
            f"route add 10.60.0.0/24 via {NEIGHBOUR0}",
            "route add blackhole 10.70.0.0/24",
            f"route add 10.99.0.0/24 via 10.0.1.1 dev {PRIMARY} metric 100",
            f"route add 10.99.1.7/32 via 10.0.1.1 dev {PRIMARY}",
            f"route add 192.168.99.0/24 nexthop via {HOPS[0]} nexthop via {HOPS[1]}",
            f"route add 192.168.99.0/24 via {HOPS[2]} table 100",
            f"nexthop add id 7 via {HOPS[3]} dev {PRIMARY}",
        ]
    )
    vpn.batch(["link set eth0 up", "address add 10.50.0.7/24 dev eth0", "address add 10.50.0.200/24 dev eth0"])
    vpn.batch(["address add fd50::7/64 dev eth0 nodad"])


def _add_ipv6(lab: Lab) -> None:
    """Add the primary's IPv6 as a router advertises it; for the secondary, the kernel has only the router."""
    lab.cloud.batch([f"address add fe80::fe/64 dev sn{number} nodad" for number in (0, 1)])
    lab.batch(
        [
            f"address add {MINE6}/64 dev {PRIMARY} nodad",
            f"route add default via fe80::fe dev {PRIMARY} proto ra",
            f"neighbour replace fe80::fe lladdr 02:00:00:00:fe:02 dev {SECONDARY} router",
        ]
    )


@pytest.fixture(scope="module")
def seen(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PacketObservers]:
    namespaces = [lab.cloud, *lab.neighbours, lab.namespace("vpn")]
    with packet_observers(lab, namespaces, tmp_path_factory.mktemp("packets")) as found:
        yield found


@dataclass(frozen=True)
class Attack:
    """Operations in which PRIMARY and SECONDARY stand for links, and a datagram whose path must not change."""

    ops: Ops
    destination: str
    source: str = ""


def table(link: str) -> str:
    return f"table of {link}"


def on(lab: Lab, ops: Ops) -> Ops:
    """Return the operations with the numbers of links and tables."""
    links = {name: ifindex(lab, name) for name in (PRIMARY, SECONDARY)}
    numbers: dict[Any, int] = links | {table(name): 9999 + number for name, number in links.items()}
    return [
        {key: numbers.get(value, value) if isinstance(value, str) else value for key, value in op.items()} for op in ops
    ]


def via(link: Any, destination: str, gateway: str | None) -> dict[str, Any]:
    return dict(route(link, destination, gateway, table=table(link)))  # type: ignore[arg-type]


def local(link: Any, destination: str) -> dict[str, Any]:
    return dict(route(link, destination, table=255))


def source(text: str, link: str, **more: Any) -> dict[str, Any]:
    return rule(text, table(link), **more)  # type: ignore[arg-type]


def quiet(link: Any, text: str) -> dict[str, Any]:
    """Return an address without its connected route."""
    return {**address(link, text), "route": False}


def own(link: Any, text: str) -> dict[str, Any]:
    return address(link, text)


def around(text: str) -> dict[str, Any]:
    """Return the address of the secondary after `text`, with a subnet that contains both."""
    return own(SECONDARY, f"{ip_address(text) + 1}/{64 if ':' in text else 24}")


def steps(link: str, text: str, **more: Any) -> Ops:
    """Return the rules of a selector, in three steps."""
    first, last = (source(text, link, priority=priority, **more) for priority in (31000, 31020))
    return [first, main_rule("::/0" if ":" in text else "0.0.0.0/0"), last]


def past_main(text: str, link: str, **more: Any) -> dict[str, Any]:
    """Return a rule that looks up the whole table, with a priority before that of main."""
    return source(text, link, suppress=False, **more)


FROM, FROM6 = steps(PRIMARY, f"{MINE}/32"), steps(PRIMARY, f"{MINE6}/128")
BY_GATEWAY = [via(PRIMARY, "0.0.0.0/0", "10.0.1.1")]
BY_NEIGHBOUR = [
    own(SECONDARY, "10.0.2.222/32"),
    via(SECONDARY, "10.0.2.221/32", None),
    via(SECONDARY, "0.0.0.0/0", "10.0.2.221"),
]
"""An accepted default route through a neighbour: the first host of 10.0.2.220/30, on a link without a subnet."""
ATTACKS = {
    # 1: a neighbour as gateway
    "metadata by a neighbour": Attack([via(PRIMARY, f"{METADATA}/32", NEIGHBOUR0), *FROM], METADATA, MINE),
    "metadata on link": Attack([via(PRIMARY, f"{METADATA}/32", None), *FROM], METADATA, MINE),
    "everything by a neighbour": Attack([via(PRIMARY, "0.0.0.0/0", NEIGHBOUR0), *FROM], BEYOND, MINE),
    "half of everything by a neighbour": Attack([via(PRIMARY, "128.0.0.0/1", NEIGHBOUR0), *FROM], BEYOND, MINE),
    "the resolver by a neighbour": Attack([via(PRIMARY, f"{RESOLVER}/32", NEIGHBOUR0), *FROM], RESOLVER, MINE),
    "the resolver on link": Attack([via(PRIMARY, f"{RESOLVER}/32", None), *FROM], RESOLVER, MINE),
    "a rule to the resolver": Attack([*BY_NEIGHBOUR, *steps(SECONDARY, "10.0.0.2/31", to=True)], RESOLVER),
    "a rule to one resolver": Attack([*BY_NEIGHBOUR, *steps(SECONDARY, RESOLVER, to=True)], RESOLVER),
    "a rule from another link": Attack([*BY_NEIGHBOUR, *steps(SECONDARY, MINE)], BEYOND, MINE),
    "a rule from everything of another link": Attack(
        [*BY_NEIGHBOUR, *steps(SECONDARY, "10.0.1.0/24", local=True)], BEYOND, MINE
    ),
    "a range around the gateway, then another gateway": Attack(
        [local(PRIMARY, "10.0.1.0/26"), via(PRIMARY, "0.0.0.0/0", NEIGHBOUR0), *FROM], BEYOND, MINE
    ),
    "IPv6 by a neighbour's link-local address": Attack([via(PRIMARY, "::/0", BESIDE0_6), *FROM6], BEYOND6, MINE6),
    "IPv6 by a neighbour's address": Attack([via(PRIMARY, "::/0", "fd00:1::fa"), *FROM6], BEYOND6, MINE6),
    "IPv6 half of everything by a neighbour": Attack([via(PRIMARY, "2000::/3", BESIDE0_6), *FROM6], BEYOND6, MINE6),
    # 2: routes of other programs
    "an address of the VPN": Attack([own(SECONDARY, "10.50.0.7/32")], "10.50.0.7"),
    "a subnet of the VPN": Attack([own(SECONDARY, "10.50.0.129/25")], "10.50.0.200"),
    "a subnet around the VPN": Attack(
        [own(SECONDARY, "10.50.1.9/16"), via(SECONDARY, "10.50.0.0/24", None), *steps(SECONDARY, "10.50.1.9")],
        "10.50.0.7",
        "10.50.1.9",
    ),
    "a range of the VPN": Attack([local(SECONDARY, "10.50.0.192/26")], "10.50.0.200"),
    "the VPN by the gateway": Attack([via(PRIMARY, "10.50.0.0/24", "10.0.1.1"), *FROM], "10.50.0.7", MINE),
    "half of the VPN by the gateway": Attack([via(PRIMARY, "10.50.0.128/25", "10.0.1.1"), *FROM], "10.50.0.200", MINE),
    "around the VPN by the gateway": Attack([via(PRIMARY, "10.0.0.0/8", "10.0.1.1"), *FROM], "10.50.0.7", MINE),
    "the VPN on link": Attack([via(PRIMARY, "10.50.0.0/24", None), *FROM], "10.50.0.7", MINE),
    "an address of the CNI": Attack([own(SECONDARY, "10.60.0.7/32")], "10.60.0.7"),
    "the CNI by the gateway": Attack([via(PRIMARY, "10.60.0.0/24", "10.0.1.1"), *FROM], "10.60.0.7", MINE),
    "the blackhole by the gateway": Attack([via(PRIMARY, "10.70.0.0/24", "10.0.1.1"), *FROM], "10.70.0.7", MINE),
    "an address of the blackhole": Attack([own(SECONDARY, "10.70.0.1/25")], "10.70.0.7"),
    "an IPv6 address of the VPN": Attack([own(SECONDARY, "fd50::7/128")], "fd50::7"),
    "an IPv6 subnet of the VPN": Attack([own(SECONDARY, "fd50::9/65")], "fd50::7"),
    "an IPv6 range of the VPN": Attack([local(SECONDARY, "fd50::/112")], "fd50::7"),
    "the IPv6 VPN by the gateway": Attack([via(PRIMARY, "fd50::/64", "fe80::fe"), *FROM6], "fd50::7", MINE6),
    # 3: invented subnets
    "an eighth of the address space": Attack(
        [quiet(SECONDARY, "10.200.0.5/8"), via(SECONDARY, "10.0.1.222/32", None), *steps(SECONDARY, "10.200.0.5")],
        "10.0.1.222",
        "10.200.0.5",
    ),
    "a part of the primary's subnet": Attack([own(SECONDARY, "10.0.1.201/26")], "10.0.1.222"),
    "a part of it without its route": Attack(
        [quiet(SECONDARY, "10.0.1.201/26"), via(SECONDARY, "10.0.1.192/26", None), *steps(SECONDARY, "10.0.1.201")],
        "10.0.1.222",
        "10.0.1.201",
    ),
    "the primary's neighbour on the secondary": Attack(
        [own(SECONDARY, "10.0.2.10/24"), via(SECONDARY, "10.0.1.222/32", None), *steps(SECONDARY, "10.0.2.10")],
        "10.0.1.222",
        "10.0.2.10",
    ),
    "around the primary's subnet": Attack([own(PRIMARY, "10.0.1.201/16")], ELSEWHERE),
    "around the resolver's subnet": Attack([own(PRIMARY, "10.0.0.9/24")], RESOLVER),
    "around the primary's subnet, on link": Attack([via(PRIMARY, "10.0.0.0/16", None), *FROM], ELSEWHERE, MINE),
    "an IPv6 part of the primary's subnet": Attack([own(SECONDARY, "fd00:1::99/80")], "fd00:1::fa"),
    "around the primary's IPv6 subnet": Attack([own(PRIMARY, "fd00:1::99/44")], "fd00:1:0:7::7"),
    "a huge range": Attack([local(SECONDARY, "10.0.64.0/18")], ELSEWHERE),
    # 4: the default route of a link's table before the routes of main
    "the VPN by a rule past main": Attack([*BY_GATEWAY, past_main(MINE, PRIMARY)], "10.50.0.7", MINE),
    "the VPN by a prefix past main": Attack(
        [*BY_GATEWAY, past_main("10.0.1.0/24", PRIMARY, local=True)], "10.50.0.7", MINE
    ),
    "the CNI by a rule past main": Attack([*BY_GATEWAY, past_main(MINE, PRIMARY)], "10.60.0.7", MINE),
    "the blackhole by a rule past main": Attack([*BY_GATEWAY, past_main(MINE, PRIMARY)], "10.70.0.7", MINE),
    "the VPN by a rule beside main": Attack(
        [*BY_GATEWAY, main_rule(), source(MINE, PRIMARY, priority=31010, suppress=False)], "10.50.0.7", MINE
    ),
    "the VPN by a rule before main": Attack(
        [*BY_GATEWAY, past_main(MINE, PRIMARY, priority=31009), main_rule()], "10.50.0.7", MINE
    ),
    "the VPN after main is removed": Attack([*BY_GATEWAY, *FROM, main_rule(op="rule_remove")], "10.50.0.7", MINE),
    "the VPN by a rule with main of IPv6": Attack(
        [*BY_GATEWAY, main_rule("::/0"), source(MINE, PRIMARY, priority=31020)], "10.50.0.7", MINE
    ),
    "the IPv6 VPN by a rule past main": Attack(
        [via(PRIMARY, "::/0", "fe80::fe"), past_main(f"{MINE6}/128", PRIMARY)], "fd50::7", MINE6
    ),
    "what an operator routes by the gateway, on link": Attack([own(PRIMARY, "10.99.0.5/24")], "10.99.0.7"),
    "a host that an operator routes by the gateway": Attack([own(PRIMARY, "10.99.1.7/32")], "10.99.1.7"),
    # 5: a connected route to a resolver, on a link that has learned no subnet
    "the resolver's subnet on the secondary": Attack([own(SECONDARY, "10.0.0.9/24")], RESOLVER),
    "two addresses with the resolver's": Attack([own(SECONDARY, "10.0.0.3/31")], RESOLVER),
    "the resolver as a broadcast address": Attack([quiet(SECONDARY, "10.0.4.1/30")], RESOLVER2),
    "half of the secondary's subnet as a range": Attack(
        [own(SECONDARY, "10.0.2.10/24"), local(SECONDARY, "10.0.2.128/25")], "10.0.2.221"
    ),
    # 6: addresses of gateways, resolvers and metadata servers: the host would answer itself
    **{f"the gateway {hop}": Attack([own(SECONDARY, f"{hop}/32")], hop) for hop in HOPS},
    "a range with a gateway of a multipath route": Attack([local(PRIMARY, f"{HOPS[1]}/32")], HOPS[1]),
    "the resolver behind a stub": Attack([own(SECONDARY, f"{BEHIND_STUB}/32")], BEHIND_STUB),
    **{
        f"the metadata server {each}": Attack([own(SECONDARY, f"{each}/{128 if ':' in each else 32}")], each)
        for each in SERVERS
    },
    **{f"around the metadata server {each}": Attack([around(each)], each) for each in SERVERS},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_packet_goes_another_way(lab: Lab, seen: PacketObservers, name: str) -> None:
    attack = ATTACKS[name]
    held = attack.source in (MINE, MINE6, "")
    before = seen.receivers(attack.destination, attack.source if held else "")
    state = kernel_state(lab)
    with UserWire(lab) as wire:
        answer = wire.apply(*on(lab, attack.ops))
        if answer["verdict"] == "applied":  # an accepted attack must not change the packet's path
            after = seen.receivers(attack.destination, attack.source)
            wire.ask(request="flush", id="after")
            assert after == before, answer
    assert answer["verdict"] == "refused", answer
    assert kernel_state(lab) == state
    assert seen.receivers(attack.destination, attack.source if held else "") == before


FIRST, FIRST6 = "10.0.2.10", "fd00:2::10"
BY_FIRST_HOST = [via(SECONDARY, "10.0.2.1/32", None), via(SECONDARY, "0.0.0.0/0", "10.0.2.1")]
AWS = [
    own(SECONDARY, f"{FIRST}/24"),
    quiet(SECONDARY, "10.0.2.11/32"),
    via(SECONDARY, "10.0.2.0/24", None),
    via(SECONDARY, "10.0.1.0/24", "10.0.2.1"),
    via(SECONDARY, "0.0.0.0/0", "10.0.2.1"),
    via(SECONDARY, f"{METADATA}/32", "10.0.2.1"),
]
GATEWAY = {"cloud:sn1"}
NEEDED = {
    "the secondary's first address": Attack([*AWS, *steps(SECONDARY, FIRST)], BEYOND, FIRST),
    "its second address": Attack([*AWS, *steps(SECONDARY, "10.0.2.11")], BEYOND, "10.0.2.11"),
    "metadata from it": Attack([*AWS, *steps(SECONDARY, FIRST)], METADATA, FIRST),
    "the primary's subnet from it": Attack([*AWS, *steps(SECONDARY, FIRST)], "10.0.1.240", FIRST),
    "Azure's wire server": Attack(
        [*AWS, via(SECONDARY, "168.63.129.16/32", "10.0.2.1"), *steps(SECONDARY, FIRST)], "168.63.129.16", FIRST
    ),
    "Google Cloud's further interface": Attack(
        [own(SECONDARY, f"{FIRST}/32"), *BY_FIRST_HOST, *steps(SECONDARY, FIRST)], BEYOND, FIRST
    ),
    "Hetzner's private network": Attack(
        [
            own(SECONDARY, f"{FIRST}/32"),
            via(SECONDARY, "10.0.2.1/32", None),
            via(SECONDARY, "10.0.64.0/18", "10.0.2.1"),
            *steps(SECONDARY, FIRST),
        ],
        ELSEWHERE,
        FIRST,
    ),
    "a delegated range": Attack(
        [*AWS, local(SECONDARY, "10.0.2.32/28"), *steps(SECONDARY, "10.0.2.33")], BEYOND, "10.0.2.33"
    ),
    "IPv6 by a router": Attack(
        [own(SECONDARY, f"{FIRST6}/128"), via(SECONDARY, "::/0", "fe80::fe"), *steps(SECONDARY, f"{FIRST6}/128")],
        BEYOND6,
        FIRST6,
    ),
}
"""Requests that clouds need: packets from the secondary's addresses leave through its own gateway."""


@pytest.mark.parametrize("name", NEEDED)
def test_requests_of_real_clouds_are_accepted(lab: Lab, seen: PacketObservers, name: str) -> None:
    needed = NEEDED[name]
    with UserWire(lab) as wire:
        answer = wire.apply(*on(lab, needed.ops))
        assert answer["verdict"] == "applied", answer
        arrived = seen.arrivals(needed.destination, needed.source)
        vpn, primary = seen.receivers("10.50.0.7"), seen.arrivals(BEYOND, MINE)
        flushed = wire.ask(request="flush", id="after")
    assert (arrived, vpn, primary) == (GATEWAY, {"vpn"}, {"cloud:sn0"})
    assert flushed["done"] == len(needed.ops)


def test_no_prefix_outlives_its_addresses(lab: Lab, seen: PacketObservers) -> None:
    """The kernel can keep the connected route of a removed IPv6 address, which then looked like a learned route."""
    first, second = own(PRIMARY, "fd00:abc::11/64"), quiet(PRIMARY, "fd00:abc::12/64")
    gone = [address(ifindex(lab, PRIMARY), f"fd00:abc::{host}/64", "address_remove") for host in (11, 12)]
    with UserWire(lab) as wire:
        made = wire.apply(*on(lab, [first, second]))
        for op in gone:
            wire.apply(op)
        taken = wire.apply(*on(lab, [via(PRIMARY, "::/0", "fd00:abc::1"), *FROM6]))
        arrived = seen.arrivals(BEYOND6, MINE6)
        wire.ask(request="flush", id="after")
    left = lab.run(["ip", "-6", "route", "show", "fd00:abc::/64"]).stdout
    lab.run(["ip", "-6", "route", "flush", "fd00:abc::/64"], check=False)
    assert (made["verdict"], taken["verdict"], arrived, left) == ("refused", "refused", {"cloud:sn0"}, "")


@pytest.mark.parametrize("destination", ["198.51.100.0/24", "128.0.0.0/1", "192.0.0.0/2"])
def test_a_tunnel_for_everything_keeps_the_internet(lab: Lab, seen: PacketObservers, destination: str) -> None:
    """A VPN routes both halves of the address space; the cloud's networks stay behind the gateway."""
    halves = [f"{network} dev wg0" for network in ("0.0.0.0/1", "128.0.0.0/1")]
    lab.batch([f"route add {half}" for half in halves])
    try:
        with UserWire(lab) as wire:
            answer = wire.apply(*on(lab, [via(PRIMARY, destination, "10.0.1.1"), *FROM]))
            arrived = seen.receivers(BEYOND, MINE)
            wire.ask(request="flush", id="after")
            needed = [via(PRIMARY, each, "10.0.1.1") for each in ("10.0.2.0/24", f"{METADATA}/32", "0.0.0.0/0")]
            accepted = wire.apply(*on(lab, [*needed, *FROM]))
            wire.ask(request="flush", id="after")
    finally:
        lab.batch([f"route del {half}" for half in halves])
    assert (answer["verdict"], arrived, accepted["verdict"]) == ("refused", set(), "applied")


def test_main_stays_while_a_rule_needs_it(lab: Lab, seen: PacketObservers) -> None:
    ops = [*BY_GATEWAY, *FROM]
    with UserWire(lab) as wire:
        assert wire.apply(*on(lab, ops))["verdict"] == "applied"
        removed = wire.apply(main_rule(op="rule_remove"))
        arrived = seen.receivers("10.50.0.7", MINE)
        again = [{**op, "op": "rule_remove"} for op in reversed(on(lab, FROM))]
        whole = wire.apply(*again)
        wire.ask(request="flush", id="after")
    assert (removed["verdict"], arrived, whole["verdict"]) == ("refused", {"vpn"}, "applied")


def test_a_secondary_in_the_resolvers_subnet_leaves_the_resolver(lab: Lab, seen: PacketObservers) -> None:
    """As in AWS's default VPC: the subnet is on link in the link's table, and has no connected route."""
    ops = [
        quiet(SECONDARY, "10.0.0.9/32"),
        via(SECONDARY, "10.0.0.0/24", None),
        via(SECONDARY, "0.0.0.0/0", "10.0.0.1"),
        *steps(SECONDARY, "10.0.0.9"),
    ]
    with UserWire(lab) as wire:
        assert wire.apply(*on(lab, ops))["verdict"] == "applied"
        arrived = seen.arrivals(RESOLVER)
        wire.ask(request="flush", id="after")
    assert arrived == {"cloud:sn0"}


def test_alibabas_gateway_is_the_third_last_address(lab: Lab, seen: PacketObservers) -> None:
    ops = [own(SECONDARY, f"{FIRST}/24"), via(SECONDARY, "0.0.0.0/0", "10.0.2.253"), *steps(SECONDARY, FIRST)]
    with UserWire(lab) as wire:
        assert wire.apply(*on(lab, ops))["verdict"] == "applied"
        arrived = seen.receivers(BEYOND, FIRST)
        wire.ask(request="flush", id="after")
    assert arrived == {"neighbour1"}  # neighbour1 has this address here
