"""Checks for every booted guest, virtual machine or container.

`class TestForm(LastChecks, Checks)`: pytest runs the checks of the last base class first; LastChecks upgrade, stop and
purge the package.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from tests.lab.filter import LostPackets
from tests.lab.spec import beyond_address, beyond_address6, neighbour_address

from .guest import SERVICES, Guest
from .image import NEWER, TOOLS

SANDBOX_PROBE = Path(__file__).with_name("sandbox_probe.py").read_text()
GATEWAY_PROBE = Path(__file__).with_name("gateway_probe.py").read_text()
NET_ADMIN = f"{1 << 12:016x}"
NO_CAPABILITY = f"{0:016x}"
MAX_EXPOSURE = {"netagent": 0.6, "fetcher": 1.0, "api": 1.0}
WRITABLE = {
    "netagent": ["/run/cloud-network-netagent", "/var/log/cloud-network"],
    "fetcher": ["/run/cloud-network"],
    "api": ["/run/cloud-network-api"],
}
PRIVATE = {"/tmp", "/var/tmp", "/dev/mqueue"}
"""Also writable; each service has its own (PrivateTmp=, PrivateIPC=)."""
METADATA, METADATA6 = "169.254.169.254", "fd00:ec2::254"
AUDIT = "/var/log/cloud-network/audit.log"


ROUTE, NETFILTER = "0", "12"
"""NETLINK_ROUTE and NETLINK_NETFILTER of linux/netlink.h."""
NETLINK_OF = """
import os, sys
from pathlib import Path
files = Path("/proc", sys.argv[1], "fd")
sockets = {os.readlink(file) for file in files.iterdir()}
for line in Path("/proc/net/netlink").read_text().splitlines()[1:]:
    words = line.split()
    if f"socket:[{words[9]}]" in sockets:
        print(words[1])
"""


def netlink_of_netagent(guest: Guest) -> set[str]:
    """Return the protocols of netagent's netlink sockets in the host's namespace."""
    guest.run("systemctl", "start", "cloud-network-netagent.service")
    return set(guest.run("python3", "-ISc", NETLINK_OF, str(guest.main_pid("netagent"))).split())


def all_reachable(guest: Guest) -> bool:
    return all(guest.lab.reachability().values())


def misrouted(guest: Guest) -> list[LostPackets]:
    """Return packets that left by a link that does not own their source, while all addresses are reachable.

    Those of IPv6 count from now on: before the router of a link has advertised itself, main's routes lead the link's
    packets. Not counted: multicast reports from 0.0.0.0, of links without an address; IPv6 packets of an interface that
    was unplugged, because the kernel retransmits the data of its connections through any other link for minutes.
    """
    before = [lost for lost in guest.lab.lost() if ":" not in lost.source]
    guest.lab.fabric.clear_lost()
    guest.wait_for(lambda: all_reachable(guest), message="all addresses")
    owned = {address for nic in guest.lab.nics for address in nic.all_addresses}
    since = [lost for lost in guest.lab.lost() if ":" not in lost.source or lost.source in owned]
    return [lost for lost in (*before, *since) if lost.source != "0.0.0.0"]


def network_state(guest: Guest) -> str:
    """Return all addresses, routes and rules as text."""
    return guest.run("sh", "-c", "ip -br address; for f in -4 -6; do ip $f rule; ip $f route show table all; done")


def shown_status(guest: Guest) -> str:
    """Return what `cnctl status` prints first; it fails if the host is not healthy."""
    return guest.run("sh", "-c", "cnctl status || true")


class Checks:
    """Base class of the test classes; `guest` is their fixture."""

    def test_every_address_is_reachable_after_the_boot(self, guest: Guest) -> None:
        guest.wait_for(lambda: all_reachable(guest), 120, "all addresses")
        lost = misrouted(guest)
        assert lost == [], lost

    def test_the_units_are_active(self, guest: Guest) -> None:
        fetcher = "cloud-network-fetcher.service"
        guest.wait_for(lambda: guest.show(fetcher, "ActiveState") == "active", message="the fetcher")
        for unit in ("cloud-network.target", "cloud-network-netagent.socket", "cloud-network-api.socket", fetcher):
            assert guest.run("systemctl", "is-active", unit).strip() == "active"
            assert guest.run("systemctl", "is-enabled", unit).strip() == "enabled"
        assert guest.run("systemctl", "--failed", "--plain", "--no-legend", "list-units", "cloud-network*") == ""
        assert guest.show(fetcher, "StatusText")

    @pytest.mark.parametrize("service", SERVICES)
    def test_exposure_is_within_its_limit(self, guest: Guest, service: str) -> None:
        output = guest.run("systemd-analyze", "security", "--no-pager", f"cloud-network-{service}.service")
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", output)
        assert found
        assert float(found[1]) <= MAX_EXPOSURE[service], output

    @pytest.mark.parametrize("name", ["coexistence.md", "policy.md", "alerts.yaml", "status.schema.json"])
    def test_document_that_messages_name_is_installed(self, guest: Guest, name: str) -> None:
        assert guest.run("cat", f"/usr/share/doc/cloud-network/{name}")

    def test_systemd_analyze_verify_reports_nothing(self, guest: Guest) -> None:
        units = guest.run("sh", "-c", "cd /usr/lib/systemd/system && ls cloud-network*").split()
        assert len(units) == 7
        output = guest.run("systemd-analyze", "verify", "--man=no", *units)
        assert output == "", output

    @pytest.mark.parametrize("service", SERVICES)
    def test_sandbox_access(self, guest: Guest, service: str) -> None:
        neighbour = neighbour_address(guest.lab.nics[0].subnet)
        guest.lab.reach.listen(guest.lab.neighbours[0], guest.lab.beyond[0])
        places = [METADATA, "80", neighbour, "7", "127.0.0.1", "7", beyond_address(0), "7", beyond_address6(0), "7"]
        found = guest.run_in_sandbox(service, SANDBOX_PROBE, *places)
        assert set(found["write"]) - PRIVATE == set(WRITABLE[service]), found
        assert found["sysctl"] != "yes"
        assert found["processes"] == []
        sockets = {name for name, verdict in found["sockets"].items() if verdict == "yes"}
        families: dict[str, set[str]] = {"netagent": set(), "api": {"inet", "inet6"}}
        assert sockets == families.get(service, {"inet", "inet6", "rtnetlink", "nfnetlink"}), found
        if guest.filters or service == "netagent":
            allowed = {"fetcher": METADATA, "api": "127.0.0.1"}.get(service)
            for action in ("connect", "send"):
                assert {p.split()[0] for p, verdict in found[action].items() if verdict == "yes"} <= {allowed}, found
            if allowed:
                assert "yes" in found["connect"].values(), found
        assert found["links"] == (["lo", "eth0", "eth1", "eth2"] if service == "fetcher" else []), found
        assert found["setuid"] != "yes"
        assert set(found["devices"]) <= {
            *(
                "char",
                "core",
                "fd",
                "full",
                "hugepages",
                "log",
                "mqueue",
                "null",
                "ptmx",
                "pts",
                "random",
                "shm",
                "stderr",
            ),
            *("stdin", "stdout", "tty", "urandom", "zero"),
        }
        assert set(found["capabilities"].values()) == {NET_ADMIN if service == "netagent" else NO_CAPABILITY}, found
        assert (found["no new privileges"], found["seccomp"]) == ("1", "2")

    def test_sandbox_allows_gateway_probes(self, guest: Guest) -> None:
        """IPAddressDeny= drops a datagram to a gateway before the kernel resolves its neighbour entry. Gateways are
        therefore probed by a datagram to the metadata server.

        It leaves by the same link through the same next hop and expires there: the kernel resolves the gateway, and no
        other destination need be allowed.
        """
        if not guest.filters:
            pytest.skip("IPAddressDeny= is not enforced here")
        nic = guest.lab.nics[1]
        gateways = (nic.gateway, guest.lab.convention.router6)
        four, six = nic.addresses[0], nic.ipv6[0]

        def probe_gateways(*targets: str) -> tuple[list[str], set[str]]:
            guest.run("sh", "-c", f"ip neigh flush dev {nic.name}; ip -6 neigh flush dev {nic.name}")
            output = guest.run_in_sandbox("fetcher", GATEWAY_PROBE, nic.name, four, targets[0], six, targets[1])
            lines = [line.split() for line in guest.run("ip", "neigh", "show", "dev", nic.name).splitlines()]
            return output, {words[0] for words in lines if "lladdr" in words} & set(gateways)

        assert probe_gateways(*gateways) == (["Operation not permitted"] * 2, set())
        assert probe_gateways(METADATA, METADATA6) == (["sent"] * 2, set(gateways))

    @pytest.mark.parametrize("service", SERVICES)
    def test_killed_service_is_restarted(self, guest: Guest, service: str) -> None:
        held = guest.lab.hold_connection(guest.lab.nics[1].addresses[1], timeout=10)
        unit = f"cloud-network-{service}.service"
        guest.run("systemctl", "start", unit)
        before = guest.main_pid(service)
        assert before
        guest.run("systemctl", "kill", "--signal=KILL", unit)
        guest.wait_for(lambda: guest.main_pid(service) not in (0, before), message=f"another {service}")
        guest.wait_for(lambda: guest.show(unit, "ActiveState") == "active", message=f"{service} to be ready")
        assert held.alive(10)
        assert all_reachable(guest)

    def test_hanging_or_stopped_fetcher_is_reported(self, guest: Guest) -> None:
        unit = "cloud-network-fetcher.service"
        guest.run("systemctl", "kill", "--signal=STOP", unit)
        try:
            guest.wait_for(lambda: "fetcher hangs" in shown_status(guest), 30, "the report of a fetcher that hangs")
        finally:
            guest.run("systemctl", "kill", "--signal=CONT", unit)
        guest.wait_for(lambda: "fetcher" not in shown_status(guest).partition(":")[0], 30, "the end of the report")
        guest.run("systemctl", "stop", unit)
        assert "fetcher not running" in shown_status(guest)
        guest.run("systemctl", "start", unit)
        guest.wait_for(lambda: "fetcher" not in shown_status(guest).partition(":")[0], 60, "the fetcher")

    def test_reload_keeps_the_process(self, guest: Guest) -> None:
        for service in ("fetcher", "netagent"):
            unit = f"cloud-network-{service}.service"
            if service == "netagent":
                guest.run("systemctl", "restart", unit)  # it exits after 60 s without a client
            before = guest.main_pid(service)
            guest.run("systemctl", "reload", unit)
            guest.wait_for(partial(guest.is_active, unit), message=f"{unit} to be ready")
            assert guest.main_pid(service) == before != 0

    def test_netagent_closes_nfnetlink_that_it_does_not_need(self, guest: Guest) -> None:
        assert netlink_of_netagent(guest) == {ROUTE}

    def test_only_netagent_can_write_the_audit_log(self, guest: Guest) -> None:
        owner = "cloud-network-netagent:cloud-network-netagent"
        assert guest.run("stat", "-c", "%U:%G %a", "/var/log/cloud-network").strip() == f"{owner} 755"
        assert guest.run("stat", "-c", "%U:%G %a", AUDIT).strip() == f"{owner} 644"
        before = guest.run("cat", AUDIT)
        for user in ("cloud-network", "cloud-network-api", "daemon"):
            for command in (f"echo x >>{AUDIT}", f": >{AUDIT}", f"rm -f {AUDIT}", f"mv {AUDIT} {AUDIT}.1"):
                output = guest.run("sh", "-c", command, user=user, check=False)
                assert "Permission denied" in output, (user, command, output)
        assert guest.run("cat", AUDIT).startswith(before)
        first = json.loads(before.splitlines()[0])
        assert first["boot"] == guest.run("cat", "/proc/sys/kernel/random/boot_id").strip()
        assert guest.run("cnctl", "audit", "--verify")

    def test_nothing_that_the_sandbox_refuses_is_needed(self, guest: Guest) -> None:
        """The journal would have the errors of a start, a pass or a reload."""
        output = guest.journal()
        assert guest.run("journalctl", "-q", "-o", "cat", "-p", "err", "-u", "cloud-network*") == "", output[-4000:]
        assert "Permission denied" not in output
        assert "Operation not permitted" not in output

    def test_the_journal_has_the_audit_too(self, guest: Guest) -> None:
        output = guest.run("journalctl", "-o", "cat", "-u", "cloud-network-netagent.service")
        lines = {line for line in output.splitlines() if line.startswith("{")}
        assert set(guest.run("cat", AUDIT).splitlines()) <= lines

    def test_cnctl_as_root_and_as_a_user(self, guest: Guest) -> None:
        guest.wait_for(lambda: guest.get("/api/v1/health")[0] == 200, message="health")
        network = guest.run("cnctl", "status", "network")
        assert all(address in network for address in guest.lab.addresses)
        assert guest.run("cnctl", "status", "network", user="daemon") == network
        assert "ok:" in guest.run("cnctl", "status", user="daemon")
        guest.run("cnctl", "refresh")
        output = guest.run("cnctl", "refresh", user="daemon", check=False)
        assert "root" in output, output


class LastChecks:
    """Upgrade, stop and purge: run after all other checks."""

    def test_an_upgrade_drops_no_connection(self, guest: Guest) -> None:
        held = [guest.lab.hold_connection(nic.addresses[-1], timeout=10) for nic in guest.lab.nics]
        before, pid, log = network_state(guest), guest.main_pid("fetcher"), guest.run("cat", AUDIT)
        guest.run("dpkg", "--install", f"{TOOLS}/newer.deb", timeout=240)
        assert guest.run("dpkg-query", "-W", "-f", "${Version}", "cloud-network") == NEWER
        assert guest.run("cnctl", "--version") == f"cnctl {NEWER}\n"
        guest.wait_for(
            lambda: (
                guest.show("cloud-network-fetcher.service", "ActiveState") == "active"
                and guest.main_pid("fetcher") not in (0, pid)
            ),
            message="another fetcher",
        )
        guest.wait_for(lambda: "ok:" in guest.run("cnctl", "status", check=False), message="cnctl status: ok")
        assert all(each.alive(10) for each in held)
        assert normalized(network_state(guest)) == normalized(before)
        since = guest.run("cat", AUDIT).removeprefix(log).splitlines()
        changes = [op for line in since for op in json.loads(line).get("ops", ())]
        assert changes == [], "the upgrade changed the kernel"

    def test_stop_leaves_the_network(self, guest: Guest) -> None:
        before = network_state(guest)
        guest.run("systemctl", "stop", "cloud-network.target")
        for service in SERVICES:
            guest.run("systemctl", "stop", f"cloud-network-{service}.service")
            assert guest.main_pid(service) == 0
        assert normalized(network_state(guest)) == normalized(before)
        assert all_reachable(guest)

    def test_remove_and_purge_leave_the_network_alone(self, guest: Guest) -> None:
        guest.wait_for(lambda: all_reachable(guest), message="all addresses")
        before = network_state(guest)
        held = guest.lab.hold_connection(guest.lab.nics[1].addresses[1], timeout=10)
        output = guest.run("dpkg", "--remove", "cloud-network")
        assert guest.run("test", "-e", AUDIT) == ""
        assert guest.run("test", "-e", "/etc/cloud-network/cloud-network.toml") == ""
        assert guest.run("find", "/etc/systemd", "-name", "cloud-network*") == ""
        output += guest.run("dpkg", "--purge", "cloud-network")
        assert "warning" not in output, output
        assert normalized(network_state(guest)) == normalized(before), network_state(guest)
        assert held.alive(10)
        assert all_reachable(guest)
        left = guest.run(
            "sh",
            "-c",
            "find / -xdev -name '*cloud-network*' -not -path '/proc/*'; find /run /var -name '*cloud-network*'",
        )
        assert [line for line in left.splitlines() if "/usr/local/" not in line] == [], left
        accounts = guest.run("cat", "/etc/passwd", "/etc/group")
        assert "cloud-network" not in accounts


def normalized(listing: str) -> list[str]:
    """Return the sorted lines without lifetimes."""
    return sorted(re.sub(r"(expires|valid_lft|preferred_lft) \S+", "", line).strip() for line in listing.splitlines())
