"""Makes `from tests.lab import Lab` work from anywhere, and the lab work for ordinary users."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lab.holder import expose_here
from tests.lab.privilege import UNSHARE, become_root, obstacle


def pytest_configure(config: pytest.Config) -> None:
    """An ordinary user's tests run in a user namespace. Where that cannot be, tests with a lab fail and say why.

    As root, a checkout below a directory such as /root is made readable for the daemons' users, for the tests only.
    """
    if os.geteuid() == 0:
        expose_here(Path(__file__).parents[1])
    if os.geteuid() == 0 or obstacle():
        return
    if capture := config.pluginmanager.getplugin("capturemanager"):
        capture.stop_global_capturing()  # give back the real standard output before exec
    become_root([sys.executable, "-m", "pytest", *config.invocation_params.args])


def pytest_report_header() -> str:
    if reason := obstacle():
        return f"lab: not here, {reason}"
    inside = Path("/proc/self/uid_map").read_text().split()[2] != "4294967295"
    return f"lab: in a user namespace ({UNSHARE[0]})" if inside else "lab: as root"
