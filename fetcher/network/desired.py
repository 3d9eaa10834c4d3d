"""Computes what the kernel must hold from the instance, the configuration and the host's state. Pure.

A link's table T = RouteTableBase + ifindex holds the link's own subnets on link, the metadata's further routes through
their gateways, every sibling's subnets and the DHCP routes of siblings through this link's gateway, and a default
route. Without the siblings' subnets, a neighbour in one subnet could not reach an address in another: the reply would
take the connected route of the neighbour's subnet, with a source that the cloud drops there.

A subnet that has a gateway of its own (Interface.anchor) is the source of rules that lead to a second table of the
link, T + 2**30: the same routes by that gateway.

A link without a gateway (Vultr's private networks, IPv6 before the first router advertisement) has only its own subnets
in T. Other packets match nothing in steps 1 and 3 (see `rules`) and continue to main, as without cloud-network.

Objects that netagent or the kernel refused before (`rejections`) are left out, with those that depend on them, and
reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network

from cloud_network.fetcher.config import Config, ForwardedRepliesMode, Prefixes, RulesMode
from cloud_network.fetcher.metadata.model import EVERYTHING, Instance, Interface, IPAddress, IPNetwork
from cloud_network.fetcher.network.addresses import MIN_MTU, Host, UsableInterface, index_host, usable_interfaces
from cloud_network.fetcher.network.marks import assign_marks, mark_rules, marks_in_use, table_of
from cloud_network.fetcher.network.matching import Matches, explain_mismatch, idle_patterns, managed, ports
from cloud_network.fetcher.network.objects import (
    Actual,
    Cause,
    Desired,
    GatewayUse,
    Link,
    LinkGoal,
    LinkSettings,
    MarkTable,
    Object,
    Rejection,
    Rejections,
    ReversePath,
    Route,
    Rule,
    Withheld,
)
from cloud_network.fetcher.network.rules import NO_LINK, Interval, IntervalIndex, main_rule, source_rules
from cloud_network.netagent.claims import contains, is_excluded, is_single, single, tables, within
from cloud_network.netagent.protocol import TABLE_LOCAL

WIRE_SERVER = ip_network("168.63.129.16/32")
"""Source of Azure's health probes: learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16."""


def desired(
    instance: Instance,
    matches: Matches,
    config: Config,
    actual: Actual,
    rejections: Rejections | None = None,
    departed: frozenset[str] = frozenset(),
) -> Desired:
    """Return what the kernel must hold for `instance` (with leases). `departed`: MACs whose links have left."""
    rejections = rejections or {}
    configured = managed(instance, matches, config)
    pairs = [pair for pair in configured if _link_rejection(pair[1], rejections) is None]
    absent = [each.mac for each in instance.interfaces if each.mac not in matches and each.mac not in config.exclude]
    unknown = {mac: explain_mismatch(mac, actual.links, config) for mac in absent if mac not in departed}
    rejected = {link.ifindex for _, link in configured} - {link.ifindex for _, link in pairs}
    unnamed = _unnamed(config, actual, matches) - ports(instance, actual.links) if unknown else set()
    unmanaged = frozenset(rejected | unnamed)
    host = index_host(instance, config, actual, rejections, unmanaged)
    notices, withheld = list(instance.notices), list(_rejected_links(matches, host))
    notices += [_departed_notice(mac) for mac in absent if mac in departed]
    idle = idle_patterns(instance, config, actual.links)
    notices += [f'[Network] Exclude="{pattern}" matches no link of this host' for pattern in idle]
    usable = usable_interfaces(pairs, host, notices, withheld)
    sources = _sources(usable, matches, host, unmanaged)
    unmanaged |= {link.ifindex for mac, link in matches.items() if mac in instance.unproven}  # nothing is removed there
    marks = _marks([each.link for each in usable], host, unmanaged, withheld)
    goals = [_link_goal(each, host, sources, marks or {}, notices, withheld) for each in usable]
    unmanaged_tables = frozenset(each for ifindex in unmanaged for each in tables(ifindex, config.route_table_base))
    versions = {rule.version for goal in goals for rule in goal.rules}
    versions |= {rule.version for rule in actual.rules if rule.table in unmanaged_tables}
    main_rules = [main_rule(version, config) for version in sorted(versions)]
    withheld[:0] = _without_main(main_rules, host)
    return Desired(
        links=tuple(goals),
        common=tuple(rule for rule in main_rules if host.rejection(rule) is None),
        unknown_macs=unknown,
        unmanaged=unmanaged,
        unmanaged_tables=unmanaged_tables,
        notices=tuple(notices),
        withheld=tuple(dict.fromkeys(withheld)),
        marks=None if marks is None or MarkTable() in rejections else table_of(marks.items()),
        marks_in_use=table_of(_in_use(host)),
    )


def _without_main(main_rules: Iterable[Rule], host: Host) -> Iterator[Withheld]:
    """Yield a report for each rejected rule for main, before those of the rules that need it."""
    for rule in main_rules:
        rejection = host.rejection(rule)
        if rejection is not None and rejection.cause is not Cause.CONFLICT:
            yield Withheld(f"rule {rule.priority} for the table main (IPv{rule.version}): {rejection.reason}")


def _in_use(host: Host) -> Iterator[tuple[int, int]]:
    """Yield ifindex and mark of each link that has a mark and that netagent may change."""
    for ifindex, mark in marks_in_use(host.config, host.actual).items():
        if ifindex in host.links and _may_have_mark(host.links[ifindex], host):
            yield ifindex, mark


def _marks(
    links: Iterable[Link], host: Host, unmanaged: frozenset[int], withheld: list[Withheld]
) -> Mapping[int, int] | None:
    """Return the mark of each link whose connections are marked, by ifindex; None if no table is wanted."""
    config, rejection = host.config, host.rejections.get(MarkTable())
    if config.forwarded_replies is ForwardedRepliesMode.OFF:
        return None
    if rejection is not None and rejection.cause is not Cause.CONFLICT:
        withheld.append(Withheld(f"ForwardedReplies: {rejection.reason}"))
        return None
    marked = [link for link in links if host.has_table(link)]
    kept = [each for each in unmanaged if _may_have_mark(host.links[each], host)]
    marks = assign_marks([link.ifindex for link in marked], config, host.actual, kept)
    for link in marked:
        if link.ifindex not in marks:
            withheld.append(Withheld(f"{link.name}: no mark is left for its connections; set another MarkMask="))
        elif host.actual.reverse_path.get(link.ifindex) is ReversePath.DROPS:
            what = f"{link.name}: rp_filter=1 drops packets that this host forwards from there to containers"
            withheld.append(Withheld(f"{what}; set net.ipv4.conf.all.src_valid_mark=1"))
    return marks


def _may_have_mark(link: Link, host: Host) -> bool:
    """Return False for a link for which netagent would refuse a mark, and with it the whole table."""
    rejection = host.rejections.get(LinkSettings(link.ifindex, None))
    refused = rejection is not None and rejection.cause is Cause.POLICY
    return not refused and not is_excluded(host.config.exclude, link.name, link.mac)


def _unnamed(config: Config, actual: Actual, matches: Matches) -> set[int]:
    """Return the links that the metadata does not name. While the metadata names a MAC that no link has, any of them
    may have it.

    Excluded links lose the owned objects, and so do ports of other links, whose packets belong to their master.
    """
    named = {link.ifindex for link in matches.values()}
    rest = (link for link in actual.links if link.ifindex not in named)
    return {link.ifindex for link in rest if not is_excluded(config.exclude, link.name, link.mac)}


def _departed_notice(mac: str) -> str:
    return (
        f"{mac}: its link has left this host, to another network namespace or by a detach; it is left alone. "
        f'If that is intended, set [Network] Exclude="{mac}"'
    )


def _link_rejection(link: Link, rejections: Rejections) -> Rejection | None:
    """Return the reason why a link cannot be configured: netagent refuses it, or it cannot be set up."""
    rejection = rejections.get(LinkSettings(link.ifindex, None))
    if rejection is None or (link.up and rejection.cause is not Cause.POLICY):
        return None
    return rejection


def _rejected_links(matches: Matches, host: Host) -> Iterator[Withheld]:
    for link in matches.values():
        rejection = _link_rejection(link, host.rejections)
        if rejection is not None and rejection.cause is not Cause.CONFLICT:
            yield Withheld(f"{link.name}: {rejection.reason}")


def _sources(
    usable: Iterable[UsableInterface], matches: Matches, host: Host, unmanaged: frozenset[int]
) -> IntervalIndex:
    """Return the possible sources of this host's packets, including those of unready and unmanaged links."""
    config, actual = host.config, host.actual
    if config.rules is not RulesMode.AGGREGATE:
        return IntervalIndex(())
    found = [Interval.of_address(address, link) for address, links in host.holders.items() for link in links]
    found += [Interval.of_network(network, ifindex) for network, ifindex in actual.local.items()]
    found += [Interval.of_network(network) for network in config.exclude_addresses]
    found += [
        Interval.of_network(route.destination, route.ifindex)
        for route in actual.routes
        if route.table == TABLE_LOCAL and not (host.instance.complete and route.ifindex not in unmanaged)
    ]
    for interface in host.instance.interfaces:
        link = matches.get(interface.mac)
        ifindex = link.ifindex if link is not None else NO_LINK
        found += [Interval.of_address(each.ip, ifindex) for each in interface.addresses]
        found += [Interval.of_network(network, ifindex) for network in interface.ranges]
    return IntervalIndex(found)


# Routes and rules


def _link_goal(
    usable: UsableInterface,
    host: Host,
    sources: IntervalIndex,
    marks: Mapping[int, int],
    notices: list[str],
    withheld: list[Withheld],
) -> LinkGoal:
    interface, link = usable.interface, usable.link
    routes: list[Route] = []
    rules: tuple[Rule, ...] = ()
    if host.prefixes is Prefixes.LOCAL:
        there = {single(address) for _, address in host.actual.addresses} | host.actual.local.keys()
        routes += [Route(TABLE_LOCAL, link.ifindex, each, None) for each in usable.ranges if each not in there]
    if host.has_table(link):
        table, found = _table_with_rules(usable, host, sources)
        if link.ifindex in marks:
            versions = sorted({address.version for address in interface.addresses})
            strict = host.actual.reverse_path.get(link.ifindex, ReversePath.LOOSE) is not ReversePath.LOOSE
            found += mark_rules(link.ifindex, marks[link.ifindex], versions, host.config, strict=strict)
        rules = tuple(rule for rule in found if host.rejection(rule) is None)
        routes += table
        notices += _unreachable(interface, link, table, host)
    withheld += _reported((*routes, *rules), link, host, notices)
    withheld += _ignored_routers(interface, link, host)
    settings = _settings(interface, link, host, notices, withheld)
    return LinkGoal(settings, tuple(usable.addresses), tuple(routes), rules)


def _table_with_rules(
    usable: UsableInterface, host: Host, sources: IntervalIndex
) -> tuple[list[Route], tuple[Rule, ...]]:
    """Return the routes of the link's table, and the rules that lead to it; those of its second table, too."""
    interface, link, config = usable.interface, usable.link, host.config
    number, second = host.tables(link)
    table = _table(interface, link, number, host)
    on_link = [route.destination for route in table if route.gateway is None]
    if interface.anchor is None:
        return table, source_rules(usable.sources, usable.ranges, on_link, link.ifindex, number, config, sources)
    subnet, gateway = interface.anchor
    anchored = [each for each in usable.sources if each in subnet]
    others = [each for each in usable.sources if each not in subnet]
    rules = source_rules(others, usable.ranges, on_link, link.ifindex, number, config, sources)
    if anchored:
        by_anchor = replace(
            interface,
            addresses=tuple(each for each in interface.addresses if each.ip in subnet),
            subnets=tuple(each for each in interface.subnets if each.version == subnet.version),
            gateways=(gateway, *interface.gateways),
        )
        table += _table(by_anchor, link, second, host)
        rules += source_rules(anchored, (), [subnet], link.ifindex, second, config, sources)
    return table, rules


def _settings(
    interface: Interface, link: Link, host: Host, notices: list[str], withheld: list[Withheld]
) -> LinkSettings:
    mtu = interface.mtu
    if mtu is not None and mtu < MIN_MTU:
        notices.append(f"{link.name}: an MTU of {mtu} would disable IPv6 on the link; the MTU stays {link.mtu}")
        mtu = None
    rejection = host.rejections.get(LinkSettings(link.ifindex, mtu)) if mtu is not None else None
    if rejection is not None and link.mtu != mtu:
        withheld.append(Withheld(f"MTU {mtu} of {link.name}: {rejection.reason}"))
        mtu = None
    return LinkSettings(link.ifindex, mtu)


def _table(interface: Interface, link: Link, table: int, host: Host) -> list[Route]:
    """Return the routes of a table of the link. If several have one destination, the first one is used."""
    siblings = [each for each in host.instance.interfaces if each.mac != interface.mac]
    routes: dict[IPNetwork, Route] = {}
    off = link.ipv6.disabled  # the kernel then accepts no IPv6 route for the link
    for subnet in (each for each in interface.subnets if not (off and each.version == 6)):
        route = Route(table, link.ifindex, subnet, None)
        if not interface.routed and host.rejection(route) is None:
            routes[subnet] = route
    far = [each for each in interface.subnets if interface.routed and not is_single(each)]
    own = set(interface.subnets)
    others = [subnet for sibling in siblings for subnet in sibling.subnets if subnet not in own]
    far += [subnet for subnet in others if not within(subnet, host.config.exclude_addresses)]  # of pods (EKS)
    versions = {address.version for address in interface.addresses} - ({6} if off else set())
    gateway_routes = [each for each in _further_routes(interface, host) if each[0].version in versions]
    for version in sorted(versions):
        gateway = _gateway(interface, link, table, version, host)
        if gateway is not None:
            gateway_routes += [(subnet, gateway) for subnet in far if subnet.version == version]
            known = [*routes, *(destination for destination, _ in gateway_routes if destination.prefixlen)]
            gateway_routes += [
                each for each in _leased_routes(link, version, gateway, host) if not within(each[0], known)
            ]
            gateway_routes.append((EVERYTHING[version], gateway))
    _add_routes(routes, table, link, gateway_routes, host)
    return list(routes.values())


def _add_routes(
    routes: dict[IPNetwork, Route],
    table: int,
    link: Link,
    gateway_routes: Iterable[tuple[IPNetwork, IPAddress]],
    host: Host,
) -> None:
    """Add routes through gateways, each after an on-link route to its gateway if the table has none."""
    on_link = [route.destination for route in routes.values()]
    usable: dict[IPAddress, bool] = {}
    for destination, gateway in gateway_routes:
        route = Route(table, link.ifindex, destination, gateway)
        to_itself = is_single(destination) and destination.network_address == gateway
        if destination in routes or to_itself or host.rejection(route) is not None:
            continue
        if gateway not in usable:
            to_gateway = Route(table, link.ifindex, single(gateway), None)
            link_local = gateway.version == 6 and gateway.is_link_local
            near = link_local or within(to_gateway.destination, on_link)
            usable[gateway] = near or host.rejection(to_gateway) is None
            if usable[gateway] and not near:
                routes[to_gateway.destination] = to_gateway
        if usable[gateway]:
            routes.setdefault(destination, route)


def _leased_routes(link: Link, version: int, gateway: IPAddress, host: Host) -> Iterator[tuple[IPNetwork, IPAddress]]:
    """Yield the routes in main that DHCP or a router gave to another link, with this link's gateway.

    Those in main would also apply to this link's sources, and send their packets out through the other link (Azure's
    load balancers probe every interface from WIRE_SERVER). An operator's routes in main are left out.
    """
    own = host.actual.leased.get(link.ifindex, {})
    of_others = {each for other, found in host.actual.leased.items() if other != link.ifindex for each in found}
    wanted = {each for each in of_others if not any(contains(each, network) for network in host.actual.static)}
    if host.instance.provider == "azure":
        wanted.add(WIRE_SERVER)
    for destination in sorted((each for each in wanted if each.version == version), key=str):
        yield destination, own.get(destination, gateway)


def _further_routes(interface: Interface, host: Host) -> list[tuple[IPNetwork, IPAddress]]:
    """Return the metadata's routes, except those whose gateway is this host itself."""
    if not interface.routes:
        return []
    host_addresses = {address for _, address in host.actual.addresses}
    host_addresses |= {each.ip for other in host.instance.interfaces for each in other.addresses}
    return [each for each in interface.routes if each[1] not in host_addresses]


def _gateway(interface: Interface, link: Link, table: int, version: int, host: Host) -> IPAddress | None:
    """Return the gateway from the metadata or the cloud's convention; else the one from DHCP or a router on this link.

    The present gateway stays if the new one does not resolve, or if the kernel has purged the routes of router
    advertisements (net.ipv6.conf.*.forwarding).
    """
    known = [*interface.gateways, *host.actual.gateways.get(link.ifindex, ())]
    known = [each for each in known if each.version == version]
    usable = [each for each in known if not _is_refused(each, link, host)]
    if not usable and (known or version == 6):
        place = (table, EVERYTHING[version])
        other = [route.gateway for route in host.actual.routes if (route.table, route.destination) == place]
        if version == 6 and not known:
            other += host.actual.routers.get(link.ifindex, ())
        usable = [each for each in other if each is not None and not _is_refused(each, link, host)]
    return usable[0] if usable else None


def _is_refused(gateway: IPAddress, link: Link, host: Host) -> bool:
    """Return True if the gateway does not resolve, or netagent does not accept it."""
    return GatewayUse(link.ifindex, gateway) in host.rejections


def _unreachable(interface: Interface, link: Link, table: Iterable[Route], host: Host) -> Iterator[str]:
    """Yield a notice for each family without a gateway."""
    has = {route.destination.version for route in table if route.destination.prefixlen == 0}
    off = {6} if link.ipv6.disabled else set()  # already reported
    for version in sorted({address.version for address in interface.addresses} - has - off):
        reason, hint = "no gateway known", ""
        if version == 6:
            reason = "no IPv6 router advertisement received"
            hint = f"; if this stays, check net.ipv6.conf.{link.name}.accept_ra"
        yield f"{link.name}: {reason}; its IPv{version} addresses are reachable only from their own subnet{hint}"


def _ignored_routers(interface: Interface, link: Link, host: Host) -> Iterator[Withheld]:
    """Yield a report if the kernel ignores router advertisements because it forwards (ip-sysctl.rst, accept_ra)."""
    needs = any(address.version == 6 for address in interface.addresses) and not link.ipv6.disabled
    heard = any(each.version == 6 for each in host.actual.gateways.get(link.ifindex, ()))
    if needs and not heard and link.ipv6.forwarding and link.ipv6.accept_ra == 1:
        sysctl = f"net.ipv6.conf.{link.name}"
        text = f"{sysctl}.forwarding=1 with accept_ra=1: the kernel ignores IPv6 routers; set {sysctl}.accept_ra=2"
        yield Withheld(f"{link.name}: {text}")


def _router_instead(use: GatewayUse, rejection: Rejection, wanted: Iterable[Object]) -> IPAddress | None:
    """Return the gateway from a router advertisement that the link uses instead of one that netagent refuses."""
    if use.address.version == 4 or rejection.cause is not Cause.POLICY:
        return None
    routes = (each for each in wanted if isinstance(each, Route))
    return next((route.gateway for route in routes if route.destination == EVERYTHING[6]), None)


def _reported(wanted: Iterable[Object], link: Link, host: Host, notices: list[str]) -> Iterator[Withheld]:
    """Yield a report for each rejection of this link's routes, rules and gateways that does not follow from another
    one.

    A refused gateway is only a notice if the link uses another one instead.
    """
    kept, own_tables = set(wanted), host.tables(link)
    for rejected, rejection in host.rejections.items():
        if rejection.dependent or rejection.cause is Cause.CONFLICT or rejected in kept:
            continue
        waiting = rejection.cause is Cause.WAITING
        if isinstance(rejected, Route) and rejected.table in own_tables:
            via = f" via {rejected.gateway}" if rejected.gateway is not None else ""
            yield Withheld(f"route {rejected.destination}{via} of {link.name}: {rejection.reason}", waiting)
        elif isinstance(rejected, Rule) and rejected.table in own_tables:
            selector = rejected.selector if rejected.selector is not None else "all"
            selector = f"{selector} fwmark {rejected.mark:#x}/{rejected.mask:#x}" if rejected.mark else selector
            yield Withheld(f"rule {rejected.priority} from {selector} of {link.name}: {rejection.reason}", waiting)
        elif isinstance(rejected, GatewayUse) and rejected.ifindex == link.ifindex:
            instead = _router_instead(rejected, rejection, kept)
            if instead is None:
                yield Withheld(f"gateway {rejected.address} of {link.name}: {rejection.reason}")
            else:
                notices.append(f"{link.name}: gateway {instead} is used, not {rejected.address}: {rejection.reason}")
