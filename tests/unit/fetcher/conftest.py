"""The lab's metadata server in this process, as EC2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cloud_network.fetcher.metadata.http import Client

from tests.lab import Interface
from tests.lab.metadata.in_process import InProcess as Cloud


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    """Two interfaces with three addresses each."""
    server = Cloud()
    server.load(Interface("10.0.1.0/24", 3, public=1), Interface("10.0.2.0/24", 3))
    yield server
    server.close()


@pytest.fixture
def client(cloud: Cloud) -> Iterator[Client]:
    found = Client(cloud.endpoint)
    yield found
    found.close()
