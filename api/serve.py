"""`cloud-network-api`: gunicorn around the application. One small worker with threads, loaded before the fork."""

import argparse
import logging
import os
import socket
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cloud_network.api import audit
from cloud_network.api.app import create_app
from cloud_network.api.privileges import PrivilegeError, drop
from cloud_network.api.worker import PatientWorker
from cloud_network.fetcher import config as configuration
from cloud_network.fetcher import log, state
from cloud_network.fetcher.config import Config, ConfigError, Endpoint, LogFormat, LogLevel
from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

THREADS = 8
LEVELS = {LogLevel.TRACE: "debug", LogLevel.FATAL: "critical", LogLevel.PANIC: "critical"}
"""gunicorn's words for the levels that it names otherwise."""

logger = logging.getLogger(__name__)


class Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """What gunicorn has to say, in the form of what we say."""

    form = LogFormat.TEXT

    def setup(self, cfg: Any) -> None:
        """Take gunicorn's settings, and put our handler in the place of its own."""
        super().setup(cfg)
        self.error_log.handlers[:] = [log.handler(self.form)]


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with our settings and nobody else's: no file, environment or command line of its own is read."""

    def __init__(self, app: Flask, config: Config, listener: socket.socket | None):
        self._app = app
        self._settings = {
            "bind": f"fd://{listener.detach()}" if listener else str(config.listen),
            "user": os.geteuid(),  # gunicorn took its default when it was imported, before privilege was dropped
            "group": os.getegid(),
            "workers": 1,
            "worker_class": PatientWorker,
            "threads": THREADS,
            "preload_app": True,
            "keepalive": 5,
            "graceful_timeout": 5,
            "limit_request_line": 2048,
            "limit_request_fields": 50,
            "limit_request_field_size": 4096,
            "forwarded_allow_ips": "",  # there is no proxy; nobody may say who he is or what the path was
            "control_socket_disable": True,
            "logger_class": Log,
            "loglevel": LEVELS.get(config.log_level, str(config.log_level)),
            "proc_name": "cloud-network-api",
        }
        super().__init__()

    def load_config(self) -> None:
        """Take the settings over."""
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return the application, built before the first worker is forked."""
        return self._app


def main() -> None:
    """Read the configuration, listen, give up privilege, serve. Exits 1 with a message when it cannot."""
    parser = argparse.ArgumentParser(
        prog="cloud-network-api",
        description="Serve the state of cloud-network as JSON on Listen=, read-only. Runs in the foreground.",
    )
    parser.add_argument("--config", type=Path, default=configuration.PATH, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--state", type=Path, default=state.PATH, metavar="DIRECTORY", help="default: %(default)s")
    parser.add_argument("--log", default=audit.PATH, metavar="FILE", help="netagent's audit log; default: %(default)s")
    parser.add_argument(
        "--idle-exit",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="end after so long without a request, when systemd has the socket and starts it again; default: never",
    )
    arguments = parser.parse_args()
    try:
        config = configuration.load(arguments.config)
        # Bound before privilege goes, so that a port below 1024 works too.
        listener = None if _activated() else _listen(config.listen)
        drop()
    except (ConfigError, PrivilegeError, OSError) as error:
        sys.exit(f"cloud-network-api: {error}")
    Log.form = config.log_format
    log.set_up(config.log_level, config.log_format)
    listening = _handed_over() if listener is None else (config.listen,)
    _warn(config.listen, listening)
    if _activated():  # with a socket of its own, nobody would start it again
        PatientWorker.idle_exit = arguments.idle_exit
    Server(create_app(state.StateDirectory(arguments.state), listening, arguments.log), config, listener).run()


def _warn(configured: Endpoint, listening: Sequence[Endpoint]) -> None:
    """Say what an operator may not expect of where we listen."""
    if configured not in listening:
        there = ", ".join(map(str, listening)) or "no address"
        logger.warning(
            "systemd listens on %s, and [Network] Listen = %s does not count: set Listen= to that, or ListenStream= "
            "of the socket to this (systemctl edit cloud-network-api.socket)",
            *(there, configured),
        )
    for endpoint in listening:
        if not endpoint.address.is_loopback:
            logger.warning("%s is not loopback: everybody who can reach it can read this instance's metadata", endpoint)


def _activated() -> bool:
    """Whether systemd hands us the socket; gunicorn takes it from there."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") != "0"


def _handed_over() -> tuple[Endpoint, ...]:
    """Where systemd's sockets listen, whose descriptors begin with 3 (sd_listen_fds(3)); not those of Unix."""
    found = []
    for descriptor in range(3, 3 + int(os.environ["LISTEN_FDS"])):
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                address, port = listener.getsockname()[:2]
                found.append(Endpoint(ip_address(address), port))
    return tuple(found)


def _listen(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET if endpoint.address.version == 4 else socket.AF_INET6
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((str(endpoint.address), endpoint.port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"[Network] Listen = {endpoint}: {error.strerror}; see who has it with "
            f"`ss -ltnp sport = {endpoint.port}`, or set another ip:port"
        ) from error
    listener.listen(512)
    return listener
