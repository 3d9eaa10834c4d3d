"""What netagent refuses. Pure: operations and what the kernel says go in, the way back or a Refusal comes out.

Nothing that a request says of the host is believed: which links there are and of what kind, which addresses
and gateways somebody already has, and whose a route is, all come from the kernel (`View`). Operations are
checked in order, and each may build on the ones before it: an address of this request may be the source of a
rule of this request. docs/policy.md has the same as a table.
"""

from __future__ import annotations

from .protocol import BAND, PROTOCOL, TABLE_LOCAL, TABLE_MAIN, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .protocol import Op

    Network = tuple[int, int, int]  # bytes of the family, network as a number, number of host bits


class Refusal(Exception):
    """An operation that may not be done: its position, why not, and what an operator could set to allow it."""

    def __init__(self, position: int, reason: str, allow: str | None = None) -> None:
        super().__init__(reason)
        self.position, self.reason, self.allow = position, reason, allow


def network(packed: bytes, prefix: int) -> Network:
    """A packed address and a prefix length as a network."""
    host = len(packed) * 8 - prefix
    return len(packed), int.from_bytes(packed) >> host << host, host


def contains(outer: Network, inner: Network) -> bool:
    """Whether every address of `inner` is one of `outer`."""
    return outer[0] == inner[0] and outer[2] >= inner[2] and inner[1] >> outer[2] << outer[2] == outer[1]


def parse_network(value: str) -> Network:
    """`10.0.0.0/8` as a network; ValueError for what is none."""
    from _socket import AF_INET, AF_INET6, inet_pton

    address, _, prefix = value.partition("/")
    try:
        packed = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    except OSError:
        raise ValueError(f"{value!r} is not an address or prefix") from None
    length = int(prefix) if prefix else len(packed) * 8
    if not 0 <= length <= len(packed) * 8:
        raise ValueError(f"{value!r}: the prefix length is not 0..{len(packed) * 8}")
    return network(packed, length)


ALLOWED = tuple(map(parse_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))
# Never an address of a link, whatever AllowAddresses= says: unspecified, loopback, link-local (the metadata
# servers live there), multicast, reserved and broadcast; IPv4 in IPv6; and the metadata servers elsewhere:
# Alibaba's, Azure's wire server, Oracle's, AWS's and GCP's over IPv6.
NEVER = tuple(
    (parse_network(prefix), why)
    for prefix, why in (
        ("0.0.0.0/8", "unspecified (RFC 1122)"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local, where metadata servers live"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved or broadcast"),
        ("100.100.100.200", "a metadata server's"),
        ("168.63.129.16", "a metadata server's"),
        ("192.0.0.192", "a metadata server's"),
        ("::/96", "unspecified or loopback"),
        ("::ffff:0:0/96", "an IPv4 address in IPv6"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
        ("fd00:ec2::254", "a metadata server's"),
        ("fd20:ce::254", "a metadata server's"),
    )
)
_SHORTEST = {4: 8, 16: 32}  # no connected route is shorter: it would draw in other people's networks


class View:
    """What the kernel says now, read when first asked for, and what this request has added to it so far."""

    def __init__(self, kernel: Any, settings: Any, owned: frozenset[tuple[int, bytes]] = frozenset()) -> None:
        self.kernel, self.settings, self._owned = kernel, settings, owned
        self.links = {found["link"]: found for found in kernel.links()}
        self.addresses: dict[tuple[int, bytes], dict[str, Any]] = {}
        self.subnets: dict[int, list[Network]] = {}  # on link, by link
        self.learned: dict[int, list[Network]] = {}  # from DHCP, a router or an operator, by link
        self._routes: dict[int, dict[tuple[bytes, int], dict[str, Any]]] = {}
        self._rules: set[tuple[Any, ...]] | None = None
        found = kernel.addresses()
        self.knows_protocol = any(address["protocol"] is not None for address in found)
        for address in found:
            self.add_address(address)
            if not self.owns(address) and address["prefix"] < len(address["address"]) * 8:
                self.learned.setdefault(address["link"], []).append(network(address["address"], address["prefix"]))
        self.gateways = {*settings.resolvers, *kernel.gateways()}
        for route in kernel.routes(TABLE_MAIN):
            if route["gateway"] is not None:
                self.gateways.add(route["gateway"])
            elif route["protocol"] != PROTOCOL and route["prefix"]:
                net = network(route["destination"], route["prefix"])
                self.subnets.setdefault(route["link"], []).append(net)
                if route["protocol"] in (9, 16):  # RTPROT_RA, RTPROT_DHCP
                    self.learned.setdefault(route["link"], []).append(net)
        self._link_reasons: dict[int, tuple[str, str | None] | None] = {}

    def owns(self, address: dict[str, Any]) -> bool:
        """Whether netagent put the address there: IFA_PROTO says so, or the ledger where the kernel has none."""
        if self.knows_protocol:
            return bool(address["protocol"] == PROTOCOL)
        return (address["link"], address["address"]) in self._owned

    def add_address(self, address: dict[str, Any]) -> None:
        """From here on the link has this address."""
        self.addresses[address["link"], address["address"]] = address
        self.subnets.setdefault(address["link"], []).append(network(address["address"], address["prefix"]))

    def routes(self, table: int) -> dict[tuple[bytes, int], dict[str, Any]]:
        """{(destination, prefix): route} of a table, the preferred one where several metrics differ."""
        if table not in self._routes:
            self._routes[table] = {}
            for route in sorted(self.kernel.routes(table), key=lambda route: route["metric"], reverse=True):
                self._routes[table][route["destination"], route["prefix"]] = route
        return self._routes[table]

    def has_rule(self, op: Op) -> bool:
        """Whether the kernel has exactly this rule with our protocol number."""
        if self._rules is None:
            self._rules = {rule_key(rule) for rule in self.kernel.rules() if rule["protocol"] == PROTOCOL}
        return rule_key(op) in self._rules

    def refuse_link(self, index: int) -> tuple[str, str | None] | None:
        """Why nothing may be done to this link, and what would allow it; None if something may."""
        if index not in self._link_reasons:
            self._link_reasons[index] = self._judge_link(index)
        return self._link_reasons[index]

    def _judge_link(self, index: int) -> tuple[str, str | None] | None:
        link = self.links.get(index)
        if link is None:
            return f"there is no link {index}", None
        name, kind = link["name"], link["kind"]
        if link["loopback"]:
            return f"{name} is the loopback link", None
        if name in self.settings.exclude:
            return f"{name} is excluded", f"[Network] Exclude= without {name}"
        if kind is not None and kind not in self.settings.allow_kinds:
            return f"{name} is of kind {kind}, no interface of a cloud", f'[Netagent] AllowKinds="{kind}"'
        return None

    def other_link_has(self, index: int, net: Network) -> bytes | None:
        """An address inside `net` that another link has; or None."""
        for link, packed in self.addresses:
            if link != index and len(packed) == net[0] and int.from_bytes(packed) >> net[2] << net[2] == net[1]:
                return packed
        return None


def rule_key(rule: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rules the same rule."""
    return (
        rule["priority"], rule["family"], rule["selector"], rule["prefix"], rule["to"], rule["table"], rule["suppress"]
    )  # fmt: skip


def _check_claim(position: int, net: Network, packed: bytes, index: int, view: View) -> None:
    """The part that addresses, ranges and on-link routes share: never somebody else's, and allowed."""
    for never, why in NEVER:
        if contains(never, net) or contains(net, never):
            raise Refusal(position, f"{text(packed)} is {why}")
    if any(contains(claim, net) for claim in view.settings.allow_addresses):
        return
    if not any(contains(claim, net) for claim in view.learned.get(index, ())):
        shown = f"{text(packed)}/{net[0] * 8 - net[2]}"
        raise Refusal(
            position,
            f"{shown} is neither private nor of a network the link learned",
            f'[Netagent] AllowAddresses="{shown}"',
        )


def _check_taken(position: int, net: Network, what: str, view: View) -> None:
    """Refuse what covers a gateway's or resolver's address."""
    for taken in view.gateways:
        if len(taken) == net[0] and int.from_bytes(taken) >> net[2] << net[2] == net[1]:
            raise Refusal(position, f"{what} is or covers {text(taken)}, a gateway's or resolver's address")


def _link_up(position: int, op: Op, view: View) -> Op:
    if view.links[op["link"]]["up"]:
        raise Refusal(position, "the link is already up")
    return {"op": "link_down", "link": op["link"]}


def _link_mtu(position: int, op: Op, view: View) -> Op:
    if op["mtu"] < 1280 and any(link == op["link"] and len(packed) == 16 for link, packed in view.addresses):
        raise Refusal(position, "an MTU below 1280 would take the link's IPv6 addresses away (RFC 8200, section 5)")
    return {**op, "mtu": view.links[op["link"]]["mtu"]}


def _address_add(position: int, op: Op, view: View) -> Op:
    index, packed, prefix = op["link"], op["address"], op["prefix"]
    bits = len(packed) * 8
    single = network(packed, bits)
    if prefix < _SHORTEST[len(packed)]:
        raise Refusal(position, f"prefix length {prefix} is not {_SHORTEST[len(packed)]}..{bits}")
    _check_claim(position, single, packed, index, view)
    _check_taken(position, single, text(packed), view)
    if (index, packed) in view.addresses:
        raise Refusal(position, f"the link has {text(packed)} already")
    other = view.other_link_has(index, single)
    if other is not None:
        raise Refusal(position, f"another link has {text(packed)}")
    net = network(packed, prefix)
    if len(packed) == 4 and prefix < 31 and single[1] - net[1] in (0, (1 << net[2]) - 1):
        raise Refusal(position, f"{text(packed)}/{prefix} is the network's or broadcast address of its subnet")
    if op["route"] and prefix < bits:
        _check_claim(position, net, packed, index, view)
        other = view.other_link_has(index, net)
        if other is not None:
            raise Refusal(
                position,
                f"the connected route of {text(packed)}/{prefix} would take over {text(other)} of another link",
            )
    view.add_address({"link": index, "address": packed, "prefix": prefix, "flags": 0, "protocol": PROTOCOL})
    return {"op": "address_remove", "link": index, "address": packed, "prefix": prefix}


def _address_remove(position: int, op: Op, view: View) -> Op:
    address = view.addresses.get((op["link"], op["address"]))
    if address is None or address["prefix"] != op["prefix"]:
        raise Refusal(position, f"the link has no {text(op['address'])}/{op['prefix']}")
    if not view.owns(address):
        raise Refusal(position, f"{text(op['address'])} is not ours to remove")
    net = network(op["address"], op["prefix"])
    if net[2] and not address["flags"] & 1:  # IFA_F_SECONDARY: without promote_secondaries they go with their primary
        for (link, packed), other in view.addresses.items():
            if (
                link == op["link"]
                and other["flags"] & 1
                and network(packed, other["prefix"]) == net
                and not view.owns(other)
            ):
                raise Refusal(position, f"{text(packed)}, which is not ours, may go with {text(op['address'])}")
    del view.addresses[op["link"], op["address"]]
    return {**op, "op": "address_add", "route": not address["flags"] & 0x200}  # IFA_F_NOPREFIXROUTE


def _check_table(position: int, op: Op, view: View) -> None:
    table = view.settings.table_base + op["link"]
    if op["table"] not in (table, TABLE_LOCAL):
        raise Refusal(position, f"table {op['table']} is not the link's own, {table}")


def _route_replace(position: int, op: Op, view: View) -> Op:
    _check_table(position, op, view)
    index, packed, gateway = op["link"], op["destination"], op["gateway"]
    net = network(packed, op["prefix"])
    if net[1] != int.from_bytes(packed):
        raise Refusal(position, f"{text(packed)}/{op['prefix']} has host bits set")
    existing = view.routes(op["table"]).get((packed, op["prefix"]))
    if existing is not None and existing["protocol"] != PROTOCOL:
        raise Refusal(position, f"table {op['table']} has a route to {text(packed)}/{op['prefix']} that is not ours")
    subnets = view.subnets.setdefault(index, [])
    if gateway is not None:
        if op["table"] == TABLE_LOCAL:
            raise Refusal(position, "a local route has no gateway")
        single = network(gateway, len(gateway) * 8)
        link_local = gateway[0] == 0xFE and gateway[1] & 0xC0 == 0x80 and len(gateway) == 16
        if not link_local and not any(contains(subnet, single) for subnet in subnets + _on_link(view, op)):
            raise Refusal(position, f"gateway {text(gateway)} is not on link {index}")
        if (index, gateway) in view.addresses:
            raise Refusal(position, f"gateway {text(gateway)} is this host's own address")
        view.gateways.add(gateway)
    elif not any(contains(subnet, net) for subnet in subnets) or op["table"] == TABLE_LOCAL:
        if op["prefix"] < _SHORTEST[len(packed)]:
            raise Refusal(position, f"prefix length {op['prefix']} is not {_SHORTEST[len(packed)]}..{len(packed) * 8}")
        _check_claim(position, net, packed, index, view)
        other = view.other_link_has(index, net)
        if other is not None:
            raise Refusal(position, f"{text(packed)}/{op['prefix']} covers {text(other)} of another link")
        if op["table"] == TABLE_LOCAL:
            _check_taken(position, net, f"{text(packed)}/{op['prefix']}", view)
    view.routes(op["table"])[packed, op["prefix"]] = {**op, "protocol": PROTOCOL, "metric": 0}
    if existing is None:
        return {**op, "op": "route_remove"}
    return {**op, "link": existing["link"], "gateway": existing["gateway"]}


def _on_link(view: View, op: Op) -> list[Network]:
    """The destinations that the link's table, or an earlier operation, reaches without a gateway."""
    return [
        network(packed, prefix)
        for (packed, prefix), route in view.routes(op["table"]).items()
        if route["gateway"] is None and route["link"] == op["link"]
    ]


def _route_remove(position: int, op: Op, view: View) -> Op:
    _check_table(position, op, view)
    existing = view.routes(op["table"]).get((op["destination"], op["prefix"]))
    if existing is None or existing["link"] != op["link"]:
        raise Refusal(position, f"table {op['table']} has no such route to {text(op['destination'])}/{op['prefix']}")
    if existing["protocol"] != PROTOCOL:
        raise Refusal(position, f"the route to {text(op['destination'])}/{op['prefix']} is not ours to remove")
    del view.routes(op["table"])[op["destination"], op["prefix"]]
    return {**op, "op": "route_replace", "gateway": existing["gateway"]}


def _rule_add(position: int, op: Op, view: View) -> Op:
    low = view.settings.priority
    if not low <= op["priority"] < low + BAND:
        raise Refusal(position, f"priority {op['priority']} is not {low}..{low + BAND - 1}")
    selector = op["selector"]
    if selector is None:
        if op["table"] != TABLE_MAIN or not op["suppress"] or op["to"]:
            raise Refusal(position, "a rule without a source may only look up main with suppress_prefixlength 0")
    else:
        index = op["table"] - view.settings.table_base
        refused = view.refuse_link(index)
        if refused is not None:
            raise Refusal(position, f"table {op['table']} is no link's: {refused[0]}", refused[1])
        if (index, selector) not in view.addresses or op["prefix"] != len(selector) * 8:
            net = network(selector, op["prefix"])
            subnets = view.subnets.get(index, ())
            if not any(subnet[2] and contains(subnet, net) for subnet in subnets) or view.other_link_has(index, net):
                raise Refusal(position, f"{text(selector)}/{op['prefix']} is no address or range of link {index}")
    if view.has_rule(op):
        raise Refusal(position, "there is such a rule already")
    return {**op, "op": "rule_remove"}


def _rule_remove(position: int, op: Op, view: View) -> Op:
    if not view.has_rule(op):
        raise Refusal(position, "there is no such rule of ours")
    return {**op, "op": "rule_add"}


# Each answers with the operation that takes the checked one back.
CHECKS: dict[str, Callable[[int, Op, View], Op]] = {
    "link_up": _link_up,
    "link_mtu": _link_mtu,
    "address_add": _address_add,
    "address_remove": _address_remove,
    "route_replace": _route_replace,
    "route_remove": _route_remove,
    "rule_add": _rule_add,
    "rule_remove": _rule_remove,
}


def check(ops: list[Op], view: View) -> list[Op]:
    """The way back of each operation; Refusal for the first that may not be done. Nothing is touched here."""
    undo = []
    for position, op in enumerate(ops):
        if "link" in op:
            refused = view.refuse_link(op["link"])
            if refused is not None:
                raise Refusal(position, *refused)
        undo.append(CHECKS[op["op"]](position, op, view))
    return undo
