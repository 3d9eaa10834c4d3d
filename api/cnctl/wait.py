"""`cnctl wait`: wait until the network is configured. cloud-network-wait-online.service runs it."""

from __future__ import annotations

import time
from pathlib import Path

from cloud_network.api.cnctl.output import Exit, Failure, safe
from cloud_network.api.cnctl.source import read_configuration
from cloud_network.fetcher.config import PATH
from cloud_network.fetcher.state import Claim, StateDirectory, StateError, boot_id
from cloud_network.fetcher.status import Status

POLL_S = 0.25
CONFIGURED = ("ok", "degraded")
"""States after a first comparison with the metadata. Waiting longer does not repair a degraded host."""


def run(timeout_s: float | None, config: Path | None, state: Path) -> Exit:
    """Wait for at most `timeout_s` seconds (default: ReadyTimeout=). Raises Failure if the network is not ready by
    then.

    The state files are read instead of asking the api, because the api need not run for units that wait.
    """
    if timeout_s is None:
        timeout_s = read_configuration(config or PATH).ready_timeout
    files, end = StateDirectory(state), time.monotonic() + timeout_s
    while True:
        try:
            claim = files.read_claim()
        except StateError as error:
            claim, reason = Claim(None, None), safe(error)
        else:
            reason = _reason(claim)
        if claim.status is not None:
            if claim.doubt is None and _is_configured(claim.status):
                return Exit.OK
            if _has_no_cloud(claim.status):
                raise Failure(Exit.NO_STATE, reason)
        if time.monotonic() >= end:
            raise Failure(
                Exit.FAILED, f"the network is not configured after {timeout_s:g} s: {reason}. See: cnctl status"
            )
        time.sleep(POLL_S)


def _is_configured(status: Status) -> bool:
    return status["fetched_at"] is not None and status["compared_at"] is not None and status["state"] in CONFIGURED


def _has_no_cloud(status: Status) -> bool:
    """Return True if the fetcher of this boot ended because no cloud was detected."""
    error = status["last_error"]
    return (
        status["boot_id"] == boot_id() and not status["provider"] and error is not None and error["kind"] == "detection"
    )


def _reason(claim: Claim) -> str:
    error = claim.status["last_error"] if claim.status is not None else None
    if error is not None:
        return safe(error["message"])
    return claim.explain_doubt(time.time()) or "the metadata has not been read yet"
