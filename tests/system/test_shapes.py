"""Instances of other shapes: one interface, two in one subnet, only DHCP, IPv6, ranges, old metadata."""

from __future__ import annotations

from signal import SIGHUP
from typing import Any

import pytest

from tests.lab import Interface, Lab, Spec
from tests.system.service import (
    CONFIG,
    audit,
    cnctl,
    errors,
    ip,
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

META = "/latest/meta-data/"


def test_a_single_interface_gets_its_addresses_and_no_tables() -> None:
    with running_lab(Spec.aws(interfaces=1, addresses=15)) as lab:
        assert set(lab.addresses) <= kernel_addresses(lab)
        assert own_objects(lab, "route-4") == own_objects(lab, "rule-4") == []
        assert all(lab.reachability().values())
        assert all(lab.outbound().values())
        assert lab.lost() == []


def test_a_single_interface_named_in_supplementary_gets_a_table() -> None:
    with running_lab(Spec.aws(interfaces=1, addresses=5), '[Network]\nSupplementary = "eth0"\n') as lab:
        assert [route["dst"] for route in own_objects(lab, "route-4")] == ["10.0.1.0/24", "default"]
        assert len(own_objects(lab, "rule-4")) == 3
        assert all(lab.reachability().values())
        assert all(lab.outbound().values())


@pytest.mark.parametrize("settings", [{"v1": False}, {"tokens": 404}, {"tokens": 405}])
def test_either_metadata_version_is_sufficient(settings: dict[str, Any]) -> None:
    tokens = settings.pop("tokens", None)
    with Lab(Spec.aws(interfaces=2, addresses=3, **settings)) as lab:
        if tokens:
            lab.metadata.fail("status", "/latest/api/token", status=tokens)
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        wait_until_healthy(lab)
        assert all(lab.reachability().values())
        assert all(record.status == 200 for record in lab.metadata.requests() if record.path.endswith("local-ipv4s"))
        assert errors(lab) == []


@pytest.mark.parametrize("dhcp_all", [False, True])
def test_two_interfaces_in_one_subnet(dhcp_all: bool) -> None:
    same = [Interface("10.0.1.0/24", 4), Interface("10.0.1.0/24", 4), Interface("10.0.2.0/24", 4)]
    with running_lab(Spec(tuple(same), dhcp_all=dhcp_all)) as lab:
        assert all(lab.reachability().values())
        assert all(lab.outbound().values())
        assert lab.lost() == []
        if not dhcp_all:
            connected = [route["dev"] for route in ip(lab, "route", "show", "10.0.1.0/24")]
            assert connected == [lab.nics[0].name]  # the second's would shadow the first's


@pytest.mark.parametrize("dhcp_all", [False, True])
def test_two_interfaces_in_one_subnet_with_leases_of_ipv6(dhcp_all: bool) -> None:
    """The kernel has a route in main to each lease, a /128 of the subnet that both have learned."""
    same = Interface("10.0.1.0/24", 2, ipv6=2)
    with running_lab(Spec((same, same), dhcp_all=dhcp_all)) as lab:
        lab.wait_for(lambda: all(lab.reachability().values()), 10, "every address to answer")
        assert status(lab)["last_error"] is None


@pytest.mark.parametrize("dhcp_all", [False, True])
def test_two_interfaces_in_one_subnet_with_routes_to_the_gateway(dhcp_all: bool) -> None:
    """systemd-networkd adds a route to the gateway with each lease."""
    same = Interface("10.0.1.0/24", 3)
    with Lab(Spec((same, same), dhcp_all=dhcp_all)) as lab:
        leased = lab.nics if dhcp_all else lab.nics[:1]
        for metric, nic in enumerate(leased, 100):
            lab.batch([f"route add {nic.gateway} dev {nic.name} proto dhcp scope link metric {metric}"])
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        wait_until_healthy(lab)
        assert all(lab.reachability().values())
        second = lab.nics[1]
        lab.batch([f"link set {second.name} down"])
        lab.wait_for(lambda: all(lab.reachability().values()), 15, "the second interface to be set up")
        assert lab.lost() == []


def test_first_of_two_in_one_subnet_can_return() -> None:
    """While the second exists, the first must not get a connected route: it works without."""
    with running_lab(Spec((Interface("10.0.1.0/24", 2), Interface("10.0.1.0/24", 2)))) as lab:
        first = lab.nics[0]
        lab.batch([f"address flush dev {first.name}", f"route add default via {first.gateway} dev {first.name} onlink"])
        lab.wait_for(lambda: set(first.addresses) <= kernel_addresses(lab), 15, "the first interface's addresses")
        wait_until_healthy(lab)
        assert all(lab.reachability().values())


def test_dhcp_addresses_of_all_interfaces_are_adopted() -> None:
    spec = Spec(tuple(Interface(f"10.0.{n}.0/24", 4) for n in (1, 2, 3)), dhcp_all=True)
    with Lab(spec) as lab:
        by_dhcp = {nic.addresses[0] for nic in lab.nics}
        before = [each for link in kernel(lab)["address"] for each in link["addr_info"] if each["local"] in by_dhcp]
        main = ip(lab, "route", "show", "proto", "dhcp")
        lab.write_config(CONFIG)
        for name in ("netagent", "fetcher"):
            lab.start(name)
        wait_until_healthy(lab)
        after = [each for link in kernel(lab)["address"] for each in link["addr_info"] if each["local"] in by_dhcp]
        assert (after, ip(lab, "route", "show", "proto", "dhcp")) == (before, main)
        assert all(lab.reachability().values())
        assert all(lab.outbound().values())
        assert lab.lost() == []


def test_ranges_and_ipv6_are_in_place() -> None:
    """IPv6 gateways are known after the router's advertisement, seconds after a link comes up."""
    both = [
        Interface(f"10.0.{n}.0/24", 2, ipv6=(f"fd00:{n}::a", f"fd00:{n}::b"), prefixes=(f"10.0.{n}.64/28",))
        for n in (1, 2)
    ]
    with running_lab(Spec(tuple(both))) as lab:
        for nic in lab.nics:
            assert {*nic.addresses, *nic.ipv6} <= kernel_addresses(lab)
        lengths = {each["local"]: each["prefixlen"] for link in ip(lab, "address") for each in link["addr_info"]}
        assert {lengths[six] for nic in lab.nics for six in nic.ipv6} == {128}
        assert {rule["src"] for rule in own_objects(lab, "rule-4")} >= {"10.0.1.64", "10.0.2.64"}
        assert {(rule["src"], rule.get("srclen")) for rule in own_objects(lab, "rule-6")} == {
            ("all", None), ("fd00:1::", 64), ("fd00:2::", 64)
        }  # fmt: skip
        assert not any("/28" in str(route["dst"]) for route in own_objects(lab, "route-4"))
        lab.wait_for(lambda: all(lab.reachability().values()), message="every address to answer")


def test_links_that_swap_names_keep_their_addresses() -> None:
    """Links swap their names at run time: only the MAC counts."""
    with running_lab(Spec.aws(interfaces=3, addresses=2)) as lab:
        before = {
            link["address"]: {each["local"] for each in link["addr_info"] if each["family"] == "inet"}
            for link in ip(lab, "address")
        }
        lab.batch(["link set eth1 name tmp0", "link set eth2 name eth1", "link set tmp0 name eth2"])
        assert refresh(lab) == "ok"
        after = {
            link["address"]: {each["local"] for each in link["addr_info"] if each["family"] == "inet"}
            for link in ip(lab, "address")
        }
        assert after == before
        assert {link["name"] for link in status(lab)["links"].values()} == {"eth0", "eth1", "eth2"}


def test_an_excluded_link_is_left_as_it_is() -> None:
    with Lab(Spec.aws(interfaces=3, addresses=3)) as lab:
        left = lab.nics[1]
        lab.write_config(f'[Network]\nExclude = "{left.name}"\n{CONFIG}')
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 10, "the other links")
        assert kernel_addresses(lab).isdisjoint(left.addresses)
        assert {*lab.nics[0].addresses, *lab.nics[2].addresses} <= kernel_addresses(lab)
        assert [link["state"] for link in status(lab)["links"].values() if link["mac"] == left.mac] == ["excluded"]


def test_reload_applies_valid_configurations_only() -> None:
    with running_lab(Spec.aws(interfaces=2, addresses=3)) as lab:
        before = kernel(lab)
        lab.write_config(f'[Network]\nRules = "orginal"\n{CONFIG}')
        lab.daemons.kill("fetcher", 1)
        lab.wait_for(lambda: errors(lab), 10, "the error message")
        [line] = errors(lab)
        assert "cloud-network.toml:2:" in line
        assert "orginal" in line
        assert "original" in line
        assert "continuing with the configuration in use" in line
        assert refresh(lab) == "degraded", "until the file is valid"
        assert "orginal" in status(lab)["last_error"]["message"]
        assert kernel(lab) == before
        lab.write_config(f'[Network]\nRules = "original"\n{CONFIG}')
        lab.daemons.kill("fetcher", 1)
        lab.wait_for(lambda: len(own_objects(lab, "rule-4")) == 19, 10, "the new rules")
        lab.write_config(CONFIG)
        lab.daemons.kill("fetcher", 1)
        lab.wait_for(lambda: without_order(kernel(lab)) == without_order(before), 10, "the removal of the new rules")
        assert all(lab.reachability().values())


def test_invalid_configuration_prevents_the_start() -> None:
    with Lab(Spec.aws(interfaces=1, addresses=1)) as lab:
        lab.write_config("[Network]\nListen = here\n")
        lab.start("fetcher")
        lab.wait_for(lambda: not lab.daemons.running("fetcher"), 10, "the fetcher to exit")
        assert "cloud-network.toml:2: " in lab.log("fetcher")
        assert "Traceback" not in lab.log("fetcher")


def test_refusal_is_shown_with_its_key_and_retried_slowly() -> None:
    """Here: netagent's configuration does not allow the lab's kind of links, and only the fetcher is reloaded later."""
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config("")
        lab.start("netagent")
        lab.wait_for(lambda: "ready" in lab.log("netagent"), 10, "netagent to have read its configuration")
        lab.write_config(CONFIG)
        lab.start("fetcher")
        lab.wait_for(lambda: 'AllowKinds="veth"' in str(status(lab).get("last_error")), 10, "the refusal")
        assert status(lab)["state"] == "degraded"
        assert {nic.name for nic in lab.nics} <= set(status(lab)["last_error"]["message"].replace(":", " ").split())
        assert refresh(lab) == "degraded"
        assert audit(lab) == [], "a lasting refusal is not requested again"
        assert len(errors(lab)) == 1
        lab.restart("netagent")
        lab.kill("fetcher", SIGHUP)
        wait_until_healthy(lab)


def test_cnctl_agrees_with_the_kernel() -> None:
    """In the original's layout, with the three processes together."""
    with running_lab(Spec.aws(interfaces=2, addresses=3, public=1)) as lab:
        read_all_facts(lab)
        shown = cnctl(lab, "status", "network")
        for nic in lab.nics:
            assert f"Name: {nic.name}" in shown.stdout
            assert " ".join(f"{address}/24" for address in nic.addresses) in shown.stdout
        assert (shown.returncode, cnctl(lab, "status", "system").returncode) == (0, 0)
        refused = cnctl(lab, "show", "credentials")
        assert refused.returncode != 0
        assert "SECRET" not in refused.stdout + refused.stderr
        assert "root" in refused.stderr


def test_disallowed_link_kind_is_reported_with_its_key() -> None:
    with Lab(Spec.aws(interfaces=1, addresses=2)) as lab:
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: "AllowKinds" in lab.log("fetcher"), message="the log to name AllowKinds")
        assert 'eth0 has that MAC and is of kind veth, which needs [Netagent] AllowKinds=\\"veth\\"' in lab.log(
            "fetcher"
        )
