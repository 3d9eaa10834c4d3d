"""The package file: reproducible, and accepted by lintian; and `make install` and `make uninstall`."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.lab.lab import CHECKOUT

from .conftest import require
from .image import build, run_program


def test_two_builds_are_the_same_bytes(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build is in another directory, time zone and locale, and with umask 077."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C")
    before = os.umask(0o077)
    try:
        again = build(tmp_path / "elsewhere" / "and deeper")
    finally:
        os.umask(before)
    assert again.name == package.name
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (package, again))
    if first != second:
        differences = [_contents(path) for path in (package, again)]
        raise AssertionError(sorted(set(differences[0]) ^ set(differences[1]))[:40])


def _contents(package: Path) -> list[str]:
    """Return one line per file: the list of dpkg-deb, and the md5sums of the control archive."""
    listed = run_program("dpkg-deb", "--contents", package) + run_program("dpkg-deb", "--info", package, "md5sums")
    return listed.splitlines()


def test_lintian_accepts_the_package(package: Path) -> None:
    require({"lintian": "lintian"})
    done = subprocess.run(["lintian", "--allow-root", "--fail-on", "warning", package], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0), done.stdout


def test_make_uninstall_removes_what_make_install_installed(tmp_path: Path) -> None:
    made = tmp_path / "made"
    run_program("make", "-C", CHECKOUT, "install", f"DESTDIR={made}")
    assert (made / "usr/bin/cnctl").exists()
    run_program("make", "-C", CHECKOUT, "uninstall", f"DESTDIR={made}")
    left = [str(path.relative_to(made)) for path in made.rglob("*") if not path.is_dir()]
    assert left == ["etc/cloud-network/cloud-network.toml"], "only the configuration stays"
