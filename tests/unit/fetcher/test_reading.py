"""One read of the metadata within its limits, and the proof of a removal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.metadata.providers.aws import Aws
from cloud_network.fetcher.metadata.reading import RemovalProof, read_metadata

from tests.lab.metadata.in_process import InProcess as Cloud

from .test_schedule import Clock
from .values import instance, interface, mac

BOTH, ONE = instance(interface(1), interface(2)), instance(interface(1))
PLUGGED = {mac(1): True, mac(2): True}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def proof(clock: Clock) -> RemovalProof:
    return RemovalProof(clock)


def test_read_counts_its_requests(cloud: Cloud, client: Client) -> None:
    found = read_metadata(Aws(client), 60.0)
    assert found.instance is not None
    assert len(found.instance.interfaces) == 2
    assert found.requests == len(cloud.requests())


def test_failed_read_says_why(cloud: Cloud, client: Client) -> None:
    cloud.fail("status", "*", status=500)
    found = read_metadata(Aws(client), 60.0)
    assert found.instance is None
    assert found.error is not None
    assert found.error.kind == "status"


def test_unexpected_exception_is_an_error_of_the_read(client: Client) -> None:
    class Broken(Aws):
        def read(self) -> Instance:
            raise KeyError("02:00:00:00:00:01")

    found = read_metadata(Broken(client), 60.0)
    assert found.error is not None
    assert "KeyError" in str(found.error)


@pytest.mark.exhaustive
def test_slow_server_does_not_outlast_the_deadline(cloud: Cloud, client: Client) -> None:
    """Each answer is within its limit, but all together exceed the deadline."""
    cloud.fail("drip", "*", interval=0.02)
    found = read_metadata(Aws(client), 0.5)
    assert found.error is not None
    assert found.error.kind == "timeout"
    assert found.seconds < 5
    cloud.clear()
    assert read_metadata(Aws(client), 60.0).error is None, "the next read has a new deadline"


def test_second_read_proves_a_removal(proof: RemovalProof) -> None:
    assert not proof.accept(ONE, removes=True)
    assert proof.accept(ONE, removes=True)
    assert not proof.accept(ONE, removes=True), "the next removal needs its own proof"


def test_differing_reads_prove_nothing(proof: RemovalProof) -> None:
    assert not proof.accept(ONE, removes=True)
    assert not proof.accept(instance(interface(2)), removes=True)
    assert proof.accept(BOTH, removes=False)
    assert not proof.accept(ONE, removes=True)


def test_missing_interface_with_its_link_up_is_kept_a_minute(proof: RemovalProof, clock: Clock) -> None:
    for _ in range(10):
        assert proof.keep_missing(ONE, BOTH, PLUGGED).interfaces == BOTH.interfaces
        clock.now += 5.9
    assert set(proof.awaiting_removal) == {mac(2)}
    clock.now += 1.1
    assert proof.keep_missing(ONE, BOTH, PLUGGED) == ONE
    assert proof.awaiting_removal == {}


def test_interface_that_is_listed_again_starts_anew(proof: RemovalProof, clock: Clock) -> None:
    proof.keep_missing(ONE, BOTH, PLUGGED)
    clock.now += 59
    proof.keep_missing(BOTH, BOTH, PLUGGED)
    clock.now += 59
    assert proof.keep_missing(ONE, BOTH, PLUGGED).interfaces == BOTH.interfaces


def test_interface_without_its_link_is_not_kept(proof: RemovalProof) -> None:
    assert proof.keep_missing(ONE, BOTH, {mac(1): True}) == ONE
    assert proof.keep_missing(ONE, BOTH, {mac(1): True, mac(2): False}) == ONE
    assert proof.keep_missing(ONE, None, PLUGGED) == ONE


def test_kept_interface_is_not_a_problem(proof: RemovalProof) -> None:
    kept = proof.keep_missing(replace(ONE, notices=("a",)), BOTH, PLUGGED)
    assert kept.complete


def test_interface_is_kept_while_a_mac_is_known_to_be_elsewhere(proof: RemovalProof) -> None:
    """A NIC in a pod or in Exclude= has no link here, and says nothing about the others."""
    other = instance(interface(1), interface(3))
    kept = proof.keep_missing(other, instance(interface(1), interface(2), interface(3)), PLUGGED, {mac(3)})
    assert {each.mac for each in kept.interfaces} == {mac(1), mac(2), mac(3)}


def test_nothing_is_kept_while_another_mac_is_unknown(proof: RemovalProof) -> None:
    """One interface may have a new MAC, so links that are not named stay as they are."""
    other = instance(interface(1), interface(3))
    assert proof.keep_missing(other, BOTH, PLUGGED) == other


def test_unlisted_link_of_an_earlier_process_is_kept_a_minute(proof: RemovalProof, clock: Clock) -> None:
    for _ in range(30):
        assert not proof.keep_unlisted(ONE, PLUGGED, {mac(1), mac(2)}).may_remove
        assert proof.awaiting_removal.keys() == {mac(2)}
        clock.now += 2
    assert proof.keep_unlisted(ONE, PLUGGED, {mac(1), mac(2)}).may_remove
    assert not proof.awaiting_removal


def test_link_that_was_named_once_is_not_unlisted(proof: RemovalProof) -> None:
    proof.keep_unlisted(ONE, PLUGGED, {mac(2)})
    proof.keep_unlisted(BOTH, PLUGGED, {mac(2)})
    assert proof.keep_unlisted(ONE, PLUGGED, {mac(2)}).may_remove


@pytest.mark.parametrize("links", [{mac(1): True, mac(2): False}, {mac(1): True}])
def test_link_that_is_down_or_gone_is_not_unlisted(proof: RemovalProof, links: dict[str, bool]) -> None:
    assert proof.keep_unlisted(ONE, links, {mac(2)}).may_remove


def test_link_that_this_process_configured_is_not_unlisted(proof: RemovalProof) -> None:
    proof.keep_unlisted(ONE, PLUGGED, {mac(1)})
    assert proof.keep_unlisted(ONE, PLUGGED, {mac(1), mac(2)}).may_remove
