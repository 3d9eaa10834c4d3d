"""The REST server compared with a bare Flask-on-gunicorn 'hello': `.venv/bin/python -m bench.rest [seconds]`.

200 clients on kept-alive connections; each sends its next request when it has its answer. The two servers take turns,
so that other work on the machine affects both. Both have one gevent worker. Throughput is answers per second of the
servers' processor time, which does not depend on other work. Then 10 s against the API server alone, in which no
request may fail, and `/api/v1/health` while 200 other connections are half-open.
"""

import contextlib
import json
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloud_network.fetcher.state import RunLock, StateDirectory

from bench.figures import Figure, figure, milliseconds, processor_time, pss, ratio, save

BIN = Path(sys.executable).parent
CLIENTS = 200
ROUNDS = 6
PATHS = ("/api/v1/status", "/api/v1/health")
HELLO = """
from flask import Flask
app = Flask("hello")
@app.get("/")
def hello():
    return "hello"
"""


class Round(NamedTuple):
    """The results of one round."""

    rate: float  # answers per second
    median: float  # seconds from request to answer
    worst: float
    failed: int  # answers other than 200, and broken connections


def load(port: int, path: str, seconds: float) -> Round:
    """Send requests from 200 clients in one thread."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    selector = selectors.EpollSelector()
    asked: dict[socket.socket, float] = {}
    rest: dict[socket.socket, tuple[bytes, int]] = {}
    taken: list[float] = []
    failed = 0

    def ask(client: socket.socket) -> None:
        asked[client], rest[client] = time.perf_counter(), (b"", 0)
        client.send(request)

    def connect() -> None:
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ)
        ask(client)

    for _ in range(CLIENTS):
        connect()
    began = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        for key, _ in selector.select(0.1):
            client: socket.socket = key.fileobj  # type: ignore[assignment]
            try:
                got = client.recv(1 << 20)
            except OSError:
                got = b""
            if not got:
                failed += 1
                selector.unregister(client)
                client.close()
                connect()
                continue
            head, due = rest[client]
            if not due:
                head += got
                end = head.find(b"\r\n\r\n")
                if end < 0:
                    rest[client] = head, 0
                    continue
                failed += not head.startswith(b"HTTP/1.1 200 ")
                at = head.lower().find(b"content-length: ") + 16
                due = int(head[at : head.index(b"\r", at)]) + end + 4 - len(head)
            else:
                due -= len(got)
            if due > 0:
                rest[client] = b"", due
                continue
            taken.append(time.perf_counter() - asked[client])
            ask(client)
    for client in list(asked):
        client.close()
    return Round(len(taken) / (now - began), statistics.median(taken), max(taken), failed)


def state(directory: Path) -> RunLock:
    """Write a status of 4 × 15, as a running fetcher does; return the lock of that fetcher."""
    from tests.system.api.conftest import RUN, address, link, status

    files = StateDirectory(directory)
    files.prepare()
    lock = RunLock(files)
    Path(files.lock_path).write_text(RUN)
    files.write_status(
        status(*(link(n, f"eth{n}", [address(f"10.0.{n}.{k}") for k in range(4, 19)]) for n in range(2, 6)))
    )
    files.write_system({"instance-id": "i-1"})
    return lock


@contextlib.contextmanager
def running_server(command: list[str], port: int, directory: Path) -> Iterator[int]:
    """Start the command, and yield its pid once it answers."""
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=directory, stderr=log, stdout=log)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def process_tree(pid: int) -> list[int]:
    """Return the pids of master and worker."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def measured(pid: int, port: int, path: str, seconds: float) -> tuple[Round, float]:
    """Return a round, and its answers per second of the server's processor time."""
    before = sum(map(processor_time, process_tree(pid)))
    found = load(port, path, seconds)
    busy = sum(map(processor_time, process_tree(pid))) - before
    return found, found.rate * seconds / busy * 1e3


def with_half_open(port: int) -> list[float]:
    """Return the milliseconds of ten requests while 200 other connections stay half-open."""
    begun = [socket.create_connection(("127.0.0.1", port)) for _ in range(CLIENTS)]
    for client in begun:
        client.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: local")

    def ask() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/health", timeout=10) as answer:
            answer.read()

    taken = [milliseconds(ask) for _ in range(10)]
    for client in begun:
        client.close()
    return taken


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory(prefix="cloud-network-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "hello.py").write_text(HELLO)
        api_port, hello_port = free_port(), free_port()
        (directory / "config.toml").write_text(f'[Network]\nListen = "127.0.0.1:{api_port}"\n')
        lock = state(directory / "run")
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        api = [str(BIN / "cloud-network-api"), "--config", f"{directory}/config.toml", "--state", f"{directory}/run"]
        api += ["--socket", f"{directory}/api.sock"]
        bare = [str(BIN / "gunicorn"), "-w", "1", "-k", "gevent", "--preload", "--keep-alive", "5"]
        pid = stack.enter_context(running_server([*user, *api], api_port, directory))
        other = stack.enter_context(
            running_server([*bare, "-b", f"127.0.0.1:{hello_port}", "hello:app"], hello_port, directory)
        )
        found: dict[str, list[Round]] = {}
        per_second: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for path, server, port in (
                (PATHS[0], pid, api_port),
                (PATHS[1], pid, api_port),
                ("hello", other, hello_port),
            ):
                turn, rate = measured(server, port, "/" if path == "hello" else path, seconds)
                found.setdefault(path, []).append(turn)
                per_second.setdefault(path, []).append(rate)
        print(
            f"{CLIENTS} clients, {ROUNDS} rounds of {seconds:g} s, {os.cpu_count()} processors; medians of the rounds"
        )
        figures: list[Figure] = []
        rates = {path: figure(f"{path}: answers per processor second", all_, "/s") for path, all_ in per_second.items()}
        waits = {path: figure(f"{path}: response time", [e.median * 1e3 for e in all_]) for path, all_ in found.items()}
        for path in found:
            figures += [rates[path], waits[path]]
        figures += [ratio(f"hello's throughput over {path}'s", rates["hello"], rates[path], 1 / 0.7) for path in PATHS]
        memory = figure("memory, master and worker", [sum(map(pss, process_tree(pid)))], "MB")
        hello_memory = figure("hello: memory, master and worker", [sum(map(pss, process_tree(other)))], "MB")
        figures += [memory, hello_memory, ratio("memory over hello's", memory, hello_memory, 1.25)]
        figures.append(figure("/api/v1/health with 200 half-open connections", with_half_open(api_port), most=500))
        long = load(api_port, "/api/v1/status", 10)
        lock.close()
        print(f"10 s: {json.dumps(long._asdict())}")
        failed = long.failed + sum(each.failed for rounds in found.values() for each in rounds)
        save("rest", [*figures, figure("requests that failed", [failed], "", most=0)])
        if failed:
            sys.exit("requests failed")


if __name__ == "__main__":
    main()
