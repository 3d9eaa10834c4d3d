"""The same in a container, in a fraction of the time: for the developer at work. `make boot` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, Spec

from .checks import Checks
from .conftest import require
from .container import Container
from .guest import Guest


@pytest.fixture(scope="module")
def guest(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    require({"systemd-nspawn": "systemd-container"})
    work = tmp_path_factory.mktemp("container")
    with (
        Lab(Spec.cloud("aws", interfaces=3, addresses=5, ipv6=2)) as lab,
        Container(lab, "bookworm", package, work) as it,
    ):
        yield it


class TestContainer(Checks):
    pass
