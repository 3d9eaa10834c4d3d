"""The package of this checkout, built once for all boots, while Debian's files are fetched."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .image import build, debian

NEEDED = {
    "debootstrap": "debootstrap",
    "dpkg-buildpackage": "dpkg-dev",
    "dh": "debhelper",
    "gcc": "gcc",
    "mkfs.ext4": "e2fsprogs",
}


def require(**programs: str) -> None:
    """Skip, naming the packages, where these programs are not; {program: package}."""
    if os.geteuid() != 0:
        pytest.skip("a boot needs root")
    wanted = NEEDED | {
        name.replace("_", "-").replace("qemu-system-x86-64", "qemu-system-x86_64"): package
        for name, package in programs.items()
    }
    missing = {package for program, package in wanted.items() if not shutil.which(program)}
    if missing:
        pytest.skip(f"not here: apt-get install {' '.join(sorted(missing))}")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require()
    with ThreadPoolExecutor(2) as pool:
        fetched = pool.submit(debian, "bookworm")
        built = pool.submit(build, tmp_path_factory.mktemp("package"))
        fetched.result()
        return built.result()
