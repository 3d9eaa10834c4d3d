"""ForwardedReplies="mark": published ports answer on every address, and other programs' objects stay."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Interface, Lab
from tests.system.forwarding import PUBLISHED, SPEC, SYSCTL, Container, answered
from tests.system.service import audit, ip, own_objects, refresh, running_lab, send_command, status

MARK = '[Network]\nForwardedReplies = "mark"\n'
OFF = '[Netagent]\nAllowKinds = "veth"\n'
TABLE = ["nft", "-s", "list", "table", "inet", "cloud_network"]


@pytest.fixture(scope="module")
def marked() -> Iterator[tuple[Lab, Container]]:
    with running_lab(replace(SPEC, sysctl=SYSCTL), MARK) as lab:
        container = Container(lab)
        lab.wait_for(lambda: refresh(lab) == "ok", message="state ok")
        yield lab, container
        container.close()


@pytest.fixture
def lab(marked: tuple[Lab, Container]) -> Lab:
    return marked[0]


@pytest.fixture
def container(marked: tuple[Lab, Container]) -> Container:
    return marked[1]


def table(lab: Lab) -> str:
    return lab.run(TABLE, check=False).stdout


def ruleset(lab: Lab) -> str:
    """Return the nftables rules of all other programs."""
    text = lab.run(["nft", "-s", "list", "ruleset"]).stdout
    return re.sub(r"table inet cloud_network \{\n.*?\n\}\n", "", text, flags=re.DOTALL)


def mark_rules(lab: Lab) -> list[dict[str, Any]]:
    return [rule for version in (4, 6) for rule in own_objects(lab, f"rule-{version}") if "fwmark" in rule]


def count(found: dict[tuple[str, str], bool]) -> str:
    return f"{sum(found.values())} of {len(found)}"


def test_without_marks_a_third_of_the_pairs_answers() -> None:
    """Only the pairs answer that main routes back: through the primary, or into the client's own subnet."""
    with running_lab(replace(SPEC, sysctl=SYSCTL)) as lab:
        container = Container(lab)
        assert refresh(lab) == "ok"
        assert table(lab) == ""
        assert all(lab.reachability().values())  # also learns the neighbours' hardware addresses
        for protocol in ("tcp", "udp"):
            assert count(answered(lab, protocol, lab.addresses)) == "9 of 25"
        container.close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_pair_answers(lab: Lab, protocol: str) -> None:
    lab.fabric.clear_lost()
    assert count(answered(lab, protocol, lab.addresses)) == "25 of 25"
    found = answered(lab, protocol, lab.addresses6)
    assert all(found.values()), found
    assert lab.dropped() == 0
    assert all(lab.reachability().values()), "the host's own addresses answer as well"


def test_the_rules_and_the_table_are_those_of_the_documentation(lab: Lab) -> None:
    index = {nic.name: int(ip(lab, "link", "show", "dev", nic.name)[0]["ifindex"]) for nic in lab.nics}
    text = table(lab)
    assert len(mark_rules(lab)) == 4 * len(lab.nics)
    for name, link in index.items():
        found = [rule for rule in mark_rules(lab) if rule["table"] == str(9999 + link)]
        assert {rule["fwmark"] for rule in found} == {f"{link:#x}"}
        assert [(rule["priority"], "suppress_prefixlen" in rule) for rule in found] == [
            (31000, True),
            (31020, False),
        ] * 2
        assert f'iif "{name}" ct state new ct mark set' in text
        assert f"ct mark & 0x0000007f == {link:#010x} meta mark set" in text


def test_bits_of_other_programs_stay_in_both_marks(lab: Lab) -> None:
    """`table inet other` sets 0x4000 in the connection's mark, and 0x8000 in every packet's."""
    counters = "add table inet seen\nadd chain inet seen c { type filter hook forward priority raw; }\n"
    conditions = ["ct mark & 0x4000 == 0x4000", "meta mark & 0x8000 == 0x8000"]
    links = [int(ip(lab, "link", "show", "dev", nic.name)[0]["ifindex"]) for nic in lab.nics]
    for link in links:
        ours_too = f"ct direction reply ct mark & 0x7f == {link:#x} meta mark & 0x7f == {link:#x}"
        counters += f"add rule inet seen c {ours_too} {' '.join(conditions)} counter\n"
    lab.run(["nft", "-f", "-"], stdin=counters)
    assert count(answered(lab, "tcp", lab.addresses)) == "25 of 25"
    seen = lab.run(["nft", "list", "table", "inet", "seen"]).stdout
    lab.run(["nft", "delete", "table", "inet", "seen"])
    assert len(re.findall(r"counter packets [1-9]", seen)) == len(links), seen


def test_strict_reverse_path_filter_needs_src_valid_mark(lab: Lab) -> None:
    lab.run(
        [
            "sysctl",
            "-q",
            "-w",
            "net.ipv4.conf.all.rp_filter=1",
            *(f"net.ipv4.conf.{nic.name}.rp_filter=1" for nic in lab.nics),
        ]
    )
    try:
        assert count(answered(lab, "tcp", lab.addresses)) == "9 of 25"
        assert refresh(lab) == "degraded"
        assert "set net.ipv4.conf.all.src_valid_mark=1" in status(lab)["last_error"]["message"]
        lab.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.src_valid_mark=1"])
        assert refresh(lab) == "ok"
        for protocol in ("tcp", "udp"):
            assert count(answered(lab, protocol, lab.addresses)) == "25 of 25"
        assert len(mark_rules(lab)) == 6 * len(lab.nics), "including the IPv4 rules for arriving packets"
        assert all(lab.reachability().values())
    finally:
        lab.run(
            [
                "sysctl",
                "-q",
                "-w",
                "net.ipv4.conf.all.rp_filter=0",
                "net.ipv4.conf.all.src_valid_mark=0",
                *(f"net.ipv4.conf.{nic.name}.rp_filter=2" for nic in lab.nics),
            ]
        )
    assert refresh(lab) == "ok"
    assert len(mark_rules(lab)) == 4 * len(lab.nics)


def test_connections_of_containers_still_use_main(lab: Lab, container: Container) -> None:
    """Containers' connections leave through main, with the primary's address."""
    lab.reach.listen(lab.beyond[0])
    talk = "exec 3<>/dev/tcp/198.51.100.10/7; head -n 1 <&3"
    assert "198.51.100.10" in container.namespace.run(["timeout", "3", "bash", "-c", talk]).stdout


def test_connections_survive_replacement_of_the_table(lab: Lab, container: Container) -> None:
    secondary = lab.nics[1].addresses[1]
    held = [container.hold(client, secondary) for client in (lab.beyond[0], lab.neighbours[2])]
    assert all(each.is_alive() for each in held)
    before, rules = ruleset(lab), mark_rules(lab)
    assert refresh(lab) == "ok"
    lab.run(["nft", "delete", "table", "inet", "cloud_network"])
    assert refresh(lab) == "ok"
    assert "replies" in table(lab)
    assert all(each.is_alive() for each in held)
    lab.kill("fetcher")
    lab.kill("netagent")
    for name in ("netagent", "fetcher"):
        lab.start(name)
    lab.wait_for(
        lambda: status(lab)["state"] == "ok" and lab.path("/run/cloud-network/control.sock").exists(),
        message="the restarted fetcher",
    )
    lab.wait_for(lambda: state_of(lab) == "ok", message="state ok with netagent")
    assert all(each.is_alive() for each in held)
    assert (ruleset(lab), mark_rules(lab)) == (before, rules)
    for each in held:
        each.close()


def test_flushed_ruleset_is_repaired_by_the_timer(lab: Lab) -> None:
    before = lab.run(["nft", "-s", "list", "ruleset"]).stdout
    lab.run(["nft", "flush", "ruleset"])
    lab.wait_for(lambda: "replies" in table(lab), 30, "the table")
    lab.run(["nft", "-f", "-"], stdin=before.replace(table(lab), ""))
    lab.run(["nft", "flush", "chain", "inet", "cloud_network", "replies"])  # make the table incomplete
    lab.wait_for(lambda: "meta mark set" in table(lab).partition("chain published")[0], 30, "the chain to be filled")
    assert count(answered(lab, "tcp", lab.addresses)) == "25 of 25"


def test_flush_removes_the_table_and_refresh_restores_it(lab: Lab) -> None:
    before = ruleset(lab)
    assert send_command(lab, "flush")["ok"]
    assert (table(lab), mark_rules(lab)) == ("", [])
    assert ruleset(lab) == before
    lab.wait_for(lambda: refresh(lab) == "ok", message="state ok")
    assert ruleset(lab) == before
    assert count(answered(lab, "tcp", lab.addresses)) == "25 of 25"


def test_mark_is_added_and_removed_with_its_interface(lab: Lab) -> None:
    nic = lab.attach_interface(Interface("10.0.9.0/24", 1))
    lab.wait_for(lambda: state_of(lab) == "ok" and f'iif "{nic.name}"' in table(lab), 20, "a mark for the new link")
    assert all(answered(lab, "tcp", nic.addresses).values())
    lab.detach_interface(nic.mac)
    lab.wait_for(
        lambda: state_of(lab) == "ok" and len(re.findall("iif ", table(lab))) == len(lab.nics),
        20,
        "the removal of the link's mark",
    )
    assert len({rule["table"] for rule in mark_rules(lab)}) == len(lab.nics)


def doctor(lab: Lab, *arguments: str, user: str | None = None) -> dict[str, Any]:
    argv = [str(Path(sys.executable).with_name("cnctl")), "doctor", "--json", *arguments]
    done = lab.run(argv, user=user, check=False)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_doctor_follows_the_replies_of_a_published_port(lab: Lab) -> None:
    address, primary = lab.nics[1].addresses[1], lab.nics[0].addresses[0]
    for asked in (f"{address}:{PUBLISHED}", f"{primary}:{PUBLISHED}", f"[{lab.nics[1].ipv6[0]}]:{PUBLISHED}"):
        found = doctor(lab, asked)
        assert (found["ok"], found["steps"][-1]["step"]) == (True, "published"), found["steps"][-1]
        assert "whose replies to" in found["steps"][-1]["found"]
    assert "publishes no port 9 " in doctor(lab, f"{address}:9")["steps"][-1]["found"]
    unprivileged = doctor(lab, f"{address}:{PUBLISHED}", user="daemon")["steps"][-1]
    assert (unprivileged["ok"], "only root" in unprivileged["found"]) == (None, True)
    lab.stop("fetcher")
    lab.run(["nft", "delete", "table", "inet", "cloud_network"])
    found = doctor(lab, f"{address}:{PUBLISHED}")
    assert (found["steps"][-1]["ok"], "is missing" in found["steps"][-1]["found"]) == (False, True)
    lab.run(["sysctl", "-q", "-w", f"net.ipv4.conf.{lab.nics[1].name}.rp_filter=1"])
    lab.start("fetcher")
    lab.wait_for(lambda: state_of(lab) == "degraded", message="state degraded")
    found = doctor(lab, f"{address}:{PUBLISHED}")
    assert (found["broken"], found["steps"][-1]["do"]) == (
        "published",
        "sudo sysctl net.ipv4.conf.all.src_valid_mark=1",
    )
    lab.run(["sysctl", "-q", "-w", f"net.ipv4.conf.{lab.nics[1].name}.rp_filter=2"])
    assert refresh(lab) == "ok"


def state_of(lab: Lab) -> str:
    """Return the state after a refresh; "" while the fetcher is stopped."""
    try:
        return refresh(lab)
    except OSError:
        return ""


def test_off_removes_the_table_and_the_rules(lab: Lab) -> None:
    """The last test of this lab."""
    before = ruleset(lab)
    lab.write_config(OFF)
    lab.kill("netagent", 1)
    lab.kill("fetcher", 1)
    lab.wait_for(
        lambda: (table(lab), mark_rules(lab)) == ("", []), 10, "the removal of the table and of the rules for marks"
    )
    assert refresh(lab) == "ok"
    assert ruleset(lab) == before
    assert audit(lab)[-1]["seq"] > 0
    assert [line for line in audit(lab) if line["request"] == "settings"], "netagent logs the removal of the table"
    lab.restart("netagent")
    lab.wait_for(lambda: state_of(lab) == "ok", message="state ok")
    assert table(lab) == ""
    found = doctor(lab, f"{lab.nics[1].addresses[1]}:{PUBLISHED}")
    assert found["broken"] == "published"
    assert 'ForwardedReplies="mark"' in found["steps"][-1]["do"]
