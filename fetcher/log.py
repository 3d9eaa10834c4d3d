"""Log lines on stderr: logfmt for people and grep, or one JSON object a line. Under systemd: entries with fields.

When stderr is the journal, an entry goes there by its own protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL), with
PRIORITY= and where in the code it was said; MESSAGE= is the bare message, for time and level are fields of the journal,
or with LogFormat="json" the object. The api logs through this as well.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import time

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
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabulator and newline
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog(3)


class _Formatter(logging.Formatter):
    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._json = form is LogFormat.JSON

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        level, message = record.levelname.lower(), self.message(record)
        if self._json:
            return json.dumps({"time": when, "level": level, "msg": message})
        return f"time={when} level={level} msg={json.dumps(message, ensure_ascii=True)}"

    def entry(self, record: logging.LogRecord) -> str:
        """For the journal, which has time and level already, and shows no message that has control characters."""
        if self._json:
            return self.format(record)
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", self.message(record))

    def message(self, record: logging.LogRecord) -> str:
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return record.getMessage() + trace


class _Journal(logging.Handler):
    """To the journal; what it does not take, such as an entry beyond a datagram, to stderr."""

    def __init__(self, formatter: _Formatter) -> None:
        super().__init__()
        self._formatter = formatter
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._name = sys.argv[0].rpartition("/")[2]

    def close(self) -> None:
        self._socket.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        fields = {
            "MESSAGE": self._formatter.entry(record),
            "PRIORITY": priority,
            "SYSLOG_IDENTIFIER": self._name,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
        }
        try:
            self._socket.sendto(b"".join(_field(name, value) for name, value in fields.items()), JOURNAL)
        except OSError:
            print(f"<{priority}>{self._formatter.format(record)}", file=sys.stderr, flush=True)


def _field(name: str, value: object) -> bytes:
    """With its length, so that a value may have several lines."""
    content = str(value).encode(errors="backslashreplace")
    return name.encode() + b"\n" + len(content).to_bytes(8, "little") + content + b"\n"


def handler(form: LogFormat) -> logging.Handler:
    """What writes in the configured form to where stderr leads."""
    formatter = _Formatter(form)
    if _stderr_is_the_journal():
        return _Journal(formatter)
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(formatter)
    return stream


def _stderr_is_the_journal() -> bool:
    """JOURNAL_STREAM= of systemd.exec(5) is inherited, so it counts only when it names the stderr that there is."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_up(level: LogLevel, form: LogFormat) -> None:
    """Have what cloud_network logs written in the configured form, from the configured level on."""
    logging.addLevelName(TRACE, "TRACE")
    root = logging.getLogger("cloud_network")
    for before in root.handlers[:]:
        root.removeHandler(before)
        before.close()
    root.addHandler(handler(form))
    root.setLevel(LEVELS[level])
    root.propagate = False
