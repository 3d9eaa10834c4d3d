"""Objects of other programs on the same host: they stay unchanged, and take precedence by specificity or priority.

Real programs (systemd-networkd, NetworkManager, DHCP clients) are in tests/system/others/.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.lab import Where
from tests.lab.namespaces import Namespace
from tests.lab.spec import beyond_address, neighbour_address
from tests.system.others import docker
from tests.system.service import (
    CONFIG,
    PROTOCOL,
    audit,
    errors,
    ip,
    kernel,
    own_objects,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
)

STRICT = {"net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.default.rp_filter": "1"}
SPEC = Spec.aws(interfaces=3, addresses=3)
METADATA = "169.254.169.254"
ELSEWHERE = "192.0.2.1"  # behind a host that the operator, or a container network, uses as a gateway


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab(replace(SPEC, sysctl=STRICT)) as made:
        yield made


@contextmanager
def foreign_objects(lab: Lab, *lines: str) -> Iterator[None]:
    """Add objects of other programs, and check that a refresh and a restart of the fetcher leave them unchanged."""
    lab.batch(lines)
    try:
        before = foreign(lab)
        assert refresh(lab) == "ok"
        assert foreign(lab) == before
        yield
        restart(lab)
        assert foreign(lab) == before
    finally:
        undo = [line.replace(" add ", " del ", 1) for line in reversed(lines) if line.split()[:2] != ["link", "set"]]
        for line in undo:
            lab.run(["ip", *line.split()], check=False)  # a route may have been removed with its link
    assert refresh(lab) == "ok"


def restart(lab: Lab) -> None:
    """Restart both daemons; their queries must not change other programs' objects."""
    lab.stop("fetcher")
    lab.restart("netagent")
    lab.start("fetcher")
    lab.wait_for(lambda: lab.path("/run/cloud-network/control.sock").exists(), message="the fetcher")
    assert refresh(lab) == "ok"


def foreign(lab: Lab) -> dict[str, list[Any]]:
    """Return all foreign objects, except what the kernel derives from owned addresses; carrier changes by itself."""
    found, cloud_addresses = kernel(lab), set(lab.addresses)
    links = found.pop("address")
    kept: dict[str, list[Any]] = {
        what: [
            {key: value for key, value in entry.items() if key != "flags"}
            for entry in entries
            if str(entry.get("protocol")) != PROTOCOL and entry.get("prefsrc") not in cloud_addresses
        ]
        for what, entries in found.items()
    }
    for link in links:
        others = [each for each in link["addr_info"] if each["local"] not in cloud_addresses]
        kept[link["ifname"]] = [link["mtu"], "UP" in link["flags"], others]
    return kept


def route_for(lab: Lab, destination: str, source: str | None = None, mark: int = 0) -> dict[str, Any]:
    """Return the kernel's route: device, gateway, table."""
    words = ["from", source] if source else []
    return ip(lab, "route", "get", destination, *words, *(["mark", str(mark)] if mark else []))[0]


def serve_elsewhere(lab: Lab, host: Namespace) -> None:
    """Run a service behind a neighbour in the primary's subnet."""
    host.batch([f"address replace {ELSEWHERE}/32 dev lo"])
    lab.reach.listen(host)


def test_strict_reverse_path_filtering_changes_nothing(lab: Lab) -> None:
    answers = lab.reachability()
    assert len(answers) == 4 * 9
    assert all(answers.values())
    assert all(lab.outbound().values())
    assert lab.lost() == []


def test_vpn_with_a_lower_priority_number_takes_precedence(lab: Lab) -> None:
    """As `wg-quick up` does, started after cloud-network: the kernel gives its rules lower numbers than 31000."""
    held = lab.hold_connection(lab.nics[1].addresses[1], source=("neighbour", 1))
    lines = [
        "link add wg0 type bridge",
        "link set wg0 up",
        "address add 10.99.0.2/32 dev wg0",
        "route add default dev wg0 table 51820",
        "rule add not fwmark 51820 table 51820",
        "rule add table main suppress_prefixlength 0",
        f"route add {METADATA} via {lab.nics[0].gateway} dev {lab.nics[0].name}",
    ]
    with foreign_objects(lab, *lines):
        priorities = [rule["priority"] for rule in ip(lab, "rule") if rule.get("protocol") != PROTOCOL]
        assert {30998, 30999} <= set(priorities)
        source = lab.nics[1].addresses[1]
        assert route_for(lab, beyond_address(0))["dev"] == "wg0"
        assert route_for(lab, beyond_address(0), source)["dev"] == "wg0"
        assert route_for(lab, beyond_address(0), source, mark=51820)["dev"] == lab.nics[1].name, "the VPN's own packets"
        assert route_for(lab, neighbour_address(lab.nics[1].subnet), source)["dev"] == lab.nics[1].name
        assert held.alive(), "destinations of main keep their link"
        assert not any(lab.outbound(timeout=0.3).values())
    assert all(lab.outbound().values())


def test_vpn_over_the_metadata_server_removes_nothing(lab: Lab) -> None:
    """Without a route in main the metadata server is behind the VPN, which is down: an error, and the network stays."""
    lines = ["route add unreachable default table 51820", "rule add pref 100 not fwmark 51820 table 51820"]
    lab.batch(lines)
    before = kernel(lab)
    assert refresh(lab) == "error"
    assert kernel(lab) == before
    lab.batch([line.replace(" add ", " del ") for line in reversed(lines)])
    assert refresh(lab) == "ok"


def test_earlier_vpn_gets_packets_without_a_source(lab: Lab) -> None:
    """With priorities above 31020: replies from the cloud's addresses leave through their link, others use the VPN."""
    lines = [
        "link add wg0 type bridge",
        "link set wg0 up",
        "route add default dev wg0 table 51820",
        "rule add pref 32765 not fwmark 51820 table 51820",
        "rule add pref 32764 table main suppress_prefixlength 0",
        f"route add {METADATA} via {lab.nics[0].gateway} dev {lab.nics[0].name}",
    ]
    with foreign_objects(lab, *lines):
        assert route_for(lab, "203.0.113.9")["dev"] == "wg0"
        assert all(lab.outbound().values())
        assert all(lab.reachability().values())


def test_static_route_overrides_owned_default_routes(lab: Lab) -> None:
    """With any source address; the real connection uses the address whose link leads to that host."""
    primary, other = lab.nics[0], lab.nics[1]
    host = neighbour_address(primary.subnet)
    serve_elsewhere(lab, lab.neighbours[0])
    assert route_for(lab, ELSEWHERE, other.addresses[1])["dev"] == other.name
    with foreign_objects(lab, f"route add 192.0.2.0/24 via {host} dev {primary.name}"):
        for source in (None, *lab.addresses):
            found = route_for(lab, ELSEWHERE, source)
            assert (found["dev"], found["gateway"]) == (primary.name, host)
        wanted: list[tuple[str, str | None]] = [(ELSEWHERE, address) for address in primary.addresses]
        assert all(lab.reach.probe({lab.instance: wanted}, 1.5).values())


def test_a_container_networks_routes_in_main_win(lab: Lab) -> None:
    """Pods of this host behind a bridge, and pods of another host through it (Flannel's host-gw, kube-router)."""
    host = neighbour_address(lab.nics[1].subnet)
    lines = [
        "link add cni0 type bridge",
        "link set cni0 up",
        "address add 10.244.0.1/24 dev cni0",
        f"route add 10.244.1.0/24 via {host} dev {lab.nics[1].name}",
    ]
    with foreign_objects(lab, *lines):
        for source in lab.addresses:
            assert route_for(lab, "10.244.0.7", source)["dev"] == "cni0"
            assert route_for(lab, "10.244.1.7", source)["gateway"] == host


def test_known_main_route_into_own_subnet_needs_a_rule(lab: Lab) -> None:
    """Step 1 comes before main. Container networks with pods in the subnet add such rules (aws-vpc-cni at 512)."""
    pod, source = "10.0.2.77", lab.nics[1].addresses[1]
    lines = ["link add pod0 type bridge", "link set pod0 up", f"route add {pod}/32 dev pod0"]
    with foreign_objects(lab, *lines):
        assert route_for(lab, pod)["dev"] == "pod0"
        assert route_for(lab, pod, source)["dev"] == lab.nics[1].name
        with foreign_objects(lab, f"rule add pref 512 to {pod} lookup main"):
            assert route_for(lab, pod, source)["dev"] == "pod0"


def test_operators_policy_routing_applies_by_priority(lab: Lab) -> None:
    """Before the owned rules, in their gaps for operators, and after them."""
    nic = lab.nics[1]
    host, source = neighbour_address(nic.subnet), nic.addresses[1]
    table = f"route add default via {host} dev {nic.name} table 100"
    assert route_for(lab, ELSEWHERE, source)["gateway"] == nic.gateway
    for priority, winner in ((1000, host), (31005, host), (31015, host), (31500, nic.gateway)):
        with foreign_objects(lab, table, f"rule add pref {priority} from {source} lookup 100"):
            assert route_for(lab, ELSEWHERE, source)["gateway"] == winner, priority
            assert route_for(lab, ELSEWHERE, nic.addresses[2])["gateway"] == nic.gateway


def test_foreign_route_in_owned_table_blocks_nothing_else() -> None:
    """Another program's default route in an owned table: it is kept and reported, and the rest is configured."""
    with Lab(SPEC) as lab:
        nic = lab.nics[1]
        host = neighbour_address(nic.subnet)
        index = next(link["ifindex"] for link in ip(lab, "link") if link["ifname"] == nic.name)
        lines = [f"link set {nic.name} up", f"route add default via {host} dev {nic.name} table {9999 + index} onlink"]
        lab.batch(lines)
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: set(lab.addresses) <= addresses(lab), message="the addresses")
        assert refresh(lab) == "degraded"
        assert route_for(lab, beyond_address(0), nic.addresses[0])["gateway"] == host
        assert all(lab.reachability([*lab.nics[0].addresses, *lab.nics[2].addresses]).values())
        assert "refused" not in [line["verdict"] for line in audit(lab)]
        assert f"table {9999 + index}" in status(lab)["last_error"]["message"]
        assert len(errors(lab)) == 1
        lab.batch([lines[1].replace("add", "del", 1)])
        wait_until_healthy(lab)
        assert all(lab.reachability().values())


def addresses(lab: Lab) -> set[str]:
    return {each["local"] for link in ip(lab, "address") for each in link["addr_info"]}


def test_googles_agent_and_its_own_local_routes() -> None:
    """Of two ranges that are equal, the first stays; for an alias that is already an address, nothing is added."""
    alias, forwarded = "10.0.1.200/32", "10.0.1.64/28"
    nics = (Interface("10.0.1.0/24", 1, prefixes=(forwarded, alias)), Interface("10.0.2.0/24", 1))
    with Lab(Spec(nics, provider="gcp")) as lab:
        nic = lab.nics[0]
        lab.batch([f"address add {alias} dev {nic.name}", f"route add local {forwarded} dev {nic.name} proto 66"])
        before = foreign(lab)
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        wait_until_healthy(lab)
        assert refresh(lab) == "ok"
        assert [route for route in own_objects(lab, "route-4") if route["table"] == "local"] == []
        after = foreign(lab)
        assert after["route-4"] == before["route-4"]
        assert [verdict["verdict"] for verdict in audit(lab)] == ["applied", "confirmed"] * 2
        assert errors(lab) == []
        assert all(lab.reachability([*lab.addresses, *lab.range_ends]).values())
        lab.batch(
            [f"route del local {forwarded} dev {nic.name} proto 66"]
        )  # the agent's route is removed: an owned one replaces it
        lab.wait_for(
            lambda: [r["dst"] for r in own_objects(lab, "route-4") if r["table"] == "local"] == [forwarded],
            message="the owned local route for the forwarded address alone",
        )
        assert all(lab.reachability(lab.range_ends).values())


@pytest.fixture(scope="module")
def container() -> Iterator[tuple[Lab, Namespace]]:
    with running_lab(Spec.aws(interfaces=3, addresses=3)) as made:
        yield made, docker.start(made)


def test_dockers_network_works_on_the_primary(container: tuple[Lab, Namespace]) -> None:
    """Outgoing with MASQUERADE, incoming through a published port; bridge, routes and NAT rules stay."""
    lab, namespace = container
    before, rules = foreign(lab), lab.run(["nft", "-s", "list", "ruleset"]).stdout
    assert docker.CONTAINER not in [
        each["address"] for link in status(lab)["links"].values() for each in link["addresses"]
    ]
    lab.reach.listen(lab.beyond[0])
    assert beyond_address(0) in docker.greeting(lab, namespace.name, beyond_address(0), docker.PORT)
    for address in lab.nics[0].addresses:
        assert docker.CONTAINER in docker.greeting(lab, "beyond", address, docker.PUBLISHED)
        assert docker.CONTAINER in docker.greeting(lab, ("neighbour", 0), address, docker.PUBLISHED)
    assert route_for(lab, docker.CONTAINER, lab.nics[1].addresses[1])["dev"] == docker.BRIDGE
    restart(lab)
    assert (foreign(lab), lab.run(["nft", "-s", "list", "ruleset"]).stdout) == (before, rules)
    assert all(lab.reachability().values())


def test_known_published_port_answers_only_as_main_routes(container: tuple[Lab, Namespace]) -> None:
    """Without ForwardedReplies="mark": the reply is routed before NAT restores the published address."""
    lab, _ = container
    primary, other = (nic.addresses[1] for nic in lab.nics[:2])
    assert docker.CONTAINER in docker.greeting(lab, ("neighbour", 1), other, docker.PUBLISHED)
    lab.fabric.clear_lost()
    unanswered: list[tuple[Where, str]] = [("beyond", other), (("neighbour", 2), other), (("neighbour", 1), primary)]
    for where, address in unanswered:
        assert docker.greeting(lab, where, address, docker.PUBLISHED) == ""
    assert {lost.source for lost in lab.lost()} == {primary, other}, "the cloud dropped the replies"
