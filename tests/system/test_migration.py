"""The steps of docs/migration.md: the commands are read from the page and run."""

from __future__ import annotations

import re

from tests.lab import Lab, Spec
from tests.lab.lab import CHECKOUT
from tests.system.service import CONFIG, ip, kernel_addresses, status, wait_until_healthy

PAGE = CHECKOUT / "docs/migration.md"


def commands(section: str, containing: str) -> str:
    """Return the block of commands in a section that contains this text."""
    text = PAGE.read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    block: str
    [block] = [each for each in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE) if containing in each]
    return block


def create_originals_state(lab: Lab) -> None:
    """Create the state of the Go original: addresses with their subnet's length, tables, rules without a protocol."""
    lines = []
    for nic in lab.nics:
        index = lab.path(f"/sys/class/net/{nic.name}/ifindex").read_text().strip()
        table = 9999 + int(index)
        lines += [f"link set {nic.name} up"]
        lines += [f"address replace {each}/{nic.network.prefixlen} dev {nic.name}" for each in nic.addresses]
        lines += [f"route replace default via {nic.gateway} dev {nic.name} table {table} onlink"]
        lines += [f"rule add {way} {each} table {table}" for each in nic.addresses for way in ("from", "to")]
    lab.batch(lines)


def rules(lab: Lab) -> list[str]:
    return [str(each["table"]) for each in ip(lab, "rule") if str(each["table"]).startswith("1")]


def start(lab: Lab) -> None:
    lab.write_config(CONFIG)
    for name in ("netagent", "fetcher"):
        lab.start(name)


def test_page_removes_the_originals_objects() -> None:
    with Lab(Spec.aws(interfaces=3, addresses=3)) as lab:
        create_originals_state(lab)
        assert len(rules(lab)) == 18
        lab.run(["bash", "-ec", commands("From the Go original", "route flush")])
        assert rules(lab) == []
        assert kernel_addresses(lab) >= set(lab.addresses), "the original's addresses stay and are adopted"
        start(lab)
        wait_until_healthy(lab)
        assert {str(each.get("protocol")) for each in ip(lab, "rule") if str(each["table"]).startswith("1")} == {"209"}
        assert all(lab.reachability().values())
        assert lab.dropped() == 0, lab.lost()


def test_remaining_original_objects_are_reported() -> None:
    with Lab(Spec.aws(interfaces=3, addresses=3)) as lab:
        create_originals_state(lab)
        start(lab)
        lab.wait_for(
            lambda: status(lab).get("state") == "degraded", 20, "state degraded, because of the original's objects"
        )
        lab.wait_for(
            lambda: "cloud-network did not add" in str(status(lab)["last_error"]),
            10,
            "the original's route to be named",
        )
        assert len([each for each in ip(lab, "rule") if each.get("protocol") is None and each["priority"]]) >= 18
