"""What is booted: a Debian by debootstrap, made once, and cloud-network's package installed in a copy of it."""

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
"""What builds the package where the host is another Debian than the guest."""
TOOLS = Path("/usr/local/lib/boot")
"""Ours in the guest: the agent, the listener, and what runs in sandboxes."""
NEWER = "0.1.0+newer"


class Failed(Exception):
    """A step of making the image; the text has all that its program said."""


def said(*argv: str | Path, cwd: Path | None = None) -> str:
    """What a program prints; Failed with all of it when it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
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
            said("debootstrap", "--variant=minbase", f"--include={names}", suite, part)
            if kernel_of:
                source = f"deb http://deb.debian.org/debian {kernel_of} main\n"
                (part / "etc/apt/sources.list.d/kernel.list").write_text(source)
                said("chroot", part, "apt-get", "update", "-qq")
                said(
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
    """The package of this checkout, as dpkg-buildpackage makes it, in the directory `target`.

    For the host's Debian, or in a container of another one: the package is for one version of Python. `version` is
    that of the next release, for an upgrade; `commit` is an earlier one in place of this checkout.
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
        said(*_container(debian(suite, BUILDING, f"{suite}-building"), target), *inside)
    else:
        said(*argv, cwd=source)
    shutil.rmtree(source)
    return next(target.glob("cloud-network_*.deb"))


def _copy(source: Path) -> None:
    """Copy the files of this checkout that git knows, as they are now."""
    for path in said("git", "-C", CHECKOUT, "ls-files", "-z").split("\0"):
        if path and (CHECKOUT / path).exists():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / path, source / path)


def _extract(source: Path, commit: str) -> None:
    """Extract the files of an earlier commit."""
    archive = source.with_suffix(".tar")
    said("git", "-C", CHECKOUT, "archive", f"--output={archive}", commit)
    said("tar", "--extract", f"--file={archive}", f"--directory={source}")
    archive.unlink()


def _container(root: Path, target: Path) -> list[str]:
    """What runs a command in `root` with `target` at /build, pip's settings and the host's network."""
    argv = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--ephemeral", f"--directory={root}"]
    argv += [f"--bind={target}:/build"]
    argv += [f"--bind-ro={path}" for path in ("/etc/pip.conf", "/etc/ssl/certs", "/opt") if Path(path).exists()]
    return argv + [f"--setenv={name}={value}" for name, value in os.environ.items() if name.startswith("PIP_")]


def _release(source: Path, version: str) -> None:
    """Turn a source tree into that of another release, as somebody who makes one does."""
    changelog, project = source / "debian/changelog", source / "pyproject.toml"
    before = changelog.read_text()
    author = before.partition(" -- ")[2].partition("  ")[0]
    entry = f"  * Another build.\n\n -- {author}  Wed, 25 Nov 2026 00:00:00 +0000"
    changelog.write_text(f"cloud-network ({version}) unstable; urgency=medium\n\n{entry}\n\n{before}")
    project.write_text(re.sub(r'(?m)^version = ".*"', f'version = "{version}"', project.read_text(), count=1))


def furnish(root: Path, debian: Path, package: Path, newer: Path | None) -> None:
    """`root` becomes a copy of Debian's files, with the package installed by dpkg, and the newer one beside."""
    said("cp", "-a", "--reflink=auto", debian, root)
    tools = root / TOOLS.relative_to("/")
    tools.mkdir(parents=True)
    shutil.copy(HERE / "agent.py", tools)
    shutil.copy(CHECKOUT / "tests/lab/probe.py", tools / "listener.py")
    if newer:
        shutil.copy(newer, tools / "newer.deb")
    shutil.copy(package, tools / "package.deb")
    said("chroot", root, "dpkg", "--install", str(TOOLS / "package.deb"))
