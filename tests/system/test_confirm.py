"""Between apply and confirm: a change that disconnects the metadata server or a gateway is rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from signal import SIGHUP

import pytest

from tests.lab import Lab, Nic, Spec
from tests.system.service import (
    CONFIG,
    MACS,
    audit,
    ip,
    kernel,
    kernel_addresses,
    own_objects,
    refresh,
    running_lab,
    send_command,
    status,
    wait_until_healthy,
    without_order,
)

NEW_ADDRESS = "10.0.2.77"
META = "/latest/meta-data/"  # requested between apply and confirm, before the gateways are probed


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=3)) as made:
        yield made


def verdicts(lab: Lab) -> list[str]:
    return [line["verdict"] for line in audit(lab)]


def silence_gateway(lab: Lab, nic: Nic) -> None:
    """Make the router ignore this interface's ARP, and delete the instance's neighbour entry."""
    lab.run(["nft", "-f", "-"], "cloud", stdin=f"table bridge silence {{ chain c {{ type filter hook prerouting "
            f"priority -350; iifname {nic.port} ether type arp drop; }}; }}")  # fmt: skip
    lab.batch([f"neigh flush dev {nic.name}"])


def restore_gateway(lab: Lab) -> None:
    lab.run(["nft", "delete", "table", "bridge", "silence"], "cloud")


def with_open_change(lab: Lab, nic: Nic, address: str) -> None:
    """Apply a change whose confirmation waits for a metadata server that takes seconds for a few bytes."""
    lab.metadata.fail("drip", META, interval=0.004)
    lab.add_address(nic.mac, address)
    lab.kill("fetcher", SIGHUP)
    lab.wait_for(lambda: verdicts(lab)[-1] == "applied", 15, "the change to be applied")


def test_lost_gateway_rolls_the_change_back(lab: Lab) -> None:
    nic, before, count = lab.nics[1], kernel(lab), len(audit(lab))
    refresh(lab)
    with_open_change(lab, nic, NEW_ADDRESS)
    assert NEW_ADDRESS in kernel_addresses(lab)
    silence_gateway(lab, nic)
    lab.wait_for(lambda: verdicts(lab)[-1] != "applied", 20, "a verdict")
    assert "netagent: a change takes seconds" in lab.log("fetcher")
    assert verdicts(lab)[count:] == ["applied", "rolled back"]
    assert without_order(kernel(lab)) == without_order(before)
    lab.wait_for(lambda: status(lab)["netagent"]["verdict"] == "rolled back", 5, "the status")
    lab.wait_for(lambda: "next try at" in str(status(lab)["last_error"]), 5, "the reason")
    assert f"gateway {nic.gateway} on {nic.name} no longer resolves" in status(lab)["last_error"]["message"]
    lab.metadata.clear()
    restore_gateway(lab)
    assert refresh(lab) == "degraded", "a plain refresh does not retry"
    (held,) = send_command(lab, "plan")["result"]["held"]
    assert held.startswith(f"{nic.name}: gateway {nic.gateway} on {nic.name} no longer resolves"), held
    assert verdicts(lab)[count:] == ["applied", "rolled back"]
    other = nic.addresses[1]
    lab.batch([f"address del {other}/32 dev {nic.name}"])
    lab.wait_for(lambda: other in kernel_addresses(lab), 15, "the repair of another address of the link")
    assert NEW_ADDRESS not in kernel_addresses(lab), "what was rolled back is not repeated beside it"
    assert send_command(lab, "retry")["ok"]
    wait_until_healthy(lab)
    assert NEW_ADDRESS in kernel_addresses(lab)
    assert status(lab)["last_error"] is None


def test_link_set_down_meanwhile_does_not_roll_the_change_back(lab: Lab) -> None:
    """No change of cloud-network sets a link down, so a rollback would only delay the repair."""
    nic, count = lab.nics[1], len(audit(lab))
    refresh(lab)
    with_open_change(lab, nic, NEW_ADDRESS)
    lab.batch([f"link set {nic.name} down"])
    lab.wait_for(lambda: verdicts(lab)[-1] != "applied", 20, "a verdict")
    assert verdicts(lab)[count : count + 2] == ["applied", "confirmed"]
    lab.metadata.clear()
    wait_until_healthy(lab)
    assert NEW_ADDRESS in kernel_addresses(lab)


def test_a_change_whose_gateways_answer_is_confirmed(lab: Lab) -> None:
    """The same without a disconnection: a slow server does not count as lost."""
    count = len(audit(lab))
    with_open_change(lab, lab.nics[1], NEW_ADDRESS)
    lab.wait_for(lambda: verdicts(lab)[-1] != "applied", 20, "a verdict")
    assert verdicts(lab)[count:] == ["applied", "confirmed"]


def test_gateway_that_was_silent_before_does_not_block_changes(lab: Lab) -> None:
    nic = lab.nics[1]
    silence_gateway(lab, nic)
    lab.add_address(nic.mac, NEW_ADDRESS)
    assert refresh(lab) == "ok"
    assert verdicts(lab)[-2:] == ["applied", "confirmed"]
    assert NEW_ADDRESS in kernel_addresses(lab)


def test_gateway_of_another_link_does_not_roll_back(lab: Lab) -> None:
    with_open_change(lab, lab.nics[1], NEW_ADDRESS)
    silence_gateway(lab, lab.nics[2])
    lab.wait_for(lambda: verdicts(lab)[-1] != "applied", 20, "a verdict")
    assert verdicts(lab)[-2:] == ["applied", "confirmed"]


def test_lost_metadata_server_rolls_the_change_back(lab: Lab) -> None:
    """The server stops between the two; the fetcher cannot see whether its change caused that."""
    before = kernel(lab)
    with_open_change(lab, lab.nics[1], NEW_ADDRESS)
    lab.metadata.fail("refuse")
    lab.wait_for(lambda: verdicts(lab)[-1] != "applied", 30, "a verdict")
    assert verdicts(lab)[-2:] == ["applied", "rolled back"]
    assert without_order(kernel(lab)) == without_order(before)
    answered = "the metadata server does not answer"
    lab.wait_for(lambda: answered in str(status(lab)["netagent"]["reason"]), 10, "the reason in the status")
    lab.metadata.clear()
    wait_until_healthy(lab)
    assert NEW_ADDRESS in kernel_addresses(lab)


def test_server_lost_for_another_reason_holds_no_change(lab: Lab) -> None:
    """During a change of another link, the metadata server becomes unreachable, also after the rollback."""
    [route] = ip(lab, "route", "get", "169.254.169.254")
    egress = next(nic for nic in lab.nics if nic.name == route["dev"])
    other = next(nic for nic in lab.nics if nic != egress)
    with_open_change(lab, other, other.subnet.replace(".0/24", ".77"))
    lab.run(["nft", "-f", "-"], "cloud", stdin=f"table bridge silence {{ chain c {{ type filter hook prerouting "
            f"priority -350; iifname {egress.port} ip daddr 169.254.169.254 drop; }}; }}")  # fmt: skip
    lab.metadata.clear()
    lab.wait_for(lambda: verdicts(lab)[-1] != "applied", 30, "a verdict")
    assert "rolled back" in verdicts(lab)
    lab.wait_for(lambda: set(other.addresses) | {other.subnet.replace(".0/24", ".77")} <= kernel_addresses(lab), 60)
    assert "next try" not in lab.log("fetcher")


@pytest.mark.parametrize("route", [[], ["route add 169.254.169.254 via 10.0.1.1 dev eth1"]])
def test_silent_new_gateway_is_not_used(route: list[str]) -> None:
    """The metadata has a wrong subnet for the primary, and therefore a wrong gateway, which no host has."""
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        nic, other = lab.nics
        assert nic.name == "eth1"
        lab.batch(route)
        lab.write_config(CONFIG)
        connection = lab.hold_connection(nic.addresses[0])
        lab.metadata.content(f"{MACS}{nic.mac}/subnet-ipv4-cidr-block", "10.0.0.0/16")
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: "gateway 10.0.0.1" in str(status(lab).get("last_error")), 30, "the reason")
        assert "rolled back" not in verdicts(lab)
        assert connection.alive()
        assert set(other.addresses) <= kernel_addresses(lab), "the rest is configured"
        assert not any(route.get("gateway") == "10.0.0.1" for route in own_objects(lab, "route-4"))
        lab.metadata.clear()
        assert refresh(lab) in ("ok", "degraded")
        wait_until_healthy(lab)
        assert all(lab.reachability().values())


def test_unconfirmable_change_is_not_tried(lab: Lab) -> None:
    """Without the metadata server, a change would be made and rolled back repeatedly."""
    nic, lines = lab.nics[1], audit(lab)
    lab.metadata.fail("refuse")
    lab.batch([f"address del {nic.addresses[1]}/32 dev {nic.name}"])
    lab.wait_for(lambda: status(lab)["state"] == "error", 10, "the unreachable metadata server to be reported")
    lab.batch([f"address del {nic.addresses[2]}/32 dev {nic.name}"])
    lab.wait_for(lambda: len(status(lab)["links"][str(index(lab, nic))]["drift"]) == 2, 10, "the drift to be reported")
    assert audit(lab) == lines
    lab.metadata.clear()
    wait_until_healthy(lab)
    assert set(lab.addresses) <= kernel_addresses(lab)


def index(lab: Lab, nic: Nic) -> int:
    return next(int(link["ifindex"]) for link in ip(lab, "link") if link["ifname"] == nic.name)
