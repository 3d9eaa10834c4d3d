"""cnctl at a terminal: `--watch`, completion in real shells, and `show project`."""

import json
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cloud_network.api.cnctl.completion import places
from cloud_network.api.cnctl.main import parser
from cloud_network.fetcher.state import StateDirectory

from .conftest import BIN, SYSTEM, Ended, Server, link, status, wait_for

Cnctl = Callable[..., Ended]


class Watching:
    """cnctl with a terminal (or a pipe) for its output, and what came out so far."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self._descriptor = process, descriptor
        os.set_blocking(descriptor, False)
        self.received = b""

    def frames(self, mark: bytes) -> int:
        try:
            while chunk := os.read(self._descriptor, 65536):
                self.received += chunk
        except OSError:
            pass
        return self.received.count(mark)


@contextmanager
def watching(server: Server, state: StateDirectory, *arguments: str, terminal: bool = True) -> Iterator[Watching]:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [str(BIN / "cnctl"), "--config", str(server.config), "--state", state.path, *arguments]
    process = subprocess.Popen(command, stdout=theirs, env={**os.environ, "TERM": "xterm"}, start_new_session=True)
    os.close(theirs)
    try:
        yield Watching(process, ours)
    finally:
        process.kill()
        process.wait(30)
        os.close(ours)


@pytest.mark.parametrize("command", [["status"], ["status", "network"]])
def test_watch_updates_in_place_until_ctrl_c(server: Server, filled: StateDirectory, command: list[str]) -> None:
    with watching(server, filled, *command, "--watch=0.1") as seen:
        wait_for(lambda: seen.frames(b"\x1b[H") >= 3)
        assert b"eth7" not in seen.received
        filled.write_status(status(link(2, "eth7", [])))
        wait_for(lambda: seen.frames(b"eth7") >= 2)
        seen.process.send_signal(signal.SIGINT)
        assert seen.process.wait(30) == 0
        seen.frames(b"")
    assert seen.received.count(b"\x1b[2J") == 1, "cleared once, and then each frame takes the place of the last"
    assert seen.received.startswith(b"\x1b[?25l\x1b[?7l")
    assert seen.received.endswith(b"\x1b[?7h\x1b[?25h")


def test_watch_before_the_part_does_not_take_it_for_its_seconds(server: Server, filled: StateDirectory) -> None:
    with watching(server, filled, "status", "--watch", "network") as seen:
        wait_for(lambda: seen.frames(b"Private IP") >= 2)


def test_watch_without_a_terminal_prints_frames(server: Server, filled: StateDirectory) -> None:
    with watching(server, filled, "status", "network", "--watch=0.1", terminal=False) as seen:
        wait_for(lambda: seen.frames(b"Name: eth0\n") >= 2)
        assert b"\x1b" not in seen.received


def test_watch_goes_on_when_there_is_nothing_to_be_had(server: Server, filled: StateDirectory) -> None:
    Path(filled.status_path).unlink()
    with watching(server, filled, "status", "--watch=0.1") as seen:
        wait_for(lambda: seen.frames(b"cnctl: ") >= 2)
        filled.write_status(status(link(2, "eth7", [])))
        wait_for(lambda: seen.frames(b"eth7") >= 1)


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "1e9"])
def test_watch_refuses_what_is_no_time(cnctl: Cnctl, seconds: str) -> None:
    ended = cnctl("status", f"--watch={seconds}")
    assert (ended.code, "time of 0.1 to 86400 seconds" in ended.err) == (2, True)


def test_show_project_is_googles(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_status(status(provider="gcp"))
    state.write_system({"project": {"projectId": "my-project", "numericProjectId": 12}})
    assert cnctl("show", "project", server=server) == Ended(0, "my-project\n", "")
    assert json.loads(cnctl("show", "project", "--json", server=server).out)["numericProjectId"] == 12
    state.write_status(status())
    state.write_system(SYSTEM)
    ended = cnctl("show", "project", server=server)
    assert (ended.code, ended.err) == (1, "cnctl: aws has no projects: only Google Cloud does\n")


# --- completion ---


def bash(line: str, script: Path) -> set[str]:
    """What bash offers at the end of the line."""
    words = line.split(" ")
    typed = " ".join(f"'{word}'" for word in words)
    program = f"source {script}; COMP_WORDS=({typed}); "
    program += f'COMP_CWORD={len(words) - 1}; _cnctl cnctl "{words[-1]}"; printf "%s\\n" "${{COMPREPLY[@]}}"'
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr == ""
    return set(ended.stdout.split())


def fish(line: str, script: Path) -> set[str]:
    program = f"source {script}; complete -C '{line}'"
    ended = subprocess.run(["fish", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return {entry.split("\t")[0] for entry in ended.stdout.splitlines()}


@pytest.fixture(params=["bash", "fish"])
def complete(request: pytest.FixtureRequest, cnctl: Cnctl, tmp_path: Path) -> Callable[[str], set[str]]:
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    script = tmp_path / f"cnctl.{shell}"
    ended = cnctl("completion", shell)
    assert (ended.code, ended.err) == (0, "")
    script.write_text(ended.out)
    return lambda line: {"bash": bash, "fish": fish}[shell](line, script)


def test_every_word_and_option_is_offered_where_it_may_stand(complete: Callable[[str], set[str]]) -> None:
    for place in places(parser()):
        line = " ".join(("cnctl", *place.path))
        if place.words:
            assert complete(f"{line} ") >= set(place.words), line
        assert complete(f"{line} --") >= {option for option in place.options if option.startswith("--")}, line


def test_what_has_begun_is_finished(complete: Callable[[str], set[str]]) -> None:
    assert complete("cnctl st") == {"status"}
    assert complete("cnctl show cre") == {"credentials"}
    assert complete("cnctl --state /run status net") == {"network"}
    assert complete("cnctl audit --ver") == {"--verify"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_offers_the_same(cnctl: Cnctl, tmp_path: Path) -> None:
    """Its completion needs an interactive shell; so its own `_describe` is taken down in writing instead."""
    script = tmp_path / "_cnctl"
    script.write_text(cnctl("completion", "zsh").out)
    for place in places(parser()):
        words = " ".join(("cnctl", *place.path))
        program = "compdef() { :; }; _describe() { print -l -- ${(P)@[-1]}; }; "
        program += f"words=({words} ''); CURRENT=$(( $#words )); PREFIX=-; source {script}; _cnctl"
        ended = subprocess.run(["zsh", "-fc", program], capture_output=True, text=True, timeout=60, check=True)
        offered = {line.split(":")[0] for line in ended.stdout.splitlines()}
        assert offered == {*place.words, *place.options}, (words, ended.stderr)
        assert ended.stderr == ""


def test_another_shell_is_2(cnctl: Cnctl) -> None:
    assert cnctl("completion", "tcsh").code == 2
