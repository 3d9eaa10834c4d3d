"""`cnctl status network`: each link's addresses, in the Go original's layout."""

from __future__ import annotations

from cloud_network.api.cnctl import layout
from cloud_network.api.cnctl.failure import OK, WRONG
from cloud_network.api.cnctl.source import say_if_stale

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cloud_network.api.cnctl.layout import Row
    from cloud_network.api.cnctl.source import Source
    from cloud_network.fetcher.status import LinkStatus, Status

WIDTH = 16
"""The original's column of the colon."""


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Print the links; WRONG when one of them is not as it should be."""
    status = source.status()
    found = links(status)
    if arguments.json:
        dates = ("generation", "fetched_at", "stale")
        layout.show_json({**{key: status[key] for key in dates}, "links": found})  # type: ignore[literal-required]
    elif found:
        say_if_stale(status)
        limit = layout.columns()
        print("\n\n".join(layout.rows(_rows(link), WIDTH, limit) for link in found))
    return OK if all(link["state"] in ("ok", "excluded") for link in found) else WRONG


def links(status: Status) -> list[LinkStatus]:
    """Return the links by ifindex."""
    return sorted(status["links"].values(), key=lambda link: link["ifindex"])


def _rows(link: LinkStatus) -> list[Row]:
    public = [address for entry in link["addresses"] for address in entry["public"]]
    return [
        ("Name", link["name"]),
        ("MAC Address", link["mac"]),
        ("Public IP", list(dict.fromkeys(public))),
        ("Private IP", [f"{entry['address']}/{entry['prefix_length']}" for entry in link["addresses"]]),
        *([("Ranges", ranges)] if (ranges := link.get("ranges")) else []),  # the original has none
        ("Subnet", [subnet.partition("/")[0] for subnet in link["subnets"]]),
        # … and what the original does not show
        ("Gateway", link["gateways"]),
        ("MTU", str(link["mtu"])),
        ("Table", str(link["table"] or "main")),
    ]
