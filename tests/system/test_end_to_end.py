"""The complete service (issue 3): four interfaces with fifteen addresses each, from unreachable to reachable.

One lab for the whole file: its tests undo their changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.system.service import (
    MACS,
    audit,
    cnctl,
    errors,
    ip,
    is_healthy,
    kernel,
    kernel_addresses,
    own_objects,
    read_all_facts,
    refresh,
    running_lab,
    status,
    without_order,
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=4, addresses=15, public=1)) as made:
        yield made


def table(lab: Lab, name: str) -> int:
    return 9999 + next(int(link["ifindex"]) for link in ip(lab, "link") if link["ifname"] == name)


def test_every_address_is_on_the_link_with_its_mac(lab: Lab) -> None:
    links = {link["address"]: link for link in ip(lab, "address")}
    for nic in lab.nics:
        found = {entry["local"]: entry for entry in links[nic.mac]["addr_info"] if entry["family"] == "inet"}
        assert set(found) == set(nic.addresses)
        first, *siblings = nic.addresses
        assert found[first]["prefixlen"] == 24
        assert all(found[each]["prefixlen"] == 32 and found[each]["noprefixroute"] for each in siblings)
        assert "UP" in links[nic.mac]["flags"]


def test_tables_have_subnets_siblings_and_default_route(lab: Lab) -> None:
    subnets = {nic.subnet for nic in lab.nics}
    for nic in lab.nics:
        number = str(table(lab, nic.name))
        found = {route["dst"]: route for route in own_objects(lab, "route-4") if route["table"] == number}
        assert set(found) == {*subnets, "default"}
        assert all(route["dev"] == nic.name for route in found.values())
        assert {dst: route.get("gateway") for dst, route in found.items()} == {
            dst: None if dst == nic.subnet else nic.gateway for dst in found
        }


Steps = set[tuple[int, str, int, str | None, str, int | None]]


def steps(lab: Lab) -> Steps:
    """Return the owned rules: priority, source and its length, incoming link, table, suppress_prefixlength."""
    return {
        (rule["priority"], rule["src"], rule.get("srclen", 32), rule.get("iif"), rule["table"],
         rule.get("suppress_prefixlen"))
        for rule in own_objects(lab, "rule-4")
    }  # fmt: skip


def test_every_subnet_has_its_rules_in_three_steps(lab: Lab) -> None:
    expected: Steps = {(31010, "all", 32, None, "main", 0)}
    for nic in lab.nics:
        number, source = str(table(lab, nic.name)), nic.subnet.removesuffix("/24")
        expected |= {(31000, source, 24, "lo", number, 0), (31020, source, 24, "lo", number, None)}
    assert steps(lab) == expected
    assert len(own_objects(lab, "rule-4")) == len(expected) == 9


def test_all_300_pairs_answer_through_the_owning_interface(lab: Lab) -> None:
    answers = lab.reachability()
    assert len(answers) == 300
    assert [pair for pair, answered in answers.items() if not answered] == []
    assert lab.lost() == []


def test_every_address_reaches_the_outside(lab: Lab) -> None:
    answers = lab.outbound()
    assert len(answers) == 60
    assert all(answers.values())
    assert lab.lost() == []


def test_start_logs_no_error_and_confirms_each_link(lab: Lab) -> None:
    assert errors(lab) == []
    assert [line["verdict"] for line in audit(lab)] == ["applied", "confirmed"] * 4, "link by link"


def test_truncation_of_the_audit_log_is_reported(lab: Lab) -> None:
    """The file alone does not show it; the fetcher knows which changes were confirmed."""
    log = lab.path("/var/log/cloud-network/audit.log")
    whole = log.read_text()
    assert cnctl(lab, "audit", "--verify").stdout.startswith("OK: 8 lines")
    try:
        log.write_text(whole.splitlines(keepends=True)[0])
        done = cnctl(lab, "audit", "--verify")
    finally:
        log.write_text(whole)
    assert done.returncode == 1
    assert "audit.log:1: line 1 is the last, and the confirmation of" in done.stdout


def test_unchanged_refresh_sends_no_request_to_netagent(lab: Lab) -> None:
    before, log = audit(lab), lab.log("netagent")
    lab.metadata.reset()
    assert refresh(lab) == "ok"
    assert any(path.endswith("local-ipv4s") for path in lab.metadata.paths())
    assert (audit(lab), lab.log("netagent")) == (before, log)


def test_refresh_keeps_one_connection_and_its_budget(lab: Lab) -> None:
    for _ in range(4):
        lab.metadata.reset()
        refresh(lab)
        assert len(lab.metadata.requests()) <= 5 + 12 * 4
        assert lab.metadata.connections() == 0  # since the reset: the connection is reused
    assert status(lab)["metadata_requests"] == len(lab.metadata.requests())


@pytest.mark.parametrize("rules", ["address", "original"])
def test_rules_for_each_address_do_the_same(rules: str) -> None:
    """The kernel never evaluates the rules that `original` adds."""
    with running_lab(Spec.aws(interfaces=4, addresses=15), f'[Network]\nRules = "{rules}"\n') as singly:
        expected: Steps = {(31010, "all", 32, None, "main", 0)}
        for nic in singly.nics:
            number = str(table(singly, nic.name))
            expected |= {(31000, address, 32, None, number, 0) for address in nic.addresses}
            expected |= {(31020, address, 32, None, number, None) for address in nic.addresses}
            if rules == "original":
                expected.add((31020, "all", 32, None, number, None))
        assert len(own_objects(singly, "rule-4")) == {"address": 121, "original": 181}[rules]
        assert steps(singly) == expected
        answers = singly.reachability()
        assert len(answers) == 300
        assert all(answers.values())
        assert all(singly.outbound().values())
        assert singly.lost() == []


@pytest.mark.parametrize("interfaces", [1, 4])
def test_first_refreshes_stay_within_the_request_limit(interfaces: int) -> None:
    """This includes the change and the check of the server. Refreshes are at least half a second apart."""
    with running_lab(Spec.aws(interfaces=interfaces, addresses=15, public=1)) as fresh:
        document = fresh.path("/run/cloud-network/links")
        fresh.wait_for(
            lambda: all("vpc-ipv4-cidr-blocks" in each.read_text() for each in document.iterdir()), 20, "facts"
        )
        begun = [record.at for record in fresh.metadata.requests() if record.path == MACS]
        for start, end in zip(begun, [*begun[1:], float("inf")], strict=True):
            count = sum(start <= record.at < end for record in fresh.metadata.requests())
            token = sum(record.method == "PUT" for record in fresh.metadata.requests()) if start == begun[0] else 0
            assert count + token <= 5 + 12 * interfaces
        assert fresh.metadata.connections() == 1
        assert len(fresh.metadata.requests()) < 248  # requests of the Go original for each refresh


def test_own_changes_cause_one_read_and_no_change(lab: Lab) -> None:
    """The kernel reports cloud-network's own changes, which cause exactly one more read."""
    read_all_facts(lab)
    before = len(audit(lab))
    victim = lab.nics[1].addresses[7]
    lab.batch([f"address del {victim}/32 dev {lab.nics[1].name}"])
    lab.wait_for(lambda: victim in kernel_addresses(lab) and is_healthy(lab), 10, "the repair")
    lab.metadata.reset()
    refresh(lab)
    assert [line["verdict"] for line in audit(lab)[before:]] == ["applied", "confirmed"]


@pytest.mark.parametrize("what", ["address", "route", "rule", "link"])
def test_drift_is_repaired_at_once(lab: Lab, what: str) -> None:
    """No new metadata: a kernel event reports it."""
    before, nic, counted = kernel(lab), lab.nics[2], status(lab)["counters"]
    undo = {
        "address": [f"address del {nic.addresses[0]}/24 dev {nic.name}"],
        "route": [f"route del default table {table(lab, nic.name)}"],
        "rule": [f"rule del pref 31000 from {nic.subnet} iif lo", "rule del pref 31010"],
        "link": [f"link set {nic.name} down"],
    }[what]
    lab.batch(undo)
    lab.wait_for(lambda: without_order(kernel(lab)) == without_order(before), 15, "the kernel to be as before")
    assert all(lab.reachability(nic.addresses).values())
    lab.wait_for(lambda: status(lab)["counters"]["drift_repaired"] > counted["drift_repaired"], 10, "the counter")
    assert status(lab)["counters"]["netagent_requests"]["confirmed"] > counted["netagent_requests"]["confirmed"]
