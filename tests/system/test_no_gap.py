"""No gaps: desired objects exist at all times, as proved by every kernel event and every packet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from signal import SIGKILL, SIGTERM

import pytest

from tests.lab import Interface, Lab, Nic, Spec
from tests.lab.spec import neighbour_address
from tests.system.connections import open_connections
from tests.system.monitor import Events, monitor, stream
from tests.system.service import CONFIG, cnctl, ip, kernel_addresses, refresh, running_lab, wait_until_healthy


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=4)) as made:
        yield made


def is_ready(lab: Lab) -> bool:
    """Return True if a refresh ends with state ok and `cnctl status` succeeds."""
    try:
        return refresh(lab) == "ok" and cnctl(lab, "status").returncode == 0
    except OSError:  # the fetcher does not listen yet
        return False


@pytest.mark.parametrize("number", [SIGTERM, SIGKILL])
def test_restart_and_crash_change_nothing(lab: Lab, number: int) -> None:
    """An upgrade restarts all daemons; the objects are recognised, and the kernel reports no change."""
    with ExitStack() as stack:
        events = stack.enter_context(monitor(lab))
        for nic in lab.nics:
            stack.enter_context(stream(lab, nic.addresses[1], "beyond"))
        for names in (["fetcher"], ["netagent"], ["netagent", "fetcher"]):
            for name in names:
                lab.daemons.kill(name, number)
            lab.wait_for(lambda names=names: not any(map(lab.daemons.running, names)), message="the daemons to end")  # type: ignore[misc]
            for name in reversed(names):  # the wrong order: one waits for the other
                lab.start(name)
            lab.wait_for(lambda: is_ready(lab), 20, "all daemons")
    assert events.lines == []


def detours(lab: Lab) -> list[str]:
    """Return ARP requests for hosts of other links' subnets: a packet left through the wrong link."""
    hosts = {neighbour_address(nic.subnet) for nic in lab.nics[1:]}
    return [each["dst"] for each in ip(lab, "neigh") if each["dst"] in hosts]


def test_new_links_take_no_connection_of_the_others() -> None:
    """Main gets the new subnet's route after the tables of the others; one packet in between would cost 3 s."""
    with Lab(Spec.aws(interfaces=5, addresses=4)) as lab:
        lab.write_config(CONFIG)
        with open_connections(lab) as found:
            for name in ("netagent", "fetcher"):
                lab.start(name)
            wait_until_healthy(lab)
            assert detours(lab) == []
            nic = lab.attach_interface(Interface("10.0.9.0/24", 3))
            wait_until_healthy(lab)
            assert nic.addresses[0] in kernel_addresses(lab)
            assert detours(lab) == []
        assert found.broken == {}


def lost_of_others(events: Events, nic: Nic) -> list[str]:
    """Return the removed objects, except the first address of an interface.

    An address whose prefix length changes exists with both lengths for a moment, and is not lost.
    """
    first = nic.addresses[0]
    lost = [line for line in events.gone if "proto 209" in line or "inet " in line or "local" in line]
    others = [line for line in lost if f" {first} " not in f"{line} ".replace("/", " ")]
    return [line for line in others if not has_other_length(events.lines, line)]


def has_other_length(lines: list[str], deletion: str) -> bool:
    """Return True if the deleted address was there with another prefix length, and stayed."""
    found = re.search(r" inet (\S+)/\d+ ", deletion)
    if found is None:
        return False
    before = lines[: lines.index(deletion)]
    about = [line for line in before if f" inet {found[1]}/" in line]
    return bool(about) and not about[-1].startswith("Deleted")


def test_removed_first_address_leaves_siblings_without_gap(lab: Lab) -> None:
    """The address is owned, and has the subnet's length; the kernel would remove its secondaries with it."""
    nic = lab.nics[1]
    with ExitStack() as stack:
        events = stack.enter_context(monitor(lab))
        stack.enter_context(stream(lab, nic.addresses[1], "beyond", ("neighbour", 0), ("neighbour", 1)))
        lab.remove_address(nic.mac, nic.addresses[0])
        assert refresh(lab) == "ok"
        wait_until_healthy(lab)
        assert nic.addresses[0] not in kernel_addresses(lab)
    assert events.gone
    assert lost_of_others(events, nic) == []


def test_changed_lease_leaves_siblings_without_gap(lab: Lab) -> None:
    """As a DHCP client does: it removes address and routes of the old lease, then adds those of the new one."""
    nic, new = lab.nics[0], "10.0.1.99"
    first, dev = nic.addresses[0], nic.name
    with ExitStack() as stack:
        events = stack.enter_context(monitor(lab))
        stack.enter_context(stream(lab, nic.addresses[1], "beyond", ("neighbour", 0), ("neighbour", 1)))
        lab.add_address(nic.mac, new)
        lab.remove_address(nic.mac, first)
        lab.batch([f"address del {first}/24 dev {dev}"])
        lab.batch(
            [
                f"address add {new}/24 brd + dev {dev} valid_lft 3600 preferred_lft 3600",
                f"route add default via {nic.gateway} dev {dev} proto dhcp src {new} metric 100",
            ]
        )
        lab.wait_for(lambda: is_ready(lab), 20, "all daemons")
        wait_until_healthy(lab)
    assert lost_of_others(events, nic) == []
    assert all(lab.reachability().values())
