"""Host and metadata that do not (yet) agree on which interfaces there are: clouds lag by seconds, in either order."""

from __future__ import annotations

import logging
import math

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.network.objects import Actual, Desired

logger = logging.getLogger(__name__)

_SHORTLY = 1.0  # seconds between the first reads on account of what one side has and the other has not …
_CHASE = 30.0  # … and for how long there are any, before it is left to the timer


class Lag:
    """What was missed on either side when last looked at."""

    def __init__(self) -> None:
        self._unknown: dict[str, str] = {}  # {MAC that no link here may be taken for: why}
        self._odd: set[int | str] = set()  # links that the metadata do not name, and MACs that no link has
        self._since = -math.inf

    def say_unknown(self, wanted: Desired, actual: Actual, config: Config) -> None:
        """Name each interface of the metadata that this host lacks: once, and again when there is another reason."""
        known, self._unknown = self._unknown, {mac: _why(mac, actual, config) for mac in wanted.unknown_macs}
        text = "metadata: names the interface %s, and %s; until then, links that it does not name stay as they are"
        for mac, why in self._unknown.items():
            if known.get(mac) != why:
                logger.warning(text, mac, why)

    @property
    def notices(self) -> list[str]:
        """The same, for the status."""
        return [f"{mac}: {why}" for mac, why in self._unknown.items()]

    def read_again(self, instance: Instance, config: Config, actual: Actual, at: float) -> float:
        """When what one side has and the other has not is a reason to read the metadata; infinity when nothing is.

        A link that is new, or has gone, is one at once: most often it is what is known of the metadata that is old.
        """
        listed = {interface.mac for interface in instance.interfaces}
        kinds = (None, *config.allow_kinds)
        missing = listed - {link.mac for link in actual.links}
        unlisted = {
            link.ifindex
            for link in actual.links
            if link.mac and link.mac not in listed and link.kind in kinds and link.name not in config.exclude
        }
        odd: set[int | str] = {*unlisted, *missing}
        new, self._odd = odd - self._odd, odd
        if new:
            self._since = at
            return at
        if not odd or at >= self._since + _CHASE:
            return math.inf
        return at + max(_SHORTLY, (at - self._since) / 2)


def _why(mac: str, actual: Actual, config: Config) -> str:
    links = [link for link in actual.links if link.mac == mac]
    kind = next((link for link in links if link.kind not in (None, *config.allow_kinds)), None)
    if kind is not None:
        return f'{kind.name} has that MAC and is of kind {kind.kind}, which needs [Netagent] AllowKinds="{kind.kind}"'
    if not links:
        return "no link here has that MAC"
    return " and ".join(link.name for link in links) + f" ha{'s' if len(links) == 1 else 've'} that MAC"
