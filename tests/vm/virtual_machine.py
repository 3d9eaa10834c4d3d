"""A virtual machine in QEMU without KVM: its own kernel, the cloud's firmware strings, and a tap for each interface.

In contrast to a container it has detection by firmware, virtio interfaces (without an rtnetlink kind, as the default
configuration requires), udev, an effective IPAddressDeny=, and DHCP by systemd-networkd.
"""

from __future__ import annotations

import itertools
import json
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.lab.lab import Lab
from tests.lab.metadata import PROVIDERS
from tests.lab.nic import Nic
from tests.lab.spec import Spec
from tests.system.others.dhcp import server

from .guest import Guest
from .image import TOOLS, ImageError, install_package, run_program

SPEC = Spec.cloud("aws", interfaces=3, addresses=4, ipv6=2)
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "dnsmasq": "dnsmasq-base"}
"""The programs that `booted` needs: {program: Debian's package}."""
MIB = 768
CPUS = 1
"""With two, QEMU 7.2 sometimes runs a breakpoint of the kernel's code patching, and the kernel panics."""
SMBIOS = {
    0: {"vendor": "bios_vendor", "version": "bios_version", "date": "bios_date"},
    1: {"manufacturer": "sys_vendor", "product": "product_name", "version": "product_version", "uuid": "product_uuid"},
    3: {"manufacturer": "chassis_vendor", "asset": "chassis_asset_tag"},
}
"""{table: {QEMU's name: the name in drivers/firmware/dmi-id.c}}."""

EMULATED = "[Service]\nTimeoutStartSec=300\nTimeoutStopSec=120\n"
"""For every service: on a busy host an emulated processor needs longer than the units allow on an instance."""

UNIT = "[Service]\nExecStart=/usr/bin/python3 -IS {}\nRestart=always\n[Install]\nWantedBy=multi-user.target\n"


class VirtualMachine(Guest):
    filters = True
    timeout_factor = 3.0

    def __init__(
        self, lab: Lab, debian: Path, package: Path, work: Path, newer: Path | None = None, udev_rules: str = ""
    ) -> None:
        """`udev_rules` name the links; without them the links keep the kernel's names (net.ifnames=0)."""
        super().__init__(lab)
        self._udev_rules = udev_rules
        self._debian, self._package, self._work, self._newer = debian, package, work, newer
        self._console = work / "console"
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[tuple[int, str]]] = {}
        self._lock = threading.Lock()
        self.started = 0.0

    def _disk(self) -> Path:
        """Make an ext4 image of the installed Debian."""
        root, disk = self._work / "root", self._work / "disk"
        install_package(root, self._debian, self._package, self._newer)
        network = root / "etc/systemd/network/10-primary.network"
        # As written by cloud-init: DHCP for the primary interface, matched by MAC; the others are unmanaged.
        network.write_text(f"[Match]\nMACAddress={self.lab.nics[0].mac}\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=yes\n")
        if self._udev_rules:
            (root / "etc/udev/rules.d/70-lab.rules").write_text(self._udev_rules)
        units = root / "etc/systemd/system"
        (units / "agent.service").write_text(UNIT.format(f"{TOOLS}/agent.py /dev/virtio-ports/agent"))
        (units / "listener.service").write_text(UNIT.format(f"{TOOLS}/listener.py serve 7"))
        (units / "service.d").mkdir()
        (units / "service.d/emulated.conf").write_text(EMULATED)
        (root / "etc/fstab").write_text("/dev/vda / ext4 rw 0 1\n")
        for unit in ("agent.service", "listener.service", "systemd-networkd.service"):
            run_program("chroot", root, "systemctl", "enable", unit)
        for unit in ("systemd-networkd-wait-online.service", "getty.target", "timers.target", "e2scrub_reap.service"):
            run_program("chroot", root, "systemctl", "mask", unit)
        run_program("truncate", "--size=2G", disk)
        run_program("mkfs.ext4", "-q", "-E", "lazy_itable_init=1", "-d", root, disk)
        shutil.rmtree(root)
        return disk

    def _argv(self, disk: Path) -> list[str]:
        boot = self._debian / "boot"
        [kernel], [initrd] = boot.glob("vmlinuz-*"), boot.glob("initrd.img-*")
        firmware = {name: text for name, (text, _) in PROVIDERS[self.lab.spec.provider].dmi.items()}
        nics = sorted(self.lab.nics, key=lambda nic: nic.name)  # net.ifnames=0: named in the order of their slots
        argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-m", str(MIB), "-smp", str(CPUS)]
        argv += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{self._console}"]
        argv += ["-kernel", str(kernel), "-initrd", str(initrd)]
        names = "" if self._udev_rules else "net.ifnames=0 "
        argv += [
            "-append",
            f"root=/dev/vda rw console=ttyS0 {names}panic=-1 quiet loglevel=4 systemd.show_status=0",
        ]
        argv += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
        argv += ["-device", "virtio-serial", "-chardev", f"socket,id=agent,path={self._work}/agent,server=on,wait=off"]
        argv += ["-device", "virtserialport,chardev=agent,name=agent", "-device", "virtio-rng-pci"]
        for table, words in SMBIOS.items():
            given = [f"{word}={firmware[name].replace(',', ',,')}" for word, name in words.items() if name in firmware]
            argv += ["-smbios", ",".join([f"type={table}", *given])]
        argv += ["-qmp", f"unix:{self._work}/monitor,server=on,wait=off"]
        for nic in nics:
            argv += ["-netdev", f"tap,id={nic.port},ifname={nic.port},script=no,downscript=no"]
            argv += ["-device", f"virtio-net-pci,netdev={nic.port},mac={nic.mac},romfile="]
        return argv

    def _boot(self) -> None:
        argv = self._argv(self._disk())
        self.started = time.monotonic()
        self._qemu = self.lab.cloud.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._port = socket.socket(socket.AF_UNIX)
        self._wait_for_port()
        hello = self._answers[0] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        end = time.monotonic() + 240 * self.timeout_factor
        while hello.empty():
            if self._qemu.poll() is not None or time.monotonic() > end:
                raise ImageError(f"the agent did not answer:\n{self._console.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)

    def _wait_for_port(self) -> None:
        end = time.monotonic() + 10
        while self._port.connect_ex(str(self._work / "agent")):
            if self._qemu.poll() is not None or time.monotonic() > end:
                self._qemu.kill()
                assert self._qemu.stdout
                raise ImageError(f"QEMU did not start: {self._qemu.stdout.read()}")
            time.sleep(0.05)

    def _listen(self) -> None:
        rest = b""
        while chunk := self._port.recv(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if waiting := self._answers.get(message["id"]):
                    waiting.put((message.get("status", 0), message.get("output", "")))

    def command(self, argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
        number = next(self._numbers)
        answer = self._answers[number] = queue.Queue()
        with self._lock:
            self._port.sendall(json.dumps({"id": number, "argv": argv, "stdin": stdin}).encode() + b"\n")
        timeout *= self.timeout_factor
        try:
            return answer.get(timeout=timeout)
        except queue.Empty:
            console = self._console.read_text(errors="replace")[-4000:]
            raise AssertionError(f"{' '.join(argv)} did not end within {timeout:g} s\n{console}") from None
        finally:
            del self._answers[number]

    def plug(self, nic: Nic) -> None:
        """Hot-plug an interface: connect the tap that `Lab.attach_interface` created."""
        tap = {"type": "tap", "id": nic.port, "ifname": nic.port, "script": "no", "downscript": "no"}
        with Monitor(self._work / "monitor") as qemu:
            qemu.ask("netdev_add", **tap)
            qemu.ask("device_add", driver="virtio-net-pci", id=nic.port, netdev=nic.port, mac=nic.mac, romfile="")

    def unplug(self, nic: Nic) -> None:
        """Ask the guest to release the interface, as a cloud does, and wait until it has."""
        with Monitor(self._work / "monitor") as qemu:
            qemu.ask("device_del", id=nic.port)
            qemu.wait_for("DEVICE_DELETED", nic.port)
            qemu.ask("netdev_del", id=nic.port)

    def close(self) -> None:
        if hasattr(self, "_qemu"):
            self._qemu.kill()
            self._qemu.wait(10)
        if hasattr(self, "_port"):
            self._port.close()


class Monitor:
    """A connection by the QEMU Machine Protocol: a line of JSON in each direction, and events in between."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(self._path))
        self._input = self._socket.makefile("r")
        self._events: list[dict[str, Any]] = []
        self.ask("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self._input.close()
        self._socket.close()

    def ask(self, command: str, **arguments: str) -> None:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while "return" not in (answer := self._next()):
            if "error" in answer:
                raise ImageError(f"QEMU's {command}: {answer['error']['desc']}")
            self._events.append(answer)

    def wait_for(self, event: str, device: str) -> None:
        def matches(message: dict[str, Any]) -> bool:
            return message.get("event") == event and message["data"].get("device") == device

        while not any(map(matches, self._events)):
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._input.readline())
        return message


@contextmanager
def booted(
    tree: Path, package: Path, work: Path, newer: Path | None = None, udev_rules: str = ""
) -> Iterator[VirtualMachine]:
    """Boot one of these Debian trees as the instance of an EC2 lab (SPEC), whose primary interface uses DHCP."""
    with (
        Lab(SPEC, taps=True) as lab,
        server(lab, lab.nics[0]),
        VirtualMachine(lab, tree, package, work, newer, udev_rules) as guest,
    ):
        yield guest
