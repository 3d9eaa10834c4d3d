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
  cnctl status network                 the addresses of every link
  cnctl status system                  what the cloud says of this instance
  cnctl status --json | jq .links      the same for programs; --json works everywhere
  cnctl show ssh-keys                  the public keys that the instance was given
  cnctl show document > document.json  the signed identity document, byte for byte
  cnctl audit --last 5                 what netagent was asked lately, and did
  cnctl audit --verify                 prove that nobody touched the audit log
  sudo cnctl show credentials          the role's credentials, for root alone
  sudo cnctl refresh                   read the metadata now, and repair what differs

exit codes:
  0  all is right            2  the command line is wrong
  1  drift, or an error      3  a daemon does not answer, or knows nothing yet
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = argparse.Namespace(config=CONFIG, state=STATE, json=False)
    arguments = _parser().parse_args(argv, given)
    from cloud_network.api.cnctl.source import Source

    try:
        # Names may be in any script; a terminal that cannot show one gets \u…, never an error.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        command = import_module(f"cloud_network.api.cnctl.{arguments.module}")
        code: int = command.run(arguments, Source(arguments.config, arguments.state))
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


def _parser() -> argparse.ArgumentParser:
    # The options stand before or after the command; SUPPRESS keeps the inner parser from undoing the outer.
    common = argparse.ArgumentParser(add_help=False, formatter_class=_Formatter)
    for option, metavar, what in (
        ("--config", "FILE", f"where Listen= is read from ({CONFIG})"),
        ("--state", "DIRECTORY", f"where the fetcher writes ({STATE})"),
    ):
        common.add_argument(option, metavar=metavar, default=argparse.SUPPRESS, help=what)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="for programs")

    parser = argparse.ArgumentParser(
        prog="cnctl",
        description="Look at, and refresh, what cloud-network knows and does on this instance.",
        epilog=HELP,
        formatter_class=_Formatter,
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="command", required=True, prog="cnctl")

    shared: dict[str, Any] = {"parents": [common], "allow_abbrev": False, "formatter_class": _Formatter}

    def command(name: str, module: str, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what, **shared)
        added.set_defaults(module=module)
        return added

    status = command("status", "status", "Whether the network is right, in one screen; or one part of it.")
    status.usage = "cnctl status [system | network] [-h] [--json] [--config FILE] [--state DIRECTORY]"
    parts = status.add_subparsers(metavar="part", prog="cnctl status")
    for name, what in (("system", "What the cloud says of this instance."), ("network", "Every link's addresses.")):
        part = parts.add_parser(name, help=what, description=what, **shared)
        part.set_defaults(module=name)
    show = command("show", "show", "One thing from the metadata, as it is.")
    show.add_argument("what", choices=("ssh-keys", "credentials", *IDENTITY), help="credentials: as root")
    audit = command("audit", "audit", "What netagent was asked, by whom, and what became of it.")
    audit.add_argument("--verify", action="store_true", help="prove that no line was changed, dropped or moved")
    audit.add_argument("--last", type=int, default=20, metavar="N", help="how many lines to show (20)")
    audit.add_argument("--log", default=AUDIT, metavar="FILE", help=f"default: {AUDIT}")
    command("refresh", "refresh", "Read the metadata now, and repair what differs. As root.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
