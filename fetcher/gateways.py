"""Checks that gateways resolve before and after a change.

A datagram is sent to a gateway through its link, then its neighbour entry is read: clouds' gateways answer ARP and
neighbour discovery, but seldom ping. A socket may be bound to a device without privilege since Linux 5.7
(SO_BINDTODEVICE, socket(7)). The units' IPAddressDeny= drops a datagram to a gateway before the kernel looks up its
neighbour entry. A datagram to the metadata server's address is allowed, has the same next hop, and ends there.

A gateway that resolved before a change and is still in use after it must still resolve. A gateway that gets its first
route must resolve before that route is added, or right after it if it could not be probed before: its link has no
source address yet, or IPAddressDeny= drops the probe. A gateway in use that did not resolve before the change does not
block it: the change cannot make it worse.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from cloud_network.fetcher import schedule
from cloud_network.fetcher.metadata.model import IPAddress
from cloud_network.fetcher.network import kernel
from cloud_network.fetcher.network.objects import Actual, Address, Desired, GatewayUse
from cloud_network.fetcher.network.plan import COMMON, Plan, link_of
from cloud_network.netagent.operations import RouteReplace

Sources = Mapping[tuple[int, int], list[Address]]
"""Addresses that may be the source of a probe, by link and IP version."""

_ALLOWED_TARGET = {4: ip_address("169.254.169.254"), 6: ip_address("fd00:ec2::254")}
"""In the unit's IPAddressAllow=, on every cloud."""
_DISCARD_PORT = 9  # port, RFC 863
_RESEND_S = 0.5  # seconds; the kernel gives up on a neighbour after three attempts
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0003, 0.005  # seconds between two reads of the neighbour entries


def new_gateways(plan: Plan, actual: Actual) -> set[GatewayUse]:
    """Return the gateways for which the plan adds the first default route, and that no DHCP or router route uses."""
    known = {GatewayUse(route.ifindex, route.gateway) for route in actual.routes if route.gateway is not None}
    known |= {GatewayUse(index, each) for index, gateways in actual.gateways.items() for each in gateways}
    defaults = (op for op in plan if isinstance(op, RouteReplace) and not op.destination.prefixlen)
    return {GatewayUse(op.link, op.gateway) for op in defaults if op.gateway is not None} - known


def unresolved_gateways(gateways: Iterable[GatewayUse], wanted: Iterable[Address], actual: Actual) -> set[GatewayUse]:
    """Return the new gateways that do not resolve. A gateway that cannot be probed is left out.

    It cannot be probed if its link has no source address, or if IPAddressDeny= drops the datagram: one to the metadata
    server passes, but uses the gateway only once a route exists. The source is one of the `wanted` addresses, because
    the cloud drops packets from an address that it has reassigned.
    """
    present = [each for each in wanted if (each.ifindex, each.address) in actual.addresses]
    sources = _sources(present)
    up = {link.ifindex for link in actual.links if link.up}
    probed = {each for each in gateways if each.ifindex in up and (each.ifindex, each.address.version) in sources}
    names = {link.ifindex: link.name for link in actual.links}
    probed = {each for each in probed if _can_be_probed(each, names[each.ifindex], sources)}
    return probed - resolved_gateways(probed, names, present, schedule.GATEWAY_S)


def _can_be_probed(gateway: GatewayUse, link: str, sources: Sources) -> bool:
    """Return True if a datagram to the gateway itself can leave this process."""
    return _send(gateway, link, _source(gateway, sources), by_metadata=False)


class GatewayCheck:
    """The gateways of the links that a plan changes. Created, and first probed, before the change."""

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
        present = [each for each in self._addresses if (each.ifindex, each.address) in actual.addresses]
        self._in_use = {each.ifindex for each in present}  # links with a source address before the change
        self._before = resolved_gateways(used, self._names, present, schedule.GATEWAY_BEFORE_CHANGE_S)

    def lost(self, seconds: float) -> set[GatewayUse]:
        """Return the gateways that resolved before the change but not after it. Raises KernelError.

        Those of a link that is down now are left out: no change of cloud-network sets a link down.
        """
        kept = self._wanted & self._before
        seconds = min(schedule.GATEWAY_AFTER_CHANGE_S, seconds)
        lost = kept - resolved_gateways(kept, self._names, self._addresses, seconds)
        up = kernel.links_up() if lost else set()
        return {each for each in lost if each.ifindex in up}

    def unresolved_new(self) -> set[GatewayUse]:
        """Return the gateways with a new first route that do not resolve after the change. Raises KernelError."""
        early = {each for each in self._new if each.ifindex in self._in_use}
        late = self._new - early
        found = resolved_gateways(early, self._names, self._addresses, schedule.GATEWAY_S)
        return self._new - found - resolved_gateways(late, self._names, self._addresses, schedule.NEW_LINK_GATEWAY_S)


def resolved_gateways(
    gateways: Iterable[GatewayUse], names: Mapping[int, str], addresses: Iterable[Address], seconds: float
) -> frozenset[GatewayUse]:
    """Return the gateways that resolve within `seconds`. One to which nothing can be sent does not.

    `names` are the links' names. `addresses` are possible sources: the cloud drops packets from others. Raises
    KernelError.
    """
    sources = _sources(addresses)
    waiting = {each for each in gateways if each.ifindex in names}
    found, end, resend, pause = set[GatewayUse](), time.monotonic() + seconds, 0.0, _FIRST_PAUSE_S
    while waiting:
        now = time.monotonic()
        if now >= resend:
            resend = now + _RESEND_S
            sent = {each for each in waiting if _send(each, names[each.ifindex], _source(each, sources))}
        found |= kernel.resolved(sent & waiting)
        waiting -= found
        if now >= end or (not sent & waiting and seconds <= schedule.GATEWAY_BEFORE_CHANGE_S):
            break  # sending may become possible only some time after a change
        if waiting:
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE_S, 2 * pause)
    return frozenset(found)


def _sources(addresses: Iterable[Address]) -> Sources:
    """Return the addresses by link and IP version."""
    found = defaultdict[tuple[int, int], list[Address]](list)
    for address in addresses:
        found[address.ifindex, address.address.version].append(address)
    return found


def _source(gateway: GatewayUse, sources: Sources) -> IPAddress | None:
    """Return an address of the link, preferably in the gateway's subnet: source rules then select the link."""
    own = sources.get((gateway.ifindex, gateway.address.version))
    if not own:
        return None
    near = (each for each in own if gateway.address in ip_network((each.address, each.prefix), strict=False))
    return next(near, own[0]).address


def _send(gateway: GatewayUse, link: str, source: IPAddress | None, *, by_metadata: bool = True) -> bool:
    """Send a datagram that ends at the next hop. Return False if the kernel rejects it.

    `by_metadata`: try the metadata server's address if the gateway's own is denied.
    """
    version, link_local = gateway.address.version, gateway.address.is_link_local
    if source is None and not link_local:
        return False
    scope = gateway.ifindex if link_local else 0
    try:
        try:
            with _socket(version, link) as sender:
                if not link_local:
                    with contextlib.suppress(OSError):  # removed, or still tentative: the kernel chooses a source
                        sender.bind((str(source), 0))
                sender.sendto(b"", _endpoint(gateway.address, scope))
        except PermissionError:
            if source is None or not by_metadata:
                return False
            with _socket(version, link) as sender:  # the first socket has a port now and cannot be bound any more
                sender.bind((str(source), 0))  # else the source would be an address of another link
                sender.sendto(b"", _endpoint(_ALLOWED_TARGET[version]))
    except OSError:
        return False
    return True


def _socket(version: int, link: str) -> socket.socket:
    """Return a socket whose datagrams leave through this link and go no further than the next hop."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    sender = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        if version == 6:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
        else:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    except OSError:
        sender.close()
        raise
    return sender


def _endpoint(address: IPAddress, scope: int = 0) -> tuple[str, int] | tuple[str, int, int, int]:
    return (str(address), _DISCARD_PORT, 0, scope) if address.version == 6 else (str(address), _DISCARD_PORT)
