"""A mistake in the configuration is an error of every program, with the same exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = {
    "cloud-network-netagent": (),
    "cloud-network-fetcher": (),
    "cloud-network-api": (),
    "cnctl": ("status",),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('[System]\nRefreshTimer = "banana"\n', "[System] RefreshTimer = "),
        ("[Network]\nExclude = eth1\n", "not TOML"),
    ],
    ids=["value", "syntax"],
)
def test_program_refuses_a_bad_file(tmp_path: Path, program: str, content: str, named: str) -> None:
    path = tmp_path / "cloud-network.toml"
    path.write_text(content)
    command = [str(Path(sys.executable).with_name(program)), "--config", str(path), *PROGRAMS[program]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.startswith(f"{program}: {path}")
    assert named in ended.stderr
