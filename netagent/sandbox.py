"""What netagent gives up before it reads the first byte from anybody.

Started as root (no systemd), it makes its own directories and becomes its user with CAP_NET_ADMIN; started by
systemd it is that already. Either way it goes on only when the kernel says that CAP_NET_ADMIN is all that is left.
"""

from __future__ import annotations

import os
import sys

import prctl

from . import confine

USER = "cloud-network-netagent"
_NET_ADMIN_ONLY = 1 << 12  # CAP_NET_ADMIN of linux/capability.h


def user_id(name: str) -> tuple[int, int]:
    """(uid, gid) of a system user; SystemExit says how to make it."""
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise SystemExit(
            f"cloud-network-netagent: there is no user {name}. Create it with "
            f"`systemd-sysusers cloud-network.conf` or `useradd --system --no-create-home {name}`."
        ) from None
    return entry.pw_uid, entry.pw_gid


def own_directory(path: str, uid: int, gid: int) -> None:
    """A directory that only netagent writes: made and given to it while we are root."""
    os.makedirs(path, mode=0o755, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


def enter(uid: int, gid: int, writable: list[str]) -> None:
    """Become (uid, gid) with CAP_NET_ADMIN and no way to more; write below `writable` and nowhere else."""
    if os.geteuid() == 0:
        prctl.set_keepcaps(True)
        prctl.capbset.limit(prctl.CAP_NET_ADMIN)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    prctl.cap_effective.limit(prctl.CAP_NET_ADMIN)
    prctl.cap_inheritable.limit()
    prctl.cap_permitted.limit(prctl.CAP_NET_ADMIN)
    prctl.cap_effective.net_admin = True
    prctl.set_no_new_privs(True)
    prctl.set_dumpable(False)
    os.umask(0o077)
    _verify()
    confine.limit()
    if not confine.restrict_files(writable):
        print(f"{USER}: this kernel has no Landlock; systemd's ProtectSystem= does part of it", file=sys.stderr)
    confine.restrict_calls()


def _verify() -> None:
    with open("/proc/thread-self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    has, uids = int(status["CapPrm"], 16), status["Uid"].split()
    if has != _NET_ADMIN_ONLY or int(status["CapEff"], 16) != has:
        raise SystemExit(
            f"cloud-network-netagent: has the capabilities {has:#x}, wants only CAP_NET_ADMIN ({_NET_ADMIN_ONLY:#x}). "
            f"Start it as root, or as {USER} with AmbientCapabilities=CAP_NET_ADMIN."
        )
    if "0" in uids:
        raise SystemExit(f"cloud-network-netagent: still root. Start it as root or as {USER}, not in between.")
