"""Becoming a user who may do nothing, for when somebody starts the server as root without systemd."""

import os
import pwd

import prctl

USER = "cloud-network-api"


class PrivilegeError(Exception):
    """Privilege could not be given up; str() says what to do."""


def drop(user: str = USER) -> None:
    """As root: become the user, with no group but its own and no capability in any set. As anyone: no_new_privs.

    Raises PrivilegeError when the user does not exist or something would be left.
    """
    prctl.set_no_new_privs(1)
    if os.geteuid() != 0:
        return
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise PrivilegeError(
            f"cloud-network-api was started as root and would become the user {user}, which does not exist. "
            "Create it with: systemd-sysusers (it reads /usr/lib/sysusers.d/cloud-network.conf)"
        ) from None
    prctl.capbset.limit()  # drops every capability; only root may, so first
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)  # the kernel clears permitted, effective and ambient
    prctl.cap_inheritable.limit()
    left = [line for line in _capabilities() if int(line.split()[1], 16)]
    if left or os.getresuid() != (entry.pw_uid,) * 3:
        raise PrivilegeError(f"privileges are left after becoming {user}: {' '.join(left)}; start it as {user}")


def _capabilities() -> list[str]:
    with open("/proc/self/status") as status:  # noqa: PTH123  # one line, no Path needed
        return [line.strip() for line in status if line.startswith("Cap")]
