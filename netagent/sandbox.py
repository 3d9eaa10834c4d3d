"""Confinement before the first byte from a client is read: capabilities, limits, files and system calls.

netagent starts only if /proc shows that CAP_NET_ADMIN is its only capability. Sources: capabilities(7), prctl(2),
landlock(7), linux/landlock.h, seccomp(2) and seccomp.h. Three interfaces are called through ctypes: the ambient set,
which python-prctl does not support; libseccomp, whose Python bindings are unmaintained; and Landlock, which has none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import termios
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from resource import RLIMIT_AS, RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_NPROC, setrlimit

import prctl

NAME = "cloud-network-netagent"
ALLOWED_CALLS: Mapping[str, str] = {
    "its files": "read write lseek openat close fstat newfstatat getdents64 readlink readlinkat ftruncate fchmod",
    "rename: rotation, and replacing the ledger": "rename renameat renameat2",
    "O_NONBLOCK": "fcntl",
    "the loop": "poll ppoll select pselect6 clock_gettime clock_nanosleep restart_syscall",
    "the end of the client's process": "pidfd_open",
    "a limit on closing what a client passes": "setitimer",
    "its sockets": "accept4 getsockopt setsockopt getsockname recvfrom recvmsg sendto sendmsg",
    "memory": "brk mmap munmap mremap madvise futex getrandom",
    "signals, and the end": "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack getpid gettid exit exit_group",
}
"""Reason -> system calls. netagent can open no socket, connect to nothing, start no process and not change its user."""
ALLOWED_IOCTLS: Mapping[str, int] = {
    "open(): is the file a terminal?": termios.TCGETS,
    "a socket's timeout": termios.FIONBIO,
    "a descriptor is not inherited": termios.FIOCLEX,
}
"""Reason -> request of ioctl. In a terminal, TIOCSTI would type for the user who started netagent there."""
LIMITS = {RLIMIT_AS: 512 << 20, RLIMIT_NOFILE: 64, RLIMIT_NPROC: 0, RLIMIT_CORE: 0}
CAP_NET_ADMIN_BIT = 1 << 12

PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on every architecture
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
LANDLOCK_ACCESS_FS_EXECUTE, LANDLOCK_ACCESS_FS_WRITE_FILE = 1 << 0, 1 << 1
LANDLOCK_ACCESS_FS_REMOVE_AND_MAKE = 0x1FF0  # REMOVE_DIR, REMOVE_FILE, MAKE_CHAR ... MAKE_SYM
LANDLOCK_ACCESS_FS_REFER, LANDLOCK_ACCESS_FS_TRUNCATE = 1 << 13, 1 << 14  # ABI 2, ABI 3
SCMP_ACT_ALLOW, SCMP_ACT_ERRNO_EPERM, SCMP_CMP_MASKED_EQ = 0x7FFF0000, 0x00050001, 7


class SandboxError(Exception):
    """A privilege could not be dropped, or netagent has one that it must not have. It must not start."""


class LandlockRulesetAttr(ctypes.Structure):
    """struct landlock_ruleset_attr of ABI 1."""

    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class LandlockPathBeneathAttr(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class ScmpArgCmp(ctypes.Structure):
    """struct scmp_arg_cmp: a comparison with the argument of a system call at the position `arg`."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Account:
    """Uid and gid of a system user."""

    uid: int
    gid: int


def log(text: str) -> None:
    """Write a line to standard error, which is the journal under systemd. Never raises: journald may have ended."""
    with contextlib.suppress(OSError):
        os.write(2, f"{NAME}: {text}\n".encode(errors="replace"))


def become(account: Account) -> None:
    """Change from root to netagent's user and keep only CAP_NET_ADMIN. Raises OSError."""
    prctl.set_keepcaps(True)
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)  # clears the effective set; the permitted one is kept
    prctl.cap_effective.net_admin = prctl.cap_effective.setpcap = True
    prctl.capbset.limit(prctl.CAP_NET_ADMIN)
    prctl.set_keepcaps(False)
    prctl.securebits.noroot = prctl.securebits.noroot_locked = True
    prctl.securebits.no_setuid_fixup = prctl.securebits.no_setuid_fixup_locked = True
    prctl.securebits.keep_caps_locked = True
    prctl.cap_effective.limit(prctl.CAP_NET_ADMIN)
    prctl.cap_permitted.limit(prctl.CAP_NET_ADMIN)
    prctl.cap_inheritable.limit()


def enter(account: Account, writable: Iterable[Path]) -> None:
    """Drop all other privileges; afterwards only files below `writable` can be written. Raises SandboxError."""
    limit()
    verify(account, Path("/proc/thread-self/status").read_text())
    restrict_files(writable)
    restrict_calls()


def limit() -> None:
    """Set no_new_privs, clear the ambient set, and bound memory, files and processes."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    libc.prctl.restype = ctypes.c_int
    if libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0:
        raise SandboxError(f"clear ambient capabilities: {os.strerror(ctypes.get_errno())}")
    prctl.set_no_new_privs(True)
    prctl.set_dumpable(False)
    for bound, most in LIMITS.items():
        setrlimit(bound, (most, most))
    os.umask(0o077)


def verify(account: Account, status: str) -> None:
    """Raise SandboxError unless /proc/PID/status (`status`) shows only this user, this group and CAP_NET_ADMIN."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    only, none = f"{CAP_NET_ADMIN_BIT:016x}", f"{0:016x}"
    # systemd makes ambient capabilities inheritable and its filter forbids capset(2). Without an ambient set and with
    # no_new_privs the inheritable set gives nothing to a program that is executed (capabilities(7)).
    accepted = {"CapPrm": {only}, "CapEff": {only}, "CapBnd": {only}, "CapAmb": {none}, "CapInh": {only, none}}
    accepted |= {"Uid": {str(account.uid)}, "Gid": {str(account.gid)}, "Groups": {str(account.gid)}}
    accepted |= {"NoNewPrivs": {"1"}}
    for key, values in accepted.items():
        found = fields.get(key, "").split()
        if not set(found) <= values or (not found and key != "Groups"):
            raise SandboxError(
                f"{key} is {' '.join(found)}, not {' or '.join(sorted(values))}. "
                f"Start it as root; or as {NAME} with AmbientCapabilities= and CapabilityBoundingSet=CAP_NET_ADMIN"
            )


def restrict_files(writable: Iterable[Path]) -> None:
    """Install the Landlock rules: write and make files only below `writable`; execute nothing. Raises SandboxError."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = _syscall(libc, SYS_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    if abi < 1:
        log("this kernel has no Landlock; systemd's ProtectSystem= does a part of it")
        return
    writes = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_AND_MAKE
    writes |= LANDLOCK_ACCESS_FS_REFER if abi >= 2 else 0
    writes |= LANDLOCK_ACCESS_FS_TRUNCATE if abi >= 3 else 0
    attr = LandlockRulesetAttr(writes | LANDLOCK_ACCESS_FS_EXECUTE)
    ruleset = _syscall(libc, SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(attr), ctypes.sizeof(attr), 0)
    _require(ruleset, "landlock_create_ruleset")
    for path in writable:
        directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
        below = LandlockPathBeneathAttr(writes, directory)
        added = _syscall(libc, SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(below), 0)
        _require(added, "landlock_add_rule")
        os.close(directory)
    _require(_syscall(libc, SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _syscall(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    """Call syscall(2) with each argument in a full register."""
    call = libc["syscall"]  # a new function object: its types apply only to this call
    as_pointer = (ctypes.c_void_p if not isinstance(each, int) else ctypes.c_long for each in arguments)
    call.argtypes = (ctypes.c_long, *as_pointer)
    call.restype = ctypes.c_long
    return int(call(number, *arguments))


def _require(result: int, what: str) -> None:
    if result < 0:
        raise SandboxError(f"{what}: {os.strerror(ctypes.get_errno())}; netagent does not start without it")


def restrict_calls() -> None:
    """Install the seccomp filter: calls that are not allowed fail with EPERM; those of another architecture kill."""
    library = _libseccomp()
    context = ctypes.c_void_p(library.seccomp_init(SCMP_ACT_ERRNO_EPERM))

    def allow(name: str, *conditions: ScmpArgCmp) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())  # negative if this architecture has no such call
        array = (ScmpArgCmp * len(conditions))(*conditions)
        result = library.seccomp_rule_add_array(context, SCMP_ACT_ALLOW, number, len(conditions), array)
        if result < 0:
            raise SandboxError(f"seccomp_rule_add {name}: {os.strerror(-result)}")

    for name in " ".join(ALLOWED_CALLS.values()).split():
        allow(name)
    for request in ALLOWED_IOCTLS.values():  # the kernel ignores the upper half of the argument
        allow("ioctl", ScmpArgCmp(1, SCMP_CMP_MASKED_EQ, 0xFFFFFFFF, request))
    result = library.seccomp_load(context)
    if result < 0:
        raise SandboxError(f"seccomp_load: {os.strerror(-result)}; netagent does not start without it")


def _libseccomp() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_syscall_resolve_name.restype = ctypes.c_int
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(ScmpArgCmp),
    )
    library.seccomp_rule_add_array.restype = ctypes.c_int
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    library.seccomp_load.restype = ctypes.c_int
    return library
