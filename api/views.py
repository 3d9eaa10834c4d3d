"""What each route answers, from state files alone: a file's bytes as they are, or made from some of them once."""

import contextlib
import json
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

from cloud_network.api import freshness
from cloud_network.api.answers import Audit, DatedLink, DatedStatus, Health, Links
from cloud_network.api.audit import MOST, AuditLog, Tail
from cloud_network.api.bodies import Body, Kept, Stamp, body
from cloud_network.api.openapi import DATES
from cloud_network.api.problem import Problem
from cloud_network.fetcher.state import IDENTITY_PARTS, StateDirectory, StateError
from cloud_network.fetcher.status import LinkStatus, Status

T = TypeVar("T")


class Known:
    """One status.json, and the bodies made of it, each once while it is fresh and once when it is stale."""

    def __init__(self, content: bytes):
        self.status = _status(content)
        self._until = freshness.until(self.status)
        self._made: dict[tuple[str, bool], Body] = {}

    @property
    def stale(self) -> bool:
        """Whether the metadata is out of date by now."""
        return time.time() > self._until

    def body(self, what: str, make: Callable[[Status, bool], object]) -> Body:
        """What is made of the status."""
        key = (what, self.stale)
        if key not in self._made:
            self._made[key] = _encode(make(self.status, key[1]))
        return self._made[key]

    def date(self, found: Body) -> Body:
        """A body in the cloud's own words, with headers that say as of when."""
        fetched_at = self.status["fetched_at"] or "never"
        dates = (str(self.status["generation"]), fetched_at, "true" if self.stale else "false")
        return found._replace(about=tuple(zip(DATES, dates, strict=True)))


class Views:
    """The state directory as response bodies. Every method raises Problem(503) while there is nothing to show."""

    def __init__(self, state: StateDirectory, log: AuditLog):
        self._state = state
        self._log = log
        self._audit = lru_cache(maxsize=4)(self._make_audit)  # by the log's stamp, which each line changes
        self._page = lru_cache(maxsize=2)(self._make_page)
        self._metrics = Kept(lambda: [state.status_path], _present(_metrics))
        self._system = Kept(lambda: [state.system_path], _present(body))
        self._status = Kept(lambda: [state.status_path], _present(Known))
        self._network = Kept(lambda: [state.link_path(index) for index in state.link_indexes()], _network)
        self._identity = {
            part: Kept(self._identity_path(part), _present(_object_or_text if part == "document" else _text))
            for part in IDENTITY_PARTS
        }

    def system(self) -> Body:
        """What the metadata says of the instance, as the provider puts it."""
        known = self._known()
        return known.date(self._needed(self._system, self._state.system_path))

    def network(self) -> Body:
        """The links' metadata by MAC address, as the Go original answers."""
        known = self._known()
        return known.date(self._kept(self._network))

    def status(self) -> Body:
        """What the fetcher believes."""
        return self._known().body("", _whole)

    def links(self) -> Body:
        """Every link's part of the status, by ifindex."""
        return self._known().body("links", _links)

    def link(self, name: str) -> Body:
        """One link's part of the status, by the link's name."""
        known = self._known()
        link = next((link for link in known.status["links"].values() if link["name"] == name), None)
        if link is None:
            names = ", ".join(sorted(each["name"] for each in known.status["links"].values())) or "none"
            raise Problem(404, f"The metadata names no link {name!r} of this host; it names: {names}.")
        return known.body(f"links/{name}", partial(_link, link))

    def identity(self, part: str) -> Body:
        """One part of the signed identity document."""
        if part not in self._identity:
            raise Problem(404, f"There is no part {part!r}; there are: {', '.join(IDENTITY_PARTS)}.")
        known = self._known()
        provider = known.status["provider"]
        if not provider:
            raise Problem(503, "The cloud is not known yet. See: cnctl status.", {"Retry-After": "5"})
        found = self._kept(self._identity[part])
        if found is None:
            raise Problem(404, f"{provider} gave no {part} of an identity document to this instance.")
        return known.date(found)

    def metrics(self) -> Body:
        """The status for Prometheus."""
        return self._needed(self._metrics, self._state.status_path)

    def audit(self, limit: str = "50") -> Body:
        """The last lines of the audit log."""
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 10 and 0 < int(limit) <= MOST):
            raise Problem(400, f"limit={limit!r} is not a number from 1 to {MOST}.")
        try:
            stamp = self._log.stamp()
            if stamp is not None:
                return self._audit(stamp, int(limit))
            reason = "is not there: netagent has not been asked for anything yet"
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        raise Problem(503, f"{self._log.path} {reason}. See: systemctl status cloud-network-netagent.")

    def page(self) -> Body:
        """The state and the last changes, for a browser."""
        known = self._known()
        try:
            stamp = self._log.stamp()
        except OSError:
            stamp = None
        return self._page(known, stamp, known.stale)

    def _make_audit(self, _stamp: Stamp, limit: int) -> Body:
        tail = self._log.last(limit)
        answer: Audit = {"log": self._log.path, "broken": tail.broken, "entries": tail.entries}
        return _encode(answer)

    def _make_page(self, known: Known, stamp: Stamp | None, stale: bool) -> Body:
        from cloud_network.api import page

        tail: Tail | None = None
        if stamp is not None:
            with contextlib.suppress(OSError):
                tail = self._log.last(page.LAST)
        return body(page.render(known.status, stale, tail))

    def health(self) -> Body:
        """Say 'ok' or 'degraded' with 200; anything worse is a 503 problem that says why."""
        known = self._known()
        status, stale = known.status, known.stale
        generation, fetched_at = status["generation"], status["fetched_at"]
        if status["state"] in ("ok", "degraded") and not stale:
            return known.body("health", _health)
        more: dict[str, object] = {"state": status["state"], "stale": stale}
        more |= {"generation": generation, "fetched_at": fetched_at}
        error = status["last_error"]
        reason = f" Last error, at {error['at']}: {error['message']}." if error else ""
        age = "the metadata is out of date" if stale else "the metadata is current"
        raise Problem(503, f"State is {status['state']} and {age}.{reason} See cnctl status.", more=more)

    def _identity_path(self, part: str) -> Callable[[], list[str]]:
        def paths() -> list[str]:
            return [self._state.identity_path(self._known().status["provider"], part)]

        return paths

    def _known(self) -> Known:
        return self._needed(self._status, self._state.status_path)

    def _kept(self, kept: Kept[T]) -> T:
        try:
            return kept.get()
        except OSError as error:
            raise _unreadable(f"{error.filename}: {error.strerror}") from error
        except StateError as error:
            raise _unreadable(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(f"{self._state.path}: {type(error).__name__}: {error}") from error

    def _needed(self, kept: Kept[T | None], path: str) -> T:
        found = self._kept(kept)
        if found is None:
            raise Problem(
                503,
                f"There is no {path} yet: the fetcher writes it after the first complete answer of the metadata "
                "server. Check that it runs: systemctl status cloud-network-fetcher; and what it says: "
                "journalctl -u cloud-network-fetcher.",
                {"Retry-After": "5"},
            )
        return found


def _unreadable(reason: str) -> Problem:
    return Problem(
        503,
        f"The state cannot be read: {reason}. Have it written again: sudo cnctl refresh.",
        {"Retry-After": "5"},
    )


def _encode(value: object) -> Body:
    return body(json.dumps(value, separators=(",", ":")).encode() + b"\n")


def _status(content: bytes) -> Status:
    status: Status = json.loads(content)
    missing = Status.__required_keys__ - status.keys()
    for link in () if missing else status["links"].values():
        missing |= LinkStatus.__required_keys__ - link.keys()
    if missing:
        raise ValueError(f"status.json lacks {', '.join(sorted(missing))}")
    return status


def _whole(status: Status, stale: bool) -> DatedStatus:
    return {**status, "stale": stale}


def _links(status: Status, stale: bool) -> Links:
    return {
        "generation": status["generation"],
        "fetched_at": status["fetched_at"],
        "stale": stale,
        "links": sorted(status["links"].values(), key=lambda link: link["ifindex"]),
    }


def _link(link: LinkStatus, status: Status, stale: bool) -> DatedLink:
    return {**link, "generation": status["generation"], "fetched_at": status["fetched_at"], "stale": stale}


def _health(status: Status, stale: bool) -> Health:
    return {
        "state": status["state"],  # type: ignore[typeddict-item]  # the worse ones are problems
        "stale": stale,
        "generation": status["generation"],
        "fetched_at": status["fetched_at"],
    }


def _metrics(content: bytes) -> Body:
    from cloud_network.api import metrics  # prometheus-client takes 65 ms to import: not before the first scrape

    return body(metrics.encode(_status(content)))


def _network(files: list[bytes | None]) -> Body:
    documents: list[dict[str, Any]] = [json.loads(content) for content in files if content is not None]
    return _encode({document["mac"]: document for document in documents})


def _object_or_text(content: bytes) -> Body:
    """The identity document: an object where the cloud's is one."""
    try:
        return _encode(json.loads(content))
    except ValueError:
        return _text(content)


def _text(content: bytes) -> Body:
    """The other parts of the identity: a JSON string, as the Go original answers."""
    return _encode(content.decode(errors="replace"))


def _present(make: Callable[[bytes], T]) -> Callable[[list[bytes | None]], T | None]:
    """Make it of one file's content; None while there is no file."""
    return lambda files: None if files[0] is None else make(files[0])
