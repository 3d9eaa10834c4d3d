"""The privileges of the serving netagent: read from the kernel, and tested inside the same sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import Lab

INSIDE = """
import ctypes, errno, fcntl, mmap, os, pathlib, socket, sys, termios
from cloud_network.netagent import sandbox
home = sys.argv[1]
os.mkdir(home + "/mine"); os.mkdir(home + "/other")
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid of i386); int 0x80; ret
there = ctypes.addressof(ctypes.c_char.from_buffer(page))
libc = ctypes.CDLL(None, use_errno=True)
opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
os.setsid()
_, name = os.openpty()
terminal = os.open(os.ttyname(name), os.O_RDWR)  # the controlling terminal of a process without one
sandbox.limit()
sandbox.restrict_files([pathlib.Path(home + "/mine")])
sandbox.restrict_calls()
def call(name, *arguments):
    def attempt():
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)
    return attempt
tries = {
    "write its own": lambda: open(home + "/mine/file", "w").write("x"),
    "replace its own": lambda: os.replace(home + "/mine/file", home + "/mine/new"),
    "unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "read": lambda: open("/etc/hostname").read(),
    "timeout": lambda: opened.settimeout(1),
    "type into the terminal": lambda: fcntl.ioctl(terminal, termios.TIOCSTI, b"x"),
    "write another": lambda: open(home + "/other/file", "w"),
    "inet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "connect": lambda: opened.connect("/run/nobody"),
    "fork": os.fork,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "ptrace": call("ptrace", 0, 0, 0, 0),
    "mprotect": call("mprotect", there, 4096, 7),
    "chown": lambda: os.chown(home + "/mine/new", os.getuid(), os.getgid()),
    "unshare": call("unshare", 0),
    "setns": call("setns", 0, 0),
    "no such call": call("syscall", 4000),
    "memory": lambda: bytearray(1 << 30),
}
for name, what in tries.items():
    try:
        what()
        print(name + ": allowed", flush=True)
    except OSError as error:
        print(name + ":", errno.errorcode[error.errno], flush=True)
    except MemoryError:
        print(name + ": MemoryError", flush=True)
if sys.argv[2:] == ["x32"]:
    libc.syscall(0x40000000 | 39)
if sys.argv[2:] == ["i386"]:
    ctypes.CFUNCTYPE(ctypes.c_int)(there)()
print("the end: allowed")
"""


def test_process_state_in_the_kernel(shared_lab: Lab) -> None:
    lines = Path(f"/proc/{shared_lab.daemons.pid('netagent')}/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    net_admin = f"{1 << 12:016x}"
    assert (status["CapPrm"], status["CapEff"], status["CapBnd"]) == (net_admin,) * 3
    assert (status["CapInh"], status["CapAmb"]) == ("0" * 16,) * 2
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
    assert len(set(status["Uid"].split())) == 1
    assert status["Uid"].split()[0] != "0"
    assert status["Threads"] == "1"


def inside(home: Path, *also: str) -> tuple[int, dict[str, str]]:
    done = subprocess.run([sys.executable, "-c", INSIDE, str(home), *also], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, dict(line.split(": ") for line in done.stdout.splitlines())


def test_actions_inside_the_sandbox(tmp_path: Path) -> None:
    status, results = inside(tmp_path)
    assert status == 0
    allowed = ("write its own", "replace its own", "read", "timeout", "the end")
    assert {name: results.pop(name) for name in allowed} == dict.fromkeys(allowed, "allowed")
    assert results.pop("memory") == "MemoryError"
    assert results.pop("write another") == "EACCES"  # refused by Landlock
    assert len(results) == 14
    assert set(results.values()) == {"EPERM"}, (
        results
    )  # seccomp's error; without the filter they succeed or fail with another


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86_64 has two other sets of numbers")
@pytest.mark.parametrize("numbers", ["i386", "x32"])
def test_a_call_by_other_numbers_is_the_end(tmp_path: Path, numbers: str) -> None:
    status, results = inside(tmp_path, numbers)
    assert status == -signal.SIGSYS
    assert "the end" not in results
