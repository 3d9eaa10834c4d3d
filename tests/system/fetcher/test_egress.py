"""The fetcher's route to the metadata server on a host whose routing leads elsewhere; run as the fetcher's user."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE

import pytest

from tests.lab import Lab, Spec
from tests.lab.namespaces import ENVIRONMENT

SERVER = "169.254.169.254"
EGRESS = """
import json, sys; from ipaddress import ip_address; from cloud_network.fetcher.metadata.egress import egress_interfaces
print(json.dumps(egress_interfaces(ip_address(sys.argv[1]), ("veth", "tun", "bridge"))))
"""
ASK = """
from cloud_network.fetcher.metadata.http import Client; from cloud_network.fetcher.metadata.model import MetadataError
client = Client("169.254.169.254"); client.kinds = ("veth",)
try:
    print(client.request("GET", "/latest/meta-data/instance-id").status, client.interface)
    client.close()
    print(client.request("GET", "/latest/meta-data/instance-id").status, client.interface)
except MetadataError as error:
    print(error.kind, error)
"""

KEPT = """
from cloud_network.fetcher.metadata.http import Client
client = Client("169.254.169.254"); client.kinds = ("veth",)
print(client.request("GET", "/latest/meta-data/instance-id").status, flush=True)
input()
print(client.request("GET", "/latest/meta-data/instance-id", seconds=2).status, flush=True)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab in which eth1 is the primary; eth0, the secondary, is up and has no address."""
    with Lab(Spec.aws(interfaces=2, addresses=1)) as made:
        made.batch(["link set eth0 up"])
        yield made


@contextmanager
def ip_commands(lab: Lab, *lines: str) -> Iterator[None]:
    """Run `ip` in the instance; each line is undone at the end of the block."""
    for line in lines:
        lab.run(["ip", *line.split()])
    try:
        yield
    finally:
        for line in reversed(lines):
            if " add " in line:
                undo = line.replace(" add ", " del ").split(" type ")[0] if "link add" in line else line
                lab.run(["ip", *undo.replace(" add ", " del ").split()])


def python(lab: Lab, code: str, *arguments: str) -> str:
    return lab.run([sys.executable, "-c", code, *arguments], user="cloud-network").stdout.strip()


def egress_interfaces(lab: Lab, address: str = SERVER) -> list[str]:
    found: list[str] = json.loads(python(lab, EGRESS, address))
    return found


def test_routing_is_tried_before_other_cloud_links(lab: Lab) -> None:
    assert egress_interfaces(lab) == ["eth1", "eth0"]
    assert python(lab, ASK).split() == ["200", "eth1"] * 2


def test_local_endpoint_is_not_bound_to_a_link(lab: Lab) -> None:
    assert egress_interfaces(lab, "127.0.0.1") == egress_interfaces(lab, "::1") == [""]


def test_without_a_route_cloud_links_are_tried(lab: Lab) -> None:
    assert sorted(egress_interfaces(lab, "fd00:ec2::254")) == ["eth0", "eth1"]


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_tunnel_is_avoided(lab: Lab, kind: str) -> None:
    """A VPN with a default route: the routing would lead the request into it."""
    with ip_commands(lab, f"tuntap add tun0 mode {kind}", "link set tun0 up", f"route add {SERVER}/32 dev tun0"):
        assert sorted(egress_interfaces(lab)) == ["eth0", "eth1"]
        before = packets_sent_to_tunnel(lab)
        assert python(lab, ASK).split() == ["200", "eth1"] * 2
        assert packets_sent_to_tunnel(lab) == before


def test_kept_connection_stays_out_of_a_new_tunnel(lab: Lab) -> None:
    """The VPN comes up between two requests; the second one's header contains a token."""
    lab.run(["ip", "tuntap", "add", "tun0", "mode", "tun"])
    asking = lab.instance.enter(sys.executable, "-c", KEPT, user="cloud-network")
    with subprocess.Popen(asking, env=ENVIRONMENT, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "200\n"
        with ip_commands(lab, "link set tun0 up", f"route add {SERVER}/32 dev tun0"):
            before = packets_sent_to_tunnel(lab), lab.metadata.connections()
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert process.stdout.readline() == "200\n"
            assert (packets_sent_to_tunnel(lab), lab.metadata.connections()) == before
    lab.run(["ip", "tuntap", "del", "tun0", "mode", "tun"])


def packets_sent_to_tunnel(lab: Lab) -> int:
    [link] = json.loads(lab.run(["ip", "-j", "-s", "link", "show", "dev", "tun0"]).stdout)
    return int(link["stats64"]["tx"]["packets"])


def test_dead_default_route_is_bypassed_and_remembered(lab: Lab) -> None:
    with ip_commands(lab, f"route add {SERVER}/32 dev eth0"):
        assert egress_interfaces(lab) == ["eth0", "eth1"]
        lab.metadata.reset()
        assert python(lab, ASK).split() == ["200", "eth1"] * 2
        assert lab.metadata.connections() == 2


def test_a_part_of_a_bridge_and_a_link_that_is_down_are_not_used(lab: Lab) -> None:
    with ip_commands(lab, "link add br0 type bridge", "link set eth0 master br0"):
        assert egress_interfaces(lab) == ["eth1"]
    lab.batch(["link set eth0 nomaster", "link set eth0 down"])
    assert egress_interfaces(lab) == ["eth1"]
    lab.batch(["link set eth0 up"])


def test_no_interface_at_all_is_reported(lab: Lab) -> None:
    lab.batch(["link set eth1 down", "link set eth0 down"])
    assert python(lab, ASK).startswith(
        "unreachable GET http://169.254.169.254/latest/meta-data/instance-id: no route: no Eth"
    )


LINK_LOCAL = """
from cloud_network.fetcher.metadata.http import Client
client = Client("127.0.0.1:9", "[fe80::a9fe:a9fe]"); client.kinds = ("veth",)
print(client.request("GET", "/latest/api/token").status, client.interface, client.endpoint)
"""


def test_link_local_server_is_reached_without_a_zone() -> None:
    """OpenStack and Hetzner have fe80::a9fe:a9fe: binding the socket to an interface replaces the zone."""
    with Lab(Spec.aws(interfaces=2, addresses=1)) as lab:
        bridge = "sn0"  # the cloud's end of the primary's subnet
        lab.cloud.run(["ip", "address", "add", "fe80::a9fe:a9fe/64", "dev", bridge, "nodad"])
        lab.metadata.configure(listen=[f"fe80::a9fe:a9fe%{bridge}"])
        shown = ["ip", "-6", "address", "show", "dev", "eth1", "scope", "link", "-tentative"]
        lab.wait_for(lambda: "fe80::" in lab.run(shown).stdout, 10, "duplicate address detection")
        assert python(lab, LINK_LOCAL).split() == ["405", "eth1", "[fe80::a9fe:a9fe]"]
