"""What netagent gives up before it reads the first byte from anybody, and what is left if somebody takes it over.

Whoever started it (systemd, or `start` for a person) has made it its user with CAP_NET_ADMIN. It goes on only when the
kernel says that this is all it has, and then binds itself further: no new privilege, bounds, Landlock, seccomp.

All by ctypes: libseccomp's Python bindings cost 22 ms of start-up, the library itself less than one; python-prctl knows
no ambient set, and nothing knows Landlock. Sources: linux/prctl.h, linux/capability.h, linux/landlock.h, and seccomp.h.
"""

import ctypes
import os
import pwd
from resource import RLIMIT_AS, RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_NPROC, setrlimit
from struct import Struct

from .old_protocol import raise_if

USER = "cloud-network-netagent"
CALLS = {
    "its files": "read write lseek openat close fstat newfstatat getdents64 readlink readlinkat ftruncate fchmod",
    "a new file in the place of an old one": "rename renameat renameat2",
    "whether a file is a terminal, and O_NONBLOCK": "ioctl fcntl",
    "the loop": "poll ppoll select pselect6 clock_gettime clock_nanosleep restart_syscall",
    "its sockets": "accept4 getsockopt setsockopt getsockname recvfrom recvmsg sendto sendmsg",
    "memory": "brk mmap munmap mremap madvise futex getrandom",
    "signals, and the end": "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack getpid gettid exit exit_group",
}
"""What the loop needs, and for what: no new socket, no connection to anybody, no process, no other user."""
_NET_ADMIN = 1 << 12  # CAP_NET_ADMIN
# capset(2): version 3 and this process; effective, permitted and inheritable of the lower 32, and of the others.
_CAPABILITIES = Struct("=Ii").pack(0x20080522, 0), Struct("=6I").pack(_NET_ADMIN, _NET_ADMIN, 0, 0, 0, 0)
_PRCTL = {"ambient capabilities": (47, 4), "no_new_privs": (38, 1), "dumpable": (4, 0)}  # option, its first argument
_LIMITS = {RLIMIT_AS: 256 << 20, RLIMIT_NOFILE: 64, RLIMIT_NPROC: 0, RLIMIT_CORE: 0}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_FS_EXECUTE, _FS_WRITE = 1 << 0, 1 << 1 | 0x1FF0  # WRITE_FILE, REMOVE_*, MAKE_*; ABI 2 adds REFER, 3 TRUNCATE
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(EPERM)
_LIBC = ctypes.CDLL(None, use_errno=True)


def say(text: str) -> None:
    """To standard error, which is the journal under systemd."""
    os.write(2, f"{USER}: {text}\n".encode())


def enter(writable: list[str]) -> None:
    """Go on with CAP_NET_ADMIN and no way to more; write below `writable` and nowhere else."""
    limit()
    _verify(*pwd.getpwnam(USER)[2:4])
    restrict_files(writable)
    restrict_calls()


def limit() -> None:
    """No capability but the one, and bounds: what a client sends can exhaust netagent at most, never the host."""
    _LIBC.capset(*_CAPABILITIES)  # refused if there is less, or by systemd's filter: _verify says what it comes to
    for what, (option, argument) in _PRCTL.items():
        _check(_LIBC.prctl(option, argument, 0, 0, 0), what)
    for bound, most in _LIMITS.items():
        setrlimit(bound, (most, most))
    os.umask(0o077)


def _verify(uid: int, gid: int) -> None:
    """SystemExit unless the kernel says that all is given up; it names what is too much and how to start without."""
    with open("/proc/thread-self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    only, none = f"{_NET_ADMIN:016x}", f"{0:016x}"
    # Inheritable: systemd makes ambient what is, and leaves no capset to take it back. Without an ambient set, and with
    # no_new_privs, it is worth nothing to a program that is executed (capabilities(7)).
    wanted = {"CapPrm": {only}, "CapEff": {only}, "CapBnd": {only}, "CapAmb": {none}, "CapInh": {only, none}}
    wanted |= {"Uid": {str(uid)}, "Gid": {str(gid)}, "Groups": {str(gid)}}
    how = f"Start it as root; or as {USER} with AmbientCapabilities= and CapabilityBoundingSet=CAP_NET_ADMIN."
    for key, accepted in wanted.items():
        has, most = status[key].split(), ", ".join(accepted)
        raise_if({*has} - accepted, SystemExit, "{}: {} is {}, not {}. {}", USER, key, " ".join(has), most, how)


def restrict_files(writable: list[str]) -> None:
    """Landlock: write and make files below `writable` and nowhere else, execute nothing."""
    abi = _LIBC.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        say("this kernel has no Landlock; systemd's ProtectSystem= does part of it")
        return
    writes = _FS_WRITE | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0)
    handled = Struct("=Q").pack(writes | _FS_EXECUTE)
    ruleset = _LIBC.syscall(_LANDLOCK_CREATE, handled, len(handled), 0)
    for path in writable:
        directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
        below = Struct("=Qi").pack(writes, directory)  # struct landlock_path_beneath_attr
        _check(_LIBC.syscall(_LANDLOCK_ADD, ruleset, 1, below, 0), "landlock_add_rule")
        os.close(directory)
    _check(_LIBC.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def restrict_calls() -> None:
    """seccomp: what is not in CALLS answers EPERM; a call of another architecture, or of x32, kills."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(_EPERM))
    for name in " ".join(CALLS.values()).split():
        number = library.seccomp_syscall_resolve_name(name.encode())  # what this architecture has not is passed over
        _check(library.seccomp_rule_add_array(rules, _ALLOW, number, 0, None), f"seccomp: {name}")
    _check(library.seccomp_load(rules), "seccomp_load")


def _check(result: int, what: str) -> None:
    """SystemExit for a call that failed: libc says -1 and keeps the errno, libseccomp says it, negative."""
    why = os.strerror(ctypes.get_errno() if result == -1 else -result)
    raise_if(result < 0, SystemExit, "{}: {}: {}; will not start without it", USER, what, why)
