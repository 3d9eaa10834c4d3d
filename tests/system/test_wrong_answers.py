"""A metadata server with wrong answers, and an honest fetcher: no connection is lost, the rest is configured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.curl import ask
from tests.system.service import (
    CONFIG,
    audit,
    errors,
    ip,
    kernel,
    kernel_addresses,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
)
from tests.system.wrong_answers import CASES, NEIGHBOUR, changed, serving, start, with_range

NETWORK_DATA = "/openstack/latest/network_data.json"


@pytest.mark.parametrize("at_start", [True, False], ids=["from the start", "later"])
@pytest.mark.parametrize("name", CASES)
def test_wrong_answer_costs_no_connection(name: str, at_start: bool) -> None:
    """It is applied without harm, or left out and reported; nothing must be rolled back, and the rest is configured."""
    case = CASES[name]
    with serving(case, at_start=at_start) as (lab, connections, verdicts):
        print(f"\nlongest silence: {connections}")
        assert connections.broken == {}
        assert set(verdicts) <= {"applied", "confirmed"}
        assert set(lab.addresses) <= kernel_addresses(lab)
        assert status(lab)["state"] in ("ok", "degraded")
        assert (case.named or "") in f"{status(lab)['last_error']} {status(lab)['notices']}"
        lab.metadata.clear()
        lab.metadata.load(lab.nics)
        refresh(lab)
        wait_until_healthy(lab)
        assert all(lab.reachability().values())


@pytest.fixture(scope="module")
def resolved() -> Iterator[Lab]:
    """A host with systemd-resolved's stub, whose resolvers are in two of its subnets."""
    interfaces = tuple(Interface(f"10.0.{n}.0/24", 2, prefixes=(f"10.0.{n}.128/28",)) for n in (1, 2, 3))
    with Lab(Spec(interfaces)) as lab:
        lab.write_config(CONFIG + '[Network]\nPrefixes = "local"\n')
        lab.path("/etc/resolv.conf").write_text("nameserver 127.0.0.53\n")
        directory = lab.path("/run/systemd/resolve")
        directory.mkdir(parents=True)
        (directory / "resolv.conf").write_text("nameserver 10.0.2.53\nnameserver 10.0.1.53\n")
        start(lab)
        wait_until_healthy(lab)
        yield lab


@pytest.mark.parametrize(
    ("device", "address", "reason"),
    [
        (1, "10.0.2.53", "resolver"),
        (0, "10.0.1.53", "resolver"),
        (1, "10.0.2.1", "gateway"),
        (1, "10.0.1.1", "not inside"),
    ],
)
def test_address_of_a_resolver_or_gateway_is_named(resolved: Lab, device: int, address: str, reason: str) -> None:
    check_left_out(resolved, changed(device, addresses=(*resolved.nics[device].addresses, address)), address, reason)


@pytest.mark.parametrize(
    ("prefix", "reason"), [("10.0.2.48/28", "resolver"), ("10.0.2.0/30", "gateway"), ("10.0.3.0/28", "not inside")]
)
def test_range_around_a_resolver_or_gateway_is_named(resolved: Lab, prefix: str, reason: str) -> None:
    """The last one contains addresses of another link, and is in none of its own subnets."""
    check_left_out(resolved, with_range(1, prefix), prefix, reason)


def check_left_out(lab: Lab, change: Callable[[Lab], None], named: str, reason: str) -> None:
    """Check that a change of the metadata is left out and reported, and undo it."""
    before = kernel(lab)
    change(lab)
    assert refresh(lab) == "degraded"
    assert named in status(lab)["last_error"]["message"]
    assert reason in status(lab)["last_error"]["message"]
    assert kernel(lab) == before
    lab.metadata.load(lab.nics)
    refresh(lab)
    wait_until_healthy(lab)


def netagent_time(lab: Lab) -> int:
    """Return the nanoseconds of processor time of netagent: none passes without requests."""
    tasks = Path(f"/proc/{lab.daemons.pid('netagent')}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def test_refresh_with_standing_refusals_asks_netagent_nothing() -> None:
    """An address that is not private, a gateway that does not answer, and one that netagent does not know."""
    interfaces = (Interface("10.0.1.0/24", 2), Interface("198.18.7.0/24", 2), Interface("10.0.3.0/24", 2))
    with Lab(Spec(interfaces, "tencent")) as lab:
        lab.write_config(CONFIG)
        changed(0, router=NEIGHBOUR)(lab)
        start(lab)
        lab.wait_for(lambda: status(lab).get("state") == "degraded", 20, "the refusals")

        def is_idle() -> bool:
            before = netagent_time(lab)
            time.sleep(6)  # events of cloud-network's own changes cause one more read, after seconds
            return netagent_time(lab) == before

        lab.wait_for(is_idle, 60, "netagent to be idle")
        before, lines = netagent_time(lab), audit(lab)
        for _ in range(3):
            assert refresh(lab) == "degraded"
        assert netagent_time(lab) == before
        assert audit(lab) == lines


@pytest.fixture(scope="module")
def docker() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=3, addresses=3)) as lab:
        lab.write_config(CONFIG)
        lab.batch(["link add docker0 address 02:42:ac:11:00:01 type bridge", "address add 172.17.0.1/16 dev docker0"])
        lab.batch(["link set docker0 up"])
        start(lab)
        wait_until_healthy(lab)
        yield lab


@pytest.mark.parametrize("mac", ["00:00:00:00:00:00", "02:42:ac:11:00:01", "02:42:AC:11:00:01", "same"])
def test_metadata_mac_of_another_link_matches_nothing(docker: Lab, mac: str) -> None:
    """The MACs of lo and docker0, and a duplicate in lower and upper case, with another address."""
    lab, before, connection = docker, addresses(docker), docker.hold_connection(docker.nics[1].addresses[1])
    more = replace(lab.nics[1], mac=lab.nics[1].mac.upper() if mac == "same" else mac, addresses=("10.0.2.99",))
    lab.metadata.load([*lab.nics, replace(more, device=3)])
    assert refresh(lab) == "degraded"
    refresh(lab)
    more_now = addresses(lab) - before
    assert before <= addresses(lab)
    assert more_now <= ({(lab.nics[1].name, "10.0.2.99")} if mac == "same" else set()), "the first entry is used"
    assert connection.alive()
    assert more.mac.lower() in str(status(lab)["last_error"]).lower() + str(status(lab)["unknown_macs"])
    assert all(lab.reachability().values())
    lab.metadata.load(lab.nics)
    refresh(lab)


def test_macs_in_upper_case_are_the_same() -> None:
    with running_lab(Spec.aws(interfaces=3, addresses=3)) as lab:
        before, lines = kernel(lab), audit(lab)
        lab.metadata.load([replace(nic, mac=nic.mac.upper()) for nic in lab.nics])
        assert refresh(lab) == "ok"
        refresh(lab)
        assert kernel(lab) == before
        assert audit(lab) == lines


def test_mtu_that_is_odd_or_flaps_costs_no_connection() -> None:
    with Lab(Spec.cloud("openstack", interfaces=3, addresses=2)) as lab:
        lab.write_config(CONFIG)
        start(lab)
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        connection = lab.hold_connection(lab.nics[0].addresses[0])
        document = ask(lab, NETWORK_DATA).json
        usual = mtus(lab)
        for mtu, expected in ((1280, 1280), (65535, 65535), (100, 65535), *((1400, 1400), (1500, 1500)) * 5):
            for each in document["links"]:
                each["mtu"] = mtu
            lab.metadata.content(NETWORK_DATA, json.dumps(document))
            refresh(lab)
            lab.wait_for(lambda expected=expected: mtus(lab) == {expected}, 10, f"an MTU of {expected}")  # type: ignore[misc]
            assert connection.alive(), f"MTU {mtu}"
        assert "rolled back" not in {line["verdict"] for line in audit(lab)}
        lab.metadata.clear()
        refresh(lab)
        assert mtus(lab) == usual
        assert not any("Traceback" in line for line in errors(lab))


def addresses(lab: Lab) -> set[tuple[str, str]]:
    """Return every address of the host, with its link."""
    return {(str(link["ifname"]), str(each["local"])) for link in ip(lab, "address") for each in link["addr_info"]}


def mtus(lab: Lab) -> set[int]:
    """Return the MTUs of the cloud's links."""
    names = {nic.name for nic in lab.nics}
    return {int(link["mtu"]) for link in ip(lab, "link") if link["ifname"] in names}
