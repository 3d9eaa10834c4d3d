"""Random events with fixed seeds; bench/soak.py runs longer, with other seeds."""

from __future__ import annotations

import pytest

from tests.system.chaos import chaos


@pytest.mark.parametrize("seed", [209, 31])
def test_random_events_end_in_a_healthy_network(seed: int) -> None:
    with chaos(seed) as run:
        for _ in range(3):
            run.round(12)
