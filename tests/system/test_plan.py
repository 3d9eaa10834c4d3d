"""`cnctl plan`: the exact changes, and no change by the command itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Interface, Lab, Spec
from tests.system.service import (
    CONFIG,
    audit,
    cnctl,
    ip,
    kernel,
    kernel_addresses,
    own_objects,
    read_all_facts,
    refresh,
    running_lab,
    status,
    without_order,
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.cloud("aws", interfaces=2, addresses=2, ipv6=1), "", "netagent", "fetcher") as made:
        yield made


def cnctl_as_root(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.run([str(Path(sys.executable).with_name("cnctl")), *arguments], check=False)


def plan(lab: Lab) -> dict[str, Any]:
    ended = cnctl_as_root(lab, "plan", "--json")
    found: dict[str, Any] = json.loads(ended.stdout)
    assert ended.returncode == (1 if found["changes"] or found["metadata_error"] else 0)
    return found


def test_empty_plan_exits_0(lab: Lab) -> None:
    ended = cnctl_as_root(lab, "plan")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "nothing to do\n", "")


def test_changed_metadata_is_planned_but_not_applied(lab: Lab) -> None:
    read_all_facts(lab)
    before, lines = kernel(lab), len(audit(lab))
    nic = lab.nics[1]
    gone = nic.addresses[1]
    lab.add_address(nic.mac, "10.0.2.77")
    lab.remove_address(nic.mac, gone)
    found = plan(lab)["changes"]
    assert f"ip address add 10.0.2.77/32 dev {nic.name} noprefixroute" in found
    assert f"ip address del {gone}/32 dev {nic.name}" in found
    assert not any(" rule " in line for line in found), "the subnet's rule is for all of its addresses"
    assert (kernel(lab), len(audit(lab))) == (before, lines)
    assert refresh(lab) == "ok"
    assert "10.0.2.77" in kernel_addresses(lab)
    assert gone not in kernel_addresses(lab)
    assert plan(lab)["changes"] == []


def test_printed_commands_equal_the_fetchers_changes(lab: Lab) -> None:
    """After a flush the printed plan is run by hand: then there is nothing to do."""
    kinds = ("route-4", "route-6", "rule-4", "rule-6")
    made_by_fetcher = {what: sorted(map(str, own_objects(lab, what))) for what in kinds}
    assert all(made_by_fetcher.values())
    assert cnctl_as_root(lab, "flush").returncode == 0
    ended = cnctl_as_root(lab, "plan")
    assert ended.returncode == 1
    commands = ended.stdout.splitlines()
    assert len(commands) > 10
    for command in commands:
        lab.run(command.split())
    left = plan(lab)
    assert (left["changes"], left["flushed"]) == ([], True)
    for what, entries in made_by_fetcher.items():
        assert sorted(map(str, own_objects(lab, what))) == entries, what


CLOUDS = {
    "aws": Spec.cloud("aws", interfaces=3, addresses=3, ipv6=1),
    "gcp": Spec(
        (
            Interface("10.0.1.0/24", 1, prefixes=("10.0.1.64/28", "10.0.1.200/32")),
            Interface("10.0.2.0/24", 1, prefixes=("10.0.2.128/26",)),
        ),
        provider="gcp",
    ),
}


def run_plan_until_empty(lab: Lab) -> None:
    """Run the output of `cnctl plan` as root; again after a router advertisement on a link that came up."""

    def plan_is_empty() -> bool:
        return run_plan(lab) == ""

    done: list[Callable[[], bool]] = [plan_is_empty, lambda: has_router_routes(lab), plan_is_empty]
    lab.wait_for(lambda: all(each() for each in done), 20, "an empty plan")


def has_router_routes(lab: Lab) -> bool:
    """Return True if each link with IPv6 has a router's default route, which arrives seconds after the link is up."""
    routes = lab.run(["ip", "-6", "route", "show", "default", "proto", "ra"]).stdout
    return all(f"dev {nic.name} " in routes for nic in lab.nics if nic.ipv6)


def run_plan(lab: Lab) -> str:
    commands = cnctl_as_root(lab, "plan").stdout.removesuffix("nothing to do\n")
    lab.run(["sh", "-e"], stdin=commands)
    return commands


def change_cloud(lab: Lab) -> None:
    """Make random changes in the cloud, except of interfaces."""
    nic = lab.nics[1]
    lab.add_address(nic.mac, "10.0.2.77")
    lab.remove_address(nic.mac, nic.addresses[0])
    lab.add_range(nic.mac, "10.0.2.32/28")
    for prefix in nic.prefixes:
        lab.remove_range(nic.mac, prefix)


def change_host(lab: Lab) -> None:
    """Make random changes on the host."""
    name = lab.nics[1].name
    lab.batch([f"link set {name} mtu 1300", f"link set {name} down", f"route flush table {9999 + index(lab)}"])


def index(lab: Lab) -> int:
    return next(int(link["ifindex"]) for link in ip(lab, "link") if link["ifname"] == lab.nics[0].name)


def comparable(lab: Lab) -> tuple[object, object]:
    """Return all addresses, routes and rules of the kernel; Debian 12's ip cannot set an address's protocol number."""
    found = kernel(lab)
    for link in found["address"]:
        for entry in link["addr_info"]:
            entry.pop("protocol", None)
    mtus = {str(link["ifname"]): link["mtu"] for link in found["address"]}
    return without_order(found), mtus


def wait_for_fetcher(lab: Lab) -> None:
    """Check that the fetcher has made all changes itself, through netagent."""
    lab.wait_for(
        lambda: (
            status(lab).get("links")
            and has_router_routes(lab)
            and refresh(lab) == "ok"
            and set(lab.addresses6) <= kernel_addresses(lab)
        ),
        20,
        "state ok",
    )
    assert plan(lab)["changes"] == []


@pytest.mark.parametrize("cloud", CLOUDS)
def test_printed_commands_build_the_whole_network(cloud: str) -> None:
    """From an empty kernel, and after changes of all kinds: once with netagent, once with the commands run by hand."""
    kernels = []
    for finish in (wait_for_fetcher, run_plan_until_empty):
        with Lab(CLOUDS[cloud]) as lab:
            lab.write_config(CONFIG)
            lab.start("fetcher")
            lab.wait_for(lambda lab=lab: status(lab).get("links"), message="the fetcher")  # type: ignore[misc]
            if finish is wait_for_fetcher:
                lab.start("netagent")
            finish(lab)
            new = comparable(lab)
        with running_lab(CLOUDS[cloud], "", "netagent", "fetcher") as lab:
            if finish is run_plan_until_empty:
                lab.stop("netagent")
            change_cloud(lab)
            change_host(lab)
            finish(lab)
            kernels.append((new, comparable(lab)))
    for one, other in zip(*kernels, strict=True):
        assert one == other


def test_unreadable_metadata_plans_the_known_part(lab: Lab) -> None:
    lab.metadata.fail("status", status=503)
    ended = cnctl_as_root(lab, "plan")
    assert ended.returncode == 1
    assert "the metadata could not be read completely" in ended.stderr
    assert ended.stdout == "nothing to do\n"


def test_other_users_get_the_reason_for_root(lab: Lab) -> None:
    ended = cnctl(lab, "plan")
    assert ended.returncode == 1
    assert ended.stderr.startswith("cnctl: only root may do this: a plan starts with a new read of the metadata")
