"""How netagent is started: with what it wants, with too much, and by a listening socket of systemd's kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cloud_network.netagent.start import BECOME, LOGS, RUNTIME, USER

from tests.lab import Lab
from tests.system.netagent.conftest import answers, start
from tests.system.netagent.wire import CONFIG, Wire, address, audit_lines, ifindex

NETAGENT = str(Path(sys.executable).parent / "cloud-network-netagent")
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
if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET: systemd has it in a network namespace of its own
    sys.exit("unshare")
os.environ |= {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()), "IDLE_SECONDS": "1"}
os.environ |= {"RUNTIME_DIRECTORY": "/run/cloud-network-netagent", "LOGS_DIRECTORY": "/var/log/cloud-network"}
os.environ["BOOT_ID"] = "0" * 32
code = "from cloud_network.netagent.server import main; main()"
os.execvp(sys.argv[3], [*sys.argv[3:], "--", sys.argv[2], "-c", code])
"""


def started_with(lab: Lab, *setpriv: str) -> subprocess.CompletedProcess[str]:
    """netagent's end, when it is started by its user and not by root."""
    for directory in (RUNTIME, LOGS):
        lab.run(["install", "-d", "-o", USER, "-g", USER, directory])
    lab.run(["rm", "-f", "/run/cloud-network-netagent/netagent.sock"])
    argv = ["setpriv", "--reuid", USER, "--regid", USER, *setpriv, "--", "timeout", "1", NETAGENT]
    return lab.run(argv, check=False)


@pytest.mark.parametrize(
    ("setpriv", "said"),
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
def test_with_other_privilege_it_refuses_to_start_and_says_how_to_start_it(
    lab: Lab, setpriv: list[str], said: str
) -> None:
    lab.stop("netagent")
    done = started_with(lab, *setpriv)
    assert done.returncode == 1
    assert said in done.stderr
    assert "AmbientCapabilities= and CapabilityBoundingSet=CAP_NET_ADMIN" in done.stderr


def test_with_just_what_it_wants_it_starts(lab: Lab) -> None:
    lab.stop("netagent")
    just = ["--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin"]
    done = started_with(lab, "--clear-groups", *just)
    assert done.returncode == 124  # timeout(1)'s: it was running until then
    assert done.stderr.splitlines()[0] == "cloud-network-netagent: ready"


def test_without_work_it_leaves_when_there_is_somebody_to_start_it_again(lab: Lab) -> None:
    lab.stop("netagent")
    socket_path = "/run/cloud-network-netagent/netagent.sock"
    argv = ["/usr/bin/python3", "-c", ACTIVATE, socket_path, sys.executable, *BECOME]
    process = lab.instance.popen(argv, stderr=subprocess.PIPE)
    on = ifindex(lab, "eth0")
    lab.wait_for(lambda: answers(lab))
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), confirm_within=3, request="open")["verdict"] == "applied"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)  # an open transaction is work
        assert wire.ask(request="confirm", id="open")["verdict"] == "confirmed"
    assert process.wait(10) == 0
    assert lab.path(socket_path).is_socket(), "the socket is systemd's and stays"
    assert "10.0.2.10/24" in lab.run(["ip", "-o", "address"]).stdout
    assert audit_lines(lab)[-1]["verdict"] == "confirmed"


@pytest.mark.parametrize("number", [0, 1, 3])
def test_without_both_sockets_it_does_not_start(number: int) -> None:
    code = (
        f"import os; os.environ |= {{'LISTEN_FDS': '{number}', 'LISTEN_PID': str(os.getpid())}}\n"
        "from cloud_network.netagent.server import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cloud-network-netagent: started without the two sockets of its socket unit")


def test_started_by_hand_it_stays(lab: Lab) -> None:
    lab.stop("netagent")
    lab.write_config(CONFIG)
    start(lab)
    with pytest.raises(AssertionError):
        lab.wait_for(lambda: not lab.daemons.running("netagent"), timeout=2)


def test_what_setpriv_leaves(lab: Lab) -> None:
    """Read by the process itself: there is no other way to see securebits, and they outlive execve(2)."""
    code = (
        "import os, prctl\n"
        "print(bin(prctl.get_securebits()), prctl.get_keepcaps(), len(set(os.getresuid())), os.getgroups())\n"
        "try: prctl.set_securebits(0)\nexcept OSError as error: print(error.errno)"
    )
    done = lab.run([*BECOME, "--", sys.executable, "-c", code])
    assert done.stdout == "0b101111 False 1 []\n1\n"


def test_what_starts_it_is_not_in_the_process_that_serves(lab: Lab) -> None:
    lab.stop("netagent")
    code = """
from cloud_network.netagent import start
tell = "import sys; from cloud_network.netagent.server import Server; Server.run = lambda *_: print(*sys.modules); "
start._SERVER = start._SERVER.replace("from cloud", tell + "from cloud", 1)
start.main()
"""
    modules = set(lab.run([sys.executable, "-c", code]).stdout.split())
    assert {"cloud_network.netagent.server", "cloud_network.netagent.sandbox"} < modules
    assert not modules & {"cloud_network.netagent.start", "prctl", "re", "site"}


def test_whatever_root_s_umask_everybody_may_look_into_its_directories(tmp_path: Path) -> None:
    """The socket lies in one of them, and the log in the other."""
    code = (
        "import os, sys; from cloud_network.netagent import start\n"
        "os.umask(0o077); start.own_directory(sys.argv[1], 65534, 65534)"
    )
    own = tmp_path / "log" / "own"
    subprocess.run([sys.executable, "-c", code, str(own)], check=True)
    assert [path.stat().st_mode & 0o777 for path in (own, own.parent)] == [0o755, 0o755]
    assert own.stat().st_uid == 65534
