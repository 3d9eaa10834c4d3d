"""The tiers of the tests, and what the lab needs: a readable checkout, and root or a user namespace.

`tests/unit` needs neither root nor the lab. `tests/system` runs the real processes in the lab. `tests/vm` boots a
machine.
Each test carries the marker of its folder, so that `pytest -m unit` runs one tier.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lab.holder import expose_here
from tests.lab.privilege import UNSHARE, become_root, obstacle

TESTS = Path(__file__).parent
TIERS = ("unit", "system", "vm")

# The edit loop (`make check`) tries few examples; `make test` asks for --hypothesis-profile=thorough.
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare for the lab, unless only unit tests were asked for.

    As root, a checkout below a directory such as /root becomes readable for the daemons' users, for the tests only.
    An ordinary user's tests run in a user namespace. Where that is impossible, tests with a lab fail and say why.
    """
    if only_unit_tests(config):
        return
    if os.geteuid() == 0:
        expose_here(TESTS.parent)
    if os.geteuid() == 0 or obstacle():
        return
    if capture := config.pluginmanager.getplugin("capturemanager"):
        capture.stop_global_capturing()  # give back the real standard output before exec
    become_root([sys.executable, "-m", "pytest", *config.invocation_params.args])


def only_unit_tests(config: pytest.Config) -> bool:
    """Return True if every path on the command line lies in tests/unit."""
    paths = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return all(path.is_relative_to(TESTS / "unit") for path in paths)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, the first folder below tests/."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in TIERS:
            item.add_marker(folder)


def pytest_report_header(config: pytest.Config) -> str:
    """Return a line that says how the lab runs."""
    if only_unit_tests(config):
        return "lab: not needed"
    if reason := obstacle():
        return f"lab: not available, {reason}"
    inside = Path("/proc/self/uid_map").read_text().split()[2] != "4294967295"
    return f"lab: in a user namespace ({UNSHARE[0]})" if inside else "lab: as root"
