"""The control socket: what root may ask the fetcher for. Credentials go through it and nowhere else.

A frame each way: 4-byte big-endian length, then a UTF-8 JSON object: {"command": …} and {"ok": …, "result" or "error"}.
Anyone may connect, so that a refusal can say why; only uid 0 (SO_PEERCRED) is served.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SOCKET = Path("/run/cloud-network/control.sock")
_LENGTH = struct.Struct(">I")
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_MAX_REQUEST = 4096
_SECONDS = 1.0  # a client that is slower than this is dropped: the loop has other work

Commands = dict[str, Callable[[], Any]]


class Control:
    """A listening socket; each connection is one command and its answer."""

    def __init__(self, commands: Commands, path: Path = SOCKET) -> None:
        self._commands = commands
        new = path.with_name(f"{path.name}.new")  # renamed when it listens, so that nobody who finds it is refused
        new.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(new))
        new.chmod(0o666)
        self._socket.listen(4)
        new.rename(path)

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def serve(self) -> None:
        """Answer one client; what goes wrong is the client's."""
        with contextlib.suppress(BlockingIOError, OSError):
            client, _ = self._socket.accept()
            with client:
                client.settimeout(_SECONDS)
                body = json.dumps(self._answer(client)).encode()
                client.sendall(_LENGTH.pack(len(body)) + body)

    def _answer(self, client: socket.socket) -> dict[str, Any]:
        _, uid, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid != 0:
            return {"ok": False, "error": f"only root may ask for this; you are uid {uid}: use sudo"}
        try:
            until = time.monotonic() + _SECONDS
            (size,) = _LENGTH.unpack(_exactly(client, _LENGTH.size, until))
            if size > _MAX_REQUEST:
                return {"ok": False, "error": f"a request of {size} bytes; at most {_MAX_REQUEST} are accepted"}
            command = json.loads(_exactly(client, size, until))["command"]
        except (OSError, ValueError, KeyError, TypeError):
            return {"ok": False, "error": 'not a request; accepted: {"command": "' + '"|"'.join(self._commands) + '"}'}
        if not isinstance(command, str) or command not in self._commands:
            return {"ok": False, "error": f"{command!r:.40} is not a command; accepted: {', '.join(self._commands)}"}
        log.info("control: uid %d asks for %s", uid, command)
        try:
            return {"ok": True, "result": self._commands[command]()}
        except Exception as error:  # noqa: BLE001  # whatever it is, root asked and is told; the loop goes on
            return {"ok": False, "error": str(error)}


def _exactly(client: socket.socket, size: int, until: float) -> bytes:
    """So many bytes, however slowly they come; OSError when they are not there in time."""
    data = b""
    while len(data) < size:
        client.settimeout(max(0.001, until - time.monotonic()))
        chunk = client.recv(size - len(data))
        if not chunk or time.monotonic() > until:
            raise TimeoutError
        data += chunk
    client.settimeout(_SECONDS)
    return data


def remove_socket(path: Path = SOCKET) -> None:
    """At the end, so that cnctl can say at once that nobody listens."""
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108
