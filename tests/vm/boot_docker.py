"""Debian's Docker with cloud-network in a virtual machine: tests of docs/coexistence.md with the real program.

`make boot` runs it: it takes a minute to download a Debian with Docker, and another to start it on an emulated
processor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Where
from tests.lab.reach import PORT
from tests.lab.spec import beyond_address
from tests.system.forwarding import PROGRAM
from tests.system.others.docker import greeting

from .checks import all_reachable, network_state
from .conftest import require
from .guest import Guest
from .image import PACKAGES, TOOLS, debian
from .reply_checks import MARK, OUT, all_answer, wait_for_marks
from .virtual_machine import PROGRAMS, booted

DOCKER = (*PACKAGES, "apparmor", "busybox-static", "docker.io", "nftables")
PUBLISHED = 8080
IMAGE = "tar -C / -c bin/busybox | docker import - busybox"
"""An image of one static program: no registry is needed."""
SAYS = "/bin/busybox ip -4 -oneline address show dev eth0"
START = f"docker run --detach --name web --publish {PUBLISHED}:{PORT} busybox /bin/busybox nc -ll -p {PORT} -e {SAYS}"

IPV6 = {"ipv6": True, "fixed-cidr-v6": "fd17::/64", "experimental": True, "ip6tables": True}
WITH_IPV6 = f"""
for link in /proc/sys/net/ipv6/conf/eth*; do echo 2 >$link/accept_ra; done  # Docker makes this host a router
docker rm --force web
systemctl restart docker
tar -C / -c bin lib lib64 | docker import - links
docker run --detach --name echo --publish {PUBLISHED}:7000/tcp --publish {PUBLISHED}:7000/udp \\
  --volume /usr:/usr:ro links /usr/bin/python3 -IS {TOOLS}/published.py serve 7000
"""
"""A container that runs the host's Python: its image has only the links to /usr."""

ASK_SERVER = """
import socket, sys
host, port, source = sys.argv[1:]
with socket.create_connection((host, int(port)), 10, (source, 0)) as talk:
    print(talk.makefile().readline())
"""
"""Connects from an address of this host, and prints the greeting."""


@pytest.fixture(scope="module")
def guest(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    require(PROGRAMS)
    work = tmp_path_factory.mktemp("docker")
    with booted(debian("bookworm", DOCKER, "bookworm-docker"), package, work) as guest:
        guest.wait_for(lambda: all_reachable(guest), 120, "all addresses")
        guest.wait_for(lambda: guest.show("docker.service", "ActiveState") == "active", 240, "Docker")
        guest.run("sh", "-ec", f"{IMAGE}\n{START}", timeout=240)
        yield guest


@pytest.fixture(scope="module")
def container(guest: Guest) -> str:
    """Return the container's address on docker0."""
    return guest.run("docker", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", "web").strip()


def start(guest: Guest, name: str) -> None:
    """Start a container after a restart of Docker, which refuses the start until it has removed the container's old
    task.
    """
    guest.wait_for(lambda: guest.run("docker", "start", name, check=False, timeout=240).strip() == name, message=name)


def foreign(guest: Guest) -> str:
    """Return Docker's bridge, route and NAT rules."""
    commands = "ip -4 address show dev docker0; ip route show dev docker0; iptables-save | grep ^-A"
    return guest.run("sh", "-c", commands)


def test_port_published_on_the_primary_answers_every_client(guest: Guest, container: str) -> None:
    namespaces: list[Where] = ["beyond", ("neighbour", 0)]
    for address in guest.lab.nics[0].addresses:
        for where in namespaces:
            assert f"inet {container}/" in greeting(guest.lab, where, address, PUBLISHED), (where, address)


def test_known_secondary_port_answers_only_where_main_leads_back(guest: Guest, container: str) -> None:
    """Without ForwardedReplies="mark", the reply is routed before NAT restores the published address."""
    primary, other = (nic.addresses[1] for nic in guest.lab.nics[:2])
    assert f"inet {container}/" in greeting(guest.lab, ("neighbour", 1), other, PUBLISHED)
    guest.lab.fabric.clear_lost()
    unanswered: list[tuple[Where, str]] = [("beyond", other), (("neighbour", 2), other), (("neighbour", 1), primary)]
    for where, address in unanswered:
        assert greeting(guest.lab, where, address, PUBLISHED) == ""
    assert {lost.source for lost in guest.lab.lost()} == {primary, other}, "the cloud dropped the replies"
    guest.lab.fabric.clear_lost()


def test_container_reaches_the_outside_and_is_reached_from_here(guest: Guest, container: str) -> None:
    lab = guest.lab
    lab.reach.listen(lab.beyond[0])
    out = f"/bin/busybox nc -w 10 {beyond_address(0)} {PORT}"
    assert beyond_address(0) in guest.run("docker", "exec", "web", *out.split())
    for address in lab.addresses:
        route = guest.run("ip", "route", "get", container, "from", address)
        assert "dev docker0" in route, route
        assert f"inet {container}/" in guest.run("python3", "-c", ASK_SERVER, container, str(PORT), address), address


def test_docker_and_cloud_network_keep_their_objects(guest: Guest) -> None:
    before, owned_count = foreign(guest), network_state(guest).count("proto 209")
    guest.run("systemctl", "restart", "cloud-network-fetcher")
    guest.run("cnctl", "refresh")
    assert foreign(guest) == before
    guest.run("docker", "run", "--rm", "busybox", "/bin/busybox", "true", timeout=240)
    guest.run("docker", "restart", "--time", "1", "web", timeout=240)
    guest.run("systemctl", "restart", "docker", timeout=240)
    start(guest, "web")
    guest.wait_for(lambda: "ok:" in guest.run("cnctl", "status", check=False), message="cnctl status: ok")
    assert network_state(guest).count("proto 209") == owned_count
    assert all_reachable(guest)


def test_marks_make_every_published_address_reachable(guest: Guest) -> None:
    """Over TCP and UDP, IPv4 and IPv6. Must be the last test: it enables IPv6 in Docker."""
    guest.run("tee", f"{TOOLS}/published.py", stdin=PROGRAM.read_text())
    guest.run("tee", "/etc/docker/daemon.json", stdin=json.dumps(IPV6))
    guest.run("sh", "-ec", WITH_IPV6, timeout=240)
    guest.wait_for(lambda: "ready" in guest.run("docker", "logs", "echo"), message="the server to listen")
    before = foreign(guest)
    with guest.configured(MARK):
        wait_for_marks(guest)
        guest.lab.fabric.clear_lost()
        all_answer(guest)
        assert guest.lab.dropped() == 0, guest.lab.lost()
        assert all_reachable(guest)
        assert foreign(guest) == before
        out = ["python3", "-ISc", OUT, beyond_address(0), str(PORT)]
        assert beyond_address(0) in guest.run("docker", "exec", "echo", *out)
        guest.run("nft", "flush", "ruleset")
        wait_for_marks(guest)
        guest.run("systemctl", "restart", "docker", timeout=240)
        start(guest, "echo")
        guest.wait_for(lambda: guest.run("docker", "logs", "echo").count("ready") == 2, message="the server to listen")
        all_answer(guest)
