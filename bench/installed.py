"""Starts the daemons as on an instance: with `-IS` and one private directory, as systemd/install does.

A virtual environment's console scripts load more than an installed program: site, the .pth files, and a regular
expression for the script's name. The interpreter is copied: a page that several processes map is divided among them
(proc_pid_smaps(5)), and the lab's own processes would lower the share of the daemons.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.lab import processes

START = "#!{python} -IS\nimport sys\n\nsys.path[:0] = {paths}\nfrom {module} import {name}\n\nsys.exit({name}())\n"


@contextmanager
def installed() -> Iterator[Path]:
    """Make the lab start such programs within the block. Yields their interpreter."""
    with TemporaryDirectory(prefix="cloud-network-bench-", dir="/usr/local/lib") as root:
        directory = Path(root)
        directory.chmod(0o755)
        python = directory / "python3"
        shutil.copy(Path("/usr/bin/python3").resolve(), python)
        paths = [path for path in sys.path if "site-packages" in path or "__editable__" in path]
        for each in entry_points(group="console_scripts"):
            if each.module.startswith("cloud_network."):
                script = directory / each.name
                script.write_text(START.format(python=python, paths=paths, module=each.module, name=each.attr))
                script.chmod(0o755)
        processes.SCRIPTS, before = directory, processes.SCRIPTS
        try:
            yield python
        finally:
            processes.SCRIPTS = before
