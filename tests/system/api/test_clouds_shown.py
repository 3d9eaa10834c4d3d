"""`cnctl status system` on each cloud: the document `one` as shown in 80 columns, line by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cloud_network.api.cnctl import output
from cloud_network.api.cnctl.facts import FACTS
from cloud_network.api.cnctl.system import rows
from cloud_network.fetcher.state import Document, StateDirectory

from tests.unit.fetcher.emulated import document, provider_of, settled

from .conftest import CommandResult, Server, status

SHOWN = Path(__file__).with_name("shown")


def system(cloud: str) -> Document:
    """Return the content of the file `system` from the cloud's provider."""
    return dict(settled(provider_of(cloud, document(cloud, "one"))).system)


@pytest.mark.parametrize("cloud", [cloud for cloud in FACTS if cloud != "aws"])
def test_the_facts_of_a_cloud_fit_a_terminal(
    cloud: str, state: StateDirectory, server: Server, cnctl: Callable[..., CommandResult]
) -> None:
    document = system(cloud)
    table = [("Cloud provider", cloud), *rows(cloud, document)]
    expected = (SHOWN / f"{cloud}.txt").read_text()
    assert output.rows(table, max(len(key) for key, _ in table), 80) + "\n" == expected
    state.write_status(status(provider=cloud))
    state.write_system(document)
    ended = cnctl("status", "system", server=server)
    assert ended.out.split() == expected.split()


@pytest.mark.parametrize("cloud", FACTS)
def test_values_without_text_are_left_out(cloud: str) -> None:
    assert [row for row in rows(cloud, {}) if row[1]] == []
    odd: Document = {path.partition("/")[0]: {"": [None]} for _, *paths in FACTS[cloud] for path in paths}
    assert [row for row in rows(cloud, odd) if row[1]] == []
