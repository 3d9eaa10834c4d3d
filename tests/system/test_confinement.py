"""Permissions: users, capabilities, foreign objects, files, secrets and the control socket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, Spec
from tests.lab.processes import USERS
from tests.system.service import (
    DAEMONS,
    MACS,
    PROTOCOL,
    Kernel,
    audit,
    ip,
    kernel,
    own_objects,
    read_all_facts,
    refresh,
    running_lab,
    send_command,
    status,
    wait_until_healthy,
    without_order,
)

NET_ADMIN = 1 << 12
USER = {"netagent": "cloud-network-netagent", "fetcher": "cloud-network", "api": "cloud-network-api"}
FOREIGN = [
    "link add docker0 type bridge",
    "address add 172.17.0.1/16 dev docker0",
    "address add 10.0.1.200/32 dev eth0",
    "route add 192.0.2.0/24 via 10.0.1.1 dev eth0",
    "route add 192.0.2.0/25 via 10.0.1.1 dev eth0 table 10001",
    "route add 192.0.2.128/25 via 10.0.1.1 dev eth0 table 77 proto static",
    "rule add pref 31005 from 192.0.2.1 lookup 77",
    "rule add pref 100 from 192.0.2.2 lookup main",
    "rule add pref 31000 from 10.0.1.200 lookup 10001 suppress_prefixlength 0",
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    spec = Spec.aws(interfaces=3, addresses=4, public=1, user_data="#!SECRET")
    with running_lab(spec, '[System]\nLogLevel = "trace"\n') as made:
        read_all_facts(made)
        yield made


def processes(lab: Lab, name: str) -> list[dict[str, str]]:
    """Return /proc/PID/status of a daemon and its children."""
    first = lab.daemons.pid(name)
    found, waiting = [], [first]
    while waiting:
        pid = waiting.pop()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found.append({key: value.strip() for key, _, value in (line.partition(":") for line in lines)})
        waiting += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


@pytest.mark.parametrize("name", DAEMONS)
def test_each_daemon_has_its_user_and_least_privilege(lab: Lab, name: str) -> None:
    expected = NET_ADMIN if name == "netagent" else 0
    for process in processes(lab, name):
        uid = USERS[USER[name]]
        assert process["Uid"].split() == [str(uid)] * 4
        assert process["Gid"].split() == [str(uid)] * 4
        assert process["Groups"] == ""
        assert {key: int(process[key], 16) for key in ("CapPrm", "CapEff")} == {"CapPrm": expected, "CapEff": expected}
        assert {int(process[key], 16) for key in ("CapInh", "CapAmb")} == {0}
        assert int(process["CapBnd"], 16) in (0, expected)
        assert process["NoNewPrivs"] == "1"


def test_state_files_are_world_readable_and_fetcher_writable(lab: Lab) -> None:
    root = lab.path("/run/cloud-network")
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    indexes = {str(link["ifindex"]) for link in ip(lab, "link") if link["ifname"] != "lo"}
    identity = {f"provider/aws/{part}" for part in ("document", "pkcs7", "signature", "rsa2048")}
    assert names == {"system", "status.json", "fetcher.lock", *(f"links/{index}" for index in indexes), *identity}
    for path in (root, *root.rglob("*")):
        expected = 0o755 if path.is_dir() else 0o660 if path.is_socket() else 0o644
        assert path.stat().st_mode & 0o7777 == expected, path
        assert path.stat().st_uid == USERS["cloud-network"], path


def test_state_files_have_the_keys_of_the_metadata(lab: Lab) -> None:
    root = lab.path("/run/cloud-network")
    system = json.loads((root / "system").read_text())
    assert system["instance-type"] == "m7i.4xlarge"
    assert system["placement"]["availability-zone"] == "eu-central-1a"
    assert system["public-ipv4"] == "203.0.113.1"
    assert system["mac"] == lab.nics[0].mac
    for nic in lab.nics:
        index = next(link["ifindex"] for link in ip(lab, "link") if link["ifname"] == nic.name)
        document = json.loads((root / "links" / str(index)).read_text())
        assert document["mac"] == nic.mac
        assert document["local-ipv4s"].split() == list(nic.addresses)
        assert document["device-number"] == str(nic.device)
        assert document["public-hostname"]
        reported = status(lab)["links"][str(index)]
        assert (reported["name"], reported["mac"], reported["state"], reported["drift"]) == (
            nic.name,
            nic.mac,
            "ok",
            [],
        )
        assert [entry["address"] for entry in reported["addresses"]] == list(nic.addresses)
        assert reported["desired"] == reported["actual"] == 4 + 4 + 2
    assert json.loads((root / "provider/aws/document").read_text())["region"] == "eu-central-1"


def test_generation_rises_with_changes_only(lab: Lab) -> None:
    refresh(lab)
    before = status(lab)["generation"]
    refresh(lab)
    assert status(lab)["generation"] == before
    lab.metadata.fail("status", MACS)
    refresh(lab)
    assert status(lab)["generation"] > before
    lab.metadata.clear()
    refresh(lab)


def foreign_objects(lab: Lab) -> Kernel:
    """Return the objects of other programs, and all addresses, because ip does not show who owns them."""
    return {
        what: [entry for entry in entries if str(entry.get("protocol")) != PROTOCOL]
        for what, entries in kernel(lab).items()
    }


def test_foreign_objects_are_the_same_before_and_after(lab: Lab) -> None:
    """Operators' routes, rules and addresses, also in owned tables, among owned rules and on managed links.

    An address in another interface's subnet makes that interface's rules smaller, so that they do not match it.
    """
    before = kernel(lab)
    for line in FOREIGN:
        lab.run(["ip", *line.split()])
    foreign = foreign_objects(lab)
    assert refresh(lab) == "ok"
    with_foreign, lines = kernel(lab), audit(lab)
    assert refresh(lab) == "ok"
    assert kernel(lab) == with_foreign
    assert foreign_objects(lab) == foreign
    nic = lab.nics[1]
    lab.add_address(nic.mac, "10.0.2.77")
    refresh(lab)
    lab.remove_address(nic.mac, "10.0.2.77")
    refresh(lab)
    wait_until_healthy(lab)
    assert without_order(kernel(lab)) == without_order(with_foreign)
    assert len(audit(lab)) == len(lines) + 4
    for line in reversed(FOREIGN):
        lab.run(["ip", *line.replace(" add ", " del ").split()])
    assert refresh(lab) == "ok"
    assert without_order(kernel(lab)) == without_order(before)


def test_dhcp_address_is_adopted_unchanged(lab: Lab) -> None:
    """It keeps its lifetime, its prefix length and its owner, and stays when the metadata drops it."""
    first = lab.nics[0].addresses[0]
    [entry] = [each for link in ip(lab, "-d", "address") for each in link["addr_info"] if each["local"] == first]
    assert entry["dynamic"]
    assert 0 < entry["valid_life_time"] <= 3600
    assert entry["prefixlen"] == 24
    assert entry.get("protocol") is None
    [reported] = [
        each for link in status(lab)["links"].values() for each in link["addresses"] if each["address"] == first
    ]
    assert (reported["present"], reported["owned"]) == (True, False)
    assert not any(
        op.get("address") == first for line in audit(lab) for op in line.get("ops", []) if "address_" in op["op"]
    )


def test_secrets_are_in_no_file_and_in_no_log(lab: Lab) -> None:
    answer = send_command(lab, "credentials")
    assert answer["ok"]
    assert "SECRET" in json.dumps(answer["result"])
    refresh(lab)
    for root in (
        "/run/cloud-network",
        "/run/cloud-network-netagent",
        "/run/cloud-network-api",
        "/var/log",
        "/etc/cloud-network",
    ):
        for path in lab.path(root).rglob("*"):
            if path.is_file():
                assert b"SECRET" not in path.read_bytes(), path
    assert all("SECRET" not in lab.log(name) for name in DAEMONS)
    paths = lab.metadata.paths()
    assert not any("user-data" in path for path in paths)


@pytest.mark.parametrize("user", ["cloud-network-api", "daemon"])
def test_other_users_cannot_connect_to_the_control_socket(lab: Lab, user: str) -> None:
    """With connections that wait, they could keep root out."""
    script = "import socket; socket.socket(socket.AF_UNIX).connect('/run/cloud-network/control.sock')"
    ended = lab.run(["/usr/bin/python3", "-c", script], user=user, check=False)
    assert "PermissionError" in ended.stderr


@pytest.mark.parametrize("command", ["refresh", "credentials"])
def test_control_socket_refuses_its_own_user_with_the_reason(lab: Lab, command: str) -> None:
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('/run/cloud-network/control.sock'); "
        "print(s.makefile('rb').read()[4:].decode())"
    )
    lab.metadata.reset()
    answer = json.loads(lab.run(["/usr/bin/python3", "-c", script], user="cloud-network").stdout)
    assert answer["ok"] is False
    assert re.search(r"only root may use the control socket, not uid \d+; use sudo", answer["error"])
    assert lab.metadata.requests() == []


@pytest.mark.parametrize(
    "frame",
    [b"", b"\0\0", b"\0\0\0\2{}", b"\0\0\0\5hello", b"\xff\xff\xff\xff", b'\0\0\0\x11{"command": "rm"}',
     b"\0\0\0\4null", b'\0\0\0\x13{"command": ["x"]} ', b"\0\0\0\x40{"],
)  # fmt: skip
def test_malformed_control_request_gets_an_error(lab: Lab, frame: bytes) -> None:
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('/run/cloud-network/control.sock'); "
        f"s.sendall({frame!r}); s.shutdown(socket.SHUT_WR); print(s.makefile('rb').read()[4:].decode())"
    )
    answer = json.loads(lab.run(["/usr/bin/python3", "-c", script]).stdout)
    assert answer["ok"] is False
    assert "accepted" in answer["error"]
    assert refresh(lab) == "ok"


def test_silent_control_client_is_dropped(lab: Lab) -> None:
    script = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect('/run/cloud-network/control.sock'); "
        "s.sendall(b'\\0\\0\\0\\x40'); print(s.makefile('rb').read()[4:].decode())"
    )
    answer = json.loads(lab.run(["/usr/bin/python3", "-c", script]).stdout)
    assert answer["ok"] is False
    assert refresh(lab) == "ok"


def test_unavailable_credentials_are_reported(lab: Lab) -> None:
    lab.metadata.fail("status", "/latest/meta-data/iam/*", status=500)
    answer = send_command(lab, "credentials")
    lab.metadata.clear()
    assert answer == {"ok": False, "error": "iam/security-credentials/: HTTP 500"}


def test_owned_objects_have_protocol_209(lab: Lab) -> None:
    assert len(own_objects(lab, "route-4")) == 12
    assert len(own_objects(lab, "rule-4")) == 7
    reported = [
        each for link in status(lab)["links"].values() for each in link["addresses"]
    ]  # Debian's ip does not show it
    assert {each["address"] for each in reported if each["owned"]} == set(lab.addresses) - {lab.nics[0].addresses[0]}
