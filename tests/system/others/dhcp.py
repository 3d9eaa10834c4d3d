"""A DHCP server in the cloud (dnsmasq), and the clients that Debian packages."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab import Lab, Nic
from tests.lab.namespaces import LAB_RUN

from .programs import Program, require_program

LEASES = LAB_RUN / "dnsmasq.leases"
HOSTS = LAB_RUN / "dnsmasq.hosts"
T2 = 4
"""Seconds until a client renews; dnsmasq makes it renew one second earlier, so that no test waits for half an hour."""


class Server:
    """A server that gives each interface one address, as a cloud does, and renews it on every request."""

    def __init__(self, lab: Lab, program: Program, given: str) -> None:
        self._lab, self._program, self._given = lab, program, given

    def grants(self) -> int:
        """Return the number of leases that it has granted or renewed."""
        return self._program.log().count("DHCPACK(")

    def released(self) -> bool:
        return "DHCPRELEASE(" in self._program.log()

    def give(self, nic: Nic, address: str) -> None:
        """Give this address from now on, and refuse the old one. A client may still request the old one."""
        self._lab.fabric.filter.owners("add", [(nic, self._given)])
        _write(self._lab, nic, address)
        self._program.send(signal.SIGHUP)

    def wait_for_grants(self, count: int, timeout: float = 20) -> None:
        before = self.grants()
        self._lab.wait_for(lambda: self.grants() >= before + count, timeout, f"{count} grants of the DHCP server")


@contextmanager
def server(lab: Lab, nic: Nic) -> Iterator[Server]:
    """Serve the subnet of one interface, by default with the interface's first address."""
    bridge = lab.fabric.bridge(nic.subnet)
    lab.fabric.allow_dhcp(nic)
    _write(lab, nic, nic.addresses[0])
    argv = [
        require_program("dnsmasq", "dnsmasq-base"),
        *("--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--log-facility=-"),
        *("--pid-file=", "--no-ping", "--dhcp-authoritative", "--log-dhcp", f"--interface={bridge}"),
        f"--dhcp-range={nic.network.network_address},static,{nic.network.netmask},1h",
        f"--dhcp-option=3,{nic.gateway}",
        f"--dhcp-option-force=59,{T2}",
        f"--dhcp-leasefile={LEASES}",
        f"--dhcp-hostsfile={HOSTS}",
    ]
    with Program(lab, argv, namespace=lab.cloud) as program:
        lab.wait_for(lambda: "started" in program.log(), message="dnsmasq")
        yield Server(lab, program, nic.addresses[0])


def _write(lab: Lab, nic: Nic, address: str) -> None:
    lab.path(HOSTS).write_text(f"{nic.mac},{address}\n")


def dhclient(lab: Lab, nic: Nic) -> Program:
    """isc-dhcp-client with Debian's script, but without its hooks, which would write to /etc."""
    argv = [
        require_program("dhclient", "isc-dhcp-client"),
        *("-4", "-d", "-v", "-cf", "/dev/null", "-lf", "/run/dhclient.leases", "-pf", "/run/dhclient.pid", nic.name),
    ]
    return Program(lab, argv)


def dhcpcd(lab: Lab, nic: Nic) -> Program:
    argv = [require_program("dhcpcd", "dhcpcd-base"), "-4", "-B", "-d", "--noarp", "-f", "/dev/null", nic.name]
    return Program(lab, argv, private=["/var/lib/dhcpcd"])
