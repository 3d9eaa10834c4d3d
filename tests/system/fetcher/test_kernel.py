"""The real kernel: how it is read, and whether it accepts cloud-network's changes in `ip` syntax."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.config import Config, Prefixes, RulesMode
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.matching import match_links
from cloud_network.fetcher.network.objects import ARPHRD_LOOPBACK, Actual, Desired, Route, Rule
from cloud_network.fetcher.network.plan import in_ip_syntax, plan
from cloud_network.netagent.claims import MarkSelector

from tests.lab import Interface, Lab, Spec
from tests.unit.fetcher.values import goal_of, instance, interface, kernel_address

READ = (
    "import sys, pickle; from cloud_network.fetcher.network import kernel; "
    "print(pickle.dumps(kernel.read(), 0).decode())"
)
NOWHERE = Desired((), (), {})
CONFIG = Config(allow_kinds=("veth",), prefixes=Prefixes.LOCAL, rules=RulesMode.ORIGINAL)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    six = (Interface(f"10.0.{n}.0/24", 3, ipv6=(f"fd00:{n}::a",), prefixes=(f"10.0.{n}.64/28",)) for n in (1, 2, 3))
    with Lab(Spec(tuple(six))) as made:
        made.batch([f"link set {nic.name} up" for nic in made.nics])
        learned = ["ip", "-6", "route", "show", "default", "proto", "ra"]
        made.wait_for(lambda: made.run(learned).stdout.count("fe80::1") == 3, message="every link's router")
        yield made


def read(lab: Lab) -> Actual:
    """Run kernel.read() inside the instance."""
    found: Actual = pickle.loads(lab.run([sys.executable, "-c", READ], user="cloud-network").stdout.encode())
    return found


def cloud(lab: Lab) -> Instance:
    """Return the lab's interfaces as a provider would read them."""
    interfaces = []
    for nic in lab.nics:
        subnets = [nic.subnet, f"fd00:{nic.device + 1}::/64"]
        ranges = tuple(map(ip_network, nic.prefixes))
        one = interface(
            nic.device + 1, *nic.addresses, *nic.ipv6, subnets=subnets, ranges=ranges, mac=nic.mac, mtu=1400
        )
        interfaces.append(one)
    return instance(*interfaces)


def commands(lab: Lab, rules: RulesMode) -> list[str]:
    """Return the missing changes, in `ip` syntax."""
    actual = read(lab)
    found = plan(goal_of(cloud(lab), replace(CONFIG, rules=rules), actual), actual, may_remove=True)
    links = {link.ifindex: link for link in actual.links}
    return [in_ip_syntax(change, links) for change in found]


def removal(line: str) -> str:
    for words in ((" route replace ", " route del "), (" add ", " del "), (" noprefixroute", "")):
        line = line.replace(*words)
    return line


@pytest.mark.parametrize("rules", RulesMode)
def test_printed_plan_runs_with_ip_and_completes(lab: Lab, rules: RulesMode) -> None:
    lines = commands(lab, rules)
    kinds = {line.removeprefix("ip ").removeprefix("-6 ").split()[0] for line in lines}
    assert kinds - {"link"} == {"address", "route", "rule"}
    assert any(" iif lo " in line for line in lines) == (rules is RulesMode.AGGREGATE)
    for line in lines:
        lab.run(line.split())
    assert commands(lab, rules) == []
    undone = [line for line in lines if " link " not in line]
    for line in reversed(undone):
        lab.run(removal(line).split())
    assert set(commands(lab, rules)) == set(undone)


def test_printed_removals_run_with_ip(lab: Lab) -> None:
    added = [
        "ip route replace 10.9.4.0/24 dev eth0 table 777 proto 209",
        "ip -6 route replace fd09::/64 via fe80::9 dev eth0 table 777 proto 209",
        "ip route replace local 10.9.5.0/28 dev eth0 table local proto 209",
        "ip rule add pref 31020 from 10.9.4.1 lookup 777 protocol 209",
        "ip -6 rule add pref 31020 to fd09::/64 lookup 777 suppress_prefixlength 0 protocol 209",
        "ip rule add pref 31010 from all lookup main suppress_prefixlength 0 protocol 209",
    ]
    lab.batch(["link set eth0 up"])
    for line in added:
        lab.run(line.split())
    actual = read(lab)
    links = {link.ifindex: link for link in actual.links}
    shown = [in_ip_syntax(each, links) for each in plan(NOWHERE, actual, may_remove=True)]
    assert set(map(removal, added)) <= set(shown)
    for line in shown:
        lab.run(line.split())
    assert plan(NOWHERE, read(lab), may_remove=True) == ()


def test_only_protocol_209_and_marks_of_others_are_read(lab: Lab) -> None:
    owned = [
        "route add 10.9.1.0/24 dev eth0 table 777 proto 209",
        "rule add pref 31000 from 10.9.1.1 lookup 777 protocol 209",
    ]
    others = [
        "route add 10.9.2.0/24 dev eth0 table 777",
        "rule add pref 31001 from 10.9.2.1 lookup 777",
        "rule add pref 31002 not fwmark 51820 lookup 777",
    ]
    lab.batch(["link set eth0 up", *owned, *others])
    found = read(lab)
    assert [(str(each.destination), each.table) for each in found.routes if each.table == 777] == [("10.9.1.0/24", 777)]
    assert [str(each.selector) for each in found.rules if each.table == 777] == ["10.9.1.1/32"]
    assert found.marks_of_others == {MarkSelector(51820, 0xFFFFFFFF, is_inverted=True)}
    lab.batch([line.replace(" add ", " del ") for line in (*owned, *others)])


def test_every_kind_of_route_and_rule_comes_back_as_it_is(lab: Lab) -> None:
    lines = [
        "route add local 10.9.3.0/28 dev eth0 table 255 proto 209",
        "route add default via 10.0.1.1 dev eth0 table 777 proto 209",
        "-6 route add default via fe80::1 dev eth0 table 777 proto 209",
        "rule add pref 31010 from all lookup main suppress_prefixlength 0 protocol 209",
        "-6 rule add pref 31020 to fd00::/64 lookup 777 protocol 209",
        "rule add pref 31020 from 10.9.0.0/16 lookup 70000 protocol 209",
        "rule add pref 31020 from 10.8.0.0/16 iif lo lookup 70000 protocol 209",
    ]
    lab.batch(["link set eth0 up", *(line for line in lines if not line.startswith("-6"))])
    for line in lines:
        if line.startswith("-6"):
            lab.run(["ip", *line.split()])
    found = read(lab)
    eth0 = next(link.ifindex for link in found.links if link.name == "eth0")
    assert Route(255, eth0, ip_network("10.9.3.0/28"), None) in found.routes
    assert {str(each.gateway) for each in found.routes if each.table == 777} == {"10.0.1.1", "fe80::1"}
    assert Rule(31010, 4, None, 254, suppress=True) in found.rules
    assert {(each.version, str(each.selector), each.to) for each in found.rules if each.table == 777} == {
        (6, "fd00::/64", True)
    }
    assert Rule(31020, 4, ip_network("10.9.0.0/16"), 70000, suppress=False) in found.rules
    assert Rule(31020, 4, ip_network("10.8.0.0/16"), 70000, suppress=False, iif_lo=True) in found.rules
    for line in lines:
        lab.run(["ip", *line.replace(" add ", " del ").split()])


def test_port_with_the_same_mac_is_distinguished(lab: Lab) -> None:
    """As Azure's VF below the synthetic interface; here a bridge takes the MAC of its first port."""
    nic = lab.nic("eth1")
    lab.batch([f"link add up0 address {nic.mac} type bridge", "link set eth1 master up0"])
    actual = read(lab)
    links = {link.name: link for link in actual.links}
    assert (links["eth1"].master, links["up0"].mac) == (links["up0"].ifindex, nic.mac)
    both = replace(CONFIG, allow_kinds=("veth", "bridge"))
    assert match_links(cloud(lab), both, actual.links)[nic.mac].name == "up0"
    assert nic.mac not in match_links(cloud(lab), CONFIG, actual.links)
    lab.batch(["link delete up0"])
    assert match_links(cloud(lab), both, read(lab).links)[nic.mac].name == "eth1"


def test_foreign_local_ranges_are_read(lab: Lab) -> None:
    lines = [
        "route add local 10.64.0.0/24 dev eth0 table local proto 66",
        "route add local 10.65.0.0/24 dev eth0 table local proto 209",
    ]
    lab.batch(lines)
    found = read(lab)
    eth0 = next(link.ifindex for link in found.links if link.name == "eth0")
    assert found.local[ip_network("10.64.0.0/24")] == eth0
    assert ip_network(lab.nics[0].addresses[0]) not in found.local
    assert ip_network("10.65.0.0/24") not in found.local
    assert ip_network("10.0.1.255") not in found.local
    lab.batch([line.replace(" add ", " del ") for line in lines])


def test_links_addresses_and_learned_gateways_are_read(lab: Lab) -> None:
    lab.batch(
        [
            "link add br0 type bridge",
            "address add 172.17.0.1/16 dev br0",
            "address add 172.17.0.2/32 dev br0 noprefixroute",
        ]
    )
    found = read(lab)
    links = {link.name: link for link in found.links}
    assert links["lo"].hardware == ARPHRD_LOOPBACK
    assert (links["br0"].kind, links["br0"].up) == ("bridge", False)
    assert links["eth0"].mac == lab.nic("eth0").mac
    assert found.gateways[links["eth0"].ifindex] == (lab.nics[0].network[1], ip_address("fe80::1"))  # from DHCP and RA
    index = links["br0"].ifindex
    expected = kernel_address(index, "172.17.0.1/16") | kernel_address(index, "172.17.0.2/32", connected=False)
    assert {place: kernel for place, kernel in found.addresses.items() if place[0] == index} == expected
    lab.batch(["link delete br0"])
