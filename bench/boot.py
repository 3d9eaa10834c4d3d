"""Cold boot: time from the fetcher's start until every address answers. `python -m bench.boot [SUITE]`, as root.

A container uses this machine's processor directly. QEMU without KVM emulates one, ten times slower.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.lab import Lab, Spec
from tests.system.others.dhcp import server
from tests.vm.container import Container
from tests.vm.guest import Guest
from tests.vm.image import build, debian
from tests.vm.virtual_machine import VirtualMachine

SPEC = Spec.cloud("aws", interfaces=3, addresses=5, ipv6=2)


class Watch(threading.Thread):
    """Probes all addresses repeatedly; `four` and `at` are the times when IPv4 and when all have answered."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(daemon=True)
        self._lab, self.four, self.at = lab, 0.0, 0.0

    def run(self) -> None:
        while not self.at:
            answered = self._lab.reachability(timeout=0.2)
            now = time.monotonic()
            if not self.four and all(yes for (_, address), yes in answered.items() if ":" not in address):
                self.four = now
            if all(answered.values()):
                self.at = now


def started(guest: Guest) -> float:
    """Return the start time of the fetcher on this process's clock, to a few hundredths of a second."""
    before = time.monotonic()
    uptime = float(guest.run("cat", "/proc/uptime").split()[0])
    now = (before + time.monotonic()) / 2
    unit = "cloud-network-fetcher.service"
    return now - (uptime - int(guest.show(unit, "ExecMainStartTimestampMonotonic")) / 1e6)


def measure(form: str, suite: str, package: Path) -> tuple[float, float]:
    """Return the seconds until the IPv4 addresses answer, and until all answer."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="boot-")))
        lab = stack.enter_context(Lab(SPEC, taps=form == "machine"))
        watch = Watch(lab)
        watch.start()
        if form == "machine":
            stack.enter_context(server(lab, lab.nics[0]))
            guest: Guest = stack.enter_context(VirtualMachine(lab, debian(suite), package, work))
        else:
            guest = stack.enter_context(Container(lab, debian(suite), package, work))
        watch.join(180)
        start = started(guest)
        return watch.four - start, watch.at - start


def main(suite: str = "bookworm") -> None:
    with TemporaryDirectory(prefix="boot-") as directory:
        debian(suite)
        package = build(Path(directory) / "package", None if suite == "bookworm" else suite)
        for form in ("container", "machine"):
            four, all_of_them = measure(form, suite, package)
            print(f"{suite} in a {form}: IPv4 answers {four:.1f} s after the fetcher's start, all {all_of_them:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
