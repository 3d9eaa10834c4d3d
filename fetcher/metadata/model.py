"""What a cloud says of an instance, validated and frozen: the same for every provider."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from typing import Any, NamedTuple

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

EVERYTHING: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
"""By the family: what a default route is for, and a rule that has no selector."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_SHORTEST = {4: 8, 6: 32}  # no subnet or range of an instance is larger
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


class MetadataError(Exception):
    """The metadata could not be had, or is not what the cloud documents. Nothing may be removed on its account.

    `kind` groups errors for the metrics (timeout, status, invalid …); the text names the path in the document.
    `retry_after`: the seconds for which the server asks to be left in peace.
    """

    def __init__(self, kind: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.retry_after = kind, retry_after


def invalid(path: str, value: object, accepted: str) -> MetadataError:
    """The error for a value at `path` of the document that is not what is `accepted` there."""
    shown = repr(value)
    return MetadataError("invalid", f"{path}: {shown if len(shown) <= 60 else shown[:57] + '…'} is not {accepted}")


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface, as the cloud's control plane knows it."""

    mac: str  # 02:00:00:00:00:01
    addresses: tuple[IPInterface, ...]  # private, in the metadata's order, each with its subnet's prefix length
    subnets: tuple[IPNetwork, ...]
    gateways: tuple[IPAddress, ...] = ()  # the cloud's own word or its documented convention; at most one a family
    device_number: int | None = None
    network_card: int = 0  # AWS: device numbers count anew on each card
    routed: bool = False  # GCP: nothing but the gateway is on link, the rest of the subnets lies behind it
    routes: tuple[tuple[IPNetwork, IPAddress], ...] = ()  # what lies behind other gateways: (network, gateway)
    ranges: tuple[IPNetwork, ...] = ()  # delegated whole: never expanded into addresses
    public: tuple[IPAddress, ...] = ()  # for display; the cloud translates them
    mtu: int | None = None
    document: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)  # as the provider says it


class Problem(NamedTuple):
    """What was wrong with one interface, which is therefore not listed."""

    mac: str
    text: str


@dataclass(frozen=True, slots=True)
class Instance:
    """Everything that one read of the metadata said. Equal when the network part is equal."""

    provider: str
    interfaces: tuple[Interface, ...]
    problems: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()  # what is understood and not configured: it will stay so, and is nobody's mistake
    system: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    identity: Mapping[str, bytes] = field(default_factory=dict, hash=False, compare=False)
    stale: bool = False  # from a source that may be older than what it describes, such as a config drive

    @property
    def complete(self) -> bool:
        """Whether this read may serve as proof that something is no longer there."""
        return not self.problems and not self.stale

    def with_what_was_known(self, before: Instance | None) -> Instance:
        """Interfaces that could not be read this time stay as they were."""
        unread = {problem.mac for problem in self.problems}
        kept = tuple(interface for interface in before.interfaces if interface.mac in unread) if before else ()
        return replace(self, interfaces=self.interfaces + kept)


def host(address: IPAddress) -> IPNetwork:
    """The network of one address. From numbers: `ip_network` reads what it has written as text first."""
    make = IPv4Network if address.version == 4 else IPv6Network
    return make((int(address), address.max_prefixlen))


def parse_mac(path: str, text: str) -> str:
    """A MAC address in lower case with colons."""
    mac = text.strip().lower()
    if not _MAC.fullmatch(mac):
        raise invalid(path, text, "a MAC address")
    return mac


def parse_address(path: str, text: str) -> IPAddress:
    """An address that a host can have."""
    try:
        address = ip_address(text.strip())
    except ValueError:
        raise invalid(path, text, "an IP address") from None
    if address.version == 6:
        nobodys = address.scope_id is not None or address.ipv4_mapped is not None
    else:
        nobodys = address.is_reserved or address in _THIS_NETWORK
    if nobodys or address.is_loopback or address.is_multicast or address.is_unspecified:
        raise invalid(path, text, "an address that an interface can have")
    return address


def parse_network(path: str, text: str) -> IPNetwork:
    """A prefix without host bits."""
    try:
        network = ip_network(text.strip())
    except ValueError:
        raise invalid(path, text, "a prefix such as 10.0.1.0/24") from None
    nobodys = network.is_loopback or network.is_multicast or (network.version == 4 and network.is_reserved)
    if network.prefixlen < _SHORTEST[network.version] or nobodys:
        raise invalid(path, text, "a prefix that an interface can have")
    return network


def place(path: str, address: IPAddress, subnets: tuple[IPNetwork, ...]) -> IPInterface:
    """The address with the prefix length of its subnet; an error when no host in any of them can have it."""
    for subnet in subnets:
        if address.version == subnet.version and address in subnet:
            nobodys = (subnet.network_address, subnet.broadcast_address)
            if subnet.version == 4 and subnet.prefixlen < 31 and address in nobodys:
                raise invalid(path, str(address), f"a host's: it is the network's or broadcast address of {subnet}")
            make = IPv4Interface if address.version == 4 else IPv6Interface
            return make((int(address), subnet.prefixlen))  # from numbers, as in `host`
    raise invalid(path, str(address), "inside " + (" or ".join(map(str, subnets)) or "any subnet of its interface"))
