"""Service functions of fetcher and api: logging, sd_notify(3) with the watchdog, and dropping privileges."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import prctl
from cloud_network.fetcher.config import LogFormat, LogLevel

TRACE = 5
LEVELS = {
    LogLevel.TRACE: TRACE,
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.FATAL: logging.CRITICAL,
    LogLevel.PANIC: logging.CRITICAL,
}
JOURNAL = "/run/systemd/journal/socket"
API_SOCKET_UNIT = "cloud-network-api.socket"

_MAX_STATUS_LENGTH = 400
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog(3)


def credentials_directory() -> Path | None:
    """Return the directory of the unit's credentials (LoadCredential= of systemd.exec(5)), if there is one."""
    path = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(path) if path else None


# Logging


def set_up_logging(level: LogLevel, form: LogFormat) -> None:
    """Configure the log of cloud_network with this format and level."""
    logging.addLevelName(TRACE, "TRACE")
    root = logging.getLogger("cloud_network")
    for before in root.handlers[:]:
        root.removeHandler(before)
        before.close()
    root.addHandler(log_handler(form))
    root.setLevel(LEVELS[level])
    root.propagate = False


def log_handler(form: LogFormat) -> logging.Handler:
    """Return a handler that writes to the journal with fields if stderr is connected to it, else lines to stderr."""
    formatter = LineFormatter(form)
    if _stderr_is_the_journal():
        return JournalHandler(formatter)
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(formatter)
    return stream


class LineFormatter(logging.Formatter):
    """One line for each record: logfmt, or a JSON object."""

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._json = form is LogFormat.JSON

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, in ASCII."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        level, message = record.levelname.lower(), self._message(record)
        if self._json:
            return json.dumps({"time": at, "level": level, "msg": message})
        return f"time={at} level={level} msg={json.dumps(message)}"

    def journal_message(self, record: logging.LogRecord) -> str:
        """Return MESSAGE= for the journal, which has separate fields for time and level."""
        if self._json:
            return self.format(record)
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", self._message(record))

    def _message(self, record: logging.LogRecord) -> str:
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return record.getMessage() + trace


class JournalHandler(logging.Handler):
    """Sends records to the journal by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL).

    A record that the journal rejects, for example because it exceeds a datagram, goes to stderr.
    """

    def __init__(self, formatter: LineFormatter) -> None:
        super().__init__()
        self._formatter = formatter
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._name = Path(sys.argv[0]).name

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        fields = {
            "MESSAGE": self._formatter.journal_message(record),
            "PRIORITY": priority,
            "SYSLOG_IDENTIFIER": self._name,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
        }
        try:
            self._socket.sendto(b"".join(_journal_field(name, value) for name, value in fields.items()), JOURNAL)
        except OSError:
            print(f"<{priority}>{self._formatter.format(record)}", file=sys.stderr, flush=True)


def _journal_field(name: str, value: object) -> bytes:
    """Return a field in the form with a length, whose value may contain newlines."""
    content = str(value).encode(errors="backslashreplace")
    return name.encode() + b"\n" + len(content).to_bytes(8, "little") + content + b"\n"


def _stderr_is_the_journal() -> bool:
    """Compare stderr with JOURNAL_STREAM= (systemd.exec(5)), which child processes inherit."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


# systemd


class Notifier:
    """sd_notify(3) to the service manager, if there is one. `period`: seconds between two watchdog pings."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path
        micros, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        watched = bool(self._path) and micros.isdecimal() and pid in ("", str(os.getpid()))
        self.period = int(micros) / 2e6 if watched and int(micros) else float("inf")
        self._status = ""
        self._ready = False

    def ready(self, status: str = "") -> None:
        """Report that the service is up, or that a reload has ended."""
        self._ready = True
        self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def status(self, text: str) -> None:
        """Report the state of the service, if it has changed."""
        line = text.replace("\n", " ")[:_MAX_STATUS_LENGTH]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def alive(self) -> None:
        """Ping the watchdog."""
        if self.period != float("inf"):
            self._send("WATCHDOG=1")

    def reloading(self) -> bool:
        """Report the start of a reload (Type=notify-reload). Return True if `ready` must end it."""
        if self._ready:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        return self._ready

    def stopping(self) -> None:
        """Report that the service is stopping."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if self._path:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
                notifier.sendto("\n".join(lines).encode(), self._path)


def api_listeners() -> list[str]:
    """Return the TCP addresses on which systemd listens for the api, as `ip:port` and `[ipv6]:port`."""
    if not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        return []
    command = ["systemctl", "show", "--property=ActiveState,Listen", API_SOCKET_UNIT]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []
    if "ActiveState=active" not in lines:
        return []
    found = [line.removeprefix("Listen=").removesuffix(" (Stream)") for line in lines if line.endswith(" (Stream)")]
    return [each for each in found if not each.startswith(("/", "@"))]


# Privileges


class PrivilegeError(Exception):
    """Privileges could not be dropped; str() gives the reason and the command to run."""


def drop_privileges(user: str, owned: tuple[Path, ...] = ()) -> None:
    """Drop all capabilities, and prevent execve(2) from gaining any. As root: first give the directories to the user,
    then become that user.

    Raises PrivilegeError if the user does not exist, or the process still has a capability.
    """
    if os.geteuid() == 0:
        _become(user, owned)
    with contextlib.suppress(OSError):  # the unit's SystemCallFilter= has no capset(2); see the check below
        prctl.cap_effective.limit()
        prctl.cap_inheritable.limit()
        prctl.cap_permitted.limit()
    prctl.set_no_new_privs(True)
    prctl.set_dumpable(False)
    lines = Path("/proc/self/status").read_text().splitlines()
    sets = [line.split() for line in lines if line.startswith(("CapInh", "CapPrm", "CapEff", "CapAmb"))]
    left = [f"{name} {value}" for name, value in sets if int(value, 16)]
    if left:
        raise PrivilegeError(f"the process still has capabilities ({', '.join(left)}); start it as {user}")


def _become(user: str, owned: tuple[Path, ...]) -> None:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise PrivilegeError(
            f"started as root, but the user {user} does not exist. "
            f"Create it: systemd-sysusers cloud-network.conf, or: useradd --system --no-create-home {user}"
        ) from None
    for directory in owned:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.chown(directory, entry.pw_uid, entry.pw_gid)
    prctl.securebits.noroot = True
    prctl.securebits.noroot_locked = True
    prctl.set_keepcaps(False)
    prctl.capbset.limit()
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
