"""What netagent refuses. Pure: operations and what the kernel says go in, the way back or a Refusal comes out.

Nothing that a request says of the host is believed: which links there are and of what kind, which addresses and
gateways somebody already has, and whose a route is, all come from the kernel (`View`). Operations are checked in
order, and each may build on the ones before it: an address of this request may be the source of a rule of this
request. docs/policy.md has the same as a table.
"""

from __future__ import annotations

from collections import defaultdict

from .old_protocol import BAND, OPS, PROTOCOL, TABLE_LOCAL, TABLE_MAIN, TYPE_CHECKING, pack_address, raise_if, text
from .rtnetlink import IFA_F_NOPREFIXROUTE, IFA_F_SECONDARY

if TYPE_CHECKING:
    from .rtnetlink import Kernel
    from .settings import Settings
    from .shapes import Any, Callable, Found, Iterable, Iterator, Network, Op, Owned


class Refusal(Exception):
    """Why an operation may not be done; if an operator could allow it, what to set; and the link that nothing may be
    done to at all, if that is why."""


def refuse_if(so: object, reason: str, *of: object, allow: str | None = None) -> None:
    """A Refusal if it is so. `of` fills the reason's blanks, addresses as text, and only then: checks are many."""
    if so:
        shown = [text(each) if isinstance(each, bytes) else each for each in of]
        raise Refusal(reason.format(*shown), *([allow] if allow else []))


def network(packed: bytes, prefix: int) -> Network:
    """A packed address and a prefix length as a network."""
    host = len(packed) * 8 - prefix
    return len(packed), int.from_bytes(packed) >> host << host, host


def contains(outer: Network, inner: Network) -> bool:
    """Whether every address of `inner` is one of `outer`."""
    return outer[2] >= inner[2] and overlap(outer, inner)


def overlap(one: Network, other: Network) -> bool:
    """Whether they have an address in common."""
    return one[0] == other[0] and not (one[1] ^ other[1]) >> (one[2] if one[2] > other[2] else other[2])


def within(inner: Network, outer: Iterable[Network]) -> bool:
    """Whether one of `outer` contains `inner`."""
    return any(contains(each, inner) for each in outer)


def net_of(found: Found) -> Network:
    """The network of an address or route."""
    return network(found["address"], found["prefix"])


def parse_network(value: str) -> Network:
    """`10.0.0.0/8` as a network; ValueError for what is none."""
    address, slash, prefix = value.partition("/")
    packed = pack_address(address)
    fits = packed and (prefix.isdecimal() and int(prefix) <= len(packed) * 8 if slash else True)
    raise_if(not fits, ValueError, "{!r} is not an address or prefix", value)
    return network(packed, int(prefix or len(packed) * 8))


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks with white space between them; ValueError names the first that is none."""
    return tuple(map(parse_network, text.split()))


ALLOWED = parse_networks("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7")
LINK_LOCAL = parse_network("fe80::/10")
# Never an address of a link, whatever AllowAddresses= says: unspecified, loopback, link-local, multicast, reserved and
# broadcast; IPv4 in IPv6; and the metadata servers outside link-local: Alibaba's, Azure's wire server, Oracle's, and
# over IPv6 AWS's and GCP's.
_RESERVED = "0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 224.0.0.0/3 ::/96 ::ffff:0:0/96 ff00::/8"
_METADATA = "100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd20:ce::254"
NEVER = (LINK_LOCAL, *parse_networks(_RESERVED), *parse_networks(_METADATA))
_SHORTEST = {4: 8, 16: 32}  # no network that is claimed is larger: it would draw in other people's


class View:
    """What the kernel says now, and what this request has added to it so far."""

    position = 0  # of the operation that is being checked

    def __init__(self, kernel: Kernel, settings: Settings, resolvers: frozenset[bytes], owned: Owned) -> None:
        self.kernel, self.settings, self._owned = kernel, settings, owned
        self.links = {link["link"]: link for link in kernel.all("link")}
        self.rules = {key for rule in kernel.all("rule") if rule["protocol"] == PROTOCOL for key in rule_keys(rule)}
        self.subnets: dict[int, set[Network]] = defaultdict(set)  # on link, by link
        self.gateways: dict[bytes, set[int]] = defaultdict(set, {resolver: set() for resolver in resolvers})
        self._routes: dict[int, dict[Network, Found]] = {}
        addresses = [each for index in self.links for each in kernel.all("address", index)]  # few links' have changed
        main = kernel.routes(TABLE_MAIN)
        self._tagged = any(address["protocol"] is not None for address in addresses)  # the kernel knows IFA_PROTO
        self.addresses: dict[tuple[int, bytes], Found] = {(each["link"], each["address"]): each for each in addresses}
        self.holders: dict[bytes, int] = {each["address"]: each["link"] for each in addresses}
        nets = (each for each in addresses if each["prefix"] < len(each["address"]) * 8)  # thousands are not
        held = [(each["link"], net_of(each), self.owns(each)) for each in nets]
        for route in [*main, *(each for each in kernel.routes(None) if not each["prefix"])]:
            if route["gateway"] is not None:
                self.gateways[route["gateway"]].add(route["link"])
        foreign = [route for route in main if route["protocol"] != PROTOCOL and route["prefix"]]
        direct = [(route["link"], net_of(route), route["protocol"]) for route in foreign if route["gateway"] is None]
        for index, net, _ in held + direct:
            self.subnets[index].add(net)
        wide = {(index, net) for index, net, ours in held if not ours}
        # What a link may claim, because an operator did, or DHCP or a router (RTPROT_DHCP, RTPROT_RA; of IPv6 also
        # RTPROT_KERNEL: the kernel itself heard the router; or else it is of an address with a prefix, and netagent
        # gives none but what is allowed).
        self.claims = wide | {(index, net) for index, net, by in direct if by in (9, 16) or (by == 2 and net[0] == 16)}
        # subnets of links that are none of the cloud's: a container bridge's, a VPN's
        self.rivals = {net for index, net in wide if self._strange(index) and not contains(LINK_LOCAL, net)}

    def _strange(self, index: int) -> bool:
        return self.links.get(index, {"kind": None})["kind"] not in (None, *self.settings.allow_kinds)

    def owns(self, address: Found) -> bool:
        """Whether netagent put the address there: IFA_PROTO says so, or the ledger where the kernel has none."""
        key = address["link"], address["address"]
        return bool(address["protocol"] == PROTOCOL if self._tagged else key in self._owned)

    def routes(self, table: int) -> dict[Network, Found]:
        """The routes of a table, the preferred one where several metrics differ."""
        if table not in self._routes:
            found = sorted(self.kernel.routes(table), key=lambda route: -int(route["metric"]))
            self._routes[table] = {net_of(route): route for route in found}
        return self._routes[table]

    def refusal(self, index: int) -> Refusal | None:
        """Why nothing may be done to this link; None if something may."""
        if index not in self.links:
            return Refusal(f"there is no link {index}", None, index)
        name, kind = self.links[index]["name"], self.links[index]["kind"]
        if self.links[index]["loopback"]:
            return Refusal(f"{name} is the loopback link", None, index)
        if name in self.settings.exclude:
            return Refusal(f"{name} is excluded", f"[Network] Exclude= without {name}", index)
        if self._strange(index):
            reason = f"{name} is of kind {kind}, no interface of a cloud"
            return Refusal(reason, f'[Netagent] AllowKinds="{kind}"', index)
        return None

    def other_link_has(self, index: int, net: Network) -> bytes | None:
        """An address inside `net` that another link has; or None."""
        found = _inside(net, self.holders) if net[2] else iter([net[1].to_bytes(net[0])])
        return next((packed for packed in found if self.holders.get(packed, index) != index), None)

    def other_link_is_in(self, index: int, net: Network) -> bytes | None:
        """An address that another link has inside `net`, or of whose subnet `net` is a part; or None."""
        others, prefix = self.addresses.items(), net[0] * 8 - net[2]
        wider = [held for (link, _), held in others if held["prefix"] < prefix and link != index]
        around = (held["address"] for held in wider if contains(net_of(held), net))
        return self.other_link_has(index, net) or next(around, None)

    def on_link(self, index: int) -> set[Network]:
        """What is on the link: subnets of its addresses, main's routes, and those of its own table."""
        near = [route for route in self.routes(self.settings.table_base + index).values() if route["gateway"] is None]
        return self.subnets[index].union(net_of(route) for route in near if route["link"] == index)

    def has_range(self, index: int, net: Network) -> bool:
        """Whether `net` is an address of the link, a part of a subnet of the link, or a range that a local route gives
        it, whoever's it is; and no other link has an address in it."""
        if not net[2] and self.holders.get(net[1].to_bytes(net[0])) == index:
            return True
        parts = [subnet for subnet in self.subnets[index] if net[2] and subnet[2] > net[2]]
        given = [local for local, route in self.routes(TABLE_LOCAL).items() if route["link"] == index]
        return within(net, parts + given) and self.other_link_has(index, net) is None

    def has_sources(self, index: int, net: Network) -> bool:
        """Whether what this host itself sends from `net` is the link's: `net` is on link there, and in it are addresses
        of that link alone, or ranges of local routes (those that are the kernel's, protocol 2, say nothing new)."""
        given = [(local, route) for local, route in self.routes(TABLE_LOCAL).items() if route["protocol"] != 2]
        links = {route["link"] for local, route in given if overlap(local, net)}
        links |= {self.holders[each] for each in _inside(net, self.holders)}
        return links == {index} and within(net, self.on_link(index))

    def check_claim(self, index: int, net: Network, shown: str) -> None:
        """Refusal when a link may not claim an address, or all of a network: it is or could be somebody else's."""
        shortest, reserved = _SHORTEST[net[0]], any(overlap(never, net) for never in NEVER)
        refuse_if(net[0] * 8 - net[2] < shortest, "{}: prefixes shorter than /{} are nobody's", shown, shortest)
        refuse_if(reserved, "{}: loopback, link-local, multicast, reserved or a metadata server's", shown)
        if not within(net, (*self.settings.allow_addresses, *(claim for link, claim in self.claims if link == index))):
            allow, rival = f'[Netagent] AllowAddresses="{shown}"', any(overlap(rival, net) for rival in self.rivals)
            stranger = "{} is neither private nor of a network that link {} learned"
            refuse_if(not within(net, ALLOWED), stranger, shown, index, allow=allow)
            refuse_if(rival, "{} is of a subnet of a link that is no interface of the cloud", shown, allow=allow)


def _inside(net: Network, packed: Iterable[bytes]) -> Iterator[bytes]:
    first, last = net[1].to_bytes(net[0]), (net[1] | (1 << net[2]) - 1).to_bytes(net[0])  # in network order
    return (one for one in packed if first <= one <= last and len(one) == net[0])


def rule_keys(rule: Found) -> set[tuple[Any, ...]]:
    """What makes two rules the same rule; and that without its flags: of two that differ in a flag alone the kernel,
    told to remove the one without it, takes the first. So there are never two."""
    key = tuple([rule[key] for key in OPS["rule_add"]])
    return {key, key[:-2]}


# One check an operation; each answers with the operation that takes the checked one back.


def _link_up(op: Op, view: View) -> Op:
    refuse_if(view.links[op["link"]]["up"], "the link is already up")
    return {"op": "link_down", "link": op["link"]}


def _link_mtu(op: Op, view: View) -> Op:
    refuse_if(op["mtu"] < 1280, "an MTU below 1280 takes IPv6 off the link (RFC 8200, section 5)")
    return {**op, "mtu": view.links[op["link"]]["mtu"]}


def _address_add(op: Op, view: View) -> Op:
    index, packed, net = op["link"], op["address"], net_of(op)
    shown = f"{text(packed)}/{op['prefix']}"
    view.check_claim(index, net, shown)
    other = view.other_link_is_in(index, net) if op["route"] and net[2] else None
    refuse_if(other, "its connected route {} would take over {} of another link", shown, other)
    refuse_if(packed in view.gateways, "{} is a gateway's or resolver's address", packed)
    refuse_if(packed in view.holders, "link {} has {} already", view.holders.get(packed), packed)
    edge = len(packed) == 4 and net[2] > 1 and int.from_bytes(packed) - net[1] in (0, (1 << net[2]) - 1)
    refuse_if(edge, "{} is the network's or broadcast address of its subnet", shown)
    view.addresses[index, packed], view.holders[packed] = {**op, "flags": 0, "protocol": PROTOCOL}, index
    if net[2]:
        view.subnets[index].add(net)
    return {"op": "address_remove", "link": index, "address": packed, "prefix": op["prefix"]}


def _address_remove(op: Op, view: View) -> Op:
    index, packed, net = op["link"], op["address"], net_of(op)
    address = view.addresses.get((index, packed), {"prefix": None})
    refuse_if(address["prefix"] != op["prefix"], "the link has no {}/{}", packed, op["prefix"])
    refuse_if(not view.owns(address), "{} is not ours to remove", packed)
    if net[2] and not address["flags"] & IFA_F_SECONDARY:  # its secondaries may go with it, if promote_secondaries is 0
        for (link, other), found in view.addresses.items():
            secondary = link == index and found["flags"] & IFA_F_SECONDARY
            refuse_if(secondary and net_of(found) == net, "{} may go with {}", other, packed)
    del view.addresses[index, packed], view.holders[packed]
    return {**op, "op": "address_add", "route": not address["flags"] & IFA_F_NOPREFIXROUTE}


def _route_at(op: Op, view: View) -> Found | None:
    """The route that an operation would replace or remove, in a table where it may."""
    own, table, packed = view.settings.table_base + op["link"], op["table"], op["address"]
    refuse_if(table not in (own, TABLE_LOCAL), "table {} is not the link's own, {}", table, own)
    refuse_if(net_of(op)[1] != int.from_bytes(packed), "{}/{} has host bits set", packed, op["prefix"])
    found = view.routes(table).get(net_of(op))
    foreign = found is not None and found["protocol"] != PROTOCOL
    refuse_if(foreign, "the route to {}/{} in table {} is not ours", packed, op["prefix"], table)
    return found


def _route_replace(op: Op, view: View) -> Op:
    index, net, gateway, local = op["link"], net_of(op), op["gateway"], op["table"] == TABLE_LOCAL
    existing, shown = _route_at(op, view), f"{text(op['address'])}/{op['prefix']}"
    # If the first failed, there would be no way back from the second.
    refuse_if(existing and "op" in existing, "the route to {} twice in one request", shown)
    if gateway is None and (local or not within(net, view.subnets[index])):
        view.check_claim(index, net, shown)
        others = (each for each in _inside(net, view.gateways) if local or index not in view.gateways[each])
        shared = not local and any(view.holders[each] == index for each in _inside(net, view.holders))  # a subnet
        taken = None if shared else view.other_link_has(index, net) or next(others, None)
        refuse_if(taken, "{} covers {}, which is a gateway's, a resolver's or another link's", shown, taken)
        if not local:
            view.subnets[index].add(net)
    elif gateway is not None:
        single = network(gateway, len(gateway) * 8)
        near = contains(LINK_LOCAL, single) or within(single, view.on_link(index))
        refuse_if(not near, "gateway {} is not on link {}", gateway, index)
        refuse_if(local, "a local route has no gateway")
        refuse_if(gateway in view.holders, "gateway {} is this host's own", gateway)
        view.gateways[gateway].add(index)
    view.routes(op["table"])[net] = {**op, "protocol": PROTOCOL}
    return {**op, **({key: existing[key] for key in ("link", "gateway")} if existing else {"op": "route_remove"})}


def _route_remove(op: Op, view: View) -> Op:
    existing = _route_at(op, view) or {"link": None}
    reason = "table {} has no such route to {}/{}"
    refuse_if(existing["link"] != op["link"], reason, op["table"], op["address"], op["prefix"])
    del view.routes(op["table"])[net_of(op)]
    return {**op, "op": "route_replace", "gateway": existing["gateway"]}


def _rule_add(op: Op, view: View) -> Op:
    low, priority, index = view.settings.priority, op["priority"], op["table"] - view.settings.table_base
    refuse_if(not low <= priority < low + BAND, "priority {} is not {}..{}", priority, low, low + BAND - 1)
    if not op["prefix"]:
        plain = op["table"] == TABLE_MAIN and op["suppress"] and not op["to"] and not op["local"]
        refuse_if(not plain, "a rule without a source may only look up main with suppress_prefixlength 0")
    else:
        if refusal := view.refusal(index):
            raise refusal
        has = (view.has_sources if op["local"] and not op["to"] else view.has_range)(index, net_of(op))
        refuse_if(not has, "{}/{} is no address or range of link {}", op["address"], op["prefix"], index)
    keys = rule_keys(op)
    refuse_if(view.rules & keys, "there is such a rule already")
    view.rules |= keys
    return {**op, "op": "rule_remove"}


def _rule_remove(op: Op, view: View) -> Op:
    refuse_if(not rule_keys(op) <= view.rules, "there is no such rule of ours")
    view.rules -= rule_keys(op)
    return {**op, "op": "rule_add"}


_ORDERED = (_link_up, _link_mtu, _address_add, _address_remove, _route_replace, _route_remove, _rule_add, _rule_remove)
CHECKS: dict[str, Callable[[Op, View], Op]] = dict(zip(OPS, _ORDERED, strict=True))


def check(ops: list[Op], view: View) -> list[Op]:
    """The way back of each operation; Refusal for the first that may not be done. Nothing is touched here."""
    undo = []
    for view.position, op in enumerate(ops):
        if "link" in op and (refusal := view.refusal(op["link"])):
            raise refusal
        undo.append(CHECKS[op["op"]](op, view))
    return undo
