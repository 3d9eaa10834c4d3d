"""One read of the metadata within a deadline: its result, or the error."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from cloud_network.fetcher.metadata.base import Provider
from cloud_network.fetcher.metadata.model import Instance, MetadataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """A finished read. Either `instance` or `error` is set."""

    instance: Instance | None
    error: MetadataError | None
    requests: int
    seconds: float
    unread_facts: bool = False  # facts for display are still to be read


def read_metadata(provider: Provider, deadline: float) -> Reading:
    """Read the metadata within `deadline` seconds, with any number of requests.

    An unexpected exception is reported as an error of the read, so that the status shows it.
    """
    began, before = time.monotonic(), provider.client.requests
    instance, error = None, None
    try:
        instance = provider.fetch(began + deadline)
    except MetadataError as raised:
        error = raised
    except Exception as raised:
        logger.exception("metadata: unexpected error; retrying later")
        error = MetadataError("unexpected", f"unexpected error: {raised!r}; please report it")
    seconds = round(time.monotonic() - began, 4)
    return Reading(instance, error, provider.client.requests - before, seconds, provider.pending_facts)


class RemovalProof:
    """Decides when metadata that lists less than before is accepted.

    An address, or an interface whose link is gone too, is removed when two reads agree. Clouds sometimes omit
    interfaces for seconds: an interface whose link is present and up is kept until it has been missing for
    PROOF_S. The same holds for a link that an earlier process configured, counted from the first read.
    """

    PROOF_S = 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._missing_since: dict[str, float] = {}
        self._unlisted_since: dict[str, float] | None = None  # None before the first read
        self._to_confirm: Instance | None = None  # the next read must equal it

    def keep_missing(
        self,
        instance: Instance,
        known: Instance | None,
        links: Mapping[str, bool],
        elsewhere: Collection[str] = (),
    ) -> Instance:
        """Return `instance` with the interfaces of `known` that are missing but not proven absent.

        `links` maps the MACs of this host's links to True if the link is up. While the metadata names a MAC that no
        link has, links that it does not name stay as they are: one of them may have a new MAC. That does not hold for
        VLANs and the MACs in `elsewhere`, which are known to be away from this host.
        """
        now, named = self._clock(), {interface.mac for interface in instance.interfaces}
        expected = {interface.mac for interface in instance.interfaces if interface.vlan is None} - set(elsewhere)
        before = known.interfaces if known is not None and expected <= links.keys() else ()
        missing = [each for each in before if each.mac not in named and links.get(each.mac)]
        self._missing_since = {each.mac: self._missing_since.get(each.mac, now) for each in missing}
        kept = tuple(each for each in missing if now < self._missing_since[each.mac] + self.PROOF_S)
        return replace(instance, interfaces=instance.interfaces + kept) if kept else instance

    def keep_unlisted(self, instance: Instance, links: Mapping[str, bool], configured: Collection[str]) -> Instance:
        """Return `instance`, marked as stale while a link is up that an earlier process configured and no read named.

        This process does not know the link's interface, so that nothing can be removed until then. `links` is that of
        `keep_missing`; `configured` are the MACs of links with owned objects.
        """
        if self._unlisted_since is None:
            self._unlisted_since = dict.fromkeys(configured, self._clock())
        named = {interface.mac for interface in instance.interfaces}
        before = self._unlisted_since.items()
        self._unlisted_since = {mac: since for mac, since in before if mac not in named and links.get(mac)}
        return replace(instance, stale=True) if self._left(self._unlisted_since) else instance

    @property
    def awaiting_removal(self) -> dict[str, float]:
        """MACs of missing interfaces and unlisted links that are kept, with the seconds until they are removed."""
        return self._left(self._missing_since) | self._left(self._unlisted_since or {})

    def _left(self, since: Mapping[str, float]) -> dict[str, float]:
        now = self._clock()
        left = {mac: begin + self.PROOF_S - now for mac, begin in since.items()}
        return {mac: seconds for mac, seconds in left.items() if seconds > 0}

    def accept(self, instance: Instance, *, removes: bool) -> bool:
        """Return True if `instance` may be acted on: it removes nothing, or the previous read agrees."""
        if removes and instance != self._to_confirm:
            self._to_confirm = instance
            return False
        self._to_confirm = None
        return True
