"""The JSON types of status.json, and the validation of a document. docs/status.schema.json is equivalent.

Times are RFC 3339 in UTC ("2026-01-02T03:04:05Z"). Addresses and prefixes are text in their canonical form.
"""

from __future__ import annotations

import re
import time
import types
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

VERSION: Literal[3] = 3
"""Increases when the format of status.json changes."""
RENEWAL_S = 5.0
"""Longest time in seconds between two writes of status.json while the fetcher's main loop runs."""
RENEWAL_GRACE_S = 5.0
"""Seconds after a missed renewal from which readers report the fetcher as hung."""


class AddressStatus(TypedDict):
    """One address that the metadata gives a link, and its state in the kernel."""

    address: str
    prefix_length: int  # of the subnet
    kernel_prefix_length: int | None  # None: the kernel does not have the address on this link
    public: list[str]
    present: bool  # the kernel has it on this link, or on lo or a dummy
    owned: bool  # added by cloud-network
    excluded: bool  # ExcludeAddresses= contains it: cloud-network neither adds nor removes it
    table: int | None  # the table that routes its replies; None: main


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
    ranges: list[str]  # delegated prefixes, handled according to Prefixes=
    desired: int  # number of addresses, routes and rules that the link needs ...
    actual: int  # ... and of those in place
    drift: list[str]  # the missing changes, in `ip` syntax


class NetagentStatus(TypedDict):
    """The last answer of netagent, and whether it can be reached."""

    listening: bool | None  # a process listens on netagent's socket; None: not checked yet

    verdict: Literal["none", "applied", "confirmed", "refused", "rolled back", "unreachable"]
    request: str | None
    at: str | None
    reason: str | None
    ops: int


class ConflictStatus(TypedDict):
    """A change that another program keeps reverting."""

    object: str  # the change, in `ip` syntax
    times: int  # number of times that it was made
    since: str
    next_at: str | None  # the next attempt; None while it is in place, or another program's object blocks it
    by: str | None  # the program, if the kernel reports it


class LastError(TypedDict):
    """The last error; it may have been resolved."""

    at: str
    kind: Literal["metadata", "netagent", "kernel", "config", "detection", "no-cloud", "conflict", "fetcher"]
    message: str


class Counters(TypedDict):
    """Counts since status.json was first written for this cloud; each only grows."""

    metadata_requests: int
    metadata_errors: dict[str, int]  # by MetadataError.kind
    netagent_requests: dict[str, int]  # by verdict
    drift_repaired: int  # repairs of changes that another program made in the kernel


class Status(TypedDict):
    """All of status.json."""

    version: Literal[3]
    run: str  # id of the fetcher process that wrote it; fetcher.lock has the running one's
    boot_id: str
    renew_by: float  # seconds since boot (CLOCK_BOOTTIME), at which a running fetcher has written the file again
    generation: int
    provider: str  # "" while the cloud is not known
    state: Literal["ok", "degraded", "error", "starting"]
    fetched_at: str | None  # the last complete answer of the metadata server
    fetched_uptime: float | None  # the same in seconds since boot; None if it was before the fetcher started
    attempted_at: str | None
    compared_at: str | None  # the last comparison of the kernel with the metadata
    written_at: str
    refresh_timer: float
    last_error: LastError | None
    metadata_requests: int
    metadata_seconds: float
    counters: Counters
    netagent: NetagentStatus
    links: dict[str, LinkStatus]
    unknown_macs: list[str]
    departed_macs: list[str]  # their links have left this network namespace, for another one or by a detach
    notices: list[str]  # unusual facts that need no action
    conflicts: list[ConflictStatus]


class ShapeError(ValueError):
    """A document does not match its type; str() names the place."""


def new_status(provider: str, run: str, boot_id: str) -> Status:
    """Return the status of a fetcher that has just started."""
    return {
        "version": VERSION,
        "run": run,
        "boot_id": boot_id,
        "renew_by": uptime() + RENEWAL_S,
        "generation": 0,
        "provider": provider,
        "state": "starting",
        "fetched_at": None,
        "fetched_uptime": None,
        "attempted_at": None,
        "compared_at": None,
        "written_at": rfc3339(),
        "refresh_timer": 300.0,
        "last_error": None,
        "metadata_requests": 0,
        "metadata_seconds": 0.0,
        "counters": {"metadata_requests": 0, "metadata_errors": {}, "netagent_requests": {}, "drift_repaired": 0},
        "netagent": {"listening": None, "verdict": "none", "request": None, "at": None, "reason": None, "ops": 0},
        "links": {},
        "unknown_macs": [],
        "departed_macs": [],
        "notices": [],
        "conflicts": [],
    }


def configured_addresses(link: LinkStatus) -> list[AddressStatus]:
    """Return the addresses of a link that ExcludeAddresses= does not contain."""
    return [each for each in link["addresses"] if not each["excluded"]]


def absent_addresses(link: LinkStatus) -> list[AddressStatus]:
    """Return the addresses of a link that cloud-network should configure and the kernel does not have."""
    return [each for each in configured_addresses(link) if not each["present"]]


def uptime() -> float:
    """Return the seconds since boot, also those in suspension. Unlike the wall clock, it cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def rfc3339(seconds_from_now: float = 0.0) -> str:
    """Return the present time, or one near it, in the format of status.json."""
    return datetime.fromtimestamp(datetime.now(UTC).timestamp() + seconds_from_now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(at: str, now: float) -> float:
    """Return the seconds from an RFC 3339 time to `now` (Unix time)."""
    return now - datetime.fromisoformat(at).timestamp()


def parse_status(document: dict[str, Any]) -> Status:
    """Return the document as a Status. Raises ShapeError for another version, or a member of the wrong type."""
    version = document.get("version")
    if version != VERSION:
        raise ShapeError(
            f"version is {version!r:.20} and not {VERSION}: the fetcher and this program are of different releases. "
            "Install one release; then: systemctl restart cloud-network-fetcher cloud-network-api"
        )
    _check_status(document)
    for name in ("written_at", "fetched_at", "attempted_at", "compared_at"):
        _check_time(document[name], name)
    _check_time(document["netagent"]["at"], "netagent.at")
    if document["last_error"] is not None:
        _check_time(document["last_error"]["at"], "last_error.at")
    for conflict in document["conflicts"]:
        _check_time(conflict["since"], "conflicts.since")
        _check_time(conflict["next_at"], "conflicts.next_at")
    return cast(Status, document)


MAX_NUMBER = 2.0**63
"""Upper bound of numbers in status.json, which is written by an unprivileged process."""
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})")


def _check_time(text: str | None, name: str) -> None:
    try:
        valid = text is None or (_TIME.fullmatch(text) and datetime.fromisoformat(text).tzinfo is not None)
    except ValueError:
        valid = False
    if not valid:
        raise ShapeError(f"{name} is not an RFC 3339 time")


Check = Callable[[Any], None]
"""Raises ShapeError unless a JSON value has a type. Members that the type does not name are accepted."""


def _checker(shape: Any) -> Check:
    """Return the validation function of a type."""
    origin, arguments = get_origin(shape), get_args(shape)
    if is_typeddict(shape):
        return _object_checker({name: _checker(each) for name, each in get_type_hints(shape).items()})
    if origin is Literal:
        return _literal_checker(arguments)
    if origin in (Union, types.UnionType):
        return _optional_checker(_checker(next(each for each in arguments if each is not type(None))))
    if origin is list:
        return _list_checker(_checker(arguments[0]))
    if origin is dict:
        return _dict_checker(_checker(arguments[1]))
    return _type_checker((int, float) if shape is float else (shape,))


def _object_checker(members: dict[str, Check]) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise ShapeError("is not an object")
        for name, check_member in members.items():
            if name not in value:
                raise ShapeError(f"has no {name}")
            try:
                check_member(value[name])
            except ShapeError as error:
                raise ShapeError(f"{name}: {error}") from None

    return check


def _list_checker(check_item: Check) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, list):
            raise ShapeError("is not a list")
        for item in value:
            check_item(item)

    return check


def _dict_checker(check_item: Check) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise ShapeError("is not an object")
        for item in value.values():
            check_item(item)

    return check


def _optional_checker(check_value: Check) -> Check:
    def check(value: Any) -> None:
        if value is not None:
            check_value(value)

    return check


def _literal_checker(accepted: tuple[Any, ...]) -> Check:
    def check(value: Any) -> None:
        if value not in accepted:
            raise ShapeError(f"is not one of {', '.join(map(str, accepted))}")

    return check


def _type_checker(kinds: tuple[type, ...]) -> Check:
    def check(value: Any) -> None:
        if type(value) not in kinds:
            raise ShapeError(f"is not of type {kinds[-1].__name__}")
        if isinstance(value, int | float) and not abs(value) < MAX_NUMBER:
            raise ShapeError(f"is not below {MAX_NUMBER:.0e}")

    return check


_check_status = _checker(Status)
