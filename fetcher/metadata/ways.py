"""By which links a metadata server may be asked.

The host's routing decides, unless it leads into a tunnel or a VPN: whoever is at its other end must not see what is
asked, nor answer it. Where that way does not lead to the server, each of the cloud's interfaces is one: a socket may be
bound to a device without privilege since Linux 5.7 (SO_BINDTODEVICE, socket(7)). It is bound to the usual way's, too: a
connection that is kept would follow the routing into a tunnel that comes up later.
"""

from __future__ import annotations

from cloud_network.fetcher.metadata.model import IPAddress
from cloud_network.fetcher.network.kernel import ARPHRD_ETHER, ARPHRD_LOOPBACK, KernelError, LinkRead, links_and_way

_TUNNELS = {"bareudp", "erspan", "geneve", "gretap", "ip6erspan", "ip6gretap", "tun", "vxlan", "l2tpeth"}
"""Kinds of tunnel whose links look like Ethernet; the others (WireGuard, IPsec, PPP …) do not."""


def ways(address: IPAddress, kinds: tuple[str, ...]) -> list[str]:
    """The links to bind a socket to, in the order to be tried: first the one that the host's routing takes.

    "", no link at all, is the way to an address of this host.

    `kinds` are rtnetlink's, of links that count as the cloud's besides those that have none.
    """
    try:
        links, usual = links_and_way(address)
    except KernelError:
        return []
    if usual is not None and usual.hardware == ARPHRD_LOOPBACK:
        return [""]  # an address of this host is nowhere else
    found = [usual] if usual is not None and _is_no_tunnel(usual) else []
    found += [each for each in links if each is not usual and _is_the_clouds(each, kinds)]
    return [each.link.name for each in found]


def _is_no_tunnel(read: LinkRead) -> bool:
    return read.hardware in (ARPHRD_ETHER, ARPHRD_LOOPBACK) and read.link.kind not in _TUNNELS


def _is_the_clouds(read: LinkRead, kinds: tuple[str, ...]) -> bool:
    link = read.link
    plain = link.kind is None or (link.kind in kinds and _is_no_tunnel(read))
    return plain and read.hardware == ARPHRD_ETHER and link.up and link.master is None
