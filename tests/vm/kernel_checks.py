"""Checks for guests with their own kernel, bus and firmware. Each check leaves the guest unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any

from tests.lab.nic import Interface, Nic

from .checks import AUDIT, all_reachable, misrouted, network_state, normalized
from .guest import Guest
from .virtual_machine import VirtualMachine

VLAN, TRUNK, CARD_MAC = 7, "trunk", "02:00:00:00:c0:01"
VLAN_LINK = f"{TRUNK}.{VLAN}"
CARD = f"""
ip link set {{link}} down
ip netns add card
ip link set {{link}} netns card
ip link add {TRUNK} type veth peer name host netns card
ip -n card link add uplink type bridge
ip -n card link add link host name host.{VLAN} type vlan id {VLAN}
ip -n card link set host up
for each in {{link}} host.{VLAN}; do ip -n card link set $each master uplink up; done
ip -n card link set uplink up
ip link set {TRUNK} up
"""
"""The network card of a bare metal host: packets of the cloud to {link} arrive on one link with a VLAN tag."""

ASK = """
import sys
sys.path.insert(0, "/usr/lib/cloud-network")
from ipaddress import ip_interface
from cloud_network.fetcher.apply import Netagent
from cloud_network.netagent.operations import AddressAdd
with Netagent() as netagent:
    answer = netagent.apply((AddressAdd(int(sys.argv[1]), ip_interface(sys.argv[2] + "/24"), True),), 5)
print(answer.verdict, answer.reason, answer.refused)
"""

BOND, CHILD = "bond9", "child0"
VRF, VRF_TABLE = "blue", 77
WITH_VRF = f"""
ip link add {VRF} type vrf table {VRF_TABLE}
ip -4 route add unreachable default metric 4278198272 table {VRF_TABLE}
ip -6 route add unreachable default metric 4278198272 table {VRF_TABLE}
ip link add pod type dummy
ip link set pod master {VRF}
ip address add 192.168.77.1/24 dev pod
ip link set {VRF} up
ip link set pod up
ip route add 203.0.113.0/24 via 192.168.77.9 table {VRF_TABLE}
"""


def complete_state(guest: Guest) -> list[str]:
    """Return all addresses, routes and rules when every address is reachable."""
    guest.wait_for(lambda: all_reachable(guest), message="all addresses")
    return normalized(network_state(guest))


def wait_for_state(guest: Guest, expected: list[str]) -> None:
    """Wait until the guest has exactly these addresses, routes and rules."""
    with suppress(AssertionError):
        guest.wait_for(lambda: normalized(network_state(guest)) == expected)
    assert normalized(network_state(guest)) == expected


def check_new_link(guest: Guest, name: str, nic: Nic) -> dict[str, Any]:
    """Wait until netagent has configured the link, then check its packets. Returns what the API says of the link.

    A connection between the addition of an address and that of its rules would be answered by main's routes.
    """

    def configured() -> dict[str, Any]:
        code, body = guest.get(f"/api/v1/links/{name}")
        link: dict[str, Any] = json.loads(body) if code == 200 else {}
        there = {each["address"] for each in link.get("addresses", ())}
        return link if link.get("state") == "ok" and there >= {*nic.all_addresses} else {}

    link = guest.wait_for(configured, message=f"the configuration of {name}")
    assert misrouted(guest) == []
    return link


class KernelChecks:
    """Base class of the test classes of virtual machines."""

    def test_the_cloud_is_known_by_its_firmware(self, guest: Guest) -> None:
        assert guest.run("cat", "/sys/class/dmi/id/sys_vendor").strip() == "Amazon EC2"
        assert "rovider" not in guest.run("grep", "-v", "^#", "/etc/cloud-network/cloud-network.toml", check=False)
        assert "cloud: aws" in guest.journal()

    def test_an_interface_comes_and_goes_while_it_runs(self, guest: VirtualMachine) -> None:
        before = complete_state(guest)
        with plugged(guest) as nic:
            check_new_link(guest, link_of(guest, nic.mac), nic)
            assert guest.run("cnctl", "status", "network").count(nic.addresses[-1]) == 1
        wait_for_state(guest, before)
        assert all_reachable(guest)

    def test_bare_metal_vlan_is_configured_if_its_kind_is_allowed(self, guest: VirtualMachine) -> None:
        """The metadata names the VLAN by its MAC, like any interface; the operator's image creates the link."""
        before = complete_state(guest)
        with plugged(guest, card_mac=CARD_MAC) as nic:
            guest.run("sh", "-ec", CARD.format(link=link_of(guest, CARD_MAC)))
            try:
                made = f"ip link add link {TRUNK} name {VLAN_LINK} address {nic.mac} type vlan id {VLAN}"
                guest.run(*made.split())
                guest.run("cnctl", "refresh", check=False)  # no VLAN is a reason to read the metadata again
                refused(guest, nic)
                with guest.configured('[Netagent]\nAllowKinds = "vlan"\n'):
                    link = check_new_link(guest, VLAN_LINK, nic)
                    assert {each["address"] for each in link["addresses"]} == {*nic.all_addresses}
                    guest.run("ip", "link", "delete", VLAN_LINK)
                    guest.wait_for(
                        lambda: f"lookup {link['table']}" not in network_state(guest),
                        message="the removal of its rules",
                    )
            finally:
                guest.run("ip", "netns", "delete", "card")
        wait_for_state(guest, before)

    def test_a_bond_is_configured_if_its_kind_is_allowed(self, guest: VirtualMachine) -> None:
        """With fail_over_mac=active the bond has the MAC of its active port, which is not configured itself."""
        guest.run("modprobe", "bonding", "max_bonds=0")  # otherwise the module makes a bond0
        before = complete_state(guest)
        with plugged(guest) as nic:
            port = link_of(guest, nic.mac)
            guest.run(*f"ip link add {BOND} type bond mode active-backup fail_over_mac active".split())
            try:
                guest.run(
                    "sh", "-ec", f"ip link set {port} down; ip link set {port} master {BOND}; ip link set {BOND} up"
                )
                key = 'AllowKinds="bond"'
                guest.wait_for(lambda: key in unwrapped(guest.run("cnctl", "status", check=False)), message="the key")
                with guest.configured('[Netagent]\nAllowKinds = "bond"\n'):
                    link = check_new_link(guest, BOND, nic)
                    assert {each["address"] for each in link["addresses"]} == {*nic.all_addresses}
                    assert guest.run("ip", "-4", "address", "show", "dev", port) == ""
            finally:
                guest.run("ip", "link", "delete", BOND)
            guest.wait_for(lambda: all_reachable(guest), message="the addresses, on the link itself")
        wait_for_state(guest, before)

    def test_an_ipvlan_child_with_the_same_mac_is_left_alone(self, guest: Guest) -> None:
        nic = guest.lab.nics[1]
        guest.wait_for(lambda: all_reachable(guest), message="all addresses")
        guest.run(*f"ip link add link {nic.name} name {CHILD} type ipvlan mode l2".split())
        try:
            guest.run("ip", "link", "set", CHILD, "up")
            guest.run("cnctl", "refresh")
            assert all_reachable(guest)
            assert nic.mac in guest.run("ip", "link", "show", "dev", CHILD)
            assert guest.run("ip", "-4", "address", "show", "dev", CHILD) == ""
            assert guest.run("cnctl", "status").startswith("ok: ")
        finally:
            guest.run("ip", "link", "delete", CHILD)
        guest.wait_for(lambda: all_reachable(guest), message="all addresses")

    def test_a_vrf_is_left_to_its_operator(self, guest: Guest) -> None:
        guest.wait_for(lambda: all_reachable(guest), message="all addresses")
        guest.lab.fabric.clear_lost()  # of addresses that an earlier test removed and added
        with vrf(guest):
            foreign = of_vrf(guest)
            assert "from all lookup [l3mdev-table]" in foreign
            guest.run("ip", "rule", "delete", "priority", "31010")
            guest.wait_for(lambda: "31010:" in guest.run("ip", "rule"), message="the repair of the owned rule")
            guest.run("cnctl", "refresh")
            assert all_reachable(guest)
            assert misrouted(guest) == []
            assert of_vrf(guest) == foreign
            assert "dev pod" in guest.run("ip", "route", "get", "203.0.113.9", "vrf", VRF)

    def test_an_interface_in_a_vrf_answers_by_the_vrf(self, guest: Guest) -> None:
        """As a VRF port, the link loses its IPv6 addresses and routes; advertised routes are in the VRF's table."""
        nic = guest.lab.nics[1]
        with vrf(guest), guest.configured(f'[Netagent]\nAllowAddresses = "{nic.subnet6}"\n'):
            rule = guest.run("ip", "rule", "show", "priority", "1000")
            guest.run("sysctl", "-qw", "net.ipv4.tcp_l3mdev_accept=1")
            try:
                guest.run("ip", "link", "set", nic.name, "master", VRF)
                guest.run(*f"ip route replace default via {nic.gateway} dev {nic.name} table {VRF_TABLE}".split())
                guest.wait_for(lambda: all_reachable(guest), message="all addresses, through the VRF")
                assert misrouted(guest) == []
                guest.wait_for(lambda: "ok:" in guest.run("cnctl", "status", check=False), message="cnctl status: ok")
                table = guest.run("ip", "route", "show", "table", str(VRF_TABLE))
                assert f"default via {nic.gateway} dev {nic.name}" in table
                assert "203.0.113.0/24 via 192.168.77.9 dev pod" in table
                assert "proto 209" not in table
                assert guest.run("ip", "rule", "show", "priority", "1000") == rule
            finally:
                guest.run("ip", "link", "set", nic.name, "nomaster")
                guest.run("sysctl", "-qw", "net.ipv4.tcp_l3mdev_accept=0")
            guest.wait_for(lambda: all_reachable(guest), message="all addresses")

    def test_delay_and_loss_remove_nothing(self, guest: Guest) -> None:
        """A fifth of the host's packets is lost, including ARP, neighbour discovery and metadata requests."""
        nic, log = guest.lab.nics[1], guest.run("cat", AUDIT)
        gone, new = nic.addresses[-1], str(ip_address(nic.addresses[-1]) + 50)
        held = [guest.lab.hold_connection(each.addresses[1], timeout=10) for each in guest.lab.nics]
        with netem(guest, "delay 200ms 50ms loss 20%"):
            guest.lab.add_address(nic.mac, new)
            guest.lab.remove_address(nic.mac, gone)
            guest.run("cnctl", "refresh", check=False, timeout=300)
            guest.wait_for(lambda: is_applied(guest, new, gone), 240, "the change")
            assert all(each.alive(60) for each in held)
        made = changes(guest, log)
        assert made == ({new}, {gone}), made
        guest.lab.remove_address(nic.mac, new)
        guest.lab.add_address(nic.mac, gone)
        guest.run("cnctl", "refresh")
        guest.wait_for(lambda: all_reachable(guest), message="the original state")

    def test_a_jump_of_the_wall_clock_removes_nothing(self, guest: Guest) -> None:
        """The clock jumps by more than a year in both directions; the timer, additions and repairs still work."""
        nic, log, before = guest.lab.nics[1], guest.run("cat", AUDIT), normalized(network_state(guest))
        new = str(ip_address(nic.addresses[-1]) + 60)
        with guest.configured('[System]\nRefreshTimer = "1s"\n'):
            for step in ("+400 days", "-800 days", "+400 days"):
                guest.run("date", "-s", step)
                year = guest.run("date", "-u", "+%Y").strip()
                guest.wait_for(partial(was_read_in, guest, year), message="the next read by the timer")
                assert guest.run("cnctl", "status").startswith("ok:")
            assert changes(guest, log) == (set(), set())
            assert normalized(network_state(guest)) == before
            guest.run("date", "-s", "-400 days")
            guest.lab.add_address(nic.mac, new)
            guest.run("ip", "address", "delete", f"{nic.addresses[1]}/32", "dev", nic.name)
            guest.wait_for(lambda: all_reachable(guest), message="the new address, and the repair of another")
            assert changes(guest, log) == ({new, nic.addresses[1]}, set())
            guest.run("date", "-s", "+400 days")
        guest.lab.remove_address(nic.mac, new)
        guest.run("cnctl", "refresh")
        # The repaired address is the last one of its link now.
        in_order = [sorted(line.split()) for line in before]
        guest.wait_for(
            lambda: [sorted(line.split()) for line in normalized(network_state(guest))] == in_order,
            message="the original state",
        )

    def test_unreachable_metadata_server_removes_nothing(self, guest: Guest) -> None:
        log, before = guest.run("cat", AUDIT), normalized(network_state(guest))
        with netem(guest, "loss 100%"):
            guest.run("cnctl", "refresh", check=False, timeout=120)
            assert "nothing is removed" in unwrapped(guest.run("cnctl", "status", check=False))
            assert normalized(network_state(guest)) == before
        guest.wait_for(lambda: "ok:" in guest.run("cnctl", "status", check=False), message="cnctl status: ok")
        made = changes(guest, log)
        assert made == (set(), set()), made
        assert normalized(network_state(guest)) == before


def refused(guest: Guest, nic: Nic) -> None:
    """Check that the fetcher and netagent refuse the VLAN, and that both name the key that would allow it."""
    key = f'{VLAN_LINK} has that MAC and is of kind vlan, which needs [Netagent] AllowKinds="vlan"'
    guest.wait_for(lambda: key in guest.journal(), message="the key in the log")
    assert key in unwrapped(guest.run("cnctl", "status", check=False))
    assert "see the notices of cnctl status" in unwrapped(guest.run("cnctl", "doctor", nic.addresses[0], check=False))
    index = guest.run("cat", f"/sys/class/net/{VLAN_LINK}/ifindex").strip()
    output = guest.run("python3", "-IS", "-c", ASK, index, nic.addresses[0])
    assert output.startswith("refused"), output
    assert "kind vlan" in output
    assert "AllowKinds" in output
    assert guest.run("ip", "-o", "address", "show", "dev", VLAN_LINK, "scope", "global") == ""


def unwrapped(text: str) -> str:
    """Return text that was wrapped for a terminal on one line."""
    return " ".join(text.split())


@contextmanager
def plugged(guest: VirtualMachine, *, mac: str | None = None, card_mac: str | None = None) -> Iterator[Nic]:
    """Hot-plug another interface of the cloud. `card_mac` is the card's MAC if it differs from the metadata's."""
    subnet = f"10.0.{len(guest.lab.fabric.subnets) + 1}.0/24"
    nic = guest.lab.attach_interface(Interface(subnet, addresses=2, ipv6=1, mac=mac))
    guest.plug(replace(nic, mac=card_mac or nic.mac))
    try:
        yield nic
    finally:
        guest.unplug(nic)
        guest.lab.detach_interface(nic.mac)


def link_of(guest: Guest, mac: str) -> str:
    """Wait for a new interface, and return its name in the guest."""

    def found() -> str:
        # A link that comes during the dump makes `ip` print a warning.
        links = json.loads(guest.run("sh", "-c", "ip -json link 2>/dev/null"))
        return next((str(link["ifname"]) for link in links if link["address"] == mac), "")

    return guest.wait_for(found, message=f"a link with {mac}")


@contextmanager
def vrf(guest: Guest) -> Iterator[None]:
    """An operator's VRF, with a link and routes."""
    guest.run("sh", "-ec", WITH_VRF)
    try:
        yield
    finally:
        guest.run(
            "sh",
            "-c",
            f"ip link delete {VRF}; ip link delete pod; for f in -4 -6; do ip $f route flush table {VRF_TABLE}; done",
            check=False,
        )


def of_vrf(guest: Guest) -> str:
    commands = [f"ip {six} rule show priority 1000; ip {six} route show table {VRF_TABLE}" for six in ("-4", "-6")]
    return guest.run("sh", "-c", "; ".join([*commands, "ip -details link show type vrf; ip -br address show dev pod"]))


@contextmanager
def netem(guest: Guest, what: str) -> Iterator[None]:
    """Add the impairment to all links: with one link impaired, the metadata would be read through another."""
    links = [nic.name for nic in guest.lab.nics]
    guest.run("modprobe", "sch_netem")
    try:
        guest.run("sh", "-ec", "".join(f"tc qdisc replace dev {link} root netem {what}\n" for link in links))
        yield
    finally:
        guest.run("sh", "-c", "".join(f"tc qdisc delete dev {link} root\n" for link in links), check=False)


def is_applied(guest: Guest, there: str, gone: str) -> bool:
    addresses = guest.run("ip", "-br", "address")
    return (
        f"{there}/" in addresses and f"{gone}/" not in addresses and "ok:" in guest.run("cnctl", "status", check=False)
    )


def was_read_in(guest: Guest, year: str) -> bool:
    """Return True if the metadata was last read in this year."""
    return year_of_last_read(guest) == year


def year_of_last_read(guest: Guest) -> str:
    """Return the year of the last read of the metadata, by the guest's wall clock."""
    attempted: str = json.loads(guest.run("cat", "/run/cloud-network/status.json"))["attempted_at"]
    return attempted[:4]


def changes(guest: Guest, log: str) -> tuple[set[str], set[str]]:
    """Return the added and the removed objects since the audit log had the content `log`."""
    lines: list[dict[str, Any]] = list(map(json.loads, guest.run("cat", AUDIT).removeprefix(log).splitlines()))
    ops = [op for line in lines if line["verdict"] == "applied" for op in line.get("ops", ())]
    sides: tuple[set[str], set[str]] = (set(), set())
    for op in ops:
        sides[op["op"].endswith("_remove")].add(op.get("address", op["op"]))
    return sides
