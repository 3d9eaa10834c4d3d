"""Root, or root of a user namespace.

The lab needs several user ids (each daemon has its own), so a namespace with one id is not enough: newuidmap(1) maps a
range that /etc/subuid grants. Only single-threaded processes can enter a user namespace, hence the exec at the start.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

UNSHARE = ("unshare", "--user", "--map-auto", "--map-root-user", "--")


def obstacle() -> str | None:
    """Return the reason why an ordinary user cannot have a lab here, and the command to run; None if it works."""
    if os.geteuid() == 0:
        return None
    missing = [tool for tool in ("newuidmap", "newgidmap", "ip", "nft") if not shutil.which(tool, path=_path())]
    if missing:
        packages = {"ip": "iproute2", "nft": "nftables"}
        wanted = sorted({packages.get(tool, "uidmap") for tool in missing})
        return f"{', '.join(missing)} missing: run apt-get install {' '.join(wanted)}, or become root"
    user = getpass.getuser()
    for table in ("/etc/subuid", "/etc/subgid"):
        if not Path(table).exists() or f"\n{user}:" not in f"\n{Path(table).read_text()}":
            return f"{table} has no range for {user}: usermod --add-subuids 100000-165535 --add-subgids 100000-165535"
    tried = subprocess.run([*UNSHARE, "true"], env=_environment(), capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"the kernel allows no user namespace here ({tried.stderr.strip()}); become root"
    return None


def become_root(argv: Sequence[str]) -> None:
    """Continue as `argv` in a user namespace, unless already root. SystemExit names what is missing."""
    if os.geteuid() == 0:
        return
    if reason := obstacle():
        sys.exit(f"The lab needs root or a user namespace: {reason}.")
    os.execvpe(UNSHARE[0], [*UNSHARE, *argv], _environment())


def _path() -> str:
    """Return PATH with the directories of ip and nft, which Debian keeps out of an ordinary user's PATH."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}
