"""How netagent is started without systemd: by root, and not in the process that serves.

It does what systemd does for the units: makes the directories, listens, and lets setpriv(1) make of itself netagent's
user with CAP_NET_ADMIN alone, and of that the server. So there is one way into the server, and it never was root.
"""

import _socket as socket
import os
import pwd
import sys
from fcntl import F_DUPFD_CLOEXEC, fcntl

RUNTIME, LOGS = "/run/cloud-network-netagent", "/var/log/cloud-network"
USERS = USER, _FETCHER = "cloud-network-netagent", "cloud-network"
# -I and -S: nothing of the caller's comes along, no PYTHON* variable, no current directory, no start-up file.
_SERVER = "import sys; sys.path[:] = {!r}; from cloud_network.netagent.server import main; main()"
_NET_ADMIN = "-all,+net_admin"
_SECUREBITS = "+noroot,+noroot_locked,+no_setuid_fixup,+no_setuid_fixup_locked,+keep_caps_locked"
BECOME = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", f"--securebits={_SECUREBITS}"),
    *(f"--bounding-set={_NET_ADMIN}", f"--inh-caps={_NET_ADMIN}", f"--ambient-caps={_NET_ADMIN}", "--no-new-privs"),
]


def own_directory(path: str, uid: int, gid: int) -> None:
    """A directory that only netagent writes, and everybody reads: made and given to it while we are root."""
    os.umask(0o022)  # whatever root's is
    os.makedirs(path, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


def open_sockets(path: str) -> None:
    """Those of cloud-network-netagent.socket, where sd_listen_fds(3) has them: listening at `path`, and rtnetlink's."""
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o666)  # noqa: S103  # a refusal is audited, so strangers must get as far as that
    listener.listen(128)
    rtnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)  # 0: NETLINK_ROUTE
    # Out of each other's way first; what is left over is closed by execve(2).
    apart = [fcntl(each.detach(), F_DUPFD_CLOEXEC, 5) for each in (listener, rtnetlink)]
    for number, own in enumerate(apart, 3):
        os.dup2(own, number)


def main() -> None:
    """Entry point of cloud-network-netagent: no options, and it ends as the server."""
    if len(sys.argv) > 1:
        print("usage: cloud-network-netagent [--help]", sys.modules["cloud_network.netagent"].__doc__, sep="\n\n")
        raise SystemExit(0 if sys.argv[1] in ("-h", "--help") else 2)
    for user in USERS:
        try:
            pwd.getpwnam(user)
        except KeyError:
            how = f"Create it with `systemd-sysusers cloud-network.conf` or `useradd --system --no-create-home {user}`."
            raise SystemExit(f"{USER}: there is no user {user}. {how}") from None
    for directory in (RUNTIME, LOGS):
        own_directory(directory, *pwd.getpwnam(USER)[2:4])
    open_sockets(f"{RUNTIME}/netagent.sock")
    passed = {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()), "IDLE_SECONDS": "inf"}  # nobody would start it again
    with open("/proc/sys/kernel/random/boot_id") as file:
        passed["BOOT_ID"] = file.read().strip().replace("-", "")
    where = {"RUNTIME_DIRECTORY": RUNTIME, "LOGS_DIRECTORY": LOGS}
    server = [sys.executable, "-IS", "-c", _SERVER.format(sys.path)]
    program = [*BECOME, "--", *server] if os.geteuid() == 0 else server
    os.execvpe(program[0], program, os.environ | passed | where)  # noqa: S606  # no shell is what is meant
