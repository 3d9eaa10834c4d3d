"""A process with the uid of another user that tries to attack netagent. Runs in the lab's instance as a separate
program.

Prints one JSON object: each attempt with `allowed` or the errno's name. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNTIME, LOGS = "/run/cloud-network-netagent", "/var/log/cloud-network"
SOCKET, LEDGER, AUDIT = f"{RUNTIME}/netagent.sock", f"{RUNTIME}/ledger", f"{LOGS}/audit.log"
LIBC = ctypes.CDLL(None, use_errno=True)
# asm/unistd_64.h and asm-generic/unistd.h
CALLS = {
    "x86_64": {
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "perf_event_open": 298,
        "move_pages": 279,
    },
    "aarch64": {
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "perf_event_open": 241,
        "move_pages": 239,
    },
}[os.uname().machine]
CALLS |= {"pidfd_send_signal": 424, "pidfd_getfd": 438, "process_madvise": 440}
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
MS_BIND, MADV_PAGEOUT = 0x1000, 21
INSIDE = ("read", "list", "write mem", "write fd", "ptrace", "process_", "pidfd_getfd", "kcmp")
Tries = dict[str, tuple[Any, ...]]  # function and arguments of each attempt


def netagent() -> int:
    """Return netagent's pid: every user can read the command lines in /proc."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # the process has exited
        if words[1:4] == [b"-I", b"-m", b"cloud_network.netagent"]:
            return int(path.parent.name)
    raise SystemExit("netagent does not run")


def call(name: str, *arguments: object) -> None:
    """Call a system call with arguments of register size: the upper half of a smaller one on the stack is undefined."""
    check(LIBC.syscall(CALLS[name], *(ctypes.c_long(each) if type(each) is int else each for each in arguments)))


def check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def ptrace(request: int, pid: int) -> None:
    check(LIBC.ptrace(request, pid, 0, 0))


def vector() -> ctypes.Array[ctypes.c_char]:
    """Return a struct iovec of 16 bytes that refers to itself."""
    vector = ctypes.create_string_buffer(16)
    struct.pack_into("@PN", vector, 0, ctypes.addressof(vector), 16)
    return vector


def use(path: str, flags: int = os.O_RDONLY, data: bytes = b"") -> None:
    """Open a file and read one byte, or write `data`."""
    descriptor = os.open(path, flags)
    try:
        os.write(descriptor, data) if data else os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def enter(namespace: str) -> None:
    check(LIBC.setns(os.open(namespace, os.O_RDONLY), 0))


def cover(path: str, source: str) -> None:
    check(LIBC.mount(source.encode(), path.encode(), None, MS_BIND, None))


def bind(path: str) -> None:
    socket.socket(socket.AF_UNIX).bind(path)


def lease(path: str) -> None:
    fcntl.fcntl(os.open(path, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)


def of_the_process(pid: int) -> Tries:
    """Return attempts with signals, ptrace, memory, limits and scheduling."""
    proc, here, descriptor = f"/proc/{pid}", vector(), os.pidfd_open(pid)
    tries: Tries = {f"kill {number}": (os.kill, pid, number) for number in range(65)}
    for name in ("mem", "environ", "maps", "smaps", "auxv", "stack", "syscall", "io", "pagemap", "personality", "fd/0"):
        tries[f"read {name}"] = (use, f"{proc}/{name}")
    for name in ("mem", "oom_score_adj", "clear_refs", "coredump_filter", "timerslack_ns", "comm", "uid_map", "fd/2"):
        tries[f"write {name}"] = (use, f"{proc}/{name}", os.O_WRONLY, b"0")
    for name in ("cwd", "root", "exe", "ns/net", "ns/user", "fd/0"):
        tries[f"readlink {name}"] = (os.readlink, f"{proc}/{name}")
    return tries | {
        "list fd": (os.listdir, f"{proc}/fd"),
        "list map_files": (os.listdir, f"{proc}/map_files"),
        "ptrace attach": (ptrace, PTRACE_ATTACH, pid),
        "ptrace seize": (ptrace, PTRACE_SEIZE, pid),
        "process_vm_readv": (call, "process_vm_readv", pid, here, 1, here, 1, 0),
        "process_vm_writev": (call, "process_vm_writev", pid, here, 1, here, 1, 0),
        "pidfd_send_signal": (call, "pidfd_send_signal", descriptor, 9, None, 0),
        "pidfd_getfd": (call, "pidfd_getfd", descriptor, 4, 0),
        "process_madvise": (call, "process_madvise", descriptor, here, 1, MADV_PAGEOUT, 0),
        "kcmp": (call, "kcmp", pid, os.getpid(), 0, 0, 0),
        "move_pages": (call, "move_pages", pid, 0, None, None, None, 0),
        "prlimit, read": (resource.prlimit, pid, resource.RLIMIT_NOFILE),
        "prlimit, set": (resource.prlimit, pid, resource.RLIMIT_NOFILE, (0, 0)),
        "renice": (os.setpriority, os.PRIO_PROCESS, pid, 19),
        "affinity": (os.sched_setaffinity, pid, {0}),
        "scheduler": (os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0)),
        "setpgid": (os.setpgid, pid, pid),
        "setns": (enter, f"{proc}/ns/net"),
    }


def of_the_files() -> Tries:
    """Return attempts on the audit log, the ledger, the socket and their directories."""
    tries: Tries = {}
    for path in (AUDIT, f"{AUDIT}.1", LEDGER, SOCKET):
        if path != SOCKET:
            for flag in ("O_WRONLY", "O_RDWR", "O_APPEND", "O_TRUNC", "O_CREAT"):
                tries[f"open {path} {flag}"] = (os.open, path, os.O_WRONLY | getattr(os, flag))
            tries[f"truncate {path}"] = (os.truncate, path, 0)
        tries |= {
            f"rename {path}": (os.rename, path, f"{path}.gone"),
            f"replace {path}": (os.rename, mine(path), path),
            f"unlink {path}": (os.unlink, path),
            f"chmod {path}": (os.chmod, path, 0o777),
            f"chown {path}": (os.chown, path, os.getuid(), -1),
            f"utime {path}": (os.utime, path, (0, 0)),
            f"link {path}": (os.link, path, f"{mine(path)}.link"),
            f"xattr {path}": (os.setxattr, path, "user.x", b"x"),
            f"mount over {path}": (cover, path, mine(path)),
        }
    for directory in (RUNTIME, LOGS):
        tries |= {
            f"create in {directory}": (os.open, f"{directory}/x", os.O_CREAT),
            f"symlink in {directory}": (os.symlink, "/etc", f"{directory}/x"),
            f"ledger.new in {directory}": (os.mkfifo, f"{directory}/ledger.new"),
            f"rename {directory}": (os.rename, directory, f"{directory}.gone"),
            f"chmod {directory}": (os.chmod, directory, 0o777),
        }
    return tries | {
        "read ledger": (os.open, LEDGER, os.O_RDONLY),
        "bind over the socket": (bind, SOCKET),
        "lease of the log": (lease, AUDIT),
    }


def mine(path: str) -> str:
    """Return a new file of this user on the same file system as `path`; the test has created its directory."""
    own = f"/{'/'.join(path.split('/')[1:-2])}/attacker/{os.getpid()}"
    os.close(os.open(own, os.O_CREAT))
    return own


def connect() -> str:
    """Return `allowed` if netagent answers a status request, with or without a claim to be root's process 1."""
    results = ""
    for claim in ((), (os.getpid(), os.getuid(), os.getgid()), (1, 0, 0)):
        if (answered := ask(claim)) == "allowed":
            return answered
        results = results or answered
    return results


def ask(claim: tuple[int, ...]) -> str:
    """Return the result of a status request after a first byte with these SCM_CREDENTIALS, or without one."""
    body = b"\x81\xa7request\xa6status"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(SOCKET)
            if claim:
                client.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("=iII", *claim))])
            client.sendall(struct.pack(">I", len(body)) + body)
            return "allowed" if client.recv(100) else "disconnected"
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def outcome(what: Callable[..., object], *arguments: Any) -> str:
    try:
        what(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except ValueError as error:  # resource.prlimit's EPERM
        return str(error)
    return "allowed"


def main() -> None:
    results = {"uid": str(os.getuid()), "connect": connect()}
    if "connect" not in sys.argv[1:]:
        tries = of_the_process(netagent())
        if "inside" in sys.argv[1:]:  # only attempts to read or change the process itself
            tries = {name: what for name, what in tries.items() if name.startswith(INSIDE)}
        else:
            tries |= of_the_files()
        for name, what in tries.items():
            results[name] = outcome(*what)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
