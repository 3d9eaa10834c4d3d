"""What holds for every cloud whose payloads are here: over real HTTP, with a real client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers import Provider

from tests.unit.fetcher.clouds import CLOUDS, payload, payloads
from tests.unit.fetcher.site import Site

KEYS = ("ssh-ed25519 AAAA", "ssh-rsa AAAA")


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.close()


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    found = Client(site.endpoint)
    yield found
    found.close()


def serve(site: Site, client: Client, cloud: str, name: str) -> Provider:
    CLOUDS[cloud].serve(site, payload(cloud, name))
    return CLOUDS[cloud].provider(client)


def settled(provider: Provider) -> Instance:
    found = provider.fetch()
    for _ in range(20):
        if not provider.unread:
            break
        found = provider.fetch()
    return found


def addresses(instance: Instance) -> set[tuple[str, str]]:
    return {(interface.mac, str(address)) for interface in instance.interfaces for address in interface.addresses}


every = pytest.mark.parametrize("cloud", CLOUDS)
all_payloads = pytest.mark.parametrize(
    ("cloud", "name"), [(cloud, name) for cloud in CLOUDS for name in payloads(cloud)]
)


@all_payloads
def test_what_is_served_is_what_the_pure_function_makes_of_it(
    site: Site, client: Client, cloud: str, name: str
) -> None:
    assert settled(serve(site, client, cloud, name)) == CLOUDS[cloud].made(payload(cloud, name))


@every
def test_the_usual_payloads_are_there_and_have_no_problems(cloud: str) -> None:
    assert {"one", "many", "sparse", "broken"} <= set(payloads(cloud))
    for name in ("one", "many", "sparse"):
        found = CLOUDS[cloud].made(payload(cloud, name))
        assert found.interfaces
        assert found.complete
    assert len(CLOUDS[cloud].made(payload(cloud, "many")).interfaces) >= 4


@every
def test_one_bad_interface_is_named_and_does_not_stop_the_others(cloud: str) -> None:
    found = CLOUDS[cloud].made(payload(cloud, "broken"))
    assert (len(found.problems), len(found.interfaces) >= 1) == (1, True)
    assert not found.complete
    assert not {problem.mac for problem in found.problems} & {interface.mac for interface in found.interfaces}


@all_payloads
def test_what_is_shown_is_json_has_the_mac_and_no_secret(site: Site, client: Client, cloud: str, name: str) -> None:
    found = settled(serve(site, client, cloud, name))
    text = json.dumps([found.system, *(interface.document for interface in found.interfaces)])
    assert "SECRET" not in text + repr(found.identity)
    assert "c2VjcmV0" not in text
    assert all(interface.document["mac"] == interface.mac for interface in found.interfaces)
    assert all(len(interface.document) > 1 for interface in found.interfaces)


@every
def test_facts_and_ssh_keys_are_there(site: Site, client: Client, cloud: str) -> None:
    system = settled(serve(site, client, cloud, "one")).system
    keys = system["public-keys"]
    assert keys
    assert all(key.startswith(KEYS) for key in keys)
    assert len(system) > 4


@every
def test_an_unchanged_refresh_costs_no_more_than_it_must(site: Site, client: Client, cloud: str) -> None:
    provider = serve(site, client, cloud, "one")
    before = settled(provider)
    site.asked.clear()
    after = provider.fetch()
    assert (after, after.system, after.identity) == (before, before.system, before.identity)
    assert len(site.asked) == CLOUDS[cloud].refresh, site.asked


@every
def test_facts_are_read_again_when_the_network_has_changed(site: Site, client: Client, cloud: str) -> None:
    provider = serve(site, client, cloud, "one")
    settled(provider)
    asked = {path for path in site.asked if not path.startswith("PUT")}
    site.asked.clear()
    CLOUDS[cloud].serve(site, payload(cloud, "many"))
    settled(provider)
    assert asked <= set(site.asked) | {"/latest/meta-data/mac"}


@every
@pytest.mark.parametrize("answer", ["404", "500", "html", "empty", "cut"])
def test_an_answer_that_is_none_is_an_error(site: Site, client: Client, cloud: str, answer: str) -> None:
    """Of every document that the network is made of; what is only shown is never in the way."""
    provider = serve(site, client, cloud, "one" if cloud in ("alibaba", "tencent") else "many")
    before = settled(provider)
    site.asked.clear()
    provider.fetch()
    for path in [path for path in site.asked if not path.startswith("PUT")]:
        text = site.texts[path]
        bad = {"html": "<!DOCTYPE html><html></html>", "empty": "", "cut": text[: len(text) // 2]}.get(answer)
        if bad is None:
            site.statuses[path] = int(answer)
        else:
            site.texts[path] = bad
        try:
            found = provider.fetch()
        except MetadataError:
            found = None
        site.statuses.clear()
        site.texts[path] = text
        listing = path.endswith(("private-networks", "macs/", "local-ipv4s/"))
        if answer in ("cut", "empty") and listing:
            continue  # a shorter list is a list: that it is shorter is believed when a second read says so too
        assert found is None or not found.complete or addresses(found) == addresses(before), path


@every
def test_facts_that_cannot_be_read_keep_nothing_from_working(site: Site, client: Client, cloud: str) -> None:
    provider = serve(site, client, cloud, "one")
    network = settled(provider)
    site.asked.clear()
    provider.fetch()
    needed = {path for path in site.asked if not path.startswith("PUT")} | {"/latest/meta-data/mac"}
    site.statuses = {path: 500 for path in site.texts if path not in needed}
    again = CLOUDS[cloud].provider(client)
    assert settled(again) == network
    site.statuses.clear()
    assert [settled(again).system for _ in range(40)][-1] == network.system


@every
def test_it_says_whether_the_server_answers(site: Site, client: Client, cloud: str) -> None:
    provider = serve(site, client, cloud, "one")
    assert provider.answers()
    paths = list(site.texts)
    site.statuses = dict.fromkeys(paths, 503)
    assert provider.answers()  # busy
    site.statuses = dict.fromkeys(paths, 500)
    assert not provider.answers()
    site.statuses = {}
    site.texts = dict.fromkeys(paths, "<html>log in</html>")
    assert not provider.answers()


@every
def test_nobody_there_is_an_error(site: Site, client: Client, cloud: str) -> None:
    provider = serve(site, client, cloud, "one")
    site.close()
    client.close()
    with pytest.raises(MetadataError):
        provider.fetch()
    assert not provider.answers()


@pytest.mark.parametrize("cloud", ["alibaba", "ibm"])
def test_a_token_that_is_void_is_replaced(site: Site, client: Client, cloud: str) -> None:
    provider = serve(site, client, cloud, "one")
    before = settled(provider)
    site.token = None
    site.asked.clear()
    assert provider.fetch() == before
    assert [path for path in site.asked if path.startswith("PUT")] == [f"PUT {site.token_path}"]
