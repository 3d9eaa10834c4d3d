"""Requests of cnctl to the fetcher's control socket, which only root may send."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.state import StateDirectory

from .conftest import CommandResult, unprivileged_user

Cnctl = Callable[..., CommandResult]


@contextmanager
def fetcher(state: StateDirectory, answer: bytes) -> Iterator[list[Any]]:
    """A control socket that gives one answer, as bytes, and stores the request."""
    asked: list[Any] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{state.path}/control.sock")
        listener.listen()

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:  # no client connected, and the listener is shut down
                return
            with connection:
                length = int.from_bytes(connection.recv(4), "big")
                asked.append(json.loads(connection.recv(length)))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def frame(value: Any) -> bytes:
    content = json.dumps(value).encode()
    return len(content).to_bytes(4, "big") + content


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run cnctl as root and as another user")
class TestControl:
    def test_other_users_get_the_reason_first(self, state: StateDirectory, cnctl: Cnctl) -> None:
        with fetcher(state, b"") as asked:
            Path(f"{state.path}/control.sock").chmod(0o777)
            for command in (["show", "credentials"], ["refresh"]):
                ended = cnctl(*command, **unprivileged_user())
                assert (ended.code, ended.out) == (1, "")
                assert ended.err.startswith("cnctl: only root may do this: ")
                assert ended.err.endswith(f"Use: sudo cnctl {' '.join(command)}\n")
        assert asked == []

    def test_credentials_are_shown_to_root(self, state: StateDirectory, cnctl: Cnctl) -> None:
        secret = {"role": {"AccessKeyId": "ASIA\x1b[2J", "Token": "x" * 3000}}
        with fetcher(state, frame({"ok": True, "result": secret, "error": None})) as asked:
            ended = cnctl("show", "credentials")
        assert asked == [{"command": "credentials"}]
        assert (ended.code, json.loads(ended.out), ended.err) == (0, secret, "")
        assert "\x1b" not in ended.out

    def test_refresh_prints_the_result(self, state: StateDirectory, cnctl: Cnctl) -> None:
        with fetcher(state, frame({"ok": True, "result": {"state": "ok", "verdict": "confirmed\x1b"}})) as asked:
            ended = cnctl("refresh")
        assert asked == [{"command": "refresh"}]
        assert (ended.code, ended.out) == (0, "  state: ok\nverdict: confirmed\\x1b\n")

    def test_refresh_can_retry_what_was_refused(self, state: StateDirectory, cnctl: Cnctl) -> None:
        with fetcher(state, frame({"ok": True, "result": {"state": "ok"}})) as asked:
            ended = cnctl("refresh", "--retry")
        assert asked == [{"command": "retry"}]
        assert (ended.code, ended.out) == (0, "state: ok\n")

    def test_refused_request_exits_1_with_the_reason(self, state: StateDirectory, cnctl: Cnctl) -> None:
        with fetcher(state, frame({"ok": False, "error": "the metadata\x1b server does not answer"})):
            ended = cnctl("refresh")
        expected = "cnctl: refresh failed: the metadata\\x1b server does not answer\n"
        assert ended == CommandResult(1, "", expected)

    @pytest.mark.parametrize(
        "answer",
        [b"", b"\0", b"\0\0\0\x05{}", b"\x7f\xff\xff\xff", b"\0\0\0\x02[]", b"\0\0\0\x02{}", b"\0\0\0\x03\xff\xff\xff"],
    )
    def test_invalid_answer_exits_3(self, state: StateDirectory, cnctl: Cnctl, answer: bytes) -> None:
        with fetcher(state, answer):
            ended = cnctl("refresh")
        assert (ended.code, ended.out) == (3, "")
        assert "systemctl status cloud-network-fetcher" in ended.err
        assert ("the limit is 4194304" in ended.err) == answer.startswith(b"\x7f")

    def test_failed_refresh_exits_1(self, state: StateDirectory, cnctl: Cnctl) -> None:
        with fetcher(state, frame({"ok": True, "result": {"state": "error", "error": "metadata: timed out"}})):
            ended = cnctl("refresh")
        assert (ended.code, ended.out) == (1, "state: error\nerror: metadata: timed out\n")

    def test_missing_fetcher_exits_3(self, state: StateDirectory, cnctl: Cnctl) -> None:
        assert cnctl("refresh").code == 3

    @pytest.mark.parametrize("result", [None, [], {}, {"changes": "ip address add", "state": 3, "removed": "1"}])
    @pytest.mark.parametrize("command", ["plan", "refresh", "flush"])
    def test_answer_of_another_release_is_reported(
        self, state: StateDirectory, cnctl: Cnctl, command: str, result: Any
    ) -> None:
        with fetcher(state, frame({"ok": True, "result": result})):
            ended = cnctl(command)
        assert (ended.code, ended.out) == (1, "")
        assert "it is of another release than cnctl. Restart it: sudo systemctl restart" in " ".join(ended.err.split())
