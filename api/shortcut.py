"""In front of Flask: a plain GET of what is made already is answered without the framework, whose half it saves.

Only a 200 to a request without conditions is; everything else goes on to Flask, which decides it anew from the start.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cloud_network.api.guard import HEADERS
from cloud_network.api.openapi import Route
from cloud_network.api.problem import Problem

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Shortcut:
    """A WSGI application around another. `allowed` says which hosts may be asked for."""

    def __init__(self, app: "WSGIApplication", routes: Iterable[Route], allowed: Callable[[str], bool]):
        self._app = app
        self._allowed = allowed
        self._routes = {
            route.path: (route.view, [*HEADERS.items(), ("Content-Type", route.mimetype)])
            for route in routes
            if route.answers and not route.parameter and not route.mimetype.startswith("text/html")
        }

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer, or have it answered."""
        found = self._routes.get(environ["PATH_INFO"])
        if (
            found
            and environ["REQUEST_METHOD"] == "GET"
            and "HTTP_IF_NONE_MATCH" not in environ
            and not environ["SCRIPT_NAME"]
            and self._allowed(environ.get("HTTP_HOST", ""))
        ):
            view, headers = found
            try:
                content, etag, about = view()
            except Problem:
                return self._app(environ, start_response)
            start_response("200 OK", [*headers, *about, ("ETag", etag), ("Content-Length", str(len(content)))])
            return (content,)
        return self._app(environ, start_response)
