"""What is left to netagent when it serves: read from the kernel, and tried from inside the same confinement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import Lab

INSIDE = """
import ctypes, os, socket, sys
from cloud_network.netagent import confine
home = sys.argv[1]
os.mkdir(home + "/mine"); os.mkdir(home + "/other")
secret = os.open(home + "/other/open", os.O_CREAT | os.O_RDWR)
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
confine.limit()
assert confine.restrict_files([home + "/mine"])
confine.restrict_calls()
def attempt(what):
    try:
        what()
        return "allowed"
    except (OSError, MemoryError, RuntimeError) as error:
        return type(error).__name__
tries = {
    "write its own": lambda: open(home + "/mine/file", "w").write("x"),
    "replace its own": lambda: os.replace(home + "/mine/file", home + "/mine/new"),
    "unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "read": lambda: open("/etc/hostname").read(),
    "write another": lambda: open(home + "/other/file", "w"),
    "inet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "fork": os.fork,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "ptrace": lambda: confine._check(ctypes.CDLL(None, use_errno=True).ptrace(0, 0, 0, 0), "ptrace"),
    "mprotect": lambda: confine._check(ctypes.CDLL(None, use_errno=True).mprotect(0, 4096, 7), "mprotect"),
    "chown": lambda: os.chown(home + "/mine/new", 0, 0),
    "unshare": lambda: confine._check(ctypes.CDLL(None, use_errno=True).unshare(0x10000000), "unshare"),
    "setns": lambda: confine._check(ctypes.CDLL(None, use_errno=True).setns(0, 0), "setns"),
    "memory": lambda: bytearray(1 << 30),
}
for name, what in tries.items():
    try:
        print(name + ":", attempt(what), flush=True)
    except SystemExit:
        print(name + ": refused", flush=True)
"""


def test_what_the_kernel_says_of_the_running_process(shared_lab: Lab) -> None:
    lines = Path(f"/proc/{shared_lab.daemons.pid('netagent')}/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    net_admin = f"{1 << 12:016x}"
    assert (status["CapPrm"], status["CapEff"], status["CapBnd"]) == (net_admin,) * 3
    assert (status["CapInh"], status["CapAmb"]) == ("0" * 16,) * 2
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
    assert len(set(status["Uid"].split())) == 1
    assert status["Uid"].split()[0] != "0"
    assert status["Threads"] == "1"


def test_what_can_and_cannot_be_done_from_inside(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INSIDE, str(tmp_path)], capture_output=True, text=True, check=False)
    said = dict(line.split(": ") for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    allowed = ("write its own", "replace its own", "unix socket", "netlink socket", "read")
    assert {name: said.pop(name) for name in allowed} == dict.fromkeys(allowed, "allowed")
    assert said.pop("memory") == "MemoryError"
    assert len(said) == 10
    assert set(said.values()) <= {"PermissionError", "refused", "BlockingIOError"}, said


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_fits_the_kernel_s_bounds(machine: str) -> None:
    from cloud_network.netagent import confine

    assert 0 < len(confine.program(machine)) // 8 < 256  # jumps are of 8 bits
