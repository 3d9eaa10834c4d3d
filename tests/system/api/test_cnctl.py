"""cnctl as a user runs it: its output byte for byte, its exit codes, and the escaping of hostile text."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cloud_network.api.cnctl.main import cli
from cloud_network.fetcher.state import StateDirectory
from cloud_network.fetcher.status import ConflictStatus, uptime

from .conftest import BIN, SYSTEM, CommandResult, Server, address, link, now, status, unprivileged_user

Cnctl = Callable[..., CommandResult]

STATUS_SYSTEM = """\
    Cloud provider: aws
             AmiID: ami-005f15863xxxxxxxx
          Location: 0
BlockDeviceMapping: Ami:xvda Root:/dev/xvda
          Hostname: Zeus.us-west-2.compute.internal
    PublicHostname: Zeuspublic.us-west-2.compute.amazonaws.com
     LocalHostname: Zeus.us-west-2.compute.internal
    InstanceAction: none
        InstanceID: i-0c8c1test
 InstanceLifeCycle: on-demand
      InstanceType: t4g.micro
         Placement: AvailabilityZone:us-west-2d AvailabilityZoneID:usw2-az4
                    Region:us-west-2
           Profile: default-hvm
       Mac Address: 0e:c5:3f:c5:33:a5
         LocalIpv4: 192.31.63.114
        PublicIpv4: 54.1.2.3
   Services Domain: amazonaws.com
Services Partition: aws
"""

STATUS_NETWORK = """\
            Name: eth0
     MAC Address: 00:0c:29:5f:d1:02
       Public IP: 104.42.20.194
      Private IP: 10.0.0.4/24 10.0.0.6/24 10.0.0.7/24
          Subnet: 10.0.0.0
         Gateway: 10.0.0.1
             MTU: 9001
           Table: 10001

            Name: eth1
     MAC Address: 00:0c:29:5f:d1:0a
       Public IP: 54.1.2.3 54.1.2.4
      Private IP: 10.0.8.5/24
          Subnet: 10.0.8.0
         Gateway: 10.0.8.1
             MTU: 9001
           Table: 10009
"""

EVIL = "a\x1b[2J\x1b]0;owned\x07\nb\r\x9b31m\u202e\u2028\ud800\x7f"
SHOWN = r"a\x1b[2J\x1b]0;owned\x07\x0ab\x0d\x9b31m\u202e\u2028\ud800\x7f"


def on_terminal(*command: str, env: dict[str, str], columns: int = 60) -> tuple[int, bytes]:
    """Run it with a terminal as standard output; return the exit code and the output."""
    parent_end, child_end = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm"} | env
    environ.setdefault("COLUMNS", str(columns))
    process = subprocess.Popen(command, stdout=child_end, stderr=subprocess.DEVNULL, env=environ)
    os.close(child_end)
    received = b""
    try:
        while chunk := os.read(parent_end, 65536):
            received += chunk
    except OSError:  # EIO: the program has exited
        pass
    os.close(parent_end)
    return process.wait(60), received.replace(b"\r\n", b"\n")


# --- output ---


def test_status_system_is_the_originals_layout(server: Server, cnctl: Cnctl) -> None:
    assert cnctl("status", "system", server=server) == CommandResult(0, STATUS_SYSTEM, "")


def test_status_network_extends_the_originals_layout(server: Server, cnctl: Cnctl) -> None:
    assert cnctl("status", "network", server=server) == CommandResult(0, STATUS_NETWORK, "")


def test_a_value_that_the_metadata_lacks_is_empty(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_system({"ami-id": "ami-1", "placement": {"region": "r"}, "hostname": {"odd": "x"}, "profile": None})
    lines = cnctl("status", "system", server=server).out.splitlines()
    titles = [line.split(":")[0] for line in STATUS_SYSTEM.splitlines() if not line.startswith(" " * 20)]
    assert [line.split(":")[0] for line in lines] == titles
    values = {line.split(":", 1)[0].strip(): line.split(":", 1)[1] for line in lines}
    filled = {
        "Cloud provider": " aws",
        "AmiID": " ami-1",
        "Placement": " AvailabilityZone: AvailabilityZoneID: Region:r",
    }
    assert {key: value for key, value in values.items() if value} == filled


def test_a_link_without_public_addresses_keeps_the_line(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_status(status(link(2, "eth0", [address("10.0.0.4")])))
    assert "       Public IP:\n" in cnctl("status", "network", server=server).out


def test_cloud_without_a_table_is_shown_nested(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_status(status(provider="newcloud"))
    state.write_system({"id": "1", "zone": {"name": "z", "tags": ["a", "b"]}})
    assert cnctl("status", "system", server=server).out == (
        "Cloud provider: newcloud\n            id: 1\n     zone/name: z\n     zone/tags: a b\n"
    )


def test_healthy_status_fits_one_screen(server: Server, cnctl: Cnctl) -> None:
    ended = cnctl("status", server=server)
    lines = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "")
    assert lines[0] == "ok: 2 links, 62 of 62 addresses, routes and rules in place"
    assert lines[1] == " Provider: aws"
    assert lines[2].startswith(" Metadata: read ")
    assert lines[2].endswith(" ago, every 300 s, generation 7")
    assert re.fullmatch(r"   Kernel: compared \d s ago", lines[3])
    assert lines[4] == " Netagent: confirmed, 12 changes, 3 min ago"
    assert lines[5:] == [
        "",
        "LINK  STATE  ADDRESSES  TABLE  MTU   GATEWAY",
        "eth0  ok     3/3        10001  9001  10.0.0.1",
        "eth1  ok     1/1        10009  9001  10.0.8.1",
    ]


def test_status_lists_problems(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    drift = [f"ip address add 10.0.1.{n}/32 dev eth1" for n in range(8)]
    state.write_status(
        status(
            link(2, "eth0", []),
            link(3, "eth1", [address("10.0.1.5", present=False)], state="drift", actual=23, drift=drift, table=None),
            state="degraded",
            last_error={"at": now(7200), "kind": "netagent", "message": "refused: eth1 is a veth"},
            netagent={
                "listening": True,
                "verdict": "refused",
                "request": "r",
                "at": None,
                "reason": "AllowKinds=",
                "ops": 3,
            },
            unknown_macs=["aa:bb:cc:dd:ee:ff"],
        )
    )
    ended = cnctl("status", server=server)
    assert ended.code == 1
    assert ended.out.startswith("degraded: 2 links, 54 of 62 addresses, routes and rules in place\n")
    assert "\n Netagent: refused, 3 changes: AllowKinds=\n" in ended.out
    assert "\n    Error: netagent, 2 h ago: refused: eth1 is a veth\n" in ended.out
    assert (
        "\n  Missing: no link to configure for these interfaces of the metadata:\n           aa:bb:cc:dd:ee:ff\n"
        in ended.out
    )
    assert "\neth1  drift  0/1        -      9001  10.0.1.1\n  ip address add 10.0.1.0/32 dev eth1\n" in ended.out
    assert ended.out.endswith("10.0.1.4/32 dev eth1\n  ... and 3 more: cnctl status --json\n")


def test_status_names_conflicts_first(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    conflicts: list[ConflictStatus] = [
        {"object": f"ip rule add pref {number}", "times": 7, "since": now(600), "next_at": now(-100), "by": None}
        for number in range(5)
    ]
    conflicts[1] |= {"next_at": None, "by": "eth7 has it"}
    conflicts[2] |= {"next_at": None, "by": "a route in its place", "times": 0}
    error = {"at": now(7200), "kind": "metadata", "message": "HTTP 503"}
    state.write_status(status(state="error", last_error=error, conflicts=conflicts))
    lines = re.sub(r"in (9\d|100) s", "in 100 s", cnctl("status", server=server).out).splitlines()
    assert lines[1:8] == [
        "    Error: metadata, 2 h ago: HTTP 503",
        " Conflict: ip rule add pref 0: another program reverted it 7 times in 10 min;",
        "           next repair in 100 s",
        " Conflict: ip rule add pref 1: another program reverted it 7 times in 10 min",
        "           (eth7 has it)",
        " Conflict: ip rule add pref 2: not made (a route in its place)",
        "Conflicts: and 2 more: cnctl status --json",
    ]


def test_status_names_a_conflict_once(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    """The last error of this kind has the same text. While everything is in place, the check does not fail."""
    conflict: ConflictStatus = {"object": "ip x", "times": 7, "since": now(60), "next_at": None, "by": None}
    error = {"at": now(), "kind": "conflict", "message": "reverted by another program: ip x"}
    state.write_status(status(state="degraded", last_error=error, conflicts=[conflict]))
    shown = cnctl("status", server=server)
    assert (shown.code, shown.out.count("ip x"), "Error" in shown.out) == (1, 1, False)
    assert json.loads(cnctl("doctor", "--json", server=server).out)["broken"] == "conflict"
    state.write_status(status(conflicts=[conflict]))
    shown = cnctl("status", server=server)
    assert (shown.code, "; in place now" in " ".join(shown.out.split())) == (0, True)
    assert json.loads(cnctl("doctor", "--json", server=server).out)["broken"] is None


def test_json_equals_the_servers_answer(server: Server, filled: StateDirectory, cnctl: Cnctl) -> None:
    known = filled.read_status()
    assert known
    for where in (["--json", "status"], ["status", "--json"]):
        assert json.loads(cnctl(*where, server=server).out) == {**known, "stale": False, "fetcher": "running"}
        assert json.loads(cnctl(*where).out) == {**known, "stale": False, "fetcher": "running"}, (
            "the same without a server"
        )
    assert json.loads(cnctl("status", "system", "--json", server=server).out) == SYSTEM
    assert json.loads(cnctl("status", "network", "--json", server=server).out) == server.ask("/api/v1/links").json
    assert json.loads(cnctl("show", "ssh-keys", "--json", server=server).out) == ["ssh-ed25519 AAAAC3 me@host"]
    assert json.loads(cnctl("show", "document", "--json", server=server).out) == {"region": "us-west-2"}


def test_show_gives_keys_and_the_exact_bytes_of_the_identity(
    server: Server, filled: StateDirectory, cnctl: Cnctl
) -> None:
    assert cnctl("show", "ssh-keys", server=server).out == "ssh-ed25519 AAAAC3 me@host\n"
    for part in ("document", "pkcs7"):
        assert cnctl("show", part, server=server).out.encode() == filled.read_identity("aws", part)
    assert cnctl("show", "rsa2048", server=server) == CommandResult(
        1, "", "cnctl: aws gives this instance no rsa2048\n"
    )


# --- terminals ---


def test_many_addresses_wrap_under_their_column_on_a_terminal(server: Server, state: StateDirectory) -> None:
    state.write_status(status(link(2, "eth0", [address(f"10.0.0.{n}") for n in range(100, 108)])))
    code, shown = on_terminal(
        str(BIN / "cnctl"), "--socket", str(server.socket), "status", "network", "--state", state.path, env={}
    )
    assert code == 0
    assert shown.decode().splitlines()[3:7] == [
        "      Private IP: 10.0.0.100/24 10.0.0.101/24 10.0.0.102/24",
        "                  10.0.0.103/24 10.0.0.104/24 10.0.0.105/24",
        "                  10.0.0.106/24 10.0.0.107/24",
        "          Subnet: 10.0.0.0",
    ]


def test_a_pipe_gets_lines_of_80_columns(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_status(status(link(2, "eth0", [address(f"10.0.{n}.4") for n in range(200)])))
    ended = cnctl("status", "network", server=server, env={"COLUMNS": "40"})
    assert 40 < max(map(len, ended.out.splitlines())) <= 80
    assert ended.out.count("/24") == 200


def test_differing_kernel_prefix_is_shown(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    addresses = [address(f"10.0.0.{number}") for number in range(4, 8)]
    for entry, length in zip(addresses, (24, 32, 25, None), strict=True):
        entry["kernel_prefix_length"] = length
    state.write_status(status(link(2, "eth0", addresses)))
    out = cnctl("status", "network", server=server).out
    assert "      Private IP: 10.0.0.4/24 10.0.0.5/24 10.0.0.6/24 (kernel: /25)\n" in out
    assert "                  10.0.0.7/24 (missing)\n" in out
    addresses[0]["kernel_prefix_length"] = 32
    state.write_status(status(link(2, "eth0", addresses)))
    out = cnctl("status", "network", server=server).out
    assert "      Private IP: 10.0.0.4/24 (kernel: /32) 10.0.0.5/24\n" in out


@pytest.mark.parametrize(
    ("env", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)]
)
def test_environment_decides_about_colour(
    server: Server, state: StateDirectory, env: dict[str, str], colour: bool
) -> None:
    code, shown = on_terminal(
        str(BIN / "cnctl"), "status", "--socket", str(server.socket), "--state", state.path, env=env
    )
    assert code == 0
    assert (b"\x1b[32mok" in shown) == colour
    assert (b"\x1b" in shown) == colour


@pytest.mark.parametrize("down", [False, True])
def test_control_characters_of_metadata_are_escaped(server: Server, state: StateDirectory, down: bool) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        return EVIL if isinstance(value, str) else value

    state.write_system(
        poison(SYSTEM) | {"public-keys": {"0": "ssh-ed25519 " + EVIL.replace("\n", "").replace("\r", "")}}
    )
    bad = link(
        2, EVIL, [address(EVIL, EVIL)], mac=EVIL, gateways=[EVIL], subnets=[EVIL], state="drift", drift=[EVIL] * 9
    )
    state.write_status(
        status(
            bad,
            provider="aws",
            state="error",
            last_error={"at": now(), "kind": "kernel", "message": EVIL},
            netagent={"listening": True, "verdict": "refused", "request": EVIL, "at": None, "reason": EVIL, "ops": 1},
            unknown_macs=[EVIL],
            notices=[EVIL],
            conflicts=[{"object": EVIL, "times": 5, "since": now(), "next_at": None, "by": EVIL}],
        )
    )
    state.write_identity("aws", "document", EVIL.encode(errors="surrogatepass"))
    path = "/nonexistent" if down else str(server.socket)
    for command in (
        ["status"], ["status", "system"], ["status", "system", "--all"], ["status", "network"], ["show", "ssh-keys"],
        ["show", "document"], ["status", "--json"], ["status", "system", "--json"], ["status", "network", "--json"],
    ):  # fmt: skip
        _, shown = on_terminal(
            str(BIN / "cnctl"), *command, "--socket", path, "--state", state.path, env={"NO_COLOR": "1"}, columns=500
        )
        text = shown.decode()
        assert len(text) > 20, command
        assert all(character.isprintable() or character == "\n" for character in text), command
        if "--json" not in command and command[0] == "status":
            assert SHOWN in text, command


def test_unusual_terminal_encoding_is_accepted(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_system({"ami-id": "é…"})
    ended = cnctl("status", "system", server=server, env={"PYTHONIOENCODING": "ascii"})
    assert ended.code == 0
    assert "AmiID: \\xe9\\u2026" in ended.out


@pytest.mark.parametrize("down", [False, True])
def test_stale_metadata_has_a_note(server: Server, state: StateDirectory, cnctl: Cnctl, down: bool) -> None:
    state.write_system(SYSTEM)
    at = now(5000)
    state.write_status(status(link(2, "eth0", []), fetched_at=at))
    asked = None if down else server
    remark = f"cnctl: out of date: the metadata was last read {at}. See: cnctl status\n"
    for part, code in (("system", 0), ("system --json", 0), ("network", 1)):
        ended = cnctl("status", *part.split(), server=asked)
        assert (ended.code, ended.err.endswith(remark)) == (code, True)
    assert cnctl("show", "ssh-keys", server=asked).err.endswith(remark)
    ended = cnctl("status", server=asked)
    assert (ended.code, ended.out.startswith("ok, out of date: 1 link, 31 of 31 addresses")) == (1, True)
    assert json.loads(cnctl("status", "network", "--json", server=asked).out)["stale"] is True


@pytest.mark.parametrize("down", [False, True])
def test_stopped_fetcher_exits_3_and_is_listed_first(
    server: Server, filled: StateDirectory, cnctl: Cnctl, down: bool
) -> None:
    Path(filled.lock_path).unlink()
    asked = None if down else server
    ended = cnctl("status", server=asked)
    assert (ended.code, ended.out.splitlines()[0][:25]) == (3, "fetcher not running: last")
    assert "  Fetcher: the fetcher is not running; last state written" in ended.out
    assert cnctl("status", "network", server=asked).code == 3
    assert "out of date: the fetcher is not running" in cnctl("status", "network", server=asked).err
    found = json.loads(cnctl("--json", "status", server=asked).out)
    assert (found["fetcher"], found["stale"]) == ("not running", True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": "fedcba9876543210"}, "fetcher starting"),
        ({"compared_at": None}, "fetcher starting"),
        ({"boot_id": "f" * 32}, "state of an earlier boot"),
        ({"renew_by": uptime() - 10}, "fetcher hangs"),
    ],
)
def test_old_or_unrenewed_state_is_1(
    server: Server, state: StateDirectory, cnctl: Cnctl, changes: dict[str, Any], expected: str
) -> None:
    state.write_status(status(link(2, "eth0", []), **changes))
    for asked in (server, None):
        ended = cnctl("status", server=asked)
        assert (ended.code, ended.out.startswith(f"{expected}: last known: 1 link")) == (1, True)


def test_never_read_metadata_exits_3_with_the_reason(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    error = {"at": now(), "kind": "config", "message": "no known cloud: set Provider="}
    state.write_status(status(state="error", provider="", fetched_at=None, compared_at=None, last_error=error))
    for asked in (server, None):
        ended = cnctl("status", server=asked)
        lines = ended.out.splitlines()
        assert (ended.code, lines[0]) == (3, "error: the metadata has never been read")
        assert re.fullmatch(r"    Error: config, \d s ago: no known cloud: set Provider=", lines[1])
        network = cnctl("status", "network", server=asked)
        assert (network.code, network.out) == (
            3,
            "no links: the metadata has never been read: no known cloud: set Provider=\n",
        )
        doctor = cnctl("doctor", "10.0.0.4", server=asked)
        assert (doctor.code, "the metadata has never been read: no known cloud" in doctor.out) == (1, True)
        assert "does not give" not in doctor.out


def test_doctor_checks_a_host_on_which_nothing_runs(state: StateDirectory, cnctl: Cnctl) -> None:
    Path(state.lock_path).unlink()
    ended = cnctl("doctor")
    assert (ended.code, ended.err) == (1, "")
    found = {line.split()[1]: line.split()[0] for line in ended.out.splitlines() if line[0] == "✗"}
    assert found == dict.fromkeys(("fetcher", "metadata", "api"), "✗")
    assert "host: the first failed step is fetcher" in ended.out


def test_doctor_fails_if_the_last_read_failed(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    """The last complete read is recent, but a newer one has failed. `cnctl status` and doctor both exit with 1."""
    error = {"at": now(), "kind": "metadata", "message": "GET http://169.254.169.254/: no answer in time"}
    state.write_status(status(link(2, "eth0", [address("10.0.0.4")]), state="error", last_error=error))
    ended = cnctl("doctor", server=server)
    assert ended.code == 1
    assert re.search(r"✗ metadata +read \d+ s ago: GET http://169.254.169.254/:", ended.out), ended.out


def test_a_narrow_terminal_gets_narrow_lines(server: Server, state: StateDirectory) -> None:
    """Lines of 50 columns break between words and addresses; a single word stays whole, so that it can be copied."""
    gateways = ["10.0.0.1", "fe80::200:17ff:fe00:1"]
    long = link(2, "eth0", [address(f"2001:db8:0:2::{n:x}") for n in range(16, 26)], gateways=gateways)
    state.write_status(status(long, last_error={"at": now(), "kind": "netagent", "message": "refused " * 20}))
    state.write_system({"hostname": "h" * 60, "placement": {"availability-zone": "eu-central-1a", "region": "r" * 9}})
    for command in (["status"], ["status", "network"], ["status", "system"]):
        _, shown = on_terminal(
            *(str(BIN / "cnctl"), *command, "--socket", str(server.socket), "--state", state.path),
            env={"NO_COLOR": "1"},
            columns=50,
        )
        lines = shown.decode().splitlines()
        assert [line for line in lines if len(line) > 50] == (
            [f"{'Hostname':>18}: {'h' * 60}"] if "system" in command else []
        )
        if command == ["status"]:
            assert lines[-2:] == ["eth0  ok     10/10      10001  9001  10.0.0.1", "  fe80::200:17ff:fe00:1"]


def test_status_is_one_screen_however_many_links_there_are(server: Server, state: StateDirectory) -> None:
    """A terminal of 24 lines shows unhealthy links, and leaves out healthy ones."""
    links = [link(n, f"eth{n}", [address(f"10.0.{n}.4")]) for n in range(2, 62)]
    links[50]["state"], links[50]["drift"] = "drift", [f"ip address add 10.0.52.{n}/32 dev eth52" for n in range(9)]
    state.write_status(status(*links, state="degraded"))
    command = (str(BIN / "cnctl"), "status", "--socket", str(server.socket), "--state", state.path)
    _, shown = on_terminal(*command, env={"NO_COLOR": "1", "LINES": "24"}, columns=80)
    lines = shown.decode().splitlines()
    assert 20 < len(lines) < 24
    assert [line.split()[0] for line in lines if "drift" in line] == ["eth52"]
    assert "  ... and 4 more: cnctl status --json" in lines
    count = sum(" ok " in line for line in lines)
    assert lines[-1] == f"... and {59 - count} healthy links: cnctl status network"
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert sum(" ok " in line for line in ended.stdout.splitlines()) == 59, "a pipe gets all lines"


# --- exit codes ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["statsu"],
        ["status", "systen"],
        ["show"],
        ["show", "secrets"],
        ["--bogus"],
        ["status", "--js"],
        ["refresh", "x"],
        ["audit", "--last", "0"],
        ["audit", "--last", "-3"],
        ["status", "--interval", "5"],
        ["status", "--interval", "5", "network"],
    ],
)
def test_wrong_command_line_exits_2_with_the_usage(cnctl: Cnctl, arguments: list[str]) -> None:
    ended = cnctl(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: cnctl")


def test_signature_is_unknown_before_the_first_answer(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_status(status(state="starting", fetched_at=None))
    ended = cnctl("show", "signature", server=server)
    assert (ended.code, ended.err) == (3, "cnctl: the metadata has never been read\n")


@pytest.mark.parametrize(
    ("changes", "summary", "network"),
    [
        ({}, 0, 0),
        ({"state": "degraded"}, 1, 0),
        ({"state": "error"}, 1, 0),
        ({"state": "starting", "fetched_at": None}, 3, 1),
        ({"fetched_at": now(5000)}, 1, 1),
        ({"links": {"2": link(2, "eth0", [], state="drift")}, "state": "degraded"}, 1, 1),
        ({"links": {"2": link(2, "eth0", [], state="missing")}, "state": "degraded"}, 1, 1),
        ({"links": {"2": link(2, "eth0", [], state="excluded")}}, 0, 0),
    ],
)
def test_exit_code_is_1_with_drift(
    server: Server, state: StateDirectory, cnctl: Cnctl, changes: dict[str, Any], summary: int, network: int
) -> None:
    state.write_status(status(link(2, "eth0", [])) | changes)  # type: ignore[arg-type]
    for flag in ([], ["--json"]):
        assert cnctl("status", *flag, server=server).code == summary
        assert cnctl("status", "network", *flag, server=server).code == network


def test_files_are_read_with_a_note_if_the_api_is_down(filled: StateDirectory, cnctl: Cnctl) -> None:
    for command, expected in (("system", STATUS_SYSTEM), ("network", STATUS_NETWORK)):
        ended = cnctl("status", command)
        assert (ended.code, ended.out) == (0, expected)
        assert ended.err.startswith("cnctl: the api at ")
        assert ended.err.endswith(f"does not answer (No such file or directory); reading {filled.path} instead\n")
        assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    "expected",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{}",
        b"HTTP/1.1 x\r\n\r\n{}",
        b"HTTP/1.1\r\n\r\n{}",
    ],
)
def test_other_program_on_the_socket_is_not_believed(
    filled: StateDirectory, cnctl: Cnctl, expected: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(expected)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        ended = cnctl("status", "network", "--socket", str(path))
        thread.join(30)
    assert (ended.code, ended.out) == (0, STATUS_NETWORK)
    assert "does not answer" in ended.err


def test_silent_api_ends_with_a_timeout(filled: StateDirectory, cnctl: Cnctl, tmp_path: Path) -> None:
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        ended = cnctl("status", "--socket", str(path))
    assert (ended.code, "does not answer (timed out)" in ended.err) == (0, True)


def test_missing_state_exits_3_with_a_hint(state: StateDirectory, session_server: Server, cnctl: Cnctl) -> None:
    for server in (None, session_server):
        for command in (
            ["status"],
            ["status", "system"],
            ["status", "network"],
            ["show", "ssh-keys"],
            ["show", "pkcs7"],
        ):
            ended = cnctl(*command, server=server)
            assert (ended.code, ended.out) == (3, "")
            assert "journalctl -u cloud-network-fetcher" in ended.err


@pytest.mark.parametrize("down", [False, True])
def test_broken_file_exits_3_and_is_named(server: Server, state: StateDirectory, cnctl: Cnctl, down: bool) -> None:
    Path(state.status_path).write_text("{half")
    given = {} if down else {"server": server}
    ended = cnctl("status", **given)
    assert (ended.code, ended.out) == (3, "")
    assert f"{state.status_path}: not JSON" in ended.err


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("kind", ["fifo", "link", "missing"])
def test_doctor_names_a_status_that_cannot_be_read(
    server: Server, filled: StateDirectory, cnctl: Cnctl, kind: str, down: bool
) -> None:
    """It goes on with the steps that do not need it."""
    path = Path(filled.status_path)
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    given = {} if down else {"server": server}
    ended = cnctl("doctor", "--json", **given)
    steps = {step["step"]: step for step in json.loads(ended.out)["steps"]}
    assert (ended.code, steps["fetcher"]["ok"]) == (1, False)
    assert steps["api"]["ok"] is not down
    if kind != "missing":
        assert f"{path}: cannot be read" in steps["fetcher"]["found"]


def test_status_of_another_version_is_reported(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_status(status() | {"version": 1})  # type: ignore[arg-type]
    for command in ("status", "status network", "status system"):
        ended = cnctl(*command.split(), server=server)
        assert (ended.code, ended.out) == (3, "")
        assert "version is 1 and not 3" in ended.err


@pytest.mark.parametrize("name", ["eth\ud800", "eth\0"])
def test_name_that_is_no_argument_is_an_error(state: StateDirectory, cnctl: Cnctl, name: str) -> None:
    state.write_status(status(link(2, name, [address("10.0.0.4")])))
    ended = cnctl("doctor", "10.0.0.4")
    assert (ended.code, ended.err.endswith("is no command that can be run\n")) == (1, True), ended


def test_closed_output_is_an_error(filled: StateDirectory) -> None:
    command = 'exec "$0" --state "$1" status network >&-'
    ended = subprocess.run(
        ["sh", "-c", command, str(BIN / "cnctl"), filled.path],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "cnctl: standard output is closed\n")


def test_interrupt_while_modules_are_imported_is_130() -> None:
    """Ctrl-C in the first moment of cnctl."""
    code = """
import sys
from cloud_network.api.cnctl.__main__ import main

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "click":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.exit(main())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_version_and_help(cnctl: Cnctl) -> None:
    assert cnctl("--version").out.startswith("cnctl 0.")
    text = cnctl("--help").out
    for taught in ("Examples:", "cnctl status network", "sudo cnctl show credentials", "Exit codes:"):
        assert taught in text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run cnctl as another user")
def test_unreadable_file_names_sudo(filled: StateDirectory, home: Path, cnctl: Cnctl) -> None:
    config, log = home / "private.toml", home / "private.log"
    for file in (config, log, Path(filled.status_path)):
        file.touch()
        file.chmod(0o600)
    for command, code in (
        (["status"], 3),
        (["audit", "--log", str(log)], 1),
        (["audit", "--verify", "--log", str(log)], 1),
    ):
        ended = cnctl(*command, **unprivileged_user())
        assert (ended.code, "Permission denied" in ended.err, "sudo" in ended.err) == (code, True, True)
    ended = cnctl("status", "--config", str(config), **unprivileged_user())
    assert (ended.code, f"{config}: cannot be read: Permission denied" in ended.err) == (78, True)
    for name in ("api", "fetcher"):
        command = [str(BIN / f"cloud-network-{name}"), "--config", str(config)]
        daemon = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **unprivileged_user())
        assert (daemon.returncode, "Permission denied" in daemon.stderr) == (78, True)


@pytest.mark.parametrize("program", ["cloud-network-api", "cloud-network-fetcher", "cnctl"])
def test_every_program_exits_78_on_bad_configuration(program: str, home: Path) -> None:
    config = home / "bad.toml"
    config.write_text("[Network]\nListen = 'everywhere'\n")
    command = [str(BIN / program), "--config", str(config), *(["status"] if program == "cnctl" else [])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert (ended.returncode, ended.stdout) == (78, "")
    assert f"{program}: {config}:2: [Network] Listen = everywhere: not an address and a port" in ended.stderr


@pytest.mark.parametrize(
    "command", [*sorted(set(cli.commands) - {"completion", "show", "status"}), "completion bash", "show document"]
)
def test_every_command_exits_78_on_bad_configuration(command: str, cnctl: Cnctl, home: Path) -> None:
    config = home / "bad.toml"
    config.write_text("[Network]\nListen = 'everywhere'\n")
    ended = cnctl(*command.split(), "--config", str(config))
    assert (ended.code, ended.out) == (78, ""), ended
    assert "[Network] Listen = everywhere" in ended.err


def test_all_facts_are_aligned_and_lines_become_words(server: Server, filled: StateDirectory, cnctl: Cnctl) -> None:
    """Colons are in one column, also with keys longer than the titles; empty values are left out."""
    filled.write_link(
        2, {"mac": "00:0c:29:5f:d1:02", "local-ipv4s": "10.0.0.4\n10.0.0.6", "a-very-long-key/x": 1, "no": ""}
    )
    lines = cnctl("status", "network", "--all", server=server).out.splitlines()
    assert {line.index(":") for line in lines if line and not line.startswith(" " * 20)} == {len("a-very-long-key/x")}
    assert "      local-ipv4s: 10.0.0.4 10.0.0.6" in lines
    assert not [line for line in lines if line.strip().startswith("no:")]
