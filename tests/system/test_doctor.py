"""`cnctl doctor`: each step is broken in turn, and exactly that step is reported to an ordinary user."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, Nic, Spec
from tests.system.service import cnctl, ip, refresh, running_lab, status

STEPS = ["metadata", "interface", "address", "rule", "table", "gateway", "neighbour", "rp_filter", "mtu"]


@pytest.fixture(scope="module")
def stopped() -> Iterator[Lab]:
    """A lab with a healthy network, whose fetcher no longer repairs it."""
    with running_lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.stop("fetcher")
        yield lab


@pytest.fixture
def lab(stopped: Lab) -> Iterator[Lab]:
    mtu = ip(stopped, "link", "show", "dev", second(stopped).name)[0]["mtu"]
    yield stopped
    stopped.run(["ip", "link", "set", second(stopped).name, "mtu", str(mtu)])  # AWS's metadata has no MTU
    repair(stopped)


def is_healthy_again(lab: Lab) -> bool:
    """Return True if a refresh ends with state ok; False while the fetcher does not listen."""
    try:
        return refresh(lab) == "ok"
    except (FileNotFoundError, ConnectionRefusedError):
        return False


def repair(lab: Lab) -> None:
    """Let the fetcher repair everything that a test broke."""
    lab.start("fetcher")
    lab.wait_for(lambda: is_healthy_again(lab), 10, "the repair")
    lab.stop("fetcher")


def second(lab: Lab) -> Nic:
    return lab.nics[1]


def table(lab: Lab) -> int:
    return int(next(link["table"] for link in status(lab)["links"].values() if link["name"] == second(lab).name))


def doctor(lab: Lab, *arguments: str) -> dict[str, Any]:
    """Return the steps without that of the fetcher, which most tests stop, so that it repairs nothing."""
    ended = cnctl(lab, "doctor", "--json", *arguments)
    assert ended.stdout, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    fetcher, *found["steps"] = found["steps"]
    assert (fetcher["step"], fetcher["ok"]) == ("fetcher", lab.daemons.running("fetcher"))
    assert fetcher["ok"] or found["broken"] == "fetcher"
    found["broken"] = next((step["step"] for step in found["steps"] if step["ok"] is False), None)
    assert [step["step"] for step in found["steps"]] == STEPS
    marks = [step["ok"] for step in found["steps"]]
    at = len(marks) if found["broken"] is None else STEPS.index(found["broken"])
    assert marks == [True] * at + [False, *[None] * (len(marks) - at - 1)] * (at < len(marks))
    assert ended.returncode == (0 if found["ok"] else 1)
    return found


def test_nothing_is_broken(lab: Lab) -> None:
    for address in lab.addresses:
        assert doctor(lab, address)["broken"] is None
    assert all(lab.reachability().values())


BREAK = {
    "interface": "link set {dev} down",
    "address": "address del {address}/32 dev {dev}",
    "rule": "rule del from {subnet} iif lo lookup {table}",
    "table": "route del default table {table}",
    "gateway": "route replace default via {other} dev {dev} table {table}",
    "mtu": "link set {dev} mtu 1000",
}


@pytest.mark.parametrize("broken", BREAK)
def test_broken_step_is_named_with_its_command(lab: Lab, broken: str) -> None:
    nic = second(lab)
    address = nic.addresses[1]
    other = str(nic.gateway).rsplit(".", 1)[0] + ".99"
    command = BREAK[broken].format(dev=nic.name, address=address, subnet=nic.subnet, table=table(lab), other=other)
    lab.run(["ip", *command.split()])
    found = doctor(lab, address)
    assert found["broken"] == broken
    look = next(step["look"] for step in found["steps"] if step["ok"] is False)
    assert lab.run(shlex.split(look), check=False).stderr == ""
    if broken != "mtu":
        assert not all(lab.reachability([address]).values())
    do = next(step["do"] for step in found["steps"] if step["ok"] is False)
    for repair in do.split("; then: ")[:-1]:
        lab.run(shlex.split(repair.removeprefix("sudo ")))


def test_first_step_and_main_rule_are_checked(lab: Lab) -> None:
    address = second(lab).addresses[1]
    for rule in (
        ["from", second(lab).subnet, "iif", "lo", "lookup", str(table(lab)), "suppress_prefixlength", "0"],
        ["lookup", "main", "suppress_prefixlength", "0"],
    ):
        lab.run(["ip", "rule", "del", *rule])
        found = doctor(lab, address)
        assert found["broken"] == "rule"
        assert "suppress_prefixlength 0" in found["steps"][3]["found"]
        repair(lab)


def test_an_address_that_the_metadata_lacks(lab: Lab) -> None:
    found = doctor(lab, "10.0.2.99")
    assert found["broken"] == "metadata"
    assert "does not give this instance 10.0.2.99" in found["steps"][0]["found"]


def test_an_address_on_the_wrong_interface(lab: Lab) -> None:
    nic, address = second(lab), second(lab).addresses[1]
    lab.batch([f"address del {address}/32 dev {nic.name}", f"address add {address}/32 dev {lab.nics[0].name}"])
    found = doctor(lab, address)
    assert found["broken"] == "address"
    assert found["steps"][2]["found"] == f"it is on {lab.nics[0].name}, and should be on {nic.name}"
    assert found["steps"][2]["do"].startswith(f"sudo ip address del {address}/32 dev {lab.nics[0].name}")
    lab.run(["ip", "address", "del", f"{address}/32", "dev", lab.nics[0].name])


def test_a_gateway_that_does_not_answer(lab: Lab) -> None:
    """The gateway is probed, so an old or missing neighbour entry has no effect."""
    nic, address = second(lab), second(lab).addresses[1]
    gateway = str(nic.gateway)
    [router] = [link["ifname"] for link in json.loads(lab.run(["ip", "-j", "address"], "cloud").stdout)
                if any(info["local"] == gateway for info in link["addr_info"])]  # fmt: skip
    for state in ("failed", "none"):
        lab.run(["ip", "neigh", "replace", gateway, "dev", nic.name, "nud", state])
        assert doctor(lab, address)["broken"] is None
    lab.run(["ip", "link", "set", router, "arp", "off"], "cloud")
    lab.run(["ip", "neigh", "del", gateway, "dev", nic.name])
    found = doctor(lab, address)
    assert found["broken"] == "neighbour"
    assert found["steps"][6]["look"] == f"ip -s neigh show to {gateway} dev {nic.name}"
    assert not lab.reachability([address])[("beyond0", address)]
    lab.run(["ip", "link", "set", router, "arp", "on"], "cloud")


def test_strict_rp_filter_is_reported_only_if_it_drops(lab: Lab) -> None:
    nic, address = second(lab), second(lab).addresses[1]
    client = next(source for source, _ in lab.reachability([address]) if source.startswith("beyond"))
    assert client
    lab.run(["sysctl", "-q", "net.ipv4.conf.all.rp_filter=1", f"net.ipv4.conf.{nic.name}.rp_filter=1"])
    assert doctor(lab, address)["broken"] is None
    assert all(lab.reachability([address]).values()), "with the rules, the reverse path is correct"
    outside = json.loads(lab.run(["ip", "-j", "-4", "address", "show", "scope", "global"], "beyond").stdout)
    host = next(info["local"] for link in outside for info in link.get("addr_info", []))
    first = lab.nics[0]
    lab.run(["ip", "route", "add", host, "via", str(first.gateway), "dev", first.name])
    found = doctor(lab, address, "--from", host)
    assert found["broken"] == "rp_filter"
    assert not lab.reachability([address])[(client, address)]
    lab.run(["sysctl", "-q", "net.ipv4.conf.all.rp_filter=0", f"net.ipv4.conf.{nic.name}.rp_filter=2"])
    assert doctor(lab, address, "--from", host)["broken"] == "table", "without it, the reply leaves by the other link"
    lab.run(["ip", "route", "del", host])


def test_marks_are_ascii_without_utf_8(lab: Lab) -> None:
    address = second(lab).addresses[1]
    lab.run(["ip", "rule", "del", "from", second(lab).subnet, "iif", "lo", "lookup", str(table(lab))])
    script = str(Path(sys.executable).with_name("cnctl"))
    for encoding, right, wrong in (("utf-8", "✓", "✗"), ("ascii", "ok", "NO")):
        argv = ["env", f"PYTHONIOENCODING={encoding}", script, "doctor", address]
        ended = lab.run(argv, user="daemon", check=False)
        lines = ended.stdout.splitlines()
        assert ended.returncode == 1
        assert lines[0].startswith(f"{wrong} fetcher")
        assert f"{right} metadata" in ended.stdout
        assert f"{wrong} rule" in ended.stdout
        assert "look: ip -4 rule show" in ended.stdout
        assert "do:   sudo cnctl refresh" in ended.stdout
        assert f"{address}: the first failed step is fetcher" in lines


def test_invalid_address_exits_2(lab: Lab) -> None:
    for arguments in (["nonsense"], ["10.0.2.10", "--from", "x"], ["10.0.2.10", "--from", "::1"]):
        assert cnctl(lab, "doctor", *arguments).returncode == 2


@pytest.mark.parametrize("cloud", ["aws", "azure", "gcp", "oracle"])
def test_no_step_fails_on_a_working_cloud(cloud: str) -> None:
    """For both families; a missing IPv6 rule is reported as an IPv4 one is."""
    with Lab(Spec.cloud(cloud, interfaces=2, addresses=2, ipv6=1)) as lab:
        lab.write_config('[Netagent]\nAllowKinds = "veth"\nAllowAddresses = "2001:db8::/32"\n')
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: all(lab.reachability().values()), 20, "all addresses")
        for address in (*lab.addresses, *lab.addresses6):
            found = doctor(lab, address)
            assert found["broken"] is None, found
        lab.stop("fetcher")
        lab.run(["ip", "-6", "rule", "del", "lookup", str(table(lab))])
        found = doctor(lab, second(lab).ipv6[0])
        assert (found["broken"], found["steps"][3]["look"]) == ("rule", f"ip -6 rule show table {table(lab)}")


@pytest.mark.parametrize("broken", ["", "from {address} lookup {table}"])
def test_rules_for_each_address_are_known_too(broken: str) -> None:
    with running_lab(
        Spec.aws(interfaces=2, addresses=2), '[Network]\nRules = "address"\n', "netagent", "fetcher"
    ) as lab:
        lab.stop("fetcher")
        address = second(lab).addresses[1]
        if broken:
            lab.run(["ip", "rule", "del", *broken.format(address=address, table=table(lab)).split()])
        assert doctor(lab, address)["broken"] == ("rule" if broken else None)
        assert doctor(lab, second(lab).addresses[0])["broken"] is None


def test_one_interface_needs_neither_rule_nor_table() -> None:
    with running_lab(Spec.aws(interfaces=1, addresses=2), "", "netagent", "fetcher") as lab:
        assert [doctor(lab, address)["broken"] for address in lab.addresses] == [None, None]
