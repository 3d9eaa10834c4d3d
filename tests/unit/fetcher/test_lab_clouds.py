"""The lab's metadata servers, which others wrote after the same documentation, read by the providers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from cloud_network.fetcher.metadata.firmware import MATCHES
from cloud_network.fetcher.metadata.http import Client

from tests.lab import Spec
from tests.lab.metadata.providers import PROVIDERS
from tests.lab.metadata.server import Server
from tests.lab.spec import Resolver, resolve
from tests.unit.fetcher.clouds import CLOUDS

DHCP = {"scaleway": "names no address of a private interface"}


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    found = asyncio.new_event_loop()
    thread = threading.Thread(target=found.run_forever)
    thread.start()
    yield found
    found.call_soon_threadsafe(found.stop)
    thread.join()
    found.close()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_all_that_the_labs_cloud_has_is_read(loop: asyncio.AbstractEventLoop, cloud: str) -> None:
    server = PROVIDERS[cloud]()
    nics = resolve(Spec.cloud(cloud, 4, 15, 2), Resolver())
    server.load(nics)
    started = asyncio.run_coroutine_threadsafe(asyncio.start_server(Server(server).client, "127.0.0.1", 0), loop)
    listener = started.result(10)
    port = listener.sockets[0].getsockname()[1]
    client = Client(f"127.0.0.1:{port}")
    try:
        found = CLOUDS[cloud].provider(client).fetch()
        has = {nic.mac: {ip_address(text) for text in (*nic.addresses, *nic.ipv6)} for nic in nics}
        if cloud in DHCP:
            has |= {nic.mac: set() for nic in nics[1:]}
        got = {interface.mac: {address.ip for address in interface.addresses} for interface in found.interfaces}
        assert found.problems == ()
        assert set(got) == set(has)
        assert all(has[mac] <= got[mac] for mac in has)
        dmi = {name: content for name, (content, _) in server.dmi.items()}
        assert [name for name, matches in MATCHES.items() if matches(dmi)] == [cloud]
    finally:
        client.close()
        loop.call_soon_threadsafe(listener.close)
