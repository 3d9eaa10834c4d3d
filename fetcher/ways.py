"""By which links a metadata server may be asked.

The host's routing decides, unless it leads into a tunnel or a VPN: whoever is at its other end must not see what is
asked, nor answer it. Where that way does not lead to the server, each of the cloud's interfaces is one: a socket may be
bound to a device without privilege since Linux 5.7 (SO_BINDTODEVICE, socket(7)). It is bound to the usual way's, too: a
connection that is kept would follow the routing into a tunnel that comes up later.
"""

from __future__ import annotations

import socket
from typing import Any

from cloud_network.fetcher.model import IPAddress
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

_IFF_UP, _ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 1, 772  # linux/if.h, linux/if_arp.h
_TUNNELS = {"bareudp", "erspan", "geneve", "gretap", "ip6erspan", "ip6gretap", "tun", "vxlan", "l2tpeth"}
"""Kinds of tunnel whose links look like Ethernet; the others (WireGuard, IPsec, PPP …) do not."""


def ways(address: IPAddress, kinds: tuple[str, ...]) -> list[str]:
    """The links to bind a socket to, in the order to be tried: first the one that the host's routing takes.

    "", no link at all, is the way to an address of this host.

    `kinds` are rtnetlink's, of links that count as the cloud's besides those that have none.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with IPRoute(strict_check=True) as ipr:
            links = {message["index"]: message for message in ipr.get_links()}
            usual = _usual(ipr, family, address)
    except (NetlinkError, OSError):
        return []
    first = links.get(usual) if usual is not None else None
    if first is not None and first["ifi_type"] == _ARPHRD_LOOPBACK:
        return [""]  # an address of this host is nowhere else
    found = [first] if first is not None and _is_no_tunnel(first) else []
    found += [link for _, link in sorted(links.items()) if link is not first and _is_the_clouds(link, kinds)]
    return [link.get("IFLA_IFNAME") for link in found]


def _usual(ipr: IPRoute, family: int, address: IPAddress) -> int | None:
    """The link by which the host's routing would have it; None when there is no route."""
    try:
        (message,) = ipr.route("get", family=family, dst=str(address))
    except NetlinkError:  # ENETUNREACH, or a route that prohibits
        return None
    index: int | None = message.get("RTA_OIF")
    return index


def _kind(link: Any) -> str | None:
    info = link.get("IFLA_LINKINFO")
    return info.get("IFLA_INFO_KIND") if info else None


def _is_no_tunnel(link: Any) -> bool:
    return link["ifi_type"] in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK) and _kind(link) not in _TUNNELS


def _is_the_clouds(link: Any, kinds: tuple[str, ...]) -> bool:
    plain = _kind(link) is None or (_kind(link) in kinds and _is_no_tunnel(link))
    return plain and link["ifi_type"] == _ARPHRD_ETHER and bool(link["flags"] & _IFF_UP) and not link.get("IFLA_MASTER")
