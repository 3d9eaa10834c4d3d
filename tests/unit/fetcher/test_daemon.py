"""The reads of the metadata for commands of root."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cloud_network.fetcher import schedule
from cloud_network.fetcher.daemon import read_credentials, read_for_plan
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import MetadataError
from cloud_network.fetcher.metadata.providers.aws import Aws

from tests.lab import Interface
from tests.lab.metadata.in_process import InProcess as Cloud


def test_plan_reads_twice_if_an_address_is_on_two_interfaces(cloud: Cloud, client: Client) -> None:
    """A new provider cannot know whether the address was moved during the read."""
    nics = list(cloud.load(Interface("10.0.1.0/24", ("10.0.1.10",)), Interface("10.0.1.0/24", ("10.0.1.20",))))
    nics[1] = replace(nics[1], addresses=("10.0.1.20", "10.0.1.10"))
    cloud.serve(nics)
    found = read_for_plan(Aws(client))
    assert found.instance is not None
    assert len(found.instance.interfaces) == 2


def test_reads_of_commands_have_a_time_limit(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "COMMAND_READ_S", 0.0)
    error = read_for_plan(Aws(client)).error
    assert error is not None
    assert error.kind == "timeout"
    with pytest.raises(MetadataError, match="the time limit of the whole read has passed"):
        read_credentials(Aws(client))
