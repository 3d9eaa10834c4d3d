"""The tiers of the tests, and what the lab needs: a readable checkout, and root or a user namespace.

`tests/unit` needs neither root nor the lab. `tests/system` runs the real processes in the lab. `tests/vm` boots a
machine. Each test has the marker of its folder, so that `pytest -m unit` runs one tier.
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

# The edit loop (`make check`) tries few examples; `make test` uses --hypothesis-profile=thorough.
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare for the lab, unless only unit tests were requested.

    As root, a checkout below a directory such as /root becomes readable for the daemons' users, for the tests only.
    An ordinary user's tests run in a user namespace. If that is impossible, tests with a lab fail with the reason.
    """
    if only_unit_tests(config):
        return
    if os.geteuid() == 0:
        expose_here(TESTS.parent)
    if os.geteuid() == 0 or obstacle():
        return
    if capture := config.pluginmanager.getplugin("capturemanager"):
        capture.stop_global_capturing()  # restore the real standard output before exec
    become_root([sys.executable, "-m", "pytest", *config.invocation_params.args])


def only_unit_tests(config: pytest.Config) -> bool:
    """Return True if every path on the command line is in tests/unit."""
    paths = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return all(path.is_relative_to(TESTS / "unit") for path in paths)


def is_root() -> bool:
    """Return True for root of this machine, not of a user namespace."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] == "4294967295"


def missing_tiers() -> dict[str, str]:
    """Return the tiers that cannot run here, with the reason."""
    if is_root():
        return {}
    missing = {"vm": "the tests in a virtual machine need root"}
    if reason := obstacle():
        missing["system"] = f"the lab needs root or a user namespace: {reason}"
    return missing


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its tier, the first folder below tests/; skip the tiers that cannot run here."""
    missing = missing_tiers()
    left_out = []
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in TIERS:
            item.add_marker(folder)
        if folder in missing:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_report_header(config: pytest.Config) -> str:
    """Return a line that describes how the lab runs."""
    if only_unit_tests(config):
        return "lab: not needed"
    if "system" in missing_tiers():
        return "lab: not available"
    return f"lab: {'as root' if is_root() else f'in a user namespace ({UNSHARE[0]})'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print each tier that was skipped, in one line."""
    if not only_unit_tests(config):
        for tier, reason in missing_tiers().items():
            terminalreporter.write_line(f"NOT RUN tests/{tier}: {reason}")
