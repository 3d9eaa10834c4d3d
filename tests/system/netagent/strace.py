"""strace(1) on the running netagent: it records the system calls that serve a request, or makes one of them fail.

Root attaches strace from outside, after netagent has confined itself. A call that must fail is replaced by getpid(2).
By default strace replaces it by call number -1. netagent's seccomp filter would see that number, because it runs after
the tracer (kernel/entry/common.c, syscall_trace_enter), and kill the process.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CALL = re.compile(r"^(?P<call>[a-z_0-9]+)\((?:(?P<fd>\d+)<(?P<what>[^\n]*?)>[,)])?(?P<rest>.*)")
_WHAT = {
    "|0x300": "dump",  # NLM_F_DUMP
    "NLM_F_MULTI": "dump",
    "nlmsg_len": "batch",
    "socket:[": "client",
    "ledger": "ledger",
    "audit.log": "audit",
    "resolv.conf": "resolvers",
    "/log/netagent": "journal",
}
_FILES = ("openat", "newfstatat", "fstat", "read", "write", "close", "rename", "renameat", "ftruncate", "fchmod")
_OF_NETLINK = ("ENOBUFS", "EPERM", "EINTR")
_ERRORS = {
    ("dump", "sendto"): _OF_NETLINK,
    ("dump", "recvmsg"): _OF_NETLINK,
    ("batch", "sendto"): _OF_NETLINK,
    ("batch", "recvmsg"): _OF_NETLINK,
    ("client", "sendto"): ("EPIPE", "EINTR"),
    ("client", "recvfrom"): ("ECONNRESET", "EINTR"),
}
_OF_A_FILE = {
    "openat": ("ENOSPC", "EPERM", "EINTR"),
    "write": ("ENOSPC", "EIO", "EINTR"),
    "rename": ("ENOSPC", "EPERM"),
    "close": ("ENOSPC",),
}
KILL = "KILL"


@dataclass(frozen=True)
class Point:
    """The `nth` call of `call` since strace was attached; `what` is the kind of its file."""

    call: str
    nth: int
    what: str

    def __str__(self) -> str:
        return f"{self.call} {self.nth} ({self.what})"

    @property
    def errors(self) -> tuple[str, ...]:
        """Return the errors that the kernel can return for this call."""
        if self.what in ("client", "dump", "batch"):
            return _ERRORS.get((self.what, self.call), ())
        return _OF_A_FILE.get(self.call, ("EIO",)) if self.call in _FILES else ()

    def fault(self, name: str) -> str:
        """Return the argument of strace -e for an errno's name or KILL; other arguments stay unchanged."""
        if "inject=" in name:
            return name
        how = f"error={name}:syscall=getpid" if name.startswith("E") else f"signal={name}"
        return f"inject={self.call}:{how}:when={self.nth}"


class Trace:
    """`with Trace(pid, out, faults):` attaches strace; afterwards `text` is its output."""

    def __init__(self, pid: int, out: Path, *faults: str) -> None:
        self._out, self.text = out, ""
        self._deadly = any(f"signal={KILL}" in fault for fault in faults)
        out.unlink(missing_ok=True)
        each = [word for fault in faults for word in ("-e", fault)]
        argv = ["strace", "-qq", "-y", "-s", "96", "-o", str(out), *each, "-p", str(pid)]
        self._strace = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Trace:
        end = time.monotonic() + 20
        while self._strace.poll() is None and not self._attached():
            assert time.monotonic() < end, f"strace is not attached: {self.so_far()}"
            time.sleep(0.002)
        if self._strace.poll() is not None and self._strace.stderr is not None:
            raise AssertionError(f"strace: {self._strace.stderr.read()}")
        return self

    def _attached(self) -> bool:
        """Return True if strace is attached and netagent waits again: all later calls are counted."""
        text = self.so_far() if self._out.exists() else ""
        return "restart_syscall(" in text or "poll(" in text

    def __exit__(self, *_: object) -> None:
        try:
            self._strace.communicate(timeout=3 if self._deadly else 0)  # strace exits with its tracee
        except subprocess.TimeoutExpired:
            self._strace.send_signal(signal.SIGINT)  # detaches
            self._strace.communicate(timeout=10)
        self.text = self.so_far()

    def so_far(self) -> str:
        """Return the output up to now."""
        return self._out.read_text()

    @property
    def injected(self) -> bool:
        return "(INJECTED)" in self.text or "+++ killed by" in self.text


def points(lines: Iterable[str]) -> list[Point]:
    """Return the calls of a trace in order."""
    seen: Counter[str] = Counter()
    found = []
    for line in lines:
        match = _CALL.match(line)
        # The call in which netagent waits when strace is attached cannot be counted; all later calls can.
        if match is None or match["call"] in ("restart_syscall", "poll", "ppoll") or "<detached" in line:
            continue
        call, shown = match["call"], f"{match['what']} {match['rest']}"
        seen[call] += 1
        known = (name for text, name in _WHAT.items() if text in shown)
        found.append(Point(call, seen[call], next(known, "other")))
    return found
