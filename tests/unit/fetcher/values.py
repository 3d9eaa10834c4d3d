"""Instances, hosts and strategies for the tests of pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_interface, ip_network

from cloud_network.fetcher.config import Config, ForwardedRepliesMode, Prefixes, RulesMode
from cloud_network.fetcher.metadata.model import Instance, Interface, IPAddress
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.desired import desired
from cloud_network.fetcher.network.matching import match_links, with_leases
from cloud_network.fetcher.network.objects import (
    Actual,
    Address,
    Desired,
    KernelAddress,
    Link,
    Rejections,
    Route,
    Rule,
)
from cloud_network.fetcher.network.plan import Plan, added_object, is_removal, plan
from cloud_network.netagent.operations import (
    AddressAdd,
    AddressRemove,
    LinkMark,
    LinkMtu,
    LinkUp,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from cloud_network.netagent.operations import (
    ForwardedReplies as TableOfMarks,
)
from hypothesis import strategies as st

Addresses = dict[tuple[int, IPAddress], KernelAddress]
EMPTY_KERNEL = Actual((), {}, frozenset(), frozenset(), {})
BASE = Config().route_table_base
FIRST = Config().rule_priority


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def interface(number: int, *addresses: str, subnets: Iterable[str] = (), **more: object) -> Interface:
    """Return an interface. Number 1 has MAC …:01 and, by default, 10.0.1.0/24 with the router at .1, as on AWS."""
    networks = tuple(ip_network(subnet) for subnet in subnets or [f"10.0.{number}.0/24"])
    placed = []
    for text in addresses or [f"10.0.{number}.10"]:
        address = ip_address(text)
        home = next(net for net in networks if net.version == address.version and address in net)
        placed.append(ip_interface(f"{address}/{home.prefixlen}"))
    gateways = tuple(net.network_address + 1 for net in networks if net.version == 4)
    whole = Interface(mac(number), tuple(placed), networks, gateways, device_number=number - 1)
    return replace(whole, **more)  # type: ignore[arg-type]


def instance(*interfaces: Interface, **more: object) -> Instance:
    return replace(Instance("aws", interfaces), **more)  # type: ignore[arg-type]


def link(number: int, name: str = "", **more: object) -> Link:
    """Return the link of interface `number` on the host: ifindex number + 1, up, as a cloud attaches it."""
    whole = Link(number + 1, name or f"eth{number - 1}", mac(number), True, 1500, None)
    return replace(whole, **more)  # type: ignore[arg-type]


def host(*links: Link, **more: object) -> Actual:
    return replace(EMPTY_KERNEL, links=links, **more)  # type: ignore[arg-type]


def kernel_address(ifindex: int, text: str, *, owned: bool = False, connected: bool = True) -> Addresses:
    """Return an address as in `Actual.addresses`."""
    found = ip_interface(text)
    value = Address(ifindex, found.ip, found.network.prefixlen, connected)
    return {(ifindex, found.ip): KernelAddress(value, owned)}


def goal_of(cloud: Instance, config: Config, here: Actual, rejections: Rejections | None = None) -> Desired:
    """Return the goal of a pass."""
    matches = match_links(cloud, config, here.links)
    return desired(with_leases(cloud, matches, here), matches, config, here, rejections)


def wanted(cloud: Instance, here: Actual, rejections: Rejections | None = None, **config: object) -> Desired:
    return goal_of(cloud, Config(**config), here, rejections)  # type: ignore[arg-type]


def plan_of(goal: Desired, here: Actual) -> Plan:
    return plan(goal, here, may_remove=True)


def after_changes(changes: Plan, before: Actual) -> Actual:
    """Return the state after the changes, made in order. A change that the kernel would refuse is an error."""
    links = {each.ifindex: each for each in before.links}
    addresses = [*before.addresses.values(), *before.further]
    routes, rules = set(before.routes), set(before.rules)
    marks = before.marks
    for op in changes:
        made = added_object(op)
        if isinstance(op, LinkUp):
            assert not links[op.link].up
            links[op.link] = replace(links[op.link], up=True)
        elif isinstance(op, LinkMtu):
            links[op.link] = replace(links[op.link], mtu=op.mtu)
        elif isinstance(op, AddressAdd):
            assert isinstance(made, Address)
            there = [each.address.prefix for each in addresses if each.place == (op.link, op.interface.ip)]
            assert made.prefix not in there, f"{op} added twice"
            assert links[op.link].up
            alike = (each.address for each in addresses if each.address.prefix == made.prefix < 32)
            second = made.address.version == 4 and any(each.subnet == made.subnet for each in alike)
            addresses.append(KernelAddress(made, owned=True, secondary=second))
        elif isinstance(op, AddressRemove):
            place, length = (op.link, op.interface.ip), op.interface.network.prefixlen
            [gone] = [each for each in addresses if each.place == place and each.address.prefix == length]
            assert gone.owned, f"{op}: the object is not owned"
            taken = [each for each in addresses if each.secondary and each.address.subnet == gone.address.subnet]
            assert gone.secondary or not taken, f"{op}: the kernel would remove {taken} with it"
            addresses.remove(gone)
        elif isinstance(op, RouteReplace):
            assert isinstance(made, Route)
            assert links[op.link].up
            assert made.gateway is None or _on_link(made, routes), f"{op}: the gateway cannot be reached yet"
            routes -= {each for each in routes if (each.table, each.destination) == (op.table, op.destination)}
            routes.add(made)
        elif isinstance(op, RouteRemove):
            routes.remove(Route(op.table, op.link, op.destination, op.gateway))
        elif isinstance(op, TableOfMarks):
            marks = op.marks
        else:
            rule = rule_of(op)
            assert (rule in rules) == is_removal(op)
            assert is_removal(op) or not rule.mark or LinkMark(rule.table - BASE, rule.mark & 0x3F) in (marks or ())
            rules ^= {rule}
    by_place, further = kernel.by_place(addresses)
    return replace(
        before,
        links=tuple(links.values()),
        addresses=by_place,
        further=further,
        routes=frozenset(routes),
        rules=frozenset(rules),
        marks=marks,
    )


def rule_of(op: RuleAdd | RuleRemove) -> Rule:
    """Return the rule that an operation adds or removes."""
    selector = op.selector if op.selector.prefixlen else None
    return Rule(op.priority, op.selector.version, selector, op.table, op.suppress, op.to, op.iif_lo, op.mark, op.mask)


def _on_link(route: Route, routes: set[Route]) -> bool:
    gateway = route.gateway
    assert gateway is not None
    if gateway.version == 6 and gateway.is_link_local:
        return True
    near = (each for each in routes if each.gateway is None and each.ifindex == route.ifindex)
    return any(each.destination.version == gateway.version and gateway in each.destination for each in near)


# — strategies

configs = st.builds(
    Config,
    supplementary=st.sampled_from([(), ("eth0",), ("eth1", "eth0")]),
    exclude=st.sampled_from([(), (), ("eth1",)]),
    exclude_addresses=st.sampled_from([(), (IPv4Network("10.0.1.12/30"),)]),
    prefixes=st.sampled_from([None, *Prefixes]),
    rules=st.sampled_from(RulesMode),
    forwarded_replies=st.sampled_from(ForwardedRepliesMode),
)


@st.composite
def clouds(draw: st.DrawFn, shared: bool = True) -> Instance:
    """Generate up to four interfaces in up to four subnets; several may share one, with or without IPv6 and ranges."""
    free = {number: iter(range(10, 100)) for number in range(1, 5)}
    interfaces = []
    for number in range(1, 1 + draw(st.integers(1, 4))):
        home = draw(st.integers(1, 4)) if shared else number
        addresses = [f"10.0.{home}.{next(free[home])}" for _ in range(draw(st.integers(1, 4)))]
        subnets = [f"10.0.{home}.0/24"]
        if draw(st.booleans()):
            subnets.append(f"fd00:0:0:{home}::/64")
            addresses.append(f"fd00:0:0:{home}::{number:x}")
        anchor = None
        if number == 1 and draw(st.booleans()):  # DigitalOcean: only on the public interface
            anchor = ip_network("10.17.0.0/16"), ip_address("10.17.0.1")
            subnets.append("10.17.0.0/16")
            addresses.append("10.17.0.5")
        ranges = [IPv4Network(f"10.0.{home}.{128 + 16 * number}/28")] if draw(st.booleans()) else []
        mtu = draw(st.sampled_from([None, 9001]))
        found = interface(number, *addresses, subnets=subnets, ranges=tuple(ranges), mtu=mtu)
        interfaces.append(replace(found, gateways=found.gateways[:1], anchor=anchor))
    return instance(*draw(st.permutations(interfaces)))


@st.composite
def hosts(draw: st.DrawFn) -> Actual:
    """Generate a host with most of the interfaces, and with objects of DHCP, of an operator and of cloud-network."""
    numbers = draw(st.sets(st.integers(1, 4), min_size=1))
    links = [link(number, up=draw(st.booleans()), mtu=draw(st.sampled_from([1500, 9001]))) for number in numbers]
    links.append(Link(40, "docker0", "02:42:00:00:00:01", True, 1500, "bridge"))
    addresses: Addresses = dict(kernel_address(40, "172.17.0.1/16"))
    routes, rules = set[Route](), set[Rule]()
    for each in links[:-1]:
        number = each.ifindex - 1
        for last in draw(st.sets(st.integers(10, 14))):
            addresses |= kernel_address(each.ifindex, f"10.0.{number}.{last}/24", owned=draw(st.booleans()))
        table = BASE + each.ifindex
        if draw(st.booleans()):
            routes.add(Route(table, each.ifindex, ip_network(f"10.0.{draw(st.integers(1, 9))}.0/24"), None))
        if draw(st.booleans()):
            routes.add(Route(table, each.ifindex, ip_network("0.0.0.0/0"), IPv4Address(f"10.0.{number}.7")))
        if draw(st.booleans()):
            rules.add(Rule(FIRST, 4, ip_network(f"10.0.{number}.{draw(st.integers(10, 30))}/32"), table, suppress=True))
    gateways: dict[int, tuple[IPAddress, ...]] = {
        each.ifindex: (ip_address("fe80::1"),) for each in links[:-1] if draw(st.booleans())
    }
    marks = None
    if draw(st.booleans()):
        marked = [each.ifindex for each in links[:-1] if draw(st.booleans())]
        marks = tuple(LinkMark(each, at) for at, each in enumerate(marked, draw(st.integers(1, 9))))
        rules |= {Rule(FIRST, 4, None, BASE + each.link, True, mark=each.mark, mask=0x7F) for each in marks}
    return Actual(tuple(links), addresses, frozenset(routes), frozenset(rules), gateways, marks=marks)
