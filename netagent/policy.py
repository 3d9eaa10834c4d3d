"""The policy: one check function per operation, against the view of the kernel. docs/policy.md describes it.

A check uses only the view and the settings, and trusts no statement of a client about the host. Each operation may
depend on those before it. A check returns the inverse of the operation, and counts the operation in the view; or it
raises Refusal, and leaves the view unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import claims
from .claims import is_single, single
from .conflicts import ForeignHop, conflict, is_wide_link_local
from .keys import Prefixes
from .operations import (
    NUMBER_OF_PRIORITIES,
    TABLE_LOCAL,
    TABLE_MAIN,
    AddressAdd,
    AddressRemove,
    Change,
    ForwardedReplies,
    IPAddress,
    IPInterface,
    IPNetwork,
    LinkMark,
    LinkMtu,
    LinkUp,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from .protocol import Code, Refused, Remaining
from .rtnetlink import IFA_F_NOPREFIXROUTE, Address
from .rules import is_rule_for_main, rule_key
from .side_effects import foreign_dependents
from .view import OwnedRoute, View

IPV6_MIN_MTU = 1280  # RFC 8200, section 5: below it the kernel disables IPv6 on the link
MAX_RULES = 8192
"""Limit of owned rules. The kernel tries all rules for each packet: 24,576 rules made sending 130 times slower."""
MAX_ADDRESSES = 4096
"""Limit of owned addresses, as that of the fetcher. The kernel compares all IPv6 addresses to choose a source."""

RULE_FOR_MAIN = "lookup main suppress_prefixlength 0"

CheckFunction = Callable[[Any, View], Change]


class Refusal(Exception):
    """An operation is refused. The fields are those of protocol.Refused."""

    def __init__(
        self, reason: str, *, allow: str | None = None, link: int | None = None, code: Code = Code.REFUSED
    ) -> None:
        super().__init__(reason)
        self.reason, self.allow, self.link, self.code = reason, allow, link, code

    def at(self, position: int, depends_on: int | None = None) -> Refused:
        """Return the refusal as a value for an answer."""
        return Refused(self.reason, position, self.code, self.allow, self.link, depends_on)


def check_link(link: int, view: View, *, removes: bool = False) -> None:
    """Raise Refusal if no operation is allowed on this link. Owned objects may be removed from an excluded link."""
    found = view.links.get(link)
    if found is None:
        raise Refusal(f"there is no link {link}", link=link)
    if found.loopback:
        raise Refusal(f"{found.name} is the loopback link", link=link)
    if not removes and view.links.is_excluded(link):
        raise Refusal(f"{found.name} is excluded", allow=f"[Network] Exclude= without {found.name}", link=link)
    if not view.links.is_cloud(link):
        raise Refusal(
            f"{found.name} is of kind {found.kind}, not an interface of the cloud",
            allow=f'[Netagent] AllowKinds="{found.kind}"',
            link=link,
        )


def check_link_of_table(link: int, table: int, view: View) -> None:
    """Raise Refusal unless this is a table of the link, and operations are allowed on the link."""
    if view.links.get(link) is None or table not in view.tables_of(link):
        raise Refusal(f"table {table} is that of no link")
    check_link(link, view)


def check_link_up(op: LinkUp, view: View) -> Change:
    """Accept a link that is down, unless the connected routes that it gets would divert another program's traffic."""
    if not view.links.is_down(op.link):
        raise Refusal("the link is already up")
    there = (each for each in view.snapshot.addresses if each.link == op.link)
    if any(view.addresses.get(op.link, each.interface) is None for each in there):
        raise Refusal("the request has removed addresses of the link before: a rollback would add them while it is up")
    for network in view.addresses.connected_networks(op.link):
        check_connected_when_up(op.link, network, view)
    for address in view.addresses.all():
        if address.link == op.link and address.ip.version == 6:
            check_local_when_up(address, view)
    view.links.set_up(op.link)
    return op.inverse()


def check_connected_when_up(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal if the connected route that a link gets when it is set up would divert packets."""
    if view.is_allowed(network):
        return
    # learned=(): also a wider route of another program conflicts, because it has the packets to this subnet now.
    check_conflicts(link, network, network, (), view)
    if not claims.is_link_local(network):
        check_nesting(link, network, view)
    if not view.networks.learned.has(link, network):  # otherwise, another program's address needs the route
        check_connected_route(link, network, view)


def check_local_when_up(address: Address, view: View) -> None:
    """Raise Refusal if an IPv6 address of a link that is down, not local yet, is another host's by now.

    Of gateways and resolvers, only owned addresses count: an operator may run a resolver or a gateway on this host.
    """
    network = single(address.ip)
    if view.is_allowed(network):
        return
    check_conflicts(address.link, network, network, (), view)
    check_hosts_of_leases(address.link, network, view)
    if view.addresses.owns(address) and (use := view.gateways.use_of(address.ip)):
        reason = f"{address.ip} of {view.name(address.link)} is {use} by now; remove that address first"
        raise Refusal(reason, allow=allow_addresses(network))


def check_link_mtu(op: LinkMtu, view: View) -> Change:
    """Accept an MTU with which IPv6 stays enabled on the link."""
    if op.mtu < IPV6_MIN_MTU:
        raise Refusal(f"an MTU below {IPV6_MIN_MTU} takes IPv6 off the link (RFC 8200, section 5)")
    if op.link in view.changed_mtus:  # many drivers stop the device for each change
        raise Refusal(f"the MTU of {view.name(op.link)} twice in one request")
    view.changed_mtus.add(op.link)
    return op.inverse(view.links[op.link].mtu)


def allow_addresses(network: IPNetwork) -> str:
    """Return the key that allows a link to claim `network`."""
    return f'[Netagent] AllowAddresses="{network}"'


def check_claim(link: int, network: IPNetwork, shown: IPInterface | IPNetwork, view: View) -> None:
    """Raise Refusal if the link may not claim `network`: an address, or a whole subnet or range."""
    if claims.is_reserved(network):
        raise Refusal(f"{shown} is loopback, link-local, multicast, reserved or a metadata server's")
    if view.is_allowed(network):
        return
    learned = list(view.networks.learned.containing(link, network))
    if not claims.within(network, claims.PRIVATE) and not learned:
        if network.version == 6 and not view.gateways.has_ipv6_router(link):
            reason = f"{shown} is not private, and {view.name(link)} has received no IPv6 router advertisement yet"
            raise Refusal(reason, allow=allow_addresses(network), code=Code.WAITING)
        reason = f"{shown} is neither private nor of a network that {view.name(link)} learned"
        raise Refusal(reason, allow=allow_addresses(network))
    if limit := claims.subnet_limit(network, learned):
        raise Refusal(limit, allow=allow_addresses(network))
    check_conflicts(link, network, shown, learned, view)


def check_conflicts(
    link: int, network: IPNetwork, shown: IPInterface | IPNetwork, learned: Iterable[IPNetwork], view: View
) -> None:
    """Raise Refusal if another program routes a part of `network` elsewhere; `learned`: see conflict."""
    if hop := conflict(network, link, view.foreign.hops(network), learned):
        raise _refusal_routed_elsewhere(shown, network, hop, view)


def _refusal_routed_elsewhere(
    shown: IPInterface | IPNetwork, network: IPNetwork, hop: ForeignHop, view: View
) -> Refusal:
    where = f"{hop.destination}, which another program routes by {_hop_text(hop, view)}"
    return Refusal(f"{shown} overlaps {where}", allow=allow_addresses(network))


def _hop_text(hop: ForeignHop, view: View) -> str:
    if hop.discards:
        return "discarding it"
    via = f" via {hop.gateway}" if hop.gateway is not None else ""
    return f"{view.name(hop.link)}{via}"


def check_nesting(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal if a network lies in a subnet of another interface of the cloud, or contains one."""
    if other := view.networks.nested_elsewhere(link, network):
        raise Refusal(f"{network} would take over a part of {other} of another link")


def check_width(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal if an on-link network would divert hosts from the gateway of a link with learned subnets."""
    learned = view.networks.learned
    if view.is_allowed(network) or learned.covers(link, network):
        return
    if not view.networks.has_learned_subnet(link, network.version):
        return
    if subnet := claims.widened(network, learned.overlapping(link, network)):
        reason = f"{network} is wider than {subnet}, which {view.name(link)} learned"
        raise Refusal(reason, allow=allow_addresses(network))
    if taken := view.gateways.protected_inside(network, link):
        reason = f"{network} covers {taken}, a gateway or resolver that is not on {view.name(link)}"
        raise Refusal(reason, allow=allow_addresses(network))


def check_connected_route(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal if the new connected route could divert a protected address or another link's subnet.

    Of two routes with the same metric the kernel uses the older one; which of them is older can change.
    """
    check_protected(link, network, view)
    if view.is_connected_elsewhere(link, network):
        raise Refusal(f"the connected route {network} would take over {network} of another link")


def check_protected(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal if a connected route would take over a resolver, or a gateway of links without this subnet."""
    if view.networks.learned.covers(link, network) or view.is_allowed(network):
        return
    if taken := view.taken_over_by(network, link):
        reason = f"the connected route {network} would take over {taken}, a gateway or resolver"
        raise Refusal(reason, allow=allow_addresses(network))
    if gateway := view.gateways.of_main_inside(link, network):
        # For packets through a next hop the kernel prefers the source whose subnet contains it (inet_select_addr).
        reason = f"{network} contains {gateway}, the gateway of main's default route on {view.name(link)}"
        raise Refusal(f"{reason}, which has not learned this subnet", allow=allow_addresses(network))


def check_prefix_route(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal if the kernel would later confuse the connected route of an IPv6 address with a foreign route.

    With the owned address, it would remove a route of another program or a router. For a foreign address that has no
    connected route, it would keep the owned address's route. Such an address has IFA_F_NOPREFIXROUTE, is from a router
    whose prefix is not on link (RFC 4861, 4.6.2), or another program has removed its route or changed the metric.
    """
    if network.version == 4:
        return
    if (link, network) in view.routes_at_risk.by_prefix or (link, network) in view.foreign.prefixes_of_routers:
        raise Refusal(
            f"another program routes {network} on link; the kernel would confuse that route with the address's own"
        )
    for each in view.addresses.in_network(link, network):
        has_route = view.addresses.owns(each) or (link, network) in view.foreign.ipv6_connected
        if each.flags & IFA_F_NOPREFIXROUTE or not has_route:
            raise Refusal(f"{each.ip} has no connected route of its own, and the kernel would keep that of {network}")
    if is_single(network):
        return
    for subnet in view.networks.subnets.containing(link, network):
        foreign = any(not view.addresses.owns(each) for each in view.addresses.in_network(link, subnet))
        if subnet != network and foreign and not view.foreign.has_on_link_route(link, subnet):
            raise Refusal(f"{network} lies in {subnet}, which is not on link: packets to it go through a router")


def check_ends(op: AddressAdd, view: View) -> None:
    """Raise Refusal for a network or broadcast address, and if the first or last address of the network is in use.

    The kernel broadcasts packets to the last address of every IPv4 network that a link has an address in, with or
    without its route; before Linux 5.14 also to the first. With IPv6 forwarding, it accepts packets for the first
    address as for this host's own (the subnet-router anycast address, RFC 4291, section 2.6.1).
    """
    ip, network = op.interface.ip, op.interface.network
    if claims.is_network_or_broadcast(ip, network) or view.is_network_or_broadcast(ip):
        raise Refusal(f"{op.interface} is the network's or broadcast address of its subnet")
    if network.prefixlen >= network.max_prefixlen - 1:
        return
    ends = {4: (network.network_address, network.broadcast_address), 6: (network.network_address,)}
    for end in ends[ip.version]:
        if use := view.gateways.protects(end):
            raise Refusal(f"{end}, an end of {network}, is {use}")
        if view.addresses.has_peer(end):
            raise Refusal(f"{end}, an end of {network}, is the peer of an address of this host")
        if holders := view.addresses.holders(end):
            raise Refusal(f"{end}, an end of {network}, is an address of {view.name(holders[0])}")
        if any(True for _ in view.foreign.hosts_of_leases(single(end))) and not view.is_allowed(network):
            reason = f"{end}, an end of {network}, is a host, by DHCP or a router"
            raise Refusal(reason, allow=allow_addresses(network))
        if (TABLE_LOCAL, single(end)) in view.owned_routes:
            raise Refusal(f"{end}, an end of {network}, has a route in table local of cloud-network; remove it first")
        ranges = (each for each, _ in view.networks.local_ranges.all_containing(single(end)))
        if foreign := next((each for each in ranges if (TABLE_LOCAL, each) not in view.owned_routes), None):
            raise Refusal(f"{end}, an end of {network}, lies in the local range {foreign} of another program")


def check_special_address(ip: IPAddress, view: View) -> None:
    """Raise Refusal for a broadcast or anycast address of this host that no subnet of its addresses shows.

    A link may have any broadcast address (`ip address add … broadcast`), and a socket may join an IPv6 anycast address
    (IPV6_JOIN_ANYCAST), which the kernel would not make local again.
    """
    if view.foreign.is_broadcast_or_anycast(ip):
        raise Refusal(f"{ip} is a broadcast or anycast address of this host")


def check_hosts_of_leases(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal if `network` contains a host that DHCP or a router has put on another link (a time server)."""
    for ip, other in view.foreign.hosts_of_leases(network):
        if other != link and not view.is_allowed(single(ip)):
            reason = f"{ip} is a host on {view.name(other)}, by DHCP or a router"
            raise Refusal(reason, allow=allow_addresses(single(ip)))


def check_address_add(op: AddressAdd, view: View) -> Change:
    """Accept an address of the cloud that no link, gateway, resolver or other program has."""
    ip, network = op.interface.ip, op.interface.network
    check_claim(op.link, network, op.interface, view)
    if not is_single(network):
        if not op.connected_route:
            # An IPv6 address would keep another one's connected route after its removal. With an IPv4 address, later
            # ones of other programs in the subnet would be its secondaries, and so get no connected route.
            raise Refusal(f"{op.interface} without its connected route must be a /{network.max_prefixlen}")
        check_nesting(op.link, network, view)
        check_width(op.link, network, view)
        check_connected_route(op.link, network, view)
    if use := view.gateways.protects(ip):
        raise Refusal(f"{ip} is {use}")
    if view.addresses.has_peer(ip):  # with the address, the kernel would remove an IPv6 route to the peer
        raise Refusal(f"{ip} is the peer of an address of this host")
    if op.connected_route:
        check_prefix_route(op.link, network, view)
    holders = view.addresses.holders(ip)
    if holders and not is_owned_with_other_length(op, view):
        raise Refusal(f"{view.name(holders[0])} has {ip} already")
    check_hosts_of_leases(op.link, single(ip), view)
    if (TABLE_LOCAL, single(ip)) in view.owned_routes:
        raise Refusal(f"cloud-network has a route to {ip} in table local; remove it first")
    check_ends(op, view)
    check_special_address(ip, view)
    if view.addresses.number_owned >= MAX_ADDRESSES:
        raise Refusal(f"cloud-network has {MAX_ADDRESSES} addresses already")
    check_object_limit(view)
    view.add_owned(op.link, op.interface, connected_route=op.connected_route)
    if ip.version == 6:
        view.added_ipv6.add((op.link, op.interface))
    return op.inverse()


def is_owned_with_other_length(op: AddressAdd, view: View) -> bool:
    """Return True if only this link has the address already, all owned, and only with other prefix lengths.

    The kernel stores an IPv4 address once for each prefix length. So its connected route can be added or removed while
    the host keeps the address.
    """
    ip, prefix = op.interface.ip, op.interface.network.prefixlen
    there = view.addresses.entries(op.link, ip)
    lengths = {each.prefix for each in there}
    return (
        ip.version == 4
        and view.addresses.holders(ip) == [op.link]
        and prefix not in lengths
        and all(map(view.addresses.owns, there))
    )


def check_address_remove(op: AddressRemove, view: View) -> Change:
    """Accept an owned address that no foreign object depends on."""
    address = view.addresses.get(op.link, op.interface)
    if address is None:
        raise Refusal(f"the link has no {op.interface}")
    if not view.addresses.owns(address):
        raise Refusal(f"cloud-network did not add {op.interface}")
    if (op.link, op.interface) in view.added_ipv6:
        raise Refusal(f"the request adds {op.interface} itself")  # each such removal would wait: Kernel.change
    if reason := lost_with_address(address, view):
        raise Refusal(reason)
    view.remove_address(address)
    return op.inverse(connected_route=not address.flags & IFA_F_NOPREFIXROUTE)


def lost_with_address(address: Address, view: View) -> str | None:
    """Return which objects the kernel would remove with an owned address and must not, or None."""
    ip, link = address.ip, view.name(address.link)
    if (secondary := view.addresses.secondary_of(address)) is not None:
        return f"{secondary} is a secondary address of {ip} and may go with it"
    if route := foreign_dependents(address, view.addresses.counts, view.routes_at_risk):
        return f"the route to {route.destination} in table {route.table} depends on {ip}; cloud-network did not add it"
    if ip.version == 4 and (address.link, 4) in view.static_neighbours and view.addresses.counts.is_last(address):
        return f"static neighbour entries depend on {ip}, the last IPv4 address of {link}"
    return None


def replaced_route(op: RouteReplace, view: View) -> OwnedRoute | None:
    """Return the owned route to replace, or None. Raises Refusal for a foreign table or route."""
    tables = view.tables_of(op.link)
    if op.table not in (*tables, TABLE_LOCAL):
        raise Refusal(f"table {op.table} is not the link's own, {tables[0]} or {tables[1]}")
    if view.foreign.has(op.table, op.destination):
        raise Refusal(f"cloud-network did not add the route to {op.destination} in table {op.table}")
    return view.owned_routes.get((op.table, op.destination))


def check_changed_once(op: RouteReplace | RouteRemove, view: View) -> None:
    """Raise Refusal for a second change of a route in one request: the rollback must know the route before both."""
    if (op.table, op.destination) in view.changed_routes:
        raise Refusal(f"the route to {op.destination} twice in one request")


def check_route_replace(op: RouteReplace, view: View) -> Change:
    """Accept a route in the link's tables, on link or through a gateway of the cloud, and a range in table local."""
    existing = replaced_route(op, view)
    check_changed_once(op, view)
    if op.table == TABLE_LOCAL:
        check_local_range(op, view)
    elif op.gateway is None:
        check_on_link(op, view)
    else:
        check_gateway(op.link, op.gateway, view)
        check_destination(op, view)
    if existing is None:
        check_object_limit(view)
    view.add_route(op.table, op.destination, OwnedRoute(op.link, op.gateway))
    view.changed_routes.add((op.table, op.destination))
    if existing is None:
        return op.inverse(None)
    return op.inverse(RouteReplace(op.table, existing.link, op.destination, existing.gateway))


def check_on_link_with_rules(op: RouteReplace, view: View) -> None:
    """Raise Refusal for an on-link route to a divided network if a rule for the table would have to come after main."""
    if not view.foreign.is_partly_elsewhere(op.destination):
        return
    version = op.destination.version
    for rule in view.rules.owned.values():
        is_for_route = rule.table == op.table and rule.selector.version == version
        if is_for_route and is_for_others(rule, view) and not view.rules.main_comes_before(version, rule.priority):
            after = f"cloud-network's rule {rule.priority} must then come after one for main: `{RULE_FOR_MAIN}`"
            raise Refusal(f"another program routes {op.destination} or a part of it elsewhere, and {after}")


def check_local_range(op: RouteReplace, view: View) -> None:
    """Raise Refusal for a route of type local that would accept packets for other hosts or links."""
    network = op.destination
    if op.gateway is not None:
        raise Refusal("a local route has no gateway")
    if not is_single(network) and view.settings.prefixes is Prefixes.IGNORE:
        raise Refusal(f"{network} is a range, and Prefixes= is ignore", allow='[Network] Prefixes="local"')
    check_claim(op.link, network, network, view)
    if limit := claims.range_limit(network, view.networks.subnets.overlapping(op.link, network)):
        raise Refusal(limit)
    if is_single(network) and (holders := view.addresses.holders(network.network_address)):
        raise Refusal(f"{view.name(holders[0])} has {network.network_address} already")
    if not is_single(network) and (other := next(view.foreign.subnets_elsewhere(op.link, network), None)) is not None:
        raise Refusal(f"{network} overlaps a subnet of {view.name(other)}")
    if is_single(network) and view.is_network_or_broadcast(network.network_address):
        raise Refusal(f"{network} is the network's or broadcast address of its subnet")
    check_hosts_of_leases(op.link, network, view)
    if (peer := view.addresses.peer_inside(network)) is not None:
        raise Refusal(f"{network} contains {peer}, the peer of an address of this host")
    check_covered(network, view.held_elsewhere(op.link, network) or view.gateways.protected_inside(network, None))


def check_on_link(op: RouteReplace, view: View) -> None:
    """Raise Refusal for an on-link route to addresses that are not on the link."""
    link, network = op.link, op.destination
    is_gateway = is_single(network) and view.gateways.is_gateway(link, network.network_address)
    if not is_gateway:
        check_link_local(link, network, view)
    is_subnet = view.networks.subnets.covers(link, network) or view.is_subnet_of_address(link, network)
    if is_gateway or is_subnet:
        check_diversion(link, network, is_gateway, view)
        if not is_single(network):
            check_nesting(link, network, view)
    else:
        check_claimed_subnet(link, network, view)
    check_on_link_with_rules(op, view)


def check_claimed_subnet(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal for an on-link route to a network that is not yet one of the link."""
    check_claim(link, network, network, view)
    if is_single(network):
        check_hosts_of_leases(link, network, view)
    check_nesting(link, network, view)
    check_width(link, network, view)
    if any(True for _ in view.networks.held.overlapping(link, network)):
        return  # the subnet of an address of the link, which may also be that of a resolver (AWS)
    check_covered(network, view.held_elsewhere(link, network) or view.gateways.protected_inside(network, link))


def check_covered(network: IPNetwork, taken: IPAddress | None) -> None:
    """Raise Refusal if `network` covers an address that is `taken`."""
    if taken is not None:
        raise Refusal(f"{network} covers {taken}, which is a gateway's, a resolver's or another link's")


def check_link_local(link: int, network: IPNetwork, view: View) -> None:
    """Raise Refusal for an on-link route to a metadata server, or in 169.254.0.0/16, if main routes it elsewhere."""
    special = claims.METADATA if network.version == 6 else (*claims.LINK_LOCAL, *claims.METADATA)
    if claims.within(network, special) and not view.foreign.best_is_on_link(link, network):
        reason = "is link-local or a metadata server's, and main does not route it on"
        raise Refusal(f"{network} {reason} {view.name(link)}")


def check_diversion(link: int, network: IPNetwork, is_gateway: bool, view: View) -> None:
    """Raise Refusal for an on-link route to a gateway or network that another program routes elsewhere.

    The subnet of an address of the link is accepted, because the link's table needs it, unless another program alone
    routes all of it. So is a gateway that another link of the cloud has, too.
    """
    if view.is_allowed(network):
        return
    found: Iterable[ForeignHop] = view.foreign.hops(network)
    if view.is_subnet_of_address(link, network):
        if view.foreign.has_on_link_route(link, network):
            return
        found = [hop for hop in found if hop.destination == network]
    elif is_gateway:
        found = (hop for hop in found if hop.discards or not hop.by_cloud)
    if hop := conflict(network, link, found, view.networks.subnets.containing(link, network)):
        raise _refusal_routed_elsewhere(network, network, hop, view)


def check_gateway(link: int, gateway: IPAddress, view: View) -> None:
    """Raise Refusal for a gateway that is not one of the cloud on this link."""
    if not claims.is_link_local(single(gateway)) and not view.networks.is_on_link(link, single(gateway)):
        raise Refusal(f"gateway {gateway} is not on {view.name(link)}")
    if view.is_of_this_host(gateway):
        raise Refusal(f"gateway {gateway} is this host's own")  # the kernel would put the destination on link
    if not view.gateways.is_gateway(link, gateway):
        waiting = gateway.version == 6 and not view.gateways.has_ipv6_router(link)
        reason = f"{gateway} is not known as a gateway on {view.name(link)}"
        code = Code.WAITING if waiting else Code.REFUSED
        raise Refusal(reason, allow=f'[Netagent] AllowGateways="{gateway}"', code=code)


def check_destination(op: RouteReplace, view: View) -> None:
    """Raise Refusal for a route through a gateway to a destination that another program routes elsewhere."""
    network = op.destination
    if claims.within(network, claims.UNROUTABLE):
        raise Refusal(f"{network} is loopback, multicast, broadcast or reserved")
    if not network.prefixlen or view.is_allowed(network):
        return
    if view.foreign.main_discards(network.version) and not view.foreign.may_bypass_vpn(network):
        raise Refusal(f"main's default route discards packets, also those to {network}", allow=allow_addresses(network))
    halves = [hop for hop in view.foreign.halves() if claims.overlap(network, hop.destination)]
    if halves and not view.foreign.may_bypass_vpn(network):
        half = halves[0]
        reason = f"{network} lies in {half.destination}, which another program routes by {_hop_text(half, view)}"
        raise Refusal(reason, allow=allow_addresses(network))
    for hop in view.foreign.hops(network):
        if hop.is_local:
            continue  # table local comes first: see check_rule_add
        same = (hop.link, hop.gateway) == (op.link, op.gateway)
        of_cloud = same or hop.by_cloud or hop.belongs_to_link or is_wide_link_local(hop.destination, network)
        of_cloud = of_cloud or (claims.contains(network, hop.destination) and view.foreign.is_subnet_of_parent(hop))
        if hop.discards or not of_cloud:
            raise _refusal_routed_elsewhere(network, network, hop, view)


def check_route_remove(op: RouteRemove, view: View) -> Change:
    """Accept an owned route through this link."""
    existing = view.owned_routes.get((op.table, op.destination))
    if existing is None or (existing.link, existing.gateway) != (op.link, op.gateway):
        raise Refusal(f"table {op.table} has no such route to {op.destination}")
    check_changed_once(op, view)
    view.remove_route(op.table, op.destination)
    view.changed_routes.add((op.table, op.destination))
    return op.inverse()


def check_rule_add(op: RuleAdd, view: View) -> Change:
    """Accept a rule that looks up a link's table for addresses or the mark of that link, and the rule for main."""
    low = view.settings.rule_priority
    if not low <= op.priority < low + NUMBER_OF_PRIORITIES:
        raise Refusal(f"priority {op.priority} is not {low}..{low + NUMBER_OF_PRIORITIES - 1}")
    if not view.rules.local_comes_first(op.selector.version):
        add = f"ip -{op.selector.version} rule add pref {low - 1} lookup local"
        raise Refusal(f"table local is not looked up for every packet before {low}; add a rule for it: {add}")
    if op.mark or op.mask:
        check_mark_rule(op, view)
    elif op.selector.prefixlen:
        check_address_rule(op, view)
    else:
        check_rule_for_main(op, view)
    if (why := needs_main(op, view)) and not view.rules.main_comes_before(op.selector.version, op.priority):
        missing = f"cloud-network has no rule `{RULE_FOR_MAIN}` before priority {op.priority}"
        raise Refusal(f"{missing}; add it first, because {why}")
    if rule_key(op) in view.rules.owned:
        raise Refusal("there is such a rule already")
    check_once(op, view)
    if len(view.rules.owned) >= MAX_RULES:
        raise Refusal(f"cloud-network has {MAX_RULES} rules already")
    check_object_limit(view)
    view.rules.add(op)
    return op.inverse()


def check_address_rule(op: RuleAdd, view: View) -> None:
    """Raise Refusal for a rule that selects addresses of other links than that of its table."""
    link = claims.link_of_table(op.table, view.settings.route_table_base)
    check_link_of_table(link, op.table, view)
    if not is_justified(op, link, view):
        raise Refusal(f"{op.selector} is no address or range of {view.name(link)}")
    if (other := other_user(op, link, view)) is not None:
        where = f"{view.name(link)} alone: {view.name(other)} has some"
        raise Refusal(f"{op.selector} is no address or range of {where}")
    if claims.is_link_local(op.selector):
        raise Refusal(f"{op.selector} is link-local; its traffic stays on its link")


def check_rule_for_main(op: RuleAdd, view: View) -> None:
    """Raise Refusal for a rule for all packets, unless it looks up main and has an effect only on specific routes."""
    if op.table != TABLE_MAIN or not op.suppress or op.to or op.iif_lo:
        raise Refusal("a rule without a source may only look up main with suppress_prefixlength 0")
    if view.foreign.main_discards(op.selector.version):
        move = "move that route to a table of its own, with a rule after those of cloud-network"
        raise Refusal(f"main's default route discards packets, and no rule after this one would be used; {move}")


def needs_main(rule: RuleAdd | RuleRemove, view: View) -> str | None:
    """Return the reason why a rule must come after one for main, for main's more specific routes (of a VPN or CNI).

    A rule without a suppressor can use the default route of a link's table. And the table may have a network on link
    that contains routes of other programs in main: for packets from the address of a bridge or tunnel with a network of
    its own, and for packets that this host forwards, between pods or to a published port.
    """
    if rule.table == TABLE_MAIN:
        return None
    if not rule.suppress:
        return "this rule can use a default route"
    if view.has_virtual_network(rule.selector):
        return f"{rule.selector.network_address} has a network on a link of another program"
    link = claims.link_of_table(rule.table, view.settings.route_table_base)
    divided = view.network_partly_elsewhere(link, rule.selector.version) if is_for_others(rule, view) else None
    return f"another program routes {divided} or a part of it elsewhere" if divided is not None else None


def is_for_others(rule: RuleAdd | RuleRemove, view: View) -> bool:
    """Return True for a rule for packets that this host forwards, or from an address of a bridge or container."""
    has_arrived = rule.mark & claims.arrival_bit(view.settings.mark_mask)
    is_range = rule.selector.prefixlen > 0 and not (rule.to or rule.iif_lo or is_single(rule.selector))
    return is_range or has_arrived > 0 or view.is_virtual_address(rule.selector)


def check_mark_rule(op: RuleAdd, view: View) -> None:
    """Raise Refusal for a rule with a mark that the table `cloud_network` does not set for the rule's link."""
    link, mask = op.table - view.settings.route_table_base, view.settings.mark_mask  # never the link's second table
    check_link_of_table(link, op.table, view)
    if op.selector.prefixlen or op.to or op.iif_lo:
        raise Refusal("a rule for a mark has no source, no destination and no iif")
    known = op.mask == mask and not op.mark & ~mask
    if not known or LinkMark(link, op.mark & claims.mark_bits(mask)) not in (view.marks or ()):
        raise Refusal(f"mark {op.mark:#x}/{op.mask:#x} is not that of {view.name(link)} in the table cloud_network")
    check_other_use(op.mark, view)


def check_other_use(mark: int, view: View) -> None:
    """Raise Refusal for a mark that packets of another program may have, by its rules: they would change the link."""
    mask = view.settings.mark_mask
    if other := view.rules.other_use(mark, mask):
        reason = f"mark {mark:#x}/{mask:#x} may be another program's: its rule {other.priority} has fwmark"
        allow = "[Network] MarkMask= to bits that no other program uses"
        raise Refusal(f"{reason} {other.mark:#x}/{other.mask:#x}", allow=allow)


def check_forwarded_replies(op: ForwardedReplies, view: View) -> Change:
    """Accept marks of links of the cloud, each inside MarkMask= and each once."""
    if not view.settings.sets_marks:
        raise Refusal("ForwardedReplies= is off", allow='[Network] ForwardedReplies="mark"')
    if view.marks is None:
        restart = "systemctl restart cloud-network-netagent"
        raise Refusal(f"netagent has no socket to nfnetlink; run: {restart}")
    usable = claims.mark_bits(view.settings.mark_mask)
    for each in op.marks:
        check_link(each.link, view)
        if not each.mark or each.mark & ~usable:
            raise Refusal(f"mark {each.mark:#x} is not inside {usable:#x}, the bits of MarkMask= without the highest")
        check_other_use(each.mark, view)
        check_other_use(claims.arrival_mark(each.mark, view.settings.mark_mask), view)
    if len({each.link for each in op.marks}) < len(op.marks) or len({each.mark for each in op.marks}) < len(op.marks):
        raise Refusal("a link or a mark twice")
    before, view.marks = view.marks, op.marks
    return op.inverse(before)


def is_justified(rule: RuleAdd | RuleRemove, link: int, view: View) -> bool:
    """Return True if addresses that the rule selects belong to the link, whatever other links have.

    A single source belongs to it if the link has it, also if another link has it, too (no request can make such a
    duplicate), or if a local range of the link contains it. If only lo or virtual links have it, see
    belongs_although_held_by.
    """
    network = rule.selector
    if rule.to:
        held = any(each.has_passed_dad for each in view.addresses.entries(link, network.network_address))
        return is_single(network) and not rule.iif_lo and held
    in_range = is_in_local_range(link, network, view)
    if is_single(network):
        holders = view.addresses.holders(network.network_address)
        if not holders:
            return in_range
        return link in holders or belongs_although_held_by(holders, network, link, view)
    if rule.iif_lo:
        users = view.networks.local_ranges.links_overlapping(network) | view.networks.held.links_overlapping(network)
        return link in users and view.networks.is_on_link(link, network)
    # It also selects forwarded packets: only for a range of the link.
    in_subnet = view.settings.accepts_range_rules and view.is_in_subnet(link, network)
    subnets = (*view.networks.subnets.overlapping(link, network), *view.shared_subnets(link, network))
    return in_range or (in_subnet and claims.range_limit(network, subnets) is None)


def is_in_local_range(link: int, network: IPNetwork, view: View) -> bool:
    """Return True if a range in table local of the link contains the network. Prefixes="ignore": only its own /32."""
    ranges = view.networks.local_ranges
    if view.settings.prefixes is Prefixes.IGNORE:
        return is_single(network) and ranges.has(link, network)
    return ranges.covers(link, network)


def forwarding_orphan(link: int, network: IPNetwork, view: View, *, exact: bool) -> RuleRemove | None:
    """Return a rule without `iif lo` for a part of `network` whose address or range the link does not have, or None.

    `exact`: only a rule for the network itself. An address on lo or a virtual link does not count: another program may
    remove it at any time.
    """
    for rule in view.rules_inside(link, network):
        if rule.iif_lo or (exact and rule.selector != network):
            continue
        if is_single(rule.selector):
            has = link in view.addresses.holders(rule.selector.network_address)
            has = has or is_in_local_range(link, rule.selector, view)
        else:
            has = is_justified(rule, link, view)
        if not has:
            return rule
    return None


def rule_text(rule: RuleRemove) -> str:
    """Return a rule as text, for a reason."""
    return f"rule {rule.priority} {'to' if rule.to else 'from'} {rule.selector}"


def other_user(rule: RuleAdd, link: int, view: View) -> int | None:
    """Return another link that has addresses or local ranges that the rule selects; None if they belong to `link`.

    A range that another program routes through a tunnel is that of its clients.
    """
    network = rule.selector
    if rule.to or (is_single(network) and view.addresses.holders(network.network_address)):
        return None
    holders = view.networks.held.links_overlapping(network) - {link}
    ranges = view.networks.local_ranges.links_overlapping(network) - {link}
    if not (is_single(network) or rule.iif_lo) and ranges and belongs_although_held_by(ranges, network, link, view):
        ranges = set()
    tunnels = set() if is_single(network) or rule.iif_lo else view.foreign.tunnels_to(link, network)
    return min(holders | ranges | tunnels, default=None)


def belongs_although_held_by(users: Iterable[int], network: IPNetwork, link: int, view: View) -> bool:
    """Return True if an address or range belongs to a link although other links, its `users`, have it.

    These must be lo or virtual links except for tunnels. It must lie in a subnet of this link and of no other: a
    learned one, unless the address is private and only on lo or dummies.
    """
    if any(view.links.is_cloud(user) or not view.links.may_have_cloud_addresses(user) for user in users):
        return False
    around = {other for subnet, other in view.networks.subnets.all_containing(network) if view.links.is_cloud(other)}
    for_itself = all(view.links.is_lo_or_dummy(user) for user in users) and claims.within(network, claims.PRIVATE)
    return around == {link} and (for_itself or view.networks.learned.covers(link, network))


def check_rule_remove(op: RuleRemove, view: View) -> Change:
    """Accept an owned rule."""
    if view.rules.owned.get(rule_key(op)) != op:
        raise Refusal("cloud-network has no such rule")
    check_once(op, view)
    if is_rule_for_main(op):
        check_others_keep_main(op, view)
    view.rules.remove(op)
    return op.inverse()


def check_others_keep_main(op: RuleRemove, view: View) -> None:
    """Raise Refusal if a rule needs this rule for main. The operations between the two removals may take seconds."""
    version = op.selector.version
    for rule in view.rules.owned.values():
        if rule.selector.version != version or not needs_main(rule, view):
            continue
        if not view.rules.main_comes_before(version, rule.priority, without=op.priority):
            raise Refusal(f"cloud-network's rule {rule.priority} must come after it; remove that rule before")


def check_once(op: RuleAdd | RuleRemove, view: View) -> None:
    """Raise Refusal for a second change of a rule: a rollback removes rules first, and adds them last."""
    if view.rules.has_changed(op):
        raise Refusal("the same rule twice in one request")


def check_object_limit(view: View) -> None:
    """Raise Refusal at the limit of owned objects."""
    limit = view.settings.max_objects
    if view.number_owned_objects >= limit:
        raise Refusal(f"cloud-network has {limit} addresses, routes and rules already", allow="[Netagent] MaxObjects=")


CHECKS: Mapping[type[Operation], CheckFunction] = {
    LinkUp: check_link_up,
    LinkMtu: check_link_mtu,
    AddressAdd: check_address_add,
    AddressRemove: check_address_remove,
    RouteReplace: check_route_replace,
    RouteRemove: check_route_remove,
    RuleAdd: check_rule_add,
    RuleRemove: check_rule_remove,
    ForwardedReplies: check_forwarded_replies,
}


def check_operation(op: Operation, view: View) -> Change:
    """Return the operation that undoes `op`, and count `op` in the view. Raises Refusal; then the view is unchanged."""
    if not isinstance(op, RuleAdd | RuleRemove | ForwardedReplies):
        check_link(op.link, view, removes=isinstance(op, AddressRemove | RouteRemove))
    check_earlier_routes(op, view)
    return CHECKS[type(op)](op, view)


def check_earlier_routes(op: Operation, view: View) -> None:
    """Raise Refusal if the link has routes in tables of an earlier RouteTableBase=.

    The other checks know only the link's present tables, and the rules that lead there. A change of the marks and the
    removal of a rule for main concern all links. Accepted are the removal of other rules and of routes except for those
    in table local, link_up and link_mtu.
    """
    links: Iterable[int] = ()
    match op:
        case RuleAdd() if op.selector.prefixlen or op.mark:
            links = (claims.link_of_table(op.table, view.settings.route_table_base),)
        case AddressAdd() | AddressRemove() | RouteReplace():
            links = (op.link,)
        case RouteRemove() if op.table == TABLE_LOCAL:
            links = (op.link,)
        case ForwardedReplies():
            links = view.earlier_routes
        case RuleRemove() if is_rule_for_main(op):
            links = view.earlier_routes
    if (link := next((each for each in links if view.earlier_routes[each]), None)) is not None:
        what = f"{view.name(link)} has routes in tables of an earlier RouteTableBase="
        raise Refusal(f"{what}; remove them first, or: cnctl flush")


def check_removal(op: Operation, view: View) -> None:
    """Accept the removal of an owned object by a flush or rollback, also on a link that is no longer the cloud's."""
    CHECKS[type(op)](op, view)


def split_by_policy(
    ops: Iterable[Operation], check: Callable[[Operation, View], object], view: View
) -> tuple[list[Operation], list[Remaining]]:
    """Return the operations that `check` accepts, and the refused ones with the reasons."""
    accepted, refused = list[Operation](), list[Remaining]()
    for op in ops:
        try:
            check(op, view)
        except Refusal as refusal:
            refused.append(Remaining(op, refusal.reason))
        else:
            accepted.append(op)
    return accepted, refused
