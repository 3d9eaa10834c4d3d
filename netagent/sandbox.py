"""What netagent gives up before it reads the first byte from anybody.

Started as root (no systemd), it makes its own directories and becomes its user with CAP_NET_ADMIN; started by
systemd it is that already. Either way it goes on only when the kernel says that CAP_NET_ADMIN is all that is left.
"""

import os
import sys

import prctl

from . import confine
from .protocol import raise_if

USER = "cloud-network-netagent"
_NET_ADMIN = 1 << 12  # CAP_NET_ADMIN of linux/capability.h
_SECUREBITS = 0b101111  # linux/securebits.h: noroot and no_setuid_fixup on, keep_caps off, all three locked


def user_id(name: str) -> tuple[int, int]:
    """(uid, gid) of a system user; SystemExit says how to make it."""
    import pwd

    try:
        return pwd.getpwnam(name)[2:4]
    except KeyError:
        how = f"Create it with `systemd-sysusers cloud-network.conf` or `useradd --system --no-create-home {name}`."
        raise SystemExit(f"{USER}: there is no user {name}. {how}") from None


def own_directory(path: str, uid: int, gid: int) -> None:
    """A directory that only netagent writes, and everybody reads: made and given to it while we are root."""
    os.umask(0o022)  # whatever root's is
    os.makedirs(path, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


def enter(uid: int, gid: int, writable: list[str]) -> None:
    """Become (uid, gid) with CAP_NET_ADMIN and no way to more; write below `writable` and nowhere else."""
    if os.geteuid() == 0:
        prctl.set_securebits(_SECUREBITS)
        prctl.capbset.limit(prctl.CAP_NET_ADMIN)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    try:
        prctl.cap_inheritable.limit()
        prctl.cap_effective.limit(prctl.CAP_NET_ADMIN)
        prctl.cap_permitted.limit(prctl.CAP_NET_ADMIN)
        prctl.cap_effective.net_admin = True
    except OSError:
        pass  # too little: _verify says so
    prctl.set_no_new_privs(True)
    prctl.set_dumpable(False)
    os.umask(0o077)
    confine.limit()
    _verify(str(uid), str(gid))
    if not confine.restrict_files(writable):
        print(f"{USER}: this kernel has no Landlock; systemd's ProtectSystem= does part of it", file=sys.stderr)
    confine.restrict_calls()


def _verify(uid: str, gid: str) -> None:
    """SystemExit unless the kernel says that all is given up; it names what is too much and how to start without."""
    with open("/proc/thread-self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    how = f"Start it as root; or as {USER} with AmbientCapabilities= and CapabilityBoundingSet=CAP_NET_ADMIN."
    is_not = f"{USER}: {{}} is {{}}, not {{:x}} (CAP_NET_ADMIN is {_NET_ADMIN:x}). {how}"
    wanted = {"CapPrm": _NET_ADMIN, "CapEff": _NET_ADMIN, "CapBnd": _NET_ADMIN, "CapAmb": 0}
    # systemd makes ambient what is inheritable, and leaves no capset to take it back. Without an ambient set, and with
    # no_new_privs, it is worth nothing to a program that is executed (capabilities(7)).
    wanted["CapInh"] = int(status["CapInh"], 16) & _NET_ADMIN
    for key, only in wanted.items():
        raise_if(int(status[key], 16) != only, SystemExit, is_not, key, status[key], only)
    has = ", ".join(f"{key} {status[key]!r}" for key in ("Uid", "Gid", "Groups"))
    more = {*status["Uid"].split(), *status["Gid"].split(), *status["Groups"].split()} - {uid, gid}
    raise_if(more, SystemExit, "{}: has {}; wanted only uid {} and gid {}. {}", USER, has, uid, gid, how)
