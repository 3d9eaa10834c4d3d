"""The description of the REST interface, made from the table of routes that is served and the types of the answers.

OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0), whose schemas are JSON Schema 2020-12.
"""

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from cloud_network.api import answers
from cloud_network.api.bodies import Body

Json = dict[str, Any]
DATES = {
    "Cloud-Network-Generation": "As of which complete answer of the metadata server.",
    "Cloud-Network-Fetched-At": "When that was read, or never.",
    "Cloud-Network-Stale": "Whether that is out of date: true or false.",
}
ANYWHERE = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_URI_TOO_LONG,
    HTTPStatus.MISDIRECTED_REQUEST,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
)
"""What every route answers to a request that is none, or not for this server."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of the path, or of the query where it has a default."""

    name: str
    description: str
    schema: Json
    in_path: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """One path that can be read: what answers, and what the answer is like. `shape` is a type, or None for text."""

    path: str
    summary: str
    view: Callable[..., Body] = lambda: Body(b"", "")
    shape: Any = None
    mimetype: str = "application/json"
    parameter: Parameter | None = None
    errors: tuple[int, ...] = (503,)
    answers: bool = True  # False: it never does more than say why not
    dated: bool = False  # generation, fetched_at and stale are in headers, for the body is the cloud's own


def document(routes: Iterable[Route]) -> Json:
    """The OpenAPI document."""
    types_used: dict[str, Json] = {}
    problem = _schema(answers.Problem, types_used)
    types_used["Problem"].pop("additionalProperties")
    paths = {route.path.replace("<", "{").replace(">", "}"): {"get": _get(route, types_used)} for route in routes}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cloud-network",
            "version": version("cloud-network"),
            "description": "What cloud-network knows of this instance's network. Read-only; errors are RFC 9457.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": types_used,
            "responses": {
                "Problem": {"description": "An error.", "content": {"application/problem+json": {"schema": problem}}},
                "NotModified": {"description": "If-None-Match named what it would have been."},
            },
        },
    }


def _get(route: Route, types_used: dict[str, Json]) -> Json:
    found: Json = {"operationId": _name(route.path), "summary": route.summary, "responses": {}}
    if route.answers:
        schema = {"type": "string"} if route.shape is None else _schema(route.shape, types_used)
        content = {route.mimetype.partition(";")[0]: {"schema": schema}}
        headers = {"ETag": "Names this body.", **(DATES if route.dated else {})}
        found["responses"]["200"] = {
            "description": route.summary,
            "headers": {
                name: {"description": what, "required": True, "schema": {"type": "string"}}
                for name, what in headers.items()
            },
            "content": content,
        }
        found["responses"]["304"] = {"$ref": "#/components/responses/NotModified"}
    for status in (*route.errors, *ANYWHERE):
        found["responses"].setdefault(str(int(status)), {"$ref": "#/components/responses/Problem"})
    if route.mimetype.startswith("text/html"):  # for a person, that there is nothing to show is a page as well
        found["responses"]["503"] = {"description": "Says what is missing.", "content": {"text/html": {}}}
    if given := route.parameter:
        where = {"in": "path", "required": True} if given.in_path else {"in": "query"}
        found["parameters"] = [{"name": given.name, **where, "description": given.description, "schema": given.schema}]
    return found


def _name(path: str) -> str:
    return "_".join(filter(None, path.replace("<", "").replace(">", "").replace(".", "_").split("/"))) or "page"


def _schema(shape: Any, types_used: dict[str, Json]) -> Json:
    """The JSON Schema of a type; a TypedDict becomes a component that is referred to."""
    if is_typeddict(shape):
        name = shape.__name__
        if name not in types_used:
            types_used[name] = {}  # its place, while it is made
            types_used[name] = _object(shape, types_used)
        return {"$ref": f"#/components/schemas/{name}"}
    origin, arguments = get_origin(shape), get_args(shape)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(each, types_used) for each in arguments]}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], types_used)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], types_used)}
    return dict(_PLAIN[shape])


def _object(shape: Any, types_used: dict[str, Json]) -> Json:
    hints = get_type_hints(shape)
    return {
        "description": (shape.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": {name: _schema(each, types_used) for name, each in hints.items()},
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
