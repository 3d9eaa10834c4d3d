"""The REST server: read-only, from the state files, on loopback.

    worker.py (gunicorn) → shortcut.py (a plain GET) ─────────────────────────────────────↘
                             ↘ framework.py (Flask) → guard.py (Host, headers) → here (routes) → views.py → bodies.py
                                                      problem.py: every error, as RFC 9457 JSON

Nothing here can change anything, and no secret can be had here: the process has no access to any.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cloud_network.api import answers, audit, guard
from cloud_network.api.openapi import Parameter, Route
from cloud_network.api.shortcut import Shortcut
from cloud_network.api.views import Views
from cloud_network.fetcher.config import Endpoint
from cloud_network.fetcher.state import IDENTITY_PARTS, StateDirectory

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

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


def create_app(state: StateDirectory, listen: Sequence[Endpoint], log: str = audit.PATH) -> Shortcut:
    """Build the WSGI application that serves one state directory and one audit log, and listens there."""
    allowed = guard.hosts(listen)
    served = routes(Views(state, audit.AuditLog(log)))

    def behind() -> "WSGIApplication":
        from cloud_network.api import framework  # half of what the process would have in memory

        return framework.create(served, listen, allowed)

    return Shortcut(behind, served, allowed)


def main() -> None:
    """`cloud-network-api`: serve until told to stop."""
    from cloud_network.api import serve

    serve.main()
