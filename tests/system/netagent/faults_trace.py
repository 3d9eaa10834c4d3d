"""strace(1) on the running netagent: which system calls serve a request, and a fault in any one of them.

strace is attached from outside, by root, after netagent has locked itself down. A call that is made to fail is turned
into getpid(2) and not, as strace does by itself, into call number -1: netagent's seccomp filter would see that number
after the tracer has set it (kernel/entry/common.c, syscall_trace_enter) and kill.
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
    """The `nth` call of `call` since strace was attached; `what` it is done to."""

    call: str
    nth: int
    what: str

    def __str__(self) -> str:
        return f"{self.call} {self.nth} ({self.what})"

    @property
    def errors(self) -> tuple[str, ...]:
        """The ways in which this call may really fail."""
        if self.what in ("client", "dump", "batch"):
            return _ERRORS.get((self.what, self.call), ())
        return _OF_A_FILE.get(self.call, ("EIO",)) if self.call in _FILES else ()

    def fault(self, name: str) -> str:
        """The argument of strace -e: an errno's name, KILL, or an argument of it already."""
        if "inject=" in name:
            return name
        how = f"error={name}:syscall=getpid" if name.startswith("E") else f"signal={name}"
        return f"inject={self.call}:{how}:when={self.nth}"


class Trace:
    """`with Trace(pid, out, faults):` strace is attached; afterwards `text` is what it has seen."""

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
        """Attached, and seen to wait again: everything from now on is counted."""
        text = self.so_far() if self._out.exists() else ""
        return "restart_syscall(" in text or "poll(" in text

    def __exit__(self, *_: object) -> None:
        try:
            self._strace.communicate(timeout=3 if self._deadly else 0)  # it ends with its tracee
        except subprocess.TimeoutExpired:
            self._strace.send_signal(signal.SIGINT)  # detaches
            self._strace.communicate(timeout=10)
        self.text = self.so_far()

    def so_far(self) -> str:
        """What it has seen up to now."""
        return self._out.read_text()

    @property
    def injected(self) -> bool:
        return "(INJECTED)" in self.text or "+++ killed by" in self.text


def points(lines: Iterable[str]) -> list[Point]:
    """What a trace shows, in order; of one call each."""
    seen: Counter[str] = Counter()
    found = []
    for line in lines:
        match = _CALL.match(line)
        # What it waits in is going on when strace comes, so it cannot be counted; whatever follows it can.
        if match is None or match["call"] in ("restart_syscall", "poll", "ppoll") or "<detached" in line:
            continue
        call, shown = match["call"], f"{match['what']} {match['rest']}"
        seen[call] += 1
        known = (name for text, name in _WHAT.items() if text in shown)
        found.append(Point(call, seen[call], next(known, "other")))
    return found
