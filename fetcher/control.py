"""The control socket: root's commands to the fetcher. Credentials are sent over it and nowhere else.

Each direction carries one frame: 4-byte big-endian length, then a UTF-8 JSON object, {"command": ...} or {"ok": ...,
"result" or "error": ...}. Only uid 0 (SO_PEERCRED) is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from cloud_network.fetcher.apply import Netagent, NetagentError, Outcome
from cloud_network.netagent.protocol import Verdict

logger = logging.getLogger(__name__)

SOCKET = Path("/run/cloud-network/control.sock")
MAX_REQUEST_BYTES = 4096
REQUEST_TIMEOUT_S = 1.0
COMMAND_TIMEOUT_S = 55.0
"""Time limit for the answer to a command, below that of cnctl. The command itself continues."""
MAX_CLIENTS = 16
_LENGTH = struct.Struct(">I")
_UCRED = struct.Struct("=iII")  # struct ucred of linux/socket.h: pid, uid, gid

Commands = Mapping[str, Callable[[], Coroutine[Any, Any, Any]]]


class FlushAnswer(TypedDict):
    """The answer to `flush`."""

    removed: int
    request: str  # the request id in the audit log
    not_removed: list[str]  # what could not be removed, each with the reason


class Control:
    """Serves clients of the control socket, one command for each connection."""

    def __init__(self, commands: Commands, path: Path = SOCKET) -> None:
        self._commands, self._path, self._clients = commands, path, 0
        self._running = set[asyncio.Task[Any]]()  # the commands, also those whose client was answered already
        new = path.with_name(f"{path.name}.new")  # renamed once it listens, so that no client is refused
        new.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(new))
        new.chmod(0o660)  # other users could fill the queue of connections
        self._socket.listen(MAX_CLIENTS)
        new.rename(path)

    async def serve(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_unix_server(self._serve_client, sock=self._socket, limit=MAX_REQUEST_BYTES)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()  # without waiting for commands that are running

    def remove(self) -> None:
        """Remove the socket, so that cnctl notices at once that no fetcher is running."""
        self._path.unlink(missing_ok=True)

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            with contextlib.suppress(OSError):
                body = json.dumps(await self._answer(reader, writer)).encode()
                writer.write(_LENGTH.pack(len(body)) + body)
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await writer.drain()
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, Any]:
        credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, _ = _UCRED.unpack(credentials)
        if uid != 0:
            return {"ok": False, "error": f"only root may use the control socket, not uid {uid}; use sudo"}
        if max(self._clients - 1, len(self._running)) >= MAX_CLIENTS:
            return {"ok": False, "error": f"{MAX_CLIENTS} commands are running; try again later"}
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                command = await self._command(reader)
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            return {"ok": False, "error": 'not a request; accepted: {"command": "' + '"|"'.join(self._commands) + '"}'}
        if not isinstance(command, str) or command not in self._commands:
            return {"ok": False, "error": f"{command!r:.40} is not a command; accepted: {', '.join(self._commands)}"}
        logger.info("control: uid %d requests %s", uid, command)
        return await self._run(command)

    async def _run(self, command: str) -> dict[str, Any]:
        running = asyncio.create_task(self._commands[command]())
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        await asyncio.wait({running}, timeout=COMMAND_TIMEOUT_S)
        if not running.done():
            running.add_done_callback(partial(_log_end, command))
            reason = f"it has not ended within {COMMAND_TIMEOUT_S:g} s, and continues; the fetcher is busy"
            return {"ok": False, "error": f"{reason}. See: cnctl status"}
        try:
            return {"ok": True, "result": running.result()}
        except Exception as error:  # noqa: BLE001  # root gets the reason, and the daemon continues
            return {"ok": False, "error": str(error)}

    async def _command(self, reader: asyncio.StreamReader) -> object:
        (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if size > MAX_REQUEST_BYTES:
            raise ValueError(f"a request of {size} bytes")
        return json.loads(await reader.readexactly(size))["command"]


def _log_end(command: str, ended: asyncio.Task[Any]) -> None:
    """Log the end of a command that outlasted its time limit."""
    error = "cancelled" if ended.cancelled() else ended.exception()
    logger.info("control: %s has ended%s", command, f": {error}" if error else "")


def flush_answer(outcome: Outcome) -> FlushAnswer:
    """Return the answer to `flush`. Raises NetagentError if netagent refused it."""
    if outcome.verdict != Verdict.APPLIED:
        raise NetagentError(f"netagent: {outcome.verdict}: {outcome.reason}; nothing was removed")
    return {"removed": outcome.ops, "request": outcome.request, "not_removed": list(outcome.remaining)}


def flush_directly() -> None:
    """Flush as root while no fetcher runs. Raises SystemExit with the reason."""
    if os.geteuid() != 0:
        raise SystemExit("cloud-network-fetcher: only root may flush. Use: sudo cloud-network-fetcher --flush")
    if is_running():
        raise SystemExit("cloud-network-fetcher: a fetcher is running and would repair it. Use: sudo cnctl flush")
    try:
        with Netagent() as agent:
            answer = flush_answer(agent.flush())
    except NetagentError as error:
        raise SystemExit(f"cloud-network-fetcher: {error}") from None
    print(f"removed {answer['removed']} addresses, routes and rules")
    if answer["not_removed"]:
        raise SystemExit("\n".join(["cloud-network-fetcher: not removed:", *answer["not_removed"]]))


def is_running() -> bool:
    """Return True if a fetcher listens on the control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(SOCKET)) == 0
