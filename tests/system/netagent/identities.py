"""Clients with other identities: another user, or root of a user namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab import Lab
from tests.lab.processes import USERS
from tests.system.netagent.wire import Wire

ATTACKER = Path(__file__).with_name("attacker.py")
FETCHER = USERS["cloud-network"]
NAMESPACE = ["unshare", "--user", "--map-root-user"]
ENTER = """
import ctypes, os, sys
if ctypes.CDLL(None).unshare(0x10000000):
    sys.exit("no user namespace")
sys.stdin.readline()
os.setgid(0)
os.setuid(0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def become(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


class UserWire(Wire):
    """A connection of a process in the instance with another uid, and the gid of the same number."""

    def __init__(self, lab: Lab, uid: int = FETCHER) -> None:
        super().__init__(lab, prefix=become(uid))


def attack_from_user_namespace(lab: Lab, who: Sequence[str], table: str, *then: str) -> dict[str, str]:
    """Return the attacker's results as uid 0 of a user namespace with this uid_map, which root writes from outside, as
    newuidmap(1) does.
    """
    inside = [*who, "/usr/bin/python3", "-c", ENTER, *then, "/usr/bin/python3", str(ATTACKER)]
    child = lab.instance.popen([*inside, "connect"], stdin=subprocess.PIPE)
    assert child.stdin
    assert child.stdout
    outer = Path("/proc/self/ns/user").readlink()

    def pid() -> int:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        return int(children[0]) if children and Path(f"/proc/{children[0]}/ns/user").readlink() != outer else 0

    found = lab.wait_for(pid)
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{found}/{kind}").write_text(table)
    out, _ = child.communicate("go\n", timeout=20)
    results: dict[str, str] = json.loads(out)
    return results
