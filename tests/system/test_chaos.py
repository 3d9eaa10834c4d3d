"""A short storm of everything, always the same one; bench/soak.py is the long one, with seeds of its own."""

from __future__ import annotations

import pytest

from tests.system.chaos import chaos


@pytest.mark.parametrize("seed", [209, 31])
def test_left_in_peace_all_is_as_it_should_be(seed: int) -> None:
    with chaos(seed) as storm:
        for _ in range(3):
            storm.round(12)
