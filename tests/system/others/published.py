"""Ports that a container publishes, TCP and UDP, IPv4 and IPv6, and their clients.

Run by path inside namespaces:

    published.py serve PORT             answer each TCP connection and each datagram with a line
    published.py ask TIMEOUT PORT       [[protocol, address], …] on stdin, all at once; true or false for each
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import cast


class Answer(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.transport.sendto(data, addr)  # type: ignore[arg-type]


async def serve(port: int) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    loop = asyncio.get_running_loop()
    servers = [await asyncio.start_server(echo, host, port) for host in ("0.0.0.0", "::")]
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        await loop.create_datagram_endpoint(Answer, sock=sock)
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


class Question(asyncio.DatagramProtocol):
    def __init__(self, answered: asyncio.Future[bool]) -> None:
        self.answered = answered

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answered.done():
            self.answered.set_result(True)


async def by_tcp(address: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(address, port)
    writer.write(b"hello\n")
    answer = await reader.readline()
    writer.close()
    return answer == b"hello\n"


async def by_udp(address: str, port: int) -> bool:
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bool] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: Question(answered), remote_addr=(address, port))
    transport.sendto(b"hello\n")
    try:
        return await answered
    finally:
        transport.close()


async def ask(port: int, timeout: float) -> None:
    async def one(protocol: str, address: str) -> bool:
        try:
            return await asyncio.wait_for((by_tcp if protocol == "tcp" else by_udp)(address, port), timeout)
        except (OSError, TimeoutError):
            return False

    print(json.dumps(await asyncio.gather(*(one(*pair) for pair in json.load(sys.stdin)))))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            asyncio.run(serve(int(port)))
        case ["ask", timeout, port]:
            asyncio.run(ask(int(port), float(timeout)))
        case _:
            sys.exit(__doc__)
