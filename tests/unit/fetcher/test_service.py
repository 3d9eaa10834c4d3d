"""Log output: logfmt, JSON, and entries with fields in a real journal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

JOURNALD = Path("/lib/systemd/systemd-journald")
PROGRAM = """
import logging, sys
from cloud_network.fetcher import service
from cloud_network.fetcher.config import LogFormat, LogLevel
service.set_up_logging(LogLevel(sys.argv[1]), LogFormat(sys.argv[2]))
logger = logging.getLogger("cloud_network.fetcher.trial")
logger.log(5, "a trace")
logger.debug("a bug")
logger.info('log_lines "%s" = \\x1b[2J é', "so")
logger.warning("a\\nb")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("unexpected")
logger.critical("x" * 300_000)
"""


def log_lines(*arguments: str, **environment: str) -> list[str]:
    """Return the log of a daemon, line by line."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | environment,
    )
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def logfmt(line: str) -> dict[str, str]:
    """Parse a line of logfmt: the message is quoted, with JSON's escapes."""
    time, level, message = line.split(" ", 2)
    return {
        "time": time.removeprefix("time="),
        "level": level.removeprefix("level="),
        "msg": json.loads(message.removeprefix("msg=")),
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_message_is_one_line(form: str) -> None:
    lines = log_lines("info", form)
    entries = [json.loads(line) if form == "json" else logfmt(line) for line in lines]
    assert [entry["level"] for entry in entries] == ["info", "warning", "error", "critical"]
    assert entries[0]["msg"] == 'log_lines "so" = \x1b[2J é'
    assert entries[1]["msg"] == "a\nb"
    assert entries[2]["msg"].startswith("unexpected\nTraceback")
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert len(entries[0]["time"]) == len("2026-01-02T03:04:05Z")


@pytest.mark.parametrize(
    ("level", "count"),
    [("trace", 6), ("debug", 5), ("info", 4), ("warning", 3), ("error", 2), ("fatal", 1), ("panic", 1)],
)
def test_records_below_the_level_are_dropped(level: str, count: int) -> None:
    assert len(log_lines(level, "text")) == count


def test_foreign_journal_stream_is_ignored() -> None:
    """JOURNAL_STREAM= is inherited by processes that a unit starts with another stderr."""
    assert len(log_lines("info", "text", JOURNAL_STREAM="8:12345")) == 4


IN_A_NAMESPACE = """
mount -t tmpfs none /run && mkdir -p /run/systemd/journal /run/log/journal/$(cat /etc/machine-id) || exit 1
/lib/systemd/systemd-journald & journald=$!
for _ in $(seq 100); do [ -S /run/systemd/journal/stdout ] && break; sleep 0.1; done
systemd-cat --identifier=by-stderr sh -c 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/$$/fd/2) exec "$@"' sh "$@"
journalctl --directory=/run/log/journal --sync 2>/dev/null; kill -RTMIN+1 $journald; sleep 0.5
journalctl --directory=/run/log/journal --output=json --all --no-pager _TRANSPORT=journal + _TRANSPORT=stdout
kill $journald; wait $journald
"""
"""A separate journald with a separate /run; stderr and JOURNAL_STREAM= are those that systemd sets for a service."""


def journal(*arguments: str) -> list[dict[str, Any]]:
    """Return the journal entries of these log records."""
    command = ["unshare", "--mount", "bash", "-c", IN_A_NAMESPACE, "sh", sys.executable, "-c", PROGRAM, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    entries = [json.loads(line) for line in ended.stdout.splitlines()]
    return [entry for entry in entries if entry["SYSLOG_IDENTIFIER"] in ("-c", "by-stderr")]


needs_journald = pytest.mark.skipif(
    os.geteuid() != 0 or not (JOURNALD.exists() and shutil.which("systemd-cat") and Path("/etc/machine-id").exists()),
    reason="a journald of one's own needs root, and Debian's package systemd",
)


@pytest.mark.exhaustive
@needs_journald
def test_in_the_journal_an_entry_has_fields() -> None:
    info, warning, error, *pieces = journal("info", "text")
    assert info["MESSAGE"] == 'log_lines "so" = \\x1b[2J é'
    assert [entry["PRIORITY"] for entry in (info, warning, error, *pieces[:1])] == ["6", "4", "3", "2"]
    assert {entry["_TRANSPORT"] for entry in (info, warning, error)} == {"journal"}
    assert info["LOGGER"] == "cloud_network.fetcher.trial"
    assert (info["CODE_FUNC"], info["CODE_LINE"]) == ("<module>", "9")
    assert warning["MESSAGE"] == "a\nb", "a message of several lines is one entry"
    assert error["MESSAGE"].startswith("unexpected\nTraceback")
    # A message larger than a datagram goes to stderr, in parts, with its priority.
    assert {(piece["_TRANSPORT"], piece["SYSLOG_IDENTIFIER"]) for piece in pieces} == {("stdout", "by-stderr")}
    assert sum(piece["MESSAGE"].count("x") for piece in pieces) == 300_000


@pytest.mark.exhaustive
@needs_journald
def test_journal_keeps_the_json_format() -> None:
    info, *_ = journal("info", "json")
    assert json.loads(info["MESSAGE"])["level"] == "info"
    assert (info["_TRANSPORT"], info["PRIORITY"]) == ("journal", "6")
