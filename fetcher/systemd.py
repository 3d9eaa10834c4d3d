"""What systemd is told: sd_notify(3) and its watchdog, sd_watchdog_enabled(3). Without systemd, nothing.

And what it is asked: where its socket for the REST server listens, for that decides, and `Listen=` does not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

_LONGEST_STATUS = 400
_SOCKET = "cloud-network-api.socket"


def listening() -> list[str]:
    """Where systemd listens for the REST server, as `ip:port` and `[ipv6]:port`; empty where it does not."""
    if not os.path.isdir("/run/systemd/system"):  # noqa: PTH112  # sd_booted(3); cnctl has no pathlib
        return []
    import subprocess  # cnctl's start-up does not pay for it

    command = ["systemctl", "show", "--property=ActiveState,Listen", _SOCKET]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []
    if "ActiveState=active" not in said:
        return []
    found = [line.removeprefix("Listen=").removesuffix(" (Stream)") for line in said if line.endswith(" (Stream)")]
    return [each for each in found if not each.startswith(("/", "@"))]


class Systemd:
    """The manager that started us, where there is one. `period`: how often the watchdog wants a sign, in seconds."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path
        micros, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        meant = bool(self._path) and micros.isdecimal() and pid in ("", str(os.getpid()))
        self.period = int(micros) / 2e6 if meant and int(micros) else float("inf")
        self._status = ""
        self._ready = False

    def ready(self, why: str = "") -> None:
        """The service is up; said once, and again at the end of a reload."""
        self._ready = True
        self._say("READY=1", *([f"STATUS={why}"] if why else []))

    def status(self, text: str) -> None:
        """What it is doing, when that has changed."""
        line = text.replace("\n", " ")[:_LONGEST_STATUS]
        if line != self._status:
            self._status = line
            self._say(f"STATUS={line}")

    def alive(self) -> None:
        """A sign for the watchdog."""
        if self.period != float("inf"):
            self._say("WATCHDOG=1")

    def reloading(self) -> bool:
        """The configuration is about to be read again (Type=notify-reload); whether `ready` is to end this."""
        if self._ready:
            self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        return self._ready

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    def _say(self, *lines: str) -> None:
        if self._path:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
                notifier.sendto("\n".join(lines).encode(), self._path)
