"""By which links a metadata server may be asked.

The host's routing decides, unless it leads into a tunnel or a VPN: whoever is at its other end must not see what is
asked, nor answer it. Where that way does not lead to the server, each of the cloud's interfaces is one: a socket may be
bound to a device without privilege since Linux 5.7 (SO_BINDTODEVICE, socket(7)).
"""

from __future__ import annotations

from cloud_network.fetcher.kernel import ARPHRD_ETHER, ARPHRD_LOOPBACK, KernelError, LinkRead, links_and_way
from cloud_network.fetcher.model import IPAddress

_TUNNELS = {"bareudp", "erspan", "geneve", "gretap", "ip6erspan", "ip6gretap", "tun", "vxlan", "l2tpeth"}
"""Kinds of tunnel whose links look like Ethernet; the others (WireGuard, IPsec, PPP …) do not."""


def ways(address: IPAddress, kinds: tuple[str, ...]) -> list[str]:
    """What to bind a socket to, in the order to be tried: "" is the host's routing, others are names of links.

    `kinds` are rtnetlink's, of links that count as the cloud's besides those that have none.
    """
    try:
        links, usual = links_and_way(address)
    except KernelError:
        return []
    found = [""] if usual is not None and _is_no_tunnel(usual) else []
    if found and usual and usual.hardware == ARPHRD_LOOPBACK:
        return found  # an address of this host is nowhere else
    return found + [
        each.link.name for each in links if (each is not usual or not found) and _is_the_clouds(each, kinds)
    ]


def _is_no_tunnel(read: LinkRead) -> bool:
    return read.hardware in (ARPHRD_ETHER, ARPHRD_LOOPBACK) and read.link.kind not in _TUNNELS


def _is_the_clouds(read: LinkRead, kinds: tuple[str, ...]) -> bool:
    link = read.link
    plain = link.kind is None or (link.kind in kinds and _is_no_tunnel(read))
    return plain and read.hardware == ARPHRD_ETHER and link.up and link.master is None
