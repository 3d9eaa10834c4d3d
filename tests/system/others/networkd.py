"""systemd-networkd as an instance runs it, without systemd, because the lab has none; the bus is real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lab import Lab, Nic
from tests.lab.namespaces import Namespace

from .host import make_private_directory
from .programs import Program, require_program

DROP_IN = Path(__file__).parents[3] / "systemd/networkd.conf.d/50-cloud-network.conf"


class Networkd(Program):
    """`networkctl` and the daemon. It manages the links for which it has a .network file."""

    def __init__(self, lab: Lab, nics: Sequence[Nic], section: str = "DHCP=ipv4") -> None:
        argv = [require_program("systemd-networkd", "systemd")]
        super().__init__(lab, argv, env={"SYSTEMD_LOG_LEVEL": "debug"})
        self._instance: Namespace = lab.instance
        self._nics = nics
        make_private_directory(lab, "/etc/systemd")
        make_private_directory(lab, "/etc/systemd/network")
        for nic in nics:
            text = f"[Match]\nMACAddress={nic.mac}\n[Network]\n{section}\n"
            lab.path(f"/etc/systemd/network/10-{nic.name}.network").write_text(text)
        for each in ("leases", "links", "lldp"):
            lab.path(f"/run/systemd/netif/{each}").mkdir(parents=True, exist_ok=True)
        lab.run(["chown", "-R", "systemd-network:systemd-network", "/run/systemd/netif"])

    def install_drop_in(self) -> None:
        directory = self._lab.path("/etc/systemd/networkd.conf.d")
        directory.mkdir()
        (directory / DROP_IN.name).write_text(DROP_IN.read_text())

    def start(self) -> None:
        super().start()
        self.wait_until_configured()

    def wait_until_configured(self) -> None:
        self._lab.wait_for(
            lambda: all(self._state(nic) == "configured" for nic in self._nics), 15, "networkd to have configured"
        )

    def reconfigure(self) -> None:
        """Reconfigure as an operator does after changing a .network file."""
        self._instance.run(["networkctl", "reconfigure", *(nic.name for nic in self._nics)])

    def _state(self, nic: Nic) -> str:
        done = self._instance.run(["networkctl", "--no-pager", "--no-legend", "list", nic.name], check=False)
        return (done.stdout.split() or [""])[-1]
