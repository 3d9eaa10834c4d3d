"""Child links of interfaces, links that are down, withdrawn routers, IPv6 without IPv4, and Kubernetes nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab import Lab, Spec
from tests.system.netagent.wire import Wire
from tests.system.service import (
    CONFIG,
    ip,
    kernel_addresses,
    own_objects,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
)

IPV6 = 'AllowAddresses = "2001:db8::/32"\n'


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=3), "", "netagent", "fetcher") as made:
        yield made


def test_macvlan_child_is_left_alone(lab: Lab) -> None:
    """A container's macvlan, in this or another namespace, has an address in the interface's subnet."""
    nic = lab.nics[1]
    held = lab.hold_connection(nic.addresses[1])
    lab.batch([f"link add link {nic.name} name child0 type macvlan mode bridge", "link set child0 up"])
    lab.batch(["address add 10.0.2.200/32 dev child0"])
    assert refresh(lab) == "ok"
    [child] = [link for link in ip(lab, "address") if link["ifname"] == "child0"]
    assert [each["local"] for each in child["addr_info"] if each["family"] == "inet"] == ["10.0.2.200"]
    selectors = {(each.get("src"), each.get("srclen")) for each in own_objects(lab, "rule-4")}
    assert ("10.0.2.0", 24) not in selectors, "no rule covers the whole subnet"
    lab.add_address(nic.mac, "10.0.2.77")
    assert refresh(lab) == "ok"
    assert all(lab.reachability().values())
    assert held.alive()


def test_macvlan_child_with_the_subnet_before_the_start_is_kept(lab: Lab) -> None:
    """After a reboot, a service of the operator may set it up first. A secondary interface has no lease."""
    nic = lab.nics[1]
    lab.stop("fetcher")
    with Wire(lab) as wire:
        assert wire.ask(request="flush", id="reboot")["verdict"] == "applied"
    lab.batch([f"link set {nic.name} up", f"link add link {nic.name} name child0 type macvlan mode bridge"])
    lab.batch(["link set child0 up", "address add 10.0.2.200/24 dev child0"])
    lab.start("fetcher")
    lab.wait_for(lambda: set(nic.addresses) <= kernel_addresses(lab), 20, "the addresses")
    wait_until_healthy(lab)
    assert all(lab.reachability().values())


def test_child_link_with_the_interfaces_mac_is_not_matched(lab: Lab) -> None:
    """Like ipvlan, which the kernel may lack: a macvlan in passthru mode has the interface's MAC as well."""
    nic = lab.nics[1]
    lab.batch([f"link add link {nic.name} name child0 type macvlan mode passthru", "link set child0 up"])
    [child] = [link for link in ip(lab, "address") if link["ifname"] == "child0"]
    assert child["address"] == nic.mac
    lab.add_address(lab.nics[2].mac, "10.0.3.77")
    assert refresh(lab) == "ok"
    [child] = [link for link in ip(lab, "address") if link["ifname"] == "child0"]
    assert [each for each in child["addr_info"] if each["family"] == "inet"] == []
    assert set(lab.addresses) <= kernel_addresses(lab)
    assert {link["name"] for link in status(lab)["links"].values()} == {each.name for each in lab.nics}


def test_excluded_link_that_is_down_stays_down(lab: Lab) -> None:
    nic, others = lab.nics[1], [lab.nics[0], lab.nics[2]]
    lab.write_config(f'[Network]\nExclude = "{nic.name}"\n{CONFIG}')
    lab.restart("netagent")
    lab.restart("fetcher")
    lab.wait_for(lambda: not set(nic.addresses) & kernel_addresses(lab), 15, "the removal of the owned objects")
    lab.batch([f"link set {nic.name} down"])
    lab.add_address(lab.nics[2].mac, "10.0.3.77")
    assert refresh(lab) == "ok"
    [link] = [each for each in ip(lab, "link") if each["ifname"] == nic.name]
    assert "UP" not in link["flags"]
    assert all(lab.reachability([address for each in others for address in each.addresses]).values())


def test_routes_stay_while_a_withdrawn_router_still_resolves() -> None:
    """A router lifetime of 0 removes the default route from main. A table without another route keeps its default
    route.
    """
    with running_lab(Spec.cloud("aws", interfaces=2, addresses=2, ipv6=2), IPV6, "netagent", "fetcher") as lab:
        lab.wait_for(lambda: all(lab.reachability().values()), 15, "every link's router")
        nic = lab.nics[1]
        held = lab.hold_connection(nic.ipv6[1])
        before = sorted(map(str, own_objects(lab, "route-6")))
        lab.fabric.advertise(nic.subnet, lifetime=0)
        learned = ["ip", "-6", "route", "show", "default", "proto", "ra", "dev", nic.name]
        lab.wait_for(lambda: lab.run(learned).stdout == "", 10, "the removal from main")
        assert refresh(lab) == "ok"
        assert sorted(map(str, own_objects(lab, "route-6"))) == before
        assert held.alive()
        assert all(lab.reachability().values())
        lab.fabric.advertise(nic.subnet)
        lab.wait_for(lambda: lab.run(learned).stdout != "", 10, "the route in main")
        assert refresh(lab) == "ok"
        assert sorted(map(str, own_objects(lab, "route-6"))) == before


def test_instance_with_ipv6_only_is_configured() -> None:
    """The metadata has no IPv4 address, the links have none, and the metadata server is reached over IPv6."""
    with Lab(Spec.cloud("aws", interfaces=2, addresses=1, ipv6=3)) as lab:
        for nic in lab.nics:
            lab.remove_address(nic.mac, nic.addresses[0])
        lab.run(["ip", "-4", "address", "flush", "dev", lab.nics[0].name])
        lab.write_config(CONFIG + IPV6)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: set(lab.addresses6) <= kernel_addresses(lab), 20, "the IPv6 addresses")
        lab.wait_for(lambda: all(lab.reachability().values()), 20, "every address to answer")
        wait_until_healthy(lab)
        assert own_objects(lab, "rule-4") == own_objects(lab, "route-4") == []
        assert status(lab)["notices"] == []


def test_settings_for_kubernetes_nodes_leave_pod_addresses_alone() -> None:
    """As in docs/clouds.md: a plugin owns secondary interfaces, and the secondary addresses and prefixes of the
    primary.
    """
    primary, secondary = Spec.aws(interfaces=2, addresses=3).interfaces
    spec = Spec((replace(primary, prefixes=("10.0.1.128/28",)), secondary))
    keys = '[Network]\nManage = "primary"\nExcludeAddresses = "10.0.1.0/24"\nPrefixes = "ignore"\n'
    with Lab(spec) as lab:
        lab.write_config(keys + CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        lab.add_address(lab.nics[0].mac, "10.0.1.77")
        assert refresh(lab) == "ok"
        assert {each for each in kernel_addresses(lab) if ":" not in each} == {lab.nics[0].addresses[0]}
        assert [each for each in own_objects(lab, "rule-4") if each["src"] != "all"] == []
        [link] = [each for each in ip(lab, "link") if each["ifname"] == lab.nics[1].name]
        assert "UP" not in link["flags"]
        assert all(lab.reachability([lab.nics[0].addresses[0]]).values())


def test_subnet_of_routed_pods_has_a_route_if_allowed() -> None:
    """As in docs/clouds.md, no_manage. The pod's link is a bridge here, because the lab's interfaces are veths."""
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        primary, other = lab.nics
        lab.write_config(f'[Network]\nExclude = "{primary.name}"\n{CONFIG}AllowAddresses = "10.0.1.0/24"\n')
        lab.batch(["link add pod0 type bridge", "link set pod0 up"])
        lab.batch(["route add 10.0.1.65 dev pod0", "rule add priority 512 to 10.0.1.65 lookup main"])
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        assert all(lab.reachability(other.addresses).values())
        [route] = ip(lab, "route", "get", "10.0.1.65", "from", other.addresses[0])
        assert route["dev"] == "pod0"
