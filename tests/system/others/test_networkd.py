"""The real systemd-networkd: the objects that it removes are repaired, and settings that prevent the removal."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.system.service import (
    kernel,
    kernel_addresses,
    own_objects,
    read_all_facts,
    running_lab,
    wait_until_healthy,
    without_order,
)

from . import dhcp
from .host import bus
from .networkd import DROP_IN, Networkd

CONFIGURED = "configuring -> configured"
KEEP = "DHCP=ipv4\nKeepConfiguration=static"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A DHCP server, because networkd's own address depends on its lease."""
    with running_lab(Spec.aws(interfaces=2, addresses=3)) as made, dhcp.server(made, made.nics[0]), bus(made):
        yield made
        assert "Traceback" not in made.log("fetcher") + made.log("netagent")


def own_rules_and_routes(lab: Lab) -> list[list[str]]:
    return [sorted(map(str, own_objects(lab, what))) for what in ("rule-4", "route-4")]


def removed(lab: Lab, action: str, networkd: Networkd) -> set[str]:
    """Return the rules, routes and siblings' addresses that networkd removed, if only for a moment."""
    path = "/run/lab/monitor"
    with lab.path(path).open("wb") as output:
        monitor = lab.instance.popen(["ip", "-o", "monitor", "address", "route", "rule"], stdout=output)
        lab.wait_for(lambda: monitor_listens(lab), message="ip monitor")
        before = networkd.log().count(CONFIGURED)
        getattr(networkd, action)()
        lab.wait_for(lambda: networkd.log().count(CONFIGURED) > before, 15, f"networkd's {action}")
        wait_until_healthy(lab)
        monitor.terminate()
        monitor.wait(10)
    lines = lab.path(path).read_text().splitlines()
    siblings = tuple(f"inet {address}/" for nic in lab.nics for address in nic.addresses[1:])
    gone = {line for line in lines if line.startswith("Deleted")}
    return {line for line in gone if "proto 209" in line or any(sibling in line for sibling in siblings)}


def monitor_listens(lab: Lab) -> bool:
    """Return True if a process other than the fetcher listens to rules (RTNLGRP_IPV4_RULE is bit 7 of the groups)."""
    rows = [line.split() for line in lab.run(["cat", "/proc/net/netlink"]).stdout.splitlines()[1:]]
    return sum(row[1] == "0" and bool(int(row[3], 16) & 0x80) for row in rows) >= 3


def test_removed_objects_are_repaired_and_networkd_is_named(lab: Lab) -> None:
    """With its defaults networkd removes, on a reconfiguration, the rules of every link, and routes and addresses of
    that link.
    """
    before, connection = own_rules_and_routes(lab), lab.hold_connection(lab.nics[0].addresses[1])
    lab.stop("fetcher")
    with Networkd(lab, lab.nics[:1]) as networkd:
        lab.start("fetcher")
        lab.wait_for(lambda: "systemd-networkd" in lab.log("fetcher"), message="the warning")
        [output] = [line for line in lab.log("fetcher").splitlines() if "systemd-networkd" in line]
        assert f"/etc/systemd/networkd.conf.d/{DROP_IN.name}" in output
        assert "level=warning" in output
        gone = removed(lab, "reconfigure", networkd)
        assert len([line for line in gone if "lookup" in line]) == len(before[0]), "networkd removed every rule"
        lab.wait_for(
            lambda: own_rules_and_routes(lab) == before and set(lab.addresses) <= kernel_addresses(lab),
            10,
            "the repair",
        )
        wait_until_healthy(lab)
        assert connection.alive()
        assert all(lab.reachability().values())
        networkd.restart()
        lab.wait_for(
            lambda: own_rules_and_routes(lab) == before and set(lab.addresses) <= kernel_addresses(lab),
            10,
            "the repair",
        )
        assert connection.alive()
    assert len([line for line in lab.log("fetcher").splitlines() if "systemd-networkd" in line]) == 1


@pytest.mark.parametrize("action", ["restart", "reconfigure"])
def test_drop_in_and_kept_addresses_prevent_all_removals(lab: Lab, action: str) -> None:
    """KeepConfiguration= must be in the .network file: networkd.conf has no setting for addresses."""
    before, connection = own_rules_and_routes(lab), lab.hold_connection(lab.nics[0].addresses[1])
    networkd = Networkd(lab, lab.nics[:1], KEEP)
    networkd.install_drop_in()
    with networkd:
        lab.restart("fetcher")
        wait_until_healthy(lab)
        assert removed(lab, action, networkd) == set()
        assert own_rules_and_routes(lab) == before
        assert connection.alive()
        assert "systemd-networkd" not in lab.log("fetcher")


def test_drop_in_keeps_rules_and_addresses_are_repaired(lab: Lab) -> None:
    before, connection = own_rules_and_routes(lab), lab.hold_connection(lab.nics[0].addresses[1])
    networkd = Networkd(lab, lab.nics[:1])
    networkd.install_drop_in()
    with networkd:
        gone = removed(lab, "reconfigure", networkd)
        assert not [line for line in gone if "lookup" in line or "proto 209" in line]
        lab.wait_for(
            lambda: own_rules_and_routes(lab) == before and set(lab.addresses) <= kernel_addresses(lab),
            10,
            "the repair",
        )
        assert connection.alive()


def test_networkd_reconfigure_during_a_change_is_repaired(lab: Lab) -> None:
    """The fetcher reads new metadata while networkd removes every rule: afterwards all objects are there."""
    with Networkd(lab, lab.nics[:1]) as networkd:
        held = lab.hold_connection(lab.nics[1].addresses[1])
        read_all_facts(lab)  # otherwise it reads again after a second
        for number in range(3):
            wait_until_healthy(lab)
            before = own_rules_and_routes(lab)
            for subnet, nic in enumerate(list(lab.nics), 1):
                lab.add_address(nic.mac, f"10.0.{subnet}.{70 + number}")
            lab.kill("fetcher", signal.SIGHUP)
            gone = removed(lab, "reconfigure", networkd)
            assert len([line for line in gone if "lookup" in line]) == len(before[0]), "networkd removed every rule"
            lab.wait_for(lambda: set(lab.addresses) <= kernel_addresses(lab), 15, "the addresses")
            lab.wait_for(lambda wanted=before: own_rules_and_routes(lab) == wanted, 15, "routes and rules")  # type: ignore[misc]
        assert all(lab.reachability().values())
        assert held.alive()


def test_its_own_objects_are_left_to_it(lab: Lab) -> None:
    """networkd's address, routes and static sections are unchanged after the fetcher has run and stopped."""
    section = f"{KEEP}\n[Route]\nDestination=192.0.2.0/24\nGateway={lab.nics[0].gateway}\n"
    section += "[RoutingPolicyRule]\nFrom=192.0.2.9\nTable=77\nPriority=31005\n"
    with Networkd(lab, lab.nics[:1], section):
        lab.wait_for(lambda: "192.0.2.9" in lab.run(["ip", "rule"]).stdout, message="networkd's rule")
        wait_until_healthy(lab)
        before = without_order(kernel(lab))
        lab.restart("netagent")
        lab.restart("fetcher")
        wait_until_healthy(lab)
        assert without_order(kernel(lab)) == before
