"""Instance, Config and the host's links → what the kernel shall hold. Pure.

Per link with table T = RouteTableBase + ifindex, and for each of its addresses, rules in three steps:
  1. from ADDRESS lookup T suppress_prefixlength 0      own subnets and the siblings' are decided here
  2. lookup main suppress_prefixlength 0                what is more specific in main wins over our default routes
  3. from ADDRESS lookup T                              everything else leaves by the link that owns its source
With Rules=aggregate ADDRESS is `PREFIX iif lo`, which stands for all addresses of the link in there, no other link
having any (`aggregate`); what is forwarded for others in there is not concerned. A prefix lies in a network that T has
on link: netagent sees no further. Ranges have rules without `iif lo`: containers may own their addresses.
T holds the link's own subnets on link, the metadata's further routes by the gateways that they name, every sibling's
subnets by this link's gateway, and a default route. Without the siblings' subnets a neighbour in one subnet could not
reach an address in another: the reply would take the connected route of the neighbour's subnet, with a source that the
cloud drops there.
A link without a gateway (Vultr's private networks, IPv6 before the first router advertisement) has its own subnets in
T and nothing else: what is not for them finds nothing in steps 1 and 3 and goes on to main, as it would without us. The
wire has no `unreachable`, and an on-link route to a sibling's subnet would be refused, rightly: a network that nothing
leads out of cannot have asked. Such a link is named in `notices`.
What netagent would refuse (`allowed`) is left out and named: a refusal is of the whole request.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from cloud_network.fetcher.config import Config, Prefixes, Rules
from cloud_network.fetcher.kept import Kept
from cloud_network.fetcher.metadata.model import EVERYTHING, Instance, Interface, IPAddress, IPNetwork, host
from cloud_network.fetcher.network.aggregate import aggregate
from cloud_network.fetcher.network.allowed import Against, Allowed, within
from cloud_network.fetcher.network.matching import match_links, with_what_dhcp_says
from cloud_network.fetcher.network.objects import Actual, Address, Desired, Link, OfLink, Route, Rule, Wish
from cloud_network.fetcher.network.sources import Group, near, singles, sources_of
from cloud_network.fetcher.network.spans import Found, Span, covering
from cloud_network.netagent.protocol import TABLE_LOCAL, TABLE_MAIN

LEAST_MTU = 1280  # of IPv6, RFC 8200, section 5: netagent sets no smaller one
STEP = 10  # between the priorities of two steps: room for an operator's own rules
_DEFAULT_PREFIXES = {"gcp": Prefixes.LOCAL}  # as Google's agent does; elsewhere as amazon-ec2-net-utils does

Networks = tuple[IPNetwork, ...]


class _Own(NamedTuple):
    """What of an interface's addresses its link may have, and why it may not have the others."""

    addresses: tuple[IPAddress, ...]
    homes: tuple[IPNetwork | None, ...]  # beside each: the subnet whose prefix length it carries
    withheld: tuple[Against, ...]
    all: frozenset[IPAddress]


class _Table(NamedTuple):
    """What a link's own table has."""

    routes: dict[Route, None]
    homes: Networks  # on link
    lacking: tuple[str, ...]  # what cannot be reached, for want of a gateway


_NO_ADDRESSES: frozenset[IPAddress] = frozenset()
_NO_NETWORKS: frozenset[IPNetwork] = frozenset()
_NO_RULES: dict[Rule, None] = {}
_NO_TABLE = _Table({}, (), ())


def desired(instance: Instance, config: Config, actual: Actual, kept: Kept | None = None) -> Desired:
    """What the kernel shall hold for `instance` on this host. `kept`: what was made at the last pass."""
    kept = kept or Kept()
    found = match_links(instance, config, actual.links)
    found = {mac: kept.same(("link", mac), link) for mac, link in found.items()}
    instance = with_what_dhcp_says(instance, found, actual, kept)
    unknown = tuple(interface.mac for interface in instance.interfaces if interface.mac not in found)
    pairs = [
        (interface, found[interface.mac])
        for interface in sorted(instance.interfaces, key=_order)
        if interface.mac in found and found[interface.mac].name not in config.exclude
    ]
    left = _left_alone(config, actual, {link.ifindex for _, link in pairs}, unknown)
    left = kept.same("left", left)
    left_tables = frozenset(config.route_table_base + ifindex for ifindex in left)
    allowed, there = kept(Allowed, config, actual, left), kept(_there, actual)
    sources = sources_of(instance, found, config, actual, left, kept) if config.rules is Rules.AGGREGATE else None
    subnets = kept.same("subnets", tuple((interface.mac, interface.subnets) for interface in instance.interfaces))
    prefixes = config.prefixes or _DEFAULT_PREFIXES.get(instance.provider, Prefixes.ROUTE)
    links, notices, withheld = list[OfLink](), list(instance.notices), dict[Against, None]()
    taken, given, before = set[IPAddress](), set[IPNetwork](), list[Span]()
    for interface, link in pairs:
        mac, small = interface.mac, interface.mtu is not None and interface.mtu < LEAST_MTU
        if small:
            notices.append(f"{link.name}: an MTU of {interface.mtu} would take IPv6 off it; it keeps {link.mtu}")
        wish = kept.same(("wish", mac), Wish(link.ifindex, None if small else interface.mtu))
        alone = kept(singles, interface)
        doubled = kept(_set, alone) & taken
        doubled = kept.same(("doubled", mac), doubled) if doubled else _NO_ADDRESSES
        own = kept(_own, interface, alone, link, config, allowed, doubled)
        shared = frozenset(net for net in own.homes if net is not None and _is_shared(link, net, there, before))
        shared = kept.same(("shared", mac), shared) if shared else _NO_NETWORKS
        addresses, networks = kept(_addresses, link, own, shared, allowed)
        before += networks
        taken |= own.all
        has_table = len(instance.interfaces) > 1 or link.name in config.supplementary
        ranges: Networks = ()
        if interface.ranges and (prefixes is Prefixes.LOCAL or (prefixes is Prefixes.ROUTE and has_table)):
            # a forwarded address may be named for several interfaces
            elsewhere = kept.same(("given", mac), frozenset(given.intersection(interface.ranges)))
            ranges, reasons = kept(_ranges, interface, link, prefixes, config, actual, allowed, elsewhere)
            given.update(ranges)
            withheld |= dict.fromkeys(reasons)
        withheld |= dict.fromkeys(own.withheld)
        local = kept(_local, link, ranges, actual) if ranges and prefixes is Prefixes.LOCAL else ()
        table, rules = _NO_TABLE, _NO_RULES
        if has_table:
            ways = kept.same(("ways", mac), _ways(interface, instance, actual)) if interface.routes else ()
            table = kept(_table, interface, ways, link, subnets, config, actual, allowed)
            notices += table.lacking
            around = near(link, table.homes, sources) if sources is not None else ()
            rules = kept(_rules, own, table, ranges, link, config, *around)
        routes = kept.same(("routes", mac), kept(_together, local, table) if local else table.routes)
        links.append(kept(OfLink, wish, addresses, routes, kept.same(("rules", mac), rules)))
    versions = {version for each in links for version in kept(_versions, each.rules)}
    versions |= {rule.version for rule in actual.rules if rule.table in left_tables} if left_tables else set()
    priority = config.rule_priority + STEP
    return Desired(
        links=tuple(links),
        common=tuple(Rule(priority, version, None, TABLE_MAIN, suppress=True) for version in sorted(versions)),
        unknown_macs=unknown,
        left_links=left,
        left_tables=left_tables,
        notices=tuple(notices),
        withheld=tuple(each.text for each in withheld),
        passing=frozenset(each.text for each in withheld if each.passes),
    )


def _left_alone(config: Config, actual: Actual, ours: set[int], unknown: tuple[str, ...]) -> frozenset[int]:
    """Links that Exclude= names; and while a MAC is unknown, every link that is not named: it may be the one meant."""
    return frozenset(
        link.ifindex for link in actual.links if link.name in config.exclude or (unknown and link.ifindex not in ours)
    )


def _order(interface: Interface) -> tuple[int, int, str]:
    """The primary first: in a subnet that two interfaces share, it keeps the connected route."""
    number = interface.device_number if interface.device_number is not None else 1 << 16
    return (number, interface.network_card, interface.mac)


def _set(addresses: tuple[IPAddress, ...]) -> frozenset[IPAddress]:
    return frozenset(addresses)


def _own(
    interface: Interface,
    alone: tuple[IPAddress, ...],
    link: Link,
    config: Config,
    allowed: Allowed,
    taken: frozenset[IPAddress],
) -> _Own:
    """Those that no interface before this one has, that are not left to others, and that netagent allows."""
    addresses, homes, withheld = list[IPAddress](), list[IPNetwork | None](), list[Against]()
    carried, excluded = set[tuple[int, int]](), config.exclude_addresses
    free = dict[tuple[int, int], bool]()  # of each subnet (a network's hash is slow), whether the link may claim it all
    for whole, address in zip(interface.addresses, alone, strict=True):
        if address in taken or (excluded and any(address in network for network in excluded)):
            continue
        subnet = int(whole.network.network_address), whole.network.prefixlen
        if subnet not in free:
            free[subnet] = allowed.may_claim(link, whole.network)
        if reason := allowed.against(link, address, free=free[subnet]):
            withheld.append(reason)
            continue
        carries = address.version == 4 and not interface.routed and subnet not in carried
        carried.add(subnet)
        addresses.append(address)
        homes.append(whole.network if carries else None)
    return _Own(tuple(addresses), tuple(homes), tuple(withheld), frozenset(addresses))


def _addresses(
    link: Link, own: _Own, shared: frozenset[IPNetwork], allowed: Allowed
) -> tuple[tuple[Address, ...], list[Span]]:
    """As the kernel shall have them, and the networks that they are in.

    The first IPv4 address of a subnet carries its prefix length; siblings are /32, so they outlive the first.
    """
    ifindex, found = link.ifindex, list[Address]()
    for address, home in zip(own.addresses, own.homes, strict=True):
        if home is None:
            found.append(Address(ifindex, address, address.max_prefixlen, connected=False))
        else:
            connected = home not in shared and allowed.may_claim(link, home)
            found.append(Address(ifindex, address, home.prefixlen, connected))
    return tuple(found), covering(found)


def _there(actual: Actual) -> Found[Span]:
    """What the host's links have a part in."""
    return Found(covering(kernel.address for kernel in actual.addresses.values()))


def _is_shared(link: Link, network: IPNetwork, there: Found[Span], before: Iterable[Span]) -> bool:
    """Whether another link has, or shall have, a part in the network: a connected route may not shadow it."""
    span = Span.all_of(network)
    if any(each.ifindex != link.ifindex for each in there.of(span)):
        return True
    return any(each.meets(span) and each.ifindex != link.ifindex for each in before)


def _against(
    network: IPNetwork, interface: Interface, link: Link, prefixes: Prefixes, allowed: Allowed
) -> Against | None:
    """Why nothing can be made of a range; None if something can."""
    reason = allowed.against_range(link, network)
    single = network.prefixlen == network.max_prefixlen
    if reason is not None or prefixes is Prefixes.LOCAL:
        return reason
    homes = (subnet for subnet in interface.subnets if not interface.routed)
    if not single and any(within(network, home) and network != home for home in homes):
        return None
    text = f'{network} of {link.name}: a source rule alone needs a range of its subnet; [Network] Prefixes="local"?'
    return Against(text)


def _ranges(
    interface: Interface,
    link: Link,
    prefixes: Prefixes,
    config: Config,
    actual: Actual,
    allowed: Allowed,
    given: frozenset[IPNetwork],
) -> tuple[Networks, tuple[Against, ...]]:
    """The ranges that something is made of, and why nothing is made of the others."""
    there = {rule.selector for rule in actual.rules if rule.table == config.route_table_base + link.ifindex}
    there |= {route.destination for route in actual.routes if route.ifindex == link.ifindex}
    why = {
        network: None if network in there else _against(network, interface, link, prefixes, allowed)
        for network in interface.ranges
        if network not in given
    }
    ranges = tuple(network for network, reason in why.items() if reason is None)
    return ranges, tuple(reason for reason in why.values() if reason)


def _local(link: Link, ranges: Networks, actual: Actual) -> tuple[Route, ...]:
    """But for what is there already: ranges of Google's agent's, or an address, of which the kernel sees to it."""
    there = {host(address) for _, address in actual.addresses} | actual.local.keys()
    return tuple(Route(TABLE_LOCAL, link.ifindex, each, None) for each in ranges if each not in there)


def _together(local: tuple[Route, ...], table: _Table) -> dict[Route, None]:
    return dict.fromkeys(local) | table.routes


def _ways(interface: Interface, instance: Instance, actual: Actual) -> tuple[tuple[IPNetwork, IPAddress], ...]:
    """The metadata's further routes, but for those by this host itself: it is the gateway of others."""
    if not interface.routes:
        return ()
    ours = {address for _, address in actual.addresses}
    ours |= {each.ip for other in instance.interfaces for each in other.addresses}
    return tuple(way for way in interface.routes if way[1] not in ours)


def _table(
    interface: Interface,
    ways_given: tuple[tuple[IPNetwork, IPAddress], ...],
    link: Link,
    subnets: tuple[tuple[str, Networks], ...],
    config: Config,
    actual: Actual,
    allowed: Allowed,
) -> _Table:
    table, ifindex = config.route_table_base + link.ifindex, link.ifindex
    near = [subnet for subnet in interface.subnets if not interface.routed and allowed.is_on(link, subnet)]
    far = [subnet for subnet in interface.subnets if interface.routed and subnet.prefixlen < subnet.max_prefixlen]
    siblings, own = (theirs for mac, theirs in subnets if mac != interface.mac), set(interface.subnets)
    far += [subnet for theirs in siblings for subnet in theirs if subnet not in own]
    versions = {address.version for address in interface.addresses}
    ways = [way for way in ways_given if way[0].version in versions]
    for version in sorted(versions):
        if gateway := _gateway(interface, link, version, actual):
            ways += [(subnet, gateway) for subnet in far if subnet.version == version]
            ways.append((EVERYTHING[version], gateway))
    routes = {
        subnet: Route(table, ifindex, subnet, None) for subnet in near
    }  # one a destination: the first word counts
    for gateway, run in groupby(ways, key=itemgetter(1)):
        new = [destination for destination, _ in run if destination not in routes and destination != host(gateway)]
        link_local = gateway.version == 6 and gateway.is_link_local
        if new and not link_local and not any(within(host(gateway), net) for net in near):
            if not allowed.is_on(link, host(gateway)):
                continue
            routes.setdefault(host(gateway), Route(table, ifindex, host(gateway), None))
        routes |= {each: Route(table, ifindex, each, gateway) for each in new}
    homes = tuple(each.destination for each in routes.values() if each.gateway is None)
    return _Table(dict.fromkeys(routes.values()), homes, _lacking(interface, link, config, routes.values(), actual))


def _lacking(
    interface: Interface, link: Link, config: Config, routes: Iterable[Route], actual: Actual
) -> tuple[str, ...]:
    """Addresses that cannot answer beyond their own subnet, because no gateway of their link is known."""
    table = config.route_table_base + link.ifindex
    there = (*((route.table, route.destination) for route in routes), *actual.foreign)
    has = {destination.version for at, destination in there if at == table and destination.prefixlen == 0}
    found = []
    for version in sorted({address.version for address in interface.addresses} - has):
        if version == 6:
            found.append(
                f"{link.name}: no router has advertised itself yet: its IPv6 addresses answer their own subnet alone"
            )
        else:
            found.append(f"{link.name}: has no gateway: its IPv4 addresses answer their own subnet alone")
    return tuple(found)


def _gateway(interface: Interface, link: Link, version: int, actual: Actual) -> IPAddress | None:
    """The metadata's or the cloud's convention; else what DHCP or a router set on this very link."""
    known = (*interface.gateways, *actual.gateways.get(link.ifindex, ()))
    return next((gateway for gateway in known if gateway.version == version), None)


def _rules(
    own: _Own, on_link: _Table, ranges: Networks, link: Link, config: Config, *others: Group
) -> dict[Rule, None]:
    """`others`: what other links have near by, which no prefix may hold."""
    aggregates = config.rules is Rules.AGGREGATE
    sources = aggregate(own.addresses, on_link.homes, *others) if aggregates else map(host, own.addresses)
    first, table = config.rule_priority, config.route_table_base + link.ifindex
    selectors = dict.fromkeys(ranges, False)  # {network: whether it is only for what this host itself sends}
    for each in sources:
        selectors.setdefault(each, each.prefixlen < each.max_prefixlen)
    found = list[Rule]()
    for selector, local in selectors.items():
        found.append(Rule(first, selector.version, selector, table, suppress=True, local=local))
        found.append(Rule(first + 2 * STEP, selector.version, selector, table, suppress=False, local=local))
        if config.rules is Rules.ORIGINAL:  # never matched: a local address is decided by the local table first
            found.append(Rule(first + 2 * STEP, selector.version, selector, table, suppress=False, to=True))
    return dict.fromkeys(found)


def _versions(rules: dict[Rule, None]) -> frozenset[int]:
    return frozenset(rule.version for rule in rules)
