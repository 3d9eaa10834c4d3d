"""Gateways, before and after a change: does each still resolve?

A datagram is sent towards a gateway by its link, and then its neighbour entry is read: gateways of clouds answer ARP
and neighbour discovery, seldom ping. A socket may be bound to a device without privilege since Linux 5.7
(SO_BINDTODEVICE, socket(7)). The units' IPAddressDeny= drops a datagram to a gateway before the kernel asks for its
neighbour entry. One to a metadata server's address passes, has the same next hop, and ends there.

A gateway that resolved before a change and is still in use after it must resolve then, too. A gateway that is about to
get its first route must resolve before that route is made; if its link has no address to ask from yet, right after it.
A gateway that was in use and did not resolve before the change does not block it: there is nothing to lose.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network

from cloud_network.fetcher.metadata.model import IPAddress
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.objects import Actual, Address, Desired, GatewayUse
from cloud_network.fetcher.network.plan import COMMON, Plan, link_of
from cloud_network.netagent.operations import RouteReplace

PROBE_SECONDS = 1.0
"""Time that a gateway has to resolve before it gets its first route."""
_ALLOWED_TARGET = {4: "169.254.169.254", 6: "fd00:ec2::254"}  # in IPAddressAllow= of the unit, on every cloud
_DISCARD = 9  # port, RFC 863
_RESEND = 0.5  # seconds; the kernel gives up on a neighbour after three attempts
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0003, 0.005  # seconds between two looks at the neighbour entries
_NEW_LINK = 3.0  # seconds for the gateway of a link that had no address before: it may just have come up
_BEFORE = 0.5  # seconds for a gateway to show that it resolves before a change ...
_AFTER = 6.0  # ... and after it: a new MTU resets some network cards


def new_gateways(plan: Plan, actual: Actual) -> set[GatewayUse]:
    """Return the gateways for which the plan makes a first default route: neither ours nor DHCP's or a router's."""
    known = {GatewayUse(route.ifindex, route.gateway) for route in actual.routes if route.gateway is not None}
    known |= {GatewayUse(index, each) for index, gateways in actual.gateways.items() for each in gateways}
    defaults = (op for op in plan if isinstance(op, RouteReplace) and not op.destination.prefixlen)
    return {GatewayUse(op.link, op.gateway) for op in defaults if op.gateway is not None} - known


def unresolved(gateways: Iterable[GatewayUse], wanted: Iterable[Address], actual: Actual) -> set[GatewayUse]:
    """Return those of new gateways that do not resolve. One that cannot be asked is not judged.

    It cannot be asked if its link has no address to ask from, or where IPAddressDeny= drops what is sent to it: a
    datagram to the metadata server passes, but goes by the gateway only once there is a route. The source is one of
    the `wanted` addresses: the cloud drops packets from one that it has taken away.
    """
    there = [each for each in wanted if (each.ifindex, each.address) in actual.addresses]
    sources = {(each.ifindex, each.address.version) for each in there}
    up = {link.ifindex for link in actual.links if link.up}
    asked = {each for each in gateways if each.ifindex in up and (each.ifindex, each.address.version) in sources}
    names = {link.ifindex: link.name for link in actual.links}
    asked = {each for each in asked if _can_be_asked(each, names[each.ifindex], there)}
    return asked - resolving(asked, names, there, PROBE_SECONDS)


def _can_be_asked(gateway: GatewayUse, link: str, addresses: Sequence[Address]) -> bool:
    """Return True if a datagram to the gateway itself leaves this process."""
    own = [
        each for each in addresses if (each.ifindex, each.address.version) == (gateway.ifindex, gateway.address.version)
    ]
    return _send(gateway, link, _source(gateway, own), by_metadata=False)


class GatewayCheck:
    """The gateways of the links that a plan changes. The first look is taken when this is made, before the change."""

    def __init__(self, plan: Plan, desired: Desired, actual: Actual, table_base: int) -> None:
        changed = {link_of(op, table_base) for op in plan}
        links = {
            goal.settings.ifindex
            for goal in desired.links
            if COMMON in changed or goal.settings.ifindex in changed
        }  # fmt: skip
        learned = {GatewayUse(index, each) for index in links for each in actual.gateways.get(index, ())}
        goals = [goal for goal in desired.links if goal.settings.ifindex in links]
        wanted = {GatewayUse(route.ifindex, route.gateway) for goal in goals for route in goal.routes if route.gateway}
        used = {GatewayUse(route.ifindex, route.gateway) for route in actual.routes if route.gateway}
        used = {each for each in used if each.ifindex in links} | learned
        self._wanted = wanted | learned
        self._new = new_gateways(plan, actual)
        self._names = {link.ifindex: link.name for link in actual.links}
        self._addresses = [address for goal in goals for address in goal.addresses]
        there = [each for each in self._addresses if (each.ifindex, each.address) in actual.addresses]
        self._before = resolving(used, self._names, there, _BEFORE)

    def lost(self, seconds: float) -> set[GatewayUse]:
        """Return the gateways that resolved before the change and do not after it. Raises KernelError."""
        kept = self._wanted & self._before
        return kept - resolving(kept, self._names, self._addresses, min(_AFTER, seconds))

    def unresolved_new(self) -> set[GatewayUse]:
        """Return the gateways with a first route that do not resolve after the change. Raises KernelError."""
        return self._new - resolving(self._new, self._names, self._addresses, _NEW_LINK)


def resolving(
    gateways: Iterable[GatewayUse], names: Mapping[int, str], addresses: Iterable[Address], seconds: float
) -> frozenset[GatewayUse]:
    """Return the gateways that resolve within `seconds`. One towards which nothing can be sent does not.

    `names` are the links'. `addresses` may be the source: the cloud drops packets with any other. Raises KernelError.
    """
    sources = defaultdict[tuple[int, int], list[Address]](list)
    for address in addresses:
        sources[address.ifindex, address.address.version].append(address)
    waiting = {each for each in gateways if each.ifindex in names}
    found, end, resend, pause = set[GatewayUse](), time.monotonic() + seconds, 0.0, _FIRST_PAUSE
    while waiting:
        now = time.monotonic()
        if now >= resend:
            resend = now + _RESEND
            sent = {
                each
                for each in waiting
                if _send(each, names[each.ifindex], _source(each, sources[each.ifindex, each.address.version]))
            }
        found |= kernel.resolved(sent & waiting)
        waiting -= found
        if now >= end or (not sent & waiting and seconds <= _BEFORE):
            break  # what cannot be sent now may be sendable only some time after a change
        if waiting:
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)
    return frozenset(found)


def _source(gateway: GatewayUse, own: Sequence[Address]) -> IPAddress | None:
    """Return an address of the link, of the gateway's subnet if there is one: source rules then lead to the link."""
    if not own:
        return None
    near = (each for each in own if gateway.address in ip_network((each.address, each.prefix), strict=False))
    return next(near, own[0]).address


def _send(gateway: GatewayUse, link: str, source: IPAddress | None, *, by_metadata: bool = True) -> bool:
    """Send a datagram that ends at the next hop. Return False if the kernel does not take it.

    `by_metadata`: try the metadata server's address if the gateway's own is denied.
    """
    link_local = gateway.address.is_link_local
    if source is None and not link_local:
        return False
    six = gateway.address.version == 6
    target = (str(gateway.address), _DISCARD, 0, gateway.ifindex if link_local else 0)
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        try:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
            if six:
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            else:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            if source is not None and not link_local:
                with contextlib.suppress(OSError):  # gone, or still tentative: the kernel chooses
                    sender.bind((str(source), 0))
            try:
                sender.sendto(b"", target if six else target[:2])
            except PermissionError:
                if not by_metadata:
                    return False
                if sender.getsockname()[0] != str(source):
                    sender.bind((str(source), 0))  # or the source would be an address of another link
                sender.sendto(b"", (_ALLOWED_TARGET[gateway.address.version], _DISCARD))
        except OSError:
            return False
    return True
