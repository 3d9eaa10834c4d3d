"""Every error as RFC 9457 problem JSON: what is wrong, and in `detail` what to do next."""

import json
import logging
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

logger = logging.getLogger(__name__)

MIMETYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is an error; `more` are extension members of the problem object."""

    def __init__(
        self,
        status: int,
        detail: str,
        headers: dict[str, str] | None = None,
        more: dict[str, object] | None = None,
    ):
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.more = more or {}


def encode(status: int, detail: str, **more: object) -> bytes:
    """Make the problem object; ASCII, so that no name in it can steer a terminal."""
    title = HTTPStatus(status).phrase
    members = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return json.dumps(members).encode() + b"\n"


def install(app: Flask) -> None:
    """Answer every failure of the application, foreseen or not, with a problem."""

    @app.errorhandler(Problem)
    def _problem(problem: Problem) -> Response:
        return _respond(problem.status, problem.detail, problem.headers, **problem.more)

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        status = error.code or 500
        if isinstance(error, MethodNotAllowed):
            allow = ", ".join(sorted(error.valid_methods or ()))
            detail = f"{request.method} is not for {request.path}, which can only be read: use {allow}."
            return _respond(status, detail, {"Allow": allow})
        if status == HTTPStatus.NOT_FOUND:
            return _respond(status, f"There is nothing at {request.path}. Routes: {', '.join(_routes(app))}.")
        return _respond(status, error.description or HTTPStatus(status).phrase)

    @app.errorhandler(Exception)
    def _unforeseen(error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.path, exc_info=error)
        return _respond(
            500, "This is a mistake in cloud-network-api; its log has the details: journalctl -u cloud-network-api."
        )


def _routes(app: Flask) -> list[str]:
    return sorted(rule.rule for rule in app.url_map.iter_rules())


def _respond(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    content = encode(status, detail, instance=request.path, **more)
    return Response(content, status, headers, mimetype=MIMETYPE)
