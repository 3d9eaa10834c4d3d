"""A systemd-nspawn container in the network namespace of a lab's instance: a real systemd on the host's kernel.

It cannot test IPAddressDeny= (no cgroup BPF inside), firmware strings, and DHCP (the lab configures the address).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.lab import Lab

from .guest import Guest
from .image import ImageError, install_package, run_program

CONFIG = '[Network]\nProvider = "aws"\n[Netagent]\nAllowKinds = "veth"\n'


class Container(Guest):
    filters = False

    def __init__(self, lab: Lab, debian: Path, package: Path, work: Path, newer: Path | None = None) -> None:
        super().__init__(lab)
        self._debian, self._package, self._work, self._newer = debian, package, work, newer

    def _boot(self) -> None:
        root = self._work / "root"
        install_package(root, self._debian, self._package, self._newer)
        (root / "etc/cloud-network/cloud-network.toml").write_text(CONFIG)
        for unit in ("systemd-networkd", "systemd-networkd-wait-online", "systemd-resolved"):
            run_program("chroot", root, "systemctl", "mask", f"{unit}.service")
        self._console = (self._work / "console").open("w")
        self._nspawn = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", f"--directory={root}"),
                f"--network-namespace-path=/proc/{self.lab.instance.pid}/ns/net",
                *("--capability=CAP_NET_ADMIN", "--console=pipe", "--resolv-conf=off"),
            ],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + 30
        while not (found := self._find_init()):
            if time.monotonic() > end or self._nspawn.poll() is not None:
                raise ImageError(f"systemd did not start:\n{(self._work / 'console').read_text()}")
            time.sleep(0.05)
        self.init = found

    def _find_init(self) -> int:
        """Return the pid on the host of the guest's process 1."""
        for entry in Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split():
            status = Path(f"/proc/{entry}/status").read_text()
            inside = status.partition("NSpid:")[2].split("\n")[0].split()
            if status.startswith("Name:\tsystemd\n") and inside[-1] == "1":
                return int(entry)
        return 0

    def command(self, argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
        done = subprocess.run(
            ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--", *argv],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
        return done.returncode, done.stdout

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
        shutil.rmtree(self._work / "root", ignore_errors=True)
