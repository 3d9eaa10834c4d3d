"""`cnctl`: the command line. Help, shell completion and the man pages are generated from these definitions.

A command's module is imported when the command runs, to keep the start fast.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class
from cloud_network.api.cnctl import watch
from cloud_network.api.cnctl.output import Exit, Failure, note
from cloud_network.api.cnctl.source import SOCKET, Source, read_configuration
from cloud_network.fetcher.state import IDENTITY_PARTS
from cloud_network.fetcher.state import PATH as STATE

AUDIT_LOG = Path("/var/log/cloud-network/audit.log")
WATCH_S = 1.0
"""Time between two repetitions of --watch, in seconds."""
FILE = click.Path(path_type=Path, readable=False)  # the reader of the file reports errors
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

EXAMPLES = """\
\b
Examples:
  cnctl status                         the health of the network, problems first
  cnctl status --watch                 the same, repeated every second
  cnctl status network                 the addresses of every link
  cnctl status system                  the metadata of this instance
  cnctl status --json | jq .links      for programs; --json works with all that show something
  cnctl doctor                         check the host: daemons, metadata, every link
  cnctl doctor 10.0.1.11               why an address does not answer
  sudo cnctl doctor 10.0.1.11:8080     the same for a port that a container publishes
  cnctl show ssh-keys                  the public keys of the instance
  cnctl show document > document.json  the signed identity document, byte for byte
  cnctl audit --last 5                 the last requests to netagent
  cnctl audit --verify                 verify the hash chain of the audit log
  sudo cnctl show credentials          the credentials of the instance's role
  sudo cnctl plan                      the missing changes, as a dry run
  sudo cnctl refresh                   read the metadata now, and repair differences
  sudo cnctl flush                     remove everything that cloud-network added
  cnctl wait --timeout 30              in a script: until the network is configured
  . <(cnctl completion bash)           completion for this shell

\b
Exit codes:
  0    healthy                2   the command line is invalid
  1    drift, or an error     3   a daemon does not answer, or there is no state
  130  interrupted            78  the configuration is invalid
"""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of every command, at any place on the command line."""

    json: bool = False
    config: Path | None = None
    state: Path = STATE
    socket: Path = SOCKET
    watch: bool = False
    interval: float | None = None

    @property
    def source(self) -> Source:
        """Return the source of the state."""
        return Source(self.socket, self.state)


Run = Callable[..., Exit]


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command and pass them as `options`. An option of a group applies to its commands."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
    @click.option(
        "--config",
        type=FILE,
        metavar="FILE",
        help="Configuration to check first. If it is invalid, the exit code is 78.",
    )
    @click.option("--state", type=FILE, metavar="DIRECTORY", help=f"State files of the fetcher. [{STATE}]")
    @click.option("--socket", "unix", type=FILE, metavar="FILE", help=f"Socket of the api. [{SOCKET}]")
    @functools.wraps(command)
    def run(
        as_json: bool,
        config: Path | None,
        state: Path | None,
        unix: Path | None,
        **arguments: Any,
    ) -> Any:
        context = click.get_current_context()
        outer: Options = context.obj or Options()
        context.obj = replace(
            outer,
            json=outer.json or as_json,
            config=config or outer.config,
            state=state or outer.state,
            socket=unix or outer.socket,
        )
        return command(context.obj, **arguments)

    return run


class Seconds(click.FloatRange):
    """A number of seconds in a range. FloatRange itself accepts NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        found = super().convert(value, param, ctx)
        return self.fail("not a number", param, ctx) if math.isnan(found) else found


def watchable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --watch and --interval."""

    @click.option("--watch", "watching", is_flag=True, help="Repeat the command until Ctrl-C.")
    @click.option(
        "--interval",
        type=Seconds(0.1, 86400),
        metavar="SECONDS",
        help="Time between two repetitions of --watch. [1]",
    )
    @functools.wraps(command)
    def run(options: Options, watching: bool, interval: float | None, **arguments: Any) -> Any:
        context = click.get_current_context()
        context.obj = replace(
            options, watch=options.watch or watching, interval=options.interval if interval is None else interval
        )
        return command(context.obj, **arguments)

    return run


def execute(options: Options, run: Run) -> None:
    """Run a command, repeatedly with --watch, and exit with its code."""
    if options.interval is not None and not options.watch:
        raise click.UsageError("--interval needs --watch")
    try:
        if options.config is not None:
            read_configuration(options.config)
        # Names can be in any script. A terminal that cannot show a character gets \\u... instead of an error.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        code = watch.repeat(run, options.interval or WATCH_S, options.json) if options.watch else run()
        sys.stdout.flush()
    except Failure as failure:
        note(str(failure))
        code = failure.code
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    raise click.exceptions.Exit(code)


def _print_version(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        from importlib.metadata import version

        print(f"cnctl {version('cloud-network')}")
        context.exit()


@click.group("cnctl", epilog=EXAMPLES, context_settings=CONTEXT, short_help="show and control cloud-network")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@common
def cli(options: Options) -> None:
    """Show and control what cloud-network does on this instance."""


@cli.group("status", invoke_without_command=True, short_help="Show the health of the network, problems first.")
@common
@watchable
def status_command(options: Options) -> None:
    """Show the health of the network, problems first; or one part of the state.

    Exit code 0: the state is ok; 1: drift, an error or old metadata; 3: the fetcher is not running, or there is no
    state.
    """
    from cloud_network.api.cnctl import status

    if click.get_current_context().invoked_subcommand is None:
        execute(options, lambda: status.run(options.source, options.json))


@status_command.command("system")
@click.option("--all", "everything", is_flag=True, help="Show all of the metadata.")
@common
def system_command(options: Options, everything: bool) -> None:
    """Show the metadata of this instance."""
    from cloud_network.api.cnctl import system

    execute(options, lambda: system.run(options.source, options.json, everything))


@status_command.command("network")
@click.option("--all", "everything", is_flag=True, help="Show all of the metadata.")
@common
@watchable
def network_command(options: Options, everything: bool) -> None:
    """Show the addresses of every link.

    Exit code 0: every link is healthy; 1: a link is not, or the state is out of date; 3: the fetcher is not running, or
    there is no state.
    """
    from cloud_network.api.cnctl import network

    execute(options, lambda: network.run(options.source, options.json, everything))


@cli.command("show", short_help="Print one item of the metadata, unchanged.")
@click.argument("what", type=click.Choice(["ssh-keys", "credentials", "project", *IDENTITY_PARTS]))
@common
def show_command(options: Options, what: str) -> None:
    """Print one item of the metadata, unchanged.

    Only root may print the credentials. The identity documents exist only on AWS, Alibaba Cloud and Azure, the project
    only on Google Cloud. Exit code 1: the cloud does not give the item.
    """
    from cloud_network.api.cnctl import show

    execute(options, lambda: show.run(what, options.source, options.json))


@cli.command("doctor", short_help="Check the host, or find why an address does not answer.")
@click.argument("address", required=False)
@click.option("--from", "client", metavar="CLIENT", help="Address of the client that gets no reply.")
@common
def doctor_command(options: Options, address: str | None, client: str | None) -> None:
    """Find why an address does not answer; without ADDRESS, check the whole host.

    Checks every step that a packet needs, from the metadata to the MTU, and stops at the first that fails. Prints the
    command that shows the failure, and the command to run next. With --from, checks the route of replies to that
    client. ADDRESS:PORT (IPv6: [ADDRESS]:PORT), as root, also checks the replies of a container that publishes the
    port. Exit code 0: every step passed; 1: a step failed.
    """
    from cloud_network.api.cnctl import doctor

    execute(options, lambda: doctor.run(address, client, options.source, options.json))


@cli.command("audit", short_help="Show the requests to netagent, and their verdicts.")
@click.option("--verify", is_flag=True, help="Verify the hash chain: no line was changed, removed or moved.")
@click.option("--last", type=click.IntRange(min=1), default=20, metavar="N", help="Number of log lines to show. [20]")
@click.option("--log", type=FILE, default=AUDIT_LOG, metavar="FILE", help=f"Audit log. [{AUDIT_LOG}]")
@common
def audit_command(options: Options, verify: bool, last: int, log: Path) -> None:
    """Show the requests to netagent: sender, operations and verdict.

    --json also shows the operations of each request. --verify exits with 1 if the chain is broken.
    """
    from cloud_network.api.cnctl import audit

    execute(
        options,
        lambda: audit.verify(log, options.source, options.json) if verify else audit.show(log, last, options.json),
    )


@cli.command("plan", short_help="Print the missing changes (dry run). As root.")
@common
def plan_command(options: Options) -> None:
    """Print the missing changes as `ip` commands, without applying them. As root.

    Reads the metadata first, for at most 20 s; if that fails, the plan covers the metadata of the last refresh. Exit
    code 0: nothing to do; 1: changes are missing, or the metadata cannot be read completely.
    """
    from cloud_network.api.cnctl import control

    execute(options, lambda: control.plan(options.state, options.json))


@cli.command("refresh", short_help="Read the metadata and repair differences now. As root.")
@click.option("--retry", is_flag=True, help="Also retry changes that were refused or rolled back.")
@common
def refresh_command(options: Options, retry: bool) -> None:
    """Read the metadata now, and repair differences. As root.

    A change that was rolled back is retried only after 5 minutes to 6 hours; --retry retries it now. Exit code 0: the
    state is ok or degraded; 1: error. `cnctl status` shows the reason.
    """
    from cloud_network.api.cnctl import control

    execute(options, lambda: control.refresh(options.state, options.json, retry=retry))


@cli.command("flush", short_help="Remove everything that cloud-network added. As root.")
@common
def flush_command(options: Options) -> None:
    """Remove every address, route and rule that cloud-network added. As root.

    Objects of other programs stay, and links keep their state and MTU. Objects that other programs need stay, too; they
    are named, and the exit code is 1. Nothing is added again until `cnctl refresh`, or until the fetcher restarts. To
    stop it for good: sudo systemctl disable --now cloud-network-fetcher. If the fetcher is not running: sudo
    cloud-network-fetcher --flush.
    """
    from cloud_network.api.cnctl import control

    execute(options, lambda: control.flush(options.state, options.json))


@cli.command("wait", short_help="Wait until the network is configured.")
@click.option(
    "--timeout",
    type=Seconds(0, 1e6),
    metavar="SECONDS",
    help="Longest time to wait. [ReadyTimeout= of the configuration]",
)
@common
def wait_command(options: Options, timeout: float | None) -> None:
    """Wait until the network is configured for the first time since the fetcher started.

    Exits with 0 also if the network is configured with problems (degraded) for 10 s or until the timeout; `cnctl
    status` shows them.

    Exit code 0: configured; 1: not configured in time; 3: no supported cloud is detected. To start a unit after
    this, order it after cloud-network-wait-online.service, which runs this command.
    """
    from cloud_network.api.cnctl import wait

    execute(options, lambda: wait.run(timeout, options.config, options.state))


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common
def completion_command(options: Options, shell: str) -> None:
    """Print the completion script of a shell.

    The Debian package and `make install` install these scripts. To load one into a running bash:

    source <(cnctl completion bash)
    """
    execute(options, lambda: _print_completion(shell))


def _print_completion(shell: str) -> Exit:
    completion = get_completion_class(shell)
    if completion is not None:
        print(completion(cli, {}, "cnctl", "_CNCTL_COMPLETE").source())
    return Exit.OK


def main(argv: list[str] | None = None) -> int:
    """Run cnctl; return the exit code."""
    if sys.stdout is None:  # `cnctl >&-`
        note("standard output is closed")
        return Exit.FAILED
    output = sys.stdout
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `cnctl ... | head`
        _discard_output()
        return Exit.OK
    except SystemExit:
        if sys.stdout is output:
            raise
        _discard_output()  # after a broken pipe, click replaces sys.stdout and ends with 1
        return Exit.OK
    except OSError as error:
        _discard_output()
        note(f"the output cannot be written: {error}")
        return Exit.FAILED
    return code


def _run(argv: list[str] | None) -> int:
    try:
        result = cli.main(argv, prog_name="cnctl", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return Exit.INTERRUPTED
    return result if isinstance(result, int) else Exit.OK


def _discard_output() -> None:
    """Let Python's flush at the exit succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
