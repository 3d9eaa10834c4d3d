"""Removal of everything that is owned: by the running fetcher, or directly by root while it does not run."""

from __future__ import annotations

import os
import socket
from typing import TypedDict

from cloud_network.fetcher import control
from cloud_network.fetcher.apply import Netagent, NetagentError, Result

FLUSHED = "flushed on request: nothing is changed until `cnctl refresh`, or until the service is started again"


class FlushAnswer(TypedDict):
    """What the control socket answers to `flush`."""

    removed: int
    request: str  # as the audit log has it


def flush_answer(result: Result) -> FlushAnswer:
    """Of netagent's verdict; NetagentError unless all is gone."""
    if result.verdict != "applied":
        raise NetagentError(f"netagent: {result.verdict}: {result.reason}; nothing was taken away")
    return {"removed": result.ops, "request": result.request}


def directly() -> None:
    """Ask netagent ourselves: root's way while no fetcher runs, which would put everything back."""
    if os.geteuid() != 0:
        raise SystemExit("cloud-network-fetcher: only root may flush. Use: sudo cloud-network-fetcher --flush")
    if _runs():
        raise SystemExit("cloud-network-fetcher: one is running, and would put everything back. Use: sudo cnctl flush")
    try:
        with Netagent() as netagent:
            print(f"removed {flush_answer(netagent.flush())['removed']} addresses, routes and rules")
    except NetagentError as error:
        raise SystemExit(f"cloud-network-fetcher: {error}") from None


def _runs() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(control.SOCKET)) == 0
