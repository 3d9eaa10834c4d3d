"""`cnctl status system`: facts of the instance, in the layout of the Go original; `--all` shows all of the metadata.

AWS has the original's table, with a line for every key. Other clouds have those lines of `facts` for which their
metadata has a value. For a cloud without either, the metadata is shown as it is nested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cloud_network.api.cnctl import output
from cloud_network.api.cnctl.facts import FACTS
from cloud_network.api.cnctl.output import Exit, Row, safe
from cloud_network.api.cnctl.source import Source, warn_if_stale
from cloud_network.fetcher.state import Document, Json

EMPTY_LIST = "[]"
"""Metadata keys of AWS that hold JSON in a string; most hosts have no events."""

Column = tuple[str, str | Callable[[Document], str]]


def run(source: Source, as_json: bool, everything: bool) -> Exit:
    """Print the facts."""
    document, claim = source.system(), source.claim()
    warn_if_stale(claim)
    if as_json:
        output.show_json(document)
        return Exit.OK
    provider = source.status_of(claim)["provider"]
    found = flat(document) if everything else rows(provider, document)
    table: list[Row] = [("Cloud provider", provider), *found]
    print(output.rows(table, max(len(key) for key, _ in table), output.columns()))
    return Exit.OK


def rows(provider: str, document: Document) -> list[Row]:
    """Return the rows of the provider's table."""
    if provider == "aws":
        original = [(key, value(document) if callable(value) else _text(document, value)) for key, value in AWS]
        return [*original, *_facts("aws", document)]
    return _facts(provider, document) if provider in FACTS else flat(document)


def flat(value: Json) -> list[Row]:
    """Return a row for every value that is not empty, keyed by its path. Lines of a plain text become words."""
    found: list[Row] = []
    for path, text in _leaves("", value):
        lines = text.split("\n")
        if text:
            found.append((safe(path), " ".join(lines) if all(map(str.isprintable, lines)) else text))
    return found


def _facts(provider: str, document: Document) -> list[Row]:
    return [(key, found) for key, *paths in FACTS[provider] if (found := fact_words(document, paths))]


def _leaves(path: str, value: Json) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{path}/{key}" if path else key, item)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for position, item in enumerate(value):
            yield from _leaves(f"{path}/{position}", item)
    else:
        yield path, " ".join(map(str, value)) if isinstance(value, list) else _shown(value)


def _at(value: Json, path: str) -> list[Json]:
    """Return the values at `key/key/...`, or under a key with slashes; `*` is every item of a list or object."""
    if not path:
        return [] if value is None else [value]
    if isinstance(value, dict) and path in value:
        return [value[path]]
    key, _, rest = path.partition("/")
    if key == "*":
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [found for item in items for found in _at(item, rest)]
    return _at(value[key], rest) if isinstance(value, dict) and key in value else []


def _shown(value: Json) -> str:
    return "" if value is None else str(value)


def _text(document: Document, path: str) -> str:
    texts: list[str] = []
    for found in _at(document, path):
        if isinstance(found, list):
            texts += [str(item) for item in found if not isinstance(item, dict | list | None)]
        elif not isinstance(found, dict):
            texts.append(_shown(found))
    return " ".join(texts)


def fact_words(document: Document, paths: list[str]) -> list[str]:
    """Return all values at the paths. For a path that ends in a slash, return the part after the value's last slash."""
    found = []
    for path in paths:
        text = _text(document, path.removesuffix("/"))
        if text != EMPTY_LIST:
            found += (text.rpartition("/")[2] if path.endswith("/") else text).split()
    return found


def _named(**paths: str) -> Callable[[Document], str]:
    """Return a function that joins several values as `Name:value Name:value`; "" if the metadata has none of them."""

    def value(document: Document) -> str:
        texts = {name: _text(document, path) for name, path in paths.items()}
        return " ".join(f"{name}:{text}" for name, text in texts.items()) if any(texts.values()) else ""

    return value


AWS: tuple[Column, ...] = (
    ("AmiID", "ami-id"),
    ("Location", "ami-launch-index"),
    ("BlockDeviceMapping", _named(Ami="block-device-mapping/ami", Root="block-device-mapping/root")),
    ("Hostname", "hostname"),
    ("PublicHostname", "public-hostname"),
    ("LocalHostname", "local-hostname"),
    ("InstanceAction", "instance-action"),
    ("InstanceID", "instance-id"),
    ("InstanceLifeCycle", "instance-life-cycle"),
    ("InstanceType", "instance-type"),
    (
        "Placement",
        _named(
            AvailabilityZone="placement/availability-zone",
            AvailabilityZoneID="placement/availability-zone-id",
            Region="placement/region",
        ),
    ),
    ("Profile", "profile"),
    ("Mac Address", "mac"),
    ("LocalIpv4", "local-ipv4"),
    ("PublicIpv4", "public-ipv4"),
    ("Services Domain", "services/domain"),
    ("Services Partition", "services/partition"),
)
"""The table of the Go original."""
