"""`cnctl status system`: the instance's own facts, in the Go original's layout.

AWS has the original's table, with a line for every key; the others have the lines of `facts` that the metadata fill. A
cloud without either is shown as its metadata is nested.
"""

from __future__ import annotations

from cloud_network.api.cnctl import layout
from cloud_network.api.cnctl.facts import FACTS
from cloud_network.api.cnctl.source import say_if_stale

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cloud_network.api.cnctl.layout import Row
    from cloud_network.api.cnctl.source import Source
    from cloud_network.fetcher.state import Document, Json

    Column = tuple[str, str | Callable[[Document], str]]


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Print the facts."""
    document = source.system()
    if arguments.json:
        layout.show_json(document)
        return 0
    status = source.status()
    provider = status["provider"]
    say_if_stale(status)
    table = [("Cloud provider", provider), *rows(provider, document)]
    print(layout.rows(table, max(len(key) for key, _ in table), layout.columns()))
    return 0


def rows(provider: str, document: Document) -> list[Row]:
    """Each key of the provider's table with its value, empty where the metadata has none."""
    columns = TABLES.get(provider)
    if columns is None and provider in FACTS:
        return [(key, words) for key, *paths in FACTS[provider] if (words := _words(document, paths))]
    if columns is None:
        return list(_flat("", document))
    return [(key, value(document) if callable(value) else _text(document, value)) for key, value in columns]


def _at(document: Document, path: str) -> Json:
    """Return what is at `key/key/…`, or under a key that is written so; None if there is nothing."""
    if path in document:
        return document[path]
    found: Json = document
    for key in path.split("/"):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _text(document: Document, path: str) -> str:
    found = _at(document, path)
    if isinstance(found, list):
        return " ".join(str(item) for item in found)
    return "" if found is None or isinstance(found, dict) else str(found)


def _words(document: Document, paths: list[str]) -> list[str]:
    """Every value that there is; of a `path/` that ends so, what stands after the last slash."""
    found = []
    for path in paths:
        text = _text(document, path.removesuffix("/"))
        found += (text.rpartition("/")[2] if path.endswith("/") else text).split()
    return found


def _named(**paths: str) -> Callable[[Document], str]:
    """Several values in one: `Name:value Name:value`; empty when the metadata has none of them."""

    def value(document: Document) -> str:
        texts = {name: _text(document, path) for name, path in paths.items()}
        return " ".join(f"{name}:{text}" for name, text in texts.items()) if any(texts.values()) else ""

    return value


def _flat(prefix: str, document: Document) -> list[Row]:
    found: list[Row] = []
    for key, value in document.items():
        if isinstance(value, dict):
            found += _flat(f"{prefix}{key}/", value)
        else:
            found.append((layout.safe(prefix + key), _text({"": value}, "")))
    return found


TABLES: dict[str, tuple[Column, ...]] = {
    "aws": (
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
    ),
}
