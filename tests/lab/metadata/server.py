"""The server of every provider: HTTP/1.1 over asyncio, faults, a record of the requests, a control socket.

It uses streams instead of http.server, because most of its work is to fail on purpose: to stop in the middle of a body,
to reset, or not to answer at all. `python -m tests.lab.metadata PROVIDER CONTROL-SOCKET`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import struct
import time
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

from ..nic import Nic
from .client import Record
from .faults import Fault
from .frame import Provider, Request, Response, Wait

IDLE_TIMEOUT_S = 60.0
MAX_HEAD_BYTES = 16384
LISTEN_ATTEMPTS = 50  # 0.1 s apart


class ConnectionEnded(Exception):
    """The connection is over."""


class Server:
    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.keep_alive = True
        self.faults: list[Fault] = []
        self.records: list[Record] = []
        self.accepted = 0
        convention = provider.convention
        self.addresses = (*convention.endpoints, "::") if convention.link_local else convention.endpoints
        self.held = 0
        self._changed = asyncio.Event()
        self._numbers = count(1)
        self._open: set[asyncio.StreamWriter] = set()
        self._waiting = asyncio.Event()
        self._listener: asyncio.Server | None = None

    async def run(self, control: Path) -> None:
        await self.listen()
        server = await asyncio.start_unix_server(self.command, control)
        await server.serve_forever()

    # — HTTP

    async def listen(self) -> None:
        for attempt in range(LISTEN_ATTEMPTS):
            if self._listener is not None:
                return
            try:
                self._listener = await asyncio.start_server(self.client, self.addresses, 80, limit=MAX_HEAD_BYTES)
            except OSError as error:  # an IPv6 address that was just added may be tentative
                if error.errno != errno.EADDRNOTAVAIL or attempt == LISTEN_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.1)

    def _close(self) -> None:
        """Stop listening, and reset open connections."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in self._open:
            writer.transport.abort()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        self.accepted += 1
        self._open.add(writer)
        try:
            while True:
                request, last = await self._read(reader)
                await self._serve(request, writer, number, last)
        except (ConnectionEnded, OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[Request, bool]:
        """Read a request; also return True if the client wants the connection closed after it."""
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_TIMEOUT_S)
        first, *lines = head.decode("latin-1").split("\r\n")
        try:
            method, target, version = first.split(" ")
        except ValueError:
            raise ConnectionEnded from None
        fields = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path, _, query = target.partition("?")
        asked = headers.get("connection", "keep-alive" if version == "HTTP/1.1" else "close").lower()
        return Request(method, path, headers, query, body), asked == "close"

    async def _serve(self, request: Request, writer: asyncio.StreamWriter, number: int, last: bool) -> None:
        fault = next((fault for fault in reversed(self.faults) if fault.applies(request)), None)
        kind = fault.kind if fault else ""
        response = await self._answer(request)
        if fault:
            fault.use()
            response = fault.alter(response)
        unanswered = kind in ("timeout", "reset")
        status = 0 if unanswered else response.status
        self.records.append(Record(time.time(), number, request.method, request.path, status, request.query))
        if kind == "timeout":
            await self._waiting.wait()
            raise ConnectionEnded
        if kind == "reset":
            self._reset(writer)
        if fault and kind == "late":
            await asyncio.sleep(fault.interval)
        last = last or not self.keep_alive
        writer.write(self._head(response, last))
        await self._body(response.body if request.method != "HEAD" else b"", writer, fault)
        if last:
            raise ConnectionEnded

    async def _answer(self, request: Request) -> Response:
        """Return the provider's answer, once it has one."""
        end = None
        while isinstance(response := self.provider.answer(request), Wait):
            request = response.again
            end = time.monotonic() + response.seconds if end is None else end
            self.held += 1
            try:
                await asyncio.wait_for(self._changed.wait(), end - time.monotonic())
            except TimeoutError:
                request = replace(request, waited=True)
            finally:
                self.held -= 1
        return response

    def _change(self) -> None:
        """Wake the waiting requests; later ones wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _head(self, response: Response, last: bool) -> bytes:
        fields = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            "Date": formatdate(usegmt=True),
            "Connection": "close" if last else "keep-alive",
            **response.headers,
        }
        phrase = HTTPStatus(response.status).phrase
        lines = [f"HTTP/1.1 {response.status} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def _body(self, body: bytes, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
        match fault.kind if fault else "":
            case "truncated":
                writer.write(body[: len(body) // 2])
                await writer.drain()
                raise ConnectionEnded
            case "drip":
                assert fault is not None
                for byte in body:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(fault.interval)
            case _:
                writer.write(body)
                await writer.drain()

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        """Reset the connection: SO_LINGER with no time makes close send RST."""
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        raise ConnectionEnded

    # — control

    async def command(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            arguments = json.loads(await reader.readline())
            name = arguments.pop("do")
            value = await getattr(self, f"do_{name}")(**arguments)
            answer = {"value": value}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def do_load(self, nics: list[dict[str, Any]]) -> None:
        self.provider.load([Nic.from_json(nic) for nic in nics])
        self._change()

    async def do_record(self, document: Any) -> None:
        self.provider.record(document)
        self._change()

    async def do_configure(self, settings: dict[str, object]) -> None:
        self.keep_alive = bool(settings.pop("keep_alive", self.keep_alive))
        if "listen" in settings:
            self.addresses = tuple(settings.pop("listen"))  # type: ignore[arg-type]  # a list, from JSON
            self._close()
            await self.listen()
        self.provider.configure(**settings)
        self._change()

    async def do_expire_tokens(self) -> None:
        self.provider.expire_tokens()

    async def do_fail(self, fault: dict[str, Any]) -> None:
        self.faults.append(Fault(**fault))
        if self.faults[-1].kind == "refuse":
            self._close()

    async def do_clear(self) -> None:
        self.faults.clear()
        self._waiting.set()
        self._waiting = asyncio.Event()
        await self.listen()

    async def do_requests(self) -> list[dict[str, object]]:
        return [vars(record) for record in self.records]

    async def do_connections(self) -> int:
        return self.accepted

    async def do_waiting(self) -> int:
        return self.held

    async def do_reset(self) -> None:
        self.records.clear()
        self.accepted = 0


def main(provider: Provider, control: str) -> None:
    os.umask(0o077)
    asyncio.run(Server(provider).run(Path(control)))
