"""Clients: permission to connect, misbehaviour, and the audit lines."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import msgpack
import pytest
from cloud_network.netagent import protocol

from tests.lab import Lab
from tests.lab.processes import USERS
from tests.system.netagent.conftest import start
from tests.system.netagent.identities import UserWire
from tests.system.netagent.wire import AUDIT, CONFIG, Wire, address, audit_lines, ifindex, kernel_state


def test_only_the_fetcher_and_root_may_connect(lab: Lab) -> None:
    lines = len(audit_lines(lab))
    mode = lab.path(protocol.SOCKET).stat()
    assert (mode.st_mode & 0o777, mode.st_gid) == (0o660, USERS["cloud-network"])
    for uid in (65534, USERS["cloud-network-api"], USERS["cloud-network-netagent"]):
        with pytest.raises(ConnectionError, match="Permission denied"):
            UserWire(lab, uid)
    assert audit_lines(lab)[lines:] == []


def test_a_member_of_the_group_is_refused_and_logged(lab: Lab) -> None:
    """The socket's mode admits the group; netagent also checks the uid."""
    lines = len(audit_lines(lab))
    member = ["setpriv", "--reuid=65534", f"--regid={USERS['cloud-network']}", "--clear-groups"]
    with Wire(lab, prefix=member) as wire, pytest.raises(OSError, match=r"closed the connection|Broken pipe|reset"):
        wire.ask(request="status")
    (line,) = audit_lines(lab)[lines:]
    assert (line["request"], line["verdict"], line["reason"]) == ("connect", "refused", "uid 65534 may not connect")
    assert line["peer"]["pid"] > 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x93\x01\x02\x03", "request: [1, 2, 3] is not a map"),
        (b"\x81\xa7request\xa5apply\x00", "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\x91" * 5000, "not msgpack"),
        (b"\x81\xa7request" + b"\x81\xa1a" * 1015 + b"\xc0", "is not str"),  # repr() raised RecursionError
        (msgpack.packb({"request": "shell"}), "is not one of hello, check, apply"),
        (msgpack.packb({"request": ["apply"]}), "is not str"),
        (msgpack.packb({"request": "status", "more": 1}), "'more' is not a known key"),
        (msgpack.packb({"request": "apply", "id": "x", "ops": [], "confirm_within": 0}), "ops"),
        (msgpack.packb({"request": "apply", "id": "x" * 65, "ops": [1], "confirm_within": 0}), "request.id"),
        (
            msgpack.packb(
                {"request": "apply", "id": "x", "ops": [{"op": "link_up", "link": 2}], "confirm_within": 601}
            ),
            "confirm_within",
        ),
        (msgpack.packb({"request": "apply", "id": "x", "ops": [1], "confirm_within": 1}), "ops[0]: 1 is not a map"),
        (msgpack.packb({"request": "hello", "version": 1.0}), "version"),
        (msgpack.packb({1: 2}), "not msgpack"),
    ],
)
def test_malformed_request_is_refused_logged_and_disconnected(shared_lab: Lab, body: bytes, reason: str) -> None:
    before, lines = kernel_state(shared_lab), len(audit_lines(shared_lab))
    with Wire(shared_lab) as wire:
        answer = wire.raw(body)
        assert answer["verdict"] == "refused"
        assert reason in answer["reason"]
        with pytest.raises((ConnectionError, struct.error)):
            wire.ask(request="status")
    (line,) = audit_lines(shared_lab)[lines:]
    assert (line["verdict"], line["reason"]) == ("refused", answer["reason"])
    assert kernel_state(shared_lab) == before
    with Wire(shared_lab) as wire:
        assert wire.ask(request="status")["verdict"] == "ok"


def test_a_frame_that_is_announced_too_large_is_not_waited_for(shared_lab: Lab) -> None:
    with Wire(shared_lab) as wire:
        wire.socket.sendall(protocol.HEADER.pack(protocol.MAX_FRAME + 1))
        assert "the limit is 1048576" in wire.answer()["reason"]


def test_a_half_sent_frame_is_dropped_and_the_next_client_served(shared_lab: Lab) -> None:
    with Wire(shared_lab) as slow, Wire(shared_lab) as waiting:
        slow.socket.sendall(protocol.HEADER.pack(100) + b"\x81")
        assert waiting.ask(request="status")["verdict"] == "ok"
        assert slow.answer()["reason"] == "a frame did not arrive in time"
        assert slow.socket.recv(1) == b""
    assert any(line.get("reason") == "a frame did not arrive in time" for line in audit_lines(shared_lab))


def test_silent_client_does_not_delay_others_for_long(shared_lab: Lab) -> None:
    with Wire(shared_lab) as silent, Wire(shared_lab) as waiting:
        assert waiting.ask(request="status")["verdict"] == "ok"
        assert silent.socket.recv(1) == b""


def test_too_many_requests_are_refused_and_counted_in_the_log(lab: Lab) -> None:
    size = lab.path(AUDIT).stat().st_size
    refused = 0
    with UserWire(lab, USERS["cloud-network"]) as wire:
        for _ in range(5000):
            answer = wire.ask(request="confirm", id="none")
            if "too many requests" in answer["reason"]:
                break
            refused += 1
        assert "too many requests: 20 a second" in answer["reason"]
        with pytest.raises(ConnectionError):
            wire.answer()
    assert refused >= 390  # a burst of 400, minus the requests of the start

    def has_counted() -> bool:
        with Wire(lab) as wire:
            wire.ask(request="confirm", id="none")
        return "refusals_not_logged" in audit_lines(lab)[-1]

    lab.wait_for(has_counted)
    lines = audit_lines(lab)
    written = len([line for line in lines if line["verdict"] == "refused"])
    counted = sum(line.get("refusals_not_logged", 0) for line in lines)
    assert written < refused / 2
    assert written + counted >= refused
    assert lab.path(AUDIT).stat().st_size - size < written * 500


def test_a_stop_keeps_the_number_of_checks(lab: Lab) -> None:
    with Wire(lab) as wire:
        for _ in range(3):
            wire.ask(request="check", ops=[{"op": "link_up", "link": 1}])
    lab.stop("netagent")
    last = audit_lines(lab)[-1]
    assert (last["request"], last["verdict"], last["checks"]) == ("stop", "stopped", 3)


def test_too_many_requests_of_the_fetcher_do_not_refuse_roots(lab: Lab) -> None:
    with UserWire(lab, USERS["cloud-network"]) as wire:
        while wire.ask(request="status")["verdict"] == "ok":
            pass
    with Wire(lab) as root:
        assert [root.ask(request="status")["verdict"] for _ in range(100)] == ["ok"] * 100
        assert root.ask(request="flush", id="root")["verdict"] == "applied"


def test_roots_requests_do_not_refuse_those_of_the_fetcher(lab: Lab) -> None:
    with Wire(lab) as root:
        assert [root.ask(request="status")["verdict"] for _ in range(600)] == ["ok"] * 600
    with UserWire(lab, USERS["cloud-network"]) as wire:
        assert [wire.ask(request="status")["verdict"] for _ in range(100)] == ["ok"] * 100


def test_malformed_frames_are_requests(lab: Lab) -> None:
    """Decoding a frame takes time, so tokens for its bytes are taken first."""
    reasons = []
    for _ in range(10):
        with UserWire(lab, USERS["cloud-network"]) as wire:
            reasons.append(wire.raw(b"\xc1" * protocol.MAX_FRAME)["reason"])
    assert "not msgpack" in reasons[0]
    assert "too many requests" in reasons[-1]


def chain(lines: list[str]) -> None:
    """Check that each line's `hash` is the hash of its text, and its `prev` the hash of the line before."""
    previous = "0" * 64
    for number, line in enumerate(lines, 1):
        body, _, _ = line.rpartition(',"hash":"')
        entry: dict[str, Any] = json.loads(line)
        assert (entry["seq"], entry["prev"]) == (number, previous)
        previous = entry["hash"]
        assert hashlib.sha256(body.encode()).hexdigest() == previous


def test_the_audit_log_is_one_chain_over_restarts_and_reloads(lab: Lab) -> None:
    on = ifindex(lab, "eth0")
    for host in range(10, 20):
        with Wire(lab) as wire:
            assert wire.apply(address(on, f"10.0.2.{host}"), address(on, "8.8.8.8"))["verdict"] == "refused"
            assert wire.apply(address(on, f"10.0.2.{host}"))["verdict"] == "applied"
        if host % 4 == 0:
            lab.stop("netagent")
            with lab.path(AUDIT).open("a") as log:
                log.write('{"seq":99,"unfinished"')  # as left by a crash during a write
            start(lab)
    lines = lab.path(AUDIT).read_text().splitlines()
    assert len(lines) == 20
    chain(lines)
    entry = json.loads(lines[-1])
    assert entry["ops"] == [
        {"op": "address_add", "link": on, "address": "10.0.2.19", "prefix": 32, "route": True, "errno": 0}
    ]
    assert entry["peer"]["uid"] == 0
    assert set(entry) >= {"time", "monotonic_us", "boot", "id", "duration_us", "confirm_within"}
    assert lab.path(AUDIT).stat().st_mode & 0o777 == 0o644


def full_disk(lab: Lab, config: str) -> None:
    """Start netagent with an audit log on a full file system."""
    lab.stop("netagent")
    lab.write_config(config)
    lab.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/var/log/cloud-network"])
    lab.run(["dd", "if=/dev/zero", "of=/var/log/cloud-network/full", "bs=4k", "count=1"])
    start(lab)


def test_change_that_cannot_be_logged_is_refused(lab: Lab) -> None:
    full_disk(lab, CONFIG)
    before = kernel_state(lab)
    with Wire(lab) as wire:
        answer = wire.apply(address(ifindex(lab, "eth0"), "10.0.2.10/24"))
    assert answer["verdict"] == "refused"
    assert "No space left" in answer["reason"]
    assert answer["allow"] == '[Netagent] AuditFailure="continue"'
    assert kernel_state(lab) == before
    lab.path("/var/log/cloud-network/full").unlink()
    with Wire(lab) as wire:
        assert wire.apply(address(ifindex(lab, "eth0"), "10.0.2.10/24"))["verdict"] == "applied"


def test_a_full_disk_leaves_lines_in_the_journal(lab: Lab) -> None:
    """A rollback does not wait for space. The next line in the file counts those that are missing there."""
    logs, own = lab.path(AUDIT).parent, address(ifindex(lab, "eth0"), "10.0.2.10/24")
    lab.stop("netagent")
    lab.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "/var/log/cloud-network"])
    start(lab)
    with Wire(lab) as wire:
        assert wire.apply(own, confirm_within=60)["verdict"] == "applied"
        lab.run(["dd", "if=/dev/zero", "of=/var/log/cloud-network/full", "bs=4k", "count=1"])
        for _ in range(20):  # lines that fill the log's own page
            wire.ask(request="confirm", id="x" * 60)
        assert wire.ask(request="rollback", id="test")["verdict"] == "rolled back"
        assert not [line for line in audit_lines(lab) if line["request"] == "rollback"]
        assert '"request":"rollback","id":"test"' in lab.log("netagent")
        (logs / "full").unlink()
        assert wire.apply(own)["verdict"] == "applied"
    *before, last = audit_lines(lab)
    assert last["entries_not_written"] == 20 - len([line for line in before if line["request"] == "confirm"]) + 1


def test_unless_the_operator_prefers_it_unlogged(lab: Lab) -> None:
    full_disk(lab, CONFIG + 'AuditFailure = "continue"\n')
    with Wire(lab) as wire:
        assert wire.apply(address(ifindex(lab, "eth0"), "10.0.2.10/24"))["verdict"] == "applied"
    assert "the audit log cannot be written" in lab.log("netagent")


def test_a_reload_that_fails_leaves_netagent_as_it_was(lab: Lab) -> None:
    lab.write_config("nonsense\n")
    lab.kill("netagent", 1)
    lab.wait_for(lambda: "continuing with the log and the settings in use" in lab.log("netagent"))
    with Wire(lab) as wire:
        assert wire.apply(address(ifindex(lab, "eth0"), "10.0.2.10/24"))["verdict"] == "applied"
