"""`cnctl audit` with a log of the real writer, unchanged and with later changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Network
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import pytest
from cloud_network.netagent import audit
from cloud_network.netagent.operations import ForwardedReplies, LinkMark, RuleRemove
from cloud_network.netagent.protocol import (
    HEADER,
    MAX_FRAME,
    MAX_OPS,
    MAX_REMAINING,
    Done,
    Failed,
    Remaining,
    Verdict,
    decode,
    encode,
)

Lines = list[str]
CNCTL = [sys.executable, "-m", "cloud_network.api.cnctl", "audit"]


def write(path: Path, count: int) -> audit.Audit:
    log = audit.Audit(path, "0" * 36)
    peer = {"pid": 7, "uid": 52092, "gid": 52092, "unit": None}
    for number in range(count):
        entry = {"request": "apply", "id": f"r{number}", "verdict": "applied"}
        log.write({"peer": peer, **entry, "reason": 'a "quoted" \x1b[31m reason'}, [{"op": "link_up", "link": 3}])
    return log


def cnctl(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CNCTL, "--log", str(path), *arguments], capture_output=True, text=True, check=False)


def test_unchanged_log_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = write(path, 6).head
    done = cnctl(path, "--verify")
    first = json.loads(path.read_text().splitlines()[0])
    since = f"first line in the log: 1, of {first['time']}"
    assert (done.returncode, done.stdout) == (0, f"OK: 6 lines, the last is 6, head {head}\n{since}\n")
    for line in path.read_text().splitlines():
        assert json.loads(line)["ops"] == [{"op": "link_up", "link": 3}]


def test_the_chain_goes_on_over_rotation_and_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_FILE", 900)
    path = tmp_path / "audit.log"
    write(path, 4)
    write(path, 3)
    assert (tmp_path / "audit.log.3").exists()
    assert cnctl(path, "--verify").stdout.startswith("OK: 7 lines, the last is 7")


def test_verify_names_the_first_line_that_rotation_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_FILE", 900)
    path = tmp_path / "audit.log"
    write(path, 24)
    oldest = json.loads((tmp_path / f"audit.log.{audit.KEPT}").read_text().splitlines()[0])
    assert oldest["seq"] > 1
    told = json.loads(cnctl(path, "--verify", "--json").stdout)
    assert (told["first"], told["since"]) == (oldest["seq"], oldest["time"])
    assert f"first line in the log: {oldest['seq']}, of {oldest['time']}" in cnctl(path, "--verify").stdout


def test_a_chain_goes_on_after_a_line_of_any_length(tmp_path: Path) -> None:
    """An earlier version wrote a flush as one line, and could then not read a last line of 2 MiB."""
    path = tmp_path / "audit.log"
    log = write(path, 1)
    log.write({"request": "flush", "verdict": "applied", "filler": "x" * (5 << 20)})
    later = write(path, 1)
    assert (later.sequence, later.damage) == (3, None)
    assert cnctl(path, "--verify").stdout.startswith("OK: 3 lines")


@pytest.mark.parametrize(
    "damaged",
    [
        lambda log: log + b"x" * 200_000,
        lambda log: log.replace(b"\n", b""),
        lambda log: log[:-1] + log.splitlines()[0][:50],
    ],
    ids=["garbage at the end", "no line ends", "two lines in one"],
)
def test_a_damaged_end_is_moved_aside_whole(tmp_path: Path, damaged: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "audit.log"
    write(path, 3)
    content = damaged(path.read_bytes())
    path.write_bytes(content)
    log = audit.Audit(path, "0" * 36)
    assert log.damage is not None
    assert (log.sequence, path.read_bytes()) == (0, b"")
    [aside] = tmp_path.glob("audit.log.damaged-*")
    assert aside.read_bytes() == content


def test_a_large_file_without_lines_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    assert audit.Audit(path, "0" * 36).damage is not None


@pytest.mark.parametrize(("ops", "remaining", "lines"), [(224, 0, 1), (112, 64, 1), (225, 0, 2), (4096, 4096, 51)])
def test_large_requests_are_logged_whole_in_journal_sized_lines(
    tmp_path: Path, ops: int, remaining: int, lines: int
) -> None:
    path = tmp_path / "audit.log"
    network = IPv6Network("fd00:1111:2222:3333:4444:5555:6666::/112")
    op = RuleRemove(32765, network, False, 1_000_000_000, True, True, 2**32 - 1, 2**32 - 1)
    left = Remaining(
        op, "the route to 255.255.255.128/25 in table 1000000000 depends on it; cloud-network did not add it", None
    )
    entry = {"request": "rollback", "id": "x" * 64, "verdict": "v"}
    audit.Audit(path, "0" * 36).write(entry, [{**op.to_wire(), "errno": 0}] * ops, [left.to_wire()] * remaining)
    text = path.read_text().splitlines()
    found = [json.loads(line) for line in text]
    assert len(found) == lines
    assert sum(len(line.get("ops", ())) for line in found) == ops
    assert sum(len(line.get("not_undone", ())) for line in found) == remaining
    assert max(map(len, text)) < 48 << 10


def test_large_tables_of_marks_are_logged_in_journal_sized_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    marks = tuple(LinkMark(2**31 - 1, 2**32 - at) for at in range(1, 65))
    op = {**ForwardedReplies(marks).to_wire(), "errno": 0}
    audit.Audit(path, "0" * 36).write({"request": "apply"}, [op] * 400)
    text = path.read_text().splitlines()
    assert max(map(len, text)) < 48 << 10
    assert sum(len(json.loads(line)["ops"]) for line in text) == 400
    assert sum(map(len, text)) < audit.cost(400 * (1 + 64 // audit.MARKS_PER_OP))


def test_only_the_first_of_several_lines_has_the_counts(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit.Audit(path, "0" * 36).write({"request": "apply"}, [{"op": "link_up"}] * 500, counts=Counter(checks=3))
    assert [json.loads(line).get("checks") for line in path.read_text().splitlines()] == [3, None, None]


def test_counts_are_written_once_if_the_second_line_fails(tmp_path: Path) -> None:
    path, counts, limits = tmp_path / "audit.log", Counter(checks=3), getrlimit(RLIMIT_FSIZE)
    log = audit.Audit(path, "0" * 36)
    setrlimit(RLIMIT_FSIZE, (5000, limits[1]))  # bytes of a file: enough for one line
    try:
        with pytest.raises(OSError, match="No space left"):
            log.write({"request": "apply"}, [{"op": "link_up"}] * 300, counts=counts)
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    log.write({"request": "apply"}, counts=counts)
    assert [json.loads(line).get("checks") for line in path.read_text().splitlines()] == [3, None]


WITHOUT_JOURNAL = """
import os, sys
from pathlib import Path
from cloud_network.netagent import audit, sandbox
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
sandbox.log("a warning")
audit.Audit(Path(sys.argv[1]), "0" * 36).write({"request": "apply"})
"""


def test_a_line_is_written_although_journald_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    subprocess.run([sys.executable, "-I", "-c", WITHOUT_JOURNAL, str(path)], check=True)
    assert json.loads(path.read_text())["request"] == "apply"


@pytest.mark.parametrize(
    ("tamper", "where", "reason"),
    [
        (lambda lines: [*lines[:2], lines[2].replace("52092", "0"), *lines[3:]], 3, "the line was changed"),
        (lambda lines: [*lines[:2], *lines[3:]], 3, "removed, added or moved"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2, "removed, added or moved"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4, "removed, added or moved"),
        (lambda lines: [*lines[:5], lines[5][:40]], 6, "not a whole line"),
        (lambda lines: [*lines[:2], "{}\n", *lines[3:]], 3, "not a whole line"),
        (lambda lines: [*lines[:3], "\x00" * 50 + "\n", *lines[4:]], 4, "not a whole line"),
    ],
)
def test_verify_reports_the_changed_line(
    tmp_path: Path, tamper: Callable[[Lines], Lines], where: int, reason: str
) -> None:
    path = tmp_path / "audit.log"
    write(path, 6)
    path.write_text("".join(tamper(path.read_text().splitlines(keepends=True))))
    done = cnctl(path, "--verify")
    assert done.returncode == 1
    assert done.stdout.startswith(f"BROKEN at {path}:{where}: ")
    assert reason in done.stdout


def test_lines_for_a_person_are_safe_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 30)
    shown = cnctl(path, "--last", "2").stdout.splitlines()
    assert len(shown) == 2
    assert "uid 52092" in shown[-1]
    assert "apply of 1" in shown[-1]
    assert "\\x1b[31m" in shown[-1]
    assert cnctl(tmp_path / "none").returncode == 3


def test_answer_fits_a_frame_even_if_much_was_not_undone() -> None:
    op = RuleRemove(32765, IPv6Network("fd00:1111:2222:3333:4444:5555:6666::/112"), False, 1_000_000_000, True, True)
    remaining = (Remaining(op, "x" * 200),) * MAX_OPS
    rolled_back = Done(Verdict.ROLLED_BACK, remaining=remaining)
    for answer in (rolled_back, Failed(0, (None,) * MAX_OPS, "x" * 200, remaining)):
        frame = encode(answer.to_wire())
        message = decode(frame[HEADER.size :])
        assert len(frame) < MAX_FRAME
        assert (len(message["not_undone"]), message["not_undone_more"]) == (MAX_REMAINING, MAX_OPS - MAX_REMAINING)


@pytest.mark.parametrize(
    "line", ['{"peer":"x","seq":[1],"time":{},"ops":3}', '{"peer":{"unit":7},"reason":[]}', "[]", ""]
)
def test_odd_lines_are_shown(tmp_path: Path, line: str) -> None:
    log = tmp_path / "audit.log"
    log.write_text(line + "\n")
    ended = subprocess.run([*CNCTL, "--log", str(log)], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr, len(ended.stdout.splitlines())) == (0, "", 1)
