"""cnctl on a terminal: `--watch`, completion in real shells, and `show project`."""

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cloud_network.fetcher.state import StateDirectory

from .conftest import BIN, SYSTEM, CommandResult, Server, link, status, wait_for

Cnctl = Callable[..., CommandResult]


class Watching:
    """cnctl with a terminal (or a pipe) as its output, and the output so far."""

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
    parent_end, child_end = pty.openpty() if terminal else os.pipe()
    command = [str(BIN / "cnctl"), "--socket", str(server.socket), "--state", state.path, *arguments]
    process = subprocess.Popen(command, stdout=child_end, env={**os.environ, "TERM": "xterm"}, start_new_session=True)
    os.close(child_end)
    try:
        yield Watching(process, parent_end)
    finally:
        process.kill()
        process.wait(30)
        os.close(parent_end)


@pytest.mark.parametrize("command", [["status"], ["status", "network"]])
def test_watch_updates_in_place_until_ctrl_c(server: Server, filled: StateDirectory, command: list[str]) -> None:
    with watching(server, filled, *command, "--watch", "--interval", "0.1") as seen:
        wait_for(lambda: seen.frames(b"\x1b[H") >= 3, message="three frames")
        assert b"eth7" not in seen.received
        filled.write_status(status(link(2, "eth7", [])))
        wait_for(lambda: seen.frames(b"eth7") >= 2, message="two frames with the new link eth7")
        seen.process.send_signal(signal.SIGINT)
        assert seen.process.wait(30) == 130
        seen.frames(b"")
    assert seen.received.count(b"\x1b[2J") == 1, "only the first frame clears the screen"
    assert seen.received.startswith(b"\x1b[?25l\x1b[?7l")
    assert seen.received.endswith(b"\x1b[?7h\x1b[?25h")


def test_watch_before_the_command_is_not_its_argument(server: Server, filled: StateDirectory) -> None:
    with watching(server, filled, "status", "--watch", "network") as seen:
        wait_for(lambda: seen.frames(b"Private IP") >= 2, message="two frames with the table")


def test_watch_without_a_terminal_prints_frames(server: Server, filled: StateDirectory) -> None:
    with watching(server, filled, "status", "network", "--watch", "--interval", "0.1", terminal=False) as seen:
        wait_for(lambda: seen.frames(b"Name: eth0\n") >= 2, message="two frames")
        assert b"\x1b" not in seen.received
        assert re.search(rb"\n\n +Name: eth0\n", seen.received), "an empty line before the second frame"


def test_json_watch_prints_one_value_after_another(server: Server, filled: StateDirectory) -> None:
    with watching(server, filled, "status", "--watch", "--interval", "0.1", "--json", terminal=False) as seen:
        wait_for(lambda: seen.frames(b'"version"') >= 3)
    text = seen.received.decode()
    _, end = json.JSONDecoder().raw_decode(text)
    assert text[end : end + 2] == "\n{"


def test_watch_continues_without_a_state(server: Server, filled: StateDirectory) -> None:
    Path(filled.status_path).unlink()
    with watching(server, filled, "status", "--watch", "--interval", "0.1") as seen:
        wait_for(lambda: seen.frames(b"cnctl: ") >= 2, message="two frames with the error")
        filled.write_status(status(link(2, "eth7", [])))
        wait_for(lambda: seen.frames(b"eth7") >= 1, message="a frame with eth7, once the state exists")


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "1e9"])
def test_watch_refuses_an_invalid_interval(cnctl: Cnctl, seconds: str) -> None:
    ended = cnctl("status", "--watch", "--interval", seconds)
    assert (ended.code, "Invalid value for '--interval'" in ended.err) == (2, True)


def test_show_project_needs_google_cloud(server: Server, state: StateDirectory, cnctl: Cnctl) -> None:
    state.write_status(status(provider="gcp"))
    state.write_system({"project": {"projectId": "my-project", "numericProjectId": 12}})
    assert cnctl("show", "project", server=server) == CommandResult(0, "my-project\n", "")
    assert json.loads(cnctl("show", "project", "--json", server=server).out)["numericProjectId"] == 12
    state.write_status(status())
    state.write_system(SYSTEM)
    ended = cnctl("show", "project", server=server)
    assert (ended.code, ended.err) == (1, "cnctl: aws has no projects: only Google Cloud has them\n")


# --- completion ---


def completions(shell: str, line: str) -> set[str]:
    """Return click's completions at the end of the line, as the script of the shell requests them."""
    words = line.split(" ")
    environment = {**os.environ, "_CNCTL_COMPLETE": f"{shell}_complete"}
    position = {"bash": str(len(words) - 1), "zsh": str(len(words) - 1), "fish": words[-1]}[shell]
    environment |= {"COMP_WORDS": line, "COMP_CWORD": position}
    ended = subprocess.run(
        [str(BIN / "cnctl")], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    entry = {"bash": r"plain,(\S+)", "zsh": r"plain\n(\S+)", "fish": r"plain,(\S+)|plain\n(\S+)"}[shell]
    return {"".join(found) for found in re.findall(entry, ended.stdout)}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_offers_commands_and_options(shell: str) -> None:
    assert completions(shell, "cnctl st") == {"status"}
    assert completions(shell, "cnctl show cre") == {"credentials"}
    assert completions(shell, "cnctl --state /run status net") == {"network"}
    assert completions(shell, "cnctl audit --ver") == {"--verify"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_of_each_shell_is_printed(cnctl: Cnctl, shell: str) -> None:
    ended = cnctl("completion", shell)
    assert (ended.code, ended.err, "_CNCTL_COMPLETE" in ended.out) == (0, "", True)


def test_unsupported_shell_exits_2(cnctl: Cnctl) -> None:
    assert cnctl("completion", "tcsh").code == 2


def test_wait_refuses_a_timeout_that_is_no_number(cnctl: Cnctl) -> None:
    ended = cnctl("wait", "--timeout", "nan")
    assert (ended.code, "Invalid value for '--timeout'" in ended.err) == (2, True)


@pytest.mark.parametrize("command", ["--version", "--help", "status --help", "status"])
def test_a_broken_pipe_is_no_error(server: Server, filled: StateDirectory, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(_argv(server, filled, command), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["--version", "--help", "status"])
def test_a_full_disk_is_an_error_without_a_traceback(server: Server, filled: StateDirectory, command: str) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(_argv(server, filled, command), stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 1
    assert ended.stderr == b"cnctl: the output cannot be written: [Errno 28] No space left on device\n"


def _argv(server: Server, state: StateDirectory, command: str) -> list[str]:
    name, *more = command.split()
    where = ["--socket", str(server.socket), "--state", state.path]
    return [str(BIN / "cnctl"), *([] if name.startswith("--") else where), name, *more]
