"""`cloud-network-api`: gunicorn with its gevent worker runs the application. One worker, loaded before the fork.

It listens on TCP for curl, Prometheus and browsers, and on a Unix socket for cnctl. Only root and the api's user can
write to the socket's directory, so no other local user can answer in its place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import gevent
from cloud_network.api import audit_log
from cloud_network.api.app import create_app
from cloud_network.fetcher import config as configuration
from cloud_network.fetcher import service
from cloud_network.fetcher.config import Config, ConfigError, Endpoint, LogFormat, LogLevel
from cloud_network.fetcher.state import PATH as STATE
from cloud_network.fetcher.state import StateDirectory
from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

USER = "cloud-network-api"
SOCKET = Path("/run/cloud-network-api/api.sock")
MAX_CONNECTIONS = 400
"""Limit of open connections per listener: if TCP clients reach their listener's limit, cnctl's socket still answers.

LimitNOFILE= is higher.
"""
BACKLOG = 512
IDLE_CHECKS = 10
"""Number of checks for idleness within the idle time."""
LEVELS = {LogLevel.TRACE: "debug", LogLevel.FATAL: "critical", LogLevel.PANIC: "critical"}
"""gunicorn's names of log levels that differ from cloud-network's."""

logger = logging.getLogger(__name__)


class Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's log in cloud-network's format."""

    form = LogFormat.TEXT

    def setup(self, cfg: Any) -> None:
        """Apply gunicorn's settings, and replace its handler by cloud-network's."""
        super().setup(cfg)
        self.error_log.handlers[:] = [service.log_handler(self.form)]


class IdleExit:
    """Ends the server after `limit` seconds without a request, through gunicorn's server hooks."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._last = time.monotonic()
        self._active = 0

    def pre_request(self, worker: Any, req: Any) -> None:
        """Record the start of a request."""
        self._active += 1

    def post_request(self, worker: Any, req: Any, environ: Any, resp: Any) -> None:
        """Record the end of a request."""
        self._active -= 1
        self._last = time.monotonic()
        take_turns(worker, req, environ, resp)

    def post_worker_init(self, worker: Any) -> None:
        """Start the check for idleness."""
        self._last = time.monotonic()
        gevent.spawn(self._watch, worker)

    def _watch(self, worker: Any) -> None:
        while self._active or time.monotonic() < self._last + self._limit:
            gevent.sleep(self._limit / IDLE_CHECKS)
        worker.log.info("no request for %g s: exiting; systemd keeps the socket and starts the api again", self._limit)
        os.kill(worker.ppid, signal.SIGTERM)


def take_turns(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Yield to the other connections: a client that always sends a next request would otherwise occupy the worker."""
    gevent.sleep(0)


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with these settings only: it reads no file, environment or command line."""

    def __init__(self, app: Flask, settings: dict[str, Any]):
        self._app = app
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Apply the settings."""
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return the application, built before the first worker is forked."""
        return self._app


def gunicorn_settings(config: Config, listeners: Sequence[socket.socket], idle_exit: float) -> dict[str, Any]:
    """Return gunicorn's settings. `listeners` are sockets of this process; if empty, gunicorn takes systemd's."""
    settings = {
        "bind": [f"fd://{listener.detach()}" for listener in listeners] or [str(config.listen)],
        "user": os.geteuid(),
        "group": os.getegid(),
        "workers": 1,
        "worker_class": "gevent",
        "worker_connections": MAX_CONNECTIONS,
        "preload_app": True,
        "keepalive": 5,
        "graceful_timeout": 5,
        "limit_request_line": 2048,
        "limit_request_fields": 50,
        "limit_request_field_size": 4096,
        "forwarded_allow_ips": "",  # no proxy in front
        "secure_scheme_headers": {},  # gunicorn trusts these from every client of a Unix socket
        "forwarder_headers": "",
        "control_socket_disable": True,
        "logger_class": Log,
        "loglevel": LEVELS.get(config.log_level, str(config.log_level)),
        "proc_name": "cloud-network-api",
        "post_request": take_turns,
    }
    if idle_exit:
        idle = IdleExit(idle_exit)
        settings |= {
            "pre_request": idle.pre_request,
            "post_request": idle.post_request,
            "post_worker_init": idle.post_worker_init,
        }
    return settings


@dataclass(frozen=True, slots=True)
class Places:
    """Paths that the command line can change."""

    config: Path
    state: Path
    socket: Path
    log: Path


PATH = click.Path(path_type=Path, readable=False)  # the reader of the file reports errors


@click.command("cloud-network-api", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("cloud-network"), message="%(prog)s %(version)s")
@click.option(
    "--config", type=PATH, default=configuration.PATH, metavar="FILE", show_default=True, help="Configuration."
)
@click.option(
    "--state", type=PATH, default=STATE, metavar="DIRECTORY", show_default=True, help="State files of the fetcher."
)
@click.option(
    "--socket", "unix", type=PATH, default=SOCKET, metavar="FILE", show_default=True, help="Unix socket for cnctl."
)
@click.option(
    "--log", type=PATH, default=audit_log.PATH, metavar="FILE", show_default=True, help="Audit log of netagent."
)
@click.option(
    "--idle-exit",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="With sockets from systemd: exit after this time without a request. Default: never.",
)
def main(config: Path, state: Path, unix: Path, log: Path, idle_exit: float) -> None:
    """Serve the state of cloud-network as JSON, read-only, on Listen= and on a Unix socket. Runs in the foreground.

    Exit status 78: the configuration is invalid.
    """
    try:
        serve(Places(config, state, unix, log), idle_exit)
    except ConfigError as error:
        print(f"cloud-network-api: {error}", file=sys.stderr)
        sys.exit(configuration.EX_CONFIG)
    except (service.PrivilegeError, OSError) as error:
        sys.exit(f"cloud-network-api: {error}")


def serve(places: Places, idle_exit: float) -> None:
    """Read the configuration, listen, drop privileges, and serve until SIGTERM."""
    config = configuration.load(places.config)
    activated = _activated()
    # Bound before privileges are dropped, so that a port below 1024 works too.
    listeners = [] if activated else [_listen_tcp(config.listen)]
    own_directory = not activated and places.socket == SOCKET  # another path's directory keeps its owner
    service.drop_privileges(USER, (SOCKET.parent,) if own_directory else ())
    Log.form = config.log_format
    service.set_up_logging(config.log_level, config.log_format)
    if not activated:
        listeners += _listen_unix(places.socket)
    endpoints = _systemd_endpoints() if activated else (config.listen,)
    _warn(config.listen, endpoints)
    app = create_app(StateDirectory(places.state), endpoints, places.log)
    Server(app, gunicorn_settings(config, listeners, idle_exit if activated else 0.0)).run()


def _warn(configured: Endpoint, endpoints: Sequence[Endpoint]) -> None:
    if configured not in endpoints:
        logger.warning(
            "systemd listens on %s; [Network] Listen = %s is ignored. Make them equal: change Listen=, or "
            "ListenStream= of the socket unit (systemctl edit cloud-network-api.socket)",
            ", ".join(map(str, endpoints)) or "no TCP address",
            configured,
        )
    for endpoint in endpoints:
        if not endpoint.address.is_loopback:
            logger.warning("%s is not loopback: every host that reaches it can read this instance's metadata", endpoint)


def _activated() -> bool:
    """Return True if systemd passed sockets (sd_listen_fds(3)); gunicorn takes them."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") != "0"


def _systemd_endpoints() -> tuple[Endpoint, ...]:
    """Return the TCP endpoints of systemd's sockets, whose descriptors start at 3."""
    found = []
    for descriptor in range(3, 3 + int(os.environ["LISTEN_FDS"])):
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                address, port = listener.getsockname()[:2]
                found.append(Endpoint(ip_address(address), port))
    return tuple(found)


def _listen_tcp(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET if endpoint.address.version == 4 else socket.AF_INET6
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((str(endpoint.address), endpoint.port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"[Network] Listen = {endpoint}: {error.strerror}; find the process that uses it with "
            f"`ss -ltnp sport = {endpoint.port}`, or set another ip:port"
        ) from error
    listener.listen(BACKLOG)
    return listener


def _listen_unix(path: Path) -> list[socket.socket]:
    """Return a socket at `path` that every user can connect to; none, after a warning, if it cannot be made."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o666)
    except OSError as error:
        listener.close()
        logger.warning("%s: %s; cnctl will read the state files instead", path, error.strerror)
        return []
    listener.listen(BACKLOG)
    return [listener]


if __name__ == "__main__":
    main()
