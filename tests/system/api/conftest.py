"""A state directory as a fetcher writes it, a real server that reads it, and cnctl as a user runs it."""

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.state import RunLock, StateDirectory, boot_id
from cloud_network.fetcher.status import AddressStatus, LinkStatus, Status, uptime

BIN = Path(sys.executable).parent
SYSTEM: dict[str, Any] = {
    "ami-id": "ami-005f15863xxxxxxxx",
    "ami-launch-index": "0",
    "block-device-mapping": {"ami": "xvda", "root": "/dev/xvda"},
    "hostname": "Zeus.us-west-2.compute.internal",
    "public-hostname": "Zeuspublic.us-west-2.compute.amazonaws.com",
    "local-hostname": "Zeus.us-west-2.compute.internal",
    "instance-action": "none",
    "instance-id": "i-0c8c1test",
    "instance-life-cycle": "on-demand",
    "instance-type": "t4g.micro",
    "placement": {
        "availability-zone": "us-west-2d",
        "availability-zone-id": "usw2-az4",
        "region": "us-west-2",
    },
    "profile": "default-hvm",
    "mac": "0e:c5:3f:c5:33:a5",
    "local-ipv4": "192.31.63.114",
    "public-ipv4": "54.1.2.3",
    "services": {"domain": "amazonaws.com", "partition": "aws"},
    "public-keys": {"0": {"name": "me", "openssh-key": "ssh-ed25519 AAAAC3 me@host"}},
}


RUN = "0123456789abcdef"
"""Run id of the fetcher that the tests emulate."""


def now(seconds_ago: float = 0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(timespec="seconds").replace("+00:00", "Z")


def address(text: str, *public: str, present: bool = True, excluded: bool = False) -> AddressStatus:
    return {
        "address": text,
        "prefix_length": 24,
        "kernel_prefix_length": 24 if present else None,
        "public": list(public),
        "present": present,
        "owned": present,
        "excluded": excluded,
        "table": None,
    }


def link(ifindex: int, name: str, addresses: list[AddressStatus], **changes: Any) -> LinkStatus:
    found: LinkStatus = {
        "name": name,
        "mac": f"00:0c:29:5f:d1:{ifindex:02x}",
        "ifindex": ifindex,
        "device_number": ifindex - 2,
        "state": "ok",
        "mtu": 9001,
        "table": 9999 + ifindex,
        "gateways": [f"10.0.{ifindex - 2}.1"],
        "subnets": [f"10.0.{ifindex - 2}.0/24"],
        "addresses": [each | {"table": 9999 + ifindex} for each in addresses],
        "ranges": [],
        "desired": 31,
        "actual": 31,
        "drift": [],
    }
    return found | changes  # type: ignore[return-value]


def status(*links: LinkStatus, **changes: Any) -> Status:
    found: Status = {
        "version": 3,
        "run": RUN,
        "boot_id": boot_id(),
        "renew_by": uptime() + 600,
        "generation": 7,
        "provider": "aws",
        "state": "ok",
        "fetched_at": now(12),
        "fetched_uptime": None,
        "attempted_at": now(12),
        "compared_at": now(3),
        "written_at": now(),
        "refresh_timer": 300.0,
        "last_error": None,
        "metadata_requests": 17,
        "metadata_seconds": 0.042,
        "counters": {
            "metadata_requests": 170,
            "metadata_errors": {"timeout": 2, "too large": 1},
            "netagent_requests": {"confirmed": 9, "rolled back": 1},
            "drift_repaired": 5,
        },
        "netagent": {
            "listening": True,
            "verdict": "confirmed",
            "request": "r1",
            "at": now(200),
            "reason": None,
            "ops": 12,
        },
        "links": {str(link["ifindex"]): link for link in links},
        "unknown_macs": [],
        "departed_macs": [],
        "notices": [],
        "conflicts": [],
    }
    return found | changes  # type: ignore[return-value]


def two_links() -> Status:
    eth0 = [address("10.0.0.4", "104.42.20.194"), address("10.0.0.6"), address("10.0.0.7")]
    return status(link(10, "eth1", [address("10.0.8.5", "54.1.2.3", "54.1.2.4")]), link(2, "eth0", eth0))


def audit_line(seq: int, **changes: Any) -> str:
    """Return a line of netagent's audit log."""
    entry = {
        "seq": seq,
        "time": f"2026-01-02T03:04:{seq % 60:02}.123456Z",
        "peer": {"pid": 7, "uid": 998, "gid": 998, "unit": "cloud-network-fetcher.service"},
        "request": "apply",
        "id": f"r{seq}",
        "ops": [{"op": "address_add", "address": "10.0.0.6"}, {"op": "rule_add"}, {"op": "rule_add"}],
        "verdict": "applied",
    }
    return json.dumps(entry | changes) + "\n"


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A directory that every user can read (only root can read pytest's own)."""
    path = Path(tempfile.mkdtemp(prefix="cloud-network-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def state(home: Path) -> Iterator[StateDirectory]:
    """An empty state directory, always at the same path: the server of the session sees a fetcher that starts again."""
    shutil.rmtree(home / "run", ignore_errors=True)
    for log in home.glob("audit.log*"):
        log.unlink()
    directory = StateDirectory(home / "run")
    directory.prepare()
    lock = RunLock(directory)
    Path(directory.lock_path).write_text(RUN)
    yield directory
    lock.close()


@pytest.fixture
def filled(state: StateDirectory) -> StateDirectory:
    state.write_system(SYSTEM)
    state.write_link(2, {"mac": "00:0c:29:5f:d1:02", "local-ipv4s": "10.0.0.4\n10.0.0.6\n10.0.0.7"})
    state.write_link(10, {"mac": "00:0c:29:5f:d1:0a", "local-ipv4s": "10.0.8.5"})
    state.write_status(two_links())
    state.write_identity("aws", "document", b'{\n  "region" : "us-west-2"\n}')
    state.write_identity("aws", "pkcs7", b"MIAGCSqGSIb3DQEHAqCAMIACAQExDzANBglg\nhkgBZQMEAgEFADCABgkqhkiG9w0BBwGggCSA")
    return state


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Server:
    """A real cloud-network-api on an ephemeral port of loopback."""

    port: int
    socket: Path
    config: Path
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method, path, headers=fields)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def raw(self, content: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(content)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def unprivileged_user() -> dict[str, Any]:
    """Return Popen arguments for an unprivileged process: user nobody if run as root, else the same user."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


def start_activated(command: list[str], *listeners: socket.socket, **more: Any) -> subprocess.Popen[bytes]:
    """Start the command as systemd does: the sockets are descriptors from 3 on, and the environment names them."""
    moved = [fcntl.fcntl(listener, fcntl.F_DUPFD, 100) for listener in listeners]  # above the target descriptors
    script = "".join(f"exec {number}<&{given} && " for number, given in enumerate(moved, 3))
    script += f'LISTEN_PID=$$ LISTEN_FDS={len(listeners)} exec "$@"'
    try:
        return subprocess.Popen(["bash", "-c", script, "sh", *command], pass_fds=moved, **more)
    finally:
        for descriptor in moved:
            os.close(descriptor)


@pytest.fixture(scope="session")
def serve(home: Path) -> Iterator[Callable[[], Server]]:
    """Start servers with the port passed on, so that the port always answers."""
    started: list[Server] = []

    def start() -> Server:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=512) as listener,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix,
        ):
            port = listener.getsockname()[1]
            path = home / f"{port}.sock"
            unix.bind(str(path))
            path.chmod(0o666)
            unix.listen(512)
            config, log = home / f"{port}.toml", home / f"{port}.log"
            config.write_text(f'[Network]\nListen = "127.0.0.1:{port}"\n')
            command = [str(BIN / "cloud-network-api"), "--config", str(config), "--state", str(home / "run")]
            command += ["--log", str(home / "audit.log")]
            with log.open("wb") as output:
                process = start_activated(command, listener, unix, stderr=output, cwd="/", **unprivileged_user())
        started.append(Server(port, path, config, log, process))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def session_server(serve: Callable[[], Server]) -> Server:
    return serve()


@pytest.fixture
def server(filled: StateDirectory, session_server: Server) -> Server:
    """The server of the session, on a newly filled state directory."""
    return session_server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], seconds: float = 30, message: str = "") -> None:
    """Wait until the condition is true. AssertionError with `message` after the time limit."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:g} s for {message or condition}"
        time.sleep(0.02)


@dataclass
class CommandResult:
    code: int
    out: str
    err: str


@pytest.fixture
def cnctl(state: StateDirectory, home: Path) -> Callable[..., CommandResult]:
    """Run cnctl on `state`; without a server, on a socket that does not exist."""

    def run(
        *arguments: str, server: Server | None = None, env: dict[str, str] | None = None, **more: Any
    ) -> CommandResult:
        path = server.socket if server else home / "missing.sock"
        command = [str(BIN / "cnctl"), "--socket", str(path), "--state", state.path, *arguments]
        environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environ | (env or {}), cwd="/", **more
        )
        return CommandResult(ended.returncode, ended.stdout, ended.stderr)

    return run
