"""The REST server beside a bare Flask-on-gunicorn 'hello', in the same run: `.venv/bin/python -m bench.rest [seconds]`.

200 clients at once on kept-alive connections, each asks again when it has its answer. The two servers take turns, so
that what else the machine does meets both. Both have one gevent worker. Then 10 s against ours alone, in
which no request may fail.
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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloud_network.fetcher.state import RunLock, StateDirectory

from bench.figures import Figure, figure, keep, ratio

BIN = Path(sys.executable).parent
CLIENTS = 200
ROUNDS = 6
HELLO = """
from flask import Flask
app = Flask("hello")
@app.get("/")
def hello():
    return "hello"
"""


class Round(NamedTuple):
    """What came back in one round."""

    rate: float  # answers a second
    median: float  # seconds from request to answer
    worst: float
    failed: int  # answers that are not 200, and connections that broke


def load(port: int, path: str, seconds: float) -> Round:
    """200 clients in one thread."""
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
    """A status of 4 × 15, as a running fetcher writes it; the lock of that fetcher."""
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
def serving(command: list[str], port: int, directory: Path) -> Iterator[int]:
    """The command, once it answers; its pid."""
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


def resident(pid: int) -> int:
    """KiB that are the server's own, master and worker."""
    pids = [str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    texts = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in pids]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("Pss:"))


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory(prefix="cloud-network-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "hello.py").write_text(HELLO)
        ours, theirs = free_port(), free_port()
        (directory / "config.toml").write_text(f'[Network]\nListen = "127.0.0.1:{ours}"\n')
        lock = state(directory / "run")
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        api = [str(BIN / "cloud-network-api"), "--config", f"{directory}/config.toml", "--state", f"{directory}/run"]
        api += ["--socket", f"{directory}/api.sock"]
        bare = [str(BIN / "gunicorn"), "-w", "1", "-k", "gevent", "--preload", "--keep-alive", "5"]
        pid = stack.enter_context(serving([*user, *api], ours, directory))
        other = stack.enter_context(serving([*bare, "-b", f"127.0.0.1:{theirs}", "hello:app"], theirs, directory))
        found: dict[str, list[Round]] = {}
        for _ in range(ROUNDS):
            for path in ("/api/v1/status", "/api/v1/health"):
                found.setdefault(path, []).append(load(ours, path, seconds))
            found.setdefault("hello", []).append(load(theirs, "/", seconds))
        print(
            f"{CLIENTS} clients, {ROUNDS} rounds of {seconds:g} s, {os.cpu_count()} processors; medians of the rounds"
        )
        figures: list[Figure] = []
        rates = {
            path: figure(f"{path}: answers a second", [e.rate for e in all_], "/s") for path, all_ in found.items()
        }
        waits = {path: figure(f"{path}: to answer", [e.median * 1e3 for e in all_]) for path, all_ in found.items()}
        for path in found:
            figures += [rates[path], waits[path]]
            if path != "hello":
                figures.append(ratio(f"{path}: throughput over hello's", rates[path], rates["hello"]))
                figures.append(ratio(f"{path}: latency over hello's", waits[path], waits["hello"]))
        mine = figure("memory, master and worker", [resident(pid) / 1024], "MB")
        figures += [mine, figure("hello: memory, master and worker", [resident(other) / 1024], "MB")]
        long = load(ours, "/api/v1/status", 10)
        lock.close()
        print(f"10 s: {json.dumps(long._asdict())}")
        failed = long.failed + sum(each.failed for rounds in found.values() for each in rounds)
        keep("rest", [*figures, figure("requests that failed", [failed], "", most=0)])
        if failed:
            sys.exit("requests failed")


if __name__ == "__main__":
    main()
