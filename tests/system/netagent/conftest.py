"""A lab with a running netagent and without a fetcher: the tests send its requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Spec
from tests.system.netagent.wire import CONFIG, Wire


def start(lab: Lab) -> None:
    """Start netagent and wait until it answers."""
    lab.start("netagent")
    lab.wait_for(lambda: answers(lab), 30, "netagent to answer")


def answers(lab: Lab) -> bool:
    """Return True if netagent answers and duplicate address detection has ended, so that the state stays constant."""
    try:
        with Wire(lab) as wire:
            return (
                wire.ask(request="status")["verdict"] == "ok" and "tentative" not in lab.run(["ip", "address"]).stdout
            )
    except OSError:
        return False


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.batch(["link set eth0 up"])  # the secondary (two interfaces come swapped): eth1 is the primary
        start(lab)
        yield lab


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    with Wire(lab) as wire:
        yield wire


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    """The lab, for tests that leave the kernel unchanged."""
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        lab.batch(
            [
                "link set eth0 up",
                "link add docker0 type bridge",
                "address add 172.17.0.1/16 dev docker0",
                "link set docker0 up",
                "link add dangling type veth peer name dangling1",
                "route add 192.168.77.0/24 via 10.0.1.1",
                "rule add pref 31005 from 10.9.9.9 lookup main",
            ]
        )
        lab.path("/etc/resolv.conf").write_text("nameserver 10.0.4.2\nnameserver fd00::53\n")
        start(lab)
        yield lab
