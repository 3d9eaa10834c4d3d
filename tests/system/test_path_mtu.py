"""IPv6 path MTUs: the kernel keeps each as an exception of a route, which `suppress_prefixlength` does not suppress."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.system.service import ip, running_lab

CLIENT, STRANGER = "2600::5", "2a00::1"
TOO_BIG = """
import socket, struct, sys
source, destination, host = sys.argv[1:]
def packed(address):
    return socket.inet_pton(socket.AF_INET6, address)
echo = struct.pack(">BBHHH", 128, 0, 0, 1, 1) + bytes(400)
packet = struct.pack(">IHBB", 6 << 28, 1000, socket.IPPROTO_ICMPV6, 64) + packed(source) + packed(destination) + echo
sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
to = (host, 0, 0, socket.if_nametoindex("eth0"))
sender.sendto(struct.pack(">BBHI", 2, 0, 0, 1300) + packet, to)
sender.sendto(echo, to)
sender.settimeout(5)
while sender.recv(2000)[0] != 129:
    pass
"""
"""Sends an ICMPv6 packet too big that quotes a packet from `source` to `destination`, and waits for an echo reply."""
DROP = """
table inet invalid {
  chain input {
    type filter hook input priority filter;
    icmpv6 type packet-too-big ct state invalid drop
  }
}
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.cloud("aws", interfaces=2, addresses=2, ipv6=1), "", "netagent", "fetcher") as lab:
        yield lab


def receive_too_big(lab: Lab, quoted_source: str) -> None:
    """Let a neighbour on the primary interface send it."""
    found = ip(lab, "-6", "address", "show", "dev", lab.nics[0].name, "scope", "link")
    host = next(each["local"] for link in found for each in link.get("addr_info", ()) if "local" in each)
    lab.neighbours[0].run(["/usr/bin/python3", "-c", TOO_BIG, quoted_source, CLIENT, host])


def way_to_client(lab: Lab, source: str) -> str:
    return str(ip(lab, "-6", "route", "get", CLIENT, "from", source)[0]["dev"])


def test_a_path_mtu_of_one_interface_changes_no_other_route(lab: Lab) -> None:
    primary, secondary = ((nic.name, nic.ipv6[0]) for nic in lab.nics)
    receive_too_big(lab, primary[1])
    assert "1300" in lab.run(["ip", "-6", "route", "get", CLIENT, "from", primary[1]]).stdout
    assert (way_to_client(lab, primary[1]), way_to_client(lab, secondary[1])) == (primary[0], secondary[0])


@pytest.mark.parametrize("remedy", ["none", "firewall", "MTU"])
def test_known_path_mtu_of_main_counts_for_every_interface(lab: Lab, remedy: str) -> None:
    """A forged message quotes a packet from an address for which there is no rule.

    A connection of this host has the same effect if its source is not bound: the kernel looks its route up without one.
    """
    primary, secondary = ((nic.name, nic.ipv6[0]) for nic in lab.nics)
    if remedy == "firewall":
        lab.run(["nft", "-f", "-"], stdin=DROP)
    if remedy == "MTU":
        lab.run(["sysctl", "-qw", f"net.ipv6.conf.{primary[0]}.mtu=1280"])
    receive_too_big(lab, STRANGER)
    assert way_to_client(lab, secondary[1]) == (primary if remedy == "none" else secondary)[0]


def test_known_datagrams_without_a_source_learn_no_path_mtu(lab: Lab) -> None:
    """The kernel routes them by main, and looks up the route for their path MTU with the source that it has chosen."""
    receive_too_big(lab, lab.nics[0].ipv6[0])
    without, bound = (["ip", "-6", "route", "get", CLIENT, *more] for more in ((), ("from", lab.nics[0].ipv6[0])))
    assert ["mtu 1300" in lab.run(each).stdout for each in (without, bound)] == [False, True]
