"""The operation `forwarded_replies` and rules for marks: their effect, their inverse, and their refusals.

The lab's primary is eth0 (10.0.1.10/24); eth2 is the secondary, in 10.0.2.0/24, and eth1 is down.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, Spec
from tests.lab.processes import USERS
from tests.system.netagent.conftest import start
from tests.system.netagent.wire import (
    CONFIG,
    Wire,
    address,
    audit_lines,
    ifindex,
    kernel_state,
    main_rule,
    packed,
    route,
    rule,
)

MASK, ARRIVAL = 0x7F, 0x40
MARK = f'{CONFIG}[Network]\nForwardedReplies = "mark"\nExclude = "docker1"\n'
FOREIGN = """
table inet other {
  set held { type ipv4_addr; elements = { 192.0.2.1 } }
  chain prerouting { type filter hook prerouting priority dstnat + 1; meta mark set meta mark or 0x4000; }
}
table ip cloud_network { chain prerouting { type filter hook prerouting priority 0; counter accept; }; }
"""
"""Tables of other programs: one has the name `cloud_network`, in another family."""
TEXT = """
table inet cloud_network {{
  chain replies {{
    ct mark & 0x7f == 0x1 meta mark set meta mark & 0xffffff80 | 0x1
    ct mark & 0x7f == 0x2 meta mark set meta mark & 0xffffff80 | 0x2
  }}
  chain published {{
    ct mark & 0x7f == 0x1 meta mark set meta mark & 0xffffff80 | 0x41
    ct mark & 0x7f == 0x2 meta mark set meta mark & 0xffffff80 | 0x42
  }}
  chain unmark {{
    ct mark & 0x7f == 0x1 meta mark & 0x3f == 0x1 meta mark set meta mark & 0xffffff80
    ct mark & 0x7f == 0x2 meta mark & 0x3f == 0x2 meta mark set meta mark & 0xffffff80
  }}
  chain prerouting {{
    type filter hook prerouting priority dstnat + 1; policy accept;
    ct direction reply ct mark & 0x7f != 0 goto replies
    iif {0} ct state new ct mark set ct mark & 0xffffff80 | 0x1
    iif {1} ct state new ct mark set ct mark & 0xffffff80 | 0x2
    ct status dnat ct mark & 0x7f != 0 goto published
    ct mark & 0x7f != 0 goto unmark
  }}
  chain forward {{
    type filter hook forward priority mangle - 1; policy accept;
    ct mark & 0x7f != 0 goto unmark
  }}
}}
"""
Ops = list[dict[str, Any]]


class Links:
    def __init__(self, lab: Lab) -> None:
        self.primary, self.secondary, self.down = (ifindex(lab, name) for name in ("eth0", "eth2", "eth1"))
        self.bridge, self.excluded, self.loopback = ifindex(lab, "docker0"), ifindex(lab, "docker1"), 1


def table(*marks: tuple[int, int]) -> dict[str, Any]:
    return {"op": "forwarded_replies", "marks": [{"link": link, "mark": mark} for link, mark in marks]}


def mark_rule(link: int, mark: int, **more: Any) -> dict[str, Any]:
    return {**rule("0.0.0.0/0", 9999 + link, mark=mark, mask=MASK), **more}


def state(lab: Lab) -> tuple[dict[str, str], str]:
    return kernel_state(lab), lab.run(["nft", "-s", "list", "ruleset"]).stdout


def owned_table(lab: Lab) -> str:
    return lab.run(["nft", "-s", "list", "table", "inet", "cloud_network"], check=False).stdout


@pytest.fixture(scope="module")
def marked() -> Iterator[Lab]:
    """Restore the kernel after each test."""
    with Lab(Spec.aws(interfaces=3, addresses=2)) as lab:
        lab.batch(["link set eth2 up", "link add docker0 type bridge", "link add docker1 type bridge"])
        lab.write_config(MARK)
        lab.run(["nft", "-f", "-"], stdin=FOREIGN)
        start(lab)
        yield lab


@pytest.fixture
def lab(marked: Lab) -> Iterator[Lab]:
    before = state(marked)
    yield marked
    with Wire(marked) as wire:
        assert wire.ask(request="flush", id="clean")["verdict"] == "applied"
    assert state(marked) == before


@pytest.fixture
def on(marked: Lab) -> Links:
    return Links(marked)


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    with Wire(lab) as wire:
        yield wire


def test_the_table_is_what_nft_makes_of_the_documented_text(lab: Lab, on: Links, wire: Wire) -> None:
    show = ["nft", "--json", "list", "table", "inet", "cloud_network"]
    assert wire.apply(table((on.primary, 1), (on.secondary, 2)))["verdict"] == "applied"
    made = without_handles(lab.run(show).stdout)
    marks = [{"link": on.primary, "mark": 1}, {"link": on.secondary, "mark": 2}]
    assert wire.ask(request="status")["marks"] == marks
    assert wire.apply(table())["verdict"] == "applied"
    assert owned_table(lab) == ""
    assert wire.ask(request="status")["marks"] == []
    lab.run(["nft", "-f", "-"], stdin=TEXT.format(on.primary, on.secondary))
    assert without_handles(lab.run(show).stdout) == made
    assert wire.ask(request="status")["marks"] == marks


def without_handles(text: str) -> str:
    return re.sub(r'"(handle|version|release_name)": [^,}]+', "", text)


@pytest.mark.parametrize(
    "damage",
    [
        "delete table inet cloud_network",
        "flush chain inet cloud_network replies",
        "add rule inet cloud_network replies counter",
        "insert rule inet cloud_network prerouting accept",
        "flush chain inet cloud_network forward",
        "flush chain inet cloud_network forward; delete chain inet cloud_network forward",
        "add chain inet cloud_network more; add rule inet cloud_network more drop",
        "add table inet cloud_network { flags dormant; }",
    ],
)
def test_status_reports_an_incomplete_table(lab: Lab, on: Links, wire: Wire, damage: str) -> None:
    assert wire.apply(table((on.primary, 1), (on.secondary, 2)))["verdict"] == "applied"
    lab.run(["nft", damage])
    assert wire.ask(request="status")["marks"] == []
    assert wire.apply(table((on.primary, 1), (on.secondary, 2)))["verdict"] == "applied"
    assert len(wire.ask(request="status")["marks"]) == 2


def test_rules_for_marks_are_made_and_removed(lab: Lab, on: Links, wire: Wire) -> None:
    six = {"address": packed("::"), "prefix": 0}
    ops = [
        table((on.primary, 1), (on.secondary, 2)),
        mark_rule(on.primary, 1),
        mark_rule(on.secondary, 2, suppress=True),
        main_rule(),
        mark_rule(on.secondary, 2 | ARRIVAL, priority=31020, suppress=False),
        mark_rule(on.secondary, 2, **six),
    ]
    assert wire.apply(*ops)["verdict"] == "applied"
    shown = lab.run(["ip", "rule"]).stdout
    assert f"31000:\tfrom all fwmark 0x1/0x7f lookup {9999 + on.primary}" in shown
    assert f"31000:\tfrom all fwmark 0x2/0x7f lookup {9999 + on.secondary} suppress_prefixlength 0" in shown
    assert f"31020:\tfrom all fwmark 0x42/0x7f lookup {9999 + on.secondary}" in shown
    assert f"from all fwmark 0x2/0x7f lookup {9999 + on.secondary}" in lab.run(["ip", "-6", "rule"]).stdout
    removals = [{**op, "op": "rule_remove"} for op in (*ops[1:3], *ops[4:], ops[3])]  # that for main last
    assert wire.apply(*removals, table((on.primary, 1)))["verdict"] == "applied"
    assert "fwmark" not in lab.run(["ip", "rule"]).stdout
    assert "eth2" not in owned_table(lab)
    (line,) = audit_lines(lab)[-1:]
    assert line["ops"][-1] == {**table((on.primary, 1)), "errno": 0}


ATTACKS: dict[str, tuple[Callable[[Links], Ops], str]] = {
    "a link that is not there": (lambda on: [table((4711, 1))], "no link 4711"),
    "a bridge": (lambda on: [table((on.bridge, 1))], "of kind bridge"),
    "loopback": (lambda on: [table((on.loopback, 1))], "loopback link"),
    "an excluded link": (lambda on: [table((on.excluded, 1))], "excluded"),
    "a mark twice": (lambda on: [table((on.primary, 3), (on.secondary, 3))], "twice"),
    "a link twice": (lambda on: [table((on.primary, 3), (on.primary, 4))], "twice"),
    "a mark outside of the mask": (lambda on: [table((on.primary, 0x80))], "not inside 0x3f"),
    "kube-proxy's mark": (lambda on: [table((on.primary, 0x4001))], "not inside 0x3f"),
    "the bit for arriving packets": (lambda on: [table((on.primary, ARRIVAL | 1))], "not inside 0x3f"),
    "mark 0": (lambda on: [table((on.primary, 0))], "mark 0x0 is not inside"),
    "a mark of 33 bits": (lambda on: [table((on.primary, 1 << 32))], "is not in 0.."),
    "a negative link": (lambda on: [table((-1, 1))], "-1 is not in 1.."),
    "more links than there can be": (lambda on: [table(*((on.primary, n) for n in range(1, 66)))], "more than 64"),
    "a table of another name": (lambda on: [{**table(), "table": "filter"}], "'table' is not a known key"),
    "an expression": (
        lambda on: [{"op": "forwarded_replies", "marks": [{"link": on.primary, "mark": 1, "drop": True}]}],
        "'drop' is not a known key",
    ),
    "marks that are no list": (lambda on: [{"op": "forwarded_replies", "marks": {"1": 1}}], "is not list"),
    "marks that are no maps": (lambda on: [{"op": "forwarded_replies", "marks": [1]}], "is not a map"),
    "a rule for a mark without the table": (lambda on: [mark_rule(on.primary, 1)], "is not that of eth0"),
    "a rule before its table": (lambda on: [mark_rule(on.primary, 1), table((on.primary, 1))], "is not that of eth0"),
    "a rule for another link's mark": (
        lambda on: [table((on.primary, 1), (on.secondary, 2)), mark_rule(on.primary, 2)],
        "is not that of eth0",
    ),
    "a rule for a mark outside of the mask": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 0x81)],
        "is not that of eth0",
    ),
    "a rule for kube-proxy's mark": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 0x4000, mask=0x4000)],
        "is not that of eth0",
    ),
    "a rule with another mask": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 1, mask=1)],
        "is not that of eth0",
    ),
    "a rule without a mask": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 1, mask=0)],
        "is not that of eth0",
    ),
    "a rule for all packets without a mark": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 0)],
        "is not that of eth0",
    ),
    "a rule for a mark into main": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 1, table=254)],
        "no link",
    ),
    "a rule for a mark into an excluded link's table": (
        lambda on: [table((on.primary, 1)), mark_rule(on.excluded, 1)],
        "excluded",
    ),
    "a rule for a mark and a source": (
        lambda on: [table((on.primary, 1)), {**mark_rule(on.primary, 1), "address": packed("10.0.1.10"), "prefix": 32}],
        "no source",
    ),
    "a rule for a mark and a destination": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 1, to=True)],
        "no source",
    ),
    "a rule for marks of what this host sends": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 1, local=True)],
        "no source",
    ),
    "a rule for a mark above the band": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 1, priority=100)],
        "priority 100",
    ),
    "a table without the mark of a rule": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 1), table((on.secondary, 1))],
        "depends on it",
    ),
    "no table, with a rule left": (
        lambda on: [table((on.primary, 1)), mark_rule(on.primary, 1), table()],
        "depends on it",
    ),
    "a rule for a mark that is not there": (
        lambda on: [mark_rule(on.primary, 1, op="rule_remove")],
        "no such rule",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_refuses_before_anything_is_touched(lab: Lab, on: Links, attack: str) -> None:
    ops, reason = ATTACKS[attack]
    before = state(lab)
    with Wire(lab) as wire:
        answer = wire.apply(*ops(on))
        assert answer["verdict"] == "refused"
        assert reason in answer["reason"]
    with Wire(lab) as wire:
        checked = wire.ask(request="check", ops=ops(on))
        assert checked["verdict"] == "refused" or checked["refused"] > 0
    assert state(lab) == before


@pytest.mark.parametrize(
    ("others", "mark", "refused"),
    [
        ("not fwmark 51820 lookup 51820", ARRIVAL | 0x2C, True),  # wg-quick; 51820 is 0xca6c
        ("not fwmark 51820 lookup 51820", 0x2C, True),  # packets that arrive for a published port would have 0x6c
        ("not fwmark 51820 lookup 51820", 0x2B, False),
        ("fwmark 0x64 lookup 100", 0x24, True),
        ("not fwmark 0/0xf lookup 100", 0x25, True),  # all packets with one of these bits
        ("not fwmark 0/0xf lookup 100", 0x20, False),
        ("fwmark 0/0xf lookup 100", 0x25, False),
        ("fwmark 0x40/0x40 lookup 100", 0x24, True),
        ("fwmark 5 lookup 100", 5, True),
        ("fwmark 0x4/0x4 lookup 100", 5, True),
        ("fwmark 0x4/0x4 lookup 100", 1, False),
        ("fwmark 0x4000/0x4000 lookup 100", 5, False),  # kube-proxy
        ("fwmark 0x80000/0xff0000 lookup 52", 5, False),  # Tailscale
    ],
)
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_packets_that_another_program_marks_keep_their_route(
    lab: Lab, on: Links, family: str, others: str, mark: int, refused: bool
) -> None:
    everything = "0.0.0.0/0" if family == "-4" else "::/0"
    ops = [
        table((on.primary, mark & ~ARRIVAL)),
        main_rule(everything),
        rule(everything, 9999 + on.primary, priority=31011, mark=mark, mask=MASK),
    ]
    lab.run(["ip", family, "rule", "add", "pref", "32000", *others.split()])
    try:
        with Wire(lab) as wire:
            answer = wire.apply(*ops)
            assert answer["verdict"] == ("refused" if refused else "applied"), answer
            assert not refused or "its rule 32000 has fwmark" in answer["reason"]
            assert not refused or answer["allow"].startswith("[Network] MarkMask=")
    finally:
        lab.run(["ip", family, "rule", "del", "pref", "32000"])


SENDS = """
import socket, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(3):
    client.sendto(b"query", ("198.51.100.10", 9))
    time.sleep(0.05)
"""
RESTORES = """
table ip wg-quick-wg0 {
  chain premangle { type filter hook prerouting priority mangle; meta l4proto udp meta mark set ct mark; }
  chain forwarded {
    type filter hook forward priority 0;
    udp dport 9 oifname "vpn" counter
    udp dport 9 oifname != "vpn" counter
  }
}
"""


def counted(lab: Lab, table_name: str) -> list[str]:
    """Return the packets that each counter of a table has counted."""
    return re.findall(r"counter packets (\d+)", lab.run(["nft", "list", "table", "ip", table_name]).stdout)


def test_clients_of_a_vpn_router_stay_in_the_vpn() -> None:
    """wg-quick copies whole connection marks to UDP packets, also to those that a client sends."""
    with Lab(Spec.aws(interfaces=2)) as lab:
        lab.write_config(f'{CONFIG}[Network]\nForwardedReplies = "mark"\n')
        start(lab)
        lab.batch(["link add vpn type bridge", "link set vpn up", "route add default dev vpn table 51820"])
        lab.batch(["rule add pref 32001 not fwmark 51820 lookup 51820"])
        lab.batch(["rule add pref 32000 lookup main suppress_prefixlength 0"])
        lab.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"])
        lab.run(["nft", "-f", "-"], stdin=RESTORES)
        lab.run(["nft", "flush", "chain", "bridge", "cloud", "to_instance"], "cloud")  # the instance is a router
        primary = ifindex(lab, "eth1")
        own_table = route(primary, "0.0.0.0/0", "10.0.1.1")
        marked = rule("0.0.0.0/0", 9999 + primary, priority=31020, mark=1, mask=MASK)
        with Wire(lab) as wire:
            answer = wire.apply(table((primary, 1)), own_table, main_rule(), marked)
            assert answer["verdict"] == "applied", answer
        client = lab.neighbours[0]
        client.batch(["route add 198.51.100.0/24 via 10.0.1.10"])
        client.run(["/usr/bin/python3", "-c", SENDS])
        assert counted(lab, "wg-quick-wg0") == ["3", "0"]


PUBLISHES = """
table ip published {
  chain prerouting { type nat hook prerouting priority dstnat; udp dport 9 dnat to 10.99.0.2:80; }
  chain output {
    type filter hook output priority 0;
    udp dport 4789 oifname "eth1" counter
    udp dport 4789 oifname != "eth1" counter
  }
}
"""


def test_outer_packets_of_an_overlay_keep_their_route() -> None:
    """Packets to a published container have the mark of the interface on which they arrive. VXLAN inherits marks."""
    with Lab(Spec.aws(interfaces=2)) as lab:
        lab.write_config(f'{CONFIG}[Network]\nForwardedReplies = "mark"\n')
        start(lab)
        lab.batch(["link set eth0 up", "address add 10.0.2.10/24 dev eth0"])
        lab.run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])  # no multicast on the new link
        lab.batch(["link add overlay type vxlan id 5 local 10.0.1.10 remote 198.51.100.9 dstport 4789"])
        lab.batch(["address add 10.99.0.1/24 dev overlay", "link set overlay up"])
        lab.batch(["neigh add 10.99.0.2 lladdr 02:00:00:00:99:02 dev overlay nud permanent"])
        lab.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"])
        lab.run(["nft", "-f", "-"], stdin=PUBLISHES)
        on = ifindex(lab, "eth0")
        own_table = route(on, "0.0.0.0/0", "10.0.2.1")
        marked = (mark_rule(on, 1 | bit, priority=31020, suppress=False) for bit in (0, ARRIVAL))
        with Wire(lab) as wire:
            answer = wire.apply(table((on, 1)), own_table, main_rule(), *marked)
            assert answer["verdict"] == "applied", answer
        lab.neighbours[1].run(["/usr/bin/python3", "-c", SENDS.replace("198.51.100.10", "10.0.2.10")])
        assert counted(lab, "published") == ["3", "0"]


def test_published_pods_inside_the_subnet_keep_their_route(lab: Lab, on: Links, wire: Wire) -> None:
    """The link's table has its whole subnet on link; main has a route to each pod there."""
    lab.batch(["link add pods type bridge", "link set pods up", "route add 10.0.1.70/32 dev pods"])
    arrived = mark_rule(on.primary, ARRIVAL | 1)
    assert wire.apply(table((on.primary, 1)), mark_rule(on.primary, 1))["verdict"] == "applied"
    assert "has no rule `lookup main" in wire.apply(arrived)["reason"]
    lab.batch(["link del pods"])
    assert wire.apply(arrived)["verdict"] == "applied"


@pytest.mark.parametrize("is_later", [False, True])
def test_published_pods_in_a_shared_subnet_keep_their_route(lab: Lab, on: Links, wire: Wire, is_later: bool) -> None:
    """Another interface has the subnet, and an on-link route to it in its table; the rule may be there before."""
    lab.batch(["link add pods type bridge", "link set pods up", "route add 10.0.1.70/32 dev pods"])
    shared = [address(on.secondary, "10.0.1.20/32"), route(on.secondary, "10.0.1.0/24")]
    marked = [table((on.secondary, 2)), mark_rule(on.secondary, ARRIVAL | 2, priority=31005)]
    if is_later:
        assert wire.apply(*marked)["verdict"] == "applied"
        assert "31005 must then come after one for main" in wire.apply(*shared)["reason"]
        assert wire.ask(request="check", ops=shared)["refusals"][0]["position"] == 1
        assert wire.apply({**marked[1], "op": "rule_remove"})["verdict"] == "applied"
    else:
        assert "has no rule `lookup main" in wire.apply(*shared, *marked)["reason"]
    last = mark_rule(on.secondary, ARRIVAL | 2, priority=31025)
    assert wire.apply(*shared, main_rule(), marked[0], last)["verdict"] == "applied"
    found = ["ip", "route", "get", "10.0.1.70", "from", "10.0.1.20", "mark", str(ARRIVAL | 2)]
    assert "dev pods" in lab.run(found).stdout
    lab.batch(["link del pods"])


def test_a_rule_cannot_be_left_behind_by_a_later_request(lab: Lab, on: Links, wire: Wire) -> None:
    assert wire.apply(table((on.primary, 1)), mark_rule(on.primary, 1))["verdict"] == "applied"
    assert "depends on it" in wire.apply(table())["reason"]
    assert "depends on it" in wire.apply(table((on.primary, 2)))["reason"]
    assert wire.apply(table((on.secondary, 2), (on.primary, 1)))["verdict"] == "applied"


@pytest.mark.parametrize("end", ["rollback", "disconnect", "crash", "timeout"])
def test_unconfirmed_change_is_rolled_back(lab: Lab, on: Links, end: str) -> None:
    with Wire(lab) as wire:
        assert wire.apply(table((on.primary, 5)))["verdict"] == "applied"
        before = state(lab)
        ops = [table((on.primary, 1), (on.secondary, 2)), mark_rule(on.primary, 1), mark_rule(on.secondary, 2)]
        within = 1 if end == "timeout" else 60
        assert wire.apply(*ops, confirm_within=within, request="open")["verdict"] == "applied"
        assert state(lab) != before
        if end == "rollback":
            assert wire.ask(request="rollback", id="open") == {"verdict": "rolled back"}
        elif end == "crash":
            lab.kill("netagent", signal.SIGKILL)
            start(lab)
        elif end == "timeout":
            lab.wait_for(lambda: state(lab) == before)
    lab.wait_for(lambda: state(lab) == before)


def test_rollback_after_a_crash_makes_no_table_if_it_is_off_now(lab: Lab, on: Links) -> None:
    with Wire(lab) as wire:
        assert wire.apply(table((on.primary, 1)))["verdict"] == "applied"
        assert wire.apply(table((on.secondary, 2)), confirm_within=60)["verdict"] == "applied"
        lab.write_config(CONFIG)
        lab.kill("netagent", signal.SIGHUP)
        lab.wait_for(lambda: owned_table(lab) == "")
        lab.kill("netagent", signal.SIGKILL)
    start(lab)
    assert owned_table(lab) == ""
    assert [each["reason"] for each in audit_lines(lab)[-1]["not_undone"]] == ["ForwardedReplies= is off"]
    lab.stop("netagent")
    lab.write_config(MARK)
    start(lab)


def test_rollback_adds_no_mark_to_a_link_that_is_excluded_now(lab: Lab, on: Links) -> None:
    with Wire(lab) as wire:
        assert wire.apply(table((on.primary, 1), (on.secondary, 2)))["verdict"] == "applied"
        assert wire.apply(table((on.primary, 1)), confirm_within=60)["verdict"] == "applied"
        after = state(lab)
        lab.kill("netagent", signal.SIGKILL)
    lab.write_config(MARK.replace('"docker1"', '"docker1 eth2"'))
    start(lab)
    assert state(lab) == after
    assert "excluded" in str(audit_lines(lab)[-1]["not_undone"])
    lab.stop("netagent")
    lab.write_config(MARK)
    start(lab)
    with Wire(lab) as wire:
        assert wire.apply(table())["verdict"] == "applied"


def test_a_failure_in_the_kernel_undoes_the_table(lab: Lab, on: Links, wire: Wire) -> None:
    """After the table has been made, the kernel refuses a route on a link that is down."""
    before = state(lab)
    assert wire.apply(table((on.primary, 3)))["verdict"] == "applied"
    with_table = state(lab)
    ops = [table((on.primary, 1)), mark_rule(on.primary, 1), address(on.down, "10.0.3.10/24")]
    answer = wire.apply(*ops, route(on.down, "10.0.3.0/24"))
    assert (answer["verdict"], answer["reason"]) == ("rolled back", "Network is down")
    assert state(lab) == with_table
    assert wire.apply(table())["verdict"] == "applied"
    assert state(lab) == before


def sockets(lab: Lab) -> int:
    found = 0
    for each in Path(f"/proc/{lab.daemons.pid('netagent')}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found += str(each.readlink()).startswith("socket:")
    return found


def test_off_refuses_and_names_the_key(lab: Lab, on: Links) -> None:
    lab.stop("netagent")
    lab.write_config(CONFIG)
    start(lab)
    with Wire(lab) as wire:
        refused = wire.apply(table((on.primary, 1)))
        assert refused["allow"] == '[Network] ForwardedReplies="mark"'
        assert "is not that of" in wire.apply(mark_rule(on.primary, 1))["reason"]
        assert wire.ask(request="status")["marks"] is None
    lab.wait_for(lambda: sockets(lab) == 2)  # the listener and rtnetlink; nfnetlink is closed
    lab.stop("netagent")
    lab.write_config(MARK)
    start(lab)


def test_off_removes_the_table_that_was_made_and_no_other(lab: Lab, on: Links) -> None:
    with Wire(lab) as wire:
        assert wire.apply(table((on.primary, 1)))["verdict"] == "applied"
    lab.write_config(CONFIG)
    member = ["setpriv", "--reuid=65534", f"--regid={USERS['cloud-network']}", "--clear-groups"]
    with Wire(lab, prefix=member) as stranger, pytest.raises(OSError, match=r"closed the connection|Broken pipe|reset"):
        stranger.ask(request="status")  # the line of the reload must not name this client
    lab.kill("netagent", signal.SIGHUP)
    lab.wait_for(lambda: owned_table(lab) == "")
    lab.wait_for(lambda: audit_lines(lab)[-1].get("reason") == "ForwardedReplies= is off")
    assert audit_lines(lab)[-1]["peer"] is None
    lab.run(["nft", "add table inet cloud_network"])  # netagent's ledger does not have this table
    lab.stop("netagent")
    start(lab)
    assert owned_table(lab) != ""
    lab.run(["nft", "delete table inet cloud_network"])
    lab.stop("netagent")
    lab.write_config(MARK)
    start(lab)


def test_another_mask_rolls_an_open_change_back(lab: Lab, on: Links) -> None:
    """With the new mask, netagent could neither read the earlier marks nor set them again."""
    before = state(lab)
    with Wire(lab) as wire:
        assert wire.apply(table((on.primary, 1)), confirm_within=60)["verdict"] == "applied"
        lab.write_config(MARK.replace("Exclude", 'MarkMask = "0xf00"\nExclude'))
        lab.kill("netagent", signal.SIGHUP)
        lab.wait_for(lambda: state(lab) == before)
        assert wire.ask(request="status")["open"] is None
    assert audit_lines(lab)[-1]["reason"] == "MarkMask= has changed"
    lab.write_config(MARK)
    lab.kill("netagent", signal.SIGHUP)


def test_a_mask_of_the_operators(lab: Lab, on: Links) -> None:
    lab.stop("netagent")
    lab.write_config(MARK.replace("Exclude", 'MarkMask = "0xf00"\nExclude'))
    start(lab)
    with Wire(lab) as wire:
        assert "not inside 0x700" in wire.apply(table((on.primary, 1)))["reason"]
        assert wire.apply(table((on.primary, 0x700)))["verdict"] == "applied"
        assert "& 0x00000f00 == 0x00000700" in owned_table(lab)
        assert wire.ask(request="status")["marks"] == [{"link": on.primary, "mark": 0x700}]
    lab.stop("netagent")
    lab.write_config(MARK)
    start(lab)


def test_tables_of_other_programs_are_the_same_in_json(lab: Lab, on: Links, wire: Wire) -> None:
    before = foreign(lab)
    for marks in ([(on.primary, 1)], [(on.secondary, 1), (on.primary, 2)], []):
        assert wire.apply(table(*marks))["verdict"] == "applied"
        assert foreign(lab) == before


def foreign(lab: Lab) -> list[Any]:
    """Return all nftables objects outside netagent's table, with handles and counters."""
    found = json.loads(lab.run(["nft", "--json", "list", "ruleset"]).stdout)["nftables"]
    return [each for each in found if not is_in_owned_table(each)]


def is_in_owned_table(entry: dict[str, Any]) -> bool:
    [(kind, fields)] = entry.items()
    return (fields.get("family"), fields.get("name" if kind == "table" else "table")) == ("inet", "cloud_network")
