"""Runs in the fetcher's sandbox: probes gateways, as fetcher/gateways.py does.

gateway_probe.py LINK SOURCE TARGET …    one datagram each that expires at the next hop; the results as JSON
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
    results = [ask(link, source, target) for source, target in zip(pairs[::2], pairs[1::2], strict=True)]
    time.sleep(2)  # for the neighbour's answer: the test reads the neighbour entries after this program
    print(json.dumps(results))
