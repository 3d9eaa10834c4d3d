"""Log lines on stderr: logfmt for people and grep, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time

from cloud_network.fetcher.config import LogFormat, LogLevel

TRACE = 5
_LEVELS = {
    LogLevel.TRACE: TRACE,
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.FATAL: logging.CRITICAL,
    LogLevel.PANIC: logging.CRITICAL,
}


class _Formatter(logging.Formatter):
    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._json = form is LogFormat.JSON

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        level, message = record.levelname.lower(), record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        if self._json:
            return json.dumps({"time": when, "level": level, "msg": message})
        return f"time={when} level={level} msg={json.dumps(message, ensure_ascii=True)}"


def set_up(level: LogLevel, form: LogFormat) -> None:
    """Send the fetcher's log to stderr in the configured form, from the configured level on."""
    logging.addLevelName(TRACE, "TRACE")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    root = logging.getLogger("cloud_network")
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    root.propagate = False
