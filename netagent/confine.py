"""seccomp, Landlock and resource limits: what is left to netagent if somebody takes it over.

Built by hand with ctypes: libseccomp's bindings cost 22 ms of start-up and compile, at every start, what is known
beforehand; python-prctl has no filter mode and nothing has Landlock. Sources: linux/seccomp.h, linux/filter.h,
linux/landlock.h, linux/audit.h; the system calls' numbers are those of asm/unistd_64.h and asm-generic/unistd.h.
"""

import ctypes
import os
from resource import RLIMIT_AS, RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_NPROC, setrlimit
from struct import Struct

# (x86_64, aarch64) numbers of what the loop needs, and for what; -1 where there is none.
ALLOWED = {
    # its files
    "read": (0, 63), "write": (1, 64), "lseek": (8, 62), "openat": (257, 56), "close": (3, 57), "fstat": (5, 80),
    "newfstatat": (262, 79), "getdents64": (217, 61), "readlink": (89, -1), "readlinkat": (267, 78),
    "ftruncate": (77, 46), "fchmod": (91, 52), "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276),
    # O_NONBLOCK, and whether a file is a terminal
    "ioctl": (16, 29), "fcntl": (72, 25),
    # the loop and its sockets
    "poll": (7, -1), "ppoll": (271, 73), "select": (23, -1), "pselect6": (270, 72), "pipe2": (293, 59),
    "accept4": (288, 242), "getsockopt": (55, 209), "setsockopt": (54, 208), "getsockname": (51, 204),
    "connect": (42, 203), "bind": (49, 200), "recvfrom": (45, 207), "recvmsg": (47, 212), "sendto": (44, 206),
    "sendmsg": (46, 211),
    # memory, time, signals, the end
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "futex": (202, 98), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "getrandom": (318, 278),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "restart_syscall": (219, 128),
    "sigaltstack": (131, 132), "getpid": (39, 172), "gettid": (186, 178), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_SOCKET = (41, 198)  # only of the families AF_UNIX and AF_NETLINK
_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # index above, AUDIT_ARCH_*
_X32 = 0x40000000  # __X32_SYSCALL_BIT: x86_64's second set of numbers
_BPF = Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
_LOAD, _EQUAL, _NOT_BELOW, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_KILL, _EPERM, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_CAP_AMBIENT, _CLEAR_ALL = 22, 2, 47, 4  # linux/prctl.h
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_FS_EXECUTE, _FS_WRITE = 1 << 0, 1 << 1 | 0x1FF0  # WRITE_FILE, REMOVE_*, MAKE_*; ABI 2 adds REFER, 3 TRUNCATE
_LIBC = ctypes.CDLL(None, use_errno=True)


def limit() -> None:
    """No ambient capability, and bounds: what a client sends can exhaust netagent at most, never the host."""
    _check(_LIBC.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0), "clearing the ambient capabilities")
    for what, most in {RLIMIT_AS: 256 << 20, RLIMIT_NOFILE: 64, RLIMIT_NPROC: 0, RLIMIT_CORE: 0}.items():
        setrlimit(what, (most, most))


def restrict_files(writable: list[str]) -> bool:
    """Landlock: write and make files below `writable` and nowhere else, execute nothing. False where there is none."""
    abi = _LIBC.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        return False
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
    return True


def program(machine: str) -> bytes:
    """The seccomp filter as struct sock_filter[]: a foreign architecture kills, what is not allowed is EPERM."""
    column, arch = _ARCHES[machine]
    numbers = [both[column] for both in ALLOWED.values() if both[column] >= 0]
    head = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL)]  # seccomp_data.arch
    head += [(_LOAD, 0, 0, 0), (_NOT_BELOW, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]  # .nr
    calls = [(_EQUAL, len(numbers) - at - 1 + 5, 0, number) for at, number in enumerate(numbers)]
    socket = [(_EQUAL, 0, 3, _SOCKET[column]), (_LOAD, 0, 0, 16), (_EQUAL, 2, 0, 1), (_EQUAL, 1, 0, 16)]  # .args[0]
    ends = [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(_BPF.pack(*each) for each in [*head, *calls, *socket, *ends])


def restrict_calls() -> None:
    """Install the filter for good. SystemExit on an architecture that this file has no numbers for."""
    machine = os.uname().machine
    if machine not in _ARCHES:
        raise SystemExit(f"cloud-network-netagent: no seccomp filter for {machine}, only for {', '.join(_ARCHES)}")
    filters = ctypes.create_string_buffer(program(machine))
    fprog = Struct("@HP").pack(len(filters) // _BPF.size, ctypes.addressof(filters))  # struct sock_fprog
    _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0), "seccomp")


def _check(result: int, what: str) -> None:
    if result < 0:
        why = os.strerror(ctypes.get_errno())
        raise SystemExit(f"cloud-network-netagent: {what}: {why}; will not start without it")
