"""The state that must survive a crash: the undo operations of the open transaction, and the owned objects.

Owned routes, rules and (from Linux 5.18) addresses have protocol number 209 in the kernel; before, the ledger lists the
owned addresses. The file is in the runtime directory, so a reboot removes it together with the addresses. It is one
msgpack array. Older files end after `owned`, `gateways` or `table`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgpack

from .addresses import OwnedAddresses
from .operations import Change, IPAddress, Malformed, undo_from_wire

MAX_GATEWAYS = 256
"""Number of former gateways in the ledger. Gateways of present routes are protected without it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The content of the ledger."""

    request: str | None = None  # id of the open transaction
    undo: tuple[Change, ...] = ()  # in the order to carry them out
    owned: OwnedAddresses = frozenset()
    gateways: tuple[IPAddress, ...] = ()  # of owned routes since boot, the earliest first
    may_have_table: bool = False  # True if the nftables table `cloud_network` was made since boot and may exist
    links: Mapping[int, str] = field(default_factory=dict)  # identity of the links of `undo`, by ifindex


class Ledger:
    """The file and its content."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entry = Entry()
        self.damage: str | None = None  # set if the file could not be read and was moved aside
        try:
            self.entry = _decode(path.read_bytes())
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            self.damage = f"{path} is damaged ({error}); moved to {aside}. An open transaction in it stays applied"

    def write(self, entry: Entry) -> None:
        """Replace the content; a crash leaves the old or the new one. Raises OSError, and then nothing has changed."""
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_bytes(_encode(entry))
        new.replace(self._path)
        self.entry = entry

    def shorten(self, entry: Entry) -> None:
        """Replace the content by a shorter one. Never raises: the kernel has been changed already.

        Other programs, also the fetcher, can fill the directory's file system. The file is then overwritten in place,
        which needs no new blocks; a crash meanwhile damages it. If that also fails, the next start undoes the same
        transaction again.
        """
        try:
            self.write(entry)
        except OSError:
            self.entry = entry
            with contextlib.suppress(OSError), self._path.open("r+b") as file:
                file.write(_encode(entry))
                file.truncate()


def _encode(entry: Entry) -> bytes:
    owned = [(link, ip.packed) for link, ip in sorted(entry.owned, key=lambda each: (each[0], each[1].packed))]
    undo = [op.to_wire() for op in entry.undo]
    gateways = [ip.packed for ip in entry.gateways]
    packed: bytes = msgpack.packb((entry.request, undo, owned, gateways, entry.may_have_table, [*entry.links.items()]))
    return packed


def _decode(content: bytes) -> Entry:
    request, undo, owned, *rest = msgpack.unpackb(content)
    gateways: Sequence[Any] = rest[0] if rest else ()
    links: Sequence[Any] = rest[2] if len(rest) > 2 else ()
    if request is not None and not isinstance(request, str):
        raise Malformed("the request id is not a string")
    return Entry(
        request=request,
        undo=tuple(map(undo_from_wire, undo)),
        owned=frozenset((int(link), ip_address(packed)) for link, packed in owned),
        gateways=tuple(map(ip_address, gateways)),
        may_have_table=len(rest) > 1 and rest[1] is True,
        links={int(link): str(identity) for link, identity in links},
    )
