"""Client for the control socket of a running metadata server: one line of JSON per request, one per answer."""

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
    """A processed request. `status` is 0 if nothing was answered."""

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
        """Set the instance's interfaces as the cloud has them now."""
        self._ask("load", nics=[asdict(nic) for nic in nics])

    def configure(self, **settings: object) -> None:
        """Change the provider's settings (metadata/<provider>.py), or `keep_alive=False`, `listen=(address, …)`."""
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
        """Start a fault: see faults.py for the kinds."""
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
        """Serve other bodies for `path`, the first on the first read, and so on; the last one stays."""
        self._ask("fail", fault={"kind": "content", "path": path, "bodies": bodies, "times": times})

    def clear(self) -> None:
        """End all faults; requests that were kept waiting end without an answer."""
        self._ask("clear")

    def requests(self) -> list[Record]:
        """Return the requests since the last `reset`."""
        return [Record(**record) for record in json.loads(self._ask("requests"))]

    def paths(self) -> list[str]:
        return [record.path for record in self.requests()]

    def connections(self) -> int:
        """Return the number of TCP connections accepted since the last `reset`."""
        return int(self._ask("connections"))

    def waiting(self) -> int:
        """Return the number of requests that wait for a change (long polls)."""
        return int(self._ask("waiting"))

    def reset(self) -> None:
        """Forget requests and connections, but not faults."""
        self._ask("reset")

    def _ask(self, what: str, **arguments: object) -> str:
        with self._connect() as control, control.makefile("rw") as stream:
            stream.write(json.dumps({"do": what, **arguments}) + "\n")
            stream.flush()
            answer = json.loads(stream.readline() or '{"error": "the metadata server is gone"}')
        if "error" in answer:
            raise ValueError(answer["error"])
        return json.dumps(answer["value"])

    def _connect(self, timeout: float = 10) -> socket.socket:
        """Connect to the server, which may still be starting."""
        end = time.monotonic() + timeout
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
