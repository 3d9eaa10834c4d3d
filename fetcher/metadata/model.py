"""An instance as its cloud describes it: validated, frozen, and the same type for every provider."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, NamedTuple, TypeVar

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network
Part = TypeVar("Part")
Other = TypeVar("Other")

EVERYTHING: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
"""The default route's destination, by IP version."""
MAX_INTERFACES = 64
MAX_ADDRESSES = 4096
MAX_NETWORKS = 512
"""Limits of one instance: addresses and ranges, and subnets and routes, of all interfaces together.

The excess is reported and left out.
"""
MAX_REPORTS = 256
MAX_REPORT_LENGTH = 300
"""Limits of each kind of report (problem, notice), and of its text in characters."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MIN_PREFIX_LENGTH = {4: 8, 6: 32}  # no subnet or range of an instance is larger
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


class MetadataError(Exception):
    """The metadata could not be read, or does not match the cloud's documentation. It proves no removal.

    `kind` groups errors for the metrics (timeout, status, invalid ...); the text names the path in the document.
    `retry_after` is the number of seconds that the server asks the client to wait. `status` is the response's HTTP
    status, or 0 if the status was not the error.
    """

    def __init__(self, kind: str, message: str, retry_after: float = 0.0, status: int = 0) -> None:
        super().__init__(message)
        self.kind, self.retry_after, self.status = kind, retry_after, status


def invalid(path: str, value: object, accepted: str) -> MetadataError:
    """Return the error for a value at `path` of the document that does not match `accepted`."""
    shown = repr(value)
    return MetadataError("invalid", f"{path}: {shown if len(shown) <= 60 else shown[:57] + '...'} is not {accepted}")


@dataclass(frozen=True, slots=True)
class Vlan:
    """A VLAN that carries an interface. The image or the operator creates its link; the fetcher never does."""

    tag: int
    parent: str  # the MAC address of the parent interface; "" if the metadata does not name it


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface of the cloud."""

    mac: str  # 02:00:00:00:00:01
    addresses: tuple[IPInterface, ...]  # private, in the metadata's order, each with its subnet's prefix length
    subnets: tuple[IPNetwork, ...]
    gateways: tuple[IPAddress, ...] = ()  # from the metadata or the cloud's documented convention; one per IP version
    anchor: tuple[IPNetwork, IPAddress] | None = None  # DigitalOcean: a subnet with a gateway of its own
    device_number: int | None = None
    network_card: int = 0  # AWS: device numbers start again on each card
    routed: bool = False  # GCP: only the gateway is on link; the rest of the subnets lies behind it
    routes: tuple[tuple[IPNetwork, IPAddress], ...] = ()  # networks behind other gateways: (network, gateway)
    ranges: tuple[IPNetwork, ...] = ()  # delegated as a whole, never expanded into addresses
    public: tuple[IPAddress, ...] = ()  # shown only: the cloud translates them
    mtu: int | None = None
    dhcp: bool = False  # the metadata leaves its addresses to DHCP
    vlan: Vlan | None = None
    document: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)  # as the cloud gives it


class Problem(NamedTuple):
    """A part of the metadata that is not understood and therefore not acted on."""

    mac: str  # of its interface; "" if unknown
    text: str


@dataclass(frozen=True, slots=True)
class Instance:
    """The result of one read of the metadata. Two instances are equal if their network parts are."""

    provider: str
    interfaces: tuple[Interface, ...]
    problems: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()  # understood but not configured; no error
    missing: tuple[Problem, ...] = ()  # always given by the cloud; reported if they keep something
    left_alone: frozenset[str] = frozenset()  # MACs with a notice, or merged because unproven
    system: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    identity: Mapping[str, bytes] = field(default_factory=dict, hash=False, compare=False)
    stale: bool = False  # may be older than the instance's state (a config drive), or lack interfaces for a moment

    @property
    def unproven(self) -> frozenset[str]:
        """The MACs of interfaces that may have more parts than listed: none of their objects may be removed.

        These are the interfaces with a problem, a notice or a missing part, and those without any address that are not
        left to DHCP: an unexpected empty list proves nothing.
        """
        empty = {each.mac for each in self.interfaces if not each.addresses and not each.dhcp}
        return self.left_alone | {each.mac for each in (*self.problems, *self.missing) if each.mac} | empty

    @property
    def may_remove(self) -> bool:
        """True if everything that is not listed is gone, except on `unproven` interfaces."""
        return not self.stale and not self.problems and all(each.mac for each in self.missing)

    @property
    def complete(self) -> bool:
        """True if everything was understood, so that everything that is not listed is gone."""
        return self.may_remove and not self.unproven

    def with_known(self, before: Instance | None) -> Instance:
        """Return this instance with the parts of `before` whose absence it does not prove.

        Known parts come first, in their previous order: a different order in the document is no change.
        """
        if before is None:
            return self
        known = {each.mac: each for each in before.interfaces}
        ordered = tuple(_in_order(each, known.get(each.mac, each)) for each in self.interfaces)
        if self.complete:
            return replace(self, interfaces=ordered)
        listed = {each.mac for each in self.interfaces}
        kept = [each for each in before.interfaces if each.mac not in listed]
        if not self.stale and all(each.mac for each in (*self.problems, *self.missing)):
            kept = [each for each in kept if each.mac in self.unproven]
        taken = {address.ip for each in self.interfaces for address in each.addresses}
        merged = [
            _merged(each, known[each.mac], taken) if each.mac in self.unproven and each.mac in known else each
            for each in ordered
        ]
        changed = {each.mac for each in (*merged, *kept) if each not in ordered}
        reasons = [each.text for each in self.missing if each.mac in changed or (not each.mac and kept)]
        return replace(
            self,
            interfaces=(*merged, *kept),
            notices=(*self.notices, *(f"{reason}; the earlier values are kept" for reason in reasons)),
            # A merged interface no longer shows that it is unproven, and would otherwise count as proof of absence.
            left_alone=self.left_alone | self.unproven,
        )


def _in_order(now: Interface, before: Interface) -> Interface:
    """Return the interface with its parts in the order of `before`, new ones last."""
    position = {each.ip: number for number, each in enumerate(before.addresses)}
    return replace(
        now,
        addresses=tuple(sorted(now.addresses, key=lambda each: position.get(each.ip, len(position)))),
        subnets=_known_first(before.subnets, now.subnets),
        gateways=_known_first(before.gateways, now.gateways),
    )


def _known_first(known: tuple[Part, ...], now: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return `now` with the `known` parts first, in their previous order."""
    return tuple(dict.fromkeys((*(each for each in known if each in now), *now)))


def _merged(now: Interface, before: Interface, taken: set[IPAddress]) -> Interface:
    """Add the parts of `before` to an interface that was not read completely; `taken` are used on others."""
    versions = {gateway.version for gateway in now.gateways}
    known = {each.ip: each for each in before.addresses}  # with the prefix lengths of subnets that may be missing now
    addresses = [known.get(each.ip, each) for each in now.addresses]
    addresses += [each for each in before.addresses if each.ip not in taken]
    merged = replace(
        now,
        addresses=tuple(addresses),
        subnets=tuple(dict.fromkeys((*now.subnets, *before.subnets))),
        gateways=(*now.gateways, *(each for each in before.gateways if each.version not in versions)),
        anchor=now.anchor or before.anchor,
        routes=tuple(dict.fromkeys((*now.routes, *before.routes))),
        ranges=tuple(dict.fromkeys((*now.ranges, *before.ranges))),
        mtu=now.mtu or before.mtu,
        device_number=before.device_number if now.device_number is None else now.device_number,
        network_card=now.network_card or before.network_card,
        document=before.document,
    )
    return _in_order(merged, before)


def bounded(instance: Instance) -> Instance:
    """Return the instance within the limits above. Each interface that loses a part gets a Problem."""
    problems = list(instance.problems)
    if len(instance.interfaces) > MAX_INTERFACES:
        text = f"{len(instance.interfaces)} interfaces are listed; the first {MAX_INTERFACES} are configured"
        problems.append(Problem("", text))
    interfaces, addresses_left, networks_left = list[Interface](), MAX_ADDRESSES, MAX_NETWORKS
    for each in instance.interfaces[:MAX_INTERFACES]:
        addresses, ranges = _first(addresses_left, each.addresses, each.ranges)
        subnets, routes = _first(networks_left, each.subnets, each.routes)
        addresses_left -= len(addresses) + len(ranges)
        networks_left -= len(subnets) + len(routes)
        part = replace(each, addresses=addresses, ranges=ranges, subnets=subnets, routes=routes)
        if left_out := len(each.addresses) + len(each.ranges) - len(addresses) - len(ranges):
            problems.append(Problem(each.mac, f"{each.mac}: {left_out} addresses exceed the limit of {MAX_ADDRESSES}"))
        if left_out := len(each.subnets) + len(each.routes) - len(subnets) - len(routes):
            text = f"{each.mac}: {left_out} subnets and routes exceed the limit of {MAX_NETWORKS}"
            problems.append(Problem(each.mac, text))
        interfaces.append(part)
    return replace(
        instance,
        interfaces=tuple(interfaces),
        problems=_bounded_problems(problems),
        missing=_bounded_problems(instance.missing),
        notices=tuple(each.text for each in _bounded_problems([Problem("", each) for each in instance.notices])),
    )


def _first(limit: int, one: tuple[Part, ...], other: tuple[Other, ...]) -> tuple[tuple[Part, ...], tuple[Other, ...]]:
    """Return the first `limit` parts of two lists together."""
    return one[:limit], other[: max(0, limit - len(one))]


def _bounded_problems(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Return problems within MAX_REPORTS, each within MAX_REPORT_LENGTH. The last one counts those left out."""
    found = [Problem(each.mac, _shortened(each.text)) for each in problems[:MAX_REPORTS]]
    if len(problems) > MAX_REPORTS:
        found.append(Problem("", f"and {len(problems) - MAX_REPORTS} more"))
    return tuple(found)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_REPORT_LENGTH else f"{text[: MAX_REPORT_LENGTH - 3]}..."


def host(address: IPAddress) -> IPNetwork:
    """Return the network of one address."""
    make = IPv4Network if address.version == 4 else IPv6Network
    return make((int(address), address.max_prefixlen))  # from numbers: much faster than from text


def parse_mac(path: str, text: str) -> str:
    """Return a MAC address in lower case with colons."""
    mac = text.strip().lower()
    if not _MAC.fullmatch(mac):
        raise invalid(path, text, "a MAC address")
    return mac


def parse_address(path: str, text: str) -> IPAddress:
    """Return an address that a host can have."""
    try:
        address = ip_address(text.strip())
    except ValueError:
        raise invalid(path, text, "an IP address") from None
    if address.version == 6:
        unusable = address.scope_id is not None or address.ipv4_mapped is not None
    else:
        unusable = address.is_reserved or address in _THIS_NETWORK
    if unusable or address.is_loopback or address.is_multicast or address.is_unspecified:
        raise invalid(path, text, "an address that an interface can have")
    return address


def parse_network(path: str, text: str) -> IPNetwork:
    """Return a prefix such as 10.0.1.0/24. Host bits (10.0.1.5/24) are dropped."""
    try:
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        raise invalid(path, text, "a prefix such as 10.0.1.0/24") from None
    unusable = network.is_loopback or network.is_multicast or (network.version == 4 and network.is_reserved)
    if network.prefixlen < _MIN_PREFIX_LENGTH[network.version] or unusable:
        raise invalid(path, text, "a prefix that an interface can have")
    return network


def with_prefix_length(path: str, address: IPAddress, subnets: tuple[IPNetwork, ...]) -> IPInterface:
    """Return the address with the prefix length of its subnet.

    Raises MetadataError if it is no host address in any of them.
    """
    make = IPv4Interface if address.version == 4 else IPv6Interface
    for subnet in subnets:
        if address.version == subnet.version and address in subnet:
            ends = (subnet.network_address, subnet.broadcast_address)
            if subnet.version == 4 and subnet.prefixlen < 31 and address in ends:
                raise invalid(path, str(address), f"a host address: it is the network or broadcast address of {subnet}")
            if subnet.version == 6 and subnet.prefixlen < 127 and address == subnet.network_address:
                raise invalid(path, str(address), f"a host address: it is the anycast address of {subnet} (RFC 4291)")
            return make((int(address), subnet.prefixlen))
    raise invalid(path, str(address), "inside " + (" or ".join(map(str, subnets)) or "any subnet of its interface"))
