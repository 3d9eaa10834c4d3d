"""The addresses and ranges that each link can have, and their form. Pure; the first half of `desired`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cloud_network.fetcher.config import Config, Prefixes
from cloud_network.fetcher.metadata.model import Instance, Interface, IPAddress, IPInterface, IPNetwork
from cloud_network.fetcher.network.objects import (
    Actual,
    Address,
    Cause,
    KernelAddress,
    Link,
    Rejection,
    Rejections,
    Route,
    Rule,
    Withheld,
)
from cloud_network.fetcher.network.rules import Interval, IntervalIndex
from cloud_network.netagent.claims import contains, is_single, single, tables, within
from cloud_network.netagent.protocol import TABLE_LOCAL

_DEFAULT_PREFIXES = {"gcp": Prefixes.LOCAL}  # as Google's agent does; elsewhere as amazon-ec2-net-utils does

MIN_MTU = 1280
"""Smallest MTU of a link with IPv6: RFC 8200, section 5."""


@dataclass(frozen=True, slots=True)
class Host:
    """The arguments of `desired`, indexed."""

    instance: Instance
    config: Config
    actual: Actual
    rejections: Rejections
    links: Mapping[int, Link]
    holders: Mapping[IPAddress, tuple[int, ...]]  # the links that have an address and keep it
    networks: IntervalIndex  # of addresses that cloud-network does not manage, without a /32 or /128 on virtual links
    with_length: Mapping[
        Interval, frozenset[IPAddress]
    ]  # by network with its link, the addresses that keep this length

    @property
    def prefixes(self) -> Prefixes:
        """Prefixes=, or the cloud's default."""
        return self.config.prefixes or _DEFAULT_PREFIXES.get(self.instance.provider, Prefixes.ROUTE)

    def table(self, link: Link) -> int:
        """Return the number of the link's table."""
        return self.tables(link)[0]

    def tables(self, link: Link) -> tuple[int, int]:
        """Return the number of the link's table, and of the one for a subnet that has a gateway of its own."""
        return tables(link.ifindex, self.config.route_table_base)

    def has_table(self, link: Link) -> bool:
        """Return True if the link has a table of its own: the host has several gateways, or Supplementary= names it."""
        several = len(self.instance.interfaces) > 1 or any(each.anchor for each in self.instance.interfaces)
        return several or link.name in self.config.supplementary

    def has(self, link: Link, address: IPAddress) -> bool:
        """Return True if the link has the address."""
        return (link.ifindex, address) in self.actual.addresses

    def entries(self, link: Link, address: IPAddress) -> list[KernelAddress]:
        """Return the address as the link has it; see Actual.entries."""
        return self.actual.entries((link.ifindex, address))

    def rejection(self, wanted: Route | Rule) -> Rejection | None:
        """Return the reason why a route or rule cannot be made. An existing object stays."""
        if wanted in self.actual.routes or wanted in self.actual.rules:
            return None
        return self.rejections.get(wanted)

    def name(self, ifindex: int) -> str:
        """Return the name of a link for messages."""
        return self.links[ifindex].name if ifindex in self.links else f"link {ifindex}"


@dataclass(slots=True)
class UsableInterface:
    """The addresses and ranges of one interface that its link can have."""

    interface: Interface
    link: Link
    addresses: list[Address] = field(default_factory=list)
    sources: list[IPAddress] = field(default_factory=list)  # addresses that get rules
    ranges: list[IPNetwork] = field(default_factory=list)


def index_host(
    instance: Instance, config: Config, actual: Actual, rejections: Rejections, unmanaged: frozenset[int]
) -> Host:
    """Return the arguments of `desired`, indexed."""
    holders = defaultdict[IPAddress, tuple[int, ...]](tuple)
    for (ifindex, address), kernel in actual.addresses.items():
        if not (kernel.owned and instance.complete and ifindex not in unmanaged):  # those are removed or wanted
            holders[address] += (ifindex,)
    links = {link.ifindex: link for link in actual.links}
    virtual = {link.ifindex for link in actual.links if not link.may_be_of_cloud(config.allow_kinds)}
    networks = IntervalIndex(
        Interval.around(address, kernel.address.prefix, ifindex)
        for (ifindex, address), kernel in actual.addresses.items()
        if (not kernel.owned or ifindex in unmanaged)
        and not (ifindex in virtual and kernel.address.prefix == address.max_prefixlen)
    )
    with_length = defaultdict[Interval, frozenset[IPAddress]](frozenset)
    for (ifindex, address), kernel in actual.addresses.items():
        if not kernel.owned or not instance.may_remove:
            with_length[Interval.around(address, kernel.address.prefix, ifindex)] |= {address}
    return Host(instance, config, actual, rejections, links, holders, networks, with_length)


def usable_interfaces(
    pairs: Iterable[tuple[Interface, Link]], host: Host, notices: list[str], withheld: list[Withheld]
) -> list[UsableInterface]:
    """Return the addresses and ranges of each link. If two interfaces have the same object, the first one gets it."""
    found = []
    taken, given, networks = set[IPAddress](), set[IPNetwork](), list[Interval]()
    for interface, link in pairs:
        usable = UsableInterface(interface, link)
        _take_addresses(usable, taken, networks, host, notices, withheld)
        if host.prefixes is Prefixes.LOCAL or (host.prefixes is Prefixes.ROUTE and host.has_table(link)):
            _take_ranges(usable, given, host, withheld)
        taken.update(usable.sources)
        given.update(usable.ranges)
        networks += [Interval.around(each.address, each.prefix, link.ifindex) for each in usable.addresses]
        found.append(usable)
    return found


def _take_addresses(
    usable: UsableInterface,
    taken: set[IPAddress],
    networks: Sequence[Interval],
    host: Host,
    notices: list[str],
    withheld: list[Withheld],
) -> None:
    """Choose the form of each address.

    The first IPv4 address of a subnet carries its prefix length, unless another link has a part of the subnet. The
    others are /32, so that they survive its removal.
    """
    link, excluded = usable.link, host.config.exclude_addresses
    carried, reported = set[tuple[int, int]](), False
    for whole in usable.interface.addresses:
        address = whole.ip
        if address in taken or (excluded and within(single(address), excluded)):
            continue
        if address.version == 6 and link.ipv6.disabled and not host.has(link, address):
            if not reported:
                withheld.append(Withheld(f"{link.name}: {_why_without_ipv6(link)}"))
            reported = True
            continue
        if not host.has(link, address) and (holder := _other_holder(link, address, host)) is not None:
            if holder.is_service_link:
                notices.append(f"{address} of {link.name} is on {holder.name}; its replies leave through {link.name}")
                usable.sources.append(address)
            else:
                key = f'[Network] ExcludeAddresses="{address}"'
                text = f"{address} of {link.name}: {holder.name} has {address}; remove it there, or set {key}"
                withheld.append(Withheld(text))
            continue
        subnet = int(whole.network.network_address), whole.network.prefixlen
        carries = address.version == 4 and not is_single(whole.network) and not usable.interface.routed
        carries = carries and subnet not in carried
        carries = carries and not _others_keep_its_length(whole, link, host)
        form = _form(whole, link, carries, networks, host)
        if isinstance(form, Rejection):
            if not form.dependent and form.cause is not Cause.CONFLICT:
                text = f"{address} of {link.name}: {form.reason}"
                withheld.append(Withheld(text, form.cause is Cause.WAITING))
        else:
            usable.addresses.append(form)
            usable.sources.append(address)
        if carries and not (isinstance(form, Rejection) and form.cause is Cause.CONFLICT):
            carried.add(subnet)  # if its length is refused, no other address gets it either


def _why_without_ipv6(link: Link) -> str:
    """Return the reason why a link cannot have IPv6 addresses, and the cure."""
    if not link.ipv6.absent:
        cure = f"set net.ipv6.conf.{link.name}.disable_ipv6=0"
        return f"IPv6 is disabled on this link; to use its IPv6 addresses, {cure}"
    if link.mtu < MIN_MTU:
        cure = f"ip link set {link.name} mtu 1500"
        return f"its MTU of {link.mtu} is too small for IPv6, which needs {MIN_MTU}; to use its IPv6 addresses: {cure}"
    return "IPv6 is disabled in the kernel; to use its IPv6 addresses, boot without ipv6.disable=1"


def _others_keep_its_length(whole: IPInterface, link: Link, host: Host) -> bool:
    """Return True if the link keeps a different address with the subnet's length.

    Another program gave it to the link (a DHCP lease), or it is owned and may not be removed now. The kernel would
    treat a second one as its secondary and remove both together.
    """
    others = host.with_length.get(Interval.of_network(whole.network, link.ifindex), frozenset()) - {whole.ip}
    return bool(others) and all(each.owned for each in host.entries(link, whole.ip))


def _form(
    whole: IPInterface, link: Link, carries: bool, networks: Sequence[Interval], host: Host
) -> Address | Rejection:
    """Return the address as the kernel must have it, or the reason why it cannot."""
    entries = host.entries(link, whole.ip)
    form = plain = Address(link.ifindex, whole.ip, whole.max_prefixlen, connected=False)
    connected = Address(link.ifindex, whole.ip, whole.network.prefixlen, connected=True)
    has_route = any(each.address == connected for each in entries)
    if carries and not _is_shared(link, whole.network, networks, host, has_route=has_route):
        form = connected
    there = any(not each.owned or each.address == form for each in entries)
    rejection = None if there else host.rejections.get(form)
    if rejection is None:
        return form
    if entries:  # an existing address keeps its form
        return entries[0].address
    if form == plain or rejection.cause is Cause.CONFLICT:
        return rejection
    return host.rejections.get(plain) or plain


def _is_shared(link: Link, network: IPNetwork, networks: Iterable[Interval], host: Host, *, has_route: bool) -> bool:
    """Return True if another link has or gets a part of the network: a connected route must not shadow it.

    An existing connected route stays when another program adds an address later.
    """
    span = Interval.of_network(network)
    foreign = () if has_route else host.networks.overlapping(span)
    near = (*foreign, *(each for each in networks if each.overlaps(span)))
    return any(each.link != link.ifindex for each in near)


def _other_holder(link: Link, address: IPAddress, host: Host) -> Link | None:
    """Return another link that has the address and keeps it."""
    found = (host.links[each] for each in host.holders.get(address, ()) if each != link.ifindex and each in host.links)
    return next(found, None)


def _take_ranges(usable: UsableInterface, given: set[IPNetwork], host: Host, withheld: list[Withheld]) -> None:
    for network in usable.interface.ranges:
        if network in given or within(network, host.config.exclude_addresses):
            continue
        reason = _range_obstacle(network, usable, host)
        if reason is None:
            usable.ranges.append(network)
        elif not reason.dependent and reason.cause is not Cause.CONFLICT:
            text = f"{network} of {usable.link.name}: {reason.reason}"
            withheld.append(Withheld(text, reason.cause is Cause.WAITING))


def _range_obstacle(network: IPNetwork, usable: UsableInterface, host: Host) -> Rejection | None:
    """Return the reason why a range cannot be configured. Checked on every pass: pods may start later."""
    link, actual = usable.link, host.actual
    inside = (each for each in host.holders if each.version == network.version and contains(network, single(each)))
    for address in inside:
        holder = _other_holder(link, address, host)
        if holder is not None:
            keys = f'[Network] Prefixes="ignore", or ExcludeAddresses="{network}" for this range alone'
            return Rejection(f"{holder.name} has {address}; if that is intended, set {keys}")
    if actual.local.get(network, link.ifindex) != link.ifindex:
        return Rejection(f"table local already has it for {host.name(actual.local[network])}")
    if host.prefixes is Prefixes.LOCAL:
        return host.rejection(Route(TABLE_LOCAL, link.ifindex, network, None))
    subnets = [subnet for subnet in usable.interface.subnets if not usable.interface.routed and subnet != network]
    if is_single(network) or not within(network, subnets):
        return Rejection('source rules need a range inside its subnet; set [Network] Prefixes="local"')
    return None
