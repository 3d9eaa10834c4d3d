"""The state that the kernel must have, from the metadata, the configuration and the host's links. Pure.

Each link has a table T = RouteTableBase + ifindex, and each of its sources has rules in three steps:
  1. from SOURCE lookup T suppress_prefixlength 0      the link's own subnets and the siblings' subnets
  2. lookup main suppress_prefixlength 0               routes in main more specific than a default
  3. from SOURCE lookup T                              everything else leaves by the link that owns the source
`rules` describes SOURCE.

T holds the link's own subnets on link, further routes of the metadata by their gateways, every sibling's subnets by
this link's gateway, and a default route. The siblings' subnets are needed by neighbours in one subnet that reach an
address in another: without them the reply would take the connected route of the neighbour's subnet, with a source that
the cloud drops there.

A link without a gateway (Vultr's private networks, IPv6 before the first router advertisement) has only its own subnets
in T. Other packets find no route in steps 1 and 3 and use main. Such a link is named in `notices`.

What netagent would refuse (`allowed`) is left out and named, because netagent refuses a request as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from cloud_network.fetcher.config import Config, Prefixes
from cloud_network.fetcher.metadata.model import EVERYTHING, Instance, Interface, IPAddress, IPNetwork, host
from cloud_network.fetcher.network.allowed import Allowed, within
from cloud_network.fetcher.network.intervals import Interval, IntervalIndex, networks_of
from cloud_network.fetcher.network.matching import match_links, with_dhcp_facts
from cloud_network.fetcher.network.objects import (
    Actual,
    Address,
    Desired,
    Link,
    LinkGoal,
    LinkSettings,
    Rejection,
    Route,
    Rule,
)
from cloud_network.fetcher.network.rules import STEP, source_addresses, source_rules
from cloud_network.netagent.protocol import TABLE_LOCAL, TABLE_MAIN

MIN_MTU = 1280  # of IPv6, RFC 8200, section 5; netagent sets no smaller one
_DEFAULT_PREFIXES = {"gcp": Prefixes.LOCAL}  # as Google's guest agent; elsewhere as amazon-ec2-net-utils

Networks = tuple[IPNetwork, ...]
Via = tuple[IPNetwork, IPAddress]  # a destination and its gateway


@dataclass(frozen=True, slots=True)
class HostView:
    """The facts that the goal of every link depends on."""

    instance: Instance  # completed from DHCP
    actual: Actual
    allowed: Allowed
    networks: IntervalIndex  # of the addresses on all links of the host
    sources: IntervalIndex  # each source address of the host with its link


@dataclass(slots=True)
class Claims:
    """What the interfaces handled so far have, and a later one therefore cannot have."""

    addresses: set[IPAddress] = field(default_factory=set)
    ranges: set[IPNetwork] = field(default_factory=set)
    networks: list[Interval] = field(default_factory=list)

    def add(self, goal: LinkGoal) -> None:
        """Claim what one link gets."""
        self.addresses.update(each.address for each in goal.addresses)
        self.ranges.update(goal.ranges)
        self.networks += networks_of(goal.addresses)


@dataclass(frozen=True, slots=True)
class LinkTable:
    """The content of a link's own table."""

    routes: tuple[Route, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def on_link(self) -> Networks:
        """The networks that need no gateway."""
        return tuple(route.destination for route in self.routes if route.gateway is None)


def desired(instance: Instance, config: Config, actual: Actual) -> Desired:
    """Return what the kernel must hold for `instance` on this host."""
    matches = match_links(instance, config, actual.links)
    instance = with_dhcp_facts(instance, matches, actual)
    pairs = [(each, matches[each.mac]) for each in sorted(instance.interfaces, key=_order) if each.mac in matches]
    managed = [(interface, link) for interface, link in pairs if link.name not in config.exclude]
    unknown = tuple(interface.mac for interface in instance.interfaces if interface.mac not in matches)
    unmanaged = _unmanaged_links(config, actual, {link.ifindex for _, link in managed}, unknown)
    view = HostView(
        instance,
        actual,
        Allowed(config, actual, unmanaged),
        IntervalIndex(networks_of(kernel.address for kernel in actual.addresses.values())),
        source_addresses(instance, matches, config, actual, unmanaged),
    )
    goals, claims = list[LinkGoal](), Claims()
    for interface, link in managed:
        goal = link_goal(interface, link, config, view, claims)
        claims.add(goal)
        goals.append(goal)
    tables = frozenset(config.route_table_base + ifindex for ifindex in unmanaged)
    rejections = dict.fromkeys(rejection for goal in goals for rejection in goal.rejections)
    return Desired(
        links=tuple(goals),
        common=_common_rules(goals, config, actual, tables),
        matches=tuple(pairs),
        unknown_macs=unknown,
        unmanaged_links=unmanaged,
        unmanaged_tables=tables,
        notices=(*instance.notices, *(notice for goal in goals for notice in goal.notices)),
        withheld=tuple(each.text for each in rejections),
        transient=frozenset(each.text for each in rejections if each.transient),
    )


def _order(interface: Interface) -> tuple[int, int, str]:
    """Put the primary interface first: in a subnet that two interfaces share, it keeps the connected route."""
    number = interface.device_number if interface.device_number is not None else 1 << 16
    return (number, interface.network_card, interface.mac)


def _unmanaged_links(config: Config, actual: Actual, managed: set[int], unknown: Sequence[str]) -> frozenset[int]:
    """Return links that Exclude= names and, while a MAC is unknown, all that are not named: one may be that MAC's."""
    return frozenset(
        link.ifindex
        for link in actual.links
        if link.name in config.exclude or (unknown and link.ifindex not in managed)
    )


def _common_rules(
    goals: Iterable[LinkGoal], config: Config, actual: Actual, unmanaged_tables: frozenset[int]
) -> tuple[Rule, ...]:
    """Return the rule of step 2 for each family that has rules of the other steps."""
    versions = {rule.version for goal in goals for rule in goal.rules}
    versions |= {rule.version for rule in actual.rules if rule.table in unmanaged_tables}
    priority = config.rule_priority + STEP
    return tuple(Rule(priority, version, None, TABLE_MAIN, suppress=True) for version in sorted(versions))


def link_goal(interface: Interface, link: Link, config: Config, view: HostView, claims: Claims) -> LinkGoal:
    """Return what the kernel must hold for one interface of the metadata."""
    has_table = len(view.instance.interfaces) > 1 or link.name in config.supplementary
    settings, notices = _link_settings(interface, link)
    addresses, rejected_addresses = usable_addresses(interface, link, config, view, claims)
    ranges, rejected_ranges = usable_ranges(interface, link, config, view, claims, has_table=has_table)
    table, rules = LinkTable(), tuple[Rule, ...]()
    if has_table:
        table = link_table(interface, link, config, view)
        sources = [address.address for address in addresses]
        rules = source_rules(link, sources, ranges, table.on_link, config, view.sources)
    return LinkGoal(
        settings=settings,
        addresses=addresses,
        routes=(*_local_routes(link, ranges, config, view), *table.routes),
        rules=rules,
        ranges=ranges,
        notices=(*notices, *table.notices),
        rejections=(*rejected_ranges, *rejected_addresses),
    )


def _link_settings(interface: Interface, link: Link) -> tuple[LinkSettings, tuple[str, ...]]:
    if interface.mtu is None or interface.mtu >= MIN_MTU:
        return LinkSettings(link.ifindex, interface.mtu), ()
    notice = f"{link.name}: MTU {interface.mtu} is below {MIN_MTU}, the minimum of IPv6; the link keeps {link.mtu}"
    return LinkSettings(link.ifindex, None), (notice,)


# Addresses


def usable_addresses(
    interface: Interface, link: Link, config: Config, view: HostView, claims: Claims
) -> tuple[tuple[Address, ...], tuple[Rejection, ...]]:
    """Return the addresses for a link, and why it cannot have the others.

    The first IPv4 address of a subnet carries the subnet's prefix length. Its siblings are /32, because the kernel
    removes the secondary addresses of a subnet with the first one.
    """
    accepted, rejections = list[Address](), list[Rejection]()
    claimable = {net: view.allowed.may_claim(link, net) for net in {each.network for each in interface.addresses}}
    carried = set[IPNetwork]()
    for each in interface.addresses:
        address, subnet = each.ip, each.network
        if address in claims.addresses or any(address in network for network in config.exclude_addresses):
            continue
        if rejection := view.allowed.rejection(link, address, free=claimable[subnet]):
            rejections.append(rejection)
        elif address.version == 6 or interface.routed or subnet in carried:
            accepted.append(Address(link.ifindex, address, address.max_prefixlen, connected=False))
        else:
            carried.add(subnet)
            connected = claimable[subnet] and not _is_shared(link, subnet, view, claims)
            accepted.append(Address(link.ifindex, address, subnet.prefixlen, connected))
    return tuple(accepted), tuple(rejections)


def _is_shared(link: Link, network: IPNetwork, view: HostView, claims: Claims) -> bool:
    """Return True if another link has or gets an address in the network: a connected route would take it over."""
    interval = Interval.of_network(network)
    if any(each.ifindex != link.ifindex for each in view.networks.overlapping(interval)):
        return True
    return any(each.overlaps(interval) and each.ifindex != link.ifindex for each in claims.networks)


# Ranges


def _prefixes(config: Config, view: HostView) -> Prefixes:
    return config.prefixes or _DEFAULT_PREFIXES.get(view.instance.provider, Prefixes.ROUTE)


def usable_ranges(
    interface: Interface, link: Link, config: Config, view: HostView, claims: Claims, *, has_table: bool
) -> tuple[Networks, tuple[Rejection, ...]]:
    """Return the ranges that Prefixes= configures on a link, and why the others cannot be.

    Some clouds name a forwarded address for several interfaces; the first one gets it.
    """
    prefixes = _prefixes(config, view)
    if not interface.ranges or prefixes is Prefixes.IGNORE or (prefixes is Prefixes.ROUTE and not has_table):
        return (), ()
    table = config.route_table_base + link.ifindex
    present = {rule.selector for rule in view.actual.rules if rule.table == table}
    present |= {route.destination for route in view.actual.routes if route.ifindex == link.ifindex}
    ranges, rejections = list[IPNetwork](), list[Rejection]()
    for network in dict.fromkeys(interface.ranges):
        if network in claims.ranges:
            continue
        rejection = None if network in present else _range_rejection(network, interface, link, prefixes, view.allowed)
        if rejection is None:
            ranges.append(network)
        else:
            rejections.append(rejection)
    return tuple(ranges), tuple(rejections)


def _range_rejection(
    network: IPNetwork, interface: Interface, link: Link, prefixes: Prefixes, allowed: Allowed
) -> Rejection | None:
    rejection = allowed.range_rejection(link, network)
    if rejection is not None or prefixes is Prefixes.LOCAL:
        return rejection
    subnets = () if interface.routed else interface.subnets
    is_single = network.prefixlen == network.max_prefixlen
    if not is_single and any(within(network, subnet) and network != subnet for subnet in subnets):
        return None
    return Rejection(
        f'{network} of {link.name}: a source rule alone needs a range of its subnet; [Network] Prefixes="local"?'
    )


def _local_routes(link: Link, ranges: Networks, config: Config, view: HostView) -> tuple[Route, ...]:
    """Return local routes for ranges that table local lacks: it has those of Google's agent and of every address."""
    if not ranges or _prefixes(config, view) is not Prefixes.LOCAL:
        return ()
    present = {host(address) for _, address in view.actual.addresses} | view.actual.local.keys()
    return tuple(Route(TABLE_LOCAL, link.ifindex, each, None) for each in ranges if each not in present)


# Routes


def link_table(interface: Interface, link: Link, config: Config, view: HostView) -> LinkTable:
    """Return the routes of a link's own table, one for each destination."""
    table, allowed = config.route_table_base + link.ifindex, view.allowed
    direct = [subnet for subnet in interface.subnets if not interface.routed and allowed.is_on(link, subnet)]
    routes = {subnet: Route(table, link.ifindex, subnet, None) for subnet in direct}
    for gateway, run in groupby(_gateway_routes(interface, link, view), key=itemgetter(1)):
        destinations = [each for each, _ in run if each not in routes and each != host(gateway)]
        if destinations and not _is_reachable(gateway, direct):
            if not allowed.is_on(link, host(gateway)):
                continue
            routes.setdefault(host(gateway), Route(table, link.ifindex, host(gateway), None))
        routes |= {each: Route(table, link.ifindex, each, gateway) for each in destinations}
    return LinkTable(tuple(routes.values()), _missing_gateways(interface, link, table, routes, view.actual))


def _gateway_routes(interface: Interface, link: Link, view: HostView) -> list[Via]:
    """Return the metadata's further routes, then those by the link's own gateway, for the families that it has."""
    versions = {address.version for address in interface.addresses}
    routes = [via for via in _further_routes(interface, view) if via[0].version in versions]
    remote = [subnet for subnet in interface.subnets if interface.routed and subnet.prefixlen < subnet.max_prefixlen]
    remote += _sibling_subnets(interface, view.instance)
    for version in sorted(versions):
        if gateway := _gateway(interface, link, version, view.actual):
            routes += [(subnet, gateway) for subnet in remote if subnet.version == version]
            routes.append((EVERYTHING[version], gateway))
    return routes


def _further_routes(interface: Interface, view: HostView) -> tuple[Via, ...]:
    """Return the metadata's routes of an interface, without those by this host: it is the gateway of other hosts."""
    if not interface.routes:
        return ()
    own = {address for _, address in view.actual.addresses}
    own |= {each.ip for other in view.instance.interfaces for each in other.addresses}
    return tuple(via for via in interface.routes if via[1] not in own)


def _sibling_subnets(interface: Interface, instance: Instance) -> list[IPNetwork]:
    own = set(interface.subnets)
    siblings = (other for other in instance.interfaces if other.mac != interface.mac)
    return [subnet for sibling in siblings for subnet in sibling.subnets if subnet not in own]


def _is_reachable(gateway: IPAddress, direct: Iterable[IPNetwork]) -> bool:
    """Return True if a gateway needs no route of its own."""
    if gateway.version == 6 and gateway.is_link_local:
        return True
    return any(within(host(gateway), network) for network in direct)


def _gateway(interface: Interface, link: Link, version: int, actual: Actual) -> IPAddress | None:
    """Return the metadata's or the cloud's conventional gateway, else the one from DHCP or a router on this link."""
    known = (*interface.gateways, *actual.gateways.get(link.ifindex, ()))
    return next((gateway for gateway in known if gateway.version == version), None)


def _missing_gateways(
    interface: Interface, link: Link, table: int, destinations: Iterable[IPNetwork], actual: Actual
) -> tuple[str, ...]:
    """Return a notice for each family whose addresses are reachable only from their own subnet."""
    defaults = {network.version for network in destinations if network.prefixlen == 0}
    defaults |= {network.version for at, network in actual.foreign if at == table and network.prefixlen == 0}
    notices = []
    for version in sorted({address.version for address in interface.addresses} - defaults):
        if version == 6:
            notices.append(
                f"{link.name}: no IPv6 router advertisement received; its IPv6 addresses are reachable only from their "
                f"own subnet. Check net.ipv6.conf.{link.name}.accept_ra and forwarding"
            )
        else:
            notices.append(
                f"{link.name}: no gateway known; its IPv4 addresses are reachable only from their own subnet"
            )
    return tuple(notices)
