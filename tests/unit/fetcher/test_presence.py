"""Links that udev has not finished with, and links that have left, with a fake clock and directory."""

from __future__ import annotations

import math
from pathlib import Path

from cloud_network.fetcher.network.objects import Actual
from cloud_network.fetcher.network.presence import DEPARTED_S, FORGOTTEN_S, UDEV_S, Presence

from tests.unit.fetcher.values import host, link, mac


class Clock:
    """A clock that the test moves, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def observe(presence: Presence, here: Actual, *macs: str) -> list[bool]:
    """Return True for each link that is ready."""
    return [each.ready for each in presence.observe(here, macs, presence.finished()).links]


def udev(root: Path) -> Path:
    """Return a running udev that has finished with no link."""
    (root / "run/udev/data").mkdir(parents=True)
    (root / "run/udev/control").touch()
    return root / "run/udev/data"


def test_without_udev_every_link_is_ready(tmp_path: Path) -> None:
    assert observe(Presence(Clock(), tmp_path), host(link(1)), mac(1)) == [True]


def test_a_link_waits_for_udev(tmp_path: Path) -> None:
    data, presence = udev(tmp_path), Presence(Clock(), tmp_path)
    here = host(link(1), link(2))
    (data / "n2").touch()
    assert observe(presence, here, mac(1), mac(2)) == [True, False]
    assert presence.due < 101
    (data / "n3").touch()
    assert observe(presence, here, mac(1), mac(2)) == [True, True]
    assert presence.due == math.inf


def test_a_name_from_before_udev_finished_is_not_trusted(tmp_path: Path) -> None:
    """udev may rename the link and finish after the links were read, but before their names are used."""
    data, presence = udev(tmp_path), Presence(Clock(), tmp_path)
    finished = presence.finished()
    (data / "n2").touch()
    assert not presence.observe(host(link(1)), [mac(1)], finished).links[0].ready


def test_a_link_that_no_interface_has_is_not_waited_for(tmp_path: Path) -> None:
    udev(tmp_path)
    presence = Presence(Clock(), tmp_path)
    observe(presence, host(link(1)))
    assert presence.due == math.inf


def test_a_hung_udev_is_waited_for_only_some_seconds(tmp_path: Path) -> None:
    udev(tmp_path)
    clock = Clock()
    presence = Presence(clock, tmp_path)
    observe(presence, host(link(1)), mac(1))
    clock.now += UDEV_S
    assert observe(presence, host(link(1)), mac(1)) == [True]


def test_a_link_that_was_here_has_left_after_a_while(tmp_path: Path) -> None:
    clock = Clock()
    presence = Presence(clock, tmp_path)
    observe(presence, host(link(1), link(2)), mac(1), mac(2), mac(3))
    observe(presence, host(link(1)), mac(1), mac(2), mac(3))
    assert presence.departed == frozenset()
    assert presence.due == clock.now + DEPARTED_S
    clock.now += DEPARTED_S
    observe(presence, host(link(1)), mac(1), mac(2), mac(3))
    assert presence.departed == {mac(2)}, "the third link was never present"
    observe(presence, host(link(1), link(2)), mac(1), mac(2))
    assert presence.departed == frozenset()


def test_a_partial_answer_does_not_bring_a_departed_link_back(tmp_path: Path) -> None:
    clock = Clock()
    presence = Presence(clock, tmp_path)
    observe(presence, host(link(1), link(2)), mac(1), mac(2))
    clock.now += 2 * DEPARTED_S
    observe(presence, host(link(1)), mac(1))
    observe(presence, host(link(1)), mac(1), mac(2))
    assert presence.departed == {mac(2)}
    clock.now += 2 * FORGOTTEN_S
    observe(presence, host(link(1)), mac(1))
    observe(presence, host(link(1)), mac(1), mac(2))
    assert presence.departed == frozenset()
