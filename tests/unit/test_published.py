"""`cnctl doctor ADDRESS:PORT`: NAT rules of other programs, as printed by iptables-save and nft."""

from __future__ import annotations

import pytest
from cloud_network.api.cnctl.published import Target, in_iptables, in_nftables

DOCKER = """\
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -d 10.0.2.11/32 ! -i docker0 -p udp -m udp --dport 53 -j DNAT --to-destination 172.17.0.3:53
-A DOCKER -d 10.0.2.0/24 -p tcp -m tcp --dport 8443 -j DNAT --to-destination 172.17.0.4
COMMIT
"""
DOCKER6 = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd17::2]:80\n"


@pytest.mark.parametrize(
    ("address", "port", "found"),
    [
        ("10.0.2.10", 8080, [Target("172.17.0.2", 80)]),
        ("10.0.2.10", 808, []),
        ("10.0.2.11", 53, [Target("172.17.0.3", 53)]),
        ("10.0.2.10", 53, []),
        ("10.0.2.10", 8443, [Target("172.17.0.4", None)]),
        ("10.0.3.10", 8443, []),
    ],
)
def test_dockers_iptables_rules_name_the_container(address: str, port: int, found: list[Target]) -> None:
    assert list(in_iptables(DOCKER, address, port)) == found


def test_dockers_ip6tables_rules_name_the_container() -> None:
    assert list(in_iptables(DOCKER6, "fd00:2::10", 8080)) == [Target("fd17::2", 80)]


def match(field: str, value: object, operator: str = "==") -> dict[str, object]:
    left = {"payload": {"protocol": "tcp", "field": field}}
    return {"match": {"op": operator, "left": left, "right": value}}


DNAT = {"dnat": {"addr": "172.17.0.2", "port": 80}}
TARGET = [Target("172.17.0.2", 80)]


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        ([match("dport", 8080), DNAT], TARGET),
        ([match("dport", 8080), {"dnat": {"addr": "172.17.0.2"}}], [Target("172.17.0.2", None)]),
        ([match("dport", 8081), DNAT], []),
        ([match("dport", 8080, "!="), DNAT], []),
        ([match("dport", 8080), match("daddr", "10.0.9.9"), DNAT], []),
        ([match("dport", 8080), match("daddr", "10.0.2.10"), DNAT], TARGET),
        ([match("dport", 8080), {"accept": None}], []),
        ([match("dport", 8080), {"dnat": {"addr": {"map": {}}}}], []),
        ([{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, {"xt": None}], []),
    ],
)
def test_nftables_dnat_rules_name_the_container(statements: list[object], found: list[Target]) -> None:
    ruleset = {"nftables": [{"metainfo": {}}, {"table": {"name": "nat"}}, {"rule": {"expr": statements}}]}
    assert list(in_nftables(ruleset, "10.0.2.10", 8080)) == found
