"""The package of this checkout, built once for all boots, while Debian's files are fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import pytest

from .image import build, debian

NEEDED = {
    "debootstrap": "debootstrap",
    "dpkg-buildpackage": "dpkg-dev",
    "dh": "debhelper",
    "gcc": "gcc",
    "mkfs.ext4": "e2fsprogs",
}

NOTHING: Mapping[str, str] = MappingProxyType({})


def require(programs: Mapping[str, str] = NOTHING) -> None:
    """Skip, naming the packages, where the programs are not; {program: package}."""
    if os.geteuid() != 0:
        pytest.skip("a boot needs root")
    if missing := {package for program, package in {**NEEDED, **programs}.items() if not shutil.which(program)}:
        pytest.skip(f"not here: apt-get install {' '.join(sorted(missing))}")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require()
    with ThreadPoolExecutor(2) as pool:
        fetched = pool.submit(debian, "bookworm")
        built = pool.submit(build, tmp_path_factory.mktemp("package"))
        fetched.result()
        return built.result()
