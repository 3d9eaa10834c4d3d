"""The lab's network behaves like a cloud's: tested with ip(8) by hand, without cloud-network."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import Interface, Lab, LabError, Spec

OWN_STEP, MAIN_STEP, REST_STEP = 30000, 30001, 30002


def links(lab: Lab) -> list[dict[str, object]]:
    return list(json.loads(lab.run(["ip", "-j", "link"]).stdout))


def table(lab: Lab, name: str) -> int:
    return 9999 + next(int(str(link["ifindex"])) for link in links(lab) if link["ifname"] == name)


def configuration(lab: Lab, siblings: bool = True) -> list[str]:
    """Return the state of DESIGN.md, "Kernel state", as lines for ip."""
    lines = [f"rule add priority {MAIN_STEP} lookup main suppress_prefixlength 0"]
    present = lab.run(["ip", "-br", "address"]).stdout
    for nic in lab.nics:
        number, name = table(lab, nic.name), nic.name
        lines.append(f"link set {name} up")
        for position, address in enumerate(nic.addresses):
            length = nic.network.prefixlen if position == 0 else 32
            if f" {address}/" not in present:
                lines.append(f"address add {address}/{length} dev {name}")
            lines += [
                f"rule add priority {OWN_STEP} from {address} lookup {number} suppress_prefixlength 0",
                f"rule add priority {REST_STEP} from {address} lookup {number}",
            ]
        lines.append(f"route replace {nic.subnet} dev {name} table {number}")
        lines.append(f"route replace default via {nic.gateway} dev {name} table {number}")
        others = {other.subnet for other in lab.nics} - {nic.subnet}
        if siblings:
            lines += [f"route replace {subnet} via {nic.gateway} dev {name} table {number}" for subnet in others]
    return lines


@pytest.fixture(scope="module")
def fresh() -> Iterator[Lab]:
    """A lab with 4 × 15 addresses after boot. Only for tests that change nothing."""
    with Lab(Spec.aws(interfaces=4, addresses=15)) as lab:
        yield lab


def test_kernel_names_are_not_in_metadata_order(fresh: Lab) -> None:
    assert [nic.name for nic in fresh.nics] == ["eth0", "eth2", "eth3", "eth1"]
    macs = {str(link["ifname"]): str(link["address"]) for link in links(fresh)}
    assert all(macs[nic.name] == nic.mac for nic in fresh.nics)
    with Lab(Spec.aws(interfaces=2, addresses=1)) as two:
        assert [nic.name for nic in two.nics] == ["eth1", "eth0"]


def test_only_the_primary_interface_is_configured(fresh: Lab) -> None:
    up = {str(link["ifname"]) for link in links(fresh) if "UP" in str(link["flags"])}
    assert up == {"lo", "eth0"}
    [route] = json.loads(fresh.run(["ip", "-j", "route", "show", "default"]).stdout)
    assert (route["gateway"], route["dev"], route["protocol"]) == ("10.0.1.1", "eth0", "dhcp")


def test_fresh_instance_answers_on_its_first_address_only(fresh: Lab) -> None:
    answered = {pair for pair, answer in fresh.reachability().items() if answer}
    everywhere = {"beyond0", "neighbour0", "neighbour1", "neighbour2", "neighbour3"}
    assert answered == {(source, "10.0.1.10") for source in everywhere}
    assert [address for address, answer in fresh.outbound().items() if answer] == ["10.0.1.10"]
    assert fresh.dropped() == 0


def test_with_the_rules_of_the_design_all_300_pairs_answer() -> None:
    with Lab(Spec.aws(interfaces=4, addresses=15)) as lab:
        lab.batch(configuration(lab))
        answers = lab.reachability()
        assert len(answers) == 300
        assert all(answers.values())
        assert all(lab.outbound().values())
        assert lab.lost() == []


def test_without_routes_to_the_siblings_replies_are_lost() -> None:
    """A neighbour's packet to another subnet's address: main sends the reply through the neighbour's own subnet.

    That affects 180 of 300 pairs. The 60 from beyond answer. Of the 60 within one subnet some fail as well, by chance:
    the lost reply's ARP request has a foreign sender and is dropped, and all packets to the same neighbour fail with
    it.
    """
    with Lab(Spec.aws(interfaces=4, addresses=15)) as lab:
        lab.batch(configuration(lab, siblings=False))
        answers = lab.reachability()
        home = {address: f"neighbour{nic.device}" for nic in lab.nics for address in nic.addresses}
        siblings = {(source, address) for source, address in answers if source not in ("beyond0", home[address])}
        assert len(siblings) == 180
        assert not any(answers[pair] for pair in siblings)
        assert all(answers["beyond0", address] for address in lab.addresses)
        assert lab.dropped() > 0
        assert all(lab.nic(entry.source).mac != entry.mac for entry in lab.lost())


def test_source_of_another_interface_is_dropped_and_counted() -> None:
    with Lab(Spec.aws(interfaces=2, addresses=1)) as lab:
        first, second = lab.nics
        lab.batch([f"address add {second.addresses[0]}/32 dev lo"])
        assert lab.outbound() == {first.addresses[0]: True, second.addresses[0]: False}
        assert {(entry.mac, entry.source) for entry in lab.lost()} == {(first.mac, second.addresses[0])}
        assert lab.dropped() > 0
        lab.fabric.clear_lost()
        assert lab.dropped() == 0


def test_arp_with_a_foreign_sender_is_dropped_and_counted() -> None:
    """The gateway is not known at first, so the first packet is an ARP request with the packet's source in it."""
    send = (
        "import socket as s; u = s.socket(type=s.SOCK_DGRAM); u.bind(('10.0.1.99', 0)); u.sendto(b'', ('10.0.1.1', 9))"
    )
    with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
        lab.batch(["address add 10.0.1.99/32 dev eth0"])
        lab.run(["/usr/bin/python3", "-c", send])
        lab.wait_for(lab.lost, message="a lost packet")
        assert {(entry.source, entry.destination) for entry in lab.lost()} == {("10.0.1.99", "10.0.1.1")}


def test_a_foreign_mac_passes_nothing() -> None:
    with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
        assert lab.outbound() == {"10.0.1.10": True}
        lab.batch(["link set eth0 address 02:11:11:11:11:11"])
        assert lab.outbound(timeout=0.5) == {"10.0.1.10": False}
        assert "10.0.1.10" in {entry.source for entry in lab.lost()}


def test_two_interfaces_in_one_subnet() -> None:
    """Both connected routes are in main, and only one can apply there; each table has its own."""
    spec = Spec((Interface("10.0.1.0/24", 3), Interface("10.0.1.0/24", 3), Interface("10.0.2.0/24", 3)))
    with Lab(spec) as lab:
        assert [nic.addresses[0] for nic in lab.nics] == ["10.0.1.10", "10.0.1.13", "10.0.2.10"]
        assert len(lab.neighbours) == 2
        lab.batch(configuration(lab))
        answers = lab.reachability()
        assert len(answers) == 27
        assert all(answers.values()), lab.lost()
        assert lab.lost() == []


def test_packets_are_delivered_only_to_the_owner() -> None:
    """Another host has the wrong MAC for an address: the kernel would answer through its other interface."""
    with Lab(Spec((Interface("10.0.1.0/24", 1), Interface("10.0.1.0/24", 1)))) as lab:
        lab.batch(configuration(lab))
        first, second = lab.nics
        wrong = f"neigh replace {first.addresses[0]} lladdr {second.mac} dev eth0 nud permanent"
        lab.neighbours[0].batch([wrong])
        answers = lab.reachability(timeout=0.5)
        assert [pair for pair, answer in answers.items() if not answer] == [("neighbour0", first.addresses[0])]


def test_dhcp_may_serve_all_interfaces() -> None:
    with Lab(Spec(Spec.aws(interfaces=3, addresses=2).interfaces, dhcp_all=True)) as lab:
        routes = json.loads(lab.run(["ip", "-j", "route", "show", "default"]).stdout)
        assert [route["metric"] for route in routes] == [100, 101, 102]
        answers = lab.reachability([nic.addresses[0] for nic in lab.nics])
        assert answers["beyond0", "10.0.1.10"]
        assert not answers["beyond0", "10.0.2.10"]  # the reply uses the default route, and is dropped
        assert lab.dropped() > 0


def test_an_address_is_added_and_removed_while_running() -> None:
    with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
        mac = lab.nics[0].mac
        leaf = f"http://169.254.169.254/latest/meta-data/network/interfaces/macs/{mac}/local-ipv4s"
        lab.batch(["address add 10.0.1.77/32 dev eth0"])
        assert not any(lab.reachability(["10.0.1.77"], timeout=0.5).values())
        lab.add_address(mac, "10.0.1.77")
        assert all(lab.reachability(["10.0.1.77"]).values())
        assert lab.run(["curl", "-sf", leaf]).stdout.split() == ["10.0.1.10", "10.0.1.77"]
        lab.remove_address(mac, "10.0.1.77")
        assert not any(lab.reachability(["10.0.1.77"], timeout=0.5).values())
        assert lab.run(["curl", "-sf", leaf]).stdout.split() == ["10.0.1.10"]


@pytest.mark.parametrize("first", ["metadata", "interface"])
@pytest.mark.parametrize("subnet", ["10.0.1.0/24", "10.0.9.0/24"])
def test_an_interface_is_attached_and_detached_while_running(first: str, subnet: str) -> None:
    with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
        seen = []

        def record_state() -> None:
            names = {str(link["ifname"]) for link in links(lab)}
            macs = lab.run(["curl", "-sf", "http://169.254.169.254/latest/meta-data/network/interfaces/macs/"]).stdout
            seen.append((len(macs.split()), len(names - {"lo"})))

        order = "metadata" if first == "metadata" else "interface"
        nic = lab.attach_interface(Interface(subnet, 2), order, record_state)  # type: ignore[arg-type]
        record_state()
        assert seen == [(2, 1) if first == "metadata" else (1, 2), (2, 2)]
        lab.batch(configuration(lab))
        assert all(lab.reachability().values())
        lab.detach_interface(nic.mac, order, record_state)  # type: ignore[arg-type]
        record_state()
        assert seen[2:] == [(1, 2) if first == "metadata" else (2, 1), (1, 1)]
        assert lab.addresses == ["10.0.1.10"]


def test_held_connection_reports_a_break() -> None:
    with Lab(Spec.aws(interfaces=1, addresses=2)) as lab:
        lab.batch(["address add 10.0.1.11/32 dev eth0"])
        held = lab.hold_connection("10.0.1.11", ("neighbour", 0))
        assert held.alive()
        assert held.alive()
        lab.batch(["address delete 10.0.1.11/32 dev eth0"])
        assert not held.alive(timeout=0.5)
        with pytest.raises(LabError, match=r"10\.0\.1\.11 does not answer"):
            lab.hold_connection("10.0.1.11", timeout=0.5)


def test_labs_run_side_by_side() -> None:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as one, Lab(Spec.aws(interfaces=2, addresses=2)) as other:
        one.batch(configuration(one))
        assert all(one.reachability().values())
        assert sum(other.reachability(timeout=0.5).values()) == 3
