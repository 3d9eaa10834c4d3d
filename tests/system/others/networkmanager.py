"""NetworkManager alone on the real bus, with its own DHCP client; without polkit, only root can use it."""

from __future__ import annotations

from tests.lab import Lab, Nic

from .host import make_private_directory
from .programs import Program, require_program

CONFIG = "[main]\nplugins=keyfile\ndhcp=internal\nauth-polkit=false\nno-auto-default=*\n[logging]\nlevel=INFO\n"


class NetworkManager(Program):
    """NetworkManager with one interface configured by DHCP."""

    def __init__(self, lab: Lab, nic: Nic) -> None:
        argv = [require_program("NetworkManager", "network-manager"), "--no-daemon"]
        super().__init__(lab, argv, private=["/var/lib/NetworkManager"])
        self._nic = nic
        make_private_directory(lab, "/etc/NetworkManager")
        make_private_directory(lab, "/etc/NetworkManager/system-connections")
        lab.path("/etc/NetworkManager/NetworkManager.conf").write_text(CONFIG)
        profile = lab.path("/etc/NetworkManager/system-connections/lease.nmconnection")
        profile.write_text(
            f"[connection]\nid=lease\ntype=ethernet\ninterface-name={nic.name}\n"
            "[ipv4]\nmethod=auto\n[ipv6]\nmethod=ignore\n"
        )
        profile.chmod(0o600)

    def start(self) -> None:
        """Treat an interface that is already up as external until its profile is activated."""
        super().start()
        self._lab.wait_for(lambda: self._state().startswith("100 "), 20, "NetworkManager")
        if not self.connected():
            self.up()

    def connected(self) -> bool:
        """Return True if the profile has connected the interface, and it is not `connected (externally)`."""
        return self._state() == "100 (connected)"

    def _state(self) -> str:
        argv = ["nmcli", "-g", "GENERAL.STATE", "device", "show", self._nic.name]
        return self._lab.run(argv, check=False).stdout.strip()

    def reapply(self) -> None:
        """Reapply a changed setting, as an operator does, without taking the interface down."""
        self._lab.run(["nmcli", "device", "reapply", self._nic.name])

    def up(self) -> None:
        """Activate the profile again."""
        self._lab.run(["nmcli", "connection", "up", "lease"])
