"""Whether the gateways of changed links still resolve: what a change must not cost.

A datagram is sent towards a gateway, by its link, and then the neighbour entry is read: clouds' gateways answer ARP and
neighbour discovery, seldom ping. The states are those of linux/neighbour.h; see arp(7). A socket may be bound to a
device without privilege since Linux 5.7 (SO_BINDTODEVICE, socket(7)).

The units' IPAddressDeny= drops a datagram to a gateway before the kernel asks for its neighbour entry. One to a
metadata server's address passes, has the same next hop, and dies there (tests/boot, test_a_gateway_is_asked_for_by_…).

The rule: a gateway that resolved before a change and is still in use after it must resolve then, too; and where a
link's gateway is replaced by another while the old one resolved, or gets another beside it for the default route of
our table, the new one must. A gateway that did not resolve before never holds a change up: there was nothing to lose,
and a change that the cloud wants is never impossible for ever, as an old gateway that is really gone stops to resolve.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from cloud_network.fetcher.metadata.model import IPAddress
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.objects import Actual, Address, Desired, Route, Rule
from cloud_network.fetcher.network.plan import Plan

_LET_OUT = {4: "169.254.169.254", 6: "fd00:ec2::254"}  # IPAddressAllow= of the unit has both on every cloud
_DISCARD = 9  # RFC 863: nobody answers, and nobody has to
_AGAIN = 0.5  # seconds until the next datagram: the kernel itself gives up on a neighbour after three
_SOONEST, _LATEST = 0.0003, 0.005  # seconds between two looks at the neighbours: a gateway answers soon or not at all
_BEFORE = 0.5  # seconds that a gateway is given to show that it resolves before the change …
_AFTER = 6.0  # … and to do so again after it: a new MTU resets some network cards


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway on a link."""

    ifindex: int
    address: IPAddress

    @property
    def place(self) -> tuple[int, int]:
        """Its link and family: what it is the gateway of."""
        return self.ifindex, self.address.version


class Gateways:
    """The gateways of the links that a plan changes. Made before the change: that is when the first look is taken."""

    def __init__(self, plan: Plan, wanted: Desired, actual: Actual, table_base: int) -> None:
        links = _links(plan, wanted, table_base)
        learned = {Gateway(index, each) for index in links for each in actual.gateways.get(index, ())}
        used = _of(actual.routes, links) | learned
        parts = [each for each in wanted.links if each.settings.ifindex in links]
        routes = [route for each in parts for route in each.routes]
        self._wanted = _of(routes, links) | learned
        self._new = _of((route for route in routes if route.destination.prefixlen == 0), links) - used
        self._names = {link.ifindex: link.name for link in actual.links}
        self._addresses = [address for each in parts for address in each.addresses]
        there = [each for each in self._addresses if (each.ifindex, each.address) in actual.addresses]
        self._before = resolving(used, self._names, there, _BEFORE)

    def cut_off(self, seconds: float) -> list[Gateway]:
        """Those that the change may not have cost, and has; asked after it. KernelError as of `kernel.read`."""
        had = {gateway.place for gateway in self._before}
        kept = self._wanted & self._before
        served = {gateway.place for gateway in kept}
        replaced = {each for each in self._wanted if each.place not in served} | self._new
        needed = kept | {each for each in replaced if each.place in had}
        return sorted(needed - resolving(needed, self._names, self._addresses, min(_AFTER, seconds)), key=str)


def resolving(
    gateways: Iterable[Gateway], names: Mapping[int, str], addresses: Iterable[Address], seconds: float
) -> frozenset[Gateway]:
    """Those that resolve, or do so within that time. One towards which nothing can be sent does not.

    `names` are the links'. `addresses` are those that the cloud gives us: it drops what comes from another.
    """
    sources = defaultdict[tuple[int, int], list[Address]](list)
    for each in addresses:
        sources[each.ifindex, each.address.version].append(each)
    waiting = {each for each in gateways if each.ifindex in names}
    found, end, again, pause = set[Gateway](), time.monotonic() + seconds, 0.0, _SOONEST
    while waiting:
        at = time.monotonic()
        if at >= again:
            again = at + _AGAIN
            sent = {each for each in waiting if _send(each, names[each.ifindex], _source(each, sources[each.place]))}
        resolved = kernel.resolved([(each.ifindex, each.address) for each in sent & waiting])
        found |= {each for each in sent if (each.ifindex, each.address) in resolved}
        waiting -= found
        # What cannot be sent now cannot be sent soon: only after a change is there a reason to wait for it.
        if at >= end or (not sent & waiting and seconds <= _BEFORE):
            break
        if waiting:
            time.sleep(pause)
            pause = min(_LATEST, 2 * pause)
    return frozenset(found)


def _of(routes: Iterable[Route], links: set[int]) -> set[Gateway]:
    return {Gateway(route.ifindex, route.gateway) for route in routes if route.gateway and route.ifindex in links}


def _links(plan: Plan, wanted: Desired, table_base: int) -> set[int]:
    """The links that a plan has to do with; the rule without a source is everybody's."""
    found = set[int]()
    for change in plan:
        if not isinstance(change.what, Rule):
            found.add(change.what.ifindex)
        elif change.what.selector is None:
            found |= {settings.ifindex for settings in wanted.settings}
        else:
            found.add(change.what.table - table_base)
    return found


def _source(gateway: Gateway, own: Sequence[Address]) -> IPAddress | None:
    """An address of the link, of the gateway's subnet where there is one: rules that know a source lead by its link."""
    if not own:
        return None
    near = (each for each in own if gateway.address in ip_network((each.address, each.prefix), strict=False))
    return next(near, own[0]).address


def _send(gateway: Gateway, link: str, source: IPAddress | None) -> bool:
    """Whether the kernel took a datagram towards it. It goes no further than to the next hop."""
    if source is None and not gateway.address.is_link_local:
        return False
    six = gateway.address.version == 6
    target = (str(gateway.address), _DISCARD, 0, gateway.ifindex if gateway.address.is_link_local else 0)
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        try:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
            if six:
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            else:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            if source is not None and not gateway.address.is_link_local:
                with contextlib.suppress(OSError):  # gone, or still tentative: the kernel chooses
                    sender.bind((str(source), 0))
            try:
                sender.sendto(b"", target if six else target[:2])
            except PermissionError:
                if sender.getsockname()[0] != str(source):
                    sender.bind((str(source), 0))  # or else it would have an address of another link
                sender.sendto(b"", (_LET_OUT[gateway.address.version], _DISCARD))
        except OSError:
            return False
    return True
