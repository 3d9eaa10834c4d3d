"""A client of netagent that can send any message, valid or not."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgpack
from cloud_network.netagent import protocol

from tests.lab import Lab

_LEASE = re.compile(r"(valid|preferred)_lft \d+sec")  # lifetimes of DHCP count down
CONFIG = '[Netagent]\nAllowKinds = "veth"\n'
AUDIT = "/var/log/cloud-network/audit.log"


def packed(address: str) -> bytes:
    return ip_address(address).packed


CONNECT = f"""
import array, os, socket, sys
to_test = socket.socket(fileno=0)
there = socket.socket(socket.AF_UNIX)
there.settimeout(10)
try:
    there.connect({protocol.SOCKET!r})
except OSError as error:
    to_test.sendall(str(error.errno).encode())
else:
    if not os.getuid():
        there.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, {protocol.ROOT_CREDENTIALS!r})])
    to_test.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [there.fileno()]))])
    there.close()
    to_test.recv(1)  # netagent sees this peer until the connection ends
"""


class Wire:
    """A connection of a user of the instance: a process there connects, and passes the socket to the test."""

    def __init__(self, lab: Lab, user: str | None = None, prefix: Sequence[str] = ()) -> None:
        self._from_connector, connector_end = socket.socketpair()
        argv = lab.instance.enter(*prefix, "/usr/bin/python3", "-I", "-S", "-c", CONNECT, user=user)
        self._connector = subprocess.Popen(argv, stdin=connector_end.fileno(), stdout=subprocess.DEVNULL)
        connector_end.close()
        self._from_connector.settimeout(15)
        data, files, _, _ = socket.recv_fds(self._from_connector, 16, 1)
        if data != b"0":
            self.disconnect()
            raise ConnectionError(os.strerror(int(data or b"5")))
        self.socket = socket.socket(fileno=files[0])
        self.socket.settimeout(10)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        self.disconnect()

    def disconnect(self) -> None:
        """End the process that connected."""
        self._from_connector.close()
        self._connector.wait(10)

    def raw(self, body: bytes) -> dict[str, Any]:
        """Send a frame with this body, and return the answer."""
        self.socket.sendall(protocol.HEADER.pack(len(body)) + body)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        (size,) = protocol.HEADER.unpack(self._exactly(4))
        return dict(msgpack.unpackb(self._exactly(size)))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise ConnectionError("netagent closed the connection")
            data += chunk
        return data

    def send(self, **message: Any) -> None:
        self.socket.sendall(protocol.encode(message))

    def ask(self, **message: Any) -> dict[str, Any]:
        self.send(**message)
        return self.answer()

    def ask_at_once(self, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """Send several requests together, and return their answers."""
        self.socket.sendall(b"".join(map(protocol.encode, messages)))
        return [self.answer() for _ in messages]

    def apply(self, *ops: dict[str, Any], confirm_within: int = 0, request: str = "test") -> dict[str, Any]:
        return self.ask(request="apply", id=request, ops=list(ops), confirm_within=confirm_within)


def address(link: int, text: str, op: str = "address_add") -> dict[str, Any]:
    """Return the operation for `10.0.1.5/24` on a link, with its connected route."""
    host, _, length = text.partition("/")
    shown = {"op": op, "link": link, "address": packed(host), "prefix": int(length or 32)}
    return {**shown, "route": True} if op == "address_add" else shown


def route(link: int, text: str, via: str | None = None, table: int | None = None, op: str = "route_replace") -> Any:
    host, _, length = text.partition("/")
    where = {"op": op, "table": table or 9999 + link, "link": link}
    return {**where, "address": packed(host), "prefix": int(length), "gateway": packed(via) if via else None}


def rule(text: str, table: int, priority: int = 31000, op: str = "rule_add", **more: int) -> dict[str, Any]:
    """Return a rule with `suppress`, or, with a priority from 31010 on, without it."""
    host, _, length = text.partition("/")
    where = {"op": op, "address": packed(host), "prefix": int(length or 32), "table": table, "priority": priority}
    return {**where, "to": False, "suppress": priority < 31010, "local": False, "mark": 0, "mask": 0, **more}


def main_rule(everything: str = "0.0.0.0/0", op: str = "rule_add") -> dict[str, Any]:
    """Return the rule for main, which rules without `suppress` need before them."""
    return rule(everything, 254, 31010, op, suppress=True)


def kernel_state(lab: Lab) -> dict[str, str]:
    """Return everything that netagent could change, as printed by `ip`."""
    commands = {
        "links": "ip -o link",
        "addresses": "ip -o address",
        "routes": "ip route show table all",
        "routes6": "ip -6 route show table all",
        "rules": "ip rule",
        "rules6": "ip -6 rule",
    }
    state = {name: lab.run(argv.split()).stdout for name, argv in commands.items()}
    return {name: _LEASE.sub("", text) for name, text in state.items()}


def audit_lines(lab: Lab) -> list[dict[str, Any]]:
    path: Path = lab.path(AUDIT)
    return [json.loads(line) for line in path.read_text().splitlines()]


def ifindex(lab: Lab, name: str) -> int:
    return int(json.loads(lab.run(["ip", "-j", "link", "show", "dev", name]).stdout)[0]["ifindex"])
