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

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import NamedTuple

from cloud_network.fetcher.aggregate import NOBODY, Held, Sources
from cloud_network.fetcher.allowed import Against, Allowed, within
from cloud_network.fetcher.config import Config, Prefixes, Rules
from cloud_network.fetcher.model import Instance, Interface, IPAddress, IPInterface, IPNetwork, host
from cloud_network.fetcher.objects import Actual, Address, Desired, Link, Route, Rule, Wish

TABLE_MAIN, TABLE_LOCAL = 254, 255  # linux/rtnetlink.h
LEAST_MTU = 1280  # of IPv6, RFC 8200, section 5: netagent sets no smaller one
STEP = 10  # between the priorities of two steps: room for an operator's own rules
_DEFAULT_PREFIXES = {"gcp": Prefixes.LOCAL}  # as Google's agent does; elsewhere as amazon-ec2-net-utils does


def desired(instance: Instance, config: Config, actual: Actual) -> Desired:
    """What the kernel shall hold for `instance` on this host."""
    found = match_links(instance, config, actual.links)
    instance = with_what_dhcp_says(instance, found, actual)
    unknown = tuple(interface.mac for interface in instance.interfaces if interface.mac not in found)
    pairs = [
        (interface, found[interface.mac])
        for interface in sorted(instance.interfaces, key=_order)
        if interface.mac in found and found[interface.mac].name not in config.exclude
    ]
    left = _left_alone(config, actual, {link.ifindex for _, link in pairs}, unknown)
    left_tables = frozenset(config.route_table_base + ifindex for ifindex in left)
    wishes, addresses, routes, rules = [], list[Address](), list[Route](), list[Rule]()
    allowed, withheld = Allowed(config, actual, left), dict[Against, None]()
    prefixes = config.prefixes or _DEFAULT_PREFIXES.get(instance.provider, Prefixes.ROUTE)
    notices = list(instance.notices)
    held = _without_parts(_Held.of(kernel.address) for kernel in actual.addresses.values())
    ours = {address for _, address in actual.addresses} | {
        each.ip for interface in instance.interfaces for each in interface.addresses
    }
    sources = Sources(_sources(instance, found, config, actual, left)) if config.rules is Rules.AGGREGATE else None
    given = set[IPNetwork]()  # a forwarded address may be named for several interfaces
    taken = set[IPAddress]()
    for interface, link in pairs:
        small = interface.mtu is not None and interface.mtu < LEAST_MTU
        wishes.append(Wish(link.ifindex, None if small else interface.mtu))
        if small:
            notices.append(f"{link.name}: an MTU of {interface.mtu} would take IPv6 off it; it keeps {link.mtu}")
        own = [each for each in interface.addresses if each.ip not in taken and not _left_to_others(each, config)]
        against = [allowed.against(link, host(each)) for each in own]
        own = [each for each, reason in zip(own, against, strict=True) if reason is None]
        mine = list(_addresses(interface, link, own, held, allowed))
        held += _without_parts(map(_Held.of, mine))
        addresses += mine
        taken |= {address.address for address in mine}
        has_table = len(instance.interfaces) > 1 or link.name in config.supplementary
        ranges = list[IPNetwork]()
        if interface.ranges and (prefixes is Prefixes.LOCAL or (prefixes is Prefixes.ROUTE and has_table)):
            there = {rule.selector for rule in actual.rules if rule.table == config.route_table_base + link.ifindex}
            there |= {route.destination for route in actual.routes if route.ifindex == link.ifindex}
            why = {
                network: None if network in there else _against(network, interface, link, prefixes, allowed)
                for network in interface.ranges
                if network not in given
            }
            ranges = [network for network, reason in why.items() if reason is None]
            given |= set(ranges)
            withheld |= dict.fromkeys(reason for reason in why.values() if reason)
        withheld |= dict.fromkeys(reason for reason in against if reason)
        if prefixes is Prefixes.LOCAL:
            others = [network for network in ranges if network in actual.local]  # Google's agent's, or an address
            routes += [Route(TABLE_LOCAL, link.ifindex, network, None) for network in ranges if network not in others]
        if has_table:
            siblings = [net for each in instance.interfaces if each.mac != interface.mac for net in each.subnets]
            ways = tuple(way for way in interface.routes if way[1] not in ours)  # this host is the gateway of others
            whole = replace(interface, routes=ways)
            table = list(_table(whole, link, siblings, config, actual, allowed))
            routes += table
            notices += _lacking(interface, link, config, table, actual)
            homes = [route.destination for route in table if route.gateway is None]
            rules += _rules([each.ip for each in own], ranges, homes, link, config, sources)
    left_rules = (rule for rule in actual.rules if rule.table in left_tables)
    for version in sorted({rule.version for rule in (*rules, *left_rules)}):
        rules.append(Rule(config.rule_priority + STEP, version, None, TABLE_MAIN, suppress=True))
    return Desired(
        wishes=tuple(wishes),
        addresses=tuple(addresses),
        routes=tuple(dict.fromkeys(routes)),
        rules=tuple(dict.fromkeys(rules)),
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


def match_links(instance: Instance, config: Config, links: Iterable[Link]) -> dict[str, Link]:
    """{MAC: link}: by MAC alone, and never a link of a kind that no cloud attaches (a VLAN has its parent's MAC).

    A part of another link with the same MAC is not it either: Azure's accelerated networking has a VF below each
    synthetic interface, virtio's failover a primary and a standby, a bond its members. When two are left (a VF that is
    not yet a part), neither is taken.
    """
    macs = {interface.mac for interface in instance.interfaces}
    links = [link for link in links if link.mac in macs]
    of = {link.ifindex: link.mac for link in links}
    found = defaultdict[str, list[Link]](list)
    for link in links:
        part = link.master is not None and of.get(link.master) == link.mac
        if not part and (link.kind is None or link.kind in config.allow_kinds):
            found[link.mac].append(link)
    return {mac: candidates[0] for mac, candidates in found.items() if len(candidates) == 1}


def _order(interface: Interface) -> tuple[int, int, str]:
    """The primary first: in a subnet that two interfaces share, it keeps the connected route."""
    number = interface.device_number if interface.device_number is not None else 1 << 16
    return (number, interface.network_card, interface.mac)


def _left_to_others(address: IPAddress, config: Config) -> bool:
    return any(address.version == net.version and address in net for net in config.exclude_addresses)


class _Held(NamedTuple):
    """The network of an address that a link has or shall have, as numbers: thousands are compared."""

    ifindex: int
    version: int
    first: int
    last: int

    @classmethod
    def of(cls, address: Address) -> _Held:
        host = address.address.max_prefixlen - address.prefix
        first = int(address.address) >> host << host
        return cls(address.ifindex, address.address.version, first, first + (1 << host) - 1)


def _without_parts(held: Iterable[_Held]) -> list[_Held]:
    """The same without those that are a part of another one of their link: /32 siblings are many, and say nothing."""
    found: list[_Held] = []
    for each in sorted(held, key=lambda each: (each.ifindex, each.version, each.first, -each.last)):
        last = found[-1] if found else None
        if last is None or last[:2] != each[:2] or each.last > last.last:
            found.append(each)
    return found


def _shared(link: Link, network: IPNetwork, held: Iterable[_Held]) -> bool:
    """Whether another link has a part in the network: a connected route may not shadow it."""
    first, last = int(network.network_address), int(network.broadcast_address)
    return any(
        other.first <= last and first <= other.last and other.version == network.version
        for other in held
        if other.ifindex != link.ifindex
    )


def with_what_dhcp_says(instance: Instance, found: Mapping[str, Link], actual: Actual) -> Instance:
    """The instance, with what its metadata leave to DHCP: subnets (IBM), or all but the MAC (Scaleway, OpenStack)."""
    others = defaultdict[int, dict[IPAddress, IPInterface]](dict)
    for (ifindex, address), kernel in actual.addresses.items():
        if not kernel.owned and not address.is_link_local:
            others[ifindex][address] = ip_interface((address, kernel.address.prefix))
    whole = [
        _leased(each, others[found[each.mac].ifindex]) if each.mac in found else each for each in instance.interfaces
    ]
    return replace(instance, interfaces=tuple(whole))


def _leased(interface: Interface, held: Mapping[IPAddress, IPInterface]) -> Interface:
    addresses = interface.addresses or tuple(held.values())
    alone = [each for each in addresses if each.version == 4 and each.network.prefixlen == each.max_prefixlen]
    known = addresses if not interface.addresses else () if interface.routed else alone
    networks = [held[each.ip].network for each in known if each.ip in held]
    subnets = [*interface.subnets, *(network for network in networks if network.prefixlen < network.max_prefixlen)]
    return replace(interface, addresses=addresses, subnets=tuple(dict.fromkeys(subnets)))


def _addresses(
    interface: Interface, link: Link, own: Iterable[IPInterface], held: Iterable[_Held], allowed: Allowed
) -> Iterator[Address]:
    """The first IPv4 address of a subnet carries its prefix length; siblings are /32, so they outlive the first."""
    carried: set[IPNetwork] = set()
    for each in own:
        address, network = each.ip, each.network
        if address.version == 6:
            yield Address(link.ifindex, address, 128, connected=False)
        elif interface.routed or network in carried:
            yield Address(link.ifindex, address, 32, connected=False)
        else:
            carried.add(network)
            connected = not _shared(link, network, held) and allowed.may_claim(link, network)
            yield Address(link.ifindex, address, network.prefixlen, connected)


def _against(
    network: IPNetwork, interface: Interface, link: Link, prefixes: Prefixes, allowed: Allowed
) -> Against | None:
    """Why nothing can be made of a range; None if something can."""
    reason = allowed.against(link, network)
    single = network.prefixlen == network.max_prefixlen
    if reason is not None or prefixes is Prefixes.LOCAL:
        return reason
    homes = (subnet for subnet in interface.subnets if not interface.routed)
    if not single and any(within(network, home) and network != home for home in homes):
        return None
    text = f'{network} of {link.name}: a source rule alone needs a range of its subnet; [Network] Prefixes="local"?'
    return Against(text)


def _table(
    interface: Interface,
    link: Link,
    siblings: Iterable[IPNetwork],
    config: Config,
    actual: Actual,
    allowed: Allowed,
) -> Iterator[Route]:
    table = config.route_table_base + link.ifindex
    near = [subnet for subnet in interface.subnets if not interface.routed and allowed.is_on(link, subnet)]
    far = [subnet for subnet in interface.subnets if interface.routed and subnet.prefixlen < subnet.max_prefixlen]
    far += [subnet for subnet in siblings if subnet not in interface.subnets]
    versions = {address.version for address in interface.addresses}
    ways = [way for way in interface.routes if way[0].version in versions]
    for version in sorted(versions):
        if gateway := _gateway(interface, link, version, actual):
            ways += [(subnet, gateway) for subnet in far if subnet.version == version]
            ways.append((ip_network("0.0.0.0/0" if version == 4 else "::/0"), gateway))
    for subnet in near:
        yield Route(table, link.ifindex, subnet, None)
    done = set[IPNetwork]()  # one route a destination: the metadata's word goes before what is concluded
    reached = set[IPAddress]()
    for destination, gateway in ways:
        if destination in done or destination in near:
            continue
        link_local = gateway.version == 6 and gateway.is_link_local
        if gateway not in reached and not link_local and not any(within(host(gateway), net) for net in near):
            if not allowed.is_on(link, host(gateway)):
                continue
            yield Route(table, link.ifindex, host(gateway), None)  # a /32 subnet mask: the gateway is on link
        reached.add(gateway)
        done.add(destination)
        yield Route(table, link.ifindex, destination, gateway)


def _lacking(
    interface: Interface, link: Link, config: Config, routes: Iterable[Route], actual: Actual
) -> Iterator[str]:
    """Addresses that cannot answer beyond their own subnet, because no gateway of their link is known."""
    table = config.route_table_base + link.ifindex
    there = (*((route.table, route.destination) for route in routes), *actual.foreign)
    has = {destination.version for at, destination in there if at == table and destination.prefixlen == 0}
    for version in sorted({address.version for address in interface.addresses} - has):
        if version == 6:
            yield f"{link.name}: no router has advertised itself yet: its IPv6 addresses answer their own subnet alone"
        else:
            yield f"{link.name}: has no gateway: its IPv4 addresses answer their own subnet alone"


def _gateway(interface: Interface, link: Link, version: int, actual: Actual) -> IPAddress | None:
    """The metadata's or the cloud's convention; else what DHCP or a router set on this very link."""
    known = (*interface.gateways, *actual.gateways.get(link.ifindex, ()))
    return next((gateway for gateway in known if gateway.version == version), None)


def _sources(
    instance: Instance, found: Mapping[str, Link], config: Config, actual: Actual, left: frozenset[int]
) -> Iterator[Held]:
    """What may be the source of a packet of this host, as the kernel and the metadata say; also of links to come.

    What is ours and the metadata no longer list is taken away before any rule is added.
    """
    for (ifindex, address), kernel in actual.addresses.items():
        if not (kernel.owned and instance.complete and ifindex not in left):
            yield Held.one(address, ifindex)
    for network, ifindex in actual.local.items():
        yield Held.all_of(network, ifindex)
    for route in actual.routes:
        if route.table == TABLE_LOCAL and not (instance.complete and route.ifindex not in left):
            yield Held.all_of(route.destination, route.ifindex)
    for interface in instance.interfaces:
        ifindex = found[interface.mac].ifindex if interface.mac in found else NOBODY
        for own in interface.addresses:
            yield Held.one(own.ip, ifindex)
        for network in interface.ranges:
            yield Held.all_of(network, ifindex)
    for network in config.exclude_addresses:
        yield Held.all_of(network, NOBODY)


def _rules(
    own: Collection[IPAddress],
    ranges: Iterable[IPNetwork],
    homes: Iterable[IPNetwork],
    link: Link,
    config: Config,
    sources: Sources | None,
) -> Iterator[Rule]:
    first, table = config.rule_priority, config.route_table_base + link.ifindex
    selectors = dict.fromkeys(ranges, False)  # {network: whether it is only for what this host itself sends}
    for each in sources.aggregate(own, homes, link.ifindex) if sources else map(ip_network, own):
        selectors.setdefault(each, each.prefixlen < each.max_prefixlen)
    for selector, local in selectors.items():
        yield Rule(first, selector.version, selector, table, suppress=True, local=local)
        yield Rule(first + 2 * STEP, selector.version, selector, table, suppress=False, local=local)
        if config.rules is Rules.ORIGINAL:  # never matched: a local address is decided by the local table first
            yield Rule(first + 2 * STEP, selector.version, selector, table, suppress=False, to=True)
