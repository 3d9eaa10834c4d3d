"""Interfaces that only the host or only the metadata has, and how often they cause a read of the metadata."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.mismatch import InterfaceMismatch
from cloud_network.fetcher.network.desired import desired

from .values import host, instance, interface, link

KNOWN = instance(interface(1))
BOTH = host(link(1), link(2))


def test_new_link_is_chased_less_and_less_often() -> None:
    mismatch = InterfaceMismatch()
    assert mismatch.next_read(KNOWN, Config(), host(link(1)), 10.0) == math.inf
    at, reads = 100.0, []
    while at < math.inf:
        reads.append(at - 100.0)
        at = mismatch.next_read(KNOWN, Config(), BOTH, at)
    assert reads[:5] == [0.0, 0.0, 1.0, 2.0, 3.0]
    assert reads == sorted(reads)
    assert len(reads) < 15
    assert 30.0 <= reads[-1] < 60.0


def test_removed_link_causes_a_read() -> None:
    mismatch, both = InterfaceMismatch(), instance(interface(1), interface(2))
    assert mismatch.next_read(both, Config(), BOTH, 0.0) == math.inf
    assert mismatch.next_read(both, Config(), host(link(1)), 10.0) == 10.0
    assert mismatch.next_read(both, Config(), host(link(1)), 10.0) == 11.0
    assert mismatch.next_read(KNOWN, Config(), host(link(1)), 11.0) == math.inf


def test_second_new_link_starts_again() -> None:
    mismatch = InterfaceMismatch()
    mismatch.next_read(KNOWN, Config(), BOTH, 0.0)
    assert mismatch.next_read(KNOWN, Config(), BOTH, 50.0) == math.inf
    assert mismatch.next_read(KNOWN, Config(), host(link(1), link(2), link(3)), 60.0) == 60.0
    assert mismatch.next_read(KNOWN, Config(), host(link(1), link(2), link(3)), 60.0) == 61.0


def test_link_that_is_listed_causes_no_read() -> None:
    mismatch = InterfaceMismatch()
    assert mismatch.next_read(KNOWN, Config(), BOTH, 0.0) == 0.0
    assert mismatch.next_read(instance(interface(1), interface(2)), Config(), BOTH, 0.1) == math.inf


@pytest.mark.parametrize(
    ("odd", "config", "counts"),
    [
        (link(2), Config(), True),
        (link(2), Config(exclude=("eth1",)), False),
        (link(2, kind="veth"), Config(), False),
        (link(2, kind="veth"), Config(allow_kinds=("veth",)), True),
        (replace(link(2), mac=""), Config(), False),
    ],
)
def test_only_links_of_the_cloud_cause_a_read(odd: object, config: Config, counts: bool) -> None:
    assert (InterfaceMismatch().next_read(KNOWN, config, host(link(1), odd), 5.0) == 5.0) is counts  # type: ignore[arg-type]


def test_missing_interface_is_logged_once_per_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On bare metal, a VLAN that the operator makes after the metadata named it."""
    mismatch, cloud, vlan = (
        InterfaceMismatch(),
        instance(interface(1), interface(2)),
        replace(link(2, kind="vlan"), name="eth0.7"),
    )
    mac = interface(2).mac
    for here, config in (
        (host(link(1)), Config()),
        (host(link(1)), Config()),
        (host(link(1), vlan), Config()),
        (host(link(1), vlan), Config()),
    ):
        mismatch.log_missing(desired(cloud, config, here), here, config)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert f"{mac}, and no link here has that MAC" in said[0]
    key = f'{mac}{{}} eth0.7 has that MAC and is of kind vlan, which needs [Netagent] AllowKinds="vlan"'
    assert key.format(", and") in said[1]
    assert mismatch.notices == [key.format(":")]
    allowed = Config(allow_kinds=("vlan",))
    here = host(link(1), vlan)
    mismatch.log_missing(desired(cloud, allowed, here), here, allowed)
    assert mismatch.notices == []
