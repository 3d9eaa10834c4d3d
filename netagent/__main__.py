"""Start of netagent: parses arguments, opens the sockets, drops privileges and runs the server.

Under systemd, the units pass the sockets and drop the privileges. If root starts netagent without systemd, netagent
opens its sockets and changes to its own user itself. The interpreter must then be isolated (python3 -I), so that root's
environment, PYTHONPATH and sitecustomize have no effect.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import pwd
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from . import sandbox, settings
from .audit import Audit
from .kernel import Kernel
from .ledger import Ledger
from .netfilter import Netfilter
from .protocol import SOCKET
from .sandbox import NAME, Account, SandboxError, log
from .server import Server

FETCHER = "cloud-network"
RUNTIME, LOGS = Path(SOCKET).parent, Path("/var/log/cloud-network")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETLINK_NETFILTER = 12  # linux/netlink.h
FIRST_PASSED = 3  # SD_LISTEN_FDS_START
EX_CONFIG = 78
"""Exit status for an invalid configuration, as of every program of cloud-network (sysexits.h)."""
MAX_IDLE_SECONDS = 86400.0
IDLE_SECONDS = 60.0
"""Under systemd, netagent exits after this time without a client; the socket unit starts it for the next client."""

GC_THRESHOLD = 100_000
"""New objects before Python looks for reference cycles. A dump of 100,000 routes has no cycles, and with the default
threshold of 700 the searches took as long as decoding it."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """The listening socket, and the netlink sockets of the host's network namespace."""

    listener: socket.socket
    rtnetlink: socket.socket
    netfilter: socket.socket | None  # the server closes it unless the configuration says ForwardedReplies="mark"


def main() -> None:
    """Run netagent."""
    arguments = parse_arguments()
    if arguments.version:
        print(NAME, _version())
        return
    try:
        run(arguments.config, arguments.idle)
    except settings.SettingsError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        sys.exit(EX_CONFIG)
    except (SandboxError, OSError) as error:
        sys.exit(f"{NAME}: {error}")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="The only process of cloud-network that may change the network. It serves the fetcher and root on "
        f"{SOCKET}. See /usr/share/doc/cloud-network/policy.md.",
        epilog=f"Exit status {EX_CONFIG}: the configuration is invalid.",
    )
    parser.add_argument("--config", type=Path, default=settings.PATH, metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--idle",
        type=seconds,
        default=IDLE_SECONDS,
        metavar="SECONDS",
        help="under systemd, exit after this time without a client (default: %(default)g)",
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser.parse_args()


def seconds(text: str) -> float:
    """Return the value of --idle."""
    value = float(text)
    if not 0 < value <= MAX_IDLE_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {MAX_IDLE_SECONDS:g}")
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # only needed here; it imports email and zipfile

    try:
        return version("cloud-network")
    except PackageNotFoundError:
        return "(not installed as a package)"


def run(config: Path, idle: float) -> None:
    """Open or take over the sockets, give up privileges, and serve. Raises SandboxError, SettingsError or OSError."""
    settings.load(config)  # a mistake in the file is reported before anything is opened
    account, fetcher = _account(NAME), _account(FETCHER)
    boot = os.environ.get("BOOT_ID") or BOOT_ID.read_text().strip()  # ProcSubset=pid hides the file
    passed = passed_sockets()
    if os.geteuid() == 0:
        require_isolation()
        make_directory(RUNTIME, account)
        make_directory(LOGS, account)
    sockets = passed or open_sockets(Path(SOCKET), fetcher)
    if os.geteuid() == 0:
        sandbox.become(account)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)  # none can be opened later
    os.chdir("/")
    sandbox.enter(account, [RUNTIME, LOGS])
    netfilter = None if sockets.netfilter is None else Netfilter(sockets.netfilter)
    kernel, ledger = Kernel(sockets.rtnetlink, netfilter), Ledger(RUNTIME / "ledger")
    server = Server(kernel, ledger, Audit(LOGS / "audit.log", dashed(boot)), config)
    gc.collect()
    gc.set_threshold(GC_THRESHOLD)
    server.start()
    notify_ready(manager)
    log("ready")
    server.run(sockets.listener, fetcher.uid, idle if passed else float("inf"))


def require_isolation() -> None:
    """Raise SandboxError if root's environment could have put code into this process."""
    if not sys.flags.isolated:
        raise SandboxError(
            f"root may start it only in an isolated interpreter. Use /usr/bin/{NAME}, "
            "or python3 -I -m cloud_network.netagent"
        )


def _account(name: str) -> Account:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        how = f"Create it with `systemd-sysusers cloud-network.conf` or `useradd --system --no-create-home {name}`"
        raise SandboxError(f"there is no user {name}. {how}") from None
    return Account(found.pw_uid, found.pw_gid)


def passed_sockets() -> Sockets | None:
    """Return the sockets that systemd passed (sd_listen_fds(3)), or None. Raises SandboxError for a wrong number."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    number = os.environ.get("LISTEN_FDS")
    if number not in ("2", "3"):
        raise SandboxError("systemd must pass three sockets, as in cloud-network-netagent.socket")
    netfilter = socket.socket(fileno=FIRST_PASSED + 2) if number == "3" else None  # 2: the unit before an upgrade
    return Sockets(socket.socket(fileno=FIRST_PASSED), socket.socket(fileno=FIRST_PASSED + 1), netfilter)


def make_directory(path: Path, account: Account) -> None:
    """Make a directory that only netagent writes and all users read, or set this owner and mode on an existing one."""
    path.mkdir(parents=True, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.fchown(directory, account.uid, account.gid)
    os.fchmod(directory, 0o755)
    os.close(directory)


def is_served(path: Path) -> bool:
    """Return True if a process listens on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:  # its queue is full
            return True
    return True


def open_sockets(path: Path, fetcher: Account) -> Sockets:
    """Open the same sockets as cloud-network-netagent.socket: for the fetcher's group, rtnetlink and nfnetlink.

    Raises SandboxError if another process listens already: a second netagent would undo the first one's transaction.
    """
    if is_served(path):
        stop = f"systemctl stop {NAME}.socket {NAME}.service"
        raise SandboxError(f"another netagent, or systemd for it, listens on {path}; stop it first: {stop}")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)  # mode 0660
    listener.bind(str(path))
    os.umask(before)
    if os.geteuid() == 0:
        os.chown(path, -1, fetcher.gid, follow_symlinks=False)
    listener.listen(128)
    rtnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    netfilter = None
    with contextlib.suppress(OSError):  # EPROTONOSUPPORT: the kernel has no nfnetlink
        netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    return Sockets(listener, rtnetlink, netfilter)


def dashed(boot: str) -> str:
    """Return a boot id with dashes, as in random(4); systemd's %b has none."""
    digits = boot.replace("-", "")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def notify_ready(manager: socket.socket) -> None:
    """Notify systemd that netagent is ready (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        manager.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
    manager.close()


if __name__ == "__main__":
    main()
