"""Interfaces that the metadata no longer lists while their link is up are kept for a minute."""

from __future__ import annotations

import time

from tests.lab import Spec
from tests.system.service import (
    kernel,
    kernel_addresses,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
    without_order,
)


def test_interfaces_missing_for_seconds_are_kept() -> None:
    """Azure answers 200 OK with one of three NICs. After a minute the others are removed; connections of the first
    survive.
    """
    with running_lab(Spec.cloud("azure", interfaces=3, addresses=3), "", "netagent", "fetcher") as lab:
        missing = lab.nics[1:]
        held = [lab.hold_connection(nic.addresses[1]) for nic in lab.nics]
        lab.metadata.load(lab.nics[:1])
        began = time.monotonic()
        for _ in range(10):
            assert refresh(lab) == "degraded"
            assert set(lab.addresses) <= kernel_addresses(lab)
            time.sleep(0.5)
        message = status(lab)["last_error"]["message"]
        assert all(nic.mac in message for nic in missing)
        assert "no longer listed, but its link is up; removed at" in message
        assert all(lab.reachability().values())
        lab.metadata.load(lab.nics)
        refresh(lab)
        wait_until_healthy(lab)
        assert all(each.alive() for each in held)

        lab.metadata.load(lab.nics[:1])
        began = time.monotonic()
        assert refresh(lab) == "degraded"
        gone = {address for nic in missing for address in nic.addresses}
        lab.wait_for(lambda: not gone & kernel_addresses(lab), 80, "the removal of the interfaces")
        assert time.monotonic() - began > 60
        assert held[0].alive()
        assert all(lab.reachability(lab.nics[0].addresses).values())


def test_restart_keeps_missing_interfaces_for_a_minute() -> None:
    """A new process knows only the kernel: objects of an earlier one are first kept, and then removed or adopted."""
    with running_lab(Spec.cloud("azure", interfaces=3, addresses=3), "", "netagent", "fetcher") as lab:
        missing = lab.nics[1:]
        held = [lab.hold_connection(nic.addresses[1]) for nic in lab.nics]
        before = without_order(kernel(lab))
        lab.metadata.load(lab.nics[:1])
        began = time.monotonic()
        lab.kill("fetcher")
        lab.start("fetcher")
        lab.wait_for(lambda: lab.path("/run/cloud-network/control.sock").exists(), 20, "the fetcher")
        time.sleep(2)  # the socket of the killed fetcher still exists
        for _ in range(5):
            refresh(lab)
            assert set(lab.addresses) <= kernel_addresses(lab)
            assert all(lab.reachability().values())
            time.sleep(1)
        message = status(lab)["last_error"]["message"]
        assert all(nic.mac in message for nic in missing)
        assert "no longer listed, but its link is up; removed at" in message
        lab.metadata.load(lab.nics[:2])
        refresh(lab)
        gone = set(lab.nics[2].addresses)
        lab.wait_for(lambda: not gone & kernel_addresses(lab), 80, "the removal of the interface")
        assert time.monotonic() - began > 60
        lab.metadata.load(lab.nics)
        refresh(lab)
        wait_until_healthy(lab)
        assert without_order(kernel(lab)) == before
        assert all(each.alive() for each in held[:2])
