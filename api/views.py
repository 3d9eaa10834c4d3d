"""The response of each route, computed from the state files on each request."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from cloud_network.api import metrics, openapi, page
from cloud_network.api.audit_log import MAX_LINES, AuditLog, Tail
from cloud_network.fetcher.state import IDENTITY_PARTS, Claim, StateDirectory, StateError
from cloud_network.fetcher.status import Status
from flask import Response, render_template, request

FETCHER_RUNNING = "running"
UNKNOWN = "unknown"
"""The state reported for a host whose fetcher is in doubt, as in /metrics."""
RETRY_HEADER = {"Retry-After": "5"}


class Problem(Exception):
    """An error response; `members` are extension members of the problem object."""

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ):
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers, self.members = headers or {}, members or {}


def json_response(value: object) -> Response:
    """Return a JSON response in ASCII, so that no text in it can control a terminal."""
    return Response(json.dumps(value, separators=(",", ":")) + "\n", mimetype="application/json")


class Views:
    """The routes. A method raises Problem(503) while there is no state."""

    def __init__(self, state: StateDirectory, log: AuditLog):
        self._state = state
        self._log = log

    def system(self) -> Response:
        """Return the metadata of the instance, in the provider's format."""
        claim = self._claim()
        try:
            document = self._state.read_system()
        except StateError as error:
            raise _unreadable(error) from error
        if document is None:
            raise _never_read(claim)
        return _dated(json_response(document), claim)

    def network(self) -> Response:
        """Return the links' metadata by MAC address, in the format of the Go original."""
        claim = self._claim()
        try:
            documents = self._state.read_links()
        except StateError as error:
            raise _unreadable(error) from error
        if not documents and _status(claim)["fetched_at"] is None:
            raise _never_read(claim)
        return _dated(json_response({str(each.get("mac")): each for each in documents.values()}), claim)

    def identity(self, part: str) -> Response:
        """Return one part of the signed identity: an object if the document is JSON, else a string."""
        if part not in IDENTITY_PARTS:
            raise Problem(HTTPStatus.NOT_FOUND, f"There is no part {part!r}; accepted: {', '.join(IDENTITY_PARTS)}.")
        claim = self._claim()
        provider = _status(claim)["provider"]
        if not provider:
            raise _never_read(claim)
        try:
            content = self._state.read_identity(provider, part)
        except StateError as error:
            raise _unreadable(error) from error
        if content is None and _status(claim)["fetched_at"] is None:
            raise _never_read(claim)
        if content is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"{provider} gives this instance no {part}.")
        return _dated(_object_or_text(content), claim)

    def refuse_secret(self) -> Response:
        """Refuse a secret, and name the command for root."""
        raise Problem(HTTPStatus.FORBIDDEN, openapi.SECRETS[request.path.rpartition("/")[2]])

    def status(self) -> Response:
        """Return the state of the fetcher."""
        claim = self._claim()
        return json_response({**_status(claim), **_freshness(claim)})

    def links(self) -> Response:
        """Return every link's part of the status, by ifindex."""
        claim = self._claim()
        links = sorted(_status(claim)["links"].values(), key=lambda link: link["ifindex"])
        return json_response({**_dates(claim), "links": links})

    def link(self, name: str) -> Response:
        """Return one link's part of the status."""
        claim = self._claim()
        links = {link["name"]: link for link in _status(claim)["links"].values()}
        if name not in links:
            names = ", ".join(sorted(links)) or "none"
            detail = f"The metadata names no link {name!r} of this host; it names: {names}."
            raise Problem(HTTPStatus.NOT_FOUND, detail)
        return json_response({**links[name], **_dates(claim)})

    def health(self) -> Response:
        """Return 200 if the network is maintained and agrees with current metadata, or is degraded; else 503."""
        claim = self._claim()
        state = UNKNOWN if claim.doubt else _status(claim)["state"]
        members = {"state": state, **_dates(claim)}
        if state in ("ok", "degraded") and not members["stale"]:
            return json_response(members)
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, _unhealthy(claim, state), members=members)

    def metrics(self) -> Response:
        """Return the state for Prometheus. Without a state, the metrics report that."""
        try:
            claim = self._state.read_claim()
        except StateError:
            claim = None
        return Response(metrics.encode(claim), content_type=metrics.CONTENT_TYPE)

    def audit(self) -> Response:
        """Return the last lines of the audit log."""
        text = request.args.get("limit", "50")
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and 0 < int(text) <= MAX_LINES):
            detail = f"limit={text!r} is not accepted; accepted: a number from 1 to {MAX_LINES}."
            raise Problem(HTTPStatus.BAD_REQUEST, detail)
        try:
            tail = self._log.last(int(text))
        except FileNotFoundError:
            raise _no_log(f"{self._log.path} does not exist: netagent has had no request yet") from None
        except OSError as error:
            raise _no_log(f"{self._log.path} cannot be read: {error.strerror}") from error
        return json_response({"log": str(self._log.path), **tail._asdict()})

    def page(self) -> Response:
        """Return the HTML page."""
        try:
            claim, reason = self._state.read_claim(), None
        except StateError as error:
            claim, reason = None, str(error)
        content = page.build(claim, reason, self._tail(), time.time())
        text = render_template("page.html", style=page.STYLE, **content).encode(errors="replace")
        code = HTTPStatus.OK if claim is not None and claim.status is not None else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(text, code, page.HEADERS, content_type=page.CONTENT_TYPE)

    def _tail(self) -> Tail | None:
        try:
            return self._log.last(page.MAX_CHANGES)
        except OSError:
            return None

    def _claim(self) -> Claim:
        try:
            claim = self._state.read_claim()
        except StateError as error:
            raise _unreadable(error) from error
        if claim.status is None:
            raise _never_read(claim)
        return claim


def _status(claim: Claim) -> Status:
    if claim.status is None:
        raise _never_read(claim)
    return claim.status


def _freshness(claim: Claim) -> dict[str, Any]:
    return {"stale": claim.stale(time.time()), "fetcher": str(claim.doubt or FETCHER_RUNNING)}


def _dates(claim: Claim) -> dict[str, Any]:
    status = _status(claim)
    return {"generation": status["generation"], "fetched_at": status["fetched_at"], **_freshness(claim)}


def _dated(response: Response, claim: Claim) -> Response:
    """Add the dates as headers, because the body has the cloud's own format."""
    dates = _dates(claim)
    values = {
        "Cloud-Network-Generation": str(dates["generation"]),
        "Cloud-Network-Fetched-At": dates["fetched_at"] or "never",
        "Cloud-Network-Stale": "true" if dates["stale"] else "false",
        "Cloud-Network-Fetcher": dates["fetcher"],
    }
    response.headers.update(values)
    return response


def _object_or_text(content: bytes) -> Response:
    try:
        return json_response(json.loads(content))
    except (ValueError, RecursionError):
        return json_response(content.decode(errors="replace"))


def _unhealthy(claim: Claim, state: str) -> str:
    status = _status(claim)
    reasons = [f"State: {state}."]
    if doubt := claim.explain_doubt(time.time()):
        reasons.append(f"{doubt[0].upper()}{doubt[1:]}.")
    elif status["fetched_at"] is None:
        reasons.append("The metadata has never been read.")
    elif claim.stale(time.time()):
        reasons.append(f"The metadata is out of date: last read at {status['fetched_at']}.")
    if error := status["last_error"]:
        reasons.append(f"Last error, at {error['at']}: {error['message']}.")
    return " ".join([*reasons, "See: cnctl status."])


def _never_read(claim: Claim) -> Problem:
    """Return the problem of a host whose metadata has never been read, with the reason if known."""
    reasons = ["The metadata has never been read."]
    if doubt := claim.explain_doubt(time.time()):
        reasons.append(f"{doubt[0].upper()}{doubt[1:]}.")
    if claim.status is not None and (error := claim.status["last_error"]):
        reasons.append(f"Last error, at {error['at']}: {error['message']}.")
    detail = " ".join([*reasons, "See: journalctl -u cloud-network-fetcher."])
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, RETRY_HEADER)


def _unreadable(error: StateError) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"The state cannot be read: {error}.", RETRY_HEADER)


def _no_log(reason: str) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}. See: systemctl status cloud-network-netagent.")
