"""Runs in the fetcher's sandbox: asks for gateways, as fetcher/gateways.py does.

gateway.py LINK SOURCE TARGET …    a datagram each that dies at the next hop; what became of it, as JSON
"""

from __future__ import annotations

import json
import socket
import sys
import time


def ask(link: str, source: str, target: str) -> str:
    six = ":" in target
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        if six:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
        else:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        sender.bind((source, 0))
        try:
            sender.sendto(b"", (target, 9))
        except OSError as error:
            return str(error.strerror)
    return "sent"


if __name__ == "__main__":
    link, *pairs = sys.argv[1:]
    said = [ask(link, source, target) for source, target in zip(pairs[::2], pairs[1::2], strict=True)]
    time.sleep(2)  # until the neighbour has answered: the test looks when this has ended
    print(json.dumps(said))
