"""Requests to the lab's metadata servers with curl, for the tests of these servers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .lab import Lab


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(lab: Lab, path: str, *headers: str, method: str = "GET", address: str | None = None, data: str = "") -> Answer:
    """Send one request to the cloud's metadata server, by default at its first address."""
    host = address or lab.convention.endpoints[0]
    host = f"[{host}]" if ":" in host else host
    given = [part for header in headers for part in ("-H", header)] + (["--data", data] if data else [])
    argv = ["curl", "-sig", "--noproxy", "*", "-m", "20", "-X", method, *given, f"http://{host}{path}"]
    head, _, body = lab.run(argv).stdout.partition("\n\n")
    first, *lines = head.splitlines()
    fields = (line.partition(": ") for line in lines)
    return Answer(int(first.split()[1]), {name.lower(): value for name, _, value in fields}, body)
