"""The REST server: read-only, from the state files, on loopback.

    worker.py (gunicorn) → guard.py (Host, headers) → here (routes) → views.py → bodies.py → /run/cloud-network
          ↘ shortcut.py (a plain GET) ──────────────────────────────↗
                                                      problem.py: every error, as RFC 9457 JSON

Nothing here can change anything, and no secret can be had here: the process has no access to any.
"""

import json
from collections.abc import Sequence
from typing import Any

from cloud_network.api import answers, audit, guard, openapi, problem
from cloud_network.api.bodies import Body, body
from cloud_network.api.openapi import Parameter, Route
from cloud_network.api.problem import Problem
from cloud_network.api.shortcut import Shortcut
from cloud_network.api.views import Views
from cloud_network.fetcher.config import Endpoint
from cloud_network.fetcher.state import IDENTITY_PARTS, StateDirectory
from flask import Flask, Response, request

HTML, TEXT = "text/html; charset=utf-8", "text/plain; version=0.0.4; charset=utf-8"
SECRETS = {
    "credentials": "Credentials are never given over TCP, where any local user could ask. "
    "Use: sudo cnctl show credentials",
    "user-data": "User data is never given over TCP, where any local user could ask, and is kept nowhere. "
    "As root, ask the metadata server itself",
    "custom-data": "Custom data is never given over TCP, where any local user could ask, and is kept nowhere. "
    "As root, ask the metadata server itself",
    "attributes": "Attributes can hold secrets: they are never given over TCP, where any local user could ask, "
    "and are kept nowhere. As root, ask the metadata server itself",
}
"""What is below /api/cloud and never served, and the way that root has."""


def routes(views: Views) -> list[Route]:
    """All that can be asked for."""
    name = Parameter("name", "The link's name.", {"type": "string", "minLength": 1})
    part = Parameter("part", "A part of the signed identity.", {"enum": list(IDENTITY_PARTS)})
    limit = {"type": "integer", "minimum": 1, "maximum": audit.MOST, "default": 50}
    lines = Parameter("limit", "How many of the last lines.", limit, in_path=False)
    return [
        Route("/", "The state for a person with a browser.", views.page, mimetype=HTML),
        Route("/metrics", "The state for Prometheus.", views.metrics, mimetype=TEXT),
        Route("/api/cloud/system", "What the metadata says of the instance.", views.system, dict[str, Any], dated=True),
        Route(
            "/api/cloud/network",
            "What it says of each link, by MAC address.",
            *(views.network, dict[str, Any]),
            dated=True,
        ),
        Route(
            "/api/cloud/dynamicinstanceidentity/<part>",
            "The signed identity document: an object where it is JSON, else text.",
            *(views.identity, Any),
            parameter=part,
            errors=(404, 503),
            dated=True,
        ),
        *(
            Route(f"/api/cloud/{secret}", "Never given here; says how root has it.", answers=False, errors=(403,))
            for secret in SECRETS
        ),
        Route("/api/v1/status", "What the fetcher believes.", views.status, answers.DatedStatus),
        Route("/api/v1/links", "Every link.", views.links, answers.Links),
        Route("/api/v1/links/<name>", "One link.", views.link, answers.DatedLink, parameter=name, errors=(404, 503)),
        Route("/api/v1/audit", "The audit log's end.", views.audit, answers.Audit, parameter=lines, errors=(400, 503)),
        Route("/api/v1/health", "Whether the network is cared for.", views.health, answers.Health),
    ]


def create_app(state: StateDirectory, listen: Sequence[Endpoint], log: str = audit.PATH) -> Flask:
    """Build the WSGI application that serves one state directory and one audit log, and listens there."""
    app = Flask("cloud-network-api", static_folder=None, template_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # a redirect would be an answer that is no problem JSON
    problem.install(app)
    allowed = guard.hosts(listen)
    guard.install(app, listen, allowed)
    served = routes(Views(state, audit.AuditLog(log)))
    for route in served:
        _add(app, route)
    described = body(json.dumps(openapi.document(served)).encode() + b"\n")
    _add(app, Route("/openapi.json", "This interface, for programs.", lambda: described))
    app.wsgi_app = Shortcut(app.wsgi_app, served, allowed)  # type: ignore[method-assign]
    return app


def _add(app: Flask, route: Route) -> None:
    def refuse() -> Response:
        raise Problem(403, f"{SECRETS[route.path.rpartition('/')[2]]}.")

    def plain() -> Response:
        return _respond(route.view(), route.mimetype)

    def one(**arguments: str) -> Response:
        return _respond(route.view(*arguments.values()), route.mimetype)

    def asked() -> Response:
        given = route.parameter and request.args.get(route.parameter.name)
        return _respond(route.view(*([] if given is None else [given])), route.mimetype)

    def page() -> Response:
        from cloud_network.api import page as html  # Jinja2's share of the memory, for those who have a browser

        try:
            answer = _respond(route.view(), route.mimetype)
        except Problem as why:
            answer = Response(html.render_nothing(why.detail), why.status, why.headers, content_type=route.mimetype)
        answer.headers.update(html.HEADERS)
        return answer

    if not route.answers:
        view: Any = refuse
    elif route.mimetype == HTML:
        view = page
    elif route.parameter:
        view = one if route.parameter.in_path else asked
    else:
        view = plain
    app.add_url_rule(route.path, route.path, view, methods=["GET"])


def _respond(found: Body, mimetype: str) -> Response:
    headers = {"ETag": found.etag, **dict(found.about)}
    if "HTTP_IF_NONE_MATCH" in request.environ and request.if_none_match.contains_weak(found.etag.strip('"')):
        return Response(status=304, headers=headers)
    return Response(found.content, headers=headers, content_type=mimetype)


def main() -> None:
    """`cloud-network-api`: serve until told to stop."""
    from cloud_network.api import serve

    serve.main()
