"""The demo prints only measured values, exits with 0 only if all are correct, and removes the lab, also after ^C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import demo

CHECKOUT = Path(__file__).parents[2]


def start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lab.demo"],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def descendants(pid: int) -> dict[int, str]:
    """Return {pid: start time} of every process below this one, whatever its namespace or session."""
    found: dict[int, str] = {}
    parents: dict[int, list[tuple[int, str]]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append((int(process.name), fields[19]))
    waiting = [pid]
    while waiting:
        for child, began in parents.get(waiting.pop(), []):
            found[child] = began
            waiting.append(child)
    return found


def alive(processes: dict[int, str]) -> list[int]:
    left = []
    for pid, began in processes.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == began and fields[0] != "Z":
            left.append(pid)
    return left


def host() -> dict[str, str]:
    commands = {"links": ["ip", "-br", "link"], "rules": ["ip", "rule"], "netns": ["ip", "netns"]}
    state = {name: subprocess.run(argv, capture_output=True, text=True).stdout for name, argv in commands.items()}
    return state | {"mounts": Path("/proc/self/mounts").read_text()}


def test_demo_output_is_correct() -> None:
    before = host()
    began = time.monotonic()
    process = start()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert time.monotonic() - began < 25
    assert host() == before

    one, two, three, four, five = re.split(r"\n\d\. ", output)[1:]
    assert "5 of 300 pairs answer: only 10.0.1.10" in one
    assert "0 of 15" in one
    assert re.search(r"netagent +cloud-network-netagent +CAP_NET_ADMIN and nothing else", two)
    assert re.search(r"fetcher +cloud-network +no capability", two)
    assert re.search(r"api +cloud-network-api +no capability", two)
    assert "300 of 300 pairs answer" in three
    assert "60 of 60 addresses reach the outside" in three
    assert not re.search(r" (\d|1[0-4]) of 15", three)
    assert "10.0.2.200 added to" in four
    assert "plugged in" in four
    assert "384 of 384 pairs answer" in four
    assert "10.0.5.12/24" in five
    assert "suppress_prefixlength" in five
    assert "the chain is valid" in five


def test_the_demo_fits_a_terminal_and_has_no_colour_in_a_pipe() -> None:
    process = start()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "\x1b" not in output
    assert [line for line in output.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["1. A cloud", "2. Start", "  a host beyond", "4. Change"])
def test_a_signal_in_the_middle_leaves_nothing(number: int, moment: str) -> None:
    before = host()
    process = start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(moment):
            break
    else:
        pytest.fail(f"the demo never printed {moment!r}")
    time.sleep(0.3)
    below = descendants(process.pid)
    assert below, "the lab has processes"
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    end = time.monotonic() + 5
    while (left := alive(below)) and time.monotonic() < end:
        time.sleep(0.02)
    assert left == []
    assert host() == before


def test_wrong_measurement_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid():
        pytest.fail("the lab needs root or a user namespace")
    monkeypatch.setattr(demo, "CONFIG", demo.CONFIG.replace("veth", ""))  # netagent does not manage the lab's links
    monkeypatch.setattr(demo, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert demo.main() == 1
    output = capsys.readouterr().out
    assert "This failed: not within 1 s: every address answers" in output
    assert output.count("--- fetcher (running)") == 1  # its log, once
    assert "All checks passed" not in output
