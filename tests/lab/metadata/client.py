"""The lab's hand on a running metadata server: one line of JSON over a Unix socket, one line back."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..nic import Nic


@dataclass(frozen=True)
class Record:
    """A request that was dealt with. `status` is 0 when nothing was answered."""

    at: float
    connection: int
    method: str
    path: str
    status: int
    query: str = ""


class Metadata:
    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, nics: Sequence[Nic]) -> None:
        """The instance's interfaces as the cloud has them now."""
        self._ask("load", nics=[asdict(nic) for nic in nics])

    def configure(self, **settings: object) -> None:
        """The provider's settings (metadata/<provider>.py), or for any `keep_alive=False`, `listen=(address, …)`."""
        self._ask("configure", settings=settings)

    def expire_tokens(self) -> None:
        self._ask("expire_tokens")

    def fail(
        self,
        kind: str,
        path: str = "*",
        *,
        method: str = "*",
        times: int | None = None,
        status: int = 500,
        retry_after: int | None = None,
        interval: float = 0.2,
    ) -> None:
        """From now on: see faults.py for the kinds."""
        self._ask(
            "fail",
            fault={
                "kind": kind,
                "path": path,
                "method": method,
                "times": times,
                "status": status,
                "retry_after": retry_after,
                "interval": interval,
            },
        )

    def content(self, path: str, *bodies: str, times: int | None = None) -> None:
        """Other bodies for `path`, the first on the first read, and so on; the last stays."""
        self._ask("fail", fault={"kind": "content", "path": path, "bodies": bodies, "times": times})

    def clear(self) -> None:
        """No more faults; what was kept waiting is let go without an answer."""
        self._ask("clear")

    def requests(self) -> list[Record]:
        """Since the last `reset`."""
        return [Record(**record) for record in json.loads(self._ask("requests"))]

    def paths(self) -> list[str]:
        return [record.path for record in self.requests()]

    def connections(self) -> int:
        """TCP connections accepted since the last `reset`."""
        return int(self._ask("connections"))

    def waiting(self) -> int:
        """Requests that are kept until something changes (long polls)."""
        return int(self._ask("waiting"))

    def reset(self) -> None:
        """Forget requests and connections (not faults)."""
        self._ask("reset")

    def _ask(self, what: str, **arguments: object) -> str:
        with self._connect() as control, control.makefile("rw") as stream:
            stream.write(json.dumps({"do": what, **arguments}) + "\n")
            stream.flush()
            answer = json.loads(stream.readline() or '{"error": "the metadata server is gone"}')
        if "error" in answer:
            raise ValueError(answer["error"])
        return json.dumps(answer["value"])

    def _connect(self, patience: float = 10) -> socket.socket:
        """The server may still be starting."""
        end = time.monotonic() + patience
        while True:
            control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                control.connect(str(self._path))
            except OSError:
                control.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)
            else:
                return control
