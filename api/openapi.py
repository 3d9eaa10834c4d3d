"""The description of the REST interface (/openapi.json) and the types of its responses.

OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0), whose schemas are JSON Schema 2020-12.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from cloud_network.api.audit_log import MAX_LINES
from cloud_network.fetcher.state import IDENTITY_PARTS
from cloud_network.fetcher.status import LinkStatus, Status

Json = dict[str, Any]
JSON, TEXT, HTML = "application/json", "text/plain", "text/html"
SECRETS: Mapping[str, str] = {
    "credentials": "Credentials are not served over HTTP, where any local user can ask. "
    "Use: sudo cnctl show credentials.",
    "user-data": "User data is not served over HTTP, where any local user can ask, and is not stored. "
    "As root, ask the metadata server.",
    "custom-data": "Custom data is not served over HTTP, where any local user can ask, and is not stored. "
    "As root, ask the metadata server.",
    "attributes": "Attributes can hold secrets: they are not served over HTTP, where any local user can ask, and are "
    "not stored. As root, ask the metadata server.",
}
"""Names below /api/cloud that are never served, and the command for root to read them."""
DATES = {
    "Cloud-Network-Generation": "Generation of the state.",
    "Cloud-Network-Fetched-At": "Time of the last complete answer of the metadata server, or never.",
    "Cloud-Network-Stale": "true if the state is out of date, else false.",
    "Cloud-Network-Fetcher": "running, or the reason why the state is in doubt.",
}
ALWAYS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_URI_TOO_LONG,
    HTTPStatus.MISDIRECTED_REQUEST,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
)
"""Statuses that every route returns for a malformed request or a wrong Host header."""

Fetcher = Literal["running", "not running", "earlier run", "earlier boot", "not renewed"]


class DatedStatus(Status):
    """The state of the fetcher, and whether it is current."""

    stale: bool
    fetcher: Fetcher


class Links(TypedDict):
    """Every link that the metadata names and this host has, by ifindex."""

    generation: int
    fetched_at: str | None
    stale: bool
    fetcher: Fetcher
    links: list[LinkStatus]


class DatedLink(LinkStatus):
    """One link."""

    generation: int
    fetched_at: str | None
    stale: bool
    fetcher: Fetcher


class Health(TypedDict):
    """The answer of a healthy or degraded host."""

    state: Literal["ok", "degraded"]
    stale: bool
    fetcher: Fetcher
    generation: int
    fetched_at: str | None


class Audit(TypedDict):
    """The last lines of the audit log as netagent wrote them, the newest last."""

    log: str
    broken: int  # lines left out because they are not JSON objects
    entries: list[dict[str, Any]]


class Problem(TypedDict):
    """An RFC 9457 problem; some problems have further members."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the path or the query."""

    name: str
    description: str
    schema: Json
    in_path: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """One path. `shape` is the type of its JSON response; `errors` are further statuses."""

    path: str
    summary: str
    shape: Any = None
    media_type: str = JSON
    parameter: Parameter | None = None
    errors: tuple[int, ...] = (503,)
    refused: bool = False  # never answers 200
    dated: bool = False  # DATES are headers, because the body has the cloud's own format


_NAME = Parameter("name", "The link's name.", {"type": "string", "minLength": 1})
_PART = Parameter("part", "A part of the signed identity.", {"enum": list(IDENTITY_PARTS)})
_LIMIT = Parameter(
    "limit",
    "Number of the last lines.",
    {"type": "integer", "minimum": 1, "maximum": MAX_LINES, "default": 50},
    in_path=False,
)
ROUTES = (
    Route("/", "The state as a page for a browser.", media_type=HTML),
    Route("/metrics", "The state for Prometheus.", media_type=TEXT, errors=()),
    Route("/openapi.json", "This interface, for programs.", Json, errors=()),
    Route("/api/cloud/system", "The metadata of the instance.", Json, dated=True),
    Route("/api/cloud/network", "The metadata of each link, by MAC address.", Json, dated=True),
    Route(
        "/api/cloud/dynamicinstanceidentity/{part}",
        "The signed identity document: an object where it is JSON, else a string.",
        Any,
        parameter=_PART,
        errors=(404, 503),
        dated=True,
    ),
    *(
        Route(f"/api/cloud/{secret}", "Not served; the error names the command for root.", errors=(403,), refused=True)
        for secret in SECRETS
    ),
    Route("/api/v1/status", "The state of the fetcher.", DatedStatus),
    Route("/api/v1/links", "Every link.", Links),
    Route("/api/v1/links/{name}", "One link.", DatedLink, parameter=_NAME, errors=(404, 503)),
    Route("/api/v1/audit", "The end of the audit log.", Audit, parameter=_LIMIT),
    Route("/api/v1/health", "200 if the network is maintained (state ok or degraded), else 503.", Health),
)
PATHS = tuple(sorted(route.path for route in ROUTES))


def document() -> Json:
    """Return the OpenAPI document."""
    schemas: dict[str, Json] = {}
    problem = _schema(Problem, schemas)
    schemas["Problem"].pop("additionalProperties")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cloud-network",
            "version": version("cloud-network"),
            "description": "The state of this instance's network. Read-only; errors are RFC 9457 problems.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {route.path: {"get": _operation(route, schemas)} for route in ROUTES},
        "components": {
            "schemas": schemas,
            "responses": {
                "Problem": {"description": "An error.", "content": {"application/problem+json": {"schema": problem}}},
                "NotModified": {"description": "The client has this body: If-None-Match names its ETag."},
            },
        },
    }


def _operation(route: Route, schemas: dict[str, Json]) -> Json:
    responses: Json = {}
    if not route.refused:
        responses["200"] = _success(route, schemas)
        responses["304"] = {"$ref": "#/components/responses/NotModified"}
    for status in (*route.errors, *ALWAYS):
        responses.setdefault(str(int(status)), {"$ref": "#/components/responses/Problem"})
    if route.media_type == HTML:  # without a state, the page is still HTML
        responses["503"] = {"description": "The page names what is missing.", "content": {HTML: {}}}
    operation: Json = {"operationId": _operation_id(route.path), "summary": route.summary, "responses": responses}
    if route.parameter:
        operation["parameters"] = [_parameter(route.parameter)]
    return operation


def _success(route: Route, schemas: dict[str, Json]) -> Json:
    schema = {"type": "string"} if route.media_type != JSON else _schema(route.shape, schemas)
    headers = {"ETag": "Entity tag of this body.", **(DATES if route.dated else {})}
    return {
        "description": route.summary,
        "headers": {
            name: {"description": text, "required": True, "schema": {"type": "string"}}
            for name, text in headers.items()
        },
        "content": {route.media_type: {"schema": schema}},
    }


def _parameter(parameter: Parameter) -> Json:
    place = {"in": "path", "required": True} if parameter.in_path else {"in": "query"}
    return {"name": parameter.name, **place, "description": parameter.description, "schema": parameter.schema}


def _operation_id(path: str) -> str:
    return "_".join(filter(None, path.replace("{", "").replace("}", "").replace(".", "_").split("/"))) or "page"


def _schema(shape: Any, schemas: dict[str, Json]) -> Json:
    """Return the JSON Schema of a type. A TypedDict becomes a component, referred to by name."""
    if is_typeddict(shape):
        name = shape.__name__
        if name not in schemas:
            schemas[name] = {}  # reserves the name: a type may contain itself
            schemas[name] = _object(shape, schemas)
        return {"$ref": f"#/components/schemas/{name}"}
    origin, arguments = get_origin(shape), get_args(shape)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(each, schemas) for each in arguments]}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], schemas)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], schemas)}
    return dict(_PLAIN[shape])


def _object(shape: Any, schemas: dict[str, Json]) -> Json:
    hints = get_type_hints(shape)
    return {
        "description": (shape.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": {name: _schema(each, schemas) for name, each in hints.items()},
        "required": sorted(shape.__required_keys__),
        "additionalProperties": False,
    }


_PLAIN: dict[Any, Json] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}
