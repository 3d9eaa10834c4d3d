"""Holds a lab's namespaces. Nothing of a lab exists outside this process's tree.

The lab starts it as `unshare --pid --fork --kill-child --mount python holder.py`, so it is process 1 of a PID
namespace: when it ends for any reason, the kernel kills everything inside, and the anonymous network and mount
namespaces end with their last process. It ends when its standard input does, which is a pipe from the lab. Therefore
`kill -9` of a test runner, ^C and an ordinary exit are the same case (and PR_SET_PDEATHSIG, which refers to the
*thread* that forked, is only used between the two processes of unshare).

Each line of JSON on stdin makes a child with its own namespaces; the answer is its pid as the lab sees it. The
instance also gets a file system: the host's, with private mounts.

Standard library only, one file, run by path with -I, because the lab waits for its start.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# <linux/sched.h>, <sys/mount.h>, <sys/prctl.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
PR_SET_NAME = 15

LAB_RUN = Path("/run/lab")
"""Sockets, logs, and the covered parts of the host's tree. The same tmpfs in every namespace."""

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "unshare")


def mount(source: str, target: Path, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, str(target), kind, data)]
    check(libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]), f"mount {kind or source} on {target}")


def tmpfs(target: Path, mode: int = 0o755) -> None:
    mount("tmpfs", target, "tmpfs", data=f"mode={mode:o}")


def bind(source: Path, target: Path) -> None:
    """Bind with everything mounted below: a user namespace must not uncover what another one covered."""
    mount(str(source), target, flags=MS_BIND | MS_REC)


def closed_ancestor(path: Path) -> Path | None:
    """Return the topmost directory above `path` that other users cannot enter, such as /root."""
    return next((p for p in reversed(path.parents) if not p.stat().st_mode & 0o001), None)


def expose(paths: Sequence[Path], keep: Path = LAB_RUN / "exposed") -> None:
    """Let unprivileged users reach `paths` (checkout, interpreter), and nothing else in the same directories."""
    for path in paths:
        if path.stat().st_mode & 0o005 != 0o005:
            raise PermissionError(f"{path} is closed to other users, so the daemons cannot run. Run: chmod o+rx {path}")
    hidden = {path: top for path in paths if (top := closed_ancestor(path))}
    kept = {}
    for number, path in enumerate(hidden):
        kept[path] = keep / str(number)
        kept[path].mkdir(parents=True)
        bind(path, kept[path])
    for top in set(hidden.values()):
        tmpfs(top)
    for path, where in kept.items():
        path.mkdir(parents=True, exist_ok=True)
        bind(where, path)


def expose_here(path: Path) -> None:
    """Expose `path` to this process and its children, in a separate mount namespace; do nothing if it is open."""
    if closed_ancestor(path):
        unshare(CLONE_NEWNS)
        mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
        tmpfs(Path("/mnt"))
        expose([path], Path("/mnt"))
        os.chdir(path)


def replace_etc(users: Mapping[str, int], files: Mapping[str, str]) -> None:
    """Make a writable /etc of links into the host's, with accounts of the lab: the host does not change."""
    etc, host = Path("/etc"), LAB_RUN / "etc"
    host.mkdir()
    bind(etc, host)
    accounts = {
        "passwd": "{name}:x:{id}:{id}:cloud-network:/nonexistent:/usr/sbin/nologin\n",
        "group": "{name}:x:{id}:\n",
    }
    for file, line in accounts.items():
        kept = [
            entry
            for entry in (host / file).read_text().splitlines(keepends=True)
            if entry.split(":")[0] not in users and entry.split(":")[2] not in map(str, users.values())
        ]
        accounts[file] = "".join([*kept, *(line.format(name=name, id=uid) for name, uid in users.items())])
    tmpfs(etc)
    written = {**files, **accounts}
    for entry in host.iterdir():
        if entry.name == "cloud-network" or entry.name in written:
            continue
        (etc / entry.name).symlink_to(entry.readlink() if entry.is_symlink() else entry)
    for name, text in written.items():
        (etc / name).write_text(text)
    (etc / "cloud-network").mkdir()


def replace_sys(dmi: Mapping[str, Sequence[Any]]) -> None:
    """Mount sysfs of the network namespace, with the provider's firmware tables in /sys/class/dmi/id.

    Modes are those of drivers/firmware/dmi-id.c: only root can read serial numbers and the UUID.
    """
    sys_class = Path("/sys/class")
    mount("sysfs", Path("/sys"), "sysfs")
    kernel = LAB_RUN / "sys-class"
    kernel.mkdir()
    bind(sys_class, kernel)
    tmpfs(sys_class)
    for entry in kernel.iterdir():
        if entry.name != "dmi":
            (sys_class / entry.name).mkdir()
            bind(entry, sys_class / entry.name)
    table = sys_class / "dmi/id"
    table.mkdir(parents=True)
    for name, (text, mode) in dmi.items():
        (table / name).write_text(f"{text}\n")
        (table / name).chmod(mode)


def build_file_system(namespace: Mapping[str, Any]) -> None:
    """Build the instance's file system. The order matters: what is covered must be bound elsewhere first."""
    expose([Path(path) for path in namespace["expose"]])
    replace_etc(namespace["users"], namespace["etc"])
    tmpfs(Path("/var/log"))
    replace_sys(namespace["dmi"])
    mount("proc", Path("/proc"), "proc")


def hold(namespace: Mapping[str, Any], reply: int) -> None:
    """Hold the namespaces until the end."""
    pid = Path("/proc/self").readlink()  # /proc is still the host's, and so is this number
    libc.prctl(PR_SET_NAME, f"lab:{namespace['name']}".encode()[:15], 0, 0, 0)
    has_file_system = "etc" in namespace
    unshare(CLONE_NEWNET | CLONE_NEWUTS | (CLONE_NEWNS if has_file_system else 0))
    socket.sethostname(namespace.get("hostname", namespace["name"]))
    for name, value in namespace["sysctl"].items():
        Path("/proc/sys", *name.split(".")).write_text(value)
    if has_file_system:
        build_file_system(namespace)
    answer(reply, pid=int(str(pid)))
    os.dup2(os.open("/dev/null", os.O_RDWR), reply)
    while True:
        signal.pause()


def answer(reply: int, **what: object) -> None:
    os.write(reply, json.dumps(what).encode() + b"\n")


def main(requests: Iterable[str], reply: int) -> None:
    os.umask(0o022)
    tmpfs(Path("/run"))
    LAB_RUN.mkdir()
    LAB_RUN.chmod(0o711)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # process 1 must reap; the kernel does it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the lab; this process follows
    for line in requests:
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(0)
        try:
            hold(json.loads(line), reply)
        except Exception as error:
            answer(reply, error=f"{type(error).__name__}: {error}")
        os._exit(1)


if __name__ == "__main__":
    main(sys.stdin, 1)
