"""Rules for prefixes that cover all addresses of a link in them: accepted and refused rules, and their effect."""

from __future__ import annotations

from typing import Any

import msgpack

from tests.lab import Lab
from tests.system.netagent.conftest import answers, start
from tests.system.netagent.wire import CONFIG, Wire, address, ifindex, kernel_state, main_rule, route, rule

LEDGER = "/run/cloud-network-netagent/ledger"


def rules(lab: Lab, family: str = "-4") -> list[str]:
    """Return netagent's rules."""
    lines = lab.run(["ip", family, "rule"]).stdout.splitlines()
    return [" ".join(line.split()).removesuffix(" proto 209") for line in lines if "proto 209" in line]


def test_a_rule_for_a_whole_subnet_is_made_and_removed(lab: Lab, wire: Wire) -> None:
    before, on = kernel_state(lab), ifindex(lab, "eth0")
    add = rule("10.0.2.0/24", 9999 + on, suppress=True, local=True)
    done = [address(on, "10.0.2.10/24"), {**address(on, "10.0.2.11/32"), "route": False}, add]
    assert wire.apply(*done)["verdict"] == "applied"
    shown = f"31000: from 10.0.2.0/24 iif lo lookup {9999 + on} suppress_prefixlength 0"
    assert rules(lab) == [shown]
    assert wire.apply({**add, "op": "rule_remove", "local": False})["reason"] == "cloud-network has no such rule"
    assert wire.apply({**add, "op": "rule_remove"})["verdict"] == "applied"
    assert rules(lab) == []
    assert wire.ask(request="flush", id="flush")["verdict"] == "applied"
    assert kernel_state(lab) == before


def test_second_table_has_the_routes_that_its_rules_need(lab: Lab, wire: Wire) -> None:
    before, on = kernel_state(lab), ifindex(lab, "eth0")
    second = 9999 + 2**30 + on
    near, out = route(on, "10.0.2.0/24", table=second), route(on, "0.0.0.0/0", "10.0.2.1", table=second)
    leads = main_rule(), rule("10.0.2.10", second, 31020)
    assert wire.apply(address(on, "10.0.2.10/24"), near, out, *leads)["verdict"] == "applied"
    way = lab.run(["ip", "route", "get", "198.51.100.1", "from", "10.0.2.10"]).stdout
    assert f"via 10.0.2.1 dev eth0 table {second}" in way
    gone = wire.apply(address(on, "10.0.2.10/24", "address_remove"))
    assert "rule 31020 from 10.0.2.10/32 depends on it" in gone["reason"]
    assert wire.ask(request="flush", id="flush")["verdict"] == "applied"
    assert kernel_state(lab) == before


def test_it_is_taken_back_and_flushed_like_any_other(lab: Lab, wire: Wire) -> None:
    before, on = kernel_state(lab), ifindex(lab, "eth0")
    done = [address(on, "10.0.2.10/24"), rule("10.0.2.0/25", 9999 + on, local=True)]
    assert wire.apply(*done, confirm_within=60, request="open")["verdict"] == "applied"
    assert wire.ask(request="rollback", id="open")["verdict"] == "rolled back"
    assert kernel_state(lab) == before
    assert wire.apply(*done)["verdict"] == "applied"
    assert len(rules(lab)) == 1
    assert wire.ask(request="flush", id="flush")["verdict"] == "applied"
    assert kernel_state(lab) == before


def test_ipv6_subnet_on_link_in_the_table_allows_later_rules(lab: Lab, wire: Wire) -> None:
    """No address has the subnet's length, and main need not have the subnet."""
    on = ifindex(lab, "eth0")
    near = [address(on, "fd00:2::10/128"), route(on, "fd00:2::/64")]
    add = rule("fd00:2::/64", 9999 + on, local=True)
    assert wire.apply(near[0], add)["verdict"] == "refused"
    assert wire.apply(*near)["verdict"] == "applied"
    assert wire.apply(add)["verdict"] == "applied"
    assert "from fd00:2::/64 iif lo" in rules(lab, "-6")[0]


def test_address_added_earlier_to_another_link_is_respected(lab: Lab, wire: Wire) -> None:
    """This also holds within one request: each operation is checked after those before it."""
    one, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    first, second = address(one, "10.0.2.10/24"), {**address(other, "10.0.2.200/32"), "route": False}
    whole, half = (rule(text, 9999 + one, local=True) for text in ("10.0.2.0/24", "10.0.2.0/25"))
    assert "no address or range" in wire.apply(first, second, whole)["reason"]
    assert wire.apply(first, second, half, rule("10.0.2.128/25", 9999 + other))["verdict"] == "refused"
    assert wire.apply(first, second, half)["verdict"] == "applied"


def test_foreign_local_route_makes_addresses_local(lab: Lab, wire: Wire) -> None:
    """`ip route add local` on another link or on lo: the host can send from the whole range."""
    on = ifindex(lab, "eth0")
    assert wire.apply(address(on, "10.0.2.10/24"))["verdict"] == "applied"
    for theirs in ("10.0.2.128/25", "10.0.2.77/32"):
        for link in ("lo", "eth1"):
            lab.batch([f"route add local {theirs} dev {link}"])
            assert wire.apply(rule("10.0.2.0/24", 9999 + on, local=True))["verdict"] == "refused"
            lab.batch([f"route del local {theirs} dev {link}"])
    lab.batch(["route add local 10.0.2.128/25 dev eth0"])
    assert wire.apply(rule("10.0.2.0/24", 9999 + on, local=True))["verdict"] == "applied"


def test_kernel_removes_the_first_of_rules_that_differ_in_a_flag(lab: Lab) -> None:
    """A removal without the flag matches rules with it: netagent does not allow two such rules."""
    for flag in ("iif lo", "suppress_prefixlength 0"):
        lab.batch(
            [f"rule add pref 31000 from 10.9.9.7 {flag} lookup 77", "rule add pref 31000 from 10.9.9.7 lookup 77"]
        )
        lab.batch(["rule del pref 31000 from 10.9.9.7 lookup 77"])
        [left] = [line for line in lab.run(["ip", "rule"]).stdout.splitlines() if "10.9.9.7" in line]
        assert flag not in left
        lab.batch(["rule del pref 31000 from 10.9.9.7 lookup 77"])


def test_open_change_of_an_earlier_version_is_rolled_back(lab: Lab) -> None:
    """The earlier ledger has no `local`. An upgrade can happen while a transaction is open."""
    lab.stop("netagent")
    on = ifindex(lab, "eth0")
    lab.batch([f"rule add pref 31000 from 10.0.2.10 lookup {9999 + on} protocol 209"])
    old: dict[str, Any] = rule("10.0.2.10", 9999 + on, op="rule_remove", suppress=False)
    del old["local"]
    path = lab.path(LEDGER)
    path.write_bytes(msgpack.packb(("open", [old], [])))
    start(lab)
    lab.wait_for(lambda: answers(lab))
    assert rules(lab) == []


def test_rule_for_part_of_a_subnet_stays_during_a_replacement(lab: Lab, wire: Wire) -> None:
    """The first address of the subnet leaves, and for a moment no address has the subnet's length."""
    on = ifindex(lab, "eth0")
    part = [main_rule(), rule("10.0.2.8/29", 9999 + on, 31020)]
    assert wire.apply(address(on, "10.0.2.10/24"), address(on, "10.0.2.11/24"), *part)["verdict"] == "applied"
    answer = wire.apply(
        {**address(on, "10.0.2.11/32"), "route": False},
        address(on, "10.0.2.11/24", "address_remove"),
        address(on, "10.0.2.10/24", "address_remove"),
        address(on, "10.0.2.11/24"),
        address(on, "10.0.2.11/32", "address_remove"),
    )
    assert answer["verdict"] == "applied", answer
    assert len(rules(lab)) == 2


def test_routes_of_an_earlier_table_base_go_first(lab: Lab) -> None:
    """Otherwise the rules that lead to them would outlive their address, and divert the packets of clients."""
    on = ifindex(lab, "eth0")
    near, default = route(on, "10.0.2.0/24"), route(on, "0.0.0.0/0", "10.0.2.1")
    first, former = address(on, "10.0.2.10/24"), rule("10.0.2.10", 9999 + on, 31020)
    with Wire(lab) as wire:
        assert wire.apply(first, near, default, main_rule(), former)["verdict"] == "applied"
    lab.stop("netagent")
    lab.write_config(f"{CONFIG}[Network]\nRouteTableBase = 20000\n")
    start(lab)
    refused = [
        address(on, "10.0.2.11/32"),
        address(on, "10.0.2.10/24", "address_remove"),
        route(on, "10.77.0.0/28", table=255),
        route(on, "0.0.0.0/0", "10.0.2.1", table=20000 + on),
        rule("10.0.2.10", 20000 + on),
        main_rule(op="rule_remove"),
        {"op": "forwarded_replies", "marks": []},
    ]
    moved = [near, default, former]
    gone = [{**each, "op": each["op"].replace("add", "remove").replace("place", "move")} for each in moved]
    new = [{**each, "table": 20000 + on} for each in moved]
    with Wire(lab) as wire:
        for each in refused:
            assert "eth0 has routes in tables of an earlier RouteTableBase=" in wire.apply(each)["reason"]
        answer = wire.apply(*gone[1::-1], *new, gone[2])
        assert answer["verdict"] == "applied", answer
    assert rules(lab)[1:] == [f"31020: from 10.0.2.10 lookup {20000 + on}"]


def test_rules_of_an_earlier_table_base_keep_their_address_and_range(lab: Lab) -> None:
    """Also without routes in the earlier table: these could come back."""
    on, other = ifindex(lab, "eth0"), ifindex(lab, "eth1")
    local = route(on, "10.77.0.0/24", table=255)
    own, theirs = address(on, "10.88.0.5/32"), [rule("10.88.0.5", 9999 + on), rule("10.77.0.0/25", 9999 + on)]
    with Wire(lab) as wire:
        assert wire.apply(address(on, "10.0.2.10/24"), own, local, *theirs)["verdict"] == "applied"
    lab.stop("netagent")
    lab.write_config(f"{CONFIG}[Network]\nRouteTableBase = 20000\n")
    start(lab)
    gone = address(on, "10.88.0.5/32", "address_remove"), {**local, "op": "route_remove"}
    with Wire(lab) as wire:
        for each in (*gone, {**local, "link": other}):
            assert "depends on it; remove the rule before it" in wire.apply(each)["reason"]
        assert wire.apply(*({**each, "op": "rule_remove"} for each in theirs), *gone)["verdict"] == "applied"


def test_ranges_that_leave_with_the_last_address_have_no_rule(lab: Lab, wire: Wire) -> None:
    """The kernel removes the local route together with the last IPv4 address of the link."""
    on = ifindex(lab, "eth1")
    lab.batch(["address flush dev eth1"])
    part = rule("10.77.0.0/28", 9999 + on, suppress=True)
    made = [address(on, "10.0.2.10/32"), route(on, "10.77.0.0/28", table=255), part]
    answer = wire.apply(*made)
    assert answer["verdict"] == "applied", answer
    gone, removal = address(on, "10.0.2.10/32", "address_remove"), {**part, "op": "rule_remove"}
    assert "remove the rule before it" in wire.apply(gone, removal)["reason"]
    assert wire.apply(removal, gone)["verdict"] == "applied"


def test_no_rule_for_a_range_if_the_operator_wants_none(lab: Lab) -> None:
    """Also for one that another program has made local."""
    lab.stop("netagent")
    lab.write_config(f'{CONFIG}[Network]\nPrefixes = "ignore"\n')
    start(lab)
    on = ifindex(lab, "eth0")
    theirs = ["10.80.0.0/24", "10.80.1.7/32"]
    lab.batch([f"route add local {each} dev eth0 proto 66" for each in theirs])
    with Wire(lab) as wire:
        reasons = [wire.apply(rule(each, 9999 + on, suppress=True))["reason"] for each in (theirs[0], "10.80.0.7")]
        assert wire.apply(rule("10.80.1.7", 9999 + on, suppress=True))["verdict"] == "applied"
        assert wire.ask(request="flush", id="flush")["verdict"] == "applied"
    lab.batch([f"route delete local {each} dev eth0" for each in theirs])
    assert reasons == [f"{each} is no address or range of eth0" for each in (theirs[0], "10.80.0.7/32")]


def test_range_of_a_subnet_that_two_links_share_needs_the_address_of_one(lab: Lab, wire: Wire) -> None:
    """Only one of them has the connected route. The other has the subnet on link in its table."""
    lab.batch(["link add spare type veth peer name spare1", "link set spare1 up", "link set spare up"])
    on, other = ifindex(lab, "eth0"), ifindex(lab, "spare")
    own = address(on, "10.5.0.9/24")
    near, selects = route(other, "10.5.0.0/24"), rule("10.5.0.64/28", 9999 + other)
    assert wire.apply(address(other, "10.5.0.10/32"), near)["verdict"] == "applied"
    assert "is no address or range of spare" in wire.apply(selects)["reason"]
    assert wire.apply(own, selects)["verdict"] == "applied"
    gone, unselected = address(on, "10.5.0.9/24", "address_remove"), {**selects, "op": "rule_remove"}
    for needed in (gone, {**near, "op": "route_remove"}):
        assert "rule 31000 from 10.5.0.64/28 depends on it" in wire.apply(needed)["reason"]
    assert wire.apply(unselected, gone)["verdict"] == "applied"
