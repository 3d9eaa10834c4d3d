"""The providers read everything that the lab's clouds serve, and detect the lab's firmware."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from cloud_network.fetcher.metadata import detect

from tests.lab import Spec
from tests.lab.metadata.providers import PROVIDERS
from tests.lab.spec import Resolver, resolve
from tests.unit.fetcher.emulated import CLOUDS, DirectClient, provider_class

BY_DHCP = {"scaleway": "names no address of a private interface"}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_everything_the_labs_cloud_has_is_read(cloud: str) -> None:
    emulated = PROVIDERS[cloud]()
    nics = resolve(Spec.cloud(cloud, 4, 15, 2), Resolver())
    emulated.load(nics)
    found = provider_class(cloud)(DirectClient(emulated)).fetch()
    has = {nic.mac: {ip_address(text) for text in (*nic.addresses, *nic.ipv6)} for nic in nics}
    if cloud in BY_DHCP:
        has |= {nic.mac: set() for nic in nics[1:]}
    got = {
        interface.mac: {address.ip for address in interface.addresses} | {network[0] for network in interface.ranges}
        for interface in found.interfaces
    }
    assert found.complete  # absent objects can be removed
    assert set(got) == set(has)
    assert all(has[mac] <= got[mac] for mac in has)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_labs_firmware_is_known(cloud: str) -> None:
    firmware = {name: content for name, (content, _) in PROVIDERS[cloud].dmi.items()}
    assert [name for name, each in detect.CLOUDS.items() if each.is_here(firmware)] == [cloud]
