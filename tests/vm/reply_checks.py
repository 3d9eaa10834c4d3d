"""ForwardedReplies="mark" with the real units, on a kernel of the guest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.reach import PORT as LISTENER
from tests.lab.spec import beyond_address
from tests.system.forwarding import BRIDGE, CONTAINER, HOST, PORT, PROGRAM, RULES, answered

from .checks import NETFILTER, ROUTE, all_reachable, netlink_of_netagent, network_state
from .guest import Guest
from .image import TOOLS

MARK = '[Network]\nForwardedReplies = "mark"\n'
PUBLISHED = f"{TOOLS}/published.py"
START = f"""
ip link add {BRIDGE} type bridge
ip address add {HOST[0]}/16 dev {BRIDGE}
ip address add {HOST[1]}/64 dev {BRIDGE} nodad
ip netns add container
ip link add veth0 type veth peer name eth0 netns container
ip link set veth0 master {BRIDGE} up
ip link set {BRIDGE} up
ip -n container link set lo up
ip -n container address add {CONTAINER[0]}/16 dev eth0
ip -n container address add {CONTAINER[1]}/64 dev eth0 nodad
ip -n container link set eth0 up
ip -n container route add default via {HOST[0]}
ip -n container route add ::/0 via {HOST[1]}
systemd-run --unit=container ip netns exec container python3 -IS {PUBLISHED} serve {PORT}
"""
STOP = f"""
systemctl stop container
ip netns delete container
ip link delete {BRIDGE}
nft flush ruleset
"""
OUT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 20).makefile().readline())"
SECONDS = 10.0
"""Time limit of an answer: an emulated processor is slow."""


class ReplyChecks:
    def test_published_ports_answer_on_every_address_with_marks(self, guest: Guest) -> None:
        guest.wait_for(lambda: all_reachable(guest), message="all addresses")
        before = mark_rules(guest)
        with container(guest):
            # Without marks, over UDP: TCP would retransmit its unmarked replies during the test with marks.
            assert not all(answered(guest.lab, "udp", guest.lab.addresses, SECONDS).values())
            with guest.configured(MARK):
                wait_for_marks(guest)
                guest.lab.fabric.clear_lost()
                all_answer(guest)
                assert guest.lab.dropped() == 0, guest.lab.lost()
                assert all_reachable(guest)
                guest.lab.reach.listen(guest.lab.beyond[0])
                out = ["ip", "netns", "exec", "container", "python3", "-ISc", OUT, beyond_address(0), str(LISTENER)]
                assert beyond_address(0) in guest.run(*out), "a connection of the container"
                assert netlink_of_netagent(guest) == {ROUTE, NETFILTER}
                guest.run("nft", "flush", "ruleset")
                wait_for_marks(guest)
                guest.run("nft", "-f", "-", stdin=RULES)
                all_answer(guest)
            guest.wait_for(lambda: table(guest) == "", message="the table to be removed")
            guest.wait_for(lambda: mark_rules(guest) == before == [], message="the rules to be removed")
            assert netlink_of_netagent(guest) == {ROUTE}


@contextmanager
def container(guest: Guest) -> Iterator[None]:
    """A container as Docker creates it: a namespace behind a bridge, and a port published by DNAT."""
    links = [nic.name for nic in guest.lab.nics]
    guest.run("tee", PUBLISHED, stdin=PROGRAM.read_text())
    try:
        # With forwarding, the kernel accepts advertisements only with accept_ra=2.
        guest.run("sysctl", "-qw", *(f"net.ipv6.conf.{link}.accept_ra=2" for link in links))
        guest.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        guest.run("sh", "-ec", START)
        guest.run("nft", "-f", "-", stdin=RULES)
        pairs = json.dumps([["tcp", address] for address in CONTAINER])
        ask = ("python3", "-IS", PUBLISHED, "ask", "5", str(PORT))
        guest.wait_for(lambda: "false" not in guest.run(*ask, stdin=pairs), message="the container to answer")
        yield
    finally:
        guest.run("sh", "-c", STOP, check=False)
        guest.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")


def all_answer(guest: Guest) -> None:
    """Check that every client reaches the published port on every address."""
    for protocol in ("tcp", "udp"):
        for addresses in (guest.lab.addresses, guest.lab.addresses6):
            found = answered(guest.lab, protocol, addresses, SECONDS)
            assert all(found.values()), (protocol, [pair for pair, each in found.items() if not each])


def table(guest: Guest) -> str:
    return guest.run("nft", "list", "table", "inet", "cloud_network", check=False).partition("Error")[0]


def mark_rules(guest: Guest) -> list[str]:
    return [line for line in network_state(guest).splitlines() if "fwmark" in line]


def wait_for_marks(guest: Guest) -> None:
    """Wait until the table and its rules exist and the state is ok."""
    guest.wait_for(lambda: "meta mark set" in table(guest), message="the table")
    links = len(guest.lab.nics)
    guest.wait_for(lambda: len(mark_rules(guest)) == 4 * links, message="the rules for marks")
    guest.wait_for(lambda: "ok:" in guest.run("cnctl", "status", check=False), message="a healthy status")
