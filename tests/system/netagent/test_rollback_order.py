"""After a rollback, and at any time in it, no rule lacks what it needs: its address, its range, the rule for main."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.lab import Lab
from tests.system.netagent.conftest import start
from tests.system.netagent.wire import CONFIG, Wire, address, audit_lines, ifindex, main_rule, route, rule

Op = dict[str, Any]
RANGE, PART = "10.77.0.0/24", "10.77.0.0/26"


def local(link: int, text: str, op: str = "route_replace") -> Op:
    """Return the operation for a range in table local."""
    found: Op = route(link, text, table=255, op=op)
    return found


def gone(link: int, text: str) -> Op:
    return address(link, text, "address_remove")


def left_after(lab: Lab, made: list[Op], request: list[Op], theirs: list[str]) -> list[str]:
    """Roll back a request after another program's changes. Return the operations that were not carried out."""
    with Wire(lab) as wire:
        assert not made or wire.apply(*made)["verdict"] == "applied"
        assert wire.apply(*request, confirm_within=60, request="open")["verdict"] == "applied"
        lab.batch(theirs)
        return [each["op"] for each in wire.ask(request="rollback", id="open").get("not_undone", ())]


def routes(lab: Lab, link: str) -> str:
    return lab.run(["ip", "route", "show", "table", "all", "dev", link]).stdout


def test_last_address_stays_with_the_range_that_a_rule_needs(lab: Lab) -> None:
    """The kernel would remove the range together with the last IPv4 address."""
    on = ifindex(lab, "eth0")
    left = left_after(
        lab,
        [address(on, "10.0.2.10/24"), local(on, RANGE), rule(PART, 9999 + on)],
        [
            local(on, "10.77.0.0/25"),
            local(on, RANGE, "route_remove"),
            address(on, "10.0.2.11/32"),
            gone(on, "10.0.2.10/24"),
        ],
        [f"route add local {RANGE} dev lo table local", "address add 10.0.2.10/32 dev lo"],
    )
    assert left == ["address_add", "address_remove", "route_replace", "route_remove"]
    assert "local 10.77.0.0/25" in routes(lab, "eth0")


def test_range_goes_although_its_rule_stays(lab: Lab) -> None:
    """The rule is for a part of the subnet. That the link's table has this part on link makes no difference."""
    on = ifindex(lab, "eth0")
    made = [main_rule(), address(on, "10.5.0.9/24"), rule("10.5.0.64/28", 9999 + on), route(on, "10.5.0.64/28")]
    assert left_after(lab, made, [local(on, "10.5.0.64/28")], []) == []
    assert "local 10.5.0.64/28" not in routes(lab, "eth0")


def test_range_stays_if_the_address_cannot_be_restored(lab: Lab) -> None:
    """The kernel refuses an address whose subnet the link has with another scope."""
    on = ifindex(lab, "eth0")
    left = left_after(
        lab,
        [address(on, "10.0.2.10/24"), address(on, "10.77.0.5/24"), rule("10.77.0.5", 9999 + on)],
        [local(on, "10.77.0.0/27"), gone(on, "10.77.0.5/24")],
        ["address add 10.77.0.9/24 dev eth0 scope link"],
    )
    assert left == ["address_add", "route_remove"]
    assert "local 10.77.0.0/27" in routes(lab, "eth0")


def test_range_does_not_move_back_from_the_link_whose_rule_needs_it(lab: Lab) -> None:
    on, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    left = left_after(
        lab,
        [address(on, "10.0.2.10/24"), local(on, RANGE), rule(PART, 9999 + on), local(other, PART)],
        [local(on, PART), local(on, RANGE, "route_remove")],
        [f"route add local {RANGE} dev lo table local"],
    )
    assert left == ["route_replace", "route_replace"]
    assert f"local {PART}" in routes(lab, "eth0")


def test_on_link_route_is_not_restored_without_the_rule_for_main(lab: Lab) -> None:
    """A CNI has a part of the network, and main's default route meanwhile discards packets."""
    on = ifindex(lab, "eth0")
    near = route(on, "10.60.0.0/24")
    made = [address(on, "10.0.2.10/24"), address(on, "10.60.0.5/24"), near, main_rule()]
    with Wire(lab) as wire:
        assert wire.apply(*made, rule("10.0.2.64/28", 9999 + on, 31015, suppress=True))["verdict"] == "applied"
    lab.batch(["link add cni0 type bridge", "link set cni0 up", "route add 10.60.0.64/26 dev cni0"])
    left = left_after(
        lab,
        [],
        [{**near, "op": "route_remove"}, gone(on, "10.60.0.5/24"), main_rule(op="rule_remove")],
        ["route add unreachable default metric 1"],
    )
    assert left == ["rule_add", "route_replace"]
    assert f"10.60.0.0/24 table {9999 + on}" not in routes(lab, "eth0")


@contextmanager
def changes(lab: Lab, what: str) -> Iterator[Path]:
    """Write the kernel's messages about routes, rules or addresses to a file."""
    path = lab.path("/tmp/changes")

    def is_listening() -> bool:
        lab.batch(["address replace 10.99.0.1/32 dev lo"])  # the kernel reports it each time
        return path.stat().st_size > 0

    with path.open("wb") as output:
        monitor = lab.instance.popen(["ip", "monitor", what], stdout=output)
        try:
            lab.wait_for(is_listening, message="ip monitor")
            yield path
        finally:
            monitor.terminate()
            monitor.wait(10)


def test_rule_for_main_is_restored_before_the_routes(lab: Lab) -> None:
    """Otherwise a rule for forwarded packets would use them alone, for as long as the rollback takes."""
    on = ifindex(lab, "eth0")
    near = route(on, "10.0.2.0/24")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), near, main_rule())["verdict"] == "applied"
        removals = [{**near, "op": "route_remove"}, main_rule(op="rule_remove")]
        assert wire.apply(*removals, confirm_within=60, request="open")["verdict"] == "applied"
        with changes(lab, "all") as path:
            wire.ask(request="rollback", id="open")
            route_text = f"10.0.2.0/24 dev eth0 table {9999 + on}"
            lab.wait_for(lambda: route_text in path.read_text() and "31010" in path.read_text(), message="the rollback")
            text = path.read_text()
    assert text.index("31010") < text.index(route_text)


def test_address_that_kept_the_routes_of_a_link_is_added_for_a_rollback(lab: Lab) -> None:
    """In the request, another address was the last one between its addition and its removal."""
    on = ifindex(lab, "eth0")
    first, between, last = "10.0.2.10/24", "10.0.2.11/32", "10.0.2.12/32"
    with Wire(lab) as wire:
        assert wire.apply(address(on, first))["verdict"] == "applied"
        request = [address(on, between), gone(on, first), address(on, last), gone(on, between)]
        assert wire.apply(*request, confirm_within=60, request="open")["verdict"] == "applied"
        with changes(lab, "address") as path:
            assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
            lab.wait_for(lambda: f"Deleted {on}: eth0    inet {between}" in path.read_text(), message="the rollback")
            text = path.read_text()
    assert text.index(between) < text.index(f"inet {last}")
    assert f"Deleted {on}: eth0    inet {last}" in text


def test_link_is_set_up_before_its_addresses_are_removed(lab: Lab) -> None:
    """A rollback would add them, with their connected routes, before it sets the link down."""
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.50.0.1/25"))["verdict"] == "applied"
        lab.batch(["link set eth0 down"])
        up, removal = {"op": "link_up", "link": on}, gone(on, "10.50.0.1/25")
        assert "has removed addresses of the link before" in wire.apply(removal, up)["reason"]
        assert wire.apply(up, removal)["verdict"] == "applied"


def test_range_stays_while_the_kernel_refuses_the_address_inside(lab: Lab) -> None:
    """The kernel carries out a batch to its end: the removal must not be in the batch of the addition."""
    on = ifindex(lab, "eth0")
    lab.batch(["address add 10.77.0.9/24 dev eth0 scope link"])
    with Wire(lab) as wire:
        assert wire.apply(local(on, "10.77.0.4/30"), rule("10.77.0.5", 9999 + on))["verdict"] == "applied"
        answer = wire.apply(address(on, "10.77.0.5/24"), local(on, "10.77.0.4/30", "route_remove"))
    assert (answer["verdict"], answer["reason"]) == ("rolled back", "Invalid argument")
    assert answer["errnos"][1] is None, "not sent to the kernel"


@pytest.mark.parametrize("op", ["route_remove", "route_replace"])
def test_route_through_a_gateway_justifies_no_rule(lab: Lab, op: str) -> None:
    """It can go although a rule of the link has lost its address, as another program removed that."""
    on = ifindex(lab, "eth1")
    lab.batch(["address add 10.0.1.66/32 dev eth1"])
    out = route(on, "0.0.0.0/0", "10.0.1.1")
    with Wire(lab) as wire:
        assert wire.apply(rule("10.0.1.66", 9999 + on), out)["verdict"] == "applied"
        lab.batch(["address delete 10.0.1.66/32 dev eth1"])
        assert wire.apply({**out, "op": op})["verdict"] == "applied"


@pytest.mark.parametrize(
    "theirs", ["address add 10.0.2.1/32 dev eth0", "route add local 10.0.2.0/29 dev eth0 proto 66"]
)
def test_route_is_not_restored_through_an_address_of_this_host(lab: Lab, theirs: str) -> None:
    """The kernel would put its destination on link, for every neighbour that answers."""
    on = ifindex(lab, "eth0")
    out = route(on, "0.0.0.0/0", "10.0.2.1")
    left = left_after(lab, [address(on, "10.0.2.10/24"), out], [{**out, "op": "route_remove"}], [theirs])
    assert left == ["route_replace"]
    assert f"default via 10.0.2.1 table {9999 + on}" not in routes(lab, "eth0")


@pytest.mark.parametrize("is_range", [False, True])
def test_route_of_the_request_goes_if_the_former_one_is_not_restored(lab: Lab, is_range: bool) -> None:
    """The operator has excluded its link meanwhile."""
    on, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    if is_range:
        made, request = [local(on, RANGE)], [local(other, RANGE)]
    else:
        made, request = [route(on, "10.9.0.0/16", "10.0.2.1")], [route(on, "10.9.0.0/16")]
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), address(on, "10.9.0.5/16"), *made)["verdict"] == "applied"
        assert wire.apply(*request, confirm_within=60, request="open")["verdict"] == "applied"
        lab.kill("netagent")
    lab.write_config(f'{CONFIG}[Network]\nExclude = "eth0"\n')
    start(lab)
    [line] = [each for each in audit_lines(lab) if each["request"] == "rollback"]
    assert [(each["op"], each["reason"]) for each in line["not_undone"]] == [("route_replace", "eth0 is excluded")]
    text = routes(lab, "eth0") + routes(lab, "eth1")
    assert f"10.9.0.0/16 table {9999 + on}" not in text
    assert RANGE not in text


def test_route_that_was_never_changed_stays(lab: Lab) -> None:
    """netagent was killed before the change that the ledger has, and the link is excluded now."""
    on = ifindex(lab, "eth0")
    out = route(on, "0.0.0.0/0", "10.0.2.1")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), out)["verdict"] == "applied"
    lab.stop("netagent")
    path = lab.path("/run/cloud-network-netagent/ledger")
    path.write_bytes(msgpack.packb(("open", [out], [])))
    lab.write_config(f'{CONFIG}[Network]\nExclude = "eth0"\n')
    start(lab)
    assert [each["reason"] for each in audit_lines(lab)[-1]["not_undone"]] == ["eth0 is excluded"]
    assert f"default via 10.0.2.1 table {9999 + on}" in routes(lab, "eth0")


def test_address_that_the_request_had_yet_to_remove_goes(lab: Lab) -> None:
    """netagent was killed between the addition and the removal of the same address."""
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.5.0.9/24"))["verdict"] == "applied"
    lab.stop("netagent")
    undo = [{**address(on, "10.5.0.9/24"), "route": True}, gone(on, "10.5.0.9/24")]
    lab.path("/run/cloud-network-netagent/ledger").write_bytes(msgpack.packb(("open", undo, [])))
    start(lab)
    assert audit_lines(lab)[-1]["not_undone"] == []
    assert "10.5.0.9" not in lab.run(["ip", "address", "show", "dev", "eth0"]).stdout


def test_rule_for_main_of_the_request_goes_in_spite_of_earlier_tables(lab: Lab) -> None:
    """The operator has set another RouteTableBase= meanwhile: no request could remove a rule for main."""
    on = ifindex(lab, "eth0")
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), route(on, "0.0.0.0/0", "10.0.2.1"))["verdict"] == "applied"
        assert wire.apply(main_rule(), confirm_within=60, request="open")["verdict"] == "applied"
        lab.kill("netagent")
    lab.write_config(f"{CONFIG}[Network]\nRouteTableBase = 20000\n")
    start(lab)
    assert audit_lines(lab)[-1]["not_undone"] == []
    assert "31010" not in lab.run(["ip", "rule"]).stdout


@pytest.mark.parametrize(
    ("near", "far", "others"),
    [("10.5.0.", "10.6.0.", ("10.7.0.8/32", "10.7.0.9/32")), ("fd05::", "fd06::", ("fd07::8/128", "fd07::9/128"))],
)
def test_gateways_are_reached_again_before_their_routes(lab: Lab, near: str, far: str, others: tuple[str, str]) -> None:
    """Two other addresses split the rollback into parts. The address of the route is in a later one than the route."""
    lab.stop("netagent")
    lab.write_config(f'{CONFIG}AllowGateways = "{near}1 {far}1"\n')
    start(lab)
    on, (length, everything) = ifindex(lab, "eth0"), ("64", "::/0") if ":" in near else ("24", "0.0.0.0/0")
    own = [address(on, f"{each}9/{length}") for each in (near, far)]
    left = left_after(
        lab,
        [*own, address(on, others[1]), route(on, everything, f"{near}1")],
        [
            gone(on, f"{near}9/{length}"),
            address(on, others[0]),
            gone(on, others[1]),
            route(on, everything, f"{far}1"),
        ],
        [],
    )
    assert left == []
    shown = lab.run(["ip", "-6" if ":" in near else "-4", "route", "show", "table", str(9999 + on)]).stdout
    assert shown.startswith(f"default via {near}1 dev eth0")


def test_route_of_the_request_goes_if_the_kernel_refuses_the_former_one(lab: Lab) -> None:
    """Another link has the address by which the former gateway was reached."""
    lab.stop("netagent")
    lab.write_config(f'{CONFIG}AllowGateways = "10.5.0.1 10.6.0.1"\n')
    start(lab)
    on = ifindex(lab, "eth0")
    left = left_after(
        lab,
        [address(on, "10.5.0.9/24"), address(on, "10.6.0.9/24"), route(on, "0.0.0.0/0", "10.5.0.1")],
        [gone(on, "10.5.0.9/24"), route(on, "0.0.0.0/0", "10.6.0.1")],
        ["address add 10.5.0.9/32 dev lo"],
    )
    assert left == ["address_add", "route_replace"]
    assert f"table {9999 + on}" not in routes(lab, "eth0")
