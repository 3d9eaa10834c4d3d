"""The server process: misbehaving clients, its start, and its privileges."""

import contextlib
import http.client
import json
import os
import pwd
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_network.api.server import MAX_CONNECTIONS
from cloud_network.fetcher.state import StateDirectory

from bench.rest import CLIENTS, load

from .conftest import (
    BIN,
    CommandResult,
    Server,
    audit_line,
    free_port,
    start_activated,
    two_links,
    unprivileged_user,
    wait_for,
)

# --- misbehaving clients ---


def test_unfinished_requests_do_not_block_others(server: Server) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    half = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for client in half:
        client.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: local")
    for byte in b"host\r\nX: y":
        for client in half:
            client.send(bytes([byte]))
        assert server.ask("/api/v1/status").status == 200
    # … and a slow client that does finish is answered.
    half[7].sendall(b"\r\n\r\n")
    assert half[7].recv(12) == b"HTTP/1.1 200"
    for client in idle + half:
        client.close()


def test_200_half_open_connections_do_not_delay_others(server: Server) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    for client in clients:
        client.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: local")
    assert server.ask("/api/v1/health").status == 200
    for client in clients:
        client.close()


def test_half_open_connections_on_tcp_leave_cnctl_its_socket(
    server: Server, cnctl: Callable[..., CommandResult]
) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MAX_CONNECTIONS + 10)]
    for client in clients:
        client.sendall(b"GET ")
    ended = cnctl("status", server=server)
    for client in clients:
        client.close()
    assert (ended.code, ended.err) == (0, "")


def test_clients_that_do_not_close_do_not_hold_up_others(server: Server) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    for client in clients:
        client.sendall(b"GET /api/v1/status HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert server.ask("/api/v1/status").status == 200
    for client in clients:
        assert client.recv(12) == b"HTTP/1.0 200"
        client.close()


def test_a_body_is_not_waited_for(server: Server) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(20)]
    for field in (b"Content-Length: 10", b"Transfer-Encoding: chunked"):
        for client in clients[:10]:
            client.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n" + field + b"\r\n\r\n")
        for client in clients[:10]:
            assert client.recv(12) == b"HTTP/1.1 200"
            client.close()
        del clients[:10]


def test_unread_large_responses_do_not_block_others(server: Server, home: Path) -> None:
    """Many clients do not read their answers; one of them gets the whole answer when it does."""
    (home / "audit.log").write_text("".join(audit_line(n, reason="x" * 15_000) for n in range(1, 101)))
    request = b"GET /api/v1/audit?limit=100 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    expected = server.ask("/api/v1/audit?limit=100").content
    assert len(expected) > 400_000
    clients = []
    for _ in range(24):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", server.port))
        client.sendall(request)
        clients.append(client)
    for client in clients:
        assert client.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) == b"HTTP/1.1 200"  # each answer was started
    assert server.ask("/api/v1/status").status == 200
    got = b"".join(iter(lambda: clients[3].recv(1 << 20), b""))
    assert got.partition(b"\r\n\r\n")[2] == expected
    for client in clients:
        client.close()
    assert server.ask("/api/v1/status").status == 200


def test_one_connection_carries_many_requests_pipelined_or_not(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(5):
        connection.request("GET", "/api/v1/status")
        assert connection.getresponse().read()
    connection.close()
    request = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert server.raw(request * 3 + last).count(b"HTTP/1.1 200") == 4


def test_busy_client_does_not_starve_others(server: Server) -> None:
    """It sends requests without waiting for answers; another client is answered before the last of them."""
    many, answered = 5000, 0
    ended = threading.Event()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:

        def read() -> None:
            nonlocal answered
            line, rest = b"HTTP/1.1 200 OK", b""
            while answered < many and (got := client.recv(1 << 16)):
                answered += (rest + got).count(line)
                rest = (rest + got)[1 - len(line) :]
            ended.set()

        reader = threading.Thread(target=read)
        reader.start()
        sender = threading.Thread(
            target=client.sendall, args=(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n" * many,)
        )
        sender.start()
        wait_for(lambda: answered > 10, message="more than ten answers to the busy client")
        assert server.ask("/api/v1/health").status == 200
        assert not ended.is_set(), f"answered only after all {many} requests"
        sender.join(60)
        reader.join(60)
    assert answered == many


def test_200_parallel_clients_get_all_responses(server: Server, filled: StateDirectory) -> None:
    """While the state changes and others leave requests unfinished, no connection breaks and every status is 200."""
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.05):
            filled.write_status(two_links())

    writer = threading.Thread(target=write)
    writer.start()
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    try:
        for client in idle:
            client.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: local")
        found = load(server.port, "/api/v1/status", 10)
    finally:
        done.set()
        writer.join(30)
        for client in idle:
            client.close()
    assert found.failed == 0
    assert found.rate * 10 > CLIENTS, "every client was answered"


# --- starting ---


def start(*arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(BIN / "cloud-network-api"), *arguments], stderr=subprocess.PIPE, cwd="/", **more)


def test_server_listens_on_listen(filled: StateDirectory) -> None:
    config = Path(filled.path).parent / "own.toml"
    port = free_port()
    config.write_text(f'[Network]\nListen = "[::1]:{port}"\n')
    process = start("--config", str(config), "--state", filled.path, **unprivileged_user())
    try:

        def answers() -> bool:
            connection = http.client.HTTPConnection("::1", port, timeout=30)
            try:
                connection.request("GET", "/api/v1/status")
                return connection.getresponse().status == 200
            except ConnectionRefusedError:
                return False
            finally:
                connection.close()

        wait_for(answers, message="the server to answer")
        second = start("--config", str(config), "--state", filled.path, **unprivileged_user())
        _, logged = second.communicate(timeout=30)
        assert second.returncode == 1
        assert (
            f"[Network] Listen = [::1]:{port}: Address already in use; find the process that uses it with `ss"
            in logged.decode()
        )
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


IP_FREEBIND = 15
"""linux/in.h: bind an address that this host does not have."""


@contextlib.contextmanager
def server_with_sockets(home: Path, config: str, *addresses: str, **more: Any) -> Iterator[tuple[list[int], Path]]:
    """Start a server with sockets from systemd; yield their ports, and its log."""
    path, log = home / "handed.toml", home / "handed.log"
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in addresses]
        for listener, address in zip(listeners, addresses, strict=True):
            listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            listener.bind((address, 0))
            listener.listen()
        ports = [listener.getsockname()[1] for listener in listeners]
        path.write_text(config.format(*ports))
        command = [str(BIN / "cloud-network-api"), "--config", str(path), "--state", str(home / "run")]
        with log.open("wb") as output:
            process = start_activated(command, *listeners, stderr=output, cwd="/", **unprivileged_user(), **more)
        wait_for(lambda: "Booting worker" in log.read_text(), message="the worker to start")
        assert answer("127.0.0.1", ports[0], "localhost") == 200  # then the worker handles SIGTERM
        try:
            yield ports, log
        finally:
            process.terminate()
            process.wait(30)


def answer(address: str, port: int, host: str) -> int:
    connection = http.client.HTTPConnection(address, port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/api/v1/status", headers={"Host": host})
        return connection.getresponse().status


def test_systemd_sockets_override_listen_with_a_warning(filled: StateDirectory, home: Path) -> None:
    """Two sockets, one of them not on loopback: the server logs a warning, and accepts its address as a Host header."""
    lan = "198.51.100.7"
    with server_with_sockets(home, '[Network]\nListen = "127.0.0.1:9"\n', "127.0.0.1", lan) as (ports, log):
        first, second = ports
        logged = log.read_text()
        assert f"systemd listens on 127.0.0.1:{first}, {lan}:{second}; [Network] Listen = 127.0.0.1:9 is" in logged
        assert f'level=warning msg="{lan}:{second} is not loopback' in logged
        assert f'msg="127.0.0.1:{first} is not loopback' not in logged
        assert [answer("127.0.0.1", first, host) for host in (lan, "localhost", "198.51.100.8")] == [200, 200, 421]


def test_listen_equal_to_the_socket_unit_gives_no_notice(filled: StateDirectory, home: Path) -> None:
    with server_with_sockets(home, '[Network]\nListen = "127.0.0.1:{}"\n', "127.0.0.1") as (ports, log):
        assert answer("127.0.0.1", ports[0], "198.51.100.7") == 421
        assert "level=warning" not in log.read_text()


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_log_line_has_the_configured_format(filled: StateDirectory, home: Path, form: str) -> None:
    config = f'[System]\nLogFormat = "{form}"\n[Network]\nListen = "127.0.0.1:9"\n'
    with server_with_sockets(home, config, "127.0.0.1") as (_, log):
        pass
    lines = log.read_text().splitlines()
    assert len(lines) > 4, "gunicorn's first and last lines, and cloud-network's warning"
    for line in lines:
        if form == "json":
            assert json.loads(line).keys() == {"time", "level", "msg"}
        else:
            assert re.fullmatch(r'time=[0-9TZ:-]+ level=(info|warning) msg=".+"', line)
    assert "is ignored" in log.read_text()
    assert "Booting worker" in log.read_text()


def test_environment_overrides_log_level_and_format(filled: StateDirectory, home: Path) -> None:
    environment = {**os.environ, "CLOUD_NETWORK_LOG_LEVEL": "DEBUG", "CLOUD_NETWORK_LOG_FORMAT": "json"}
    config = '[System]\nLogLevel = "error"\nLogFormat = "text"\n'
    with server_with_sockets(home, config, "127.0.0.1", env=environment) as (_, log):
        pass
    assert "debug" in {json.loads(line)["level"] for line in log.read_text().splitlines()}


def test_invalid_configuration_stops_it_with_place_and_reason(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text('[Network]\nListen = "everywhere"\n')
    process = start("--config", str(config))
    _, logged = process.communicate(timeout=30)
    assert process.returncode == 78
    assert f"{config}:2: [Network] Listen = everywhere: not an address and a port; accepted:" in logged.decode()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to lose")


def with_passwd(entries: str, tmp_path: Path, command: list[str]) -> list[str]:
    """Run the command in a separate mount namespace with another /etc/passwd."""
    passwd = tmp_path / "passwd"
    passwd.write_text(entries)
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/passwd && exec "$@"', str(passwd), *command]


@as_root
def test_missing_user_names_the_command(tmp_path: Path) -> None:
    command = [str(BIN / "cloud-network-api"), "--config", str(tmp_path / "none.toml"), "--state", "/nowhere"]
    (tmp_path / "none.toml").write_text(f'[Network]\nListen = "127.0.0.1:{free_port()}"\n')
    ended = subprocess.run(
        with_passwd("root:x:0:0::/root:/bin/sh\n", tmp_path, command), capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert b"the user cloud-network-api does not exist. Create it: systemd-sysusers" in ended.stderr


def test_idle_server_exits_and_the_socket_stays(filled: StateDirectory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [str(BIN / "cloud-network-api"), "--config", "/nonexistent", "--state", filled.path]
        for _ in range(2):  # the second is started by a request that arrived while no server was running
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/api/v1/status")
            process = start_activated([*command, "--idle-exit", "0.5"], listener, cwd="/", **unprivileged_user())
            assert connection.getresponse().status == 200
            connection.close()
            assert process.wait(30) == 0


def test_without_systemds_socket_it_stays(filled: StateDirectory, tmp_path: Path) -> None:
    config = Path(filled.path).parent / "stays.toml"
    port = free_port()
    config.write_text(f'[Network]\nListen = "127.0.0.1:{port}"\n')
    process = start("--config", str(config), "--state", filled.path, "--idle-exit", "0.1", **unprivileged_user())
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


@as_root
def test_root_becomes_the_user_without_privileges(filled: StateDirectory, tmp_path: Path) -> None:
    entries = "root:x:0:0::/root:/bin/sh\ncloud-network-api:x:61234:61235::/:/usr/sbin/nologin\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        api = [str(BIN / "cloud-network-api"), "--config", "/nonexistent", "--state", filled.path]
        inner = [
            "sh",
            "-c",
            'LISTEN_PID=$$ exec "$@"',
            "sh",
            *api,
        ]  # the descriptors belong to the shell that unshare starts
        process = start_activated(with_passwd(entries, tmp_path, inner), listener, extra_groups=[4, 27])
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/api/v1/status")
        assert connection.getresponse().status == 200
        connection.close()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        for pid in (process.pid, *children):
            lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert lines["Uid"].split() == ["61234"] * 4
            assert lines["Gid"].split() == ["61235"] * 4
            assert lines["Groups"].split() == []
            assert lines["NoNewPrivs"] == "1"
            assert {lines[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    finally:
        process.terminate()
        process.wait(30)


def test_unprivileged_user_can_run_the_server(filled: StateDirectory, serve: Callable[[], Server]) -> None:
    server = serve()
    assert server.ask("/api/v1/health").status == 200
    lines = Path(f"/proc/{server.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in lines
    if os.geteuid() == 0:
        assert f"Uid:\t{pwd.getpwnam('nobody').pw_uid}" in lines
    assert server.stop() == 0
