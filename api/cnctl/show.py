"""`cnctl show`: print one item of the metadata, unchanged.

The parts of the identity document are read from the state files and not from REST: a signature covers the exact bytes,
and REST answers JSON. A pipe or file gets the bytes unchanged; on a terminal they are escaped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from cloud_network.api.cnctl import control, output
from cloud_network.api.cnctl.output import Exit, Failure, safe
from cloud_network.api.cnctl.source import Source, never_read, warn_if_stale
from cloud_network.fetcher.state import Json, StateError
from cloud_network.fetcher.status import Status

KEY_TYPES = ("ssh-", "ecdsa-", "sk-")
"""Prefixes of a line that holds a public key."""


def run(what: str, source: Source, as_json: bool) -> Exit:
    """Print the requested item."""
    if what == "credentials":
        _credentials(source)
        return Exit.OK
    claim = source.claim()
    status = source.status_of(claim)
    if what == "ssh-keys":
        _ssh_keys(source, as_json)
    elif what == "project":
        _project(source, status, as_json)
    else:
        _identity(what, source, status, as_json)
    warn_if_stale(claim)
    return Exit.OK


def _credentials(source: Source) -> None:
    why = "credentials of the instance's role are read from the metadata server on request, and never stored"
    found = control.ask(source.directory, "credentials", "show credentials", why, {})
    if not found:
        raise Failure(Exit.FAILED, "the cloud gives this instance no credentials")
    output.show_json({path: _nested(value) for path, value in found.items()})


def _ssh_keys(source: Source, as_json: bool) -> None:
    lines = [line for text in _texts(source.system().get("public-keys")) for line in text.splitlines()]
    keys = [line for line in lines if line.startswith(KEY_TYPES)]
    if as_json:
        output.show_json(keys)
    elif keys:
        print("\n".join(safe(key) for key in keys))
    else:
        raise Failure(Exit.FAILED, "the metadata has no SSH key for this instance")


def _project(source: Source, status: Status, as_json: bool) -> None:
    """Print the project of Google Cloud."""
    project = source.system().get("project")
    if not isinstance(project, dict) or not project:
        raise Failure(Exit.FAILED, f"{safe(status['provider'])} has no projects: only Google Cloud has them")
    if as_json:
        output.show_json(project)
    else:
        print(safe(project.get("projectId")))


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _identity(what: str, source: Source, status: Status, as_json: bool) -> None:
    provider = status["provider"]
    try:
        content = source.files.read_identity(provider, what) if provider else None
    except StateError as error:
        raise Failure(Exit.FAILED, safe(error)) from error
    if content is None and status["fetched_at"] is None:
        raise Failure(Exit.NO_STATE, never_read(status))
    if content is None:
        raise Failure(Exit.FAILED, f"{safe(provider) or 'an unknown cloud'} gives this instance no {what}")
    if as_json:
        output.show_json(_document(content))
    elif sys.stdout.isatty():
        print("\n".join(safe(line) for line in content.decode(errors="replace").splitlines()))
    else:
        sys.stdout.buffer.write(content)


def _nested(value: object) -> object:
    """Return EC2's credentials, which are JSON objects in strings, as objects."""
    return _document(value.encode()) if isinstance(value, str) and value.startswith("{") else value


def _document(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode(errors="replace")
