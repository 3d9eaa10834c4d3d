"""One rule for all addresses of a subnet on a link: packets that it matches, and its replacement."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network

import pytest

from tests.lab import Interface, Lab, Nic, Spec
from tests.lab.spec import beyond_address, neighbour_address
from tests.system.service import (
    CONFIG,
    PROTOCOL,
    audit,
    errors,
    ip,
    is_healthy,
    own_objects,
    refresh,
    running_lab,
    wait_until_healthy,
)

SPEC = Spec.aws(interfaces=2, addresses=3)
SHARED = Spec(tuple(Interface("10.0.1.0/24", count) for count in (4, 4)))


def rules_config(rules: str) -> str:
    return f'[Network]\nRules = "{rules}"\n'


def table(lab: Lab, nic: Nic) -> int:
    return 9999 + next(int(link["ifindex"]) for link in ip(lab, "link") if link["ifname"] == nic.name)


def rule_sources(lab: Lab, nic: Nic) -> list[str]:
    """Return the sources of an interface's first step; those for forwarded packets are in brackets."""
    own = [
        rule
        for rule in own_objects(lab, "rule-4")
        if rule["table"] == str(table(lab, nic)) and rule["priority"] == 31000
    ]
    texts = [f"{rule['src']}/{rule.get('srclen', 32)}" for rule in own]
    return sorted(text if rule.get("iif") == "lo" else f"({text})" for text, rule in zip(texts, own, strict=True))


# — matched packets


NAT = """
table ip nat {{
  chain POSTROUTING {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{primary}" ip saddr {subnet} counter masquerade
  }}
}}
"""


def make_nat_gateway(lab: Lab) -> str:
    """NAT for the neighbour of the second interface's subnet, with the source/destination check off."""
    primary, nic, namespace = lab.nics[0], lab.nics[1], lab.neighbours[1]
    outside = beyond_address(0)
    lab.run(["tee", "/proc/sys/net/ipv4/ip_forward"], stdin="1")
    lab.run(["nft", "-f", "-"], stdin=NAT.format(primary=primary.name, subnet=nic.subnet))
    lab.fabric.register_address(nic, outside)
    namespace.batch([f"route replace {outside}/32 via {nic.addresses[0]}"])
    lab.reach.listen(lab.beyond[0])
    return neighbour_address(nic.subnet)


def neighbour_reaches_outside(lab: Lab) -> bool:
    namespace, pair = lab.neighbours[1], (beyond_address(0), None)
    return lab.reach.probe({namespace: [pair]}, 1.5)[(namespace.name, *pair)]


def masqueraded_packets(lab: Lab) -> int:
    return int(re.findall(r"counter packets (\d+)", lab.run(["nft", "list", "table", "ip", "nat"]).stdout)[0])


@pytest.mark.parametrize("rules", ["aggregate", "address"])
def test_forwarded_packets_of_a_neighbour_use_main(rules: str) -> None:
    """The neighbour's address is in the prefix; packets that it sends through this host are not this host's own."""
    with running_lab(SPEC, rules_config(rules), "netagent", "fetcher") as lab:
        primary, nic = lab.nics
        neighbour = make_nat_gateway(lab)
        assert ip_address(neighbour) in ip_network(nic.subnet)
        assert neighbour_reaches_outside(lab)
        assert masqueraded_packets(lab) > 0
        way = ["route", "get", beyond_address(0), "from", neighbour, "iif", nic.name]
        assert ip(lab, *way)[0]["dev"] == primary.name
        assert all(lab.reachability().values())
        assert lab.lost() == []
        assert refresh(lab) == "ok"
        lab.stop("fetcher")
        for priority, more in ((31000, "suppress_prefixlength 0"), (31020, "")):
            lab.batch([f"rule add pref {priority} from {nic.subnet} lookup {table(lab, nic)} {more}"])
        assert ip(lab, *way)[0]["dev"] == nic.name, "without `iif lo` the rule would match"
        assert not neighbour_reaches_outside(lab)
        assert {lost.source for lost in lab.lost()} == {neighbour}


def test_forwarded_ipv6_packets_of_a_neighbour_use_main() -> None:
    both = [Interface(f"10.0.{n}.0/24", 1, ipv6=(f"fd00:{n}::a", f"fd00:{n}::b")) for n in (1, 2)]
    with running_lab(Spec(tuple(both)), "", "netagent", "fetcher") as lab:
        primary, nic = lab.nics
        lab.wait_for(lambda: all(lab.reachability().values()), 20, "every address to answer")
        assert is_healthy(lab)
        lab.stop("fetcher")
        lab.run(["tee", "/proc/sys/net/ipv6/conf/all/forwarding"], stdin="1")
        lab.run(["ip", "-6", "route", "replace", "default", "via", "fe80::1", "dev", primary.name, "metric", "1"])
        outside = ["-6", "route", "get", "2001:db8:ffff::7", "from"]
        for own in nic.ipv6:
            assert ip(lab, *outside, own)[0]["dev"] == nic.name
        assert ip(lab, *outside, "fd00:2::77", "iif", nic.name)[0]["dev"] == primary.name
        lab.run(["ip", "-6", "rule", "add", "pref", "31020", "from", "fd00:2::/64", "lookup", str(table(lab, nic))])
        assert ip(lab, *outside, "fd00:2::77", "iif", nic.name)[0]["dev"] == nic.name, "without `iif lo`"


SPOOF = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT, linux/in.h
s.bind((sys.argv[1], 0))
s.sendto(b"", (sys.argv[2], 9))
"""


@pytest.mark.parametrize(("rules", "by"), [("aggregate", 1), ("address", 0)])
def test_known_transparent_proxy_counts_as_this_host(rules: str, by: int) -> None:
    """A process with CAP_NET_ADMIN may use a foreign source: packets leave through the link with that subnet."""
    with running_lab(SPEC, rules_config(rules), "netagent", "fetcher") as lab:
        spoofed = neighbour_address(lab.nics[1].subnet)
        lab.run(["/usr/bin/python3", "-c", SPOOF, spoofed, beyond_address(0)])
        assert {(lost.mac, lost.source) for lost in lab.lost()} == {(lab.nics[by].mac, spoofed)}


REVERSE_PATH_CHECK = """
table inet firewall {
  chain prerouting {
    type filter hook prerouting priority filter; policy accept;
    iifname "eth*" fib saddr . iif oif missing drop
  }
}
"""


@pytest.mark.parametrize(("rules", "passes"), [("aggregate", False), ("address", True)])
def test_known_reverse_path_check_drops_forwarded_packets(rules: str, passes: bool) -> None:
    """The firewall looks up the way back for `iif lo`: an answer on eth0 to a neighbour should have come by eth1."""
    with running_lab(SPEC, rules_config(rules), "netagent", "fetcher") as lab:
        make_nat_gateway(lab)
        assert neighbour_reaches_outside(lab)
        lab.run(["nft", "-f", "-"], stdin=REVERSE_PATH_CHECK)
        assert neighbour_reaches_outside(lab) == passes


REJECT = """
table inet firewall {
  chain forward {
    type filter hook forward priority filter; policy accept;
    counter reject with tcp reset
  }
}
"""


@pytest.mark.parametrize(("rules", "is_lost"), [("aggregate", True), ("address", False)])
def test_known_reset_for_a_neighbour_counts_as_this_host(rules: str, is_lost: bool) -> None:
    """A firewall's TCP reset has the neighbour's address, and leaves by eth1, not by the link to the client."""
    with running_lab(SPEC, rules_config(rules), "netagent", "fetcher") as lab:
        namespace, neighbour = lab.neighbours[0], neighbour_address(lab.nics[1].subnet)
        lab.run(["tee", "/proc/sys/net/ipv4/ip_forward"], stdin="1")
        lab.run(["nft", "-f", "-"], stdin=REJECT)
        namespace.batch([f"route replace {neighbour}/32 via {lab.nics[0].addresses[0]}"])
        lab.fabric.register_address(lab.nics[0], neighbour)
        lab.reach.probe({namespace: [(neighbour, None)]}, 1.5)
        assert "packets 0 " not in lab.run(["nft", "list", "chain", "inet", "firewall", "forward"]).stdout
        senders = {(lost.mac, lost.source) for lost in lab.lost()}
        assert senders == ({(lab.nics[1].mac, neighbour)} if is_lost else set())


def test_foreign_address_splits_the_aggregate_rule() -> None:
    """A later address in the prefix, on any link: a kernel event reports it."""
    with running_lab(SPEC) as lab:
        primary, nic = lab.nics
        held = lab.hold_connection(nic.addresses[1])
        assert rule_sources(lab, nic) == [nic.subnet]
        lab.batch(["link add their0 type bridge", "address add 10.0.2.200/32 dev their0", "link set their0 up"])
        lab.wait_for(lambda: rule_sources(lab, nic) == ["10.0.2.0/25"], 10, "the rules to be smaller")
        wait_until_healthy(lab)
        assert ip(lab, "route", "get", beyond_address(0), "from", "10.0.2.200")[0]["dev"] == primary.name
        assert all(lab.reachability().values())
        lab.batch(["link del their0"])
        lab.wait_for(lambda: rule_sources(lab, nic) == [nic.subnet], 10, "the rule for all of the subnet")
        wait_until_healthy(lab)
        assert held.alive()
        assert errors(lab) == []
        assert "refused" not in {line["verdict"] for line in audit(lab)}


# — replacement


@dataclass
class RuleHistory:
    """The rules before, in the kernel's order, and each change of them as printed by `ip monitor`."""

    lab: Lab
    first: list[str]
    path: str = "/run/lab/rules"

    def states(self) -> Iterator[list[str]]:
        now = list(self.first)
        for line in map(_plain, self.lab.path(self.path).read_text().splitlines()):
            if line.startswith("Deleted "):
                now.remove(line.removeprefix("Deleted "))
            else:
                later = [at for at, rule in enumerate(now) if _priority(rule) > _priority(line)]
                now.insert(later[0] if later else len(now), line)
            yield now

    def is_complete(self) -> bool:
        """Return True if all changes have been printed."""
        *_, last = [self.first, *self.states()]
        return last == _rules(self.lab)


def _plain(line: str) -> str:
    return " ".join(line.split())


def _priority(rule: str) -> int:
    return int(rule.partition(":")[0])


def _rules(lab: Lab) -> list[str]:
    return [_plain(line) for line in lab.run(["ip", "-4", "rule"]).stdout.splitlines()]


@contextmanager
def rule_history(lab: Lab) -> Iterator[RuleHistory]:
    def listeners() -> int:
        rows = [line.split() for line in lab.run(["cat", "/proc/net/netlink"]).stdout.splitlines()[1:]]
        return sum(row[1] == "0" and bool(int(row[3], 16) & 0x80) for row in rows)  # RTNLGRP_IPV4_RULE

    history, before = RuleHistory(lab, _rules(lab)), listeners()
    with lab.path(history.path).open("wb") as output:
        monitor = lab.instance.popen(["ip", "-4", "-o", "monitor", "rule"], stdout=output)
        lab.wait_for(lambda: listeners() > before, message="ip monitor")
        yield history
        lab.wait_for(history.is_complete, 10, "the last rule to be printed")
        monitor.terminate()
        monitor.wait(10)


def table_for(rules: Sequence[str], source: str, step: int) -> str | None:
    """Return the table of the first rule in a step for packets of this host with that source."""
    for rule in rules:
        found = re.fullmatch(
            r"(\d+): from ([0-9./]+)( iif lo)? lookup (\w+)( suppress_prefixlength 0)? proto 209", rule
        )
        if found and int(found[1]) == step and ip_address(source) in ip_network(found[2]):
            return found[4]
    return None


def check_rules_at_all_times(history: RuleHistory, wanted: dict[str, int]) -> None:
    """Check that every address had a rule at every moment, and never another link's."""
    count = 0
    for rules in history.states():
        count += 1
        for source, number in wanted.items():
            for step in (31000, 31020):
                assert table_for(rules, source, step) == str(number), (
                    f"{source} in {step} after {count} changes: {rules}"
                )
        assert any("from all lookup main suppress_prefixlength 0" in rule for rule in rules)
    assert count, "no rule was changed"


def configure(lab: Lab, rules: str, count: int) -> None:
    lab.write_config(CONFIG + rules_config(rules))
    lab.kill("fetcher", 1)
    lab.wait_for(lambda: len(own_objects(lab, "rule-4")) == count and is_healthy(lab), 20, f"Rules={rules}")


@pytest.mark.parametrize("spec", [SPEC, SHARED], ids=["two subnets", "one subnet"])
def test_another_form_of_the_rules_breaks_no_connection(spec: Spec) -> None:
    """At run time, and with new daemons, as in an upgrade of the package from one rule per address."""
    with running_lab(spec, rules_config("address"), "netagent", "fetcher") as lab:
        held = [lab.hold_connection(address) for nic in lab.nics for address in nic.addresses]
        wanted = {address: table(lab, nic) for nic in lab.nics for address in nic.addresses}
        singly, together = 1 + 2 * len(wanted), len(set(aggregated_rules(lab)))
        with rule_history(lab) as history:
            configure(lab, "aggregate", together)
            configure(lab, "original", singly + len(wanted))
            configure(lab, "aggregate", together)
            configure(lab, "address", singly)
            lab.stop("fetcher")
            lab.stop("netagent")
            lab.write_config(CONFIG)
            lab.start("netagent")
            lab.start("fetcher")
            lab.wait_for(lambda: len(own_objects(lab, "rule-4")) == together and is_healthy(lab), 20, "the new daemons")
        check_rules_at_all_times(history, wanted)
        assert all(each.alive() for each in held)
        assert all(lab.reachability().values())
        assert lab.lost() == []


def tables_of(lab: Lab, what: str) -> set[str]:
    return {each["table"] for each in own_objects(lab, f"{what}-4")}


@pytest.mark.parametrize("daemons", [("netagent", "fetcher"), ("fetcher", "netagent")])
@pytest.mark.parametrize("base", [20000, 9998, 10000])
def test_another_table_base_moves_all_routes(base: int, daemons: Sequence[str]) -> None:
    """Also if the numbers of the former and the new tables overlap: those of one interface become another's."""
    with running_lab(SPEC, "", "netagent", "fetcher") as lab:
        held = [lab.hold_connection(address) for nic in lab.nics for address in nic.addresses]
        former = lab.run(["ip", "route", "show", "table", "all", "proto", PROTOCOL]).stdout
        lab.write_config(f"{CONFIG}[Network]\nRouteTableBase = {base}\n")
        for daemon in daemons:
            lab.kill(daemon, signal.SIGHUP)
        names = {nic.name for nic in lab.nics}
        tables = {str(base + each["ifindex"]) for each in ip(lab, "link") if each["ifname"] in names}
        lab.wait_for(lambda: tables_of(lab, "rule") == {*tables, "main"}, 20, "the new rules")
        lab.wait_for(lambda: tables_of(lab, "route") == tables, 20, "the new routes")
        wait_until_healthy(lab)
        assert len(own_objects(lab, "route-4")) == len(former.splitlines())
        assert all(lab.reachability().values())
        assert all(each.alive() for each in held)


def aggregated_rules(lab: Lab) -> list[tuple[int, IPv4Network]]:
    """Return (step or table, network) of each expected rule and of the one for main, computed by halving."""

    def halves(network: IPv4Network, nic: Nic) -> list[IPv4Network]:
        inside = [each for each in nic.addresses if ip_address(each) in network]
        others = {each for other in lab.nics if other != nic for each in other.addresses}
        if not inside or not any(ip_address(each) in network for each in others):
            return [network] if inside else []
        return [found for half in network.subnets() for found in halves(half, nic)]

    found = [(31010, IPv4Network("0.0.0.0/0"))]
    for nic in lab.nics:
        for network in halves(IPv4Network(nic.subnet), nic):
            found += [(31000, network), (31020, network)]
    return found


def test_an_address_that_divides_a_prefix_leaves_no_gap() -> None:
    """Two interfaces in one subnet: a new address of one is inside a prefix of the other's rule."""
    with running_lab(SHARED) as lab:
        one, other = lab.nics
        held = [lab.hold_connection(address) for nic in lab.nics for address in nic.addresses]
        wanted = {address: table(lab, nic) for nic in lab.nics for address in nic.addresses}
        before = (rule_sources(lab, one), rule_sources(lab, other))
        [whole] = [text for text in before[1] if ip_address("10.0.1.24") in ip_network(text)]
        with rule_history(lab) as history:
            lab.add_address(one.mac, "10.0.1.24")
            refresh(lab)
            wait_until_healthy(lab)
            assert whole not in rule_sources(lab, other)
            assert all(lab.reachability().values())
            lab.remove_address(one.mac, "10.0.1.24")
            refresh(lab)
            wait_until_healthy(lab)
            lab.wait_for(lambda: whole in rule_sources(lab, other), 10, "one rule for the subnet")
        check_rules_at_all_times(history, wanted)
        assert (rule_sources(lab, one), rule_sources(lab, other)) == before
        assert all(each.alive() for each in held)
        assert lab.lost() == []
        orders = [[op["op"] for op in line.get("ops") or () if "rule" in op["op"]] for line in audit(lab)]
        assert ["rule_add"] * 4 + ["rule_remove"] * 2 in orders, "links that share the subnet are changed together"
        assert all(order == sorted(order) for order in orders), "the new rules are added before the old one is removed"
        assert "refused" not in {line["verdict"] for line in audit(lab)}


def test_address_in_an_exclusive_subnet_changes_no_rule() -> None:
    with running_lab(SPEC) as lab:
        before = _rules(lab)
        lab.add_address(lab.nics[1].mac, "10.0.2.77")
        refresh(lab)
        lab.remove_address(lab.nics[1].mac, lab.nics[1].addresses[0])
        refresh(lab)
        wait_until_healthy(lab)
        assert _rules(lab) == before
        assert json.dumps([line.get("ops") for line in audit(lab)[4:]]).count("rule_") == 0
