"""Entry point of cloud-network-fetcher: arguments, privileges, and wiring of the daemon's parts."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from cloud_network.fetcher import config as configuration
from cloud_network.fetcher import service
from cloud_network.fetcher.config import EX_CONFIG, Config
from cloud_network.fetcher.control import flush_directly
from cloud_network.fetcher.daemon import Daemon, PassHungError, configure
from cloud_network.fetcher.metadata.detect import DetectionError, NoCloudError, detect, read_firmware
from cloud_network.fetcher.reconciler import Memory, Reconciler
from cloud_network.fetcher.reporting import Reporter, record_failed_start
from cloud_network.fetcher.service import Notifier, api_listeners
from cloud_network.fetcher.state import PATH, AlreadyRunning, RunLock, StateDirectory, StateError

logger = logging.getLogger(__name__)

USER = "cloud-network"
EX_NO_CLOUD = 69
"""Exit status if no supported cloud is detected: EX_UNAVAILABLE of sysexits.h. The unit counts it as success."""


def main() -> None:
    """Run cloud-network-fetcher."""
    arguments = _parser().parse_args()
    if arguments.flush:
        flush_directly()
        return
    try:
        config = configuration.load(arguments.config)
    except configuration.ConfigError as error:
        if not arguments.check_config:
            _report_bad_configuration(error)
        raise _exit_without_restart(error) from None
    if arguments.check_config:
        _check_config(arguments.config, config)
        return
    _run(config, arguments.config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-network-fetcher",
        description="Reads the instance metadata and asks netagent to configure the network accordingly.",
        epilog="Signals: SIGHUP reloads the configuration and reads the metadata. SIGTERM stops the fetcher; the "
        f'network stays as it is unless Purge="on-stop" is set. Exit status {EX_CONFIG}: the configuration is invalid. '
        f"Exit status {EX_NO_CLOUD}: no supported cloud is detected. A restart does not help in either case. "
        "--check-config prints every value in force as a TOML file, with defaults marked, and exits with 0. For an "
        f"invalid file it prints every error and exits with {EX_CONFIG}.",
    )
    parser.add_argument(
        "--config", type=Path, default=configuration.PATH, metavar="FILE", help="configuration (default: %(default)s)"
    )
    parser.add_argument("--check-config", action="store_true", help="check the configuration, print it and exit")
    parser.add_argument(
        "--flush",
        action="store_true",
        help="as root, while no fetcher runs: remove everything that cloud-network added",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {version('cloud-network')}",
        help="show the version and exit",
    )
    return parser


def _check_config(path: Path, config: Config) -> None:
    found = "OK" if path.exists() else "there is no such file; the defaults apply"
    print(f"{path}: {found}. The values in force:")
    print("\n".join(configuration.effective(config)))
    for notice in config.notices:
        print(notice, file=sys.stderr)
    listeners = api_listeners()
    if listeners and str(config.listen) not in listeners:
        print(
            f"[Network] Listen = {config.listen} has no effect: systemd listens on {', '.join(listeners)}. "
            "Set Listen= to that, or run: systemctl edit cloud-network-api.socket",
            file=sys.stderr,
        )


def _run(config: Config, path: Path) -> None:
    try:
        service.drop_privileges(USER, (PATH,))
    except service.PrivilegeError as error:
        raise SystemExit(f"cloud-network-fetcher: {error}") from None
    service.set_up_logging(config.log_level, config.log_format)
    state = StateDirectory()
    try:
        state.prepare()
        lock = RunLock(state)
    except (AlreadyRunning, OSError, StateError) as error:
        raise SystemExit(f"cloud-network-fetcher: {error}") from None
    try:
        provider = detect(config.provider, read_firmware(credentials=service.credentials_directory()))
    except NoCloudError as error:
        record_failed_start(state, lock.run, "no-cloud", error)
        Notifier().ready(str(error))  # for systemd, an exit before READY=1 is a failure with any exit status
        raise _exit_without_restart(error, EX_NO_CLOUD) from None
    except DetectionError as error:
        record_failed_start(state, lock.run, "detection", error)
        raise _exit_without_restart(error) from None
    configure(config, provider)
    logger.info("cloud: %s, metadata at %s", provider.name, provider.client.endpoint)
    notifier = Notifier()
    reporter = Reporter(state, provider.name, lock.run, config)
    reporter.renew()  # from now on, status.json is from this run
    memory = Memory.new(departed=reporter.status["departed_macs"])
    reconciler = Reconciler(config, provider, memory, status=notifier.status)
    try:
        asyncio.run(Daemon(config, provider, reconciler, reporter, notifier, path).run())
    except ExceptionGroup as group:
        hung = group.subgroup(PassHungError)
        if hung is None:
            reporter.record_end(f"unexpected error: {group.exceptions[0]!r:.500}")
            raise
        reporter.record_end(str(hung.exceptions[0]))
        raise SystemExit(f"cloud-network-fetcher: {hung.exceptions[0]}; systemd starts it again") from None


def _report_bad_configuration(error: Exception) -> None:
    """Write the reason to status.json for `cnctl status`, if no other fetcher is running."""
    with suppress(service.PrivilegeError, AlreadyRunning, OSError, StateError):
        service.drop_privileges(USER, (PATH,))
        state = StateDirectory()
        state.prepare()
        record_failed_start(state, RunLock(state).run, "config", error)


def _exit_without_restart(error: Exception, status: int = EX_CONFIG) -> SystemExit:
    """Return the exit for an error that a restart does not fix. The unit does not restart after these exit statuses."""
    print(f"cloud-network-fetcher: {error}", file=sys.stderr)
    return SystemExit(status)


if __name__ == "__main__":
    main()
