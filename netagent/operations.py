"""Operations that a client may request: one frozen dataclass each, with its limits, its wire form and its inverse.

Decoding checks form only: types, ranges and no host bits. `policy` decides what is allowed. The fetcher builds the
same dataclasses and sends `to_wire()` of each. The rtnetlink message of every operation is in `rtnetlink`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from reprlib import repr as shortened
from typing import Any, ClassVar, TypeVar

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network
Value = None | int | str | bytes | Sequence["Value"] | Mapping[str, "Value"]
Message = Mapping[str, Value]
"""A map to be encoded: by msgpack for the wire and the ledger, or as JSON for the audit log."""

PROTOCOL = 209
"""Protocol number of owned routes, rules and addresses (RTA_PROTOCOL, FRA_PROTOCOL, IFA_PROTO)."""
TABLE_MAIN, TABLE_LOCAL = 254, 255
NUMBER_OF_PRIORITIES = 30
"""Owned rules have the priorities RulePriority to RulePriority + NUMBER_OF_PRIORITIES - 1."""
MAX_MTU = 65535
MAX_INDEX = 2**31 - 1
MAX_PRIORITY = 32765
MAX_MARK = 2**32 - 1
MAX_MARKED_LINKS = 64
EVERYTHING: Mapping[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


Decoder = TypeVar("Decoder")


class Malformed(ValueError):
    """A message does not have the form that this protocol requires; the text names the key."""


class Fields:
    """Reads the keys of one received map, each with its type and limits. `where` starts every error text.

    Error texts have shortened values: repr() fails on deeply nested ones.
    """

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{where}: {shortened(value):.40} is not a map")
        self.where = where
        self._unread: dict[str, Any] = dict(value)

    def take(self, key: str, kind: type) -> Any:
        """Return the value of `key`, which must have exactly this type (True is not an int)."""
        if key not in self._unread:
            raise Malformed(f"{self.where}: the key {key!r} is missing")
        value = self._unread.pop(key)
        if type(value) is not kind:
            raise Malformed(f"{self.where}.{key}: {shortened(value):.40} is not {kind.__name__}")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """Return an integer in low..high."""
        value: int = self.take(key, int)
        if not low <= value <= high:
            raise Malformed(f"{self.where}.{key}: {value} is not in {low}..{high}")
        return value

    def maps(self, key: str, most: int) -> list[Fields]:
        """Return a list of at most `most` maps."""
        values: list[object] = self.take(key, list)
        if len(values) > most:
            raise Malformed(f"{self.where}.{key}: {len(values)} maps are more than {most}")
        return [Fields(f"{self.where}.{key}[{at}]", value) for at, value in enumerate(values)]

    def choose(self, decoders: Mapping[str, Decoder]) -> Decoder:
        """Return the decoder that `op` names."""
        name = self.take("op", str)
        if name not in decoders:
            raise Malformed(f"{self.where}.op: {name!r:.40} is not one of {', '.join(decoders)}")
        return decoders[name]

    def boolean(self, key: str) -> bool:
        """Return True or False."""
        return bool(self.take(key, bool))

    def text(self, key: str, longest: int) -> str:
        """Return a string of 1..longest characters."""
        value: str = self.take(key, str)
        if not 1 <= len(value) <= longest:
            raise Malformed(f"{self.where}.{key}: {len(value)} characters are not in 1..{longest}")
        return value

    def address(self, key: str) -> IPAddress:
        """Return an address of 4 or 16 bytes."""
        packed: bytes = self.take(key, bytes)
        if len(packed) == 4:
            return IPv4Address(packed)
        if len(packed) == 16:
            return IPv6Address(packed)
        raise Malformed(f"{self.where}.{key}: an address has 4 or 16 bytes, not {len(packed)}")

    def optional_address(self, key: str) -> IPAddress | None:
        """Return an address, or None for nil."""
        if key in self._unread and self._unread[key] is None:
            del self._unread[key]
            return None
        return self.address(key)

    def interface(self) -> IPInterface:
        """Return `address` and `prefix` as an address with its prefix length."""
        packed, prefix = self._prefixed()
        return IPv4Interface((packed, prefix)) if len(packed) == 4 else IPv6Interface((packed, prefix))

    def network(self) -> IPNetwork:
        """Return `address` and `prefix` as a network, which must have no host bits."""
        packed, prefix = self._prefixed()
        try:
            return IPv4Network((packed, prefix)) if len(packed) == 4 else IPv6Network((packed, prefix))
        except ValueError as error:
            raise Malformed(f"{self.where}.address: {error}") from None

    def _prefixed(self) -> tuple[bytes, int]:
        packed: bytes = self.take("address", bytes)
        if len(packed) not in (4, 16):
            raise Malformed(f"{self.where}.address: an address has 4 or 16 bytes, not {len(packed)}")
        return packed, self.integer("prefix", 0, 8 * len(packed))

    def end(self) -> None:
        """Raise Malformed if a key was not read."""
        for key in self._unread:
            raise Malformed(f"{self.where}: {key!r:.40} is not a known key here")


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Set IFF_UP: RTM_NEWLINK, struct ifinfomsg (linux/rtnetlink.h)."""

    NAME: ClassVar[str] = "link_up"
    link: int  # ifindex

    @classmethod
    def from_wire(cls, fields: Fields) -> LinkUp:
        """Read the keys of this operation."""
        return cls(fields.integer("link", 1, MAX_INDEX))

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return {"op": self.NAME, "link": self.link}

    def inverse(self) -> LinkDown:
        """Return the operation that undoes this one."""
        return LinkDown(self.link)


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Clear IFF_UP. Only the inverse of LinkUp: no client can request it."""

    NAME: ClassVar[str] = "link_down"
    link: int

    @classmethod
    def from_wire(cls, fields: Fields) -> LinkDown:
        """Read the keys of this operation (from the ledger only)."""
        return cls(fields.integer("link", 1, MAX_INDEX))

    def to_wire(self) -> Message:
        """Return the map for the ledger and the log."""
        return {"op": self.NAME, "link": self.link}


@dataclass(frozen=True, slots=True)
class LinkMtu:
    """Set IFLA_MTU: RTM_NEWLINK, struct ifinfomsg."""

    NAME: ClassVar[str] = "link_mtu"
    link: int
    mtu: int  # bytes

    @classmethod
    def from_wire(cls, fields: Fields) -> LinkMtu:
        """Read the keys of this operation."""
        return cls(fields.integer("link", 1, MAX_INDEX), fields.integer("mtu", 0, MAX_MTU))

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return {"op": self.NAME, "link": self.link, "mtu": self.mtu}

    def inverse(self, earlier: int) -> LinkMtu:
        """Return the operation that undoes this one, for a link that had the MTU `earlier`."""
        return LinkMtu(self.link, earlier)


@dataclass(frozen=True, slots=True)
class AddressAdd:
    """Add an address to a link: RTM_NEWADDR, struct ifaddrmsg (linux/if_addr.h)."""

    NAME: ClassVar[str] = "address_add"
    link: int
    interface: IPInterface  # the address with its prefix length
    connected_route: bool  # False sets IFA_F_NOPREFIXROUTE; "route" on the wire

    @classmethod
    def from_wire(cls, fields: Fields) -> AddressAdd:
        """Read the keys of this operation."""
        return cls(fields.integer("link", 1, MAX_INDEX), fields.interface(), fields.boolean("route"))

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return {"op": self.NAME, "link": self.link, **_interface(self.interface), "route": self.connected_route}

    def inverse(self) -> AddressRemove:
        """Return the operation that undoes this one."""
        return AddressRemove(self.link, self.interface)


@dataclass(frozen=True, slots=True)
class AddressRemove:
    """Remove an address from a link: RTM_DELADDR, struct ifaddrmsg."""

    NAME: ClassVar[str] = "address_remove"
    link: int
    interface: IPInterface

    @classmethod
    def from_wire(cls, fields: Fields) -> AddressRemove:
        """Read the keys of this operation."""
        return cls(fields.integer("link", 1, MAX_INDEX), fields.interface())

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return {"op": self.NAME, "link": self.link, **_interface(self.interface)}

    def inverse(self, connected_route: bool) -> AddressAdd:
        """Return the operation that undoes this one, for an address that had this `connected_route`."""
        return AddressAdd(self.link, self.interface, connected_route)


@dataclass(frozen=True, slots=True)
class RouteReplace:
    """Add a route, or replace the owned one to the same destination: RTM_NEWROUTE, struct rtmsg (linux/rtnetlink.h).

    In TABLE_LOCAL it is a route of type local: the host accepts packets for the whole destination.
    """

    NAME: ClassVar[str] = "route_replace"
    table: int
    link: int
    destination: IPNetwork
    gateway: IPAddress | None  # None: the destination is on link

    @classmethod
    def from_wire(cls, fields: Fields) -> RouteReplace:
        """Read the keys of this operation."""
        return cls(*_route_fields(fields))

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return _route(self)

    def inverse(self, earlier: RouteReplace | None) -> RouteRemove | RouteReplace:
        """Return the operation that undoes this one. `earlier` is the route that it replaces, if any."""
        return earlier or RouteRemove(self.table, self.link, self.destination, self.gateway)


@dataclass(frozen=True, slots=True)
class RouteAdd(RouteReplace):
    """A RouteReplace that fails if the table has a route of any program with this destination and metric: NLM_F_EXCL.

    Another program may have added one since netagent read the routes. It is made just before it is sent to the kernel:
    no request and no ledger contains it.
    """


@dataclass(frozen=True, slots=True)
class RouteRemove:
    """Remove an owned route: RTM_DELROUTE, struct rtmsg."""

    NAME: ClassVar[str] = "route_remove"
    table: int
    link: int
    destination: IPNetwork
    gateway: IPAddress | None

    @classmethod
    def from_wire(cls, fields: Fields) -> RouteRemove:
        """Read the keys of this operation."""
        return cls(*_route_fields(fields))

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return _route(self)

    def inverse(self) -> RouteReplace:
        """Return the operation that undoes this one."""
        return RouteReplace(self.table, self.link, self.destination, self.gateway)


@dataclass(frozen=True, slots=True)
class RuleAdd:
    """Add a rule that looks up a table: RTM_NEWRULE, struct fib_rule_hdr (linux/fib_rules.h)."""

    NAME: ClassVar[str] = "rule_add"
    priority: int
    selector: IPNetwork  # source (or destination) of packets; a prefix length of 0 selects all
    to: bool  # the selector is the destination, not the source
    table: int
    suppress: bool  # suppress_prefixlength 0: ignore default routes of the table
    iif_lo: bool  # only packets that this host sends; `local` on the wire
    mark: int = 0  # fwmark MARK/MASK; 0/0: any mark
    mask: int = 0

    @classmethod
    def from_wire(cls, fields: Fields) -> RuleAdd:
        """Read the keys of this operation."""
        return cls(*_rule_fields(fields))

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return _rule(self)

    def inverse(self) -> RuleRemove:
        """Return the operation that undoes this one."""
        return RuleRemove(
            self.priority, self.selector, self.to, self.table, self.suppress, self.iif_lo, self.mark, self.mask
        )


@dataclass(frozen=True, slots=True)
class RuleRemove:
    """Remove an owned rule: RTM_DELRULE, struct fib_rule_hdr."""

    NAME: ClassVar[str] = "rule_remove"
    priority: int
    selector: IPNetwork
    to: bool
    table: int
    suppress: bool
    iif_lo: bool
    mark: int = 0
    mask: int = 0

    @classmethod
    def from_wire(cls, fields: Fields) -> RuleRemove:
        """Read the keys of this operation."""
        return cls(*_rule_fields(fields))

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return _rule(self)

    def inverse(self) -> RuleAdd:
        """Return the operation that undoes this one."""
        return RuleAdd(
            self.priority, self.selector, self.to, self.table, self.suppress, self.iif_lo, self.mark, self.mask
        )


@dataclass(frozen=True, slots=True)
class LinkMark:
    """The mark of connections that arrive on a link, inside [Network] MarkMask=."""

    link: int
    mark: int


@dataclass(frozen=True, slots=True)
class ForwardedReplies:
    """Replace the whole nftables table `cloud_network`, or remove it if there are no marks: see `nftables`."""

    NAME: ClassVar[str] = "forwarded_replies"
    marks: tuple[LinkMark, ...]

    @classmethod
    def from_wire(cls, fields: Fields) -> ForwardedReplies:
        """Read the keys of this operation."""
        return cls(marks_from_wire(fields, "marks"))

    def to_wire(self) -> Message:
        """Return the map that is sent and logged."""
        return {"op": self.NAME, "marks": marks_to_wire(self.marks)}

    def inverse(self, earlier: tuple[LinkMark, ...]) -> ForwardedReplies:
        """Return the operation that undoes this one, for a table that had the marks `earlier`."""
        return ForwardedReplies(earlier)


Operation = (
    LinkUp | LinkMtu | AddressAdd | AddressRemove | RouteReplace | RouteRemove | RuleAdd | RuleRemove | ForwardedReplies
)
"""Operations that a client may request."""
Change = Operation | LinkDown
"""Operations that netagent carries out: those of clients, and those that only undo one."""

DECODERS: Mapping[str, Callable[[Fields], Operation]] = {
    LinkUp.NAME: LinkUp.from_wire,
    LinkMtu.NAME: LinkMtu.from_wire,
    AddressAdd.NAME: AddressAdd.from_wire,
    AddressRemove.NAME: AddressRemove.from_wire,
    RouteReplace.NAME: RouteReplace.from_wire,
    RouteRemove.NAME: RouteRemove.from_wire,
    RuleAdd.NAME: RuleAdd.from_wire,
    RuleRemove.NAME: RuleRemove.from_wire,
    ForwardedReplies.NAME: ForwardedReplies.from_wire,
}


def operation_from_wire(value: object, where: str = "op") -> Operation:
    """Decode one operation. Raises Malformed with `where` and the key."""
    fields = Fields(where, value)
    operation = fields.choose(DECODERS)(fields)
    fields.end()
    return operation


def _earlier_mtu(fields: Fields) -> LinkMtu:
    """Read an MTU that a link had: the kernel has links with any."""
    return LinkMtu(fields.integer("link", 1, MAX_INDEX), fields.integer("mtu", 0, MAX_INDEX))


UNDO_DECODERS: Mapping[str, Callable[[Fields], Change]] = {
    **DECODERS,
    LinkDown.NAME: LinkDown.from_wire,
    LinkMtu.NAME: _earlier_mtu,
}
_OLDER_LEDGERS: Mapping[str, Mapping[str, object]] = {
    RuleAdd.NAME: {"local": False, "mark": 0, "mask": 0},
    RuleRemove.NAME: {"local": False, "mark": 0, "mask": 0},
}
"""Keys that ledgers of earlier wire versions lack: `local` came with version 2, marks with version 4."""


def undo_from_wire(value: object) -> Change:
    """Decode one operation of the ledger. Raises Malformed."""
    if isinstance(value, dict) and value.get("op") in _OLDER_LEDGERS:
        value = {**_OLDER_LEDGERS[value["op"]], **value}
    fields = Fields("undo", value)
    operation = fields.choose(UNDO_DECODERS)(fields)
    fields.end()
    return operation


def _interface(interface: IPInterface) -> Message:
    return {"address": interface.packed, "prefix": interface.network.prefixlen}


def _network(network: IPNetwork) -> Message:
    return {"address": network.network_address.packed, "prefix": network.prefixlen}


def _route_fields(fields: Fields) -> tuple[int, int, IPNetwork, IPAddress | None]:
    table, link = fields.integer("table", 1, MAX_INDEX), fields.integer("link", 1, MAX_INDEX)
    destination, gateway = fields.network(), fields.optional_address("gateway")
    if gateway is not None and gateway.version != destination.version:
        raise Malformed(f"{fields.where}.gateway: {gateway} is not of the family of {destination}")
    return table, link, destination, gateway


def _route(route: RouteReplace | RouteRemove) -> Message:
    gateway = None if route.gateway is None else route.gateway.packed
    where: Message = {"op": route.NAME, "table": route.table, "link": route.link}
    return {**where, **_network(route.destination), "gateway": gateway}


def marks_from_wire(fields: Fields, key: str) -> tuple[LinkMark, ...]:
    """Read the marks of links: at most MAX_MARKED_LINKS maps. Raises Malformed."""
    marks = []
    for each in fields.maps(key, MAX_MARKED_LINKS):
        marks.append(LinkMark(each.integer("link", 1, MAX_INDEX), each.integer("mark", 0, MAX_MARK)))
        each.end()
    return tuple(marks)


def marks_to_wire(marks: tuple[LinkMark, ...]) -> list[Message]:
    """Return the maps that are sent and logged."""
    return [{"link": each.link, "mark": each.mark} for each in marks]


def _rule_fields(fields: Fields) -> tuple[int, IPNetwork, bool, int, bool, bool, int, int]:
    priority, selector, to = fields.integer("priority", 1, MAX_PRIORITY), fields.network(), fields.boolean("to")
    return (
        priority,
        selector,
        to,
        fields.integer("table", 1, MAX_INDEX),
        fields.boolean("suppress"),
        fields.boolean("local"),
        fields.integer("mark", 0, MAX_MARK),
        fields.integer("mask", 0, MAX_MARK),
    )


def _rule(rule: RuleAdd | RuleRemove) -> Message:
    where: Message = {"op": rule.NAME, "priority": rule.priority, **_network(rule.selector)}
    flags = {"to": rule.to, "table": rule.table, "suppress": rule.suppress, "local": rule.iif_lo}
    return {**where, **flags, "mark": rule.mark, "mask": rule.mask}
