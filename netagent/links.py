"""The host's links, with the accepted operations of this request applied: a part of `view`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from . import claims
from .rtnetlink import Link
from .settings import Settings

_KINDS_OF_HOSTS = ("bridge", "dummy", "ipvlan", "macvlan", "veth", "vrf")
"""Kinds of virtual links, other than tunnels, on which a host or its containers may have an address of the cloud."""


class Links:
    """The links by ifindex, and which of them are interfaces of the cloud."""

    def __init__(self, links: Iterable[Link], settings: Settings) -> None:
        self._by_index = {link.index: link for link in links}
        everything = self._by_index.values()
        self.cloud = {each.index for each in everything if _is_cloud(each, settings)}
        self._excluded = {
            each.index for each in everything if claims.is_excluded(settings.exclude, each.name, each.mac)
        }

    def get(self, index: int) -> Link | None:
        """Return a link; None if it is newer than the dump of the links, or for 0."""
        return self._by_index.get(index)

    def __getitem__(self, index: int) -> Link:
        """Return a link. Raises KeyError."""
        return self._by_index[index]

    def all(self) -> Iterable[Link]:
        """Return all links."""
        return self._by_index.values()

    def name(self, index: int) -> str:
        """Return the name of a link, for messages."""
        return self._by_index[index].name if index in self._by_index else f"link {index}"

    def set_up(self, index: int) -> None:
        """Count a link that this request sets up."""
        self._by_index[index] = replace(self._by_index[index], up=True)

    def is_down(self, index: int) -> bool:
        """Return True if the link is known to be down."""
        found = self.get(index)
        return found is not None and not found.up

    def is_cloud(self, index: int) -> bool:
        """Return True for an interface of the cloud: no loopback, and no rtnetlink kind that AllowKinds= lacks."""
        return index in self.cloud

    def is_excluded(self, index: int) -> bool:
        """Return True for a link that Exclude= names."""
        return index in self._excluded

    def is_managed(self, index: int) -> bool:
        """Return True for an interface of the cloud that Exclude= does not name."""
        return self.is_cloud(index) and not self.is_excluded(index)

    def is_lo_or_dummy(self, index: int) -> bool:
        """Return True for a link whose addresses only this host uses: lo or a dummy (such as kube-ipvs0)."""
        found = self.get(index)
        return found is not None and (found.loopback or found.kind == "dummy")

    def may_have_cloud_addresses(self, index: int) -> bool:
        """Return True for lo and virtual links of this host. A tunnel (VPN) has addresses of another network.

        A subnet that an interface has learned may contain them by chance, or by an advertisement of a neighbour.
        """
        found = self.get(index)
        return found is not None and (found.loopback or found.kind in _KINDS_OF_HOSTS)

    def parent(self, index: int) -> int:
        """Return the managed interface whose packets a macvlan or ipvlan shares; 0 for other links."""
        found = self.get(index)
        return found.parent if found is not None and self.is_managed(found.parent) else 0


def _is_cloud(link: Link, settings: Settings) -> bool:
    return not link.loopback and (link.kind is None or link.kind in settings.allow_kinds)
