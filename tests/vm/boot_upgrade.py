"""Debian 12 with a package of wire version 2, upgraded to this one: `make boot` runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest
from cloud_network.netagent import protocol
from cloud_network.netagent.operations import Value

from tests.system.netagent.test_upgrade import BEFORE
from tests.system.netagent.wire import address

from .checks import AUDIT, all_reachable, network_state
from .conftest import require
from .guest import Guest
from .image import NEWER, TOOLS, build, debian
from .virtual_machine import PROGRAMS, VirtualMachine, booted

ASK = f"""
import socket, sys, time
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(30)
    client.connect({protocol.SOCKET!r})
    client.sendall(bytes.fromhex(sys.argv[1]))
    print(client.recv(4096).hex(), flush=True)
    time.sleep(float(sys.argv[2]))
"""
"""Sends a frame, prints the answer, and keeps the connection open for the given number of seconds."""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    require(PROGRAMS)
    work = tmp_path_factory.mktemp("upgrade")
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(build, work / "before", commit=BEFORE)
        newer = pool.submit(build, work / "newer", version=NEWER)
        packages = before.result(), newer.result()
    with booted(debian("bookworm"), packages[0], work, packages[1]) as guest:
        yield guest


def ask(guest: Guest, **message: Value) -> object:
    """Ask netagent as the fetcher's user."""
    frame = protocol.encode(message).hex()
    answer = guest.run("python3", "-c", ASK, frame, "0", user="cloud-network")
    return msgpack.unpackb(bytes.fromhex(answer)[protocol.HEADER.size :])


def socket_mode(guest: Guest) -> str:
    return guest.run("stat", "-c", "%G %a", protocol.SOCKET).strip()


def test_upgrade_keeps_connections_and_rolls_back_open_change(guest: VirtualMachine) -> None:
    guest.wait_for(lambda: all_reachable(guest), 120, "all addresses")
    assert socket_mode(guest).endswith(" 666")
    assert ask(guest, request="hello", version=2) == {"verdict": "ok", "version": 2}
    held = [guest.lab.hold_connection(nic.addresses[-1], timeout=10) for nic in guest.lab.nics]
    nic = guest.lab.nics[1]
    unused = nic.subnet.rpartition(".")[0] + ".222"
    links = {link["address"]: link["ifindex"] for link in json.loads(guest.run("ip", "-json", "link"))}
    change: protocol.Message = {
        "request": "apply",
        "id": "open",
        "ops": [address(links[nic.mac], unused)],
        "confirm_within": 600,
    }
    frame = protocol.encode(change).hex()
    guest.run("tee", f"{TOOLS}/ask.py", stdin=ASK)
    command = ["python3", f"{TOOLS}/ask.py", frame, "600"]
    guest.run("systemd-run", "--unit=open-change", "--uid=cloud-network", "--gid=cloud-network", *command)
    guest.wait_for(lambda: unused in network_state(guest), message="the open change")
    log = guest.run("cat", AUDIT)

    guest.run("dpkg", "--install", f"{TOOLS}/newer.deb", timeout=240)
    guest.wait_for(lambda: "ok:" in guest.run("cnctl", "status", check=False), 120, "a healthy status")
    assert unused not in network_state(guest)
    assert all(each.alive(10) for each in held)
    assert all_reachable(guest)
    assert socket_mode(guest) == "cloud-network 660"
    assert ask(guest, request="hello", version=2) == {"verdict": "refused", "version": protocol.VERSION}

    after = guest.run("cat", AUDIT)
    assert after.startswith(log)
    since = [json.loads(line) for line in after.removeprefix(log).splitlines()]
    assert ("open", "rolled back") in [(line.get("id"), line.get("verdict")) for line in since]
    assert guest.run("cnctl", "audit", "--verify").startswith("OK:")


def test_flush_after_it_leaves_nothing_owned(guest: VirtualMachine) -> None:
    guest.run("cnctl", "flush")
    assert "proto 209" not in network_state(guest)
    addresses = guest.run("ip", "-oneline", "-4", "address")
    secondary = [address for nic in guest.lab.nics[1:] for address in nic.addresses]
    assert not [each for each in secondary if f" {each}/" in addresses]
