"""Becoming the user without any capability, for when somebody starts the fetcher as root without systemd."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

import prctl

USER = "cloud-network"


def become_unprivileged(directory: Path, user: str = USER) -> None:
    """As root: give `directory` to the user and become it. As anyone: no_new_privs, and refuse to hold a capability."""
    if os.geteuid() == 0:
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise SystemExit(
                f"cloud-network-fetcher: there is no user {user}. Create it with "
                f"`systemd-sysusers cloud-network.conf` or `useradd --system --no-create-home {user}`."
            ) from None
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.chown(directory, entry.pw_uid, entry.pw_gid)
        prctl.capbset.limit()
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    with contextlib.suppress(OSError):  # the unit's SystemCallFilter= has no capset(2); what is left is seen below
        prctl.cap_effective.limit()
        prctl.cap_inheritable.limit()
        prctl.cap_permitted.limit()
    prctl.set_no_new_privs(True)
    prctl.set_name("cn-fetcher")
    os.umask(0o022)
    status = Path("/proc/self/status").read_text()
    sets = [line for line in status.splitlines() if line.startswith(("CapInh", "CapPrm", "CapEff"))]
    left = [line for line in sets if int(line.split()[1], 16)]
    if left:
        raise SystemExit(f"cloud-network-fetcher: still has capabilities ({', '.join(left)}); start it as {user}")
