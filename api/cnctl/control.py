"""The fetcher's control socket: what only root may ask for.

A frame each way: 4 bytes of length, big-endian, and a UTF-8 JSON object. {"command": …} is answered by
{"ok": …, "result": …, "error": …}. The fetcher checks who asks (SO_PEERCRED); this side refuses first, to say why.
"""

from __future__ import annotations

import json
import os
import socket

from cloud_network.api.cnctl.failure import UNREACHABLE, WRONG, Failure
from cloud_network.api.cnctl.layout import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIMEOUT = 60.0
"""Seconds; a refresh reads the metadata, applies and confirms before it answers."""
LIMIT = 1 << 20


def ask(state: str, command: str, usage: str, why_root: str) -> Any:
    """Return the result of the command. Raises Failure with the fetcher's reason, or why it could not be asked."""
    if os.geteuid() != 0:
        raise Failure(WRONG, f"only root may: {why_root}. Use: sudo cnctl {usage}")
    path = f"{state}/control.sock"
    content = json.dumps({"command": command}).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            connection.sendall(len(content).to_bytes(4, "big") + content)
            length = int.from_bytes(_receive(connection, 4), "big")
            if length > LIMIT:
                raise ValueError(f"an answer of {length} bytes is beyond the limit of {LIMIT}")
            answer = json.loads(_receive(connection, length))
            ok, error = answer["ok"], answer.get("error")
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError) as reason:
        said = getattr(reason, "strerror", None) or reason
        raise Failure(
            UNREACHABLE,
            f"the fetcher does not answer at {path} ({safe(said)}).\n"
            "Is it running? systemctl status cloud-network-fetcher",
        ) from reason
    if not ok:
        raise Failure(WRONG, f"the fetcher refused {command}: {safe(error)}")
    return answer.get("result")


def _receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        chunk = connection.recv(length - len(received))
        if not chunk:
            raise EOFError("it closed the connection in the middle of its answer")
        received += chunk
    return received
