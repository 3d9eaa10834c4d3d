"""The control socket: commands that take long."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher import control
from cloud_network.fetcher.control import Control


async def send(path: Path, command: str) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(path)
    body = json.dumps({"command": command}).encode()
    writer.write(struct.pack(">I", len(body)) + body)
    (size,) = struct.unpack(">I", await reader.readexactly(4))
    answer: dict[str, Any] = json.loads(await reader.readexactly(size))
    writer.close()
    return answer


def test_command_that_takes_long_continues_after_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such commands count as running: there is a limit of them."""
    monkeypatch.setattr(control, "COMMAND_TIMEOUT_S", 0.01)
    monkeypatch.setattr(control, "MAX_CLIENTS", 1)
    monkeypatch.setattr(control, "_UCRED", AnyUserAsRoot)

    async def check() -> None:
        release, ended = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            await release.wait()
            ended.set()

        path = tmp_path / "control.sock"
        server = asyncio.create_task(Control({"slow": slow}, path).serve())
        first = await send(path, "slow")
        assert first["error"].startswith("it has not ended within 0.01 s, and continues; the fetcher is busy. See: ")
        assert (await send(path, "slow"))["error"] == "1 commands are running; try again later"
        release.set()
        await ended.wait()
        server.cancel()

    asyncio.run(check())


class AnyUserAsRoot:
    """Decodes each peer as root."""

    size = 12

    @staticmethod
    def unpack(_: bytes) -> tuple[int, int, int]:
        return (1, 0, 0)
