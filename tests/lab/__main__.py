"""Command line of the lab, for interactive use.

python -m tests.lab shell                        a lab, and a shell in its instance; removed when the shell exits
python -m tests.lab shell --cloud gcp --ipv6 1   the same on Google Cloud, with IPv6
python -m tests.lab up --start                   a lab with running daemons, until ^C; meanwhile, in another terminal:
python -m tests.lab list                         the running labs and their namespaces
python -m tests.lab enter instance ip rule       a command (or a shell) in a namespace of the newest lab
python -m tests.lab metadata fail status --status 503     its metadata server: requests, fail KIND, clear
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .lab import Lab
from .metadata import PROVIDERS, Metadata
from .namespaces import ENVIRONMENT, LAB_RUN, LabError, Namespace
from .privilege import become_root
from .processes import SCRIPTS
from .spec import Spec

DAEMONS = ("netagent", "fetcher", "api")
CONFIG = '[Netagent]\nAllowKinds = "veth"\n'
"""The lab's cables are veth, which netagent does not manage by default."""


def running_labs() -> dict[int, dict[str, Namespace]]:
    """Return the caller's namespaces by lab, the newest last. A lab's number is its holder's pid (holder.py)."""
    labs: dict[int, dict[str, Namespace]] = defaultdict(dict)
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            name = (process / "comm").read_text().strip()
            is_callers = process.stat().st_uid == os.geteuid()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if is_callers and name.startswith("lab:"):
            labs[parent][name.removeprefix("lab:")] = Namespace(name.removeprefix("lab:"), int(process.name))
    return labs


def find_lab(number: int | None) -> dict[str, Namespace]:
    labs = running_labs()
    if not labs:
        sys.exit("No lab is running. Try: python -m tests.lab up")
    if number is not None and number not in labs:
        sys.exit(f"No lab {number}; running: {', '.join(map(str, labs))}.")
    return labs[max(labs) if number is None else number]


def interactive(namespace: Namespace, argv: Sequence[str]) -> int:
    """Run a program that handles ^C itself."""
    environment = {**ENVIRONMENT, "PATH": f"{SCRIPTS}:{ENVIRONMENT['PATH']}", "PS1": f"[{namespace.name}] # "}
    enter = namespace.enter(*(argv or ["bash", "--norc"]))
    if os.geteuid():
        enter[1:1] = ["--user", "--preserve-credentials"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.call(
            enter, env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None
        )
    finally:
        signal.signal(signal.SIGINT, before)


def configure(lab: Lab, start: bool) -> None:
    lab.write_config(CONFIG)
    for name in DAEMONS if start else ():
        lab.start(name)


def ordered_spec(options: argparse.Namespace) -> Spec:
    return Spec.cloud(options.cloud, options.interfaces, options.addresses, options.ipv6)


def shell(options: argparse.Namespace) -> int:
    with Lab(ordered_spec(options)) as lab:
        configure(lab, options.start)
        return interactive(lab.namespace(options.namespace), [])


def up(options: argparse.Namespace) -> int:
    with Lab(ordered_spec(options)) as lab:
        configure(lab, options.start)
        for nic in lab.nics:
            print(f"{nic.name}  {nic.mac}  device {nic.device}  {nic.subnet}  {len(nic.all_addresses)} addresses")
        print("Running until ^C. In another terminal: python -m tests.lab enter instance", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores ^C otherwise
            signal.signal(number, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print()
    return 0


def show(_: argparse.Namespace) -> int:
    for number, namespaces in running_labs().items():
        print(f"lab {number}: " + ", ".join(f"{name} (pid {namespace.pid})" for name, namespace in namespaces.items()))
    return 0


def enter(options: argparse.Namespace) -> int:
    namespaces = find_lab(options.lab)
    if options.namespace not in namespaces:
        sys.exit(f"No namespace {options.namespace}; there are {', '.join(namespaces)}.")
    return interactive(namespaces[options.namespace], options.command)


def metadata(options: argparse.Namespace) -> int:
    server = Metadata(find_lab(options.lab)["cloud"].path(LAB_RUN / "metadata.sock"))
    match options.what:
        case "requests":
            for record in server.requests():
                print(f"{record.at:.3f} {record.connection:4} {record.method:4} {record.status:3} {record.path}")
        case "fail":
            server.fail(options.kind, options.path, times=options.times, status=options.status)
        case "clear":
            server.clear()
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m tests.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    size = argparse.ArgumentParser(add_help=False)
    size.add_argument("--interfaces", type=int, default=4, help="(default %(default)s)")
    size.add_argument("--addresses", type=int, default=15, help="per interface (default %(default)s)")
    size.add_argument("--ipv6", type=int, default=0, help="IPv6 addresses per interface (default %(default)s)")
    size.add_argument("--cloud", choices=PROVIDERS, default="aws", help="cloud to emulate (default %(default)s)")
    size.add_argument("--start", action="store_true", help="start netagent, fetcher and api")

    command = commands.add_parser("shell", parents=[size], help="start a lab and a shell in it")
    command.add_argument("namespace", nargs="?", default="instance")
    command.set_defaults(run=shell)
    commands.add_parser("up", parents=[size], help="start a lab, until ^C").set_defaults(run=up)
    commands.add_parser("list", help="list running labs and their namespaces").set_defaults(run=show)

    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--lab", type=int, help="its number in `list` (default: the newest)")
    command = commands.add_parser("enter", parents=[which], help="run a command or a shell in a running lab")
    command.add_argument("namespace", nargs="?", default="instance", help="instance, cloud, neighbour0, beyond0, …")
    command.add_argument("command", nargs=argparse.REMAINDER)
    command.set_defaults(run=enter)

    command = commands.add_parser("metadata", parents=[which], help="control a running lab's metadata server")
    actions = command.add_subparsers(dest="what", required=True, metavar="WHAT")
    actions.add_parser("requests", help="print the requests")
    actions.add_parser("clear", help="end all faults")
    fail = actions.add_parser("fail", help="start a fault")
    fail.add_argument("kind", help="timeout, refuse, reset, status, html, truncated, short, empty, drip")
    fail.add_argument("path", nargs="?", default="*", help="shell pattern (default: all)")
    fail.add_argument("--status", type=int, default=500)
    fail.add_argument("--times", type=int)
    command.set_defaults(run=metadata)
    return top


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    if options.run in (shell, up):
        become_root([sys.executable, "-m", "tests.lab", *argv])
    try:
        return int(options.run(options))
    except (LabError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
