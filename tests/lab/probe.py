"""Runs inside namespaces: answers TCP connections, and opens many at once. One file, standard library, run by path.

    probe.py serve PORT            greet each connection with its own local address, then echo lines
    probe.py connect PORT TIMEOUT  [[target, source or null], …] on stdin, all at once; true or false for each
    probe.py hold TARGET PORT      one connection; a line on stdin is sent through it and must come back

An address counts as answering only if the greeting names it: then the packet reached that address. The greeting also
has the number of the connection, which every echo repeats: an echo proves that this connection never broke.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys

numbers = itertools.count(1)


async def serve(port: int) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(numbers)
        local = writer.get_extra_info("sockname")[0].removeprefix("::ffff:")
        writer.write(json.dumps({"local": local, "number": number}).encode() + b"\n")
        try:
            while line := await reader.readline():
                writer.write(b"%d %s" % (number, line))
        except OSError:
            pass
        finally:
            writer.close()

    servers = [
        await asyncio.start_server(greet, host, port, backlog=1024)
        for host in ("0.0.0.0", "::")  # start_server sets IPV6_V6ONLY
    ]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def answers(target: str, source: str | None, port: int) -> bool:
    reader, writer = await asyncio.open_connection(target, port, local_addr=(source, 0) if source else None)
    try:
        greeting = json.loads(await reader.readline())
        return bool(greeting["local"] == target)
    finally:
        writer.close()


async def connect(port: int, timeout: float) -> None:
    async def attempt(target: str, source: str | None) -> bool:
        try:
            return await asyncio.wait_for(answers(target, source, port), timeout)
        except (OSError, ValueError, TimeoutError):
            return False

    pairs = json.load(sys.stdin)
    print(json.dumps(await asyncio.gather(*(attempt(target, source) for target, source in pairs))))


async def hold(target: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(target, port)
    number = json.loads(await reader.readline())["number"]
    print("open", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        writer.write(line)
        expected = b"%d %s" % (number, line)
        if await reader.readline() != expected:
            break
        print("echo", line.decode().strip(), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            asyncio.run(serve(int(port)))
        case ["connect", port, timeout]:
            asyncio.run(connect(int(port), float(timeout)))
        case ["hold", target, port]:
            asyncio.run(hold(target, int(port)))
        case _:
            sys.exit(__doc__)
