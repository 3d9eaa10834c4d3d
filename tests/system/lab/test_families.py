"""The cloud's IPv6, and its delegated ranges: tested with ip(8) by hand, without cloud-network."""

from __future__ import annotations

import json

from tests.lab import Interface, Lab, Spec
from tests.system.lab.test_lab import configuration, table


def configure(lab: Lab) -> None:
    """Configure IPv6 like `configuration`; the gateway is the router of the advertisements."""
    router = lab.convention.router6
    lab.batch(configuration(lab))
    lines = ["rule add priority 30001 lookup main suppress_prefixlength 0"]
    present = lab.run(["ip", "-6", "-br", "address"]).stdout
    for nic in lab.nics:
        number = table(lab, nic.name)
        for address in nic.ipv6:
            if f" {address}/" not in present:
                lines.append(f"address add {address}/128 dev {nic.name} nodad")
            lines += [
                f"rule add priority 30000 from {address} lookup {number} suppress_prefixlength 0",
                f"rule add priority 30002 from {address} lookup {number}",
            ]
        lines.append(f"route replace {nic.subnet6} dev {nic.name} table {number}")
        for other in {other.subnet6 for other in lab.nics} - {nic.subnet6}:
            lines.append(f"route replace {other} via {router} dev {nic.name} table {number}")
        lines.append(f"route replace default via {router} dev {nic.name} table {number}")
    lab.run(["ip", "-6", "-batch", "-"], stdin="\n".join(lines))


def default6(lab: Lab) -> dict[str, str]:
    """Return {device: gateway} of the routes that the kernel learned from advertisements."""
    routes = json.loads(lab.run(["ip", "-6", "-j", "route", "show", "default", "proto", "ra"]).stdout)
    return {route["dev"]: route["gateway"] for route in routes}


def test_the_kernel_learns_prefix_and_default_route_by_itself() -> None:
    with Lab(Spec.cloud("aws", interfaces=2, addresses=1, ipv6=1)) as lab:
        first, second = lab.nics
        assert default6(lab) == {first.name: "fe80::1"}
        lab.batch([f"link set {second.name} up"])
        lab.wait_for(lambda: second.name in default6(lab), message="the answer to a solicitation")
        routes = json.loads(lab.run(["ip", "-6", "-j", "route", "show", second.subnet6]).stdout)
        assert {(route["dev"], route.get("gateway")) for route in routes} == {(second.name, None)}


def test_without_ipv6_nothing_is_advertised() -> None:
    with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
        link_local = ["ip", "-6", "address", "show", "eth0", "scope", "link"]
        lab.wait_for(lambda: "tentative" not in lab.run(link_local).stdout, message="the first solicitation")
        assert default6(lab) == {}
        assert lab.addresses6 == []


def test_a_fresh_instance_answers_on_its_first_addresses_only() -> None:
    with Lab(Spec.cloud("aws", interfaces=2, addresses=2, ipv6=2)) as lab:
        answers = lab.reachability(timeout=0.7)
        assert len(answers) == 3 * 8
        answered = {target for (_, target), answer in answers.items() if answer}
        assert answered == {lab.nics[0].addresses[0], lab.nics[0].ipv6[0]}
        assert {address for address, answer in lab.outbound(0.7).items() if answer} == answered
        assert lab.lost() == []


def test_design_rules_make_all_pairs_of_both_families_answer() -> None:
    with Lab(Spec.cloud("aws", interfaces=4, addresses=3, ipv6=3)) as lab:
        configure(lab)
        answers = lab.reachability()
        assert len(answers) == 5 * 4 * 6
        assert [pair for pair, answer in answers.items() if not answer] == []
        assert all(lab.outbound().values())
        assert lab.lost() == []


def test_foreign_ipv6_source_is_dropped_and_counted() -> None:
    with Lab(Spec.cloud("aws", interfaces=2, addresses=1, ipv6=1)) as lab:
        first, second = lab.nics
        lab.batch([f"address add {second.ipv6[0]}/128 dev lo"])
        assert lab.outbound(0.7) == {first.addresses[0]: True, second.addresses[0]: False} | {
            first.ipv6[0]: True,
            second.ipv6[0]: False,
        }
        lost = {(entry.mac, entry.source, entry.destination) for entry in lab.lost()}
        assert lost == {(first.mac, second.ipv6[0], "2001:db8:ffff::a")}
        assert lab.dropped() > 0
        lab.fabric.clear_lost()
        assert lab.dropped() == 0


def test_ipv6_is_delivered_only_to_the_owner() -> None:
    """Another host has the wrong MAC for an address: the kernel would answer through its other interface."""
    with Lab(Spec((Interface("10.0.1.0/24", 1, ipv6=1), Interface("10.0.1.0/24", 1, ipv6=1)))) as lab:
        configure(lab)
        first, second = lab.nics
        assert all(lab.reachability([*first.ipv6, *second.ipv6]).values())
        wrong = f"neigh replace {first.ipv6[0]} lladdr {second.mac} dev eth0 nud permanent"
        lab.neighbours[0].batch([wrong])
        answers = lab.reachability([*first.ipv6, *second.ipv6], timeout=0.5)
        assert [pair for pair, answer in answers.items() if not answer] == [("neighbour0", first.ipv6[0])]


def test_an_ipv6_address_is_added_and_removed_while_running() -> None:
    with Lab(Spec.cloud("aws", interfaces=1, addresses=1, ipv6=1)) as lab:
        [nic] = lab.nics
        new = "2001:db8:0:1::99"
        lab.batch([f"address add {new}/128 dev {nic.name} nodad"])
        assert not any(lab.reachability([new], 0.5).values())
        lab.add_address(nic.mac, new)
        assert all(lab.reachability([new]).values())
        lab.remove_address(nic.mac, new)
        assert not any(lab.reachability([new], 0.5).values())


def test_without_on_link_prefix_neighbours_use_the_router() -> None:
    """The router does not redirect (RFC 4861, 8), as in every cloud."""
    with Lab(Spec.cloud("azure", interfaces=1, addresses=1, ipv6=1)) as lab:
        [nic] = lab.nics

        def redirects(which: str, namespace: str) -> int:
            counters = lab.run(["cat", "/proc/net/snmp6"], where=namespace).stdout.split()
            return int(counters[counters.index(f"Icmp6{which}Redirects") + 1])

        lab.wait_for(
            lambda: all(lab.reachability(nic.ipv6).values()) and redirects("Out", "cloud") > 3, message="redirects"
        )
        assert redirects("In", "instance") == 0
        there = lab.run(["ip", "-6", "route", "get", "2001:db8:0:1::fffa"]).stdout
        assert f"via {lab.convention.router6}" in there


def test_ipv6_may_come_to_a_subnet_later() -> None:
    with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
        [nic] = lab.nics
        lab.add_address(nic.mac, "2001:db8:5::10")
        lab.batch([f"address add 2001:db8:5::10/128 dev {nic.name} nodad"])
        lab.wait_for(lambda: default6(lab), message="an advertisement")
        answers = lab.reachability()
        assert set(answers) == {(s, t) for s in ("beyond0", "neighbour0") for t in ("10.0.1.10", "2001:db8:5::10")}
        assert all(answers.values())


def test_an_interface_with_ipv6_is_attached_and_detached() -> None:
    with Lab(Spec.cloud("aws", interfaces=1, addresses=1, ipv6=1)) as lab:
        nic = lab.attach_interface(Interface("10.0.7.0/24", 1, ipv6=2, prefixes=("10.0.7.64/28", "2001:db8:7:1::/80")))
        configure(lab)
        assert all(lab.reachability().values())
        lab.detach_interface(nic.mac)
        assert lab.addresses6 == [lab.nics[0].ipv6[0]]
        assert all(lab.reachability().values())


def test_a_range_belongs_to_its_interface() -> None:
    """A whole range: the first and the last address answer only once the kernel has it as local."""
    with Lab(Spec.cloud("aws", interfaces=2, addresses=1, ipv6=1, prefixes=2)) as lab:
        first, second = lab.nics
        assert len(lab.range_ends) == 2 * 2 * 2 * 2
        samples = list(first.range_ends)
        assert not any(lab.reachability(samples, 0.5).values())
        lab.batch([f"route add local {prefix} dev {first.name}" for prefix in first.prefixes])
        answers = lab.reachability(samples)
        assert len(answers) == 3 * 8
        assert [pair for pair, answer in answers.items() if not answer] == []
        four = [address for address in samples if ":" not in address]
        assert all(lab.outbound(addresses=four).values())
        assert lab.lost() == []
        foreign = next(iter(second.range_ends))
        lab.batch([f"route add local {second.prefixes[0]} dev lo"])
        assert lab.outbound(0.5, [foreign]) == {foreign: False}
        assert {entry.source for entry in lab.lost()} == {foreign}


def test_ranges_come_and_go() -> None:
    with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
        [nic] = lab.nics
        lab.batch(["route add local 203.0.113.64/30 dev lo"])
        lab.add_range(nic.mac, "203.0.113.64/30")
        assert all(lab.reachability(lab.range_ends).values())
        lab.remove_range(nic.mac, "203.0.113.64/30")
        assert not any(lab.reachability(["203.0.113.64"], 0.5).values())
        assert lab.range_ends == []


def test_an_address_can_be_inside_a_range() -> None:
    with Lab(Spec((Interface("10.0.1.0/24", ("10.0.1.10", "10.0.1.70"), prefixes=("10.0.1.64/28",)),))) as lab:
        lab.batch(["address add 10.0.1.70/32 dev eth0"])
        assert all(lab.reachability().values())
