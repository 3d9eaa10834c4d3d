"""The interfaces through which a metadata server may be asked.

The host's routing decides, unless it leads into a tunnel or a VPN: the far end must neither see the request nor answer
it. If the usual interface does not lead to the server, each of the cloud's interfaces is tried. A socket is always
bound to its interface (SO_BINDTODEVICE, socket(7)): a kept connection would otherwise follow the routing into a tunnel
that comes up later.
"""

from __future__ import annotations

from cloud_network.fetcher.metadata.model import IPAddress
from cloud_network.fetcher.network.kernel import KernelError, is_prohibited, links_and_egress
from cloud_network.fetcher.network.objects import ARPHRD_ETHER, ARPHRD_LOOPBACK, Link

_TUNNEL_KINDS = frozenset(
    {"bareudp", "erspan", "geneve", "gretap", "ip6erspan", "ip6gretap", "tun", "vxlan", "l2tpeth"}
)
"""Link kinds of tunnels that look like Ethernet. Others (WireGuard, IPsec, PPP) have their own hardware type."""


def egress_interfaces(address: IPAddress, kinds: tuple[str, ...]) -> list[str]:
    """Return the names of the interfaces to bind a socket to, in order: the interface of the host's route comes first.

    "" means that the socket is not bound: the address is one of this host. `kinds` are the link kinds ([Netagent]
    AllowKinds=) that a cloud may attach in addition to links without a kind.
    """
    try:
        links, usual = links_and_egress(address)
    except KernelError:
        return []
    if usual is not None and usual.hardware == ARPHRD_LOOPBACK:
        return [""]
    found = [usual] if usual is not None and not _is_tunnel(usual) else []
    found += [each for each in links if each is not usual and _is_of_cloud(each, kinds)]
    return [each.name for each in found]


def obstacle(address: IPAddress, interface: str) -> str:
    """Return the reason why answers of `address` may be lost on this host; "" if none is visible.

    A request that is bound to its interface passes a prohibit route (systemd-imdsd's). The reverse path filter looks
    the way back up by all routes, and drops the answer.
    """
    try:
        if address.version == 6 or not is_prohibited(address):  # IPv6 has no such filter
            return ""
    except KernelError:
        return ""
    key = f"net.ipv4.conf.{interface or 'all'}.rp_filter"
    return f"a route prohibits {address} on this host (systemd-imdsd adds one); set {key}=0, or its answers are dropped"


def _is_tunnel(link: Link) -> bool:
    return link.hardware not in (ARPHRD_ETHER, ARPHRD_LOOPBACK) or link.kind in _TUNNEL_KINDS


def _is_of_cloud(link: Link, kinds: tuple[str, ...]) -> bool:
    allowed = link.kind is None or (link.kind in kinds and not _is_tunnel(link))
    return allowed and link.hardware == ARPHRD_ETHER and link.up and link.master is None
