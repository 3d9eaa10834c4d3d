"""The lab's metadata server in this process, as EC2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cloud_network.fetcher.metadata.http import Client

from tests.lab import Interface
from tests.lab.metadata.in_process import InProcess


@pytest.fixture
def cloud() -> Iterator[InProcess]:
    """Two interfaces with three addresses each."""
    server = InProcess()
    server.load(Interface("10.0.1.0/24", 3, public=1), Interface("10.0.2.0/24", 3))
    yield server
    server.close()


@pytest.fixture
def client(cloud: InProcess) -> Iterator[Client]:
    found = Client(cloud.endpoint)
    yield found
    found.close()
