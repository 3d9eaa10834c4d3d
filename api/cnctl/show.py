"""`cnctl show …`: one thing from the metadata, as it is.

The identity document's parts are read from the state files, not from REST: a signature holds for the exact bytes,
and REST answers JSON. To a pipe or file they go unchanged; to a terminal, made safe.
"""

from __future__ import annotations

import sys

from cloud_network.api.cnctl import control, layout
from cloud_network.api.cnctl.failure import WRONG, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cloud_network.api.cnctl.source import Source
    from cloud_network.fetcher.state import Json

KEY_TYPES = ("ssh-", "ecdsa-", "sk-")
"""How the line of a public key starts."""


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Print what was asked for."""
    if arguments.what == "credentials":
        why = "credentials of the instance's role are fetched for root on request, and never stored"
        found = control.ask(source.files.path, "credentials", "show credentials", why)
        if not found:
            raise Failure(WRONG, "the cloud gives this instance no credentials")
        layout.show_json({path: _nested(value) for path, value in found.items()})
    elif arguments.what == "ssh-keys":
        _ssh_keys(arguments, source)
    elif arguments.what == "project":
        _project(arguments, source)
    else:
        _identity(arguments, source)
    return 0


def _ssh_keys(arguments: argparse.Namespace, source: Source) -> None:
    keys = [line for text in _texts(source.system().get("public-keys")) for line in text.splitlines()]
    keys = [key for key in keys if key.startswith(KEY_TYPES)]
    if arguments.json:
        layout.show_json(keys)
    elif keys:
        print("\n".join(layout.safe(key) for key in keys))
    else:
        raise Failure(WRONG, "the metadata has no ssh key for this instance")


def _project(arguments: argparse.Namespace, source: Source) -> None:
    """Google's project, as the metadata has it below `project`."""
    project = source.system().get("project")
    if not isinstance(project, dict) or not project:
        raise Failure(WRONG, f"{layout.safe(source.status()['provider'])} has no projects: only Google Cloud does")
    if arguments.json:
        layout.show_json(project)
    else:
        print(layout.safe(project.get("projectId")))


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _identity(arguments: argparse.Namespace, source: Source) -> None:
    provider = source.status()["provider"]
    content = source.files.read_identity(provider, arguments.what)
    if content is None:
        raise Failure(WRONG, f"{layout.safe(provider)} gave this instance no {arguments.what}")
    if arguments.json:
        layout.show_json(_document(content))
    elif sys.stdout.isatty():
        print("\n".join(layout.safe(line) for line in content.decode(errors="replace").splitlines()))
    else:
        sys.stdout.buffer.write(content)


def _nested(value: object) -> object:
    """EC2's are JSON objects in a string."""
    return _document(value.encode()) if isinstance(value, str) and value.startswith("{") else value


def _document(content: bytes) -> object:
    import json

    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
