"""`cnctl plan`, `refresh` and `flush`: root's commands, sent over the fetcher's control socket.

Each direction carries one frame: 4 bytes of length, big-endian, then a UTF-8 JSON object. {"command": ...} is answered
by {"ok": ..., "result": ..., "error": ...}. The fetcher checks the caller (SO_PEERCRED). cnctl checks first, to give a
better error message.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from cloud_network.api.cnctl import output
from cloud_network.api.cnctl.output import Exit, Failure, note, safe
from cloud_network.api.cnctl.source import RESTART

TIMEOUT_S = 60.0
"""Time limit in seconds for a whole answer: a refresh reads the metadata, applies and confirms before it answers."""
MAX_ANSWER_BYTES = 4 << 20

Members = Mapping[str, type | UnionType]
"""Types of the members of an answer that are used."""
PLAN: Members = {
    "metadata_error": str | None,
    "changes": list,
    "withheld": list,
    "held": list,
    "unknown_macs": list,
    "flushed": bool,
}
REFRESH: Members = {"state": str}
FLUSH: Members = {"removed": int, "request": str, "not_removed": list}


def plan(state: Path, as_json: bool) -> Exit:
    """Print the missing changes on standard output, and everything else on standard error."""
    why = "a plan starts with a new read of the metadata, and clouds limit reads. `cnctl status` needs no root"
    answer = ask(state, "plan", "plan", why, PLAN)
    if as_json:
        output.show_json(answer)
    else:
        _note_plan(answer)
        print("\n".join(safe(change) for change in answer["changes"]) or "nothing to do")
    return Exit.FAILED if answer["changes"] or answer["metadata_error"] else Exit.OK


def _note_plan(answer: dict[str, Any]) -> None:
    if answer["metadata_error"]:
        note(f"the metadata could not be read completely ({answer['metadata_error']}); the plan covers the known part")
    if answer["flushed"]:
        note("the network was flushed; run `sudo cnctl refresh` to configure it again")
    for mac in answer["unknown_macs"]:
        note(f"the metadata names the interface {mac}, but no link of this host has that MAC")
    for text in answer["withheld"]:
        note(f"left out: {text}")
    for text in answer["held"]:
        note(f"rolled back: {text}; to retry now: sudo cnctl refresh --retry")


def refresh(state: Path, as_json: bool, *, retry: bool = False) -> Exit:
    """Make the fetcher read the metadata and repair the network; print the result."""
    command = "retry" if retry else "refresh"
    result = ask(state, command, "refresh", "a refresh can change the network", REFRESH)
    if as_json:
        output.show_json(result)
    else:
        width = max(len(str(key)) for key in result)
        table = [(safe(key), safe(value)) for key, value in result.items()]
        print(output.rows(table, width, output.columns()))
    return Exit.FAILED if result["state"] == "error" else Exit.OK


def flush(state: Path, as_json: bool) -> Exit:
    """Make netagent remove everything that cloud-network added; print the number of objects, and what is left."""
    try:
        result = ask(state, "flush", "flush", "a flush changes the network", FLUSH)
    except Failure as failure:
        if failure.code != Exit.NO_STATE:
            raise
        raise Failure(
            failure.code, f"{failure}\nIf the fetcher is stopped: sudo cloud-network-fetcher --flush"
        ) from failure
    if as_json:
        output.show_json(result)
    else:
        removed, request = (safe(result[key]) for key in ("removed", "request"))
        print(f"removed {removed} addresses, routes and rules (audit log: {request})")
        print("Nothing is added again until `sudo cnctl refresh`, or until the fetcher restarts.")
        for text in result["not_removed"]:
            note(f"not removed: {text}")
    return Exit.FAILED if result["not_removed"] else Exit.OK


def ask(state: Path, command: str, usage: str, why_root: str, members: Members) -> dict[str, Any]:
    """Return the result of a command, which has these members at least.

    Raises Failure with the fetcher's reason, or the reason why it did not answer.
    """
    if os.geteuid() != 0:
        raise Failure(Exit.FAILED, f"only root may do this: {why_root}. Use: sudo cnctl {usage}")
    path = state / "control.sock"
    try:
        answer = _exchange(path, json.dumps({"command": command}).encode())
    except TimeoutError:
        text = f"no answer within {TIMEOUT_S:g} s: the fetcher is busy, and will still run `{usage}`. See: cnctl status"
        raise Failure(Exit.FAILED, text) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise Failure(
            Exit.NO_STATE,
            f"the fetcher does not answer at {path} ({safe(reason)}).\n"
            "See: cnctl status; systemctl status cloud-network-fetcher",
        ) from error
    if not answer["ok"]:
        raise Failure(Exit.FAILED, f"{usage} failed: {safe(answer.get('error'))}")
    result = answer.get("result")
    if not isinstance(result, dict):
        result = {}
    for name, kind in members.items():
        if not isinstance(result.get(name), kind):
            reason = f"its answer to `{usage}` has no valid {name!r}: it is of another release than cnctl"
            raise Failure(Exit.FAILED, f"{reason}. Restart it: {RESTART}")
    return result


def _exchange(path: Path, content: bytes) -> dict[str, Any]:
    end = time.monotonic() + TIMEOUT_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(len(content).to_bytes(4, "big") + content)
        length = int.from_bytes(_receive(connection, 4, end), "big")
        if length > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer has {length} bytes; the limit is {MAX_ANSWER_BYTES}")
        answer = json.loads(_receive(connection, length, end))
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise ValueError("the answer is not a JSON object of the control protocol")
    return answer


def _receive(connection: socket.socket, length: int, end: float) -> bytes:
    received = b""
    while len(received) < length:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(length - len(received))
        if not chunk:
            raise ValueError("the connection was closed in the middle of the answer")
        received += chunk
    return received
