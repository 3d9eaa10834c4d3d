"""Every command on every cloud, as shown on a terminal of 80 columns: shown/cnctl/<cloud>.txt, for review by eye.

Uses the lab's cloud, daemons and kernel. `SHOWN=write pytest tests/system/api/test_shown.py` writes the files again.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, Spec
from tests.lab.metadata.providers import PROVIDERS
from tests.system.service import CONFIG, read_all_facts, refresh, status
from tests.system.test_clouds import BY_DHCP, local

from .conftest import BIN

SHOWN = Path(__file__).parent / "shown" / "cnctl"
COMMANDS = (
    "status",
    "status system",
    "status network",
    "doctor {address}",
    "show ssh-keys",
    "show document",
    "show pkcs7",
    "show signature",
    "show rsa2048",
    "show project",
    "show credentials",
    "plan",
    "refresh",
    "audit --last 1",
    "audit --verify",
    "flush",
)
VARYING_VALUES = (
    (r"\b\d+\s+s ago", "N s ago"),
    (r"generation \d+", "generation N"),
    (r"\b\d+ changes", "N changes"),
    (r"removed \d+", "removed N"),
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r"\(audit log: [0-9a-f]+\)", "(audit log: ID)"),
    (r" +\d+  \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d  uid \d+ +", "    N  TIME  uid N  "),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r'"1\d{9}"', '"UNIX TIME"'),
    (r"\d+ lines, the last is \d+", "N lines, the last is N"),
    (r"line in the log: \d+", "line in the log: N"),
    (r"\((reachable|stale|delay|probe)\)", "(known)"),
)
"""Patterns of varying values, and their replacements."""


def on_terminal(lab: Lab, command: str, columns: int = 80) -> str:
    """Return the output and the exit code of a command that root runs on a terminal in the instance."""
    parent_end, child_end = pty.openpty()
    fcntl.ioctl(child_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    argv = lab.instance.enter(str(BIN / "cnctl"), *command.split())
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    process = subprocess.Popen(
        argv, stdin=child_end, stdout=child_end, stderr=child_end, env={**environment, "TERM": "xterm", "NO_COLOR": "1"}
    )
    os.close(child_end)
    received = b""
    try:
        while chunk := os.read(parent_end, 65536):
            received += chunk
    except OSError:  # EIO: the program has exited
        pass
    os.close(parent_end)
    code = process.wait(60)
    return f"$ cnctl {command}\n{received.decode()}".replace("\r\n", "\n") + f"[{code}]\n\n"


DOCS = Path(__file__).parents[3] / "docs"
OPTIONAL_KEYS = {"error", "where", "reason", "metadata", "ops", "duration_us", "id", "ranges"}
"""Optional keys."""


def documented() -> dict[str, set[str]]:
    """Return {command: the keys of its answer} from the table in docs/json.md."""
    rows = [line.split("|") for line in (DOCS / "json.md").read_text().splitlines() if line.startswith("| `")]
    return {
        command: set(DOCUMENTED_KEY.findall(row[2]))
        for row in rows
        for command in re.findall(r"`([a-z0-9 -]+)`", row[1])
    }


DOCUMENTED_KEY = re.compile(r"`([A-Za-z_]+)`")


def test_json_has_the_keys_that_are_documented() -> None:
    """All documented keys, and no others."""
    known = documented()
    commands = {re.sub(r" \{.*| --last.*", "", command): command for command in COMMANDS}
    assert known.keys() == commands.keys()
    with Lab(Spec.cloud("gcp", 2, 2)) as lab:
        lab.write_config(CONFIG)
        for name in ("netagent", "fetcher", "api"):
            lab.start(name)
        lab.wait_for(lambda: {*lab.addresses} <= local(lab) and status(lab).get("state") == "ok", 20, "state ok")

        def answer(command: str) -> Any:
            line = commands[command].format(address=lab.nics[-1].addresses[-1]).split()
            return json.loads(lab.run([str(BIN / "cnctl"), *line, "--json"], check=False).stdout)

        known["status"] |= json.loads((DOCS / "status.schema.json").read_text())["properties"].keys()
        for command in ("status", "status network", "doctor", "show project", "plan", "refresh", "audit --verify"):
            found = answer(command)
            assert found.keys() <= known[command], command
            assert known[command] - found.keys() <= OPTIONAL_KEYS, command
        text = (DOCS / "json.md").read_text()
        step, line = (set(DOCUMENTED_KEY.findall(part.partition("\n\n")[0])) for part in text.split("\n\nA ")[1:])
        assert all(each.keys() == step - {"doctor"} for each in answer("doctor")["steps"])
        assert all(each.keys() <= line for each in answer("audit"))
        assert all(isinstance(key, str) for key in answer("show ssh-keys"))
        assert {"name", "zone"} <= answer("status system").keys()
        assert answer("flush").keys() == known["flush"]


@pytest.mark.parametrize("cloud", PROVIDERS)
def test_output_of_each_command_is_unchanged(cloud: str) -> None:
    with Lab(replace(Spec.cloud(cloud, 2, 5, public=1), dhcp_all=cloud in BY_DHCP)) as lab:
        lab.write_config(f'{CONFIG}AllowAddresses = "192.0.2.0/24 203.0.113.0/24"\n')
        for name in ("netagent", "fetcher", "api"):
            lab.start(name)
        lab.wait_for(lambda: {*lab.addresses} <= local(lab) and status(lab).get("state") == "ok", 20, "state ok")
        assert refresh(lab) == "ok"
        lab.wait_for(lambda: "Listening at" in lab.log("api"), 20, "the api to listen")
        read_all_facts(lab)
        address = lab.nics[-1].addresses[-1]
        shown = "".join(on_terminal(lab, command.format(address=address)) for command in COMMANDS)
    for varying, replacement in VARYING_VALUES:
        shown = re.sub(varying, replacement, shown)
    path = SHOWN / f"{cloud}.txt"
    if os.environ.get("SHOWN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown)
    assert shown == path.read_text()
