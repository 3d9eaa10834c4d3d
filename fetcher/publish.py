"""The state files, written when their content changes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import Desired
from cloud_network.fetcher.state import StateDirectory, StateError, boot_id
from cloud_network.fetcher.status import RENEWAL, Status, new_status, rfc3339

logger = logging.getLogger(__name__)

_TIMES = ("at", "fetched_at", "attempted_at", "written_at", "since", "next_at", "metadata_seconds")
_NO_NEWS = (*_TIMES, "renew_by", "compared_at", "run", "boot_id", "generation", "counters")


class Publisher:
    """The only writer of the state directory. `status` is the next status.json, updated during a pass."""

    def __init__(self, state: StateDirectory, provider: str, run: str = "") -> None:
        self._state = state
        self.status = new_status(provider, run, boot_id())
        before = _previous(state, self.status)
        self._said = _told(before)
        for key in ("generation", "counters", "fetched_at", "links", "unknown_macs"):  # still true for a new fetcher
            self.status[key] = before[key]

    def documents(self, instance: Instance, desired: Desired) -> None:
        """Write the metadata's documents: of the instance, and of each interface that this host has."""
        state = self._state
        documents = {link.ifindex: interface.document for interface, link in desired.matches}
        for ifindex in set(state.link_indexes()) - set(documents):
            state.remove_link(ifindex)
        for ifindex, document in documents.items():
            if _differs(lambda at=ifindex: state.read_link(at), document):  # type: ignore[misc]
                state.write_link(ifindex, document)
        if _differs(state.read_system, instance.system):
            state.write_system(instance.system)
        for name, content in instance.identity.items():
            if state.read_identity(instance.provider, name) != content:
                state.write_identity(instance.provider, name, content)

    def publish(self) -> None:
        """Write status.json; the generation grows when anything but a time or a counter differs from before."""
        said = _told(self.status)
        self.status["generation"] += said != self._said
        self._said = said
        self.renew()

    def renew(self) -> None:
        """Write status.json again, with the time until which it holds."""
        self.status["written_at"] = rfc3339()
        self.status["renew_by"] = rfc3339(RENEWAL)
        self._state.write_status(self.status)


def _differs(read: Callable[[], object], document: object) -> bool:
    try:
        return read() != document
    except StateError:  # not ours any more: written again
        return True


def _previous(state: StateDirectory, fresh: Status) -> Status:
    """Return the status that a fetcher of this cloud left, or the fresh one."""
    try:
        before = state.read_status()
    except StateError as error:
        logger.warning("%s", error)
        before = None
    return before if before is not None and before["provider"] == fresh["provider"] else fresh


def _told(status: Status) -> dict[str, object]:
    """What is news when it differs. Of links there are no times, and there may be thousands of addresses."""
    rest = {key: _without_times(each) for key, each in status.items() if key not in _NO_NEWS and key != "links"}
    return {**rest, "links": status["links"]}


def _without_times(value: object) -> object:
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_times(each) for key, each in value.items() if key not in _NO_NEWS}
