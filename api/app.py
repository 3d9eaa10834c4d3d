"""The Flask application: routes, the check of the Host header, response headers, and errors as RFC 9457 problem JSON.

It only reads, and has no access to secrets. It listens on loopback, where any web page in a browser on this host could
reach it through a name that resolves to 127.0.0.1 (DNS rebinding). Such a page must use a name. Therefore only the name
localhost and addresses that this server listens on are accepted. Ports are not compared: an SSH tunnel changes them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path

from cloud_network.api import audit_log, openapi
from cloud_network.api.views import Problem, Views, json_response
from cloud_network.fetcher.config import Endpoint
from cloud_network.fetcher.state import StateDirectory
from flask import Flask, Response, abort, request
from jinja2 import StrictUndefined
from werkzeug.exceptions import HTTPException, MethodNotAllowed

logger = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
LOCAL_NAMES = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every response. There is no CORS header: no other origin may read anything."""
NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of every response except the page."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z.-]+))(?::[0-9]{1,5})?")
_MAX_HOST_LENGTH = 255


def create_app(state: StateDirectory, listen: Sequence[Endpoint], log: Path = audit_log.PATH) -> Flask:
    """Return the application that serves a state directory and an audit log. `listen`: its TCP endpoints."""
    app = Flask("cloud_network.api", static_folder=None, template_folder="templates")
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # a redirect would be a response that is not problem JSON
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    app.before_request(lambda: check_host(request.headers.get("Host", ""), listen))
    app.after_request(_finish)
    app.register_error_handler(Problem, _on_problem)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(Exception, _on_exception)
    for path, view in _views(Views(state, audit_log.AuditLog(log))).items():
        app.add_url_rule(path, path, view, methods=["GET"])
    return app


def _views(views: Views) -> Mapping[str, Callable[..., Response]]:
    description = openapi.document()
    return {
        "/": views.page,
        "/metrics": views.metrics,
        "/openapi.json": lambda: json_response(description),
        "/api/cloud/system": views.system,
        "/api/cloud/network": views.network,
        "/api/cloud/dynamicinstanceidentity/<part>": views.identity,
        **{f"/api/cloud/{secret}": views.refuse_secret for secret in openapi.SECRETS},
        "/api/v1/status": views.status,
        "/api/v1/links": views.links,
        "/api/v1/links/<name>": views.link,
        "/api/v1/audit": views.audit,
        "/api/v1/health": views.health,
    }


def check_host(host: str, listen: Sequence[Endpoint]) -> None:
    """Abort with 421 unless the Host header names this server."""
    if not _names_this_server(host, listen):
        there = " or ".join(f"http://{endpoint}/" for endpoint in listen) or "127.0.0.1"
        detail = f"This server does not answer for the host {host[:_MAX_HOST_LENGTH]!r}; ask for {there} or localhost."
        abort(HTTPStatus.MISDIRECTED_REQUEST, detail)


def _names_this_server(host: str, listen: Sequence[Endpoint]) -> bool:
    match = _HOST.fullmatch(host) if len(host) <= _MAX_HOST_LENGTH else None
    if match is None:
        return False
    name = match[1] or match[2]
    if name.lower() in LOCAL_NAMES:
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    own = {endpoint.address for endpoint in listen}
    return address.is_loopback or address in own or any(each.is_unspecified for each in own)


def _finish(response: Response) -> Response:
    """Add the headers, and an ETag to a body. Answer 304 if the client has that body."""
    response.headers.extend(HEADERS)
    response.headers.setdefault("Content-Security-Policy", NO_CONTENT_POLICY)
    if response.status_code == HTTPStatus.OK:
        response.add_etag()
        response.make_conditional(request)
    return response


def _on_problem(problem: Problem) -> Response:
    return _problem(problem.status, problem.detail, problem.headers, problem.members)


def _on_http_exception(error: HTTPException) -> Response:
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if isinstance(error, MethodNotAllowed):
        allow = ", ".join(sorted(error.valid_methods or ()))
        detail = f"{request.method} is not supported for {request.path}, which is read-only: use {allow}."
        return _problem(status, detail, {"Allow": allow})
    if status == HTTPStatus.NOT_FOUND:
        return _problem(status, f"There is nothing at {request.path}. Routes: {', '.join(openapi.PATHS)}.")
    return _problem(status, error.description or HTTPStatus(status).phrase)


def _on_exception(error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return _problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "This is an error of cloud-network-api. Its log has the details: journalctl -u cloud-network-api.",
    )


def _problem(
    status: int, detail: str, headers: Mapping[str, str] | None = None, members: Mapping[str, object] | None = None
) -> Response:
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    response = json_response({**content, "instance": request.path, **(members or {})})
    response.status_code = status
    response.mimetype = PROBLEM
    response.headers.update(headers or {})
    return response
