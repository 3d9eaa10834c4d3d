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
DEGRADED_S = 10.0
"""A host that is degraded for so long is configured as far as it can be. IPv6 waits seconds for its router."""


def run(timeout_s: float | None, config: Path | None, state: Path) -> Exit:
    """Wait for at most `timeout_s` seconds (default: ReadyTimeout=). Raises Failure if the network is not ready by
    then.

    The state files are read instead of asking the api, because the api need not run for units that wait.
    """
    if timeout_s is None:
        timeout_s = read_configuration(config or PATH).ready_timeout
    files, end = StateDirectory(state), time.monotonic() + timeout_s
    degraded_until = end
    while True:
        try:
            claim = files.read_claim()
        except StateError as error:
            claim, reason = Claim(None, None), safe(error)
        else:
            reason = _reason(claim)
        if claim.status is not None:
            state_now = _compared_state(claim)
            if state_now == "degraded":
                degraded_until = min(degraded_until, time.monotonic() + DEGRADED_S)
            if state_now == "ok" or (state_now == "degraded" and time.monotonic() >= degraded_until):
                return Exit.OK
            if _is_cloud_unknown(claim.status):
                raise Failure(Exit.NO_STATE, reason)
        if time.monotonic() >= end:
            raise Failure(
                Exit.FAILED, f"the network is not configured after {timeout_s:g} s: {reason}. See: cnctl status"
            )
        time.sleep(POLL_S)


def _compared_state(claim: Claim) -> str | None:
    """Return the state, if the fetcher that runs has compared the kernel with the metadata."""
    status = claim.status
    if status is None or claim.doubt is not None or status["fetched_at"] is None or status["compared_at"] is None:
        return None
    return status["state"]


def _is_cloud_unknown(status: Status) -> bool:
    """Return True if the fetcher of this boot ended because it detected no cloud, or more than one."""
    error = status["last_error"]
    kind = error["kind"] if error is not None else None
    return status["boot_id"] == boot_id() and kind in ("detection", "no-cloud")


def _reason(claim: Claim) -> str:
    error = claim.status["last_error"] if claim.status is not None else None
    if error is not None:
        return safe(error["message"])
    return claim.explain_doubt(time.time()) or "the metadata has not been read yet"
