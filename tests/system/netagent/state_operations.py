"""Operations for the state machine: most as a fetcher sends them, some nearly valid, some hostile."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.system.netagent.test_refusals import ATTACKS, Links
from tests.system.netagent.wire import address, main_rule, packed, route, rule

Op = dict[str, Any]
ETH0, ETH1, SPARE, BRIDGE, LO = "eth0", "eth1", "spare", "docker0", "lo"

# No two addresses of a link have the same subnet and length: the kernel would remove both (test_regressions.py).
_OWN = {
    ETH0: ("10.0.2.10/24", "10.0.2.11/32", "10.0.2.12/25", "10.0.2.13/32", "fd00:2::10/128", "fd00:2::11/64"),
    ETH1: ("10.0.1.11/32", "10.0.1.12/24", "10.44.0.1/32", "fd00:1::10/128"),
    SPARE: ("10.0.3.10/24", "10.0.3.11/32", "10.0.3.12/25", "fd00:4::10/64"),
}
_GATEWAY = {ETH0: ("10.0.2.1", "10.0.2.2"), ETH1: ("10.0.1.1", "10.0.1.2"), SPARE: ("10.0.3.1", "10.0.3.2")}
_SUBNETS = ("10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24", "10.9.0.0/16", "0.0.0.0/0", "fd00:2::/64", "fd00:5::/48")
_PREFIXES = ("10.0.2.0/24", "10.0.2.0/28", "10.0.1.0/24", "10.0.1.8/29", "10.0.3.0/24", "10.0.0.0/16", "fd00:2::/64")
_RANGES = ("10.77.0.0/24", "10.78.0.0/28", "fd00:7::/80")
_FOREIGN = (
    *("10.0.1.1/32", "10.0.1.10/32", "10.0.2.1/32", "10.0.4.2/32", "10.0.2.50/32", "172.17.0.1/16", "172.17.0.8/32"),
    *("169.254.169.254/32", "100.100.100.200/32", "fd00:ec2::254/128", "8.8.8.8/32", "203.0.113.5/24", "127.0.0.2/8"),
    *(
        "224.0.0.1/32",
        "255.255.255.255/32",
        "0.0.0.0/0",
        "::/0",
        "::1/128",
        "fe80::1/64",
        "ff02::1/128",
        "fd00::53/128",
    ),
    *(
        "10.0.2.255/24",
        "10.0.0.7/8",
        "10.0.2.10/0",
        "10.66.0.0/24",
        "10.55.0.0/24",
        "192.168.77.0/24",
        "fd00:2::50/128",
    ),
)
_PRIORITIES = st.sampled_from((31000, 31000, 31010, 31020, 31020, 31029))


def operations(index: dict[str, int]) -> st.SearchStrategy[Op]:
    """Return a strategy for one operation on links with these indices."""

    def good(link: str) -> st.SearchStrategy[Op]:
        on, own, via = index[link], st.sampled_from(_OWN[link]), st.sampled_from(_GATEWAY[link])
        table, either = 9999 + on, st.booleans()
        adds = st.builds(lambda text, connected: {**address(on, text), "route": connected}, own, either)
        gateways = st.one_of(via, via, st.none())
        replaced = st.builds(
            lambda to, by: route(on, to, by if ":" not in to else None), st.sampled_from(_SUBNETS), gateways
        )
        ranges = st.sampled_from(_RANGES).map(lambda to: route(on, to, table=255))
        hosts = own.map(lambda text: text.partition("/")[0] + ("/128" if ":" in text else "/32"))
        sources = st.builds(
            lambda text, at, to, suppress, local: rule(text, table, at, to=to, suppress=suppress, local=local),
            st.one_of(hosts, hosts, st.sampled_from(_RANGES)),
            _PRIORITIES,
            either,
            either,
            st.sampled_from((False, False, True)),
        )
        prefixes = st.builds(
            lambda text, at, suppress: rule(text, table, at, suppress=suppress, local=True),
            st.sampled_from(_PREFIXES),
            _PRIORITIES,
            either,
        )
        main = st.builds(
            lambda text, at: rule(text, 254, at, suppress=True), st.sampled_from(("0.0.0.0/0", "::/0")), _PRIORITIES
        )
        mtu = st.sampled_from((576, 1280, 1400, 1500, 9001)).map(lambda mtu: {"op": "link_mtu", "link": on, "mtu": mtu})
        up = st.just({"op": "link_up", "link": on})
        return st.one_of(adds, adds, adds, replaced, replaced, ranges, sources, sources, prefixes, main, mtu, up)

    hosts = st.sampled_from([*_FOREIGN, *_OWN[ETH0], *_OWN[ETH1], *_SUBNETS])
    links = st.sampled_from([*index.values(), 4711])
    tables = st.sampled_from([254, 255, 253, 100, *(9999 + each for each in index.values())])
    vias = st.one_of(
        st.none(), st.sampled_from(("10.0.1.1", "10.0.2.1", "10.0.1.10", "8.8.8.8", "172.17.0.1", "fe80::1"))
    )
    removal = st.sampled_from(("add", "add", "remove"))
    hostile = st.one_of(
        st.builds(lambda on, text, op: address(on, text, f"address_{op}"), links, hosts, removal),
        st.builds(
            lambda on, to, by, table, op: route(on, to, by, table, f"route_{op.replace('add', 'replace')}"),
            links,
            hosts,
            vias,
            tables,
            removal,
        ),
        st.builds(
            lambda text, table, at, op, to, suppress, local: rule(
                text, table, at, f"rule_{op}", to=to, suppress=suppress, local=local
            ),
            hosts,
            tables,
            st.sampled_from((1, 30999, 31000, 31005, 31030, 32765)),
            removal,
            st.booleans(),
            st.booleans(),
            st.booleans(),
        ),
        st.builds(lambda on, mtu: {"op": "link_mtu", "link": on, "mtu": mtu}, links, st.integers(576, 65535)),
        links.map(lambda on: {"op": "link_up", "link": on}),
    )
    valid = st.one_of(*map(good, (ETH0, ETH0, ETH1, SPARE)))
    return st.one_of(valid, valid, valid, valid, hostile)


def attacks(index: dict[str, int]) -> list[list[Op]]:
    """Return requests that attack objects of other programs: those of test_refusals, and some for this lab."""
    on = Links(index[ETH1], index[ETH0], index[BRIDGE])
    one, other, table = index[ETH1], index[ETH0], 9999 + index[ETH1]
    foreign = [
        address(other, "10.0.2.50/32", "address_remove"),
        address(other, "fd00:2::50/128", "address_remove"),
        address(index[SPARE], "10.0.3.50/32", "address_remove"),
        *(route(one, "10.66.0.0/24", via, table) for via in ("10.0.1.1", "10.0.1.2", None)),
        *(route(one, "10.55.0.0/24", table=255, op=f"route_{op}") for op in ("replace", "remove")),
        route(one, "10.66.0.0/24", "10.0.1.1", table, "route_remove"),
        route(other, "10.66.0.0/24", "10.0.2.1", table),
        rule("10.9.9.9", 254, 31005, "rule_remove"),
        rule("10.9.9.8", 100, 31000, "rule_remove"),
        *(address(link, "10.0.1.1/32") for link in (one, other, index[SPARE])),
        address(other, "10.0.4.2/32"),
        address(other, "fd00::53/128"),
        route(index[SPARE], "10.0.1.0/24", table=255),
        address(other, "10.0.2.10/33"),
        route(other, "10.9.0.0/33", "10.0.2.1"),
        rule("10.0.2.10/33", 9999 + other),
    ]
    return [*(ops(on) for ops, _ in ATTACKS.values()), *([op] for op in foreign)]


def nearly(op: Op, how: int, value: Any) -> Op:
    """Return an operation with one key missing, changed or added."""
    key = sorted(op)[how % len(op)]
    if how % 3 == 0:
        return {other: op[other] for other in op if other != key}
    if how % 3 == 1:
        return {**op, key: value}
    return {**op, f"{key}_": value}


def plan(index: dict[str, int]) -> list[Op]:
    """Return all operations of a fetcher for the secondary, in its order."""
    on = index[ETH0]
    table = 9999 + on
    return [
        {"op": "link_mtu", "link": on, "mtu": 1450},
        address(on, "10.0.2.10/24"),
        {**address(on, "10.0.2.11/32"), "route": False},
        address(on, "fd00:2::10/128"),
        route(on, "10.0.2.0/24"),
        route(on, "10.0.1.0/24", "10.0.2.1"),
        route(on, "0.0.0.0/0", "10.0.2.1"),
        route(on, "10.77.0.0/24", table=255),
        rule("10.0.2.0/24", table, suppress=True, local=True),
        rule("10.0.2.10", table, suppress=True),
        main_rule(),
        main_rule("::/0"),
        rule("10.0.2.0/24", table, priority=31020, local=True),
        rule("10.0.2.10", table, priority=31020),
        rule("10.0.2.11", table, priority=31020),
        rule("10.77.0.0/24", table, priority=31020),
        rule("fd00:2::10/128", table, priority=31020),
    ]


def removals(ops: list[Op]) -> list[Op]:
    """Return the operations that remove the objects of `ops`, in reverse order."""
    pairs = {"address_add": "address_remove", "route_replace": "route_remove", "rule_add": "rule_remove"}
    return [
        {key: op[key] for key in op if op["op"] != "address_add" or key != "route"} | {"op": pairs[op["op"]]}
        for op in reversed(ops)
        if op["op"] in pairs
    ]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**31),
    st.binary(max_size=17),
    st.text(max_size=4),
    st.sampled_from((packed("8.8.8.8"), packed("10.0.1.1"), packed("fe80::1"), 1.5, [], {})),
)
