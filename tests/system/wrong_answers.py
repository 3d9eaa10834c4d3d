"""Wrong answers of a plausible metadata server, each with the expected reaction of the host.

For tests/system/test_wrong_answers.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.lab import Interface, Lab, Spec
from tests.lab.spec import beyond_address
from tests.system.connections import Connections, open_connections
from tests.system.service import CONFIG, MACS, audit, refresh, status, wait_until_healthy

UNUSED_ADDRESS, NEIGHBOUR = "10.0.1.9", "10.0.1.250"
"""An address in the primary's subnet that no host has, and one of a host that does not forward."""
READS = 3


def spec(provider: str) -> Spec:
    """Return three interfaces; the primary has only the address from DHCP."""
    subnets = [("10.0.1.0/24", 1), ("10.0.2.0/24", 3), ("10.0.3.0/24", 3)]
    if provider == "gcp":
        ranges = tuple(f"10.0.{number}.128/28" for number in (1, 2, 3))
        return Spec(tuple(Interface(f"10.0.{n}.0/24", 1, prefixes=(ranges[n - 1],)) for n in (1, 2, 3)), provider)
    return Spec(tuple(Interface(subnet, count) for subnet, count in subnets), provider)


def primary_subnet(subnet: str) -> Callable[[Lab], None]:
    """Return a change that gives the primary another subnet, on EC2."""
    return lambda lab: lab.metadata.content(f"{MACS}{lab.nics[0].mac}/subnet-ipv4-cidr-block", subnet)


def changed(device: int, **fields: object) -> Callable[[Lab], None]:
    """Return a change of an interface in the metadata only."""

    def change(lab: Lab) -> None:
        new = replace(lab.nics[device], **fields)  # type: ignore[arg-type]
        lab.metadata.load([new if nic.device == device else nic for nic in lab.nics])

    return change


def with_range(device: int, prefix: str) -> Callable[[Lab], None]:
    """Return a change that adds an alias range in the metadata only."""
    return lambda lab: changed(device, prefixes=(*lab.nics[device].prefixes, prefix))(lab)


def with_address(device: int, address: str) -> Callable[[Lab], None]:
    """Return a change that adds an address in the metadata only."""
    return lambda lab: changed(device, addresses=(*lab.nics[device].addresses, address))(lab)


@dataclass(frozen=True)
class WrongAnswer:
    """A wrong answer, and the text that an error or a notice must contain; "" if the answer is usable."""

    provider: str
    apply: Callable[[Lab], None]
    named: str | None


CASES: Mapping[str, WrongAnswer] = {
    "subnet of the primary, /31": WrongAnswer("aws", primary_subnet("10.0.1.10/31"), None),
    "subnet of the primary, /30, so a gateway that no host has": WrongAnswer(
        "aws", primary_subnet("10.0.1.8/30"), f"gateway {UNUSED_ADDRESS} of eth0: it does not answer ARP"
    ),
    "gateway of the primary that does not answer": WrongAnswer(
        "gcp", changed(0, router=NEIGHBOUR), f"gateway {NEIGHBOUR} of eth0: it does not answer ARP"
    ),
    "gateway of the primary that answers and does not forward": WrongAnswer(
        "tencent", changed(0, router=NEIGHBOUR), f"{NEIGHBOUR} is not known as a gateway on eth0"
    ),
    "gateway of a secondary that does not forward": WrongAnswer(
        "tencent", changed(1, router="10.0.2.250"), "10.0.2.250 is not known as a gateway on eth2"
    ),
    "address of the host beyond, a connection's peer": WrongAnswer(
        "aws", with_address(0, beyond_address(0)), f"'{beyond_address(0)}' is not inside 10.0.1.0/24"
    ),
    "alias range 10.128.0.0/9": WrongAnswer("gcp", with_range(0, "10.128.0.0/9"), "left out: 10.128.0.0/9 of eth0"),
    "alias range 172.16.0.0/12": WrongAnswer("gcp", with_range(1, "172.16.0.0/12"), "left out: 172.16.0.0/12 of eth2"),
    "alias range 192.168.0.0/16": WrongAnswer(
        "gcp", with_range(1, "192.168.0.0/16"), "left out: 192.168.0.0/16 of eth2"
    ),
}


@contextmanager
def serving(case: WrongAnswer, *, at_start: bool) -> Iterator[tuple[Lab, Connections, list[str]]]:
    """Give the wrong answer from the start, or later. Yields the lab, the connections and netagent's verdicts."""
    with Lab(spec(case.provider)) as lab:
        lab.write_config(CONFIG)
        if not at_start:
            start(lab)
            wait_until_healthy(lab)
        before = len(audit(lab))
        with open_connections(lab) as found:
            case.apply(lab)
            if at_start:
                start(lab)
                lab.wait_for(lambda: status(lab).get("fetched_at"), 20, "the first pass")
            for _ in range(READS):
                refresh(lab)
                time.sleep(0.5)
        yield lab, found, [line["verdict"] for line in audit(lab)[before:]]


def start(lab: Lab) -> None:
    """Start the two daemons that configure the network, the second one after the first listens."""
    lab.start("netagent")
    lab.wait_for(lambda: "cloud-network-netagent: ready" in lab.log("netagent"), 20, "netagent")
    lab.start("fetcher")
