"""Flask, for what the shortcut does not answer: parts of paths and queries, conditions, the page, and all errors.

Nothing imports this before it is needed: most hosts are only ever asked for /metrics, /api/v1/health and the like.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from cloud_network.api import guard, openapi, problem
from cloud_network.api.app import HTML, SECRETS
from cloud_network.api.bodies import Body, body
from cloud_network.api.openapi import Route
from cloud_network.api.problem import Problem
from cloud_network.fetcher.config import Endpoint
from flask import Flask, Response, request


def create(served: Sequence[Route], listen: Sequence[Endpoint], allowed: Callable[[str], bool]) -> Flask:
    """Build the application that serves these routes to who may be answered, and their description."""
    app = Flask("cloud-network-api", static_folder=None, template_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # a redirect would be an answer that is no problem JSON
    problem.install(app)
    guard.install(app, listen, allowed)
    for route in served:
        _add(app, route)
    described = body(json.dumps(openapi.document(served)).encode() + b"\n")
    _add(app, Route("/openapi.json", "This interface, for programs.", lambda: described))
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
