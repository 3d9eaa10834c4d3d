"""The shape of each answer that is no state file. Together with fetcher/status.py it is what /openapi.json says."""

from typing import Any, Literal, TypedDict

from cloud_network.fetcher.status import LinkStatus, Status


class DatedStatus(Status):
    """What the fetcher believes, and whether that is out of date."""

    stale: bool


class Links(TypedDict):
    """Every link that the metadata names and this host has, by ifindex."""

    generation: int
    fetched_at: str | None
    stale: bool
    links: list[LinkStatus]


class DatedLink(LinkStatus):
    """One link."""

    generation: int
    fetched_at: str | None
    stale: bool


class Health(TypedDict):
    """Whether the network is cared for: of a 200."""

    state: Literal["ok", "degraded"]
    stale: bool
    generation: int
    fetched_at: str | None


class Audit(TypedDict):
    """The audit log's last lines as netagent wrote them, the newest last."""

    log: str
    broken: int  # lines among them that are no JSON objects, and are left out
    entries: list[dict[str, Any]]


class Problem(TypedDict):
    """An error, as RFC 9457 has it; some have further members."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
