"""`cnctl status network`: each link's addresses, in the layout of the Go original with a few more lines."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

from cloud_network.api.cnctl import output
from cloud_network.api.cnctl.output import Exit, Row
from cloud_network.api.cnctl.source import FETCHER_RUNNING, Source, never_read, warn_if_stale
from cloud_network.api.cnctl.system import fact_words, flat
from cloud_network.fetcher.state import Document, Doubt
from cloud_network.fetcher.status import AddressStatus, LinkStatus, Status

TITLE_WIDTH = 16
"""Column of the colon, as in the original."""
FACTS: tuple[tuple[str, ...], ...] = (
    ("Hostname", "local-hostname"),
    ("Public Hostname", "public-hostname"),
    ("Owner", "owner-id"),
    ("Subnet ID", "subnet-id", "vswitch-id"),
    ("VPC ID", "vpc-id"),
    ("Security Groups", "security-groups"),
    ("Network", "network/"),
    ("Access Type", "accessConfigs/*/type"),
    ("DNS", "dnsServers"),
)
"""Titles and paths in the metadata of an interface, as in `facts`. A line is shown if the cloud has a value for it."""


def run(source: Source, as_json: bool, everything: bool) -> Exit:
    """Print the links. Returns FAILED if a link is not healthy, or the state is out of date."""
    claim = source.claim()
    status = source.status_of(claim)
    found = links(status)
    documents = source.links() if found else {}
    if as_json:
        freshness = {"stale": claim.is_stale(), "fetcher": str(claim.doubt or FETCHER_RUNNING)}
        dates = {"generation": status["generation"], "fetched_at": status["fetched_at"]}
        metadata = {"metadata": documents} if everything else {}
        output.show_json({**dates, **freshness, "links": found, **metadata})
    else:
        if found:
            warn_if_stale(claim)
        limit = output.columns()
        tables = [_rows(link, documents.get(link["mac"], {}), everything) for link in found]
        width = max((len(key) for table in tables for key, _ in table), default=0) if everything else TITLE_WIDTH
        blocks = [output.rows(table, width, limit) for table in tables]
        print("\n\n".join(blocks) or output.wrapped("no links: ", never_read(status), 0))
    if not found or claim.doubt is Doubt.NOT_RUNNING:
        return Exit.NO_STATE
    healthy = all(link["state"] in ("ok", "excluded") for link in found)
    return Exit.OK if healthy and not claim.is_stale() else Exit.FAILED


def links(status: Status) -> list[LinkStatus]:
    """Return the links by ifindex."""
    return sorted(status["links"].values(), key=lambda link: link["ifindex"])


def _rows(link: LinkStatus, document: Document, everything: bool) -> list[Row]:
    public = [address for entry in link["addresses"] for address in entry["public"]]
    rows: list[Row] = [
        ("Name", link["name"]),
        ("MAC Address", link["mac"]),
        ("Public IP", list(dict.fromkeys(public))),
        ("Private IP", _private(link)),
    ]
    if link["ranges"]:
        rows.append(("Ranges", link["ranges"]))
    rows += [
        ("Subnet", [subnet.partition("/")[0] for subnet in link["subnets"]]),
        ("Gateway", link["gateways"]),
        ("MTU", str(link["mtu"])),
        ("Table", str(link["table"] or "main")),
    ]
    if everything:
        return rows + flat(document)
    associations = document.get("ipv4-associations")
    if isinstance(associations, dict) and associations:
        rows.append(("Associations", [f"{public}->{private}" for public, private in associations.items()]))
    return rows + [(title, found) for title, *paths in FACTS if (found := fact_words(document, list(paths)))]


def _private(link: LinkStatus) -> list[str]:
    """Return the addresses with their subnets' prefix length, and where the kernel's differs, that too.

    After the first address of a subnet, its siblings have /32 in the kernel. IPv6 addresses have /128.
    """
    texts, seen = list[str](), set[IPv4Network | IPv6Network | None]()
    for entry in link["addresses"]:
        text = f"{entry['address']}/{entry['prefix_length']}"
        kernel, subnet = entry["kernel_prefix_length"], _subnet(entry)
        as_intended = kernel in (entry["prefix_length"], 128) or (kernel == 32 and subnet in seen)
        if entry["excluded"]:
            text += " (excluded)"
        elif kernel is None:
            text += " (missing)"
        elif not as_intended:
            text += f" (kernel: /{kernel})"
        texts.append(text)
        seen.add(subnet)
    return texts


def _subnet(entry: AddressStatus) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(f"{entry['address']}/{entry['prefix_length']}", strict=False)
    except ValueError:  # an unprivileged process writes the state
        return None
