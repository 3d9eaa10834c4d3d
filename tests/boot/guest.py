"""A Debian under systemd-nspawn, in the network namespace of a lab's instance: a real systemd, our kernel.

What this form cannot show: IPAddressDeny= (there is no cgroup BPF inside) and the cloud's SMBIOS strings.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.lab.lab import CHECKOUT, Lab

CACHE = Path("/var/cache/cloud-network-boot")
PACKAGES = "systemd,systemd-sysv,dbus,iproute2,python3,python3-venv,procps,curl"
CONFIG = '[Network]\nProvider = "aws"\n[Netagent]\nAllowKinds = "veth"\n'
SERVICES = ("netagent", "fetcher", "api")

T = TypeVar("T")


def base(suite: str = "bookworm") -> Path:
    """Debian's files, made once (a minute and a half)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    root = CACHE / suite
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            part = CACHE / f"{suite}.part"
            shutil.rmtree(part, ignore_errors=True)
            subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, part], check=True)
            part.rename(root)
    return root


class Guest:
    """`with Guest(lab) as guest:`; its files go with it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._work = Path(mkdtemp(prefix="cloud-network-boot-"))
        self.root = self._work / "root"

    def __enter__(self) -> Self:
        try:
            subprocess.run(["cp", "-a", "--reflink=auto", base(), self.root], check=True)
            subprocess.run([CHECKOUT / "systemd/install", self.root], check=True, capture_output=True)
            (self.root / "etc/cloud-network/cloud-network.toml").write_text(CONFIG)
            self.chroot("systemd-sysusers")
            self.chroot("systemctl", "preset-all")
            # The lab has configured the first link already.
            for unit in ("systemd-networkd", "systemd-networkd-wait-online", "systemd-resolved"):
                self.chroot("systemctl", "mask", f"{unit}.service")
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            error.add_note(self.journal()[-6000:])
        self.close()

    def chroot(self, *argv: str) -> None:
        """Before it boots."""
        subprocess.run(["chroot", self.root, *argv], check=True, capture_output=True)

    def _boot(self) -> None:
        self._console = (self._work / "console").open("w")
        self._nspawn = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", f"--directory={self.root}"),
                f"--network-namespace-path=/proc/{self.lab.instance.pid}/ns/net",
                *("--capability=CAP_NET_ADMIN", "--console=pipe", "--resolv-conf=off"),
            ],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
        )
        self.init = self.wait_for(self._find_init, message="systemd to start")
        self.wait_for(self._up, 60, "the boot to end")

    def _find_init(self) -> int:
        """The host's number of the guest's process 1."""
        if self._nspawn.poll() is not None:
            raise AssertionError((self._work / "console").read_text())
        for entry in Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split():
            status = Path(f"/proc/{entry}/status").read_text()
            if "systemd\n" in status.partition("Umask")[0] and status.partition("NSpid:")[2].split("\n")[0].endswith(
                "\t1"
            ):
                return int(entry)
        return 0

    def _up(self) -> bool:
        """Not is-system-running: that waits for the fetcher, which waits for the metadata server."""
        return self.run("systemctl", "is-active", "multi-user.target", check=False).strip() == "active"

    def close(self) -> None:
        if hasattr(self, "_nspawn"):
            if hasattr(self, "init"):
                os.kill(self.init, signal.SIGRTMIN + 4)  # systemd(1): power off
            try:
                self._nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
            self._console.close()
        shutil.rmtree(self._work)

    # — inside

    def run(self, *argv: str, user: str | None = None, check: bool = True) -> str:
        """What a command inside says, on both of its outputs."""
        become = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"] if user else []
        done = subprocess.run(
            ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--", *become, *argv],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def show(self, unit: str, key: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).strip()

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--boot", "--unit=cloud-network-*", check=False)

    def within(self, service: str, program: str) -> Any:
        """What a Python program prints as JSON that is run in a service's sandbox: its unit with another ExecStart."""
        name = f"cloud-network-{service}"
        unit = (self.root / f"usr/lib/systemd/system/{name}.service").read_text()
        keep = [
            line
            for line in unit.splitlines()
            if not line.startswith(("Type=", "Restart", "ExecReload", "Watchdog", "Requires=", "Wants=", "Also="))
        ]
        lines = [
            f"ExecStart=/usr/bin/python3 -c {json.dumps(program)}" if x.startswith("ExecStart=") else x for x in keep
        ]
        Path(self.root / "run").mkdir(exist_ok=True)
        target = self.root / f"etc/systemd/system/probe-{service}.service"
        target.write_text("\n".join(lines).replace("[Service]", "[Service]\nType=oneshot\nStandardOutput=journal"))
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", target.name)
        return json.loads(self.run("journalctl", "-o", "cat", "-t", "python3", "-u", target.name).splitlines()[-1])

    def wait_for(self, predicate: Callable[[], T], timeout: float = 30, message: str = "") -> T:
        """The first true value of `predicate`."""
        end = time.monotonic() + timeout
        while not (value := predicate()):
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout:g} s for {message or predicate}")
            time.sleep(0.1)
        return value

    def memory(self, services: Sequence[str] = SERVICES) -> int:
        """PSS of all processes of these services, in bytes."""
        total = 0
        for service in services:
            listed = self.show(f"cloud-network-{service}.service", "ControlGroup")
            procs = self.run("cat", f"/sys/fs/cgroup{listed}/cgroup.procs", check=False).split() if listed else []
            for pid in procs:
                if pid.isdecimal():
                    rollup = self.run("cat", f"/proc/{pid}/smaps_rollup", check=False)
                    total += sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
        return total
