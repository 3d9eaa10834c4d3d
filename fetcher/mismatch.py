"""Interfaces that only the host or only the metadata has. Clouds update one a few seconds before the other."""

from __future__ import annotations

import logging
import math

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import Actual, Desired

logger = logging.getLogger(__name__)

_INTERVAL = 1.0  # seconds between the first reads of the metadata because of a mismatch …
_DURATION = 30.0  # … and how long there are any, before the refresh timer has to do


class InterfaceMismatch:
    """Tracks which interfaces the other side lacks, and since when."""

    def __init__(self) -> None:
        self._missing: dict[str, str] = {}  # {MAC that no link of this host matches: reason}
        self._unmatched: set[int | str] = set()  # ifindexes that the metadata do not name, and MACs that no link has
        self._since = -math.inf

    def log_missing(self, wanted: Desired, actual: Actual, config: Config) -> None:
        """Log each interface of the metadata that this host lacks, once for each reason."""
        before, self._missing = self._missing, {mac: _reason(mac, actual, config) for mac in wanted.unknown_macs}
        text = "metadata: names the interface %s, and %s; until then, links that it does not name stay as they are"
        for mac, reason in self._missing.items():
            if before.get(mac) != reason:
                logger.warning(text, mac, reason)

    @property
    def notices(self) -> list[str]:
        """The same interfaces, for status.json."""
        return [f"{mac}: {reason}" for mac, reason in self._missing.items()]

    def next_read(self, instance: Instance, config: Config, actual: Actual, at: float) -> float:
        """Return the time of the next read of the metadata because of a mismatch; infinity if there is none.

        A link that has just appeared or disappeared is a reason to read at once.
        """
        listed = {interface.mac for interface in instance.interfaces}
        kinds = (None, *config.allow_kinds)
        missing = listed - {link.mac for link in actual.links}
        unlisted = {
            link.ifindex
            for link in actual.links
            if link.mac and link.mac not in listed and link.kind in kinds and link.name not in config.exclude
        }
        unmatched: set[int | str] = {*unlisted, *missing}
        new, self._unmatched = unmatched - self._unmatched, unmatched
        if new:
            self._since = at
            return at
        if not unmatched or at >= self._since + _DURATION:
            return math.inf
        return at + max(_INTERVAL, (at - self._since) / 2)


def _reason(mac: str, actual: Actual, config: Config) -> str:
    links = [link for link in actual.links if link.mac == mac]
    kind = next((link for link in links if link.kind not in (None, *config.allow_kinds)), None)
    if kind is not None:
        return f'{kind.name} has that MAC and is of kind {kind.kind}, which needs [Netagent] AllowKinds="{kind.kind}"'
    if not links:
        return "no link here has that MAC"
    return " and ".join(link.name for link in links) + f" ha{'s' if len(links) == 1 else 've'} that MAC"
