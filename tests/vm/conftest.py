"""The package of this checkout and its next release, built once for all guests, while Debian is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from .image import NEWER, build, debian

for checks in ("checks", "kernel_checks", "reply_checks"):
    pytest.register_assert_rewrite(f"{__package__}.{checks}")

REQUIRED_PROGRAMS = {
    "debootstrap": "debootstrap",
    "dpkg-buildpackage": "dpkg-dev",
    "dh": "debhelper",
    "gcc": "gcc",
    "mkfs.ext4": "e2fsprogs",
}

NO_PROGRAMS: Mapping[str, str] = MappingProxyType({})


def require(programs: Mapping[str, str] = NO_PROGRAMS) -> None:
    """Skip the test, naming the missing packages, unless all programs exist; {program: package}."""
    if os.geteuid() != 0:
        pytest.skip("a boot needs root")
    if missing := {
        package for program, package in {**REQUIRED_PROGRAMS, **programs}.items() if not shutil.which(program)
    }:
        pytest.skip(f"not here: apt-get install {' '.join(sorted(missing))}")


class Packages(NamedTuple):
    package: Path
    newer: Path
    """The next release, for an upgrade."""


def build_both(work: Path, suite: str | None = None) -> Packages:
    with ThreadPoolExecutor(2) as pool:
        package = pool.submit(build, work / "package", suite)
        newer = pool.submit(build, work / "newer", suite, NEWER)
        return Packages(package.result(), newer.result())


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    require()
    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(debian, "bookworm")
        built = build_both(tmp_path_factory.mktemp("packages"))
        fetched.result()
        return built


@pytest.fixture(scope="session")
def package(packages: Packages) -> Path:
    return packages.package
