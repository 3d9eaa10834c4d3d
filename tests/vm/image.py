"""The guest's files: a Debian made once by debootstrap, and cloud-network's package installed in a copy of it."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.lab import CHECKOUT

CACHE = Path("/var/cache/cloud-network-boot")
HERE = Path(__file__).parent
KERNEL = "linux-image-cloud-amd64"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "iproute2", "procps", "python3", "passwd"),
    *(KERNEL, "initramfs-tools", "zstd"),
)
BUILDING = ("dpkg-dev", "debhelper", "gcc", "libc6-dev", "libcap-dev", "python3-dev", "python3-venv", "ca-certificates")
"""Packages for building the package if the guest's Debian differs from the host's."""
TOOLS = Path("/usr/local/lib/boot")
"""The tests' programs in the guest: the agent, the listener, and those for sandboxes."""
NEWER = "0.1.0+newer"


class ImageError(Exception):
    """A failed step of building the image; the text has the output of its program."""


def run_program(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a program and return its output; raise ImageError with the output if it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise ImageError(f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


@contextmanager
def locked() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def debian(suite: str, packages: Sequence[str] = PACKAGES, name: str = "", kernel_of: str = "") -> Path:
    """Return the files of a Debian, made once (a minute). Another list of packages is another Debian.

    With `kernel_of`, the kernel is the one of that older release.
    """
    with locked():
        if kernel_of:
            packages, name = [each for each in packages if each != KERNEL], f"{suite}-kernel-of-{kernel_of}"
        root, names = CACHE / (name or suite), ",".join(packages)
        if not root.exists() or (root / "made-of").read_text() != names:
            part = root.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            run_program("debootstrap", "--variant=minbase", f"--include={names}", suite, part)
            if kernel_of:
                source = f"deb http://deb.debian.org/debian {kernel_of} main\n"
                (part / "etc/apt/sources.list.d/kernel.list").write_text(source)
                run_program("chroot", part, "apt-get", "update", "-qq")
                run_program(
                    "chroot",
                    part,
                    "apt-get",
                    "install",
                    "-y",
                    "-qq",
                    "--no-install-recommends",
                    f"{KERNEL}/{kernel_of}",
                )
            (part / "made-of").write_text(names)
            shutil.rmtree(root, ignore_errors=True)
            part.rename(root)
    return root


def build(target: Path, suite: str | None = None, version: str | None = None, commit: str | None = None) -> Path:
    """Build the package of this checkout with dpkg-buildpackage in the directory `target`.

    For the host's Debian, or in a container of another one: the package depends on the version of Python. `version` is
    the next release, for an upgrade; `commit` is an earlier commit to build instead of this checkout.
    """
    source = target / "source"
    source.mkdir(parents=True)
    if commit:
        _extract(source, commit)
    else:
        _copy(source)
    if version:
        _release(source, version)
    argv = ["dpkg-buildpackage", "--build=binary", "--no-sign", "--no-check-builddeps"]  # not all of build-essential
    if suite:
        inside = ["sh", "-c", f"cd /build/source && {shlex.join(argv)}"]
        run_program(*_container(debian(suite, BUILDING, f"{suite}-building"), target), *inside)
    else:
        run_program(*argv, cwd=source)
    shutil.rmtree(source)
    return next(target.glob("cloud-network_*.deb"))


def _copy(source: Path) -> None:
    """Copy the files of this checkout that git knows, as they are now."""
    for path in run_program("git", "-C", CHECKOUT, "ls-files", "-z").split("\0"):
        if path and (CHECKOUT / path).exists():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / path, source / path)


def _extract(source: Path, commit: str) -> None:
    """Extract the files of an earlier commit."""
    archive = source.with_suffix(".tar")
    run_program("git", "-C", CHECKOUT, "archive", f"--output={archive}", commit)
    run_program("tar", "--extract", f"--file={archive}", f"--directory={source}")
    archive.unlink()


def _container(root: Path, target: Path) -> list[str]:
    """Return the prefix of a command that runs in `root`, with `target` at /build, pip's settings and the network."""
    argv = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--ephemeral", f"--directory={root}"]
    argv += [f"--bind={target}:/build"]
    argv += [f"--bind-ro={path}" for path in ("/etc/pip.conf", "/etc/ssl/certs", "/opt") if Path(path).exists()]
    return argv + [f"--setenv={name}={value}" for name, value in os.environ.items() if name.startswith("PIP_")]


def _release(source: Path, version: str) -> None:
    """Change a source tree to that of another release."""
    changelog, project = source / "debian/changelog", source / "pyproject.toml"
    before = changelog.read_text()
    author = before.partition(" -- ")[2].partition("  ")[0]
    entry = f"  * Another build.\n\n -- {author}  Wed, 25 Nov 2026 00:00:00 +0000"
    changelog.write_text(f"cloud-network ({version}) unstable; urgency=medium\n\n{entry}\n\n{before}")
    project.write_text(re.sub(r'(?m)^version = ".*"', f'version = "{version}"', project.read_text(), count=1))


def install_package(root: Path, debian: Path, package: Path, newer: Path | None) -> None:
    """Copy Debian's files to `root`, install the package with dpkg, and add the newer package."""
    run_program("cp", "-a", "--reflink=auto", debian, root)
    tools = root / TOOLS.relative_to("/")
    tools.mkdir(parents=True)
    shutil.copy(HERE / "agent.py", tools)
    shutil.copy(CHECKOUT / "tests/lab/probe.py", tools / "listener.py")
    if newer:
        shutil.copy(newer, tools / "newer.deb")
    shutil.copy(package, tools / "package.deb")
    run_program("chroot", root, "dpkg", "--install", str(TOOLS / "package.deb"))
