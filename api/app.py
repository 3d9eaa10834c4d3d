"""The REST server: read-only, from the state files, on loopback.

    worker.py (gunicorn) → guard.py (Host, headers) → here (routes) → views.py → bodies.py → /run/cloud-network
                                                          problem.py: every error, as RFC 9457 JSON

Nothing here can change anything, and no secret can be had here: the process has no access to any.
"""

from collections.abc import Callable

from cloud_network.api import guard, problem
from cloud_network.api.bodies import Body
from cloud_network.api.problem import Problem
from cloud_network.api.views import Views
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.state import StateDirectory
from flask import Flask, Response, request


def create_app(state: StateDirectory, config: Config) -> Flask:
    """Build the WSGI application that serves one state directory."""
    app = Flask("cloud-network-api", static_folder=None, template_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # a redirect would be an answer that is no problem JSON
    views = Views(state)
    problem.install(app)
    guard.install(app, config.listen)

    def plain(path: str, view: Callable[[], Body]) -> None:
        app.add_url_rule(path, path, lambda: _respond(view()), methods=["GET"])

    plain("/api/cloud/system", views.system)
    plain("/api/cloud/network", views.network)
    plain("/api/v1/status", views.status)
    plain("/api/v1/links", views.links)
    plain("/api/v1/health", views.health)

    @app.get("/api/v1/links/<name>")
    def link(name: str) -> Response:
        return _respond(views.link(name))

    @app.get("/api/cloud/dynamicinstanceidentity/<part>")
    def identity(part: str) -> Response:
        return _respond(views.identity(part))

    @app.get("/api/cloud/credentials")
    def credentials() -> Response:
        raise Problem(
            403,
            "Credentials are never given over TCP, where any local user could ask. Use: sudo cnctl show credentials",
        )

    return app


def _respond(found: Body) -> Response:
    headers = {"ETag": found.etag}
    if "HTTP_IF_NONE_MATCH" in request.environ and request.if_none_match.contains_weak(found.etag.strip('"')):
        return Response(status=304, headers=headers)
    return Response(found.content, headers=headers, mimetype="application/json")


def main() -> None:
    """`cloud-network-api`: serve until told to stop."""
    from cloud_network.api import serve

    serve.main()
