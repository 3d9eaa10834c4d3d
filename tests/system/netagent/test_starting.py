"""Start of netagent: with the required privileges, with other privileges, and with sockets from systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cloud_network.netagent.__main__ import LOGS, RUNTIME
from cloud_network.netagent.sandbox import NAME as USER

from tests.lab import Lab
from tests.system.netagent.conftest import answers, start
from tests.system.netagent.wire import CONFIG, Wire, address, audit_lines, ifindex

NETAGENT = [sys.executable, "-I", "-m", "cloud_network.netagent"]
BECOME = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"),
    "--no-new-privs",
]
"""Set the privileges as the unit does."""
ACTIVATE = """
import ctypes, os, socket, struct, sys
listener = socket.socket(socket.AF_UNIX)
os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
rtnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
rtnetlink.send(struct.pack("=IHHII", 16, 1, 5, 1, 0))  # NLMSG_NOOP, and its acknowledgement is not read
os.dup2(rtnetlink.fileno(), 4)
os.set_inheritable(4, True)
netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
os.dup2(netfilter.fileno(), 5)
os.set_inheritable(5, True)
if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET: systemd has it in a network namespace of its own
    sys.exit("unshare")
os.environ |= {"LISTEN_FDS": "3", "LISTEN_PID": str(os.getpid()), "BOOT_ID": "0" * 32}
os.execvp(sys.argv[3], [*sys.argv[3:], "--", sys.argv[2], "-I", "-m", "cloud_network.netagent", "--idle", "1"])
"""


def started_with(lab: Lab, *setpriv: str) -> subprocess.CompletedProcess[str]:
    """Start netagent as its user with these arguments of setpriv, and return its result."""
    for directory in (RUNTIME, LOGS):
        lab.run(["install", "-d", "-o", USER, "-g", USER, str(directory)])
    lab.run(["rm", "-f", "/run/cloud-network-netagent/netagent.sock"])
    argv = ["setpriv", "--reuid", USER, "--regid", USER, *setpriv, "--", "timeout", "3", *NETAGENT]
    return lab.run(argv, check=False)


@pytest.mark.parametrize(
    ("setpriv", "expected"),
    [
        (["--clear-groups"], "CapPrm is 0000000000000000, not 0000000000001000. Start it as root; or"),
        (["--clear-groups", *("--inh-caps=+net_admin", "--ambient-caps=+net_admin")], "CapBnd is"),
        (["--groups=0", *("--inh-caps", "+net_admin"), *("--ambient-caps", "+net_admin")], "CapBnd is"),
        (
            ["--groups=0", "--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin"],
            "Groups is 0, not 52091",
        ),
    ],
)
def test_wrong_privileges_stop_the_start_with_the_right_command(lab: Lab, setpriv: list[str], expected: str) -> None:
    lab.stop("netagent")
    done = started_with(lab, *setpriv)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "AmbientCapabilities= and CapabilityBoundingSet=CAP_NET_ADMIN" in done.stderr


def test_starts_with_exactly_the_required_privileges(lab: Lab) -> None:
    lab.stop("netagent")
    just = ["--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin"]
    done = started_with(lab, "--clear-groups", *just)
    assert done.returncode == 124  # timeout(1): it was still running
    assert done.stderr.splitlines()[0] == "cloud-network-netagent: ready"


def activated(lab: Lab) -> subprocess.Popen[str]:
    """Start netagent as systemd does; it exits after a second without work."""
    argv = ["/usr/bin/python3", "-c", ACTIVATE, "/run/cloud-network-netagent/netagent.sock", sys.executable, *BECOME]
    process = lab.instance.popen(argv, stderr=subprocess.PIPE)
    lab.wait_for(lambda: answers(lab))
    return process


def pid_of(process: subprocess.Popen[str]) -> int:
    """Return netagent's pid; its parent entered the namespace."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def sockets_of(process: subprocess.Popen[str]) -> int:
    files = Path(f"/proc/{pid_of(process)}/fd").iterdir()
    return sum(str(each.readlink()).startswith("socket:") for each in files)


MARK = f'{CONFIG}[Network]\nForwardedReplies = "mark"\n'
TABLE = {"op": "forwarded_replies"}


def test_nfnetlink_socket_is_kept_only_for_marks(lab: Lab) -> None:
    lab.stop("netagent")
    on = ifindex(lab, "eth0")
    for config, sockets in ((CONFIG, 2), (MARK, 3)):
        lab.write_config(config)
        process = activated(lab)
        lab.wait_for(lambda: sockets_of(process) == sockets)  # noqa: B023  # called at once; a client's socket closes first
        with Wire(lab) as wire:
            answer = wire.apply({**TABLE, "marks": [{"link": on, "mark": 1}]})
        assert answer["verdict"] == ("applied" if config == MARK else "refused")
        assert process.wait(10) == 0
    assert "goto published" in lab.run(["nft", "list", "table", "inet", "cloud_network"]).stdout


def test_reload_that_needs_nfnetlink_ends_netagent_for_a_restart(lab: Lab) -> None:
    lab.stop("netagent")
    lab.write_config(CONFIG)
    process = activated(lab)
    lab.write_config(MARK)
    os.kill(pid_of(process), signal.SIGHUP)
    assert process.wait(10) == 0
    process = activated(lab)
    with Wire(lab) as wire:
        assert wire.ask(request="status")["marks"] == []
    assert process.wait(10) == 0


def test_idle_netagent_exits_if_its_socket_unit_can_start_it(lab: Lab) -> None:
    lab.stop("netagent")
    socket_path = "/run/cloud-network-netagent/netagent.sock"
    argv = ["/usr/bin/python3", "-c", ACTIVATE, socket_path, sys.executable, *BECOME]
    process = lab.instance.popen(argv, stderr=subprocess.PIPE)
    on = ifindex(lab, "eth0")
    lab.wait_for(lambda: answers(lab))
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), confirm_within=3, request="open")["verdict"] == "applied"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)  # an open transaction is not idle
        assert wire.ask(request="confirm", id="open")["verdict"] == "confirmed"
    assert process.wait(10) == 0
    assert lab.path(socket_path).is_socket(), "systemd's socket stays"
    assert "10.0.2.10/24" in lab.run(["ip", "-o", "address"]).stdout
    assert audit_lines(lab)[-1]["verdict"] == "confirmed"


def test_idle_exit_logs_the_number_of_checks(lab: Lab) -> None:
    """Otherwise they would be missing: the next netagent counts from 0."""
    lab.stop("netagent")
    process = activated(lab)
    with Wire(lab) as wire:
        for _ in range(3):
            wire.ask(request="check", ops=[{"op": "link_up", "link": 1}])
    assert process.wait(10) == 0
    last = audit_lines(lab)[-1]
    assert (last["request"], last["verdict"], last["checks"]) == ("stop", "stopped", 3)


@pytest.mark.parametrize("number", [0, 1, 4])
def test_unexpected_sockets_stop_the_start(number: int) -> None:
    code = (
        f"import os; os.environ |= {{'LISTEN_FDS': '{number}', 'LISTEN_PID': str(os.getpid())}}\n"
        "import pytest; from cloud_network.netagent import __main__ as start, sandbox\n"
        "with pytest.raises(sandbox.SandboxError, match='three sockets'): start.passed_sockets()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_started_by_hand_it_stays(lab: Lab) -> None:
    lab.stop("netagent")
    lab.write_config(CONFIG)
    start(lab)
    with pytest.raises(AssertionError):
        lab.wait_for(lambda: not lab.daemons.running("netagent"), timeout=2)


def test_a_second_netagent_does_not_start(lab: Lab) -> None:
    """It would undo the open transaction of the first one."""
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), confirm_within=60, request="open")["verdict"] == "applied"
        done = lab.run([sys.executable, "-I", "-m", "cloud_network.netagent"], check=False)
        assert done.returncode == 1
        assert "stop it first: systemctl stop cloud-network-netagent.socket" in done.stderr
        assert wire.ask(request="confirm", id="open")["verdict"] == "confirmed"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("nan", "nan is not above 0"), ("1e9", "1e9 is not above 0"), ("1m", "invalid seconds value: '1m'")],
)
def test_a_bad_idle_time_names_what_is_accepted(text: str, reason: str) -> None:
    argv = [sys.executable, "-I", "-m", "cloud_network.netagent", "--idle", text]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"argument --idle: {reason}" in done.stderr


def test_environment_of_root_is_not_used(lab: Lab) -> None:
    """A sitecustomize on PYTHONPATH would run as root before netagent does."""
    lab.stop("netagent")
    argv = [sys.executable, "-m", "cloud_network.netagent"]
    done = lab.run(argv, check=False)
    assert done.returncode == 1
    assert "isolated interpreter" in done.stderr


def test_becomes_its_user_in_the_same_process(lab: Lab) -> None:
    code = (
        "import os, prctl, pwd\nfrom pathlib import Path\nfrom cloud_network.netagent import sandbox\n"
        f"user = pwd.getpwnam({USER!r})\naccount = sandbox.Account(user.pw_uid, user.pw_gid)\n"
        "sandbox.become(account)\nsandbox.limit()\n"
        "sandbox.verify(account, Path('/proc/self/status').read_text())\n"
        "print(bin(prctl.get_securebits()), prctl.get_keepcaps(), len(set(os.getresuid())))\n"
        "try: prctl.set_securebits(0)\nexcept OSError as error: print(error.errno)"
    )
    assert lab.run([sys.executable, "-c", code]).stdout == "0b101111 False 1\n1\n"


def test_no_http_tls_or_asyncio_in_the_process(lab: Lab) -> None:
    code = "from cloud_network.netagent.__main__ import parse_arguments; parse_arguments(); print(*sys.modules)"
    modules = set(
        lab.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]).stdout.split()
    )
    assert "cloud_network.netagent.server" in modules
    assert not modules & {"asyncio", "ssl", "http", "http.client", "urllib.request", "pyroute2", "requests", "email"}


@pytest.mark.parametrize(("option", "expected"), [("--version", f"{USER} 0."), ("--help", f"usage: {USER}")])
def test_help_and_version_need_no_privilege(option: str, expected: str) -> None:
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run([*become, *NETAGENT, option], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(expected)


def test_a_configuration_elsewhere_is_read(lab: Lab) -> None:
    lab.stop("netagent")
    lab.path("/run/other.toml").write_text("[Netagent]\nAllowKinds = 1.5\n")
    done = lab.run([*NETAGENT, "--config", "/run/other.toml"], check=False)
    reason = "/run/other.toml: [Netagent] AllowKinds = '1.5': not a string or whole number; accepted: rtnetlink kinds"
    assert (done.returncode, reason in done.stderr) == (78, True), done.stderr


def test_existing_directories_get_its_mode_and_owner(tmp_path: Path) -> None:
    """The mode of the log's directory may be 1777, and root's umask 077."""
    code = (
        "import os, pathlib, sys\nfrom cloud_network.netagent.__main__ import make_directory\n"
        "from cloud_network.netagent.sandbox import Account\nos.umask(0o077)\n"
        "make_directory(pathlib.Path(sys.argv[1]), Account(65534, 65534))"
    )
    for mode in (None, 0o1777):
        own = tmp_path / f"log{mode}"
        if mode is not None:
            own.mkdir()
            own.chmod(mode)
        subprocess.run([sys.executable, "-c", code, str(own)], check=True)
        assert own.stat().st_mode & 0o7777 == 0o755
        assert own.stat().st_uid == 65534
