"""The cloud's configuration changes at run time: addresses and interfaces are added and removed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Interface, Lab, Nic, Spec
from tests.system.service import (
    CONFIG,
    MACS,
    audit,
    errors,
    ip,
    is_healthy,
    kernel,
    kernel_addresses,
    own_objects,
    read_all_facts,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
    without_order,
)

OWNED_ADDRESSES = """
import sys
from pyroute2 import IPRoute
with IPRoute() as kernel:
    [link] = kernel.link_lookup(ifname=sys.argv[1])
    for address in sys.argv[2:]:
        kernel.addr("add", index=link, address=address, prefixlen=24, proto=209)
"""
"""Adds addresses to a link with IFA_PROTO 209, as owned; ip-address(8) of Debian 12 cannot."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=3)) as made:
        yield made
        assert made.lost() == []


def objects_of(lab: Lab, nic: Nic) -> list[object]:
    """Return all objects of an interface: rules for its addresses or subnet, routes to the subnet, its state file."""
    sources = {*nic.addresses, nic.subnet.partition("/")[0]}
    rules = [rule for rule in own_objects(lab, "rule-4") if rule["src"] in sources]
    routes = [route for route in own_objects(lab, "route-4") if nic.subnet == route["dst"]]
    links = [link for link in status(lab)["links"].values() if link["mac"] == nic.mac]
    documents = [path for path in lab.path("/run/cloud-network/links").iterdir() if nic.mac in path.read_text()]
    return [*rules, *routes, *links, *documents]


def test_address_is_added_and_removed(lab: Lab) -> None:
    before, nic = kernel(lab), lab.nics[1]
    connection = lab.hold_connection(nic.addresses[2])
    lab.add_address(nic.mac, "10.0.2.77")
    assert refresh(lab) == "ok"
    assert "10.0.2.77" in kernel_addresses(lab)
    assert all(lab.reachability(["10.0.2.77"]).values())
    lab.remove_address(nic.mac, "10.0.2.77")
    assert refresh(lab) == "ok"
    assert without_order(kernel(lab)) == without_order(before)
    assert connection.alive()
    assert errors(lab) == []


def test_refused_removal_waits_for_a_change_in_the_kernel(lab: Lab) -> None:
    """Meanwhile a refresh sends no request to netagent, and reads the metadata once."""
    nic, netagent = lab.nics[1], lab.daemons.pid("netagent")
    gone = nic.addresses[2]
    lab.run(["ip", "route", "add", "192.0.2.0/24", "dev", nic.name, "src", gone])
    lab.remove_address(nic.mac, gone)
    assert refresh(lab) == "degraded"
    assert "depends on 10.0.2.12" in status(lab)["last_error"]["message"]
    lab.wait_for(
        lambda: refreshes_change_nothing(lab, netagent), message="refreshes without a request or a second read"
    )
    lab.run(["ip", "route", "del", "192.0.2.0/24"])
    lab.wait_for(lambda: gone not in kernel_addresses(lab), 10, "the removal")
    wait_until_healthy(lab)


def refreshes_change_nothing(lab: Lab, netagent: int) -> bool:
    """Return True if three refreshes cost netagent no processor time, and read no metadata twice."""

    def work() -> tuple[str, int]:
        processor_time = Path(f"/proc/{netagent}/schedstat").read_text().split()[0]
        return processor_time, lab.log("fetcher").count("confirming with a second read")

    before = work()
    for _ in range(3):
        assert refresh(lab) == "degraded"
    return work() == before


def test_timer_alone_finds_additions_and_proves_removals(lab: Lab) -> None:
    """No request and no kernel event announces it. A removal needs two reads that agree."""
    lab.write_config('[System]\nRefreshTimer = "1s"\n[Netagent]\nAllowKinds = "veth"\n')
    lab.daemons.kill("fetcher", 1)
    nic = lab.nics[2]
    lab.add_address(nic.mac, "10.0.3.77")
    lab.wait_for(lambda: "10.0.3.77" in kernel_addresses(lab), 10, "the new address")
    lab.metadata.reset()
    lab.remove_address(nic.mac, "10.0.3.77")
    lab.wait_for(lambda: "10.0.3.77" not in kernel_addresses(lab), 10, "the removal of the old address")
    assert lab.metadata.paths().count(f"{MACS}{nic.mac}/local-ipv4s") >= 2


def test_many_addresses_at_once(lab: Lab) -> None:
    read_all_facts(lab)  # otherwise the next read comes after a second, with some of the addresses
    nic = lab.nics[1]
    for last in range(100, 140):
        lab.add_address(nic.mac, f"10.0.2.{last}")
    assert refresh(lab) == "ok"
    assert set(lab.addresses) <= kernel_addresses(lab)
    assert all(lab.reachability([f"10.0.2.{last}" for last in (100, 120, 139)]).values())
    verdicts = [line["verdict"] for line in audit(lab)]
    assert verdicts == ["applied", "confirmed"] * (len(verdicts) // 2)
    assert len(verdicts) <= 8, "one change, or a few if a pass ran in between"


def test_an_address_moves_from_one_interface_to_another(lab: Lab) -> None:
    """Both are in one subnet; the address is removed from one and added to the other in one change."""
    extra = lab.attach_interface(Interface("10.0.2.0/24", ("10.0.2.50",)))
    refresh(lab)
    wait_until_healthy(lab)
    moving = lab.nics[1].addresses[2]
    lab.remove_address(lab.nics[1].mac, moving)
    lab.add_address(extra.mac, moving)
    assert refresh(lab) == "ok"
    owners = [link["ifname"] for link in ip(lab, "address") for each in link["addr_info"] if each["local"] == moving]
    assert owners == [extra.name]
    assert all(lab.reachability([moving]).values())


@pytest.mark.parametrize("first", ["metadata", "interface"])
def test_an_interface_is_plugged_in_while_it_runs(lab: Lab, first: str) -> None:
    """Whichever is first, the fetcher waits for the other without a request."""
    read_all_facts(lab)
    before = kernel(lab)
    connection = lab.hold_connection(lab.nics[1].addresses[1])

    def check_half_updated() -> None:
        if first == "metadata":
            assert refresh(lab) == "degraded"
            assert len(status(lab)["unknown_macs"]) == 1
        else:
            lab.metadata.reset()
            lab.wait_for(
                lambda: len([path for path in lab.metadata.paths() if path == MACS]) >= 2,
                10,
                "repeated reads of the metadata",
            )
            assert without_order(kernel(lab))[1] == without_order(before)[1]  # no route, no rule

    nic = lab.attach_interface(Interface("10.0.9.0/24", 3), first_update=first, between_updates=check_half_updated)  # type: ignore[arg-type]
    wait_until_healthy(lab)
    assert set(nic.addresses) <= kernel_addresses(lab)
    answers = lab.reachability()
    assert all(answers.values())
    assert len(answers) == 5 * len(lab.addresses)
    assert connection.alive()


@pytest.mark.parametrize("first", ["metadata", "interface"])
def test_an_interface_is_unplugged_while_it_runs(lab: Lab, first: str) -> None:
    nic = lab.nics[2]
    read_all_facts(lab)
    connection = lab.hold_connection(lab.nics[1].addresses[1])

    def check_half_updated() -> None:
        if first == "interface":
            lab.wait_for(lambda: status(lab)["unknown_macs"] == [nic.mac], 10, "the fetcher to report the missing link")
        else:
            refresh(lab)

    lab.detach_interface(nic.mac, first_update=first, between_updates=check_half_updated)  # type: ignore[arg-type]
    lab.wait_for(lambda: objects_of(lab, nic) == [], 10, "a read without a request")
    wait_until_healthy(lab)
    assert all(lab.reachability().values())
    assert connection.alive()


def test_plugged_in_again_it_works_again(lab: Lab) -> None:
    """The new link has another ifindex, and therefore another table."""
    nic = lab.nics[2]
    lab.detach_interface(nic.mac)
    refresh(lab)
    again = lab.attach_interface(Interface(nic.subnet, nic.addresses, mac=nic.mac), first_update="interface")
    lab.wait_for(lambda: is_healthy(lab), 20, "the interface")
    assert again.mac == nic.mac
    assert all(lab.reachability().values())


def test_second_interface_is_added_and_removed() -> None:
    """Tables and rules are added with the second interface, and removed with it."""
    with running_lab(Spec.aws(interfaces=1, addresses=3)) as lab:
        before = kernel(lab)
        assert own_objects(lab, "rule-4") == own_objects(lab, "route-4") == []
        nic = lab.attach_interface(Interface("10.0.9.0/24", 3))
        wait_until_healthy(lab)
        assert all(lab.reachability().values())
        assert len(own_objects(lab, "rule-4")) == 5
        lab.detach_interface(nic.mac)
        refresh(lab)
        wait_until_healthy(lab)
        assert without_order(kernel(lab)) == without_order(before)


def test_link_outside_the_metadata_is_not_changed(lab: Lab) -> None:
    """After a while, the mismatch no longer causes reads."""
    lab.batch(
        ["link add other0 type veth peer name other1", "address add 192.0.2.1/24 dev other0", "link set other0 up"]
    )
    refresh(lab)
    found = next(link for link in ip(lab, "address") if link["ifname"] == "other0")
    assert [each["local"] for each in found["addr_info"] if each["family"] == "inet"] == ["192.0.2.1"]
    assert is_healthy(lab)


def test_error_of_one_interface_does_not_block_others(lab: Lab) -> None:
    """Nothing is removed meanwhile, but new objects are added and removed ones are repaired."""
    odd, good = lab.nics[1], lab.nics[2]
    lab.metadata.fail("html", f"{MACS}{odd.mac}/local-ipv4s")
    lab.add_address(good.mac, "10.0.3.77")
    lab.remove_address(good.mac, good.addresses[2])
    assert refresh(lab) == "degraded"
    assert {"10.0.3.77", good.addresses[2]} <= kernel_addresses(lab)
    lab.batch([f"address del {each.addresses[1]}/32 dev {each.name}" for each in (odd, good)])
    lab.wait_for(lambda: {odd.addresses[1], good.addresses[1]} <= kernel_addresses(lab), 10, "the repair")
    lab.metadata.clear()
    refresh(lab)
    wait_until_healthy(lab)
    assert good.addresses[2] not in kernel_addresses(lab)


def test_removed_primary_address_keeps_siblings(lab: Lab) -> None:
    """The kernel would remove secondaries of the same prefix as well: siblings are /32."""
    nic = lab.nics[1]
    connection = lab.hold_connection(nic.addresses[1])
    lab.remove_address(nic.mac, nic.addresses[0])
    assert refresh(lab) == "ok"
    assert nic.addresses[0] not in kernel_addresses(lab)
    assert set(lab.addresses) <= kernel_addresses(lab)
    assert all(lab.reachability().values())
    assert connection.alive()


def test_first_address_leaves_although_the_next_is_its_secondary(lab: Lab) -> None:
    """This happens if the removal was refused once while the next address got the subnet's prefix length."""
    nic = lab.nics[1]
    first, extra = nic.addresses[0], "10.0.2.240"
    connection = lab.hold_connection(nic.addresses[1])
    lab.stop("fetcher")
    lab.batch([f"address del {first}/24 dev {nic.name}"])
    lab.run([sys.executable, "-c", OWNED_ADDRESSES, nic.name, extra, first])
    lab.start("fetcher")
    wait_until_healthy(lab)
    lab.wait_for(lambda: extra not in kernel_addresses(lab), 20, "the removal")
    wait_until_healthy(lab)
    assert set(nic.addresses) <= kernel_addresses(lab)
    assert all(lab.reachability(nic.addresses).values())
    assert connection.alive()


def test_many_kernel_events_do_not_stop_the_fetcher(lab: Lab) -> None:
    """A routing daemon adds thousands; the socket overruns, and an important event may be among the lost ones."""
    victim = lab.nics[1]
    routes = [f"10.{100 + n // 200}.{n % 200}.0/24" for n in range(2000)]
    for verb in ("add", "del"):
        lab.batch([f"route {verb} {route} dev eth0" for route in routes])
    lab.batch([f"address del {victim.addresses[1]}/32 dev {victim.name}"])
    lab.wait_for(lambda: victim.addresses[1] in kernel_addresses(lab), 10, "the repair")
    wait_until_healthy(lab)
    lab.wait_for(
        lambda: [line["verdict"] for line in audit(lab)] == ["applied", "confirmed"] * 4,
        message="four changes, applied and confirmed",
    )


def overruns(lab: Lab) -> int:
    """Return the number of dropped messages of rtnetlink listeners (proc(5), /proc/net/netlink)."""
    lines = [line.split() for line in lab.run(["cat", "/proc/net/netlink"]).stdout.splitlines()[1:]]
    return sum(int(line[8]) for line in lines if line[1] == "0" and int(line[3], 16))


def test_event_overrun_causes_a_full_read(lab: Lab) -> None:
    """The fetcher is stopped while its socket overflows, so that the important event is certainly lost."""
    victim = lab.nics[1]
    lab.kill("fetcher", signal.SIGSTOP)
    routes = [f"10.{100 + n // 200}.{n % 200}.0/24" for n in range(2000)]
    for verb in ("add", "del"):
        lab.batch([f"route {verb} {route} dev eth0" for route in routes])
    before = overruns(lab)
    assert before > 0
    lab.batch([f"address del {victim.addresses[1]}/32 dev {victim.name}"])
    assert overruns(lab) > before
    complaints = errors(lab)
    lab.daemons.resume("fetcher")
    lab.wait_for(lambda: victim.addresses[1] in kernel_addresses(lab), 10, "the repair")
    wait_until_healthy(lab)
    assert errors(lab) == complaints


def test_link_set_down_is_restored_completely(lab: Lab) -> None:
    """The kernel removes the routes of a link that goes down; its addresses and rules stay."""
    before, nic = kernel(lab), lab.nics[1]
    lab.batch([f"link set {nic.name} down"])
    lab.wait_for(lambda: without_order(kernel(lab)) == without_order(before), 10, "the kernel to be as before")
    assert all(lab.reachability().values())


def test_returned_carrier_restores_everything(lab: Lab) -> None:
    before, nic = kernel(lab), lab.nics[1]
    lab.run(["ip", "link", "set", nic.port, "down"], "cloud")
    lab.wait_for(lambda: kernel(lab) != before, 10, "the carrier to be lost")
    refresh(lab)
    lab.run(["ip", "link", "set", nic.port, "up"], "cloud")
    lab.wait_for(lambda: without_order(kernel(lab)) == without_order(before), 10, "the kernel to be as before")
    assert all(lab.reachability().values())
    assert "address_remove" not in str(audit(lab))


def test_changed_mtu_is_repaired() -> None:
    """For clouds that give an MTU, such as GCP."""
    with Lab(Spec.cloud("gcp", interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        for name in ("netagent", "fetcher"):
            lab.start(name)
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        nic = lab.nics[1]

        def mtu() -> int:
            return next(int(link["mtu"]) for link in ip(lab, "link") if link["ifname"] == nic.name)

        before = mtu()
        lab.batch([f"link set {nic.name} mtu {before - 100}"])
        lab.wait_for(lambda: mtu() == before, 10, "the MTU")
