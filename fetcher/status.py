"""The shape of status.json. Its prose is docs/status.schema.json; tests hold the two together.

Apart from `state`, so that a process that only reads the files does not pay for `typing`. Times are RFC 3339
in UTC ("2026-01-02T03:04:05Z"); addresses and prefixes are text in their canonical form.
"""

from typing import Literal, NotRequired, TypedDict

VERSION: Literal[1] = 1


class AddressStatus(TypedDict):
    """One address that the metadata gives a link, and what the kernel says of it."""

    address: str
    prefix_length: int  # the subnet's, which is what people are shown; the kernel may have it as a /32
    public: list[str]
    present: bool  # the kernel has it on this link
    owned: bool  # we put it there


class LinkStatus(TypedDict):
    """One link that the metadata names and the host has."""

    name: str
    mac: str
    ifindex: int
    device_number: int | None
    state: Literal["ok", "drift", "missing", "excluded"]
    mtu: int
    table: int | None  # None: the link has no table of its own
    gateways: list[str]
    subnets: list[str]
    addresses: list[AddressStatus]
    ranges: NotRequired[
        list[str]
    ]  # delegated whole; Prefixes= says what becomes of them. Not of fetchers before this key
    desired: int  # addresses, routes and rules that there should be …
    actual: int  # … and how many of them there are
    drift: list[str]  # what would be done about it, in `ip` syntax


class NetagentStatus(TypedDict):
    """The last word of netagent."""

    verdict: Literal["none", "applied", "confirmed", "refused", "rolled back", "unreachable"]
    request: str | None
    at: str | None
    reason: str | None
    ops: int


class FightStatus(TypedDict):
    """A change that is undone by somebody else again and again."""

    object: str  # the change, in `ip` syntax
    times: int  # that it was made
    since: str
    next_at: str | None  # when it is tried again; None while it is in place, or has to wait for somebody to make room
    by: str | None  # whoever it is, as far as the kernel says


class LastError(TypedDict):
    """What went wrong last; it may be over."""

    at: str
    kind: Literal["metadata", "netagent", "kernel", "config", "conflict"]
    message: str


class Counters(TypedDict):
    """What has happened since status.json was first written for this cloud; each only grows."""

    metadata_requests: int
    metadata_errors: dict[str, int]  # by MetadataError.kind
    netagent_requests: dict[str, int]  # by verdict
    drift_repaired: int  # changes that undid what somebody else did to the kernel


class Status(TypedDict):
    """All of status.json."""

    version: Literal[1]
    generation: int
    provider: str
    state: Literal["ok", "degraded", "error", "starting"]
    fetched_at: str | None
    attempted_at: str | None
    written_at: str
    refresh_timer: float
    last_error: LastError | None
    metadata_requests: int
    metadata_seconds: float
    counters: Counters
    netagent: NetagentStatus
    links: dict[str, LinkStatus]
    unknown_macs: list[str]
    notices: list[str]  # what is not as people may expect, and no mistake
    fights: NotRequired[list[FightStatus]]  # not of fetchers before this key
