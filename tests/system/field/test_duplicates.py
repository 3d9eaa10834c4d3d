"""Addresses of the cloud that another link of the host has as well, or instead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.spec import beyond_address
from tests.system.netagent.wire import Wire
from tests.system.service import ip, kernel_addresses, refresh, running_lab, status, wait_until_healthy


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=3), "", "netagent", "fetcher") as made:
        yield made


def links_with(lab: Lab, address: str) -> set[str]:
    """Return the names of the links that have an address."""
    return {link["ifname"] for link in ip(lab, "address") for each in link["addr_info"] if each["local"] == address}


def egress_link(lab: Lab, source: str) -> str:
    """Return the link through which packets from `source` leave."""
    return str(ip(lab, "route", "get", beyond_address(0), "from", source)[0]["dev"])


@pytest.mark.parametrize("kind", ["lo", "bridge"])
def test_duplicate_address_keeps_its_reply_link(lab: Lab, kind: str) -> None:
    """As on kube-proxy's kube-ipvs0, or a manual VIP: the rule for the subnet is replaced by one for this address."""
    nic, other = lab.nics[1], "lo" if kind == "lo" else "vip0"
    address = nic.addresses[1]
    held = lab.hold_connection(address)
    if other != "lo":
        lab.batch([f"link add {other} type bridge", f"link set {other} up"])
    lab.batch([f"address add {address}/32 dev {other}"])
    lab.wait_for(lambda: any(rule["src"] == address for rule in ip(lab, "rule")), 10, "a rule for the address")
    assert refresh(lab) == "ok"
    assert links_with(lab, address) == {nic.name, other}
    assert egress_link(lab, address) == nic.name
    assert all(lab.reachability().values())
    assert held.alive()
    assert lab.lost() == []
    lab.batch([f"address del {address}/32 dev {other}"])
    lab.wait_for(lambda: not any(rule["src"] == address for rule in ip(lab, "rule")), 10, "one rule for the subnet")
    wait_until_healthy(lab)
    assert all(lab.reachability().values())


def test_address_only_on_lo_replies_through_its_interface(lab: Lab) -> None:
    """A load balancer serves an address that is only on lo: this is a notice, not degraded."""
    nic = lab.nics[1]
    address = "10.0.2.99"
    lab.batch([f"address add {address}/32 dev lo"])
    lab.add_address(nic.mac, address)
    assert refresh(lab) == "ok"
    assert links_with(lab, address) == {"lo"}
    assert egress_link(lab, address) == nic.name
    assert f"{address} of {nic.name} is on lo; its replies leave through {nic.name}" in status(lab)["notices"]
    assert all(lab.reachability().values())
    assert {link["state"] for link in status(lab)["links"].values()} == {"ok"}


@pytest.mark.parametrize("other", ["lo", "vip0"])
@pytest.mark.parametrize("host", [11, 200], ids=["of the cloud", "of another program"])
def test_address_on_lo_before_the_start_changes_no_form(lab: Lab, host: int, other: str) -> None:
    """A reboot must end in the same state as an address that is added later. A secondary interface has no lease."""
    nic, address = lab.nics[1], f"10.0.2.{host}"
    lab.stop("fetcher")
    with Wire(lab) as wire:
        assert wire.ask(request="flush", id="reboot")["verdict"] == "applied"
    if other != "lo":
        lab.batch([f"link add {other} type bridge", f"link set {other} up"])
    lab.batch([f"address add {address}/32 dev {other}"])
    lab.start("fetcher")
    lab.wait_for(lambda: nic.addresses[0] in kernel_addresses(lab), 20, "the address")
    there = ip(lab, "address", "show", "dev", nic.name)[0]["addr_info"]
    assert [each["prefixlen"] for each in there if each["local"] == nic.addresses[0]] == [24]
    if (host, other) != (11, "vip0"):  # an address of the cloud on a bridge alone is an error
        wait_until_healthy(lab)
        assert {link["state"] for link in status(lab)["links"].values()} == {"ok"}
        assert all(lab.reachability().values())


def test_address_only_on_a_bridge_is_reported_with_its_key(lab: Lab) -> None:
    nic, address = lab.nics[1], "10.0.2.99"
    lab.batch(["link add br0 type bridge", "link set br0 up", f"address add {address}/32 dev br0"])
    lab.add_address(nic.mac, address)
    assert refresh(lab) == "degraded"
    message = status(lab)["last_error"]["message"]
    assert f"{address} of {nic.name}: br0 has {address}" in message
    assert f'ExcludeAddresses="{address}"' in message
    assert set(lab.addresses) - {address} <= kernel_addresses(lab)
    lab.batch(["link delete br0"])
    wait_until_healthy(lab)
    assert links_with(lab, address) == {nic.name}


def test_address_moved_by_the_cloud_moves_to_the_other_link(lab: Lab) -> None:
    """Also if a script adds the address before the metadata changes."""
    extra = lab.attach_interface(Interface("10.0.2.0/24", ("10.0.2.50",)))
    refresh(lab)
    wait_until_healthy(lab)
    old, moving = lab.nics[1], lab.nics[1].addresses[2]
    lab.batch([f"address add {moving}/32 dev {extra.name}"])
    lab.wait_for(lambda: any(rule["src"] == moving for rule in ip(lab, "rule")), 10, "a rule for the address")
    assert refresh(lab) == "ok"
    assert egress_link(lab, moving) == old.name
    lab.remove_address(old.mac, moving)
    lab.add_address(extra.mac, moving)
    assert refresh(lab) == "ok"
    assert links_with(lab, moving) == {extra.name}
    assert egress_link(lab, moving) == extra.name
    assert all(lab.reachability([moving]).values())
