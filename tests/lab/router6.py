"""The cloud's IPv6 router: sends advertisements (RFC 4861, 4.2 and 4.6). One file, standard library, run by path.

Each line on stdin is a bridge's configuration, a JSON object of bridge, mac, source, lifetime, prefixes, on_link and
autonomous. It is advertised at once, and again when a host on the bridge solicits, as its kernel does when a link
comes up. M and O are set: clouds give addresses by DHCPv6 or in the metadata.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
from ipaddress import IPv6Address, IPv6Network
from typing import Any

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
SOURCE_LINK_ADDRESS, PREFIX_INFORMATION = 1, 3
MANAGED_AND_OTHER, ON_LINK, AUTONOMOUS = 0xC0, 0x80, 0x40
PREFIX_LIFETIME = 1 << 31
ICMP6_FILTER = 1  # linux/icmpv6.h; a set bit blocks
ALL_NODES = "ff02::1"


def advertisement(config: dict[str, Any]) -> bytes:
    """Return the message without its checksum, which the kernel fills in on an ICMPv6 socket."""
    message = struct.pack(">BBHBBHII", ROUTER_ADVERTISEMENT, 0, 0, 64, MANAGED_AND_OTHER, config["lifetime"], 0, 0)
    message += struct.pack(">BB6s", SOURCE_LINK_ADDRESS, 1, bytes.fromhex(config["mac"].replace(":", "")))
    flags = ON_LINK * config["on_link"] | AUTONOMOUS * config["autonomous"]
    for text in config["prefixes"]:
        prefix = IPv6Network(text)
        head = struct.pack(">BBBB", PREFIX_INFORMATION, 4, prefix.prefixlen, flags)
        message += head + struct.pack(">III", PREFIX_LIFETIME, PREFIX_LIFETIME, 0) + prefix.network_address.packed
    return message


def main() -> None:
    icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    words = [0xFFFFFFFF] * 8
    words[ROUTER_SOLICITATION // 32] &= ~(1 << ROUTER_SOLICITATION % 32)
    icmp.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("8I", *words))
    icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)  # receivers ignore others
    icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    known: dict[int, dict[str, Any]] = {}

    def advertise(ifindex: int) -> None:
        config = known[ifindex]
        source = struct.pack("@16sI", IPv6Address(config["source"]).packed, ifindex)
        control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source)]
        icmp.sendmsg([advertisement(config)], control, 0, (ALL_NODES, 0, 0, ifindex))

    def solicited() -> None:
        _, control, _, _ = icmp.recvmsg(1500, socket.CMSG_SPACE(20))
        for _, kind, data in control:
            if kind == socket.IPV6_PKTINFO and (ifindex := struct.unpack("@16sI", data)[1]) in known:
                advertise(ifindex)

    requests = open(0, "rb", buffering=0)  # noqa: SIM115  # until the end; unbuffered, or select would miss a line
    ready = selectors.DefaultSelector()
    ready.register(icmp, selectors.EVENT_READ)
    ready.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is icmp:
                solicited()
            elif line := requests.readline():
                config = json.loads(line)
                ifindex = socket.if_nametoindex(config["bridge"])
                known[ifindex] = config
                advertise(ifindex)
            else:
                return


if __name__ == "__main__":
    main()
