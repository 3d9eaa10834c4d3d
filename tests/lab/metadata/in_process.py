"""The metadata server in this process, on a port of loopback, for tests without a lab."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from ..nic import Interface, Nic
from ..spec import Resolver, Spec, resolve
from .client import Record
from .providers import PROVIDERS
from .server import Server


class InProcess:
    """A metadata server; its methods are those of tests.lab.Metadata."""

    def __init__(self, provider: str = "aws") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = Server(PROVIDERS[provider]())
        self._listener = self._do(asyncio.start_server(self._server.client, "127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def load(self, *interfaces: Interface) -> Sequence[Nic]:
        nics = resolve(Spec(interfaces), Resolver())
        self.serve(nics)
        return nics

    def serve(self, nics: Sequence[Nic]) -> None:
        self._do(self._server.do_load([vars(nic) for nic in nics]))

    def record(self, document: Any) -> None:
        self._do(self._server.do_record(document))

    def fail(self, kind: str, path: str = "*", **more: object) -> None:
        self._do(self._server.do_fail({"kind": kind, "path": path, **more}))

    def content(self, path: str, *bodies: str) -> None:
        self.fail("content", path, bodies=bodies)

    def clear(self) -> None:
        async def clear() -> None:
            self._server.faults.clear()
            self._server._waiting.set()

        self._do(clear())

    def configure(self, **settings: object) -> None:
        self._do(self._server.do_configure(settings))

    def expire_tokens(self) -> None:
        self._do(self._server.do_expire_tokens())

    def reset(self) -> None:
        self._do(self._server.do_reset())

    def requests(self) -> list[Record]:
        return [Record(**record) for record in self._do(self._server.do_requests())]

    def connections(self) -> int:
        return int(self._do(self._server.do_connections()))

    def close(self) -> None:
        async def close() -> None:
            self._listener.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
