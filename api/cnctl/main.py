"""`cnctl`: the command line, and nothing more. Each command is a module that is imported when it is chosen.

Start-up is part of what people feel (at most four times `python3 -c pass`), so modules on this path import neither
typing nor dataclasses, pathlib, ipaddress or an HTTP library.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from cloud_network.api.cnctl import layout
from cloud_network.api.cnctl.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONFIG = "/etc/cloud-network/cloud-network.toml"
STATE = "/run/cloud-network"
AUDIT = "/var/log/cloud-network/audit.log"
IDENTITY = ("document", "pkcs7", "signature", "rsa2048")

HELP = """\
examples:
  cnctl status                         is my network right? what is wrong comes first
  cnctl status --watch                 the same, again every second
  cnctl status network                 the addresses of every link
  cnctl status system                  what the cloud says of this instance
  cnctl status --json | jq .links      the same for programs; --json works everywhere
  cnctl doctor 10.0.1.11               why an address does not answer
  cnctl show ssh-keys                  the public keys that the instance was given
  cnctl show document > document.json  the signed identity document, byte for byte
  cnctl audit --last 5                 what netagent was asked lately, and did
  cnctl audit --verify                 prove that nobody touched the audit log
  sudo cnctl show credentials          the role's credentials, for root alone
  sudo cnctl plan                      what would be changed now; nothing is
  sudo cnctl refresh                   read the metadata now, and repair what differs
  sudo cnctl flush                     take away all that cloud-network put there
  . <(cnctl completion bash)           completion for this shell

exit codes:
  0  all is right            2  the command line is wrong
  1  drift, or an error      3  a daemon does not answer, or knows nothing yet
"""

DOCTOR = """\
Why an address of this instance does not answer. From the metadata to the MTU, every link of the
chain that a packet needs is looked at, up to the first that is broken: that one is named, with
the command that shows it and what to do. With --from, for one client: the way back may differ.
"""
PLAN = """\
What would be changed now, in the order of the changes, as `ip` commands. The metadata is read
afresh, and nothing is changed. Exit code 0: there is nothing to do; 1: there is.
"""
FLUSH = """\
Take away every address, route and rule that cloud-network put into the kernel.
What others put there stays as it is, and so do links: up, with the MTU they have.

Nothing is put back until `cnctl refresh`, or until the service is started again.
To stop it for good: sudo systemctl disable --now cloud-network-fetcher, and
while the fetcher is not running: sudo cloud-network-fetcher --flush
"""
COMPLETION = """\
Completion for a shell, to be read by it:
  bash   cnctl completion bash > /etc/bash_completion.d/cnctl
  zsh    cnctl completion zsh > /usr/local/share/zsh/site-functions/_cnctl
  fish   cnctl completion fish > /etc/fish/completions/cnctl.fish
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = argparse.Namespace(config=CONFIG, state=STATE, json=False, watch=None)
    words = sys.argv[1:] if argv is None else argv
    # argparse would take the word that follows --watch for its seconds
    arguments = parser().parse_args(["--watch=1" if word == "--watch" else word for word in words], given)
    from cloud_network.api.cnctl.source import Source

    try:
        # Names may be in any script; a terminal that cannot show one gets \u…, never an error.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        command = import_module(f"cloud_network.api.cnctl.{arguments.module}")
        run = command.run
        if arguments.watch is not None:
            from cloud_network.api.cnctl.watch import watched

            run = watched(run)
        code: int = run(arguments, Source(arguments.config, arguments.state))
        sys.stdout.flush()
    except Failure as failure:
        print(f"cnctl: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:  # `cnctl … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return code


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Told its width, argparse does not import shutil to find it; it makes a formatter for every argument added."""

    def __init__(self, prog: str):
        super().__init__(prog, width=layout.columns() or 80)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # costs more than a whole command

        print(f"cnctl {version('cloud-network')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Every command and option; completion and the man pages are made from it as well."""
    # The options stand before or after the command; SUPPRESS keeps the inner parser from undoing the outer.
    common = argparse.ArgumentParser(add_help=False, formatter_class=_Formatter)
    for option, metavar, what in (
        ("--config", "FILE", f"where Listen= is read from ({CONFIG})"),
        ("--state", "DIRECTORY", f"where the fetcher writes ({STATE})"),
    ):
        common.add_argument(option, metavar=metavar, default=argparse.SUPPRESS, help=what)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="for programs")

    root = argparse.ArgumentParser(
        prog="cnctl",
        description="Look at, and refresh, what cloud-network knows and does on this instance.",
        epilog=HELP,
        formatter_class=_Formatter,
        parents=[common],
        allow_abbrev=False,
    )
    root.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = root.add_subparsers(metavar="command", required=True, prog="cnctl")

    shared: dict[str, Any] = {"parents": [common], "allow_abbrev": False, "formatter_class": _Formatter}

    def command(name: str, what: str, description: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=description or what, **shared)
        added.set_defaults(module=name)
        return added

    status = command("status", "Whether the network is right, in one screen; or one part of it.")
    _watch(status)
    status.usage = "cnctl status [system | network] [-h] [--watch[=S]] [--json] [--config FILE] [--state DIRECTORY]"
    parts = status.add_subparsers(metavar="part", prog="cnctl status")
    for name, what in (("system", "What the cloud says of this instance."), ("network", "Every link's addresses.")):
        part = parts.add_parser(name, help=what, description=what, **shared)
        part.set_defaults(module=name)
        if name == "network":
            _watch(part)
    show = command("show", "One thing from the metadata, as it is.")
    show.add_argument("what", choices=("ssh-keys", "credentials", "project", *IDENTITY), help="credentials: as root")
    doctor = command("doctor", "Why an address of this instance does not answer.", DOCTOR)
    doctor.add_argument("address", metavar="ADDRESS", help="a private address of this instance")
    doctor.add_argument("--from", dest="client", metavar="CLIENT", help="the address of who gets no answer")
    audit = command("audit", "What netagent was asked, by whom, and what became of it.")
    audit.add_argument("--verify", action="store_true", help="prove that no line was changed, dropped or moved")
    audit.add_argument("--last", type=_count, default=20, metavar="N", help="how many lines to show (20)")
    audit.add_argument("--log", default=AUDIT, metavar="FILE", help=f"default: {AUDIT}")
    command("plan", "What would be changed now, as `ip` commands; nothing is. As root.", PLAN)
    command("refresh", "Read the metadata now, and repair what differs. As root.")
    command("flush", "Take away all that cloud-network put into the kernel. As root.", FLUSH)
    completion = command("completion", "Completion for a shell.", COMPLETION)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return root


def _watch(added: argparse.ArgumentParser) -> None:
    what = "again every second, or every SECONDS; Ctrl-C ends it"
    added.add_argument("--watch", nargs="?", type=_seconds, metavar="SECONDS", default=argparse.SUPPRESS, help=what)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86400:
        raise ValueError
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


_count.__name__ = "number of lines"
_seconds.__name__ = "time of 0.1 to 86400 seconds"  # argparse says: invalid … value


if __name__ == "__main__":
    sys.exit(main())
