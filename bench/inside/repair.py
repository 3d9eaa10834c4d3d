"""Runs in the instance: removes one object after the other, and waits until each is repaired.

    python3 -I -S repair.py PAUSE < [["ip", "address", "del", …], …]

Prints milliseconds from the kernel's notification of the removal to that of the repair (linux/rtnetlink.h):
RTM_NEWADDR 20, RTM_NEWROUTE 24, RTM_NEWRULE 32; the removal of each has the next number.
"""

import json
import random
import socket
import struct
import subprocess
import sys
import time

GROUPS = (5, 7, 8)  # RTNLGRP_IPV4_IFADDR, _ROUTE, _RULE
NEW = {"address": 20, "route": 24, "rule": 32}
TIMEOUT_S = 60.0


def kinds(listener: socket.socket) -> set[int]:
    """Return the types of the messages in one datagram."""
    data, found = listener.recv(1 << 16), set()
    while data:
        length, kind = struct.unpack_from("=IH", data)
        found.add(kind)
        data = data[(length + 3) & ~3 :]
    return found


def wait(listener: socket.socket, kind: int) -> float:
    while kind not in kinds(listener):
        pass
    return time.perf_counter()


def once(words: list[str]) -> float:
    new = NEW[words[1]]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as listener:
        listener.settimeout(TIMEOUT_S)
        listener.bind((0, sum(1 << (group - 1) for group in GROUPS)))
        subprocess.run(words, check=True)
        gone = wait(listener, new + 1)
        return (wait(listener, new) - gone) * 1e3


if __name__ == "__main__":
    pause, taken = float(sys.argv[1]), []
    for words in json.load(sys.stdin):
        taken.append(once(words))
        time.sleep(pause * random.uniform(1, 2))  # random, so that the fetcher cannot fall into step
    print(json.dumps(taken))
